#!/usr/bin/python3
"""whimbrel run --events: the stream agrees with the counters, with the program, and with itself.

  events_test.py --build BUILD
"""

import argparse
import collections
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import unittest

WHIMBREL = None
PAGE = 4096

# Fills 40 MiB and walks it twice; a child that is forked in between walks it as well; then half of it is given back.
PROGRAM = """
import mmap, os
def walk(data): return sum(data[i] for i in range(0, len(data), 4096))
data = mmap.mmap(-1, 40 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for i in range(0, len(data), 4096): data[i] = (i >> 12) % 251 + 1
expected = walk(data)
child = os.fork()
if child == 0:
    os._exit(0 if walk(data) == expected else 1)
assert os.waitpid(child, 0)[1] == 0
assert walk(data) == expected
data.madvise(mmap.MADV_DONTNEED, 0, 20 << 20)
import ctypes
print(hex(ctypes.addressof(ctypes.c_char.from_buffer(data))), os.getpid(), child)
"""


def record(*command, ram="16M"):
    """Runs it; returns the finished process, the lines of the stream and the summary."""
    with tempfile.TemporaryDirectory(prefix="whimbrel-events-") as directory:
        events, stats = pathlib.Path(directory) / "events", pathlib.Path(directory) / "stats"
        done = subprocess.run([WHIMBREL, "run", "--ram", ram, "--quiet", "--stats", stats, "--events", events, "--", *command],
                              capture_output=True, text=True, check=False, timeout=120)
        return done, [json.loads(line) for line in events.read_text().splitlines()], json.loads(stats.read_text())


class Events(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.done, cls.lines, cls.summary = record("/usr/bin/python3", "-c", PROGRAM)
        assert cls.done.returncode == 0, cls.done.stderr
        address, cls.pid, cls.child = cls.done.stdout.split()
        cls.address, cls.pid, cls.child = int(address, 16), int(cls.pid), int(cls.child)
        cls.moves = [line for line in cls.lines if line["event"] == "move"]

    def of(self, event):
        return [line for line in self.lines if line["event"] == event]

    def test_the_first_and_the_last_line(self):
        first, last = self.lines[0], self.lines[-1]
        self.assertEqual((first["event"], first["ram_limit_bytes"], first["device"]), ("run", 16 << 20, "zstd"))
        self.assertEqual(first["command"][:2], ["/usr/bin/python3", "-c"])
        self.assertEqual((last["event"], last["exit_status"]), ("end", 0))
        self.assertEqual(last["events"], len(self.moves) + len(self.of("drop")) + len(self.of("remap")))
        self.assertEqual(last["lost"], sum(line["count"] for line in self.of("lost")))
        self.assertLessEqual(first["time_ns"], last["time_ns"])

    def test_the_counters_agree(self):
        if self.lines[-1]["lost"]:
            self.skipTest("the machine is too busy: records were lost, and the stream says so")
        pages = collections.Counter()
        for move in self.moves:
            pages[move["from"], move["to"]] += move["length"] // PAGE
        self.assertEqual(pages["ram", "device"], self.summary["pages_out"])
        self.assertEqual(pages["device", "ram"], self.summary["pages_home"])
        self.assertGreater(pages["ram", "device"], 4096)

    def test_each_process_has_its_own(self):
        processes = {line["pid"]: line for line in self.of("process")}
        self.assertEqual(set(processes), {self.pid, self.child})
        self.assertEqual(processes[self.child]["parent"], self.pid)
        self.assertEqual(processes[self.pid]["program"], "python3")
        walked = {pid: {page for m in self.moves if m["pid"] == pid and m["cause"] in ("fault", "prefetch") and m["from"] == "device"
                        for page in range(m["address"], m["address"] + m["length"], PAGE)} for pid in (self.pid, self.child)}
        array = set(range(self.address, self.address + (40 << 20), PAGE))
        for pid in (self.pid, self.child):
            self.assertGreater(len(walked[pid] & array), 4096, "most of the array was away and came home")

    def test_causes_fit_their_ways(self):
        ways = collections.defaultdict(set)
        for move in self.moves:
            self.assertEqual((move["address"] % PAGE, move["length"] % PAGE), (0, 0))
            self.assertGreater(move["length"], 0)
            ways[move["cause"]].add((move["from"], move["to"]))
            if move["cause"] == "fault" and move["from"] == "device":
                self.assertEqual(move["length"], PAGE, "a fault is one page; what comes with it is prefetch")
                self.assertGreater(move["latency_ns"], 0)
        self.assertEqual(ways["fault"], {("device", "ram"), ("none", "ram")})
        self.assertEqual(ways["prefetch"], {("device", "ram")})
        self.assertLessEqual(ways["eviction"] | ways["pressure"], {("ram", "device")})
        self.assertTrue(ways["eviction"] or ways["pressure"])
        self.assertLessEqual(set(ways), {"user", "fault", "prefetch", "eviction", "pressure", "evacuation"})

    def test_no_page_comes_home_that_had_not_left(self):
        if self.lines[-1]["lost"]:
            self.skipTest("the machine is too busy: records were lost, and the stream says so")
        # Two threads write; what one did a moment after the other may have the earlier time. Rare, and never more than that.
        away, out_of_order = set(), 0
        for line in sorted((line for line in self.lines if line.get("pid") == self.pid), key=lambda line: line["time_ns"]):
            if line["event"] not in ("move", "drop"):
                continue
            pages = range(line["address"], line["address"] + line["length"], PAGE)
            if line["event"] == "drop":
                away.difference_update(pages)
            elif line["to"] == "device":
                out_of_order += not away.isdisjoint(pages)
                away.update(pages)
            elif line["from"] == "device":
                out_of_order += not away.issuperset(pages)
                away.difference_update(pages)
        self.assertLess(out_of_order, len(self.moves) / 200)

    def test_a_discard_is_told(self):
        drops = [line for line in self.of("drop") if line["pid"] == self.pid]
        self.assertTrue(any(d["address"] <= self.address and self.address + (20 << 20) <= d["address"] + d["length"] for d in drops), drops)

    def test_samples_and_mappings(self):
        samples = [line for line in self.of("sample") if line["pid"] == self.pid]
        self.assertTrue(samples)
        self.assertTrue(all(s["limit_bytes"] == 16 << 20 for s in samples))
        self.assertGreater(max(s["away_bytes"] for s in samples), 20 << 20)
        self.assertGreater(samples[-1]["wait_ns"], 0)
        mappings = [m for line in self.of("mappings") if line["pid"] == self.pid for m in line["mappings"]]
        self.assertTrue(any(start <= self.address < start + length for start, length, _ in mappings))
        self.assertTrue(any(name == "[heap]" for _, _, name in mappings))


class BudgetChanges(unittest.TestCase):
    def test_another_budget_is_told_of(self):
        with tempfile.TemporaryDirectory(prefix="whimbrel-events-") as directory:
            events = pathlib.Path(directory) / "events"
            work = "import sys\ndata = bytearray(b'x' * (24 << 20))\nprint('ready', flush=True)\nsys.stdin.read()"
            run = subprocess.Popen([WHIMBREL, "run", "--ram", "16M", "--quiet", "--events", events, "--", "/usr/bin/python3", "-c", work],
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            self.assertEqual(run.stdout.readline(), "ready\n")
            subprocess.run([WHIMBREL, "budget", str(run.pid), "--ram", "12M", "--total", "1G"], check=True, timeout=60, stdout=subprocess.DEVNULL)
            # The stream looks every few milliseconds; a page of it tells that it has seen the first change.
            while '"event":"budget"' not in events.read_text():
                self.assertIsNone(run.poll())
                time.sleep(0.05)
            subprocess.run([WHIMBREL, "budget", str(run.pid), "--ram", "32M", "--total", "none"], check=True, timeout=60, stdout=subprocess.DEVNULL)
            run.stdin.close()
            run.stdout.close()
            self.assertEqual(run.wait(timeout=60), 0)
            lines = [json.loads(line) for line in events.read_text().splitlines()]
            changes = [(line["ram_limit_bytes"], line["total_limit_bytes"]) for line in lines if line["event"] == "budget"]
            self.assertEqual(changes, [(12 << 20, 1 << 30), (32 << 20, 0)])
            subprocess.run([WHIMBREL, "replay", events], check=True, timeout=60, stdout=subprocess.DEVNULL)
            subprocess.run([WHIMBREL, "report", events, "-o", directory + "/report.html"], check=True, timeout=60, stdout=subprocess.DEVNULL)
            self.assertIn('"budget_changes":[{"t":', pathlib.Path(directory, "report.html").read_text())


class Trouble(unittest.TestCase):
    def test_a_program_that_becomes_another_one(self):
        script = "import os, sys; data = bytearray(b'x' * (24 << 20)); os.execv(sys.executable, [sys.executable, '-c', 'd = bytearray(b\"y\" * (24 << 20))'])"
        done, lines, _ = record("/usr/bin/python3", "-c", script, ram="8M")
        self.assertEqual(done.returncode, 0, done.stderr)
        processes = [line for line in lines if line["event"] == "process"]
        self.assertEqual(len(processes), 2)
        self.assertEqual(processes[0]["pid"], processes[1]["pid"])

    def test_lost_records_are_told_of(self):
        # A reader that takes nothing for a while: the writer of the stream waits for it, and a ring runs full.
        with tempfile.TemporaryDirectory(prefix="whimbrel-events-") as directory:
            pipe = pathlib.Path(directory) / "pipe"
            os.mkfifo(pipe)
            work = "d = bytearray(24 << 20)\nfor r in range(%d):\n for i in range(0, len(d), 4096): d[i * 2654435761 %% len(d)] = 1" % 20
            run = subprocess.Popen([WHIMBREL, "run", "--ram", "8M", "--quiet", "--device", "ram", "--events", pipe, "--",
                                    "/usr/bin/python3", "-c", work + "\nopen(%r, 'w')" % (directory + "/through")])
            with open(pipe, encoding="utf-8") as stream:
                first = stream.readline()
                while not os.path.exists(directory + "/through"):
                    if run.poll() is not None:
                        break
                lines = [json.loads(line) for line in [first, *stream]]
            self.assertEqual(run.wait(timeout=60), 0, "the program does not wait for the reader")
        last = lines[-1]
        lost = sum(line["count"] for line in lines if line["event"] == "lost")
        self.assertEqual(last["lost"], lost)
        self.assertGreater(lost, 0)
        self.assertEqual(last["events"], sum(line["event"] in ("move", "drop", "remap") for line in lines))

    def test_a_full_disk_is_told_of_and_the_program_goes_on(self):
        work = "d = bytearray(b'x' * (24 << 20)); print(d[::4096] == b'x' * 6144)"
        done = subprocess.run([WHIMBREL, "run", "--ram", "8M", "--quiet", "--events", "/dev/full", "--", "/usr/bin/python3", "-c", work],
                              capture_output=True, text=True, check=False, timeout=60)
        self.assertEqual((done.returncode, done.stdout), (0, "True\n"))
        self.assertIn("the event stream is incomplete: No space left on device", done.stderr)

    def test_a_place_that_cannot_be_written(self):
        done = subprocess.run([WHIMBREL, "run", "--ram", "8M", "--events", "/nowhere/events", "--", "/bin/true"],
                              capture_output=True, text=True, check=False, timeout=60)
        self.assertEqual(done.returncode, 2)
        self.assertIn("--events /nowhere/events: No such file or directory", done.stderr)
        self.assertIn("next: ", done.stderr)


class Replay(unittest.TestCase):
    """What is foretold from a run with little memory comes true with more."""

    # Loops over a quarter of 48 MiB, then over all of it, three times.
    WORK = """
data = bytearray(48 << 20)
for i in range(0, len(data), 4096): data[i] = (i >> 12) % 251 + 1
for r in range(3):
    for part in (len(data) // 4, len(data) // 4, len(data) // 4, len(data)):
        for i in range(0, part, 4096): data[i] += 1 if data[i] < 250 else -200
"""

    def replay(self, *arguments, status=0):
        done = subprocess.run([WHIMBREL, "replay", *map(str, arguments)], capture_output=True, text=True, check=False, timeout=120)
        self.assertEqual(done.returncode, status, done.stdout + done.stderr)
        return done.stdout if status == 0 else done.stderr

    def test_a_larger_budget_is_foretold(self):
        with tempfile.TemporaryDirectory(prefix="whimbrel-replay-") as directory:
            def run(ram):
                events, stats = f"{directory}/{ram}.events", f"{directory}/{ram}.stats"
                subprocess.run([WHIMBREL, "run", "--ram", ram, "--quiet", "--events", events, "--stats", stats, "--", "/usr/bin/python3", "-c", self.WORK],
                               check=True, timeout=120)
                return events, json.loads(pathlib.Path(stats).read_text())
            events, small = run("16M")
            _, large = run("32M")
            out = json.loads(self.replay(events, "--ram", "16M,32M,96M", "--json"))
            self.assertEqual(out["recorded"]["ram_bytes"], 16 << 20)
            self.assertTrue(out["recorded"]["complete"])
            if out["recorded"]["lost"]:
                self.skipTest("the machine is too busy: records were lost, and the stream says so")
            self.assertEqual(out["recorded"]["faults"], small["faults"])
            same, more, all_of_it = out["outcomes"]
            self.assertAlmostEqual(same["pages_home"], small["pages_home"], delta=small["pages_home"] * 0.25)
            self.assertAlmostEqual(more["pages_home"], large["pages_home"], delta=small["pages_home"] * 0.25)
            self.assertLessEqual(more["pages_home"], same["pages_home"] * 1.05)
            self.assertEqual((all_of_it["faults"], all_of_it["lower_bound"]), (0, False))
            table = self.replay(events, "--policy", "second-chance,clairvoyant")
            self.assertIn("with 16.0 MiB on zstd", table)
            self.assertRegex(table, r"(?m)^ +8\.0 MiB  clairvoyant +>\d")
            self.assertRegex(table, r"(?m)^ +16\.0 MiB  second-chance +\d")
            for arguments, words in (((events, "--policy", "best"), "no such policy"), ((events, "--ram", "many"), "not a size"),
                                     ((f"{directory}/16M.stats",), "line 1: not a line of an event file"),
                                     ((directory + "/none",), "No such file")):
                said = self.replay(*arguments, status=2)
                self.assertIn(words, said)
                self.assertIn("next: ", said)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", type=pathlib.Path, required=True)
    options, rest = parser.parse_known_args()
    WHIMBREL = options.build / "bin" / "whimbrel"
    unittest.main(argv=[sys.argv[0], *rest])
