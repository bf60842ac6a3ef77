#!/usr/bin/python3
"""The demonstration behind ./demo: one database in memory, without whimbrel and in a quarter of its memory.

  demo.py --build build/release [--megabytes 430] [--fraction 4] [--device SPEC]

Exit status 0 only when both runs ended well, their output is the same bytes, and the budget held at every sample.
"""

import argparse
import glob
import hashlib
import os
import pathlib
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "programs"))
import watch  # noqa: E402

LISTS = "/var/lib/apt/lists"
APT_HELPER = "/usr/lib/apt/apt-helper"
PYTHON = "/usr/bin/python3"
MIB = 1 << 20


def fail(message, advice):
    print(f"demo: {message}\n  next: {advice}", file=sys.stderr)
    sys.exit(1)


def find_lists():
    paths = [path for pattern in ("*_Packages*", "*_Contents-*") for path in glob.glob(f"{LISTS}/{pattern}")]
    return sorted(path for path in paths if ".diff_" not in path and os.path.getsize(path) > 0)


def package_lists():
    """The machine's package lists; fetched first when there are none and we may."""
    paths = find_lists()
    if paths:
        return paths
    if not os.path.exists(APT_HELPER):
        fail("this machine has no apt, so it has no package catalogue to load", "run the demo on Debian")
    if os.geteuid() != 0:
        fail(f"no package lists in {LISTS}", "sudo apt-get update")
    print("fetching the package lists (apt-get update)")
    done = subprocess.run(["apt-get", "update", "-qq"], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    paths = find_lists()
    if not paths:
        print(done.stderr, file=sys.stderr)
        fail(f"apt-get update left no package lists in {LISTS}", "check the network, then: apt-get update")
    return paths


def unpack(paths, directory):
    """Plain copies of lists that apt keeps compressed; sorted names, so every run reads them in the same order."""
    plain = []
    for path in paths:
        target = directory / pathlib.Path(path).name
        with open(target, "wb") as out:
            done = subprocess.run([APT_HELPER, "cat-file", path], stdout=out, stderr=subprocess.PIPE, check=False)
        if done.returncode != 0:
            fail(f"apt cannot read {path}: {done.stderr.decode().strip()}", "apt-get update")
        plain.append(target)
    return plain


def show_progress(title, running, started):
    """Repeats what the program says about itself, as it says it."""
    shown, on_terminal = 0, sys.stdout.isatty()
    while running.process.poll() is None:
        time.sleep(0.2)
        lines = running.errors_so_far().decode(errors="replace").split("\n")[:-1]
        for line in lines[shown:] if not on_terminal else lines[-1:]:
            text = f"  {title} {time.monotonic() - started:6.1f} s  {line}"
            print(("\r\x1b[K" + text) if on_terminal else text, end="" if on_terminal else "\n", flush=True)
        shown = len(lines)
    if on_terminal:
        print()


def run(tools, title, command, **options):
    started = time.monotonic()
    running = watch.Running(tools, command, env=watch.programs_environment(), limit=1800, **options)
    try:
        show_progress(title, running, started)
    except KeyboardInterrupt:
        running.stop()
        raise
    outcome = running.finish()
    if outcome.ending != "exit 0":
        print(outcome.errors.decode(errors="replace")[-3000:], file=sys.stderr)
        fail(f"the run {title} ended with {outcome.ending}", f"{tools.whimbrel} doctor")
    return outcome


def megabytes(count):
    return f"{count / MIB:,.0f} MiB"


def print_table(rows):
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    line = "  +" + "+".join("-" * (width + 2) for width in widths) + "+"
    print(line)
    for number, row in enumerate(rows):
        print("  | " + row[0].ljust(widths[0]) + " | " + " | ".join(row[i].rjust(widths[i]) for i in (1, 2)) + " |")
        if number == 0:
            print(line)
    print(line)


def report(plain, managed, ram):
    """Prints the table; returns what is wrong, in words."""
    stats = managed.stats
    same = plain.output == managed.output
    page = 4096
    print_table([
        ("", "without whimbrel", f"whimbrel run --ram {ram // MIB}M"),
        ("resident memory of the program, at most", megabytes(plain.peak_anon), megabytes(managed.peak_residency)),
        ("whole process, compressed store included", megabytes(plain.peak_anon), megabytes(managed.peak_anon)),
        ("time", f"{plain.wall_seconds:.1f} s", f"{managed.wall_seconds:.1f} s"),
        ("  of which waiting for pages", "-", f"{stats.get('wait_ns', 0) / 1e9:.1f} s"),
        ("faults served", "-", f"{stats.get('faults', 0) + stats.get('zero_faults', 0):,}"),
        ("moved out", "-", megabytes(stats.get("pages_out", 0) * page)),
        ("brought home", "-", megabytes(stats.get("pages_home", 0) * page)),
        ("store", "-", f"{megabytes(stats.get('stored_bytes', 0))}, {stats.get('compression_ratio', 0):.1f} : 1"),
        ("output (sha256)", hashlib.sha256(plain.output).hexdigest()[:16], hashlib.sha256(managed.output).hexdigest()[:16]),
        (f"output, {len(plain.output):,} bytes", "", "identical" if same else "DIFFERS"),
    ])
    problems = []
    if not same:
        problems.append("the outputs differ")
    if not stats.get("pages_out"):
        problems.append("no page was moved")
    if managed.peak_residency > ram * 1.05:
        problems.append(f"the budget of {megabytes(ram)} was exceeded: {megabytes(managed.peak_residency)}")
    return problems


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", required=True, type=pathlib.Path, help="build directory")
    parser.add_argument("--megabytes", type=int, default=430, help="size of the database (default: %(default)s)")
    parser.add_argument("--fraction", type=int, default=4, help="--ram is 1/FRACTION of what the plain run took")
    parser.add_argument("--device", help="where pages go, as whimbrel run --device takes it")
    arguments = parser.parse_args()
    tools = watch.Tools(arguments.build, ["--device", arguments.device] if arguments.device else [])
    tools.require("watch", "whimbrel")
    if subprocess.run([PYTHON, "-c", "import sqlite3"], capture_output=True, check=False).returncode != 0:
        fail(f"{PYTHON} has no sqlite3 module", "apt-get install libpython3-stdlib")
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with tempfile.TemporaryDirectory(prefix="whimbrel-demo-") as directory:
        paths = package_lists()
        files = unpack(paths, pathlib.Path(directory))
        size = sum(path.stat().st_size for path in files)
        print(f"Input: {len(files)} package lists of this machine, {megabytes(size)}, loaded until the database in the "
              f"memory of one python3 process has {arguments.megabytes} MB; then indexed, queried, rewritten.")
        if free < arguments.megabytes * 2 * MIB:
            print(f"note: only {megabytes(free)} of memory are free; the first run needs them", file=sys.stderr)
        command = [PYTHON, ROOT / "scripts" / "catalogue.py", arguments.megabytes, *files]
        print("\n1. without whimbrel")
        plain = run(tools, "plain  ", command)
        ram = plain.peak_anon // arguments.fraction // MIB * MIB
        print(f"\n2. in 1/{arguments.fraction} of the memory:  whimbrel run --ram {ram // MIB}M -- python3 catalogue.py ...")
        managed = run(tools, "managed", command, ram=ram)
    print("\nMemory is RSS minus file pages, sampled every 10 ms from outside.\n")
    problems = report(plain, managed, ram)
    for problem in problems:
        print(f"demo: {problem}", file=sys.stderr)
    print("\nwhimbrel's own summary:\n\n" + "\n".join(
        "  " + line for line in managed.errors.decode(errors="replace").splitlines()
        if not line.startswith(("loaded edition", "indexed", "answered", "rewrote"))))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
