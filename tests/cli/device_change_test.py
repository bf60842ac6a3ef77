#!/usr/bin/python3
"""whimbrel device: another device for programs that run.

  device_change_test.py --build BUILD
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import time
import unittest

import stepped_run

WHIMBREL = None
MIB = 1 << 20


def start(*options):
    return stepped_run.SteppedRun(WHIMBREL, *options)


class Device(unittest.TestCase):
    def moved(self, run, spec, **others):
        """Changes the device, waits until everything is there, and returns what is said of the program."""
        done = run.device("--to", spec, "--wait", "60", "--json", **others)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        said = json.loads(done.stdout)
        self.assertEqual(said["device"].split(":")[0], spec.split(":")[0])
        self.assertEqual(said["processes"][0]["leaving_bytes"], 0)
        return said["processes"][0]

    def test_everything_moves_from_one_to_the_next(self):
        run = start("--ram", "24M", "--device", "zstd")
        with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="whimbrel-device-") as directory:
            for change, spec in enumerate(("lz4", f"file:{directory}", "chain:lz4@4M,zstd", f"mirror:lz4,file:{directory}", "ram", "zstd"), 1):
                with self.subTest(spec):
                    program = self.moved(run, spec)
                    self.assertEqual(program["change"], change)
                    self.assertGreater(program["away_bytes"], 30 * MIB)
                    self.assertEqual(run.round(), "wrong 0\n")  # in the program, and in a child of it
            self.assertEqual(os.listdir(directory), [])  # what was in files is gone with them
        self.assertEqual(run.end()[0], 0)

    def test_while_the_program_works(self):
        run = start("--ram", "24M")
        answers = []
        worker = threading.Thread(target=lambda: answers.extend(run.round() for _ in range(6)))
        worker.start()
        for spec in ("lz4", "zstd:unit=64K", "lz4", "zstd"):
            self.moved(run, spec, pid=run.program()["pid"])
        worker.join()
        self.assertEqual(answers, ["wrong 0\n"] * 6)
        status, report = run.end()
        self.assertEqual(status, 0)
        self.assertLess(report["peak_resident_bytes"], 30 * MIB)

    def test_processes_that_start_later_have_it_too(self):
        with tempfile.TemporaryDirectory() as directory:
            environment = dict(os.environ, XDG_RUNTIME_DIR=directory)
            inner = "import sys; data = bytearray(b'x' * (48 << 20)); print('inner', flush=True); sys.stdin.readline()"
            outer = f"import subprocess, sys; print('ready', flush=True); sys.stdin.readline(); subprocess.run([sys.executable, '-c', {inner!r}])"
            run = subprocess.Popen([WHIMBREL, "run", "--ram", "16M", "--quiet", "--", "/usr/bin/python3", "-c", outer], env=environment, text=True,
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            self.assertEqual(run.stdout.readline(), "ready\n")
            subprocess.run([WHIMBREL, "device", str(run.pid), "--to", "lz4"], env=environment, check=True, timeout=60, stdout=subprocess.DEVNULL)
            run.stdin.write("\n")
            run.stdin.flush()
            self.assertEqual(run.stdout.readline(), "inner\n")
            said = json.loads(subprocess.run([WHIMBREL, "device", str(run.pid), "--json"], env=environment, check=True, timeout=60,
                                             capture_output=True, text=True).stdout)
            self.assertEqual(said["device"], "lz4")
            away = [p for p in said["processes"] if p["away_bytes"] > 20 * MIB]
            self.assertEqual([p["change"] for p in away], [1], said)
            run.stdin.write("\n")
            run.stdin.close()
            run.stdout.close()
            self.assertEqual(run.wait(timeout=60), 0)

    def test_one_that_is_too_small_is_left_for_another(self):
        run = start("--ram", "24M")
        done = run.device("--to", "ram:capacity=4M", "--wait", "2")
        self.assertEqual(done.returncode, 1, done.stdout + done.stderr)
        self.assertRegex(done.stderr, r"MiB still to move; that goes on")
        self.assertIn("still on the device before", run.device().stdout)
        self.moved(run, "zstd")
        self.assertEqual(run.round(), "wrong 0\n")
        self.assertEqual(run.end()[0], 0)

    def test_mistakes_change_nothing(self):
        run = start("--ram", "24M")
        for spec, text in (("tape", "tape"), ("zstd:level=99", "level"), ("file:/nonexistent/x", "cannot be reached"),
                           ("nbd:nbd://localhost", "no process for such devices")):
            done = run.device("--to", spec)
            self.assertEqual(done.returncode, 2, spec)
            self.assertIn(text, done.stderr)
            self.assertIn("next: ", done.stderr)
        self.assertIn("--device zstd", run.device().stdout)
        done = run.device(pid=1)
        self.assertEqual(done.returncode, 2)
        self.assertIn("process 1 is no run of whimbrel", done.stderr)
        self.assertEqual(run.round(), "wrong 0\n")
        self.assertEqual(run.end()[0], 0)

    def test_what_only_the_program_cannot_have_leaves_it_with_its_own(self):
        run = start("--ram", "24M", "--device", "lz4")
        with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
            path = pathlib.Path(directory, "taken")
            path.write_bytes(b"somebody's")
            done = run.device("--to", f"file:{path},force=off", "--wait", "30")
            self.assertNotEqual(done.returncode, 0, done.stdout)
            self.assertEqual(path.read_bytes(), b"somebody's")
        self.assertEqual(run.round(), "wrong 0\n")
        self.moved(run, "zstd")
        self.assertEqual(run.round(), "wrong 0\n")
        self.assertEqual(run.end()[0], 0)

    def test_the_recording_tells_of_it(self):
        with tempfile.TemporaryDirectory() as directory:
            events = pathlib.Path(directory, "run.events")
            run = start("--ram", "24M", "--events", events)
            self.moved(run, "lz4")
            deadline = time.monotonic() + 30
            while '"event":"device"' not in events.read_text() and time.monotonic() < deadline:
                time.sleep(0.05)
            self.assertEqual(run.end()[0], 0)
            lines = [json.loads(line) for line in events.read_text().splitlines()]
            self.assertEqual([line["device"] for line in lines if line["event"] == "device"], ["lz4"])

    def test_a_key_of_top(self):
        run = start("--ram", "24M")
        top = stepped_run.TopViewer(run)
        top.press("d")
        top.until(f"device for run {run.process.pid}: ")
        top.press("tape\n")
        top.until("tape: ")
        top.press("d")
        top.until("device for run ")
        top.press("lz4\n")
        top.until(f"> run {run.process.pid}: --ram 24.0 MiB --device lz4")
        self.assertEqual(top.leave(), 0)
        self.assertEqual(run.round(), "wrong 0\n")
        self.assertEqual(run.end()[0], 0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", type=pathlib.Path, required=True)
    options, rest = parser.parse_known_args()
    WHIMBREL = str((options.build / "bin" / "whimbrel").resolve())
    unittest.main(argv=[sys.argv[0], *rest])
