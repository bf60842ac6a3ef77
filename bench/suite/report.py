"""Writes what was measured: report.json with every run, report.md for people, and plots."""

import json
import os
import pathlib
import platform
import subprocess
import time

from . import svg
from .swap import other_swaps
from .units import Spread, format_per_access, format_seconds, format_size


def _read(path, default="?"):
    try:
        return pathlib.Path(path).read_text().strip()
    except OSError:
        return default


def machine():
    """What must be known about a machine to judge figures from it."""
    cpu = next((line.split(":", 1)[1].strip() for line in _read("/proc/cpuinfo", "").splitlines()
                if line.startswith("model name")), platform.machine())
    memory = next((int(line.split()[1]) * 1024 for line in _read("/proc/meminfo", "").splitlines()
                   if line.startswith("MemTotal")), 0)
    revision = subprocess.run(["git", "-C", str(pathlib.Path(__file__).parent), "describe", "--always", "--dirty"],
                              capture_output=True, text=True).stdout.strip() or "unknown"
    return {"kernel": platform.release(), "cpu": cpu, "cpus": os.cpu_count(), "memory": memory,
            "hypervisor": "hypervisor" in _read("/proc/cpuinfo", ""),
            "transparent_hugepage": _read("/sys/kernel/mm/transparent_hugepage/enabled"),
            "swappiness": _read("/proc/sys/vm/swappiness"), "page_cluster": _read("/proc/sys/vm/page-cluster"),
            "other_swap": other_swaps(), "revision": revision, "date": time.strftime("%Y-%m-%d %H:%M:%S %z")}


def _spread_text(spread, formatter):
    if spread is None:
        return "–"
    if spread.count == 1:
        return formatter(spread.median)
    return f"{formatter(spread.median)} ({formatter(spread.low)}–{formatter(spread.high)})"


def _ratio_text(spread):
    if spread is None:
        return "–"
    text = f"**{spread.median:.2f}x**"
    return text if spread.count == 1 else f"{text} ({spread.low:.2f}–{spread.high:.2f})"


def _row(cells):
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def _table(head, rows):
    return [_row(head), _row(["---"] * len(head)), *(_row(row) for row in rows), ""]


def _time_cell(result, side, phase):
    spread = result.time(side, phase)
    accesses = next((run["phases"].get(phase, {}).get("accesses") for run in result.measured(side).values()), None)
    if spread is None or not accesses:
        return _spread_text(spread, format_seconds)
    return _spread_text(spread, lambda seconds: format_per_access(seconds * 1e9 / accesses))


def _cpu_table(result, sides, phases):
    """CPU time says what a side costs even when the machine is busy; the pager's threads in the program are included."""
    def cell(side, phase):
        values = [figures["user_s"] + figures["system_s"] for run in result.measured(side).values()
                  if "user_s" in (figures := run["phases"].get(phase, {}))]
        return _spread_text(Spread(values) if values else None, format_seconds)
    rows = [[phase, *(cell(side, phase) for side in sides)] for phase in phases]
    if all(set(row[1:]) == {"–"} for row in rows):
        return []
    return ["CPU time of the program with everything in its process; median (range).", "", *_table(["phase", *sides], rows)]


def _case_section(result, baseline, plots):
    sides, phases = result.side_names(), result.phases()
    lines = [f"### {result.case.name}, {result.budget_text}", "", result.case.title + ".", ""]
    lines += ["Time per access where the program counts accesses, else of the whole phase; median (range).", ""]
    lines += _table(["phase", *sides], [[phase, *(_time_cell(result, side, phase) for side in sides)] for phase in phases])
    lines += _cpu_table(result, sides, phases)
    others = [side for side in sides if side != baseline]
    if baseline in sides and others:
        lines += [f"Time of `{baseline}` divided by the side's, round by round: above 1 the side is faster.", ""]
        rows = [[phase, *(_ratio_text(result.ratio(baseline, side, phase)) for side in others)] for phase in phases]
        rows.append(["all together", *(_ratio_text(result.total_ratio(baseline, side)) for side in others)])
        lines += _table(["phase", *others], rows)
    lines += ["Memory, seen from outside; median over the rounds of the peak.", ""]
    rows = [[side, *(_spread_text(result.peak(side, key), format_size) for key in ("anonymous", "device", "total"))]
            for side in sides]
    lines += _table(["side", "program's anonymous memory", "zram", "RAM in all"], rows)
    lines += _own_figures(result, sides)
    lines += [f"Skipped: `{side}`: {reason}." for side, reason in result.skipped.items()]
    lines += [f"Remark: {remark}." for remark in result.remarks]
    lines += [f"**Problem:** {failure}" for failure in result.failures]
    lines += ["", *(f"![{name}]({name})" for name in plots), ""]
    return lines


def _own_figures(result, sides):
    """What whimbrel says about itself, beside what was seen from outside."""
    keys = ["peak_resident_bytes", "peak_total_bytes", "stored_bytes", "pages_out", "pages_home", "faults", "wait_ns"]
    rows = []
    for side in sides:
        stats = [run["side"]["stats"] for run in result.measured(side).values() if run["side"].get("stats")]
        if not stats:
            continue
        last = stats[-1]
        rows.append([side, *(format_size(last[k]) if k.endswith("bytes") and k in last
                             else format_seconds(last[k] / 1e9) if k == "wait_ns" and k in last
                             else last.get(k, "–") for k in keys)])
    return ["As whimbrel itself reports it (last round).", "", *_table(["side", *keys], rows)] if rows else []


def _verdict_rows(verdicts):
    rows = []
    for v in verdicts:
        if v["measured"] is None:
            rows.append([v["mark"], f"{v['wanted']:g}", "not measured", "–"])
            continue
        bound = "≤" if v["smaller_is_better"] else "≥"
        rows.append([v["mark"], f"{bound} {v['wanted']:g}", f"{v['measured']:.3g} ({v['low']:.3g}–{v['high']:.3g})",
                     "met" if v["met"] else "**missed**"])
    return rows


def _plots(result, baseline, out):
    stem = f"{result.case.name}-{result.budget_text}".replace(" ", "-").replace(":", "to").replace("/", "-")
    names, sides = [], result.side_names()
    others = [side for side in sides if side not in (baseline, "none")]
    values = {side: {phase: result.ratio(baseline, side, phase) for phase in result.phases()} for side in others}
    pictures = {f"{stem}-ratio.svg": svg.ratio_bars(f"{result.case.name}, {result.budget_text}: times faster than {baseline}",
                                                    result.phases(), others, values) if others else None}
    series = {}
    for side in sides:
        run = list(result.measured(side).values())[-1]
        samples = run["samples"]
        series[side] = [((s["t"] - samples[0]["t"]) / 1e9, (s["anonymous"] + s.get("device", 0)) / (1 << 20)) for s in samples]
    pictures[f"{stem}-memory.svg"] = svg.lines(f"{result.case.name}, {result.budget_text}: RAM in all, last round", "MiB", series)
    for name, picture in pictures.items():
        if picture:
            (out / name).write_text(picture)
            names.append(name)
    return names


def _as_json(result):
    def slim(run):
        return {key: value for key, value in run.items() if key != "samples"}
    return {"case": result.case.name, "title": result.case.title, "budget": result.budget_text,
            "ram": result.budget.ram, "total": result.budget.total, "skipped": result.skipped, "failures": result.failures, "remarks": result.remarks,
            "runs": {side: {str(number): slim(run) for number, run in runs.items()} for side, runs in result.runs.items()}}


def write(out, command, about, results, baseline, verdicts, floor, rounds):
    """Writes the report into the directory `out`. Returns the path of report.md."""
    out.mkdir(parents=True, exist_ok=True)
    lines = ["# Benchmark report", "", f"`{command}`", "",
             f"{about['date']}, revision {about['revision']}. {about['cpus']} CPUs ({about['cpu']}"
             f"{', virtual machine' if about['hypervisor'] else ''}), {format_size(about['memory'])}, Linux {about['kernel']}. "
             f"Transparent huge pages {about['transparent_hugepage']}, swappiness {about['swappiness']}, page-cluster "
             f"{about['page_cluster']}; load {about['load_start']:.1f} at the start, {about['load_end']:.1f} at the end.",
             "", f"Medians of {rounds} rounds after one warm-up round that is thrown away; in each round every side runs once. "
             "Absolute times are of this machine only; ratios compare sides within a round.", ""]
    if about["other_swap"]:
        lines += [f"The machine has swap of its own ({', '.join(about['other_swap'])}), of lower priority.", ""]
    if about["load_start"] > 0.5 * about["cpus"]:
        lines += ["**The machine was not quiet** when this began: expect wide ranges.", ""]
    if verdicts:
        lines += ["## Marks", "", *_table(["mark", "wanted", "measured", ""], _verdict_rows(verdicts))]
    lines += ["## Cases", ""]
    for result in results:
        lines += _case_section(result, baseline, _plots(result, baseline, out))
    if floor:
        lines += ["## The floor: what the primitives cost here", ""]
        lines += _table(["primitive", "per", "time (range)"],
                        [[f["primitive"], f.get("unit", "–"), f"{format_per_access(f['ns'])} ({format_per_access(f['low'])}–"
                          f"{format_per_access(f['high'])})" if "ns" in f else "skipped: " + f["skipped"]] for f in floor])
    (out / "report.md").write_text("\n".join(lines))
    (out / "report.json").write_text(json.dumps(
        {"command": command, "machine": about, "baseline": baseline, "rounds": rounds, "verdicts": verdicts, "floor": floor,
         "results": [_as_json(result) for result in results]}, indent=1))
    return out / "report.md"
