"""Numeric work on arrays of about the given number of bytes together; one JSON line a phase."""

import hashlib
import json
import sys
import time

import numpy as np


def phase(name, work):
    start = time.monotonic_ns()
    result = work()
    end = time.monotonic_ns()
    digest = hashlib.sha256(np.ascontiguousarray(result).tobytes()).hexdigest()[:16]
    print(json.dumps({"pattern": name, "start_ns": start, "end_ns": end, "seconds": (end - start) / 1e9,
                      "checksum": digest}), flush=True)


def main():
    count = int(sys.argv[1]) // 8 // 4  # four arrays of doubles
    random = np.random.default_rng(1)
    arrays = {}

    def create():
        arrays["walk"] = np.cumsum(np.round(random.standard_normal(count), 2))
        arrays["small"] = random.integers(0, 1000, count)
        return arrays["walk"][:1000]

    def gather():
        picked = arrays["walk"][random.integers(0, count, count // 16)]
        return np.array([picked.sum()])

    def arithmetic():
        arrays["sum"] = arrays["walk"] * 0.5 + arrays["small"]
        return np.array([arrays["sum"].mean(), arrays["sum"].max()])

    def sort():
        ordered = np.sort(arrays["sum"])
        return ordered[:: max(1, count // 1000)]

    def histogram():
        return np.bincount(arrays["small"], weights=arrays["sum"])

    for work in (create, gather, arithmetic, sort, histogram):
        phase(work.__name__, work)


main()
