"""Runs cases on sides in rounds and keeps what came out."""

import sys
import time

from .runner import OutOfMemory, RunFailed, run_case
from .sides import Budget
from .units import Spread, format_seconds, format_size, paired_ratios


class CaseResult:
    """All runs of one case under one budget. Round 0 is the warm-up: its figures are kept out of every statistic."""

    def __init__(self, case, budget_text, sides):
        self.case = case
        self.budget_text = budget_text
        self.budget = Budget()
        self.sides = sides
        self.skipped = {}   # side name -> reason
        self.failures = []  # sentences
        self.remarks = []   # sentences that are no fault of anything under test
        self.runs = {side.name: {} for side in sides}

    def measured(self, side):
        """{round: run} without the warm-up."""
        return {number: run for number, run in self.runs[side].items() if number > 0}

    def side_names(self):
        return [side.name for side in self.sides if self.measured(side.name)]

    def phases(self):
        for runs in self.runs.values():
            for run in runs.values():
                return list(run["phases"])
        return []

    def seconds(self, side, phase):
        return {number: run["phases"][phase]["seconds"] for number, run in self.measured(side).items()
                if phase in run["phases"]}

    def time(self, side, phase):
        values = self.seconds(side, phase)
        return Spread(values.values()) if values else None

    def ratio(self, baseline, side, phase):
        """How many times faster than the baseline; see paired_ratios."""
        if baseline not in self.runs or side not in self.runs:
            return None
        return paired_ratios(self.seconds(baseline, phase), self.seconds(side, phase))

    def total_ratio(self, baseline, side):
        """The same for the sum of all phases."""
        def sums(name):
            return {number: sum(p["seconds"] for p in run["phases"].values())
                    for number, run in self.measured(name).items()}
        if baseline not in self.runs or side not in self.runs:
            return None
        return paired_ratios(sums(baseline), sums(side))

    def peak(self, side, key, phase=None):
        """Median over the rounds of the largest value sampled, of the whole run or of one phase."""
        values = []
        for run in self.measured(side).values():
            found = run["phases"].get(phase, {}).get("peaks", {}) if phase else run["peaks"]
            if key in found:
                values.append(found[key])
        return Spread(values) if values else None

    def check_digests(self):
        """Every run of every side must have computed the same."""
        seen = {}
        for side, runs in self.runs.items():
            for number, run in runs.items():
                seen.setdefault(run["digest"], f"{side} (round {number})")
        if len(seen) > 1:
            self.failures.append("OUTPUT DIFFERS between " + " and ".join(seen.values()))


class Plan:
    """How cases are run. `ram_of` gives the budget: (case, natural bytes or None) -> Budget."""

    def __init__(self, rounds, timeout, settle, nice=0, deadline=None):
        self.rounds = rounds
        self.timeout = timeout
        self.settle = settle  # () -> None: brings the machine into the same state before each run
        self.nice = nice
        self.deadline = deadline

    def out_of_time(self):
        return self.deadline is not None and time.monotonic() > self.deadline


def say(text):
    print(text, file=sys.stderr, flush=True)


def _one_run(result, side, number, plan, janitor):
    started = time.monotonic()
    try:
        plan.settle(result.case)
        run = run_case(result.case, side, result.budget, janitor, plan.timeout, plan.nice)
    except OutOfMemory as error:
        result.remarks.append(f"{side.name}, round {number}: {error}")
        say(f"    {side.name}: {error}")
        return
    except RunFailed as error:
        result.failures.append(f"{side.name}, round {number}: {error}")
        say(f"    {side.name}: FAILED: {error}")
        return
    result.runs[side.name][number] = run
    seconds = sum(phase["seconds"] for phase in run["phases"].values())
    say(f"    {side.name}: {format_seconds(seconds)}, RAM in all {format_size(run['peaks'].get('total'))}"
        f" ({time.monotonic() - started:.1f} s)")


def run_rounds(result, set_budget, plan, janitor):
    """Round 0 warms up and, in the order the sides are given, finds natural sizes; the others change places.

    set_budget(result) is called before each run and fills result.budget from what is known by then.
    """
    say(f"{result.case.name} [{result.budget_text}]: {result.case.title}")
    active = list(result.sides)
    for number in range(plan.rounds + 1):
        say(f"  round {number}{' (warm-up)' if number == 0 else ''}")
        order = active if number % 2 == 0 else active[::-1]
        for side in order:
            if plan.out_of_time():
                result.remarks.append(f"time limit of the suite reached in round {number}")
                return
            set_budget(result)
            reason = side.unavailable(result.budget)
            if reason:
                result.skipped[side.name] = reason
                say(f"    {side.name}: skipped: {reason}")
                continue
            result.skipped.pop(side.name, None)
            _one_run(result, side, number, plan, janitor)
        active = [side for side in active if side.name not in result.skipped]
    result.check_digests()
    for failure in result.failures:
        say(f"  ! {failure}")
