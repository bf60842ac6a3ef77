#!/usr/bin/python3
"""A program takes 1.5 GB as fast as it can: does the budget hold at every sample, seen from outside?

  budget.py --build build/release [--way map] [--size 1500] [--ram 256] [--total MIB]

Without --total, residency (RSS minus files, minus the engine's own mappings) must stay below --ram + 5 % in every sample;
with it, also RSS minus files below --total + 5 %. Prints one line. Exit status 0 or 1.
"""

import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import watch  # noqa: E402
from watch import MIB  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", required=True, type=pathlib.Path, help="build directory")
    parser.add_argument("--way", default="map", help="how the memory is taken: map brk maps remap malloc random")
    parser.add_argument("--size", type=int, default=1500, help="MiB to fill (default: %(default)s)")
    parser.add_argument("--ram", type=int, default=256, help="MiB for --ram, 0 for none (default: %(default)s)")
    parser.add_argument("--total", type=int, default=0, help="MiB for --total")
    parser.add_argument("--limit", type=int, default=240, help="seconds (default: %(default)s)")
    parser.add_argument("--option", action="append", default=[], help="extra argument for `whimbrel run`, repeatable")
    arguments = parser.parse_args()
    tools = watch.Tools(arguments.build, arguments.option)
    tools.require("watch", "fill", "whimbrel")
    ram, total = arguments.ram * MIB or None, arguments.total * MIB or None
    run = watch.run(tools, [tools.fill, arguments.size, arguments.way], ram=ram, total=total, limit=arguments.limit)
    problems = []
    if run.timed_out or run.ending != "exit 0":
        problems.append(f"ended with {run.ending}: {run.output.decode(errors='replace').strip()}")
    elif b"right" not in run.output:
        problems.append(f"said {run.output!r}")
    if ram and run.peak_residency > ram * 1.05:
        problems.append("--ram exceeded")
    if total and run.peak_anon > total * 1.05:
        problems.append("--total exceeded")
    if not run.stats.get("pages_out"):
        problems.append("no page moved: the run shows nothing")
    print(f"fill {arguments.way} {arguments.size} MiB, ram {arguments.ram}, total {arguments.total or '-'}: resident at most "
          f"{run.peak_residency / MIB:.0f} MiB, RSS minus files at most {run.peak_anon / MIB:.0f} MiB, "
          f"{run.wall_seconds:.1f} s, longest gap between samples {run.longest_gap_ms:.0f} ms: "
          + ("ok" if not problems else "FAILED: " + "; ".join(problems)))
    print("    " + run.errors.decode(errors="replace").strip().replace("\n", "\n    "))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
