#!/usr/bin/python3
"""A program that opens a session is told so when it was started by `whimbrel run`, whose budget covers all its memory.

  under_run_test.py --build BUILD
"""

import argparse
import pathlib
import subprocess
import sys
import unittest

BUILD = None


class Refusals(unittest.TestCase):
    def refusal(self, *command):
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, timeout=60)
        self.assertEqual(done.returncode, 1, done.stderr)
        return done.stderr

    def test_under_whimbrel_run(self):
        text = self.refusal(BUILD / "bin" / "whimbrel", "run", "--ram", "64M", "--quiet", "--", BUILD / "examples" / "larger_than_ram_c")
        self.assertIn("whimbrel_session_open (EBUSY: this program runs under `whimbrel run`", text)
        self.assertIn("next: start it without `whimbrel run`", text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", type=pathlib.Path, required=True)
    options, rest = parser.parse_known_args()
    BUILD = options.build.resolve()
    unittest.main(argv=[sys.argv[0], *rest])
