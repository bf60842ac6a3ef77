#!/usr/bin/python3
"""What recording events costs: the same faulting program with and without --events, in turns, in one run.

  bench/events_overhead.py [--build DIR] [--rounds N] [--baseline DIR]

Prints the median time of each side and, for each pattern, the median of the rounds' ratios; "cpu, all" is processor time of program,
engine and `whimbrel run` together, which a busy machine distorts less. --baseline: another build, whose runs
without events are a third side (what the hooks cost that are switched off).
"""

import argparse
import json
import pathlib
import resource
import statistics
import subprocess
import tempfile

PATTERNS = ("randread", "randwrite", "seqread")


def run(build, events, patterns, size, ram):
    command = [build / "bin/whimbrel", "run", "--ram", ram, "--device", "lz4", "--quiet"]
    if events:
        command += ["--events", events]
    command += ["--", build / "bin/bench_workload", "--size", size, "--no-verify", "--random-scale", "4", "--patterns", "fill," + ",".join(patterns)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    out = subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = {"cpu, all": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime}
    for line in out.splitlines():
        one = json.loads(line)
        if one.get("pattern") in patterns:
            seconds[one["pattern"]] = one["seconds"]
    return seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=pathlib.Path, default=pathlib.Path("build/release"))
    parser.add_argument("--baseline", type=pathlib.Path)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--size", default="128M")
    parser.add_argument("--ram", default="32M")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="whimbrel-overhead-") as directory:
        events = pathlib.Path(directory) / "events"
        sides = {"off": (options.build, None), "on": (options.build, events)}
        if options.baseline:
            sides["baseline"] = (options.baseline, None)
        times = {side: {pattern: [] for pattern in (*PATTERNS, "cpu, all")} for side in sides}
        for number in range(options.rounds):
            names = list(sides) if number % 2 == 0 else list(sides)[::-1]
            for side in names:
                for pattern, seconds in run(*sides[side], PATTERNS, options.size, options.ram).items():
                    times[side][pattern].append(seconds)
        last = json.loads(events.read_text().splitlines()[-1])
    for pattern in (*PATTERNS, "cpu, all"):
        line = [f"{pattern:<10}"]
        for side in sides:
            line.append(f"{side} {statistics.median(times[side][pattern]):.3f} s")
        for side in sides:
            if side != "off":
                ratios = [a / b for a, b in zip(times["off" if side == "baseline" else side][pattern],
                                                times["baseline" if side == "baseline" else "off"][pattern])]
                name = "off / baseline" if side == "baseline" else "on / off"
                line.append(f"{name} {statistics.median(ratios):.4f} (of {min(ratios):.3f} to {max(ratios):.3f})")
        print("  ".join(line))
    print(f"events in the last run: {last['events']}, lost: {last['lost']}")


if __name__ == "__main__":
    main()
