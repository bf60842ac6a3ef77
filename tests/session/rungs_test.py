#!/usr/bin/python3
"""Sessions where userfaultfd is not to be had, by default and for every kind of user: each example does its job, the tests of
sessions pass, and what a program may ask of the environment is heeded.

  rungs_test.py --build BUILD
"""

import argparse
import os
import pathlib
import subprocess
import sys
import unittest

BUILD = None


def run(*command, **environment):
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, timeout=550,
                          env={**os.environ, **environment})


class Rungs(unittest.TestCase):
    def without(self, mode):
        return [BUILD / "tests" / "without-userfaultfd", mode]

    def users(self):
        yield "this user", []
        if os.geteuid() == 0 and os.access("/usr/bin/setpriv", os.X_OK):
            yield "an ordinary user", ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]

    def works(self, *command, **environment):
        done = run(*command, **environment)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        return done.stdout

    def test_examples(self):
        for user, prefix in self.users():
            for name, words in (("larger_than_ram_c", "came home"), ("larger_than_ram_cpp", "are away; the pinned row refused to go")):
                example = BUILD / "examples" / name
                with self.subTest(user=user, example=name):
                    self.assertIn(words, self.works(*prefix, *self.without("all"), example))
                    self.assertIn(words, self.works(*prefix, *self.without("kernel-faults"), example))
                    if not prefix:
                        self.assertIn(words, self.works(*self.without("missing"), example))
                        self.assertIn(words, self.works(example, WHIMBREL_RUNG="guarded"))

    def test_python_example(self):
        package = BUILD / "python"
        if not (package / "whimbrel").is_dir():
            self.skipTest("the Python package is not built")
        text = self.works(*self.without("all"), sys.executable, "-c",
                          "import numpy, whimbrel\n"
                          "s = whimbrel.Session(ram='8M')\n"
                          "a = s.zeros((4096, 1024))\n"
                          "a[:] = numpy.arange(4096)[:, None]\n"
                          "assert float(a.sum()) == 1024 * 4096 * 4095 / 2\n"
                          "assert s.stats()['pages_home'] > 0\n"
                          "print(s.rung)", PYTHONPATH=str(package))
        self.assertEqual(text.strip(), "guarded arenas")

    def test_the_python_example_of_the_documentation(self):
        package = BUILD / "python"
        if not (package / "whimbrel").is_dir():
            self.skipTest("the Python package is not built")
        job = pathlib.Path(__file__).resolve().parent.parent.parent / "examples" / "matrix_job.py"
        text = self.works(*self.without("all"), sys.executable, job, "--megabytes", "64", PYTHONPATH=str(package), OMP_NUM_THREADS="1")
        results = [line.split()[-1] for line in text.splitlines() if "result" in line]
        self.assertEqual(len(results), 2, text)
        self.assertEqual(*results)

    def test_the_sessions_of_the_tests_by_default(self):
        for user, prefix in self.users():
            with self.subTest(user):
                text = self.works(*prefix, *self.without("all"), BUILD / "tests" / "session_test", "--gtest_filter=*/lz4",
                                  WHIMBREL_RUNG="")
                self.assertRegex(text, r"(?m)^\[ +OK \] .*KeepTheirContents/lz4")
                self.assertRegex(text, r"(?m)^\[ +SKIPPED \] .*AChildOfFork.*/lz4", "not on guarded arenas")
        # The last one has the fewest rights; root's are tested without this as well.
        self.works(*prefix, *self.without("all"), BUILD / "tests" / "guarded_session_test")

    def test_who_wants_userfaultfd_is_refused_rather_than_given_less(self):
        for mode in ("all", "missing", "kernel-faults"):
            done = run(*self.without(mode), BUILD / "examples" / "larger_than_ram_cpp", WHIMBREL_RUNG="userfaultfd")
            self.assertEqual(done.returncode, 1, done.stdout)
            self.assertRegex(done.stderr, r"whimbrel_session_open \((EPERM|ENOSYS|EOPNOTSUPP)", mode)
            self.assertIn("whimbrel doctor", done.stderr)

    def test_doctor_tells_the_rung(self):
        done = run(*self.without("all"), BUILD / "bin" / "whimbrel", "doctor")
        self.assertEqual(done.returncode, 1, done.stdout + done.stderr)
        self.assertIn("(rung: guarded arenas)", done.stdout)
        self.assertIn("whimbrel run cannot be used", done.stdout)
        self.assertRegex(done.stdout, r"ok +guarded arenas +used")
        self.assertIn("system calls on away memory fail with EFAULT", done.stdout)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", type=pathlib.Path, required=True)
    options, rest = parser.parse_known_args()
    BUILD = options.build.resolve()
    unittest.main(argv=[sys.argv[0], *rest])
