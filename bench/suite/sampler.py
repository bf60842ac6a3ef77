"""Watches a program's memory from outside, every few milliseconds, while it runs."""

import os
import signal
import threading
import time

_FIELDS = {"VmRSS:": "resident", "RssAnon:": "anonymous", "RssShmem:": "anonymous", "VmSwap:": "swapped"}


def process_tree(root):
    """The process and all its living descendants."""
    tree, front = [], [root]
    while front:
        pid = front.pop()
        tree.append(pid)
        try:
            for task in os.listdir(f"/proc/{pid}/task"):
                with open(f"/proc/{pid}/task/{task}/children") as children:
                    front += [int(child) for child in children.read().split()]
        except OSError:
            pass  # it just ended
    return tree


def memory_of(pids):
    """Sums over processes, in bytes: resident, anonymous (with shared anonymous memory) and swapped."""
    total = {"resident": 0, "anonymous": 0, "swapped": 0}
    for pid in pids:
        try:
            with open(f"/proc/{pid}/status") as status:
                for line in status:
                    name, _, rest = line.partition("\t")
                    if name in _FIELDS:
                        total[_FIELDS[name]] += int(rest.split()[0]) * 1024
        except OSError:
            pass
    return total


class Sampler:
    """Samples from construction of the thread until stop(). `probe` returns extra numbers to keep with each sample.

    A sample is a dict with t (monotonic nanoseconds), resident, anonymous, swapped and what the probe adds. `device` in
    it is RAM that holds evicted pages outside the program, so anonymous + device is the RAM in all.
    """

    def __init__(self, pid, interval, probe):
        self.samples = []
        self._pid = pid
        self._interval = interval
        self._probe = probe
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self):
        self._stop.set()
        self._thread.join()
        return self.samples

    def _run(self):
        # Interrupts are for the main thread, which may be holding them back.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
        while not self._stop.is_set():
            sample = {"t": time.monotonic_ns(), **memory_of(process_tree(self._pid))}
            try:
                sample.update(self._probe())
            except OSError:
                pass  # the group or the device is being taken away
            self.samples.append(sample)
            self._stop.wait(self._interval)


def peaks(samples, start_ns=None, end_ns=None):
    """The largest values between two moments; an empty dict when nothing was sampled there."""
    chosen = [s for s in samples if (start_ns is None or s["t"] >= start_ns) and (end_ns is None or s["t"] <= end_ns)]
    if not chosen:
        return {}
    return {"resident": max(s["resident"] for s in chosen),
            "anonymous": max(s["anonymous"] for s in chosen),
            "device": max(s.get("device", 0) for s in chosen),
            "total": max(s["anonymous"] + s.get("device", 0) for s in chosen)}
