#!/usr/bin/python3
"""One hostile program, plain and managed with a quarter of the memory it uses: same ending, same words, no hang.

  hostile.py --build build/release --case close-range     one case
  hostile.py --build build/release --case all [--plain]   all of them, or only without whimbrel

Exit status: 0 ok, 1 failed, 77 skipped (the reason is printed).
"""

import argparse
import pathlib
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import watch  # noqa: E402
from watch import MIB  # noqa: E402

SKIPPED = 77
CASES = pathlib.Path(__file__).resolve().parent / "hostile" / "cases.txt"


class Case:
    def __init__(self, line):
        self.name, *options = line.split()
        values = dict(option.split("=", 1) for option in options if "=" in option)
        self.argument = values.get("arg")
        self.ends = values.get("ends", "exit_0").replace("_", " ")
        self.ram = int(values.get("budget", 16)) * MIB
        self.verdict = "verdict" in options
        self.idle = "idle" in options
        self.calm = "calm" in options
        self.program_case = values.get("case", "end" if self.name.startswith("end-") else self.name)

    def run(self, tools, limit, **budget):
        """Outcome and everything the case said, verdict file included."""
        with tempfile.TemporaryDirectory(prefix="whimbrel-hostile-") as directory:
            verdict = pathlib.Path(directory) / "verdict"
            command = [tools.hostile, self.program_case]
            command += [self.argument] if self.argument else []
            command += [verdict] if self.verdict else []
            outcome = watch.run(tools, command, limit=limit, cwd=directory, **budget)
            said = outcome.output.decode(errors="replace")
            if self.verdict:
                said += verdict.read_text() if verdict.exists() else "no verdict\n"
            return outcome, said


def load_cases():
    lines = CASES.read_text().splitlines()
    return {case.name: case for case in (Case(line) for line in lines if line and not line.startswith("#"))}


def problems_of(case, outcome, said, plain_said):
    problems = []
    if outcome.timed_out:
        problems.append(f"hangs: killed after {outcome.wall_seconds:.0f} s")
    elif outcome.ending != case.ends:
        problems.append(f"ended with {outcome.ending}, should be {case.ends}")
    if said != plain_said:
        problems.append(f"says {said.strip()!r}, plain {plain_said.strip()!r}")
    if not outcome.timed_out and not outcome.stats:
        problems.append("no statistics written")
    elif not case.idle and not outcome.stats.get("pages_out"):
        problems.append("no page moved: the run shows nothing")
    # What would have a reader look for a fault where there is none.
    for complaint in ("background thread", "all that is left is locked"):
        if complaint in outcome.errors.decode(errors="replace") and case.calm:
            problems.append(f"says '{complaint}' of a program that can be managed")
    return problems


def check(tools, case, arguments):
    """True, False, or None when skipped."""
    plain, plain_said = case.run(tools, 90 * arguments.patience)
    if plain.exit_status == SKIPPED:
        print(f"{case.name}: {plain_said.strip()}")
        return None
    if plain.timed_out or plain.ending != case.ends or "FAILED" in plain_said:
        print(f"{case.name}: plain run: {plain.ending}: {plain_said.strip()}")
        return False
    if arguments.plain:
        print(f"{case.name:16} plain {plain.wall_seconds:5.1f} s  {plain_said.strip()}", flush=True)
        return True
    run, said = case.run(tools, 120 * arguments.patience, ram=case.ram)
    problems = problems_of(case, run, said, plain_said)
    stats = run.stats
    print(f"{case.name:16} plain {plain.wall_seconds:5.1f} s, managed {run.wall_seconds:5.1f} s, "
          f"peak {plain.peak_anon // MIB} -> {run.peak_anon // MIB} MiB, resident {run.peak_residency // MIB} MiB, "
          f"faults {stats.get('faults', '-')}, out {stats.get('pages_out', '-')}: "
          + ("ok" if not problems else "FAILED: " + "; ".join(problems)), flush=True)
    if problems:
        text = run.errors.decode(errors="replace").strip()
        print("    stderr: " + "\n            ".join(text.splitlines()[-12:]))
    return not problems


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", required=True, type=pathlib.Path, help="build directory")
    parser.add_argument("--case", required=True, help="name of a case, or all")
    parser.add_argument("--plain", action="store_true", help="only without whimbrel")
    parser.add_argument("--option", action="append", default=[], help="extra argument for `whimbrel run`, repeatable")
    parser.add_argument("--patience", type=float, default=1, help="multiplies the time limits, for busy machines")
    arguments = parser.parse_args()
    tools = watch.Tools(arguments.build, arguments.option)
    tools.require("watch", "hostile", *(() if arguments.plain else ("whimbrel",)))
    cases = load_cases()
    if arguments.case != "all" and arguments.case not in cases:
        parser.error(f"no case called {arguments.case}; there are: {' '.join(cases)}")
    chosen = cases.values() if arguments.case == "all" else [cases[arguments.case]]
    verdicts = [check(tools, case, arguments) for case in chosen]
    if all(verdict is None for verdict in verdicts):
        return SKIPPED
    return 1 if False in verdicts else 0


if __name__ == "__main__":
    sys.exit(main())
