#!/usr/bin/python3
"""`whimbrel run --device` with devices made of devices, from outside: real programs and refusals.

  composite_device_test.py --build build/release [unittest arguments]
"""

import os
import pathlib
import shutil
import sys
import tempfile
import unittest

import cli_test


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
