"""The command line of the suite."""

import argparse
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time

from . import janitor as janitors
from . import marks, report
from .cases import Tools, WorkloadCase, pattern_cases
from .compare import CaseResult, Plan, run_rounds, say
from .programs import program_cases
from .sides import Budget, KernelSwap, NoLimit, Whimbrel, file_side, whimbrel_works, zram_side
from .units import format_size, parse_size, size_argument

ROOT = pathlib.Path(__file__).resolve().parents[2]
ALL_SIDES = ["none", "zram-lz4", "zram-lzo-rle", "file", "whimbrel", "whimbrel-total"]


def _size(text):
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _arguments():
    parser = argparse.ArgumentParser(
        prog="run_suite", description="Runs unmodified programs with too little memory: without limit, on the kernel's own "
        "swap, and under `whimbrel run`; writes report.md, report.json and plots.",
        epilog="Kernel swap needs root. Everything set up for it (control groups, zram devices, swap areas, files) is "
        "removed at the end, on an error, on Ctrl-C and when the suite is killed.")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--smoke", action="store_true", help="tiny sizes, a few seconds: does everything work?")
    mode.add_argument("--first-mark", action="store_true", help="1 GiB in 256 MiB: fill, sequential and random reads, and the "
                      "overhead when memory suffices")
    mode.add_argument("--full", action="store_true", help="all cases and programs at 1.1:1, 2:1 and 4:1, 5 rounds (hours)")
    mode.add_argument("--cleanup", action="store_true", help="only remove what a killed run may have left")
    parser.add_argument("--size", type=_size, help="memory of the synthetic cases (default 512M; 1G in the larger modes)")
    parser.add_argument("--program-size", type=_size, help="about what the real programs should want (default: --size)")
    parser.add_argument("--ratios", help="need : budget, comma-separated (default 4; --full 1.1,2,4)")
    parser.add_argument("--rounds", type=int, help="measured rounds, after one warm-up (default 3; 5 in the larger modes)")
    parser.add_argument("--cases", help="comma-separated: patterns,matmul,join,touch,redis,sqlite,sort,numpy,cc1plus")
    parser.add_argument("--patterns", help="comma-separated patterns of the case `patterns`")
    parser.add_argument("--mix", default="mixed", help="contents: mixed, records, objects, numbers, noise, half")
    parser.add_argument("--random-scale", type=float, help="multiplies the accesses of the random patterns")
    parser.add_argument("--sides", help=f"comma-separated, of {','.join(ALL_SIDES)}")
    parser.add_argument("--device", action="append", default=[], help="one more whimbrel side with this --device; repeatable")
    parser.add_argument("--baseline", default=marks.ZRAM, help="the side that ratios refer to (default %(default)s)")
    parser.add_argument("--no-overhead", action="store_true", help="leave out the cases in which memory suffices")
    parser.add_argument("--no-floor", action="store_true", help="leave out the primitives' floor")
    parser.add_argument("--timeout", type=float, default=None, help="seconds for one run (default 60 s and 120 s per GiB)")
    parser.add_argument("--max-minutes", type=float, help="start no further run after that long")
    parser.add_argument("--nice", type=int, default=0, help="scheduling weight of every program, e.g. -10 on a busy machine")
    parser.add_argument("--swap-dir", default="/var/tmp", help="where the swap file goes (default %(default)s)")
    parser.add_argument("--work-dir", default="/var/tmp/whimbrel-bench", help="where inputs are kept (default %(default)s)")
    parser.add_argument("--build", help="build directory (default: the one this is run for, build/release)")
    parser.add_argument("--whimbrel", help="the command under test (default: bin/whimbrel of the build directory)")
    parser.add_argument("--out", help="where the report goes (default: BUILD/bench-report)")
    parser.add_argument("--profile", action="store_true", help="after the rounds, run the patterns once under perf with whimbrel")
    arguments = parser.parse_args()
    _complete(arguments, parser)
    return arguments


def _complete(arguments, parser):
    """Fills in what depends on the mode."""
    smoke, large = arguments.smoke, arguments.full or arguments.first_mark
    arguments.build = pathlib.Path(arguments.build or ROOT / "build" / "release").resolve()
    arguments.whimbrel = pathlib.Path(arguments.whimbrel or arguments.build / "bin" / "whimbrel").resolve()
    arguments.out = pathlib.Path(arguments.out or arguments.build / "bench-report").resolve()
    arguments.work_dir = pathlib.Path(arguments.work_dir)
    arguments.size = arguments.size or (48 << 20 if smoke else 1 << 30 if large else 512 << 20)
    arguments.program_size = arguments.program_size or arguments.size
    arguments.rounds = arguments.rounds if arguments.rounds is not None else 1 if smoke else 5 if large else 3
    arguments.random_scale = arguments.random_scale or (0.02 if smoke else 1.0)
    if arguments.rounds < 1:
        parser.error("--rounds must be at least 1")
    try:
        arguments.ratios = [float(r) for r in (arguments.ratios or ("1.1,2,4" if arguments.full else "4")).split(",")]
    except ValueError:
        parser.error(f"--ratios does not accept '{arguments.ratios}'; try: --ratios 2,4")
    if any(ratio <= 0 for ratio in arguments.ratios):
        parser.error("--ratios must be positive")
    default_sides = (["none", "zram-lz4", "whimbrel"] if arguments.first_mark else ALL_SIDES if arguments.full
                     else ["none", "zram-lz4", "file", "whimbrel"] if smoke else
                     ["none", "zram-lz4", "whimbrel", "whimbrel-total"])
    arguments.sides = arguments.sides.split(",") if arguments.sides else default_sides
    unknown = [side for side in arguments.sides if side not in ALL_SIDES]
    if unknown:
        parser.error(f"unknown side '{unknown[0]}'; there are {', '.join(ALL_SIDES)}")
    if arguments.patterns:
        arguments.patterns = arguments.patterns.split(",")
    elif arguments.first_mark:
        arguments.patterns = ["fill", "seqread", "randread"]
    elif smoke:
        arguments.patterns = ["fill", "seqread", "randread", "zipf", "seqwrite"]
    if arguments.cases:
        arguments.cases = arguments.cases.split(",")
    elif arguments.first_mark:
        arguments.cases = ["patterns"]
    elif smoke:
        arguments.cases = ["patterns", "sort"]
    else:
        arguments.cases = ["patterns", "matmul", "join", "redis", "sqlite", "sort", "numpy"]
        arguments.cases += ["cc1plus"] if arguments.full else []
    arguments.timeout = arguments.timeout or 60 + 120 * max(arguments.size, arguments.program_size) / (1 << 30)


def _make_sides(arguments, with_totals=True):
    makers = {"none": NoLimit, "zram-lz4": lambda: zram_side("lz4"), "zram-lzo-rle": lambda: zram_side("lzo-rle"),
              "file": lambda: file_side(arguments.swap_dir), "whimbrel": lambda: Whimbrel(arguments.whimbrel),
              "whimbrel-total": lambda: Whimbrel(arguments.whimbrel, use_total=True)}
    # The order of the warm-up round: without limit first, then zram, for the budgets of the others follow from them.
    sides = [makers[name]() for name in ALL_SIDES if name in arguments.sides]
    sides += [Whimbrel(arguments.whimbrel, device=device) for device in arguments.device]
    broken = None
    if any(isinstance(side, Whimbrel) for side in sides):
        broken = whimbrel_works(arguments.whimbrel)
    if broken:
        say(f"whimbrel is left out: {broken}")
        sides = [side for side in sides if not isinstance(side, Whimbrel)]
    return [s for s in sides if with_totals or not s.name.startswith("whimbrel-total")], broken


def _make_cases(arguments, tools):
    synthetic = [*(arguments.patterns or []), *[c for c in ("matmul", "join", "touch") if c in arguments.cases]]
    if not arguments.patterns and "patterns" in arguments.cases:
        from .cases import MAIN_PATTERNS
        synthetic = [*MAIN_PATTERNS, *synthetic]
    cases = pattern_cases(tools, arguments.size, mix=arguments.mix, patterns=synthetic, random_scale=arguments.random_scale,
                          work_directory=arguments.work_dir) if synthetic else []
    return cases, program_cases(tools, arguments.program_size, arguments.work_dir, arguments.cases)


def _pressure_budget(ratio):
    """The budget of a run is its case's need divided by the ratio. The need of a program is what it took without limit."""
    def set_budget(result):
        need = result.case.data
        natural = [run["peaks"].get("anonymous", 0) for run in result.runs.get("none", {}).values()]
        if natural and not isinstance(result.case, WorkloadCase):
            # Of the warm-up, for the budget must not change between rounds. Far too little means that the sampler did not
            # get to run; then the estimate is the better figure.
            need = natural[0] if natural[0] > need / 4 else need
        ram = max(int(need / ratio), 4 << 20)
        total = None
        zram = list(result.runs.get(marks.ZRAM, {}).values())
        if zram:
            total = ram + zram[0]["peaks"].get("device", 0)
        result.budget = Budget(ram, total, need)
    return set_budget


def _ample_budget(result):
    result.budget = Budget(2 * result.case.data + (256 << 20), None, result.case.data)


def _settler(tools):
    """Touches and frees as much memory as a run will use, so that no side pays for memory that another left cold."""
    def settle(case):
        subprocess.run([tools.path("bench_workload"), "--size", size_argument(case.data * 5 // 4), "--patterns", "touch",
                        "--huge"], stdout=subprocess.DEVNULL, check=False)
    return settle


def _run_floor(tools, smoke):
    argv = [tools.path("bench_floor"), *(["--size", "2", "--rounds", "1"] if smoke else [])]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300)
    if done.returncode != 0:
        say(f"bench_floor ended with {done.returncode}: {done.stderr.strip()}")
        return []
    return [json.loads(line) for line in done.stdout.splitlines()]


def _sides_for(case, sides, smoke):
    """Real programs thrash for minutes in kernel groups as small as a smoke test's."""
    if smoke and not isinstance(case, WorkloadCase):
        return [side for side in sides if not isinstance(side, KernelSwap)]
    return sides


def _ratios_for(case, arguments):
    if case.name == "touch":
        return []  # what matters about first touch is its price when memory suffices
    if arguments.smoke and not isinstance(case, WorkloadCase):
        return [1.4]
    return arguments.ratios


def _measure(arguments, tools, janitor):
    deadline = time.monotonic() + 60 * arguments.max_minutes if arguments.max_minutes else None
    plan = Plan(arguments.rounds, arguments.timeout, _settler(tools), arguments.nice, deadline)
    sides, broken = _make_sides(arguments)
    synthetic, programs = _make_cases(arguments, tools)
    results, verdicts = [], []
    for case in [*synthetic, *programs]:
        reason = case.unavailable()
        if reason:
            say(f"{case.name}: skipped: {reason}")
            continue
        case.prepare()
        for ratio in _ratios_for(case, arguments):
            budgets = f"{ratio:g}:1"
            result = CaseResult(case, budgets, _sides_for(case, sides, arguments.smoke))
            run_rounds(result, _pressure_budget(ratio), plan, janitor)
            results.append(result)
            if case.name == "patterns" and ratio == 4 and not arguments.smoke:
                verdicts += marks.pattern_verdicts(result, arguments.first_mark)
        if not arguments.no_overhead and isinstance(case, WorkloadCase):
            ample = [s for s in sides if s.name == "none" or s.name.startswith("whimbrel") and "total" not in s.name]
            if len(ample) > 1:
                result = CaseResult(case, "memory suffices", ample)
                run_rounds(result, _ample_budget, plan, janitor)
                results.append(result)
                verdicts += [] if arguments.smoke else marks.overhead_verdicts(result, arguments.first_mark)
    return results, verdicts, broken


def _profile(arguments, tools):
    """Where the time goes: one run of the patterns under perf. The text goes beside the report."""
    patterns = ",".join(arguments.patterns or ["fill", "seqread", "randread"])
    data = arguments.out / "perf.data"
    argv = [arguments.whimbrel, "run", "--ram", size_argument(arguments.size // 4), "--", tools.path("bench_workload"),
            "--size", size_argument(arguments.size), "--patterns", patterns, "--no-verify"]
    done = subprocess.run(["perf", "record", "-g", "-F", "499", "-o", data, "--", *argv], capture_output=True, text=True)
    if done.returncode != 0:
        say(f"perf: {done.stderr.strip()[-300:]}")
        return
    for name, options in (("flat", ["--no-children", "-g", "none", "--sort", "comm,dso,symbol"]), ("graph", ["--children"])):
        text = subprocess.run(["perf", "report", "--stdio", "-i", data, *options], capture_output=True, text=True).stdout
        (arguments.out / f"profile-{name}.txt").write_text(text)
    say(f"profile: {arguments.out}/profile-flat.txt")


def _print_summary(results, verdicts, path, baseline):
    for v in verdicts:
        state = "not measured" if v["measured"] is None else f"{v['measured']:.3g} {'met' if v['met'] else 'MISSED'}"
        print(f"{v['mark']}: wanted {v['wanted']:g}: {state}")
    for result in results:
        for side in result.side_names():
            ratio = result.total_ratio(baseline, side)
            if ratio and side != baseline:
                print(f"{result.case.name} [{result.budget_text}]: {side} is {ratio.median:.2f}x as fast as {baseline}")
    print(f"report: {path}")


def _clean_up_only():
    undone, reasons = janitors.clean_stale()
    print(f"removed {undone} left-over(s)")
    for reason in reasons:
        print(reason, file=sys.stderr)
    return 1 if reasons else 0


def _raise_own_weight(nice):
    """The sampler must not starve beside programs of more weight."""
    if nice >= 0:
        return
    try:
        os.setpriority(os.PRIO_PROCESS, 0, nice)
        # Where sessions are scheduled as groups it is the group that needs the weight, and this one may be shared.
        if os.getsid(0) == os.getpid() and pathlib.Path("/proc/self/autogroup").exists():
            pathlib.Path("/proc/self/autogroup").write_text(str(nice))
    except OSError as error:
        say(f"no more weight for the suite itself: {error}")


def _stop(*_):
    raise KeyboardInterrupt


def main():
    arguments = _arguments()
    if arguments.cleanup:
        return _clean_up_only()
    tools = Tools(arguments.build)
    if tools.missing():
        print(f"run_suite: {tools.bin} has no {', '.join(tools.missing())}\n"
              f"  try: cmake --preset release && cmake --build --preset release, or name a build with --build", file=sys.stderr)
        return 2
    _raise_own_weight(arguments.nice)
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGHUP, _stop)
    janitors.clean_stale()
    arguments.work_dir.mkdir(parents=True, exist_ok=True)
    about = {**report.machine(), "load_start": os.getloadavg()[0]}
    janitor = janitors.Janitor()
    try:
        results, verdicts, broken = _measure(arguments, tools, janitor)
        floor = [] if arguments.no_floor else _run_floor(tools, arguments.smoke)
    except KeyboardInterrupt:
        say("interrupted; putting the machine back")
        return 130
    finally:
        try:
            janitor.close()
        except janitors.CleanupError as error:
            say(str(error))
    about["load_end"] = os.getloadavg()[0]
    path = report.write(arguments.out, shlex.join(sys.argv), about, results, arguments.baseline, verdicts, floor,
                        arguments.rounds)
    if arguments.profile and not broken:
        _profile(arguments, tools)
    _print_summary(results, verdicts, path, arguments.baseline)
    # A whimbrel that exists and cannot run is a failure; one that was never built is not.
    failed = any(result.failures for result in results) or (broken is not None and arguments.whimbrel.exists())
    return 1 if failed else 0
