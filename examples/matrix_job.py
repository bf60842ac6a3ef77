#!/usr/bin/python3
"""A matrix four times larger than the memory it may take: standardised, multiplied, reduced; with whimbrel and with
numpy.memmap, each in a process of its own.

    python3 examples/matrix_job.py [--megabytes 256] [--device zstd]
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np


def job(matrix):
    """Fills the matrix block by block, standardises its columns, and returns the sum of its Gram matrix."""
    rows, columns = matrix.shape
    step = 1024
    for at in range(0, rows, step):
        block = np.arange(at, at + min(step, rows - at), dtype="f8")[:, None]
        matrix[at:at + step] = np.sin(block * 0.001) + np.arange(columns) * 0.01
    mean = sum(matrix[at:at + step].sum(axis=0) for at in range(0, rows, step)) / rows
    gram = np.zeros((columns, columns))
    for at in range(0, rows, step):
        matrix[at:at + step] -= mean
        gram += matrix[at:at + step].T @ matrix[at:at + step]
    return float(np.trace(gram))


def run(kind, megabytes, device):
    shape = (megabytes * (1 << 20) // 8 // 256, 256)
    start = time.perf_counter()
    if kind == "whimbrel":
        import whimbrel
        result = job(whimbrel.empty(shape, ram=f"{megabytes // 4}M", device=device))
    else:
        with tempfile.TemporaryFile(dir=os.environ.get("TMPDIR", "/var/tmp")) as file:
            result = job(np.memmap(file, "f8", "w+", shape=shape))
    seconds = time.perf_counter() - start
    print(repr(result), seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=256, help="size of the matrix (default: %(default)s)")
    parser.add_argument("--device", default="zstd", help="where cold pages go (default: %(default)s)")
    parser.add_argument("--only", choices=("whimbrel", "memmap"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        return run(arguments.only, arguments.megabytes, arguments.device)
    results = set()
    print(f"{arguments.megabytes} MiB of matrix; whimbrel may keep {arguments.megabytes // 4} MiB of it in RAM")
    for kind in ("whimbrel", "memmap"):
        command = [sys.executable, __file__, "--only", kind, "--megabytes", str(arguments.megabytes), "--device", arguments.device]
        result, seconds, peak = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        results.add(result)
        print(f"  {kind:9} {float(seconds):6.1f} s, process at most {peak} MiB resident, result {result}")
    if len(results) != 1:
        sys.exit("the results differ")


if __name__ == "__main__":
    main()
