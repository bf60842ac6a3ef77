#!/usr/bin/python3
"""whimbrel budget, and the keys of whimbrel top, beside programs that run.

  budget_test.py --build BUILD
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import unittest

WHIMBREL = None
MIB = 1 << 20

# Fills MIB MiB, says so, and for each line of input checks and changes every page, and forks a child that does the same.
PROGRAM = """
import os, sys
size = int(sys.argv[1]) << 20
data = bytearray(size)
def stamp(at, round): return (at >> 12) * 31 + round & 255
for at in range(0, size, 4096): data[at] = stamp(at, 0)
print("ready", flush=True)
for round, line in enumerate(sys.stdin):
    wrong = sum(data[at] != stamp(at, round) for at in range(0, size, 4096))
    child = os.fork()
    if child == 0: os._exit(sum(data[at] != stamp(at, round) for at in range(0, size, 4096)) != 0)
    wrong += os.waitpid(child, 0)[1] != 0
    for at in range(0, size, 4096): data[at] = stamp(at, round + 1)
    print("wrong", wrong, flush=True)
"""


class Run:
    """A program under `whimbrel run`, in a directory of its own for statistics."""

    def __init__(self, *options, size=64):
        self.directory = tempfile.TemporaryDirectory(prefix="whimbrel-budget-")
        self.environment = dict(os.environ, XDG_RUNTIME_DIR=self.directory.name)
        self.stats = pathlib.Path(self.directory.name) / "stats.json"
        self.process = subprocess.Popen([WHIMBREL, "run", *options, "--quiet", "--stats", self.stats, "--", "/usr/bin/python3", "-c", PROGRAM,
                                         str(size)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=self.environment)
        assert self.process.stdout.readline() == "ready\n"

    def budget(self, *arguments, pid=None):
        return subprocess.run([WHIMBREL, "budget", str(pid or self.process.pid), *arguments], capture_output=True, text=True, check=False,
                              timeout=90, env=self.environment)

    def round(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.process.stdout.readline()

    def program(self):
        return json.loads(self.budget("--json").stdout)["processes"][0]

    def end(self):
        self.process.stdin.close()
        status = self.process.wait(timeout=60)
        self.process.stdout.close()
        report = json.loads(self.stats.read_text())
        self.directory.cleanup()
        return status, report


class Budget(unittest.TestCase):
    def test_less_and_more_while_it_runs(self):
        run = Run("--ram", "48M")
        self.assertEqual(run.round(), "wrong 0\n")
        before = run.program()
        self.assertGreater(before["resident_bytes"], 32 * MIB)
        out = run.budget("--ram", "16M", "--wait", "60")
        self.assertEqual(out.returncode, 0, out.stderr)
        self.assertIn("--ram 16.0 MiB", out.stdout)
        self.assertLessEqual(run.program()["resident_bytes"], 16 * MIB)
        self.assertEqual(run.round(), "wrong 0\n")
        self.assertLessEqual(run.program()["resident_bytes"], 16 * MIB * 1.05)
        self.assertEqual(run.budget("--ram", "64M", "--json").returncode, 0)
        self.assertEqual(run.round(), "wrong 0\n")
        self.assertGreater(run.program()["resident_bytes"], 40 * MIB)
        status, report = run.end()
        self.assertEqual((status, report["budget_changes"], report["ram_limit_bytes"]), (0, 2, 64 * MIB))

    def test_a_program_that_stayed_below_is_brought_under_the_new_budget(self):
        run = Run("--ram", "1G")
        self.assertEqual(run.program()["within_budget"], True)
        out = run.budget("--ram", "24M", "--wait", "60")
        deadline = time.monotonic() + 60
        while run.program()["resident_bytes"] > 24 * MIB and time.monotonic() < deadline:
            time.sleep(0.05)
        self.assertEqual(out.returncode, 0, out.stderr)
        self.assertLessEqual(run.program()["resident_bytes"], 24 * MIB)
        self.assertEqual(run.round(), "wrong 0\n")
        status, report = run.end()
        self.assertEqual(status, 0)
        self.assertGreater(report["pages_out"], 5000)

    def test_one_kind_for_the_other(self):
        run = Run("--ram", "24M")
        program = run.program()["pid"]
        out = run.budget("--ram", "none", "--total", "48M", "--wait", "60", "--json", pid=program)
        self.assertEqual(out.returncode, 0, out.stderr)
        said = json.loads(out.stdout)
        self.assertEqual((said["pid"], said["ram_limit_bytes"], said["total_limit_bytes"]), (run.process.pid, 0, 48 * MIB))
        self.assertEqual(run.round(), "wrong 0\n")
        self.assertEqual(run.end()[0], 0)

    def test_mistakes_change_nothing(self):
        run = Run("--ram", "24M")
        for arguments, text in ((("--ram", "10X"), "not a size"), (("--ram", "1K"), "too small"), (("--ram", "none"), "no budget at all"),
                                (("--total", "4M"), "is below --ram"), (("--ram", "32M", "--wait", "-1"), "--wait")):
            out = run.budget(*arguments)
            self.assertEqual(out.returncode, 2, arguments)
            self.assertIn(text, out.stderr)
            self.assertIn("next: ", out.stderr)
        self.assertIn("--ram 24.0 MiB --total none", run.budget().stdout)
        out = run.budget(pid=1)
        self.assertEqual(out.returncode, 2)
        self.assertIn("process 1 is no run of whimbrel", out.stderr)
        status, report = run.end()
        self.assertEqual((status, report["budget_changes"]), (0, 0))

    def test_keys_of_top(self):
        run = Run("--ram", "40M")
        script = "import pty, os, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn([sys.argv[1], 'top', '--interval', '0.2'])))"
        viewer = subprocess.Popen([sys.executable, "-c", script, WHIMBREL], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                  env=dict(run.environment, TERM="xterm"))
        seen = b""

        def until(text):
            nonlocal seen
            while text not in seen:
                data = os.read(viewer.stdout.fileno(), 65536)
                self.assertTrue(data, seen)
                seen += data

        def press(key):
            nonlocal seen
            seen = b""
            viewer.stdin.write(key)
            viewer.stdin.flush()

        # Other runs may be under way on this machine: Tab until ours is picked.
        for _ in range(100):
            until(b"> run ")
            until(b" --device")
            if f"> run {run.process.pid}:".encode() in seen:
                break
            press(b"\t")
        press(b"-")
        until(f"> run {run.process.pid}: --ram 36.0 MiB".encode())
        press(b"+")
        until(f"> run {run.process.pid}: --ram 39.6 MiB".encode())
        press(b"q")
        while os.read(viewer.stdout.fileno(), 65536):
            pass
        viewer.stdin.close()
        viewer.stdout.close()
        self.assertEqual(viewer.wait(timeout=30), 0)
        self.assertEqual(run.round(), "wrong 0\n")
        self.assertEqual(run.end()[0], 0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", type=pathlib.Path, required=True)
    options, rest = parser.parse_known_args()
    WHIMBREL = str((options.build / "bin" / "whimbrel").resolve())
    unittest.main(argv=[sys.argv[0], *rest])
