"""Real programs as cases. Each has input of its own making, phases with times, and a digest of its whole output."""

import hashlib
import pathlib
import re
import shutil
import subprocess
import sys
import time

from .cases import parse_phases
from .runner import RunFailed
from .units import format_size

_HERE = pathlib.Path(__file__).resolve().parent / "inputs"


def _phase(start_ns, end_ns, **more):
    return {"start_ns": start_ns, "end_ns": end_ns, "seconds": (end_ns - start_ns) / 1e9, **more}


def _timed_run(context, argv):
    start = time.monotonic_ns()
    output = context.run(argv)
    return output, start, time.monotonic_ns()


class _Program:
    """Common parts. `scale` is about how many bytes of memory the program should want."""

    needs = ()  # commands

    def __init__(self, tools, scale, work_directory):
        self.tools = tools
        self.data = scale
        self.work_directory = work_directory
        self.title = f"{self.what}, about {format_size(scale)}"

    def unavailable(self):
        missing = [name for name in self.needs if shutil.which(name) is None]
        return f"{', '.join(missing)} not installed" if missing else None

    def prepare(self):
        pass


class Sort(_Program):
    name = "sort"
    what = "GNU sort of text"
    needs = ("sort",)

    def prepare(self):
        # sort keeps about 32 bytes beside each line of some 75: the text is two thirds of what it wants.
        self._input = pathlib.Path(self.work_directory) / f"sort-input-{self.data >> 20}.txt"
        wanted = self.data // 3 * 2
        if self._input.exists() and self._input.stat().st_size >= wanted:
            return
        with open(self._input, "wb") as out:
            subprocess.run([self.tools.path("bench_make_text"), str(wanted)], stdout=out, check=True)

    def run(self, context):
        argv = ["env", "LC_ALL=C", "sort", "--parallel=1", "-S", f"{2 * self.data >> 20}M", self._input]
        start = time.monotonic_ns()
        process = context.start(argv, stdout=subprocess.PIPE)
        digest = hashlib.sha256()
        while chunk := process.stdout.read(1 << 20):
            digest.update(chunk)
        context.finish(process)
        return {"sort": _phase(start, time.monotonic_ns())}, digest.hexdigest()


class Sqlite(_Program):
    name = "sqlite"
    what = "sqlite3, database in memory"
    needs = ("sqlite3",)
    _TIME = re.compile(r"^Run Time: real ([0-9.]+)")

    def run(self, context):
        rows = self.data // 197  # bytes a row takes with its two indexes, measured
        script = (_HERE / "sqlite.sql").read_text().replace("@ROWS@", str(rows)).replace("@LOOKUPS@", str(rows // 4))
        script_file = context.directory / "script.sql"
        script_file.write_text(script)
        with open(script_file, "rb") as source:
            process = context.start(["sqlite3", "-batch", ":memory:"], stdin=source, stdout=subprocess.PIPE, text=True)
            output = context.finish(process)
        phases, digest, name = {}, hashlib.sha256(), None
        for line in output.splitlines():
            timed = self._TIME.match(line)
            if line.startswith("phase "):
                name = line.split()[1]
            elif timed and name:
                phases.setdefault(name, {"seconds": 0.0})["seconds"] += float(timed.group(1))
            elif not timed:
                digest.update(line.encode() + b"\n")
        if len(phases) < 4:
            raise RunFailed(f"sqlite3 printed {len(phases)} of 4 phases: {output[-300:]}")
        return phases, digest.hexdigest()


class Numpy(_Program):
    name = "numpy"
    what = "python3 with numpy"

    def unavailable(self):
        for python in (sys.executable, "/usr/bin/python3"):
            if subprocess.run([python, "-c", "import numpy"], capture_output=True).returncode == 0:
                self._python = python
                return None
        return "numpy is not installed; try: apt-get install python3-numpy"

    def run(self, context):
        return parse_phases(context.run([self._python, _HERE / "numpy_work.py", str(self.data)]))


class Compiler(_Program):
    name = "cc1plus"
    what = "g++ compiling one large file"
    needs = ("g++",)

    def prepare(self):
        self._input = pathlib.Path(self.work_directory) / f"compiler-input-{self.data >> 20}.cc"
        classes = max(2, (self.data - (80 << 20)) // 7_900_000)  # bytes the compiler takes for each, measured
        with open(self._input, "w") as out:
            subprocess.run([sys.executable, _HERE / "make_cpp.py", str(classes)], stdout=out, check=True)

    def run(self, context):
        target = context.directory / "out.o"
        _, start, end = _timed_run(context, ["g++", "-std=c++20", "-O1", "-c", self._input, "-o", target])
        return {"compile": _phase(start, end)}, hashlib.sha256(target.read_bytes()).hexdigest()


class Redis(_Program):
    name = "redis"
    what = "redis-server"
    needs = ("redis-server", "redis-cli", "redis-benchmark")
    _VALUE = 1024

    def _wait_for(self, context, server, socket):
        while True:
            if subprocess.run(["redis-cli", "-s", socket, "ping"], capture_output=True).stdout.startswith(b"PONG"):
                return
            if server.poll() is not None:
                raise RunFailed(f"redis-server ended early: {context.error_text(server)}")
            context.check_time()
            time.sleep(0.02)

    def run(self, context):
        keys = self.data // (self._VALUE + 367)  # bytes of the dictionary and the allocator beside a value, measured
        socket = context.directory / "redis.sock"
        server = context.start(["redis-server", "--port", "0", "--unixsocket", socket, "--save", "", "--appendonly", "no"],
                               stdout=subprocess.DEVNULL)
        self._wait_for(context, server, socket)
        load = [self.tools.path("bench_redis_load"), "--socket", socket, "--keys", keys, "--value-bytes", self._VALUE]
        output = context.run([*load, "--phases", "fill,mixed", "--requests", max(1000, keys // 2)], inside=False)
        phases, digest = parse_phases(output)
        requests = max(1000, keys // 8)
        start = time.monotonic_ns()
        context.run(["redis-benchmark", "-s", socket, "-c", "1", "-n", requests, "-r", keys, "-q",
                     "GET", "key:__rand_int__"], inside=False)
        phases["benchmark_get"] = _phase(start, time.monotonic_ns(), accesses=requests)
        context.run(["redis-cli", "-s", socket, "shutdown", "nosave"], inside=False)
        context.finish(server)
        return phases, digest


def program_cases(tools, scale, work_directory, names=None):
    every = [Redis, Sqlite, Sort, Numpy, Compiler]
    return [kind(tools, scale, work_directory) for kind in every if names is None or kind.name in names]
