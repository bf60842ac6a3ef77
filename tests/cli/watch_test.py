#!/usr/bin/python3
"""whimbrel watch: programs that open sessions, seen from outside.

  watch_test.py --build BUILD
"""

import argparse
import collections
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

WHIMBREL = None
BUILD = None
MIB = 1 << 20

# Two sessions with budgets and devices of their own; a fork; one is closed and another one opened. Waits for a line now and then.
PROGRAM = """
import os, sys
import numpy, whimbrel
def pause(word):
    print(word, flush=True)
    sys.stdin.readline()
first, second = whimbrel.Session(ram="8M", device="lz4"), whimbrel.Session(ram="4M", total="64M", device="zstd")
a, b = first.zeros(24 << 20, "u1"), second.zeros(16 << 20, "u1")
a[::4096], b[::4096] = 1, 2
pause("open")
child = os.fork()
if child == 0: os._exit(a[::4096].sum() + 2 * b[::4096].sum() != 6144 + 16384)
assert os.waitpid(child, 0)[1] == 0
del b
del second  # a session ends with the last of its names and arrays
pause("closed")
third = whimbrel.Session(ram="2M")
first.set_budget(ram="16M")
c = third.zeros(8 << 20, "u1")
c[::4096] = 3
pause("again")
sys.exit(7 if a[::4096].sum() == 6144 and c[::4096].sum() == 6144 else 1)
"""


class Watched:
    def __init__(self, *options, program=PROGRAM):
        self.directory = tempfile.TemporaryDirectory(prefix="whimbrel-watch-")
        self.path = pathlib.Path(self.directory.name)
        self.environment = dict(os.environ, XDG_RUNTIME_DIR=self.directory.name, PYTHONPATH=str(BUILD / "python"))
        self.process = subprocess.Popen([WHIMBREL, "watch", "--stats", "stats.json", *options, "--", "/usr/bin/python3", "-c", program], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=self.environment, cwd=self.path)

    def until(self, word):
        line = self.process.stdout.readline()
        assert line == word + "\n", line + self.process.stderr.read()

    def go(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def ask(self, *arguments):
        return subprocess.run([WHIMBREL, *arguments], capture_output=True, text=True, check=False, timeout=60, env=self.environment)

    def sessions(self):
        """What top tells of them, by number."""
        runs = json.loads(self.ask("top", "--once", "--json").stdout)["runs"]
        [run] = [run for run in runs if run["pid"] == self.process.pid]
        return {process["session"]: process for process in run["processes"]}

    def end(self):
        out, err = self.process.communicate(timeout=60)
        stats = json.loads((self.path / "stats.json").read_text())
        return self.process.returncode, out, err, stats


class Watch(unittest.TestCase):
    def test_sessions_come_and_go(self):
        watched = Watched("--events", "job.events")
        watched.until("open")
        found = watched.sessions()
        self.assertEqual(sorted(found), [1, 2])
        self.assertEqual((found[1]["device"], found[1]["ram_limit_bytes"], found[1]["total_limit_bytes"]), ("lz4", 8 * MIB, 0))
        self.assertEqual((found[2]["device"], found[2]["ram_limit_bytes"], found[2]["total_limit_bytes"]), ("zstd", 4 * MIB, 64 * MIB))
        for number, size in ((1, 24), (2, 16)):
            self.assertEqual(found[number]["mode"], "managed")
            self.assertGreater(found[number]["away_bytes"], (size - 9) * MIB)
            self.assertLessEqual(found[number]["resident_bytes"], found[number]["ram_limit_bytes"])
        self.look_at_the_faces(watched)
        watched.go()
        watched.until("closed")
        self.assertEqual(sorted(watched.sessions()), [1])
        watched.go()
        watched.until("again")
        found = watched.sessions()
        self.assertEqual(sorted(found), [1, 2])  # numbers are used again
        self.assertEqual(found[1]["ram_limit_bytes"], 16 * MIB)
        self.assertEqual(found[2]["ram_limit_bytes"], 2 * MIB)
        watched.go()
        status, _, err, stats = watched.end()
        self.assertEqual(status, 7, err)
        self.assertIn("sessions", err)
        self.assertEqual(stats["exit_status"], 7)
        self.assertEqual(stats["sessions"], 5)  # three, and two in the child
        self.assertGreater(stats["pages_out"], 8000)
        self.look_at_the_events(watched)
        watched.directory.cleanup()

    def look_at_the_faces(self, watched):
        table = watched.ask("top", "--once").stdout
        self.assertIn(f"watch {watched.process.pid}: sessions", table)
        self.assertIn("python3#1", table)
        self.assertIn("python3#2", table)
        metrics = watched.path / "metrics"
        self.assertEqual(watched.ask("top", "--once", "--metrics", str(metrics)).returncode, 0)
        self.assertRegex(metrics.read_text(), r'whimbrel_away_bytes\{run="\d+",pid="\d+",program="python3",device="zstd",session="2"\} \d{7,}')
        for command in (("budget", "--ram", "1M"), ("device", "--to", "zstd")):
            refused = watched.ask(command[0], str(watched.process.pid), *command[1:])
            self.assertEqual(refused.returncode, 2)
            self.assertIn("its sessions have budgets and devices of their own", refused.stderr)
            self.assertIn("next: ", refused.stderr)

    def look_at_the_events(self, watched):
        recording = watched.path / "job.events"
        lines = [json.loads(line) for line in recording.read_text().splitlines()]
        kinds = collections.Counter(line["event"] for line in lines)
        self.assertEqual(kinds["process"], 2)  # it, and its child
        self.assertEqual((kinds["session"], kinds["session_end"]), (5, 5))
        self.assertEqual((kinds["exit"], kinds["end"], kinds["lost"]), (2, 1, 0))
        moved = sum(line["length"] for line in lines if line["event"] == "move" and line["to"] == "device")
        stats = json.loads((watched.path / "stats.json").read_text())
        self.assertEqual(moved, stats["pages_out"] * 4096)
        page = watched.path / "page.html"
        self.assertEqual(watched.ask("report", str(recording), "--output", str(page)).returncode, 0)
        self.assertGreater(page.stat().st_size, 10000)
        self.assertEqual(watched.ask("map", str(recording)).returncode, 0)

    def test_a_program_without_sessions(self):
        watched = Watched(program="print('nothing')")
        status, out, err, stats = watched.end()
        self.assertEqual((status, out, stats["sessions"]), (0, "nothing\n", 0))
        self.assertIn("no session was opened", err)
        self.assertIn("next: ", err)
        watched.directory.cleanup()

    def test_many_sessions_one_after_the_other(self):
        # More than there are rings for events, and none is lost.
        watched = Watched("--events", "job.events", "--quiet", program="""
import numpy, time, whimbrel
for i in range(100):
    with whimbrel.Session(ram="2M", device="lz4") as session:
        a = session.zeros(4 << 20, "u1")
        a[::4096] = i % 256
        assert (a[::4096] == i % 256).all()
        del a
    time.sleep(0.03)
""")
        status, _, err, stats = watched.end()
        self.assertEqual((status, err, stats["sessions"]), (0, "", 100))
        lines = [json.loads(line) for line in (watched.path / "job.events").read_text().splitlines()]
        kinds = collections.Counter(line["event"] for line in lines)
        self.assertEqual((kinds["session"], kinds["lost"], kinds["process"], kinds["exit"]), (100, 0, 1, 1))
        watched.directory.cleanup()

    def test_bad_input(self):
        for arguments, status, words in ((("watch",), 2, "no program given"), (("watch", "--", "/no/such/program"), 127, "next: "),
                                         (("watch", "--ram", "1G", "--", "/bin/true"), 2, "unknown option --ram"),
                                         (("watch", "--events", "/no/such/directory/e", "--", "/bin/true"), 2, "--events")):
            with self.subTest(arguments):
                done = subprocess.run([WHIMBREL, *arguments], capture_output=True, text=True, check=False, timeout=60)
                self.assertEqual(done.returncode, status, done.stderr)
                self.assertIn(words, done.stderr)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", type=pathlib.Path, required=True)
    options, rest = parser.parse_known_args()
    BUILD = options.build.absolute()
    WHIMBREL = str(BUILD / "bin" / "whimbrel")
    if not list((BUILD / "python" / "whimbrel").glob("*.so")):
        print("skipped: the Python package was not built (python3-dev, pybind11-dev)")
        sys.exit(77)
    unittest.main(argv=[sys.argv[0], *rest])
