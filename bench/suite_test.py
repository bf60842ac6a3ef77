#!/usr/bin/env python3
"""Tests of the suite itself: its statistics, its refusal of wrong results, and above all that it cleans up.

Usage: suite_test.py BUILD_DIRECTORY [unittest arguments]
"""

import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import unittest
import xml.dom.minidom

sys.dont_write_bytecode = True
HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from suite import cgroup, compare, janitor, marks, sampler, svg, units  # noqa: E402
from suite.cases import parse_phases  # noqa: E402
from suite.runner import RunFailed  # noqa: E402
from suite.sides import Budget, NoLimit, Whimbrel, judge_budget, whimbrel_works  # noqa: E402
from suite.swap import ZramSwap  # noqa: E402

BUILD = None


def wait_until(condition, seconds=15):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


class Units(unittest.TestCase):
    def test_sizes(self):
        self.assertEqual(units.parse_size("256M"), 256 << 20)
        self.assertEqual(units.parse_size("1.5g"), 3 << 29)
        for bad in ("", "M", "10X", "-1M", "0", "1e30G"):
            with self.assertRaises(ValueError, msg=bad):
                units.parse_size(bad)
        self.assertEqual(units.format_size(1 << 30), "1 GiB")
        self.assertEqual(units.format_size(256 << 20), "256 MiB")
        self.assertEqual(units.size_argument(1025), "2K")

    def test_ratios_are_paired_by_round(self):
        # The machine was twice as slow in round 2: the ratio must not notice.
        ratio = units.paired_ratios({1: 10.0, 2: 20.0, 3: 10.0}, {1: 5.0, 2: 10.0, 4: 1.0})
        self.assertEqual((ratio.median, ratio.low, ratio.high, ratio.count), (2.0, 2.0, 2.0, 2))
        self.assertIsNone(units.paired_ratios({1: 1.0}, {2: 1.0}))


class Phases(unittest.TestCase):
    def test_wrong_contents_make_a_run_fail(self):
        good = '{"pattern": "fill", "seconds": 1, "wrong": 0, "checksum": "a"}\nother text\n'
        self.assertEqual(parse_phases(good)[1], "a")
        for bad in ('{"pattern": "fill", "seconds": 1, "wrong": 2, "checksum": "a"}', good + '{"wrong_pages": 1}', "nothing"):
            with self.assertRaises(RunFailed):
                parse_phases(bad)


class _Case:
    """Reports times it was given: {side: [seconds of round 0, 1, ...]}."""

    name, title, data, work_directory = "fake", "a fake", 1 << 20, None

    def __init__(self, times, digests=None):
        self.times, self.digests, self.current = times, digests or {}, None

    def run(self, context):
        side = context._entered.name
        return {"work": {"seconds": self.times[side].pop(0)}}, self.digests.get(side, "same")


class _Side(NoLimit):
    def __init__(self, name):
        self.name = self.title = name

    def enter(self, janitor_, budget):
        entered = super().enter(janitor_, budget)
        original = entered.__enter__

        class Wrapper:
            def __enter__(inner):
                inside = original()
                inside.name = self.name
                return inside

            def __exit__(inner, *details):
                return entered.__exit__(*details)
        return Wrapper()


class Rounds(unittest.TestCase):
    def run_fake(self, times, digests=None):
        result = compare.CaseResult(_Case(times, digests), "x", [_Side(name) for name in times])
        plan = compare.Plan(rounds=3, timeout=10, settle=lambda case: None)
        stderr, sys.stderr = sys.stderr, open(os.devnull, "w")
        helper = janitor.Janitor()
        try:
            compare.run_rounds(result, lambda r: None, plan, helper)
        finally:
            helper.close()
            sys.stderr.close()
            sys.stderr = stderr
        return result

    def test_warm_up_is_thrown_away(self):
        result = self.run_fake({"a": [100.0, 4.0, 6.0, 8.0], "b": [0.001, 2.0, 2.0, 2.0]})
        self.assertEqual(result.time("a", "work").median, 6.0)
        self.assertEqual(result.ratio("a", "b", "work").as_dict(), {"median": 3.0, "low": 2.0, "high": 4.0, "count": 3})
        self.assertEqual(result.failures, [])

    def test_different_outputs_are_a_failure(self):
        result = self.run_fake({"a": [1.0] * 4, "b": [1.0] * 4}, {"b": "other"})
        self.assertEqual(len(result.failures), 1)
        self.assertIn("OUTPUT DIFFERS", result.failures[0])

    def test_marks_are_judged(self):
        times = {"zram-lz4": [10.0] * 4, "whimbrel": [4.0] * 4}
        result = self.run_fake(times)
        for run in [*result.runs["zram-lz4"].values(), *result.runs["whimbrel"].values()]:
            run["phases"] = {"seqread": run["phases"]["work"]}
        verdicts = {v["mark"]: v for v in marks.pattern_verdicts(result, first=True)}
        self.assertTrue(verdicts["seqread, whimbrel against zram-lz4"]["met"])
        self.assertEqual(verdicts["seqread, whimbrel against zram-lz4"]["measured"], 2.5)
        self.assertIsNone(verdicts["fill, whimbrel against zram-lz4"]["met"], "not measured is not met")
        hard = {v["mark"]: v["met"] for v in marks.pattern_verdicts(result, first=False)}
        self.assertFalse(hard["seqread, whimbrel against zram-lz4"])


class Sides(unittest.TestCase):
    def test_command_lines(self):
        side = Whimbrel("/x/whimbrel", device="lz4")
        self.assertEqual(side.command(Budget(ram=1 << 20)), ["/x/whimbrel", "run", "--ram", "1024K", "--device", "lz4"])
        total = Whimbrel("/x/whimbrel", use_total=True)
        self.assertEqual(total.command(Budget(ram=1, total=2 << 20)), ["/x/whimbrel", "run", "--total", "2048K"])

    def test_missing_command_says_so(self):
        self.assertIn("does not exist", Whimbrel("/nowhere/whimbrel").unavailable(Budget(ram=1)))
        self.assertIn("does not exist", whimbrel_works("/nowhere/whimbrel"))
        self.assertIn("ended with 1", whimbrel_works("/bin/false"))


    def test_a_program_that_was_not_managed_does_not_count(self):
        budget, need = Budget(ram=64 << 20, total=100 << 20), 256 << 20
        good = {"pages_out": 5, "peak_resident_bytes": 64 << 20}
        self.assertIsNone(judge_budget(good, budget, {"total": 150 << 20}, need, False))
        self.assertIn("no statistics", judge_budget(None, budget, {}, need, False))
        self.assertIn("not managed", judge_budget({**good, "pages_out": 0}, budget, {}, need, False))
        self.assertIn("did not hold", judge_budget({**good, "peak_resident_bytes": 70 << 20}, budget, {}, need, False))
        self.assertIn("did not hold", judge_budget(good, budget, {"total": 120 << 20}, need, True))
        self.assertIsNone(judge_budget({"pages_out": 0}, Budget(ram=1 << 30), {}, need, False), "memory suffices")


class Sampling(unittest.TestCase):
    def test_memory_of_a_child_is_seen(self):
        body = "import time; data = bytearray(b'x') * (64 << 20); print('ready', flush=True); time.sleep(60)"
        parent = subprocess.Popen(["sh", "-c", f'"{sys.executable}" -c "{body}"; true'], stdout=subprocess.PIPE)
        watch = sampler.Sampler(parent.pid, 0.01, lambda: {"device": 5})
        try:
            parent.stdout.readline()
            self.assertTrue(wait_until(lambda: sampler.peaks(watch.samples).get("anonymous", 0) > 60 << 20))
            self.assertGreaterEqual(len(sampler.process_tree(parent.pid)), 2)
        finally:
            for pid in sampler.process_tree(parent.pid)[::-1]:
                os.kill(pid, signal.SIGKILL)
            parent.wait()
            parent.stdout.close()
            samples = watch.stop()
        found = sampler.peaks(samples)
        self.assertEqual(found["total"], found["anonymous"] + 5)
        self.assertEqual(sampler.peaks(samples, start_ns=time.monotonic_ns()), {})


class Plots(unittest.TestCase):
    def test_pictures_are_well_formed(self):
        spread = units.Spread([0.4, 3.0, 20.0])
        bars = svg.ratio_bars("a < b & c", ["fill", "seq<read"], ["s"], {"s": {"fill": spread, "seq<read": None}})
        line = svg.lines("t", "MiB", {"a": [(i / 10, i % 7) for i in range(5000)]})
        for picture in (bars, line):
            xml.dom.minidom.parseString(picture)
        self.assertIn("3.00x", bars)
        self.assertEqual(svg._round_ticks(51), [0, 20, 40, 60])
        self.assertEqual(svg._round_ticks(0.5), [0, 0.1, 0.2, 0.30000000000000004, 0.4, 0.5])
        self.assertLess(len(line), 20000, "long lines are thinned")
        self.assertIsNone(svg.ratio_bars("none", [], [], {}))


class Cleaning(unittest.TestCase):
    """The janitor, with files as what has to go."""

    def setUp(self):
        self._directory = tempfile.TemporaryDirectory()
        self.path = pathlib.Path(self._directory.name) / "left"

    def tearDown(self):
        self._directory.cleanup()

    def test_undoes_when_asked_and_at_the_end(self):
        helper = janitor.Janitor()
        first, second = self.path.with_suffix(".1"), self.path.with_suffix(".2")
        for path in (first, second):
            path.touch()
        ticket = helper.remember("unlink", str(first))
        helper.remember("unlink", str(second))
        helper.undo(ticket)
        self.assertFalse(first.exists())
        self.assertTrue(second.exists())
        helper.undo(ticket)  # twice is harmless
        helper.close()
        self.assertFalse(second.exists())

    def test_says_what_it_could_not_undo(self):
        helper = janitor.Janitor()
        ticket = helper.remember("write", "/nowhere/at/all", "1")
        with self.assertRaisesRegex(janitor.CleanupError, "(?s)cannot undo write.*try: bench/run_suite --cleanup"):
            helper.undo(ticket)
        with self.assertRaisesRegex(janitor.CleanupError, "/nowhere/at/all"):
            helper.close()
        for journal in janitor.JOURNALS.glob(f"{os.getpid()}.json"):
            journal.unlink()

    def _owner(self):
        """A process that leaves a file to the janitor and waits."""
        body = textwrap.dedent(f"""
            import pathlib, sys, time
            sys.path.insert(0, {str(HERE)!r})
            from suite import janitor
            helper = janitor.Janitor()
            helper.remember("unlink", {str(self.path)!r})
            pathlib.Path({str(self.path)!r}).touch()
            print("ready", flush=True)
            time.sleep(60)
            """)
        owner = subprocess.Popen([sys.executable, "-B", "-c", body], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                                 start_new_session=True)
        owner.stdout.readline()
        self.assertTrue(self.path.exists())
        return owner

    def test_cleans_up_when_its_owner_dies(self):
        for each in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            owner = self._owner()
            os.killpg(owner.pid, each)  # as a terminal does: the whole group gets it
            owner.wait()
            owner.stdout.close()
            self.assertTrue(wait_until(lambda: not self.path.exists()), each)


def left_overs():
    groups = [str(p) for root in ("/sys/fs/cgroup/memory", "/sys/fs/cgroup") for p in pathlib.Path(root).glob("whimbrel-bench-*")]
    swaps = [line.split()[0] for line in pathlib.Path("/proc/swaps").read_text().splitlines()[1:]]
    devices = sorted(p.name for p in pathlib.Path("/sys/block").glob("zram*"))
    files = [str(p) for p in pathlib.Path("/var/tmp").glob("whimbrel-bench-*.swap")]
    return groups, swaps, devices, files


class InterruptedSuite(unittest.TestCase):
    """The whole suite, interrupted while a program runs on swap: everything must be as before."""

    def setUp(self):
        reason = cgroup.unavailable() or ZramSwap.unavailable("lz4")
        if reason:
            print(f"\nskipped: {reason}")
            self.skipTest(reason)

    def interrupt(self, number, side):
        before = left_overs()
        with tempfile.TemporaryDirectory() as directory:
            suite = subprocess.Popen(
                [sys.executable, "-B", HERE / "run_suite", "--build", BUILD, "--out", directory, "--no-floor", "--size", "96M",
                 "--cases", "patterns", "--patterns", "fill,seqread,randread", "--random-scale", "50", "--sides", side, "--rounds", "1"],
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
            started = wait_until(lambda: any(pathlib.Path(g, "cgroup.procs").read_text().strip()
                                             for g in left_overs()[0] if g not in before[0]), 30)
            time.sleep(0.5)
            busy = left_overs()
            os.killpg(suite.pid, number)
            suite.wait(timeout=60)
        self.assertTrue(started, "the program never ran on its side")
        self.assertNotEqual(busy, before, "nothing was set up: the test shows nothing")
        gone = wait_until(lambda: left_overs() == before, 30)
        self.assertTrue(gone, f"left over: {left_overs()}, before: {before}")

    def test_interrupt_from_the_keyboard(self):
        self.interrupt(signal.SIGINT, "zram-lz4")

    def test_termination(self):
        self.interrupt(signal.SIGTERM, "file")

    def test_kill(self):
        self.interrupt(signal.SIGKILL, "zram-lz4")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    BUILD = sys.argv.pop(1)
    unittest.main()
