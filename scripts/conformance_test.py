#!/usr/bin/env python3
"""The conformance check finds each kind of mistake: on a small tree made for it."""
import pathlib
import subprocess
import sys
import tempfile
import unittest

SCRIPT = pathlib.Path(__file__).resolve().parent / "conformance.py"
HEAD = "| id | rule | where | shown by |\n|---|---|---|---|\n"
GOOD = ("| AB-01 | a rule | `src/a.cc` | `Suite.Works` |\n"
        "| AB-02 | another | `src/a.cc` | `group.case`, deviation |\n"
        "| AB-03 | for drivers | `src/a.cc` | driver |\n"
        "| AB-04 | a third | `src/a.cc` | `vectors:script`, `ctest:whole_program` |\n"
        "| AB-05 | nobody shows it | `src/a.cc` | untested |\n")


class Conformance(unittest.TestCase):
    def check(self, rows=GOOD, deviations="* **AB-02** because", source="// AB-01, AB-03: told here\n", open_list=""):
        with tempfile.TemporaryDirectory() as name:
            root = pathlib.Path(name)
            for path, text in {
                    "docs/conformance.md": HEAD + rows, "docs/deviations.md": deviations, "src/a.cc": source,
                    "src/a_test.cc": "TEST_F(Suite, Works) {\nTEST(Suite, Other) {\n",
                    "tests/mirror/cases.c": "MIRROR_CASE(group, case, PRIVATE | HAZARD) {\n",
                    "tests/mirror/open.txt": open_list, "tests/open.txt": "# none\n",
                    "tests/vectors/cases.vectors": "== script\n",
                    "tests/CMakeLists.txt": "add_test(NAME whole_program COMMAND x)\n"}.items():
                file = root / path
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text)
            done = subprocess.run([sys.executable, str(SCRIPT)], cwd=root, capture_output=True, text=True, check=False)
            return done.returncode, done.stdout + done.stderr

    def finds(self, message, **tree):
        status, text = self.check(**tree)
        self.assertEqual(status, 1, text)
        self.assertIn(message, text)

    def test_a_tree_in_order_passes_and_is_counted(self):
        status, text = self.check()
        self.assertEqual(status, 0, text)
        self.assertIn("5 requirements: 3 shown", text)
        self.assertIn("1 rules for drivers, 1 untested", text)

    def test_a_case_that_is_listed_as_open_counts_as_open(self):
        status, text = self.check(open_list="private/group.* not yet\n")
        self.assertEqual(status, 0, text)
        self.assertIn("2 shown", text)
        self.assertIn("1 by tests that are listed as open only", text)

    def test_mistakes(self):
        self.finds("no test `Suite.Gone`", rows=GOOD.replace("Suite.Works", "Suite.Gone"))
        self.finds("no test `group.gone`", rows=GOOD.replace("group.case", "group.gone"))
        self.finds("no test `vectors:gone`", rows=GOOD.replace("vectors:script", "vectors:gone"))
        self.finds("no test `ctest:gone`", rows=GOOD.replace("ctest:whole_program", "ctest:gone"))
        self.finds("no file src/b.cc", rows=GOOD.replace("`src/a.cc` | `Suite", "`src/b.cc` | `Suite"))
        self.finds("AB-09 is not in", source="// AB-03, AB-09\n")
        self.finds("AB-02 is left out", rows=GOOD.replace("AB-02", "AB-06"))
        self.finds("AB-01 is there twice", rows=GOOD + "| AB-01 | again | `src/a.cc` | untested |\n")
        self.finds("not explained", deviations="nothing")
        self.finds("AB-07 is not in", deviations="* **AB-02**, **AB-07** because")
        self.finds("none of its files tells them", source="// AB-01\n")
        self.finds("says untested and cites a test", rows=GOOD.replace("| untested", "| untested, `Suite.Other`"))
        self.finds("not a row of four columns", rows=GOOD + "| AB-06 | three | columns |\n")


if __name__ == "__main__":
    unittest.main()
