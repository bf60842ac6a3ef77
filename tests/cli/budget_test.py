#!/usr/bin/python3
"""whimbrel budget, and the keys of whimbrel top, beside programs that run.

  budget_test.py --build BUILD
"""

import argparse
import json
import pathlib
import sys
import time
import unittest

import stepped_run

WHIMBREL = None
MIB = 1 << 20


def Run(*options):
    return stepped_run.SteppedRun(WHIMBREL, *options)

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
        top = stepped_run.TopViewer(run)
        top.press("-")
        top.until(f"> run {run.process.pid}: --ram 36.0 MiB")
        top.press("+")
        top.until(f"> run {run.process.pid}: --ram 39.6 MiB")
        self.assertEqual(top.leave(), 0)
        self.assertEqual(run.round(), "wrong 0\n")
        self.assertEqual(run.end()[0], 0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", type=pathlib.Path, required=True)
    options, rest = parser.parse_known_args()
    WHIMBREL = str((options.build / "bin" / "whimbrel").resolve())
    unittest.main(argv=[sys.argv[0], *rest])
