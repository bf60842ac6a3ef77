#!/usr/bin/python3
"""What looking costs: the same faulting program with nobody looking, with --events, with --sample-stacks, and with `whimbrel top`
reading its statistics ten times a second; in turns, in one run.

  bench/events_overhead.py [--build DIR] [--rounds N] [--baseline DIR]

Prints the median time of each side and, for each pattern, the median of the rounds' ratios to the side "off"; "cpu, all" is processor
time of program, engine and `whimbrel run` together, which a busy machine distorts less. --baseline: another build, whose runs with
nobody looking are a side of their own (what the hooks cost that are switched off).
"""

import argparse
import json
import pathlib
import resource
import statistics
import subprocess
import tempfile

PATTERNS = ("randread", "randwrite", "seqread")


def run(build, options, patterns, size, ram):
    command = [build / "bin/whimbrel", "run", "--ram", ram, "--device", "lz4", "--quiet", *options]
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
        sides = {"off": (options.build, ()), "events": (options.build, ("--events", events)),
                 "stacks": (options.build, ("--sample-stacks",)), "top": (options.build, ())}
        if options.baseline:
            sides["baseline"] = (options.baseline, ())
        times = {side: {pattern: [] for pattern in (*PATTERNS, "cpu, all")} for side in sides}
        for number in range(options.rounds):
            names = list(sides) if number % 2 == 0 else list(sides)[::-1]
            for side in names:
                top = None
                if side == "top":
                    top = subprocess.Popen([options.build / "bin/whimbrel", "top", "--json", "--interval", "0.1"], stdout=subprocess.DEVNULL)
                for pattern, seconds in run(*sides[side], PATTERNS, options.size, options.ram).items():
                    times[side][pattern].append(seconds)
                if top:
                    top.terminate()
                    top.wait()
        last = json.loads(events.read_text().splitlines()[-1])
    for pattern in (*PATTERNS, "cpu, all"):
        print(f"{pattern}: off {statistics.median(times['off'][pattern]):.3f} s")
        for side in sides:
            if side != "off":
                ratios = [a / b for a, b in zip(times[side][pattern], times["off"][pattern])]
                print(f"  {side:<9} {statistics.median(times[side][pattern]):.3f} s, ratio {statistics.median(ratios):.4f} (of {min(ratios):.3f} to {max(ratios):.3f})")
    print(f"events in the last run: {last['events']}, lost: {last['lost']}")


if __name__ == "__main__":
    main()
