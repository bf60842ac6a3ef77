"""The sides of a comparison: ways to give a program less memory than it wants.

A side is asked once whether it can run here, and then, for every run, entered: that sets up whatever it needs, wraps
the program's command line, and afterwards puts everything back.
"""

import contextlib
import json
import os
import pathlib
import subprocess
import tempfile

from . import cgroup
from .swap import FileSwap, ZramSwap
from .units import size_argument


class Budget:
    """How much memory a run may use: `ram` for the program, and with `total` the RAM in all. None: no limit."""

    def __init__(self, ram=None, total=None, data=0):
        self.ram = ram
        self.total = total
        self.data = data  # about how much the program will want; sizes the swap area


class Entered:
    """A side that is set up for one run."""

    def wrap(self, argv):
        return argv

    def probe(self):
        """Numbers for the sampler; see Sampler."""
        return {}

    def finished(self):
        """What the side itself reports about the run that just ended."""
        return {}

    def broken_promise(self, _budget, _peaks, _need):
        """None, or why the run's figures must not count: it did not happen under the limit it was to be under."""
        return None

    def out_of_memory(self):
        """True when the side ended a program because it found no memory for it."""
        return False


class NoLimit:
    name = "none"
    title = "no limit"

    @staticmethod
    def unavailable(_budget):
        return None

    @contextlib.contextmanager
    def enter(self, _janitor, _budget):
        yield Entered()


class _EnteredKernelSwap(Entered):
    def __init__(self, group, swap):
        self._group = group
        self._swap = swap
        self._peak_usage = 0

    def wrap(self, argv):
        return self._group.wrap(argv)

    def probe(self):
        self._group.refresh_statistics()
        usage = self._group.usage()
        self._peak_usage = max(self._peak_usage, usage)
        return {"device": self._swap.memory_used(), "group": usage}

    def finished(self):
        return {"group_peak": self._peak_usage}

    def out_of_memory(self):
        return self._group.out_of_memory_kills() > 0


class KernelSwap:
    """The kernel's own swap, in a memory control group of the budget's size."""

    def __init__(self, name, title, swap_for, swap_unavailable):
        self.name = name
        self.title = title
        self._swap_for = swap_for  # (janitor, capacity) -> context manager
        self._swap_unavailable = swap_unavailable  # capacity -> reason or None

    @staticmethod
    def _capacity(budget):
        return budget.data + (256 << 20)

    def unavailable(self, budget):
        if budget.ram is None:
            return "no memory limit in this case"
        return cgroup.unavailable() or self._swap_unavailable(self._capacity(budget))

    @contextlib.contextmanager
    def enter(self, janitor, budget):
        # The group goes first on the way out: then nobody's pages are left in the swap area.
        with self._swap_for(janitor, self._capacity(budget)) as swap:
            with cgroup.MemoryGroup(janitor, budget.ram) as group:
                yield _EnteredKernelSwap(group, swap)


def zram_side(algorithm):
    return KernelSwap(f"zram-{algorithm}", f"kernel swap on zram ({algorithm})",
                      lambda janitor, capacity: ZramSwap(janitor, algorithm, capacity),
                      lambda _capacity: ZramSwap.unavailable(algorithm))


def file_side(directory):
    return KernelSwap("file", "kernel swap on a file",
                      lambda janitor, capacity: FileSwap(janitor, directory, capacity),
                      lambda capacity: FileSwap.unavailable(directory, capacity))


class _EnteredWhimbrel(Entered):
    def __init__(self, prefix, stats, use_total):
        self._prefix = prefix
        self._stats = stats
        self._use_total = use_total

    def broken_promise(self, budget, peaks, need):
        return judge_budget(self.finished()["stats"], budget, peaks, need, self._use_total)

    def wrap(self, argv):
        return [*self._prefix, "--stats", str(self._stats), "--", *argv]

    def finished(self):
        try:
            text = self._stats.read_text()
        except OSError:
            return {"stats": None}
        # One object, or one a line when the program had children that were managed too; the first run is the program.
        try:
            return {"stats": json.loads(text)}
        except ValueError:
            lines = [json.loads(line) for line in text.splitlines() if line.strip()]
            return {"stats": lines[-1] if lines else None}


def judge_budget(stats, budget, peaks, need, use_total):
    """None, or a sentence: a program that was not managed at all, or had more than its budget, is fast for no reason."""
    if not stats:
        return "whimbrel wrote no statistics"
    limit = budget.total if use_total else budget.ram
    if need > 1.3 * limit and not stats.get("pages_out"):
        return f"no page was moved out although the program wants {need >> 20} MiB and may have {limit >> 20} MiB: not managed"
    used = peaks.get("total", 0) if use_total else stats.get("peak_resident_bytes", 0)
    if used > 1.05 * limit + (1 << 20):
        return f"the budget did not hold: {used >> 20} MiB {'in all' if use_total else 'resident'} of {limit >> 20} MiB"
    return None


class Whimbrel:
    """`whimbrel run` with the budget as --ram, or as --total."""

    def __init__(self, binary, device=None, use_total=False, extra=()):
        self.binary = pathlib.Path(binary)
        self._device = device
        self._use_total = use_total
        self._extra = list(extra)
        suffix = f":{device}" if device else ""
        self.name = ("whimbrel-total" if use_total else "whimbrel") + suffix
        self.title = f"whimbrel {'--total' if use_total else '--ram'}" + (f" --device {device}" if device else "")

    def unavailable(self, budget):
        if not os.access(self.binary, os.X_OK):
            return f"{self.binary} does not exist; build it, or name it with --whimbrel"
        if self._use_total and budget.total is None:
            return "no figure for RAM in all yet: it is what swap on zram used, and that side did not run"
        if not self._use_total and budget.ram is None:
            return "no memory limit in this case"
        return None

    def command(self, budget):
        argv = [str(self.binary), "run"]
        argv += ["--total", size_argument(budget.total)] if self._use_total else ["--ram", size_argument(budget.ram)]
        if self._device:
            argv += ["--device", self._device]
        return argv + self._extra

    @contextlib.contextmanager
    def enter(self, _janitor, budget):
        with tempfile.TemporaryDirectory(prefix="whimbrel-bench-") as directory:
            yield _EnteredWhimbrel(self.command(budget), pathlib.Path(directory) / "stats.json", self._use_total)


def whimbrel_works(binary):
    """None, or why the command cannot be used here."""
    if not os.access(binary, os.X_OK):
        return f"{binary} does not exist"
    try:
        done = subprocess.run([binary, "run", "--ram", "64M", "--", "true"], capture_output=True, text=True, timeout=20)
    except subprocess.TimeoutExpired:
        return f"'{binary} run --ram 64M -- true' did not end within 20 s"
    if done.returncode != 0:
        return f"'{binary} run --ram 64M -- true' ended with {done.returncode}: {done.stderr.strip()[:300]}"
    return None
