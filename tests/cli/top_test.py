#!/usr/bin/python3
"""whimbrel top beside a program that runs.

  top_test.py --build BUILD
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

# Fills 48 MiB, says so, and works until its input ends.
PROGRAM = """
import select, sys
data = bytearray(48 << 20)
for i in range(0, len(data), 4096): data[i] = i >> 12 & 255
print("ready", flush=True)
while not select.select([sys.stdin], [], [], 0)[0]:
    sum(data[::4096])
"""


def top(*arguments, **options):
    return subprocess.run([WHIMBREL, "top", *arguments], capture_output=True, text=True, check=False, timeout=60, **options)


class Top(unittest.TestCase):
    def setUp(self):
        self.directory = tempfile.TemporaryDirectory(prefix="whimbrel-top-")
        self.environment = dict(os.environ, XDG_RUNTIME_DIR=self.directory.name)
        self.run = subprocess.Popen([WHIMBREL, "run", "--ram", "16M", "--quiet", "--", "/usr/bin/python3", "-c", PROGRAM],
                                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=self.environment)
        self.assertEqual(self.run.stdout.readline(), "ready\n")

    def tearDown(self):
        self.run.stdin.close()
        self.run.stdout.close()
        self.assertEqual(self.run.wait(timeout=60), 0)
        self.directory.cleanup()

    def process(self):
        """What --json says of the program; the first numbers come with the engine's next publication."""
        deadline = time.monotonic() + 30
        while True:
            out = top("--once", "--json", env=self.environment)
            self.assertEqual(out.returncode, 0, out.stderr)
            runs = [run for run in json.loads(out.stdout)["runs"] if run["pid"] == self.run.pid]
            self.assertEqual(len(runs), 1)
            self.assertEqual(runs[0]["ram_limit_bytes"], 16 << 20)
            found = [process for process in runs[0]["processes"] if process["away_bytes"]]
            if found or time.monotonic() > deadline:
                return found[0]
            time.sleep(0.05)

    def test_once_json_and_metrics(self):
        process = self.process()
        self.assertEqual((process["program"], process["mode"]), ("python3", "managed"))
        self.assertGreater(process["away_bytes"], 16 << 20)
        self.assertGreater(process["pages_out"], 4096)
        table = top("--once", env=self.environment).stdout
        self.assertIn("--ram 16.0 MiB --device zstd", table)
        self.assertRegex(table, rf"(?m)^ *{process['pid']} python3 +managed ")
        self.assertNotIn("\x1b", table)
        path = pathlib.Path(self.directory.name) / "whimbrel.prom"
        self.assertEqual(top("--metrics", str(path), "--once", env=self.environment).returncode, 0)
        self.assertRegex(path.read_text(), rf'whimbrel_faults_total{{run="{self.run.pid}",pid="{process["pid"]}",program="python3"')

    def test_a_terminal_is_left_as_it_was_found(self):
        self.process()
        keys = "import pty, os, sys; status = pty.spawn([sys.argv[1], 'top', '--interval', '0.2']); sys.exit(os.waitstatus_to_exitcode(status))"
        viewer = subprocess.Popen([sys.executable, "-c", keys, WHIMBREL], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                  env=dict(self.environment, TERM="xterm"))
        seen = b""
        while b"python3" not in seen:
            data = os.read(viewer.stdout.fileno(), 65536)
            self.assertTrue(data, seen)
            seen += data
        viewer.stdin.write(b"q")
        viewer.stdin.flush()
        while data := os.read(viewer.stdout.fileno(), 65536):
            seen += data
        viewer.stdin.close()
        viewer.stdout.close()
        self.assertEqual(viewer.wait(timeout=30), 0)
        self.assertIn(b"\x1b[?1049h", seen)
        self.assertTrue(seen.rstrip().endswith(b"\x1b[?1049l"), seen[-80:])


class WithoutRuns(unittest.TestCase):
    def test_says_what_to_do(self):
        out = top("--metrics", "/nonexistent/file", "--once")
        self.assertEqual(out.returncode, 2)
        self.assertIn("next: a file in a directory", out.stderr)
        self.assertIn("next: whimbrel top --help", top("--often").stderr)
        self.assertEqual(top("--interval", "0").returncode, 2)
        self.assertEqual(top("--json", "--metrics", "x").returncode, 2)
        self.assertIn("Prometheus", top("--help").stdout)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", type=pathlib.Path, required=True)
    options, rest = parser.parse_known_args()
    WHIMBREL = str((options.build / "bin" / "whimbrel").resolve())
    unittest.main(argv=[sys.argv[0], *rest])
