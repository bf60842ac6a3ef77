"""Runs one command, plain or under whimbrel, watched from outside by memory-watch. Used by the program tests and ./demo."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

MIB = 1 << 20


@dataclasses.dataclass
class Outcome:
    """What one run did, as seen from outside; `stats` is whimbrel's own summary ({} for a plain run)."""

    exit_status: int
    signal: int
    timed_out: bool
    wall_seconds: float
    cpu_seconds: float
    peak_anon: int  # bytes, RSS minus files of the largest process
    peak_tree: int  # bytes, the same, summed over the process tree (pages shared after fork count in each)
    peak_residency: int  # bytes, largest process without the engine's own mappings; 0 for a plain run
    peak_process: str
    longest_gap_ms: float
    output: bytes
    errors: bytes
    stats: dict

    @property
    def ending(self):
        if self.timed_out:
            return "time limit"
        return f"signal {self.signal}" if self.signal else f"exit {self.exit_status}"


class Tools:
    """Where the built tools are; `options` are extra arguments for every `whimbrel run`."""

    def __init__(self, build, options=()):
        self.build = pathlib.Path(build).resolve()
        self.watch = self.build / "tests" / "memory-watch"
        self.hostile = self.build / "tests" / "hostile"
        self.fill = self.build / "tests" / "fill"
        self.whimbrel = self.build / "bin" / "whimbrel"
        self.options = list(options)

    def require(self, *names):
        for name in names:
            path = getattr(self, name)
            if not path.exists():
                sys.exit(f"{path} is missing; build it: cmake --build {self.build}")


def size_argument(size):
    """Bytes as whimbrel reads them, rounded down to KiB."""
    return f"{size // 1024}K"


class Running:
    """A command that has been started; finish() waits for it and everything it left behind."""

    def __init__(self, tools, command, *, ram=None, total=None, cwd=None, env=None, limit=120, stdin=None):
        self._directory = tempfile.TemporaryDirectory(prefix="whimbrel-run-")
        base = pathlib.Path(self._directory.name)
        self._report, self._stats = base / "watch", base / "stats.json"
        self._stdout, self._stderr = base / "stdout", base / "stderr"
        self._limit = limit
        full = [tools.watch, "--out", self._report, "--limit", str(limit)]
        if ram or total:
            full += ["--residency", "--", tools.whimbrel, "run", "--stats", self._stats, *tools.options]
            full += ["--ram", size_argument(ram)] if ram else []
            full += ["--total", size_argument(total)] if total else []
        full += ["--", *command]
        with open(self._stdout, "wb") as out, open(self._stderr, "wb") as err:
            self.process = subprocess.Popen(
                [str(part) for part in full], cwd=cwd, env=env, stdout=out, stderr=err,
                stdin=stdin if stdin is not None else subprocess.DEVNULL)

    def errors_so_far(self):
        return self._stderr.read_bytes()

    def finish(self):
        try:
            self.process.wait(self._limit + 60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        report = dict(line.split("=", 1) for line in self._report.read_text().splitlines()) \
            if self._report.exists() else {}
        if not report:
            raise RuntimeError("memory-watch left no report: " + self.errors_so_far().decode(errors="replace")[-2000:])
        stats = {}
        if self._stats.exists() and self._stats.stat().st_size:
            stats = json.loads(self._stats.read_text())
        outcome = Outcome(
            exit_status=int(report["exit_status"]), signal=int(report["signal"]),
            timed_out=report["timed_out"] == "1", wall_seconds=float(report["wall_seconds"]),
            cpu_seconds=float(report["user_seconds"]) + float(report["system_seconds"]),
            peak_anon=int(report["peak_process_anon_bytes"]), peak_tree=int(report["peak_tree_anon_bytes"]),
            peak_residency=int(report["peak_residency_bytes"]), peak_process=report["peak_process"],
            longest_gap_ms=float(report["longest_gap_ms"]), output=self._stdout.read_bytes(),
            errors=self._stderr.read_bytes(), stats=stats)
        self._directory.cleanup()
        return outcome

    def stop(self):
        """Ends the run from outside, e.g. when its client has failed."""
        self.process.send_signal(signal.SIGTERM)


def run(tools, command, **options):
    return Running(tools, command, **options).finish()


def wait_until(condition, seconds, what):
    """Polls `condition` until it is true; raises after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError(f"gave up after {seconds} s: {what}")
        time.sleep(0.02)


def programs_environment():
    """The environment of every test program: no locale, no user configuration, nothing inherited that changes output."""
    keep = {key: os.environ[key] for key in ("PATH", "TMPDIR", "CCACHE_DIR") if key in os.environ}
    keep.update(LC_ALL="C", HOME="/nonexistent", GIT_CONFIG_NOSYSTEM="1", GIT_CONFIG_GLOBAL="/dev/null", TZ="UTC")
    return keep
