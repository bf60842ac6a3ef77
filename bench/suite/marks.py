"""What the project has promised to reach, as ratios of the kernel's time on zram (lz4) to ours. Above 1: we are faster."""

ZRAM = "zram-lz4"

# First mark: 1 GiB in 256 MiB, and no more than 3 % lost when memory suffices.
FIRST = {"seqread": 2.0, "randread": 0.5, "fill": 1.0}
FIRST_OVERHEAD = 1.03

# At a quarter of the memory: with the same resident memory, and with the same RAM in all.
SAME_RESIDENT = {"seqread": 10.0, "seqwrite": 6.0, "stride2": 6.0, "fill": 4.0, "randread": 1.0, "randwrite": 1.2,
                 "zipf": 1.3, "twophase": 1.5}
SAME_TOTAL = {"seqread": 5.0, "seqwrite": 5.0, "stride2": 3.0, "fill": 4.0, "randread": 1.5, "randwrite": 1.7,
              "zipf": 1.8, "twophase": 2.0}
OVERHEAD = 1.02
FIRST_TOUCH = 1.5
PROGRAMS_SAME_RESIDENT = 1.5   # geometric mean; none below 1
PROGRAMS_SAME_TOTAL = 2.0
PROGRAM_PHASES = {"redis": "mixed", "sqlite": "lookup", "sort": "sort", "numpy": None}


def _verdict(label, wanted, spread, smaller_is_better=False):
    if spread is None:
        return {"mark": label, "wanted": wanted, "measured": None, "met": None}
    met = spread.median <= wanted if smaller_is_better else spread.median >= wanted
    return {"mark": label, "wanted": wanted, "measured": spread.median, "low": spread.low, "high": spread.high,
            "met": met, "smaller_is_better": smaller_is_better}


def _pattern_ratio(result, side, pattern):
    """`twophase` is the three parts together; others are one phase."""
    if pattern != "twophase":
        return result.ratio(ZRAM, side, pattern)
    parts = [phase for phase in result.phases() if phase.startswith("twophase")]
    if not parts:
        return None
    from .units import paired_ratios
    sums = {}
    for name in (ZRAM, side):
        if name not in result.runs:
            return None
        sums[name] = {number: sum(run["phases"][part]["seconds"] for part in parts)
                      for number, run in result.measured(name).items()}
    return paired_ratios(sums[ZRAM], sums[side])


def _ram_sides(result):
    return [s.name for s in result.sides if s.name == "whimbrel" or s.name.startswith("whimbrel:")]


def _total_sides(result):
    return [s.name for s in result.sides if s.name.startswith("whimbrel-total")]


def pattern_verdicts(result, first):
    """Verdicts on a `patterns` result at a quarter of the memory."""
    verdicts = []
    for side in _ram_sides(result):
        for pattern, wanted in (FIRST if first else SAME_RESIDENT).items():
            verdicts.append(_verdict(f"{pattern}, {side} against {ZRAM}", wanted, _pattern_ratio(result, side, pattern)))
    for side in [] if first else _total_sides(result):
        for pattern, wanted in SAME_TOTAL.items():
            verdicts.append(_verdict(f"{pattern}, {side} against {ZRAM}", wanted, _pattern_ratio(result, side, pattern)))
    return verdicts


def overhead_verdicts(result, first):
    """Verdicts on a result whose budget exceeds the need: time with whimbrel over time without."""
    verdicts = []
    for side in _ram_sides(result):
        if result.case.name == "touch":
            verdicts.append(_verdict(f"first touch, {side} against none", FIRST_TOUCH, result.total_ratio("none", side)))
            continue
        verdicts.append(_verdict(f"time with {side} / without, {result.case.name}, memory suffices",
                                 FIRST_OVERHEAD if first else OVERHEAD, result.total_ratio(side, "none"), True))
    return verdicts
