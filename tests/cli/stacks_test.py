#!/usr/bin/python3
"""whimbrel run --sample-stacks: the function that waits is the first on the list, in the summary, in JSON, in recording and report.

  stacks_test.py --build BUILD
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

BUILD = WHIMBREL = None


def run(*command, sample="=4", ram="8M", more=(), status=0):
    """Runs it; returns the summary for people and the one in JSON."""
    with tempfile.TemporaryDirectory(prefix="whimbrel-stacks-") as directory:
        stats = pathlib.Path(directory) / "stats"
        done = subprocess.run([WHIMBREL, "run", "--ram", ram, f"--sample-stacks{sample}", "--stats", stats, *more, "--", *command],
                              capture_output=True, text=True, check=False, timeout=200)
        assert done.returncode == status, done.stderr
        return done.stderr, json.loads(stats.read_text())


def refused():
    """Why stacks cannot be looked at here; None when they can."""
    done = subprocess.run([WHIMBREL, "run", "--sample-stacks", "--", "/bin/true"], capture_output=True, text=True, check=False, timeout=60)
    return done.stderr if done.returncode == 125 else None


class Stacks(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.program = str(BUILD / "tests" / "two-walks")
        cls.temporary = tempfile.TemporaryDirectory(prefix="whimbrel-stacks-")
        cls.events = pathlib.Path(cls.temporary.name) / "run.events"
        cls.text, cls.summary = run(cls.program, "32", "10", more=("--events", cls.events))

    @classmethod
    def tearDownClass(cls):
        cls.temporary.cleanup()

    def test_the_function_that_waits_comes_first(self):
        stacks = self.summary["stacks"]
        first = stacks["places"][0]
        self.assertRegex(first["place"], r"^walk_large two_walks\.c:\d+$")
        self.assertGreater(first["samples"], stacks["samples"] * 0.6)
        self.assertRegex(first["callers"][0], r"^main two_walks\.c:\d+$")
        self.assertGreater(first["wait_ns"], 0)
        self.assertEqual(sum(place["samples"] for place in stacks["places"]) + stacks["skipped"], stacks["samples"])

    def test_samples_are_a_share_of_the_faults(self):
        stacks = self.summary["stacks"]
        self.assertEqual(stacks["period"], 4)
        # Each thread counts on each processor by itself, an access may fault twice, and records may be lost on a busy machine.
        self.assertLess(stacks["samples"], self.summary["faults"] / 4 * 1.25 + 100)
        self.assertGreater(stacks["samples"] + stacks["lost"] + stacks["ordinary"], self.summary["faults"] / 8)

    def test_the_first_touches_are_where_it_fills(self):
        first_touches = {place["place"].split()[0] for place in self.summary["stacks"]["places"] if place["first_touches"]}
        self.assertLessEqual(first_touches, {"main", "walk_small"})

    def test_the_summary_for_people(self):
        self.assertRegex(self.text, r"places +of [\d']+ sampled faults \(1 in 4\)")
        self.assertRegex(self.text, r"\n +\d+\.\d %  walk_large two_walks\.c:\d+\n +< main two_walks\.c:\d+\n")

    def test_the_recording_and_its_report(self):
        lines = [json.loads(line) for line in self.events.read_text().splitlines()]
        stacks = [line for line in lines if line["event"] == "stacks"]
        self.assertEqual(len(stacks), 1)
        self.assertEqual(stacks[0]["places"], self.summary["stacks"]["places"])
        page = self.events.with_name("report.html")
        subprocess.run([WHIMBREL, "report", self.events, "-o", page], check=True, timeout=60, stdout=subprocess.DEVNULL)
        self.assertRegex(page.read_text(), r"of the sampled touches of memory that was away come from walk_large two_walks\.c:\d+")

    @unittest.skipUnless(os.geteuid() == 0, "an ordinary user's samples have no touches by system calls")
    def test_touches_by_system_calls(self):
        _, summary = run(self.program, "32", "6", "read")
        places = [place["place"] for place in summary["stacks"]["places"][:3] if place["samples"]]
        self.assertTrue(any(place.startswith("fill_by_read ") for place in places), summary["stacks"])
        self.assertTrue(summary["stacks"]["with_system_calls"])

    def test_processes_below_are_looked_at_too(self):
        _, summary = run("/bin/sh", "-c", f"{self.program} 24 4; exit 0")
        self.assertRegex(summary["stacks"]["places"][0]["place"], r"^walk_large ")

    def test_without_waiting_there_is_nothing_to_tell(self):
        text, summary = run("/bin/true")
        self.assertEqual(summary["stacks"]["samples"], 0)
        self.assertNotIn("places", text)
        _, plain = run("/bin/true", sample="=1")
        self.assertEqual(plain["stacks"]["period"], 1)


class Refused(unittest.TestCase):
    def test_where_there_are_no_performance_events_it_says_so(self):
        done = subprocess.run([BUILD / "tests" / "without-userfaultfd", "no-perf-events", WHIMBREL, "run", "--sample-stacks", "--", "/bin/echo", "ran"],
                              capture_output=True, text=True, check=False, timeout=60)
        self.assertEqual((done.returncode, done.stdout), (125, ""))
        self.assertIn("--sample-stacks: the kernel does not give out performance events", done.stderr)
        self.assertIn("next: kernel.perf_event_paranoid is ", done.stderr)

    def test_a_number_that_makes_no_sense(self):
        for number in ("0", "many"):
            done = subprocess.run([WHIMBREL, "run", f"--sample-stacks={number}", "--", "/bin/true"], capture_output=True, text=True, check=False, timeout=60)
            self.assertEqual(done.returncode, 2, done.stderr)
            self.assertIn("--sample-stacks", done.stderr)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", type=pathlib.Path, required=True)
    options, rest = parser.parse_known_args()
    BUILD = options.build.absolute()
    WHIMBREL = BUILD / "bin" / "whimbrel"
    if why := refused():
        print(f"SKIPPED: {why}")
        sys.exit(77)
    unittest.main(argv=[sys.argv[0], *rest])
