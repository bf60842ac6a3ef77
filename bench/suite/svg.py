"""A small writer of plots: grouped bars of ratios on a logarithmic scale, and lines over time."""

import html
import math

_COLOURS = ["#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#999999", "#f0e442"]
_FONT = 'font-family="sans-serif" font-size="12"'


def _document(width, height, parts):
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">\n'
            f'<rect width="{width}" height="{height}" fill="white"/>\n' + "\n".join(parts) + "\n</svg>\n")


def _text(x, y, text, anchor="start", extra=""):
    return f'<text x="{x:.1f}" y="{y:.1f}" {_FONT} text-anchor="{anchor}" {extra}>{html.escape(str(text))}</text>'


def _legend(names, x, y):
    parts = []
    for index, name in enumerate(names):
        parts.append(f'<rect x="{x}" y="{y + index * 18 - 10}" width="12" height="12" fill="{_COLOURS[index % len(_COLOURS)]}"/>')
        parts.append(_text(x + 18, y + index * 18, name))
    return parts


def _log_ticks(low, high):
    ticks, power = [], math.floor(math.log10(low))
    while 10 ** power <= high:
        ticks += [step * 10 ** power for step in (1, 2, 5) if low <= step * 10 ** power <= high]
        power += 1
    return ticks


def ratio_bars(title, groups, series, values):
    """Bars from 1 up (faster than the baseline) or down. values[series][group] = Spread or None."""
    spreads = [s for row in values.values() for s in row.values() if s]
    if not spreads:
        return None
    low = min(0.5, *(s.low for s in spreads)) / 1.15
    high = max(2.0, *(s.high for s in spreads)) * 1.15
    left, top, plot_height, bar = 60, 40, 300, 16
    group_width = bar * len(series) + 24
    width = left + group_width * len(groups) + 230
    height = top + plot_height + 90

    def y(value):
        return top + plot_height * (math.log(high) - math.log(value)) / (math.log(high) - math.log(low))

    parts = [_text(left, 22, title, extra='font-weight="bold"')]
    for tick in _log_ticks(low, high):
        colour = "#000" if tick == 1 else "#ddd"
        parts.append(f'<line x1="{left}" x2="{left + group_width * len(groups)}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" stroke="{colour}"/>')
        parts.append(_text(left - 6, y(tick) + 4, f"{tick:g}x", "end"))
    for g, group in enumerate(groups):
        x = left + g * group_width + 12
        middle = x + bar * len(series) / 2
        parts.append(_text(middle, top + plot_height + 18, group, "end",
                           f'transform="rotate(-35 {middle:.1f} {top + plot_height + 18})"'))
        for s, name in enumerate(series):
            spread = values[name].get(group)
            if spread is None:
                continue
            at, edge, x0 = y(spread.median), y(1.0), x + s * bar
            parts.append(f'<rect x="{x0}" y="{min(at, edge):.1f}" width="{bar - 2}" height="{max(1.0, abs(at - edge)):.1f}" '
                         f'fill="{_COLOURS[s % len(_COLOURS)]}"><title>{html.escape(name)} {html.escape(group)}: {spread.median:.2f}x '
                         f'({spread.low:.2f}–{spread.high:.2f})</title></rect>')
            parts.append(f'<line x1="{x0 + bar / 2 - 1}" x2="{x0 + bar / 2 - 1}" y1="{y(spread.low):.1f}" y2="{y(spread.high):.1f}" stroke="#333"/>')
    parts += _legend(series, left + group_width * len(groups) + 16, top + 10)
    return _document(width, height, parts)


def _round_ticks(highest):
    """About five multiples of a round step, from 0 to at least `highest`."""
    power = 10 ** math.floor(math.log10(highest / 5))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power * 5 >= highest)
    return [step * i for i in range(math.ceil(highest / step) + 1)]


def _thinned(points, limit=400):
    """At most about `limit` points; of each stretch the highest, so that no peak is lost."""
    if len(points) <= limit:
        return points
    step = -(-len(points) // limit)
    return [max(points[i:i + step], key=lambda p: p[1]) for i in range(0, len(points), step)]


def lines(title, y_label, series):
    """series: {name: [(seconds, value), ...]}; both axes linear from 0."""
    points = [p for line in series.values() for p in line]
    if not points:
        return None
    x_ticks = _round_ticks(max(p[0] for p in points) or 1.0)
    y_ticks = _round_ticks(max(p[1] for p in points) or 1.0)
    x_max, y_max = x_ticks[-1], y_ticks[-1]
    left, top, width, height = 70, 40, 620, 280
    parts = [_text(left, 22, title, extra='font-weight="bold"'), _text(left, top + height + 34, "seconds since the start"),
             _text(12, top - 8, y_label)]
    for tick in y_ticks:
        y = top + height - height * tick / y_max
        parts.append(f'<line x1="{left}" x2="{left + width}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(_text(left - 6, y + 4, f"{tick:g}", "end"))
    parts += [_text(left + width * tick / x_max, top + height + 16, f"{tick:g}", "middle") for tick in x_ticks]
    for index, line in enumerate(series.values()):
        path = " ".join(f"{left + width * x / x_max:.1f},{top + height - height * value / y_max:.1f}" for x, value in _thinned(line))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{_COLOURS[index % len(_COLOURS)]}" stroke-width="1.5"/>')
    parts += _legend(list(series), left + width + 16, top + 10)
    return _document(left + width + 250, top + height + 50, parts)
