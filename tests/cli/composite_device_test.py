#!/usr/bin/python3
"""`whimbrel run --device` with devices made of devices, from outside: real programs and refusals.

  composite_device_test.py --build build/release [unittest arguments]
"""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
import unittest

import cli_test


# Each generation checks and changes what it has inherited, and has a child that does the same.
GENERATIONS = """
import os, sys
step, count = 4096, 12000
data = bytearray(step * count)
for i in range(count):
    data[i * step:i * step + 64] = os.urandom(64)
sums = [sum(data[i * step:i * step + 64]) for i in range(count)]
for generation in range(6):
    for i in range(count):
        if sum(data[i * step:i * step + 64]) != sums[i]:
            sys.exit(f"generation {generation}, page {i} is wrong")
        if i % 7 == generation:
            data[i * step + 5] ^= 255
            sums[i] += 2 * data[i * step + 5] - 255
    child = os.fork()
    if child != 0:
        status = os.waitpid(child, 0)[1]
        sys.exit(0 if status == 0 else f"generation {generation}: status {status} of the child")
print("all generations are right")
"""


class CompositeTest(cli_test.CommandTest):
    def setUp(self):
        super().setUp()
        # A real disk: /tmp may be memory.
        self.store = pathlib.Path(tempfile.mkdtemp(prefix="whimbrel-store-", dir="/var/tmp"))
        self.addCleanup(shutil.rmtree, self.store, ignore_errors=True)

    def assert_fills(self, spec, kind="random", megabytes=96):
        done = self.call("run", "--ram", "32M", "--device", spec, "--", cli_test.BUILD / "tests" / "fill", megabytes, kind)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(done.stdout, f"{megabytes} blocks of 1048576 bytes right\n")
        self.assertRegex(done.stderr, r"moved +[0-9.]+ [MG]iB out, [0-9.]+ [MG]iB home")
        self.assertNotRegex(done.stderr, r"full|fail|error")
        self.assertEqual(os.listdir(self.store), [], "something was left behind")
        return done


class Chain(CompositeTest):
    def test_what_does_not_shrink(self):
        self.assert_fills(f"chain:lz4@4M,zstd@8M,file:{self.store}@1G")

    def test_what_does(self):
        self.assert_fills(f"chain:lz4@1M,zstd@2M,file:{self.store}@1G", "map")

    def test_generations_of_processes_share_three_files(self):
        spec = f"chain:file:{self.store}@8M,file:{self.store},direct=off@8M,file:{self.store}"
        done = self.call("run", "--ram", "32M", "--device", spec, "--", "/usr/bin/python3", "-c", GENERATIONS)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(done.stdout, "all generations are right\n")
        self.assertEqual(os.listdir(self.store), [], "something was left behind")

    def test_relative_paths(self):
        done = self.call("run", "--ram", "32M", "--device", "chain:lz4@4M,file:here,direct=off@1G", "--",
                         cli_test.BUILD / "tests" / "fill", 64, "random")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn(f"chain:lz4@4M,file:{self.directory}/here,direct=off@1G", done.stderr)

    def test_refusals(self):
        for spec, words in ((f"chain:lz4,file:{self.store}", "no limit"), ("chain:lz4@1M", "needs two devices"),
                            ("chain:lz4@1M,file:/no/such/place", "/no/such/place"), ("chain:lzo@1M,zstd", "no device 'lzo'")):
            done = self.call("run", "--ram", "64M", "--device", spec, "--", *self.marker())
            self.assert_refused(done, words)
            self.assertFalse(self.started.exists())


class Mirror(CompositeTest):
    def test_two_files(self):
        self.assert_fills(f"mirror:file:{self.store},file:{self.store},direct=off")

    def test_a_leg_that_loses_everything_again_and_again(self):
        leg = self.store / "leg"
        leg.write_bytes(b"")
        command = [cli_test.BUILD / "bin" / "whimbrel", "run", "--ram", "32M", "--device",
                   f"mirror:file:{leg},force=on,file:{self.store}", "--", cli_test.BUILD / "tests" / "fill", "128", "random"]
        run = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.addCleanup(run.kill)
        cut, deadline = 0, time.monotonic() + cli_test.LIMIT
        while run.poll() is None and time.monotonic() < deadline:
            if leg.stat().st_blocks * 512 > 4 << 20:
                os.truncate(leg, 0)
                cut += 1
            time.sleep(0.01)
        out, errors = run.communicate(timeout=cli_test.LIMIT)
        self.assertEqual(run.returncode, 0, errors)
        self.assertEqual(out, "128 blocks of 1048576 bytes right\n")
        self.assertGreater(cut, 0, "the leg was never used: " + errors)

    def test_under_a_chain(self):
        self.assert_fills(f"chain:lz4@2M,[mirror:zstd,file:{self.store}]")

    def test_refusals(self):
        done = self.call("run", "--ram", "64M", "--device", "mirror:lz4", "--", *self.marker())
        self.assert_refused(done, "made of two devices")
        self.assertFalse(self.started.exists())


def main():
    arguments = sys.argv[1:]
    if arguments[:1] != ["--build"] or len(arguments) < 2:
        sys.exit(__doc__)
    cli_test.BUILD = pathlib.Path(arguments[1]).resolve()
    unittest.main(argv=[sys.argv[0], *arguments[2:]], verbosity=2)


if __name__ == "__main__":
    main()
