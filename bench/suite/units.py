"""Sizes and the few statistics the suite needs."""

import statistics

_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def parse_size(text):
    """'256M' -> bytes. Raises ValueError with a sentence for the user."""
    digits, unit = (text[:-1], _UNITS[text[-1].upper()]) if text and text[-1].upper() in _UNITS else (text, 1)
    try:
        value = float(digits)
    except ValueError:
        raise ValueError(f"'{text}' is not a size; try: 256M") from None
    if not 0 < value * unit < 1 << 50:
        raise ValueError(f"'{text}' is out of range; try: 256M")
    return int(value * unit)


def format_size(count):
    """Bytes as a person writes them, e.g. '256 MiB'."""
    if count is None:
        return "–"
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if count >= unit:
            value = count / unit
            return f"{value:.0f} {name}" if value >= 10 or value == int(value) else f"{value:.1f} {name}"
    return f"{count} B"


def size_argument(count):
    """Bytes as programs of this project accept them: whole KiB, rounded up."""
    return f"{-(-int(count) // 1024)}K"


def format_seconds(seconds):
    if seconds >= 100:
        return f"{seconds:.0f} s"
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{seconds * 1000:.3g} ms"


def format_per_access(nanoseconds):
    if nanoseconds >= 1e6:
        return f"{nanoseconds / 1e6:.3g} ms"
    if nanoseconds >= 1e3:
        return f"{nanoseconds / 1e3:.3g} µs"
    return f"{nanoseconds:.3g} ns"


class Spread:
    """Median and range of a non-empty set of numbers."""

    def __init__(self, values):
        values = sorted(values)
        self.median = statistics.median(values)
        self.low = values[0]
        self.high = values[-1]
        self.count = len(values)

    def as_dict(self):
        return {"median": self.median, "low": self.low, "high": self.high, "count": self.count}


def paired_ratios(baseline, other):
    """Baseline time over the other's time, round by round: above 1 means the other is faster.

    Both are {round: seconds}. Only rounds that both sides finished count, so that a ratio never compares two different
    moments of a machine that is not quiet. Returns a Spread, or None when no round is common.
    """
    ratios = [baseline[r] / other[r] for r in sorted(baseline) if r in other and other[r] > 0]
    return Spread(ratios) if ratios else None
