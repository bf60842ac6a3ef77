#!/usr/bin/python3
"""Do the drivers notice? Runs them over stand-ins for whimbrel that each do one thing wrong, and one that does nothing wrong.

  driver_test.py --build build/release
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent

# A stand-in parses the options of `whimbrel run`, writes statistics and then runs the program its own way.
STAND_IN = """#!/bin/bash
shift   # run
while [ "$1" != -- ]; do [ "$1" = --stats ] && stats=$2; shift; done
shift
{body}
"""
GOOD_STATS = json.dumps({"pages_out": 1000, "pages_home": 900, "faults": 50, "compression_ratio": 2.5})
WRITE_STATS = f"printf '%s' '{GOOD_STATS}' > \"$stats\"\n"
# name -> (body, text the driver must print, its exit status)
STAND_INS = {
    "honest": (WRITE_STATS + 'exec "$@"', "resident", 1),  # nothing is paged: the budget must be seen to fail
    "silent": ('exec "$@"', "no statistics written", 1),
    "idle": ("printf '{\"pages_out\": 0}' > \"$stats\"\n" + 'exec "$@"', "no page moved", 1),
    "forger": (WRITE_STATS + '"$@" | tr 0r 1s', None, 1),
    "status": (WRITE_STATS + '"$@"; exit 3', "ended with exit 3", 1),
    "killer": (WRITE_STATS + 'timeout -s SEGV 0.1 "$@"; kill -SEGV $$', "signal 11", 1),
}


def stand_in_build(real_build, directory, body):
    """A build directory whose bin/whimbrel is the stand-in."""
    build = pathlib.Path(directory)
    (build / "bin").mkdir()
    (build / "tests").mkdir()
    for tool in ("memory-watch", "hostile", "fill"):
        (build / "tests" / tool).symlink_to(real_build / "tests" / tool)
    whimbrel = build / "bin" / "whimbrel"
    whimbrel.write_text(STAND_IN.format(body=body))
    whimbrel.chmod(0o755)
    return build


def drive(script, build, *arguments):
    done = subprocess.run(["/usr/bin/python3", HERE / script, "--build", build, *arguments], capture_output=True,
                          text=True, timeout=300, check=False)
    return done.returncode, done.stdout + done.stderr


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", required=True, type=pathlib.Path)
    real_build = parser.parse_args().build.resolve()
    wrong = []

    def check(what, condition, text):
        print(("ok      " if condition else "WRONG   ") + what)
        if not condition:
            wrong.append(what)
            print("        " + text.strip().replace("\n", "\n        "))

    with tempfile.TemporaryDirectory() as data:
        for name, (body, message, status) in STAND_INS.items():
            with tempfile.TemporaryDirectory() as directory:
                build = stand_in_build(real_build, directory, body)
                code, text = drive("matrix.py", build, "--program", "perl", "--budgets", "1/4", "--data", data)
                expected = message or "output differs"
                check(f"matrix, stand-in {name}: {expected}", code == status and expected in text, text)
                code, text = drive("hostile.py", build, "--case", "close-range")
                if name == "honest":
                    check("hostile, honest stand-in passes", code == 0, text)
                else:
                    expected = message or "says"
                    check(f"hostile, stand-in {name}: {expected}", code == 1 and expected in text, text)
                if name == "honest":
                    code, text = drive("budget.py", build, "--size", "400", "--ram", "64")
                    check("budget, nothing paged: --ram exceeded", code == 1 and "--ram exceeded" in text, text)
                    code, text = drive("budget.py", build, "--size", "400", "--ram", "0", "--total", "100")
                    check("budget, nothing paged: --total exceeded", code == 1 and "--total exceeded" in text, text)
        with tempfile.TemporaryDirectory() as directory:
            build = stand_in_build(real_build, directory, WRITE_STATS + "sleep 600")
            report = pathlib.Path(directory) / "report"
            done = subprocess.run([build / "tests" / "memory-watch", "--out", report, "--limit", "0.5", "--",
                                   "sh", "-c", "sleep 600 & sleep 600"], check=False, timeout=30)
            text = report.read_text()
            check("memory-watch kills what hangs, children too", done.returncode == 124 and "timed_out=1" in text, text)
            done = subprocess.run([build / "tests" / "memory-watch", "--out", report, "--", "sh", "-c",
                                   "(sleep 0.5; echo late > '%s/late') & exit 5" % directory], check=False, timeout=30)
            check("memory-watch waits for what was left behind, keeps the status",
                  done.returncode == 5 and (pathlib.Path(directory) / "late").exists(), report.read_text())
            done = subprocess.run([build / "tests" / "memory-watch", "--out", report, "--residency", "--",
                                   sys.executable, "-c", "import time; x = b'x' * (194 << 20); time.sleep(1)"],
                                  check=False, timeout=60, capture_output=True)
            values = dict(line.split("=") for line in report.read_text().splitlines())
            both = [int(values[f"peak_{key}_bytes"]) for key in ("process_anon", "residency")]
            # With what the interpreter takes for itself.
            check("memory-watch sees 200 MiB both ways", all(190 << 20 <= size <= 210 << 20 for size in both), str(both))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
