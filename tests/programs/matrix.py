#!/usr/bin/python3
"""One real program, plain and then managed at fractions of the memory it took plain. Output must be the same bytes.

  matrix.py --build build/release --program sort            budgets 1/2 and 1/4 of the plain run's memory
  matrix.py --build build/release --program redis --full    about 1 GB instead of about 100 MB
  matrix.py --build build/release --program all --plain     no whimbrel: are the programs themselves all right?
  matrix.py --build build/release --table                   the rows of the last runs again

Memory is sampled every 10 ms from outside (memory-watch). "peak" is RSS minus files of the largest process of the tree;
"resident" leaves out the engine's own mappings. A row is ok when the run ended the same way with the same output, pages
really moved, and the budget held: resident <= ram + 5 %, and with --total peak <= total + 5 % and below the plain peak.
Exit status: 0 all ok, 1 something failed, 77 skipped (the reason is printed).
"""

import argparse
import difflib
import json
import pathlib
import shutil
import sys
import tempfile
import traceback

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import servers  # noqa: E402
import watch  # noqa: E402
import workloads  # noqa: E402
from watch import MIB  # noqa: E402

SKIPPED = 77
# Memory of the program that is never adopted: data of libraries, small mappings, what the loader made. Seen from outside it
# cannot be told apart from managed memory, so it is granted on top of the 5 %.
UNMANAGED = 6 * MIB

COLUMNS = ("program", "budget", "MB", "plain s", "s", "peak plain", "peak", "resident", "faults", "out", "home", "ratio",
           "result")
WIDTHS = (10, 7, 6, 8, 8, 11, 7, 9, 9, 9, 9, 6, 0)


def line_of(cells):
    return " ".join(str(cell).ljust(w) if i < 2 or not w else str(cell).rjust(w)
                    for i, (cell, w) in enumerate(zip(cells, WIDTHS)))


def megabytes(count):
    return f"{count / 1e6:.0f}"


def row_of(name, budget, budget_bytes, plain, run, problems):
    stats = run.stats
    return (name, budget, megabytes(budget_bytes), f"{plain.wall_seconds:.1f}", f"{run.wall_seconds:.1f}",
            megabytes(plain.peak_anon), megabytes(run.peak_anon), megabytes(run.peak_residency),
            stats.get("faults", "-"), stats.get("pages_out", "-"), stats.get("pages_home", "-"),
            f"{stats['compression_ratio']:.2f}" if stats.get("compression_ratio") else "-",
            "ok" if not problems else "FAILED: " + "; ".join(problems))


class Runner:
    """Runs one workload any number of times with the same input, each time in a fresh directory."""

    def __init__(self, tools, workload, data, scale, limit):
        self.tools, self.workload, self.data, self.scale, self.limit = tools, workload, data, scale, limit

    def once(self, **budget):
        """An Outcome whose `output` holds everything that must be identical."""
        base = pathlib.Path(tempfile.mkdtemp(prefix=f"whimbrel-{self.workload.name}-"))
        work = base / self.scale  # the same last component each time: some programs write their path into the output
        work.mkdir()
        try:
            if isinstance(self.workload, workloads.Workload):
                self.workload.set_up(self.data, work)
                outcome = watch.run(self.tools, self.workload.command(self.data, self.scale, self.tools), cwd=work,
                                    env=watch.programs_environment(), limit=self.limit, **budget)
                for path in self.workload.outputs(work):
                    outcome.output += f"\n{path.name} {workloads.digest(path)}".encode()
            else:
                outcome = self.workload.run(self.tools, self.data, work, self.scale, self.limit, **budget)
            return outcome
        finally:
            shutil.rmtree(base, ignore_errors=True)


def problems_of(plain, run, ram=None, total=None):
    """Everything that is wrong with a managed run, in words."""
    problems = []
    if run.timed_out:
        return [f"time limit after {run.wall_seconds:.0f} s"]
    if run.ending != plain.ending:
        problems.append(f"ended with {run.ending}, plain with {plain.ending}")
    if run.output != plain.output:
        problems.append("output differs")
    if not run.stats:
        problems.append("no statistics written")
    elif not run.stats.get("pages_out"):
        problems.append("no page moved: the run shows nothing")
    if ram and run.peak_residency > ram * 1.05 + UNMANAGED:
        problems.append(f"resident {megabytes(run.peak_residency)} MB over the budget")
    if total and run.peak_anon > total * 1.05 + UNMANAGED:
        problems.append(f"peak {megabytes(run.peak_anon)} MB over --total")
    if total and run.peak_anon >= plain.peak_anon:
        problems.append("more memory than without whimbrel")
    return problems


def does_not_fit(plain, run, sizes, problems):
    """The only thing wrong is that --total was exceeded, by data that could not be made smaller; and it was said."""
    total = sizes.get("total")
    enough = run.stats.get("total_that_would_do_bytes", 0)
    return (total and enough > total and problems == [f"peak {megabytes(run.peak_anon)} MB over --total"]
            and run.peak_anon < plain.peak_anon and run.peak_anon <= enough * 1.05 + UNMANAGED and b"--total" in run.errors)


def show_failure(run, plain=None):
    if plain and run.output != plain.output:
        for line in list(difflib.unified_diff(plain.output.decode(errors="replace").splitlines(),
                                              run.output.decode(errors="replace").splitlines(), "plain", "managed", n=0))[:12]:
            print("    " + line[:300])
    text = run.errors.decode(errors="replace").strip()
    if text:
        print("    stderr: " + "\n            ".join(text.splitlines()[-12:]))


def run_program(tools, workload, arguments):
    """Rows of one program; each row is (cells, ok)."""
    scale = "full" if arguments.full else "ci"
    limit = workload.limit * (10 if arguments.full else 1) * arguments.patience
    workload.prepare(arguments.data, scale)
    runner = Runner(tools, workload, arguments.data, scale, limit)
    plain = runner.once()
    if plain.timed_out or plain.exit_status != 0:
        print(f"{workload.name}: the plain run itself ended with {plain.ending}")
        show_failure(plain)
        return [((workload.name, "plain", *[""] * 10, "FAILED: plain run"), False)]
    accept = getattr(workload, "accept", lambda output: True)
    if not accept(plain.output):
        print(f"{workload.name}: plain run gave {plain.output[-500:]!r}")
        return [((workload.name, "plain", *[""] * 10, "FAILED: plain run"), False)]
    rows = []
    if arguments.plain:
        cells = row_of(workload.name, "none", 0, plain, plain, [])
        print(line_of(cells), flush=True)
        return [(cells, True)]
    for budget in arguments.budgets.split(","):
        if budget.startswith("total"):
            fraction = budget.split(":")[1] if ":" in budget else "3/4"
            sizes = {"total": size_of(plain, fraction)}
        else:
            sizes = {"ram": size_of(plain, budget)}
        try:
            run = runner.once(**sizes)
            problems = problems_of(plain, run, **sizes)
            cells = row_of(workload.name, budget, *sizes.values(), plain, run, problems)
        except (RuntimeError, OSError) as error:  # a server or its client gave up
            problems = str(error).split("\n")[:1]
            details = str(error).split("\n")[1:]
            cells = (workload.name, budget, megabytes(*sizes.values()), *[""] * 9, "FAILED: " + problems[0])
            run = None
            if arguments.verbose:
                traceback.print_exc()
        if run and problems and does_not_fit(plain, run, sizes, problems):
            # Nothing can be done about that, and whimbrel has said so: then what it says must be true.
            enough = run.stats["total_that_would_do_bytes"]
            cells = (*cells[:-1], f"does not fit: {megabytes(enough)} MB would do")
            print(line_of(cells), flush=True)
            again = runner.once(total=enough)
            problems = [p for p in problems_of(plain, again, total=enough) if not p.startswith("more memory")]
            rows.append((cells, True))
            budget, run = f"total:{megabytes(enough)}M", again
            cells = row_of(workload.name, budget, enough, plain, again, problems)
        print(line_of(cells), flush=True)
        if problems and run:
            show_failure(run, plain)
        elif problems:
            print("    " + "\n    ".join(details[-25:]))
        rows.append((cells, not problems))
    return rows


def size_of(plain, fraction):
    numerator, denominator = fraction.split("/")
    return plain.peak_anon * int(numerator) // int(denominator)


def print_table(results):
    print(line_of(COLUMNS))
    for path in sorted(results.glob("*.json")):
        for cells in json.loads(path.read_text()):
            print(line_of(cells))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", required=True, type=pathlib.Path, help="build directory")
    parser.add_argument("--program", help="name of a program, or all")
    parser.add_argument("--full", action="store_true", help="about 1 GB a program instead of about 100 MB")
    parser.add_argument("--budgets", default="1/2,1/4", help="fractions for --ram; total:3/4 for --total (default: %(default)s)")
    parser.add_argument("--plain", action="store_true", help="only without whimbrel")
    parser.add_argument("--data", type=pathlib.Path, help="where generated inputs are kept")
    parser.add_argument("--option", action="append", default=[], help="extra argument for `whimbrel run`, repeatable")
    parser.add_argument("--patience", type=float, default=1, help="multiplies the time limits, for busy machines")
    parser.add_argument("--table", action="store_true", help="print the rows of the last runs")
    parser.add_argument("--verbose", action="store_true")
    arguments = parser.parse_args()
    tools = watch.Tools(arguments.build, arguments.option)
    results = tools.build / "tests" / "program-results"
    if arguments.table:
        print_table(results)
        return 0
    arguments.data = (arguments.data or tools.build / "tests" / "program-data").resolve()
    everything = {w.name: w for w in workloads.simple_workloads() + servers.server_workloads()}
    if arguments.program != "all" and arguments.program not in everything:
        parser.error(f"no program called {arguments.program}; there are: {' '.join(everything)}")
    tools.require("watch", "hostile", *(() if arguments.plain else ("whimbrel",)))
    chosen = everything.values() if arguments.program == "all" else [everything[arguments.program]]
    print(line_of(COLUMNS))
    failed = ran = 0
    for workload in chosen:
        reason = workload.missing()
        if reason:
            print(f"{workload.name}: SKIP: {reason}")
            continue
        rows = run_program(tools, workload, arguments)
        ran += 1
        failed += sum(not ok for _, ok in rows)
        if not arguments.plain:
            results.mkdir(parents=True, exist_ok=True)
            (results / f"{workload.name}{'.total' if arguments.budgets.startswith('total') else ''}.json").write_text(json.dumps([cells for cells, _ in rows]))
    if ran == 0:
        return SKIPPED
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
