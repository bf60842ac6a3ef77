#!/usr/bin/env python3
"""Engine threads that are killed or held still: within the stated time the program gets its pages, or a signal and a message.

Run as: watchdog_test.py --build build/release [SUITE]
"""

import argparse
import pathlib
import re
import signal
import subprocess
import sys
import time
import unittest

BUILD = None
# Fills 96 MiB, says so, then reads all of it again at each line of input and prints a sum.
PROGRAM = """
import sys
words = bytearray()
size = 96 << 20
block = bytes(range(256)) * 4096
while len(words) < size: words += block
assert len(words) == size
print("filled", flush=True)
for line in sys.stdin:
    print(sum(words[1::4096]), flush=True)
"""
EXPECTED = str(96 << 8)  # one from each page


class Run:
    """The program under `whimbrel run`, with most of it away."""

    def __init__(self, *options):
        self.process = subprocess.Popen(
            [BUILD / "bin/whimbrel", "run", "--ram", "24M", "--device", "lz4", *options, "--", sys.executable, "-c", PROGRAM],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout.readline() == "filled\n"
        self.pid = int(subprocess.run(["pgrep", "-P", str(self.process.pid)], capture_output=True, text=True).stdout.split()[0])
        self.seizers = []

    def ask(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def seize(self, thread, how):
        seizer = subprocess.Popen([BUILD / "tests/seize-thread", str(self.pid), thread, how], stdout=subprocess.PIPE, text=True)
        self.seizers.append(seizer)
        if seizer.stdout.readline() != "ready\n":
            if seizer.wait() == 77:
                raise unittest.SkipTest("the kernel gives nobody a thread's userfaultfd (needs 6.9)")
            raise AssertionError("the thread could not be seized")
        self.seized_at = time.monotonic()
        return seizer

    def tell_time(self, what):
        print(f"{what}: {time.monotonic() - self.seized_at:.1f} s after the thread was gone or held", flush=True)

    def finish(self, limit=60):
        out, err = self.process.communicate(timeout=limit)
        return self.process.returncode, out, err

    def close(self):
        for seizer in self.seizers:
            seizer.kill()
            seizer.wait()
            seizer.stdout.close()
        if self.process.poll() is None:
            subprocess.run(["kill", "-KILL", str(self.pid)], check=False)
            self.process.kill()
        self.process.communicate()


class Watchdog(unittest.TestCase):
    def start(self, *options):
        run = Run(*options)
        self.addCleanup(run.close)
        return run

    def test_a_fault_thread_that_ends_ends_the_program_with_a_message(self):
        run = self.start()
        run.seize("whimbrel-fault", "end")
        run.ask()
        status, out, err = run.finish()
        run.tell_time("fault thread ended, program ended with a message")
        self.assertEqual(status, -signal.SIGABRT, err)
        self.assertNotIn(EXPECTED, out.split())  # never zeros instead of the contents
        self.assertRegex(err, r"process %d: whimbrel's fault thread has ended: .*\n  next: " % run.pid)

    def test_a_fault_thread_that_is_held_still_ends_the_program_with_a_message(self):
        run = self.start("--watchdog", "3")
        run.seize("whimbrel-fault", "hold")
        run.ask()
        status, out, err = run.finish()
        run.tell_time("fault thread held with --watchdog 3, program ended with a message")
        self.assertEqual(status, -signal.SIGABRT, err)
        self.assertRegex(err, r"fault thread has been stopped by itself")

    def test_a_fault_thread_that_sleeps_for_ever_ends_the_program_with_a_message(self):
        run = self.start("--watchdog", "3")
        run.seize("whimbrel-fault", "sleep")
        run.ask()
        status, out, err = run.finish()
        run.tell_time("fault thread asleep for ever with --watchdog 3, program ended with a message")
        self.assertEqual(status, -signal.SIGABRT, err)
        self.assertNotIn(EXPECTED, out.split())
        self.assertRegex(err, r"fault thread takes up nothing: .*\n  next: ")

    def test_a_touch_that_nobody_hears_of_is_made_again(self):
        run = self.start("--watchdog", "8")
        robber = run.seize("whimbrel-fault", "rob")
        run.ask()
        said = robber.stdout.readline()
        self.assertEqual((robber.wait(), said), (0, "robbed\n"))
        self.assertEqual(run.process.stdout.readline(), EXPECTED + "\n")
        run.tell_time("touch lost with --watchdog 8, all of it read")
        time.sleep(3)  # it is noticed within a second or two that the program goes on
        status, _, err = run.finish()
        self.assertEqual(status, 0, err)
        self.assertRegex(err, r"process %d: thread \d+ waited [2-6] s for memory that nobody was bringing; .*\n  next: " % run.pid)

    def test_a_short_hold_does_no_harm(self):
        run = self.start("--watchdog", "60")
        seizer = run.seize("whimbrel-fault", "hold")
        run.ask()
        time.sleep(3)
        seizer.kill()
        status, out, err = run.finish()
        self.assertEqual((status, out), (0, EXPECTED + "\n"), err)
        self.assertNotIn("fault thread", err)

    def test_without_its_background_thread_the_program_goes_on_within_its_budget(self):
        run = self.start("--watchdog", "3")
        run.seize("whimbrel-work", "end")
        time.sleep(4)
        run.ask()
        status, out, err = run.finish()
        self.assertEqual((status, out), (0, EXPECTED + "\n"), err)
        self.assertRegex(err, r"background thread has ended; its budget is held at faults alone")
        resident = re.search(r"at most ([0-9.]+) MiB resident", err)
        self.assertLessEqual(float(resident.group(1)), 24 * 1.05)

    def test_a_program_that_is_stopped_as_a_whole_is_left_alone(self):
        run = self.start("--watchdog", "2")
        subprocess.run(["kill", "-STOP", str(run.pid)], check=True)
        time.sleep(6)
        subprocess.run(["kill", "-CONT", str(run.pid), str(run.process.pid)], check=True)  # it stops along
        run.ask()
        status, out, err = run.finish()
        self.assertEqual((status, out), (0, EXPECTED + "\n"), err)
        self.assertNotIn("thread", err)

    def test_a_program_that_becomes_another_is_left_alone(self):
        run = subprocess.run(
            [BUILD / "bin/whimbrel", "run", "--ram", "24M", "--watchdog", "1", "--", sys.executable, "-c",
             "import os\nx = bytearray(64 << 20)\nos.execv('/usr/bin/env', ['env', '-i', '/bin/sleep', '5'])"],
            capture_output=True, text=True, timeout=60, check=False)
        self.assertEqual(run.returncode, 0, run.stderr)
        self.assertNotIn("thread", run.stderr)


def main():
    global BUILD
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", type=pathlib.Path, required=True)
    options, rest = parser.parse_known_args()
    BUILD = options.build.resolve()
    unittest.main(argv=[sys.argv[0], *rest], verbosity=2)


if __name__ == "__main__":
    main()
