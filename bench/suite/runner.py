"""Runs one case on one side and collects everything that can be known about the run."""

import contextlib
import os
import pathlib
import signal
import subprocess
import tempfile
import threading
import time

from .janitor import start_time_of
from .sampler import Sampler, peaks, process_tree

SAMPLE_INTERVAL = 0.02


class RunFailed(Exception):
    """A run that gave no valid figures; the text says why."""


class OutOfMemory(RunFailed):
    """The side itself gave up: the kernel killed the program because its group was full. A result, not an accident."""


def _where(root):
    """What each thread of a process tree is doing: the first thing to know about a program that hangs."""
    threads = []
    for pid in process_tree(root):
        with contextlib.suppress(OSError):
            for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
                state = (task / "stat").read_text().rpartition(")")[2].split()[0]
                threads.append(f"{(task / 'comm').read_text().strip()} {state} {(task / 'wchan').read_text() or '-'}")
    return ", ".join(threads[:24])


class Context:
    """What a case gets to run its programs in: start() runs one on the side, everything else runs outside it."""

    def __init__(self, janitor, entered, timeout, nice):
        self._janitor = janitor
        self._entered = entered
        self._timed_out = threading.Event()
        self._stuck = ""
        # Kills rather than waits with a limit: then every way of waiting for a program ends.
        self._alarm = threading.Timer(timeout, self._time_out)
        self._alarm.daemon = True
        self._alarm.start()
        self._nice = nice
        self._started = []
        self._tickets = []
        self.samplers = []
        self.directory = None  # a fresh one for each run

    def start(self, argv, *, inside=True, **kwargs):
        """Starts a program, on the side when `inside`, and samples its memory then. Returns the Popen."""
        argv = [str(part) for part in argv]
        if inside:
            argv = self._entered.wrap(argv)
        if self._nice:
            # Every run has a session of its own, and where sessions are scheduled as groups only the group's weight counts.
            weigh = '[ -w /proc/$$/autogroup ] && echo "$0" > /proc/$$/autogroup; exec nice -n "$0" "$@"'
            argv = ["sh", "-c", weigh, str(self._nice), *argv]
        errors = tempfile.TemporaryFile(dir=self.directory)
        kwargs.setdefault("stdin", subprocess.DEVNULL)
        process = subprocess.Popen(argv, stderr=errors, start_new_session=True, cwd=self.directory, **kwargs)
        process.errors = errors
        self._started.append(process)
        if inside:
            self.samplers.append(Sampler(process.pid, SAMPLE_INTERVAL, self._entered.probe))
        self._tickets.append(self._janitor.remember("kill_process", process.pid, start_time_of(process.pid)))
        return process

    def _time_out(self):
        self._stuck = "; ".join(_where(p.pid) for p in list(self._started) if p.returncode is None)
        self._timed_out.set()
        self._kill_all()

    def check_time(self):
        """For loops that wait for a program to get ready."""
        if self._timed_out.is_set():
            raise RunFailed(f"did not end within its time limit [{self._stuck}]")

    def finish(self, process):
        """Waits for the end and returns standard output (None when redirected). Raises RunFailed."""
        output, _ = process.communicate()
        self.check_time()
        if process.returncode != 0:
            raise RunFailed(f"ended with status {process.returncode}: {self.error_text(process)}")
        return output

    @staticmethod
    def error_text(process):
        process.errors.seek(0)
        lines = process.errors.read().decode(errors="replace").strip().splitlines()
        return " | ".join(lines[-6:])[-600:] or "no message"

    def run(self, argv, *, inside=True, **kwargs):
        return self.finish(self.start(argv, inside=inside, stdout=subprocess.PIPE, text=True, **kwargs))

    def _kill_all(self):
        for process in list(self._started):
            if process.returncode is not None and start_time_of(process.pid) is not None:
                continue  # it was waited for and somebody else has its number now
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)

    def stop_all(self):
        self._alarm.cancel()
        self._kill_all()
        for process in self._started:
            process.wait()
            if process.stdout:
                process.stdout.close()
            process.errors.close()
        for sampler in self.samplers:
            sampler.stop()
        for ticket in self._tickets:
            self._janitor.undo(ticket)


def run_case(case, side, budget, janitor, timeout, nice=0):
    """One run. Returns a dict: phases {name: figures}, digest, peaks, samples, side; or raises RunFailed."""
    load = os.getloadavg()[0]
    try:
        with tempfile.TemporaryDirectory(prefix="whimbrel-bench-run-", dir=case.work_directory) as directory, \
                side.enter(janitor, budget) as entered:
            context = Context(janitor, entered, timeout, nice)
            context.directory = pathlib.Path(directory)
            start = time.monotonic()
            try:
                phases, digest = case.run(context)
            except RunFailed:
                if entered.out_of_memory():
                    raise OutOfMemory("killed by the kernel for lack of memory") from None
                raise
            finally:
                context.stop_all()
            wall = time.monotonic() - start
            reported = entered.finished()
            samples = sorted((s for sampler in context.samplers for s in sampler.samples), key=lambda s: s["t"])
            broken = entered.broken_promise(budget, peaks(samples), budget.data)
            if broken:
                raise RunFailed(broken)
    except RuntimeError as error:  # the side could not be set up
        raise RunFailed(str(error)) from error
    for figures in phases.values():
        figures["peaks"] = peaks(samples, figures.get("start_ns"), figures.get("end_ns"))
    return {"phases": phases, "digest": digest, "peaks": peaks(samples), "samples": samples, "side": reported,
            "wall_seconds": wall, "load_before": load}
