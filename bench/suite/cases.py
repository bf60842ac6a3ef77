"""What is measured: one case is one way of running one program. Programs know nothing about their pager."""

import json
import pathlib

from .runner import RunFailed
from .units import format_size, size_argument


class Tools:
    """Where the programs of this folder were built."""

    def __init__(self, build):
        self.bin = pathlib.Path(build) / "bin"

    def path(self, name):
        return self.bin / name

    def missing(self):
        return [name for name in ("bench_workload",) if not self.path(name).exists()]


def parse_phases(text):
    """JSON lines of a program of this folder -> ({phase: figures}, checksum of all). Other lines are ignored."""
    phases, digest = {}, []
    for line in text.splitlines():
        if not line.startswith("{"):
            continue
        figures = json.loads(line)
        if figures.get("wrong") or figures.get("wrong_pages"):
            raise RunFailed(f"WRONG CONTENTS: {line}")
        if "pattern" in figures:
            phases[figures.pop("pattern")] = figures
            digest.append(figures["checksum"])
    if not phases:
        raise RunFailed("printed no figures")
    return phases, "-".join(digest)


class WorkloadCase:
    """bench_workload with some of its patterns, in one process."""

    def __init__(self, name, title, tools, size, patterns, *, mix="mixed", random_scale=1.0, extra=(), work_directory=None):
        self.name = name
        self.title = f"{title}, {format_size(size)}, {mix} contents"
        self.data = size
        self.work_directory = work_directory
        self._argv = [tools.path("bench_workload"), "--size", size_argument(size), "--mix", mix,
                      "--patterns", ",".join(patterns), "--random-scale", str(random_scale), *extra]

    @staticmethod
    def unavailable():
        return None

    def prepare(self):
        pass

    def run(self, context):
        return parse_phases(context.run(self._argv))


MAIN_PATTERNS = ["fill", "seqread", "stride2", "randread", "randwrite", "zipf", "chase", "twophase", "seqwrite"]


def pattern_cases(tools, size, *, mix="mixed", patterns=None, random_scale=1.0, work_directory=None):
    """The synthetic cases: the patterns over one array in one process, and two computations in processes of their own."""
    chosen = patterns or [*MAIN_PATTERNS, "matmul", "join"]
    common = {"mix": mix, "random_scale": random_scale, "work_directory": work_directory}
    cases = []
    main = [p for p in chosen if p not in ("matmul", "join", "touch")]
    if main:
        main = main if main[0] == "fill" else ["fill", *[p for p in main if p != "fill"]]
        cases.append(WorkloadCase("patterns", "access patterns", tools, size, main, **common))
    if "touch" in chosen:
        cases.append(WorkloadCase("touch", "first touch of fresh memory", tools, size, ["touch"], **common))
    if "matmul" in chosen:
        cases.append(WorkloadCase("matmul", "blocked matrix product", tools, size, ["matmul"], **common))
    if "join" in chosen:
        cases.append(WorkloadCase("join", "partitioned hash join", tools, size, ["join"], **common))
    return cases
