"""A memory control group of a given size, for version 1 and version 2 of the kernel's interface."""

import contextlib
import itertools
import os
import pathlib

from .janitor import held_signals

_V1 = pathlib.Path("/sys/fs/cgroup/memory")
_V2 = pathlib.Path("/sys/fs/cgroup")
_numbers = itertools.count()


def unavailable():
    """None, or why no group can be made here."""
    if os.geteuid() != 0:
        return "needs root for a memory control group"
    if (_V1 / "memory.limit_in_bytes").exists() or _v2_has_memory():
        return None
    return "no memory controller under /sys/fs/cgroup"


def _v2_has_memory():
    try:
        return "memory" in (_V2 / "cgroup.controllers").read_text().split()
    except OSError:
        return False


class MemoryGroup:
    """Use as a context manager; leaving it ends the processes inside and removes the group."""

    def __init__(self, janitor, limit):
        self._janitor = janitor
        self._limit = int(limit)
        self._v1 = (_V1 / "memory.limit_in_bytes").exists()
        self.path = (_V1 if self._v1 else _V2) / f"whimbrel-bench-{os.getpid()}-{next(_numbers)}"

    def __enter__(self):
        with contextlib.ExitStack() as undo:
            with held_signals():
                undo.callback(self._janitor.undo, self._janitor.remember("remove_group", str(self.path)))
                if not self._v1:
                    (_V2 / "cgroup.subtree_control").write_text("+memory")
                self.path.mkdir()
            (self.path / ("memory.limit_in_bytes" if self._v1 else "memory.max")).write_text(str(self._limit))
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_):
        self._undo.close()

    def wrap(self, argv):
        """The command that runs argv inside the group. The shell is replaced, so the process id stays."""
        enter = 'echo $$ > "$0" && exec "$@"'
        return ["sh", "-c", enter, str(self.path / "cgroup.procs"), *argv]

    def usage(self):
        """Bytes charged to the group now: anonymous, page cache and kernel memory."""
        name = "memory.usage_in_bytes" if self._v1 else "memory.current"
        return int((self.path / name).read_text())

    def refresh_statistics(self):
        """Makes the kernel fold in its per-CPU counters of the group.

        Some kernels (6.18 with version 1 groups) decide in reclaim by counters that are stale until somebody reads them:
        then they find nothing to age and kill the program although most of it could be swapped out. Traced: reclaim
        returned 0 seventeen times within a millisecond, with every page on the active list; 4 of 4 runs of a sort were
        killed, and 0 of 3 with a reader. A baseline that dies is of no use to anybody, so the sampler reads.
        """
        (self.path / "memory.stat").read_bytes()

    def out_of_memory_kills(self):
        """How many processes the kernel ended because the group's limit left it nothing else."""
        text = (self.path / ("memory.oom_control" if self._v1 else "memory.events")).read_text()
        return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("oom_kill "))
