"""Puts the machine back as it was, whatever happens to the suite.

The suite changes things that outlive it: control groups, zram devices, swap areas, large files. Every change is
announced to a janitor, a separate process in a session of its own, before or while it is made. The janitor undoes a
change when asked, and all that are left when its pipe closes, that is also when the suite was interrupted, crashed or
was killed. A copy of the list lies in /run/whimbrel-bench, so that `run_suite --cleanup` works even after the janitor
itself was killed.

There is one implementation of undoing, in the janitor, and every normal run uses it.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

JOURNALS = pathlib.Path("/run/whimbrel-bench")


class CleanupError(Exception):
    """Something could not be put back; the text says what and how to do it by hand."""


class Janitor:
    """The suite's side of the pipe. Not thread-safe. Close it, or just exit."""

    def __init__(self):
        self._process = subprocess.Popen(
            [sys.executable, str(pathlib.Path(__file__).resolve()), str(os.getpid())],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, text=True)
        self._next = 0
        self._ask({"undo": 0})  # it answers when it is ready: later questions are not to wait for its start

    def _ask(self, message):
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline() or '{"error": "the janitor died"}')
        if "error" in answer:
            raise CleanupError(answer["error"])

    def remember(self, action, *arguments):
        """Announces a change; returns a number for undo()."""
        self._next += 1
        self._ask({"remember": self._next, "action": action, "arguments": list(arguments)})
        return self._next

    def undo(self, number):
        """Undoes it now. Raises CleanupError; undoing twice is harmless."""
        self._ask({"undo": number})

    def close(self):
        """Undoes everything that is left, the newest first."""
        if self._process.stdin.closed:
            return
        self._process.stdin.close()
        with self._process.stdout as output:
            rest = output.read()
        self._process.wait()
        if self._process.returncode != 0:
            raise CleanupError(rest.strip() or "the janitor failed")


class held_signals:
    """Interrupts wait while a change is being made and announced."""

    _SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}

    def __enter__(self):
        self._before = signal.pthread_sigmask(signal.SIG_BLOCK, self._SIGNALS)

    def __exit__(self, *_):
        signal.pthread_sigmask(signal.SIG_SETMASK, self._before)


# --- what follows runs in the janitor's process ------------------------------------------------------------------


def _retry(seconds, attempt):
    """Calls attempt() until it returns true; raises its last OSError, or TimeoutError."""
    end = time.monotonic() + seconds
    while True:
        try:
            if attempt():
                return
            error = TimeoutError(f"still in use after {seconds} s")
        except OSError as caught:
            error = caught
        if time.monotonic() >= end:
            raise error
        time.sleep(0.02)


def _kill_group(path):
    """Ends every process in a control group."""
    def empty():
        members = pathlib.Path(path, "cgroup.procs").read_text().split()
        for member in members:
            try:
                os.kill(int(member), signal.SIGKILL)
            except ProcessLookupError:
                pass
        return not members
    if os.path.isdir(path):
        _retry(30, empty)


def _remove_group(path):
    _kill_group(path)

    def gone():
        if os.path.isdir(path):
            os.rmdir(path)
        return True
    _retry(10, gone)


def _active_swaps():
    return [line.split()[0] for line in pathlib.Path("/proc/swaps").read_text().splitlines()[1:]]


def _swap_off(device):
    if device in _active_swaps():
        subprocess.run(["swapoff", device], check=True, capture_output=True, text=True)


def _remove_zram(number):
    if os.path.isdir(f"/sys/block/zram{number}"):
        def removed():
            pathlib.Path("/sys/class/zram-control/hot_remove").write_text(str(number))
            return True
        _retry(10, removed)


def _unlink(path):
    pathlib.Path(path).unlink(missing_ok=True)


def _write(path, value):
    pathlib.Path(path).write_text(value)


def _kill_process(pid, start_time):
    """Ends the process group of a process that is still the one it was (same start time)."""
    if start_time_of(pid) == start_time:
        os.killpg(pid, signal.SIGKILL)


def start_time_of(pid):
    """Field 22 of /proc/PID/stat, which tells two processes of the same number apart; None when there is none."""
    try:
        return int(pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, IndexError):
        return None


_ACTIONS = {"remove_group": _remove_group, "swap_off": _swap_off, "remove_zram": _remove_zram, "unlink": _unlink,
            "write": _write, "kill_process": _kill_process}


def _undo(entry):
    """Returns None or a sentence saying what is left and how to remove it."""
    try:
        _ACTIONS[entry["action"]](*entry["arguments"])
        return None
    except subprocess.CalledProcessError as error:
        detail = error.stderr.strip()
    except OSError as error:
        detail = str(error)
    return f"cannot undo {entry['action']} {entry['arguments']}: {detail}\n  try: bench/run_suite --cleanup"


def undo_all(entries):
    """Undoes in reverse order. Returns the entries that are left, with the reasons."""
    left = []
    for entry in reversed(entries):
        reason = _undo(entry)
        if reason:
            left.insert(0, (entry, reason))
    return left


def clean_stale():
    """Undoes what dead suites and dead janitors left. Returns (undone, reasons for what is left)."""
    undone, reasons = 0, []
    if os.geteuid() != 0:
        return undone, reasons
    for journal in sorted(JOURNALS.glob("*.json")) if JOURNALS.is_dir() else []:
        state = json.loads(journal.read_text())
        if start_time_of(state["janitor"]) == state["janitor_start"]:
            continue  # still at work
        left = undo_all(state["entries"])
        undone += len(state["entries"]) - len(left)
        reasons += [reason for _, reason in left]
        if not left:
            journal.unlink()
    return undone, reasons


class _Journal:
    def __init__(self, owner):
        self.entries = {}
        self._path = None
        if os.geteuid() == 0:  # for others there is nothing to undo but their own processes and files
            JOURNALS.mkdir(exist_ok=True)
            self._path = JOURNALS / f"{owner}.json"

    def save(self):
        if self._path is None:
            return
        if not self.entries:
            self._path.unlink(missing_ok=True)
            return
        temporary = self._path.with_suffix(".new")
        temporary.write_text(json.dumps({"janitor": os.getpid(), "janitor_start": start_time_of(os.getpid()),
                                         "entries": list(self.entries.values())}))
        temporary.rename(self._path)


def _serve(owner):
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(each, signal.SIG_IGN)
    journal = _Journal(owner)
    for line in sys.stdin:
        message = json.loads(line)
        reason = None
        if "remember" in message:
            journal.entries[message["remember"]] = {"action": message["action"], "arguments": message["arguments"]}
        elif message["undo"] in journal.entries:
            reason = _undo(journal.entries[message["undo"]])
            if reason is None:
                del journal.entries[message["undo"]]
        journal.save()
        print(json.dumps({"error": reason} if reason else {}), flush=True)
    left = undo_all(list(journal.entries.values()))
    journal.entries = {number: entry for number, (entry, _) in enumerate(left)}
    journal.save()
    try:
        print("\n".join(reason for _, reason in left), flush=True)
    except OSError:
        pass  # nobody is left to read it
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(_serve(sys.argv[1]))
