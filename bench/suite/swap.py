"""Swap areas of the suite's own: on a fresh zram device, or on a file. Nothing that exists already is touched."""

import contextlib
import os
import pathlib
import shutil
import subprocess

from .janitor import held_signals

_CONTROL = pathlib.Path("/sys/class/zram-control")
_PRIORITY = "32767"  # above anything the machine may have: the area under test is the one that is used


def _run(*argv):
    done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(argv)}: {done.stderr.strip() or done.returncode}")


def other_swaps():
    """Swap areas of the machine itself. They stay as they are; the report names them."""
    return [line.split()[0] for line in pathlib.Path("/proc/swaps").read_text().splitlines()[1:]]


class ZramSwap:
    """Swap on a zram device of its own. Context manager."""

    def __init__(self, janitor, algorithm, capacity):
        self._janitor = janitor
        self._algorithm = algorithm
        self._capacity = int(capacity)
        self._number = None

    @staticmethod
    def unavailable(algorithm):
        if os.geteuid() != 0:
            return "needs root for swap on zram"
        if not _CONTROL.is_dir():
            subprocess.run(["modprobe", "zram"], capture_output=True)
        if not _CONTROL.is_dir():
            return "this kernel has no zram"
        for tool in ("mkswap", "swapon", "swapoff"):
            if shutil.which(tool) is None:
                return f"{tool} is not installed"
        offered = _offered_algorithms()
        if offered is not None and algorithm not in offered:
            return f"zram offers {', '.join(sorted(offered))}, not {algorithm}"
        return None

    def __enter__(self):
        with contextlib.ExitStack() as undo:
            with held_signals():
                self._number = int((_CONTROL / "hot_add").read_text())
                undo.callback(self._janitor.undo, self._janitor.remember("remove_zram", self._number))
            self._sys("comp_algorithm").write_text(self._algorithm)
            self._sys("disksize").write_text(str(self._capacity))
            self.device = f"/dev/zram{self._number}"
            _run("mkswap", self.device)
            with held_signals():
                undo.callback(self._janitor.undo, self._janitor.remember("swap_off", self.device))
                _run("swapon", "-p", _PRIORITY, self.device)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_):
        self._undo.close()

    def _sys(self, name):
        return pathlib.Path(f"/sys/block/zram{self._number}/{name}")

    def memory_used(self):
        """Bytes of RAM the device holds now, with its allocator's overhead."""
        return int(self._sys("mm_stat").read_text().split()[2])


def _offered_algorithms():
    """What existing devices offer; None when there is none to ask."""
    for path in pathlib.Path("/sys/block").glob("zram*/comp_algorithm"):
        return set(path.read_text().replace("[", "").replace("]", "").split())
    return None


class FileSwap:
    """Swap on a file in `directory`, removed afterwards. Context manager."""

    def __init__(self, janitor, directory, capacity):
        self._janitor = janitor
        self._capacity = int(capacity) // 4096 * 4096
        self.path = pathlib.Path(directory) / f"whimbrel-bench-{os.getpid()}.swap"

    @staticmethod
    def unavailable(directory, capacity):
        if os.geteuid() != 0:
            return "needs root for swap on a file"
        if shutil.which("fallocate") is None:
            return "fallocate is not installed"
        kind = subprocess.run(["stat", "-f", "-c", "%T", str(directory)], capture_output=True, text=True).stdout.strip()
        if kind in ("tmpfs", "overlayfs", "ramfs"):
            return f"{directory} is on {kind}, which cannot hold swap; try: --swap-dir on a disk"
        free = shutil.disk_usage(directory).free
        if free < capacity + (1 << 30):
            return f"{directory} has only {free >> 20} MiB free"
        return None

    def __enter__(self):
        with contextlib.ExitStack() as undo:
            undo.callback(self._janitor.undo, self._janitor.remember("unlink", str(self.path)))
            self.path.touch(mode=0o600)
            _run("fallocate", "-l", str(self._capacity), str(self.path))
            _run("mkswap", str(self.path))
            with held_signals():
                undo.callback(self._janitor.undo, self._janitor.remember("swap_off", str(self.path)))
                _run("swapon", "-p", _PRIORITY, str(self.path))
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_):
        self._undo.close()

    @staticmethod
    def memory_used():
        return 0  # the contents are on the disk
