#!/usr/bin/python3
"""whimbrel report and whimbrel map: files and texts, and the pages in a real browser.

  report_test.py --build BUILD Texts
  report_test.py --build BUILD Pages      needs chromium; status 77 and the reason when it is not there
"""

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

import browser

WHIMBREL = None

# Fills 24 MiB, walks it twice, then waits for its input to end.
WORK = """
import sys
data = bytearray(24 << 20)
for i in range(0, len(data), 4096): data[i] = (i >> 12) % 251 + 1
total = [sum(data[i] for i in range(0, len(data), 4096)) for r in range(2)]
print("ready", flush=True)
sys.stdin.read()
"""


def whimbrel(*arguments, status=0, **options):
    done = subprocess.run([WHIMBREL, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=120, **options)
    if done.returncode != status:
        raise AssertionError(f"{arguments}: status {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout if status == 0 else done.stderr


class Recorded(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.temporary = tempfile.TemporaryDirectory(prefix="whimbrel-report-")
        cls.directory = pathlib.Path(cls.temporary.name)
        cls.events = cls.directory / "run.events"
        run = subprocess.Popen([WHIMBREL, "run", "--ram", "8M", "--quiet", "--events", cls.events, "--", "/usr/bin/python3", "-c", WORK],
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert run.stdout.readline() == "ready\n"
        cls.during = whimbrel("map", cls.events)
        pid = int(cls.during.split(":")[0].split()[-1])
        cls.pid, cls.living = pid, whimbrel("map", pid)
        whimbrel("map", pid, "--svg", cls.directory / "living.svg")
        whimbrel("map", pid, "--html", cls.directory / "living.html")
        run.stdin.close()
        run.stdout.close()
        assert run.wait(timeout=60) == 0
        assert whimbrel("report", cls.events, "-o", cls.directory / "report.html") == f"{cls.directory}/report.html\n"
        whimbrel("map", cls.events, "--html", cls.directory / "map.html")

    @classmethod
    def tearDownClass(cls):
        cls.temporary.cleanup()


class Texts(Recorded):
    def test_the_map_of_a_recording_that_goes_on(self):
        self.assertIn(f"python3 {self.pid}: ", self.during)
        self.assertRegex(self.during, r"away on zstd, \d+\.\d s into the run")
        self.assertRegex(self.during, r"(?m)^  .*[#+].*$")
        self.assertRegex(self.during, r"(?m)^  .*[o+].*$")
        self.assertNotIn("\x1b", self.during)

    def test_the_map_of_a_living_process(self):
        self.assertRegex(self.living, rf"python3 {self.pid}: \d+\.\d MiB in RAM\n")
        self.assertIn("[heap]", self.living)
        self.assertTrue((self.directory / "living.svg").read_text().startswith("<svg "))

    def test_what_cannot_be_shown(self):
        self.assertIn("no such process", whimbrel("map", 2147483646, status=1))
        self.assertIn("next: ", whimbrel("map", "/nowhere", status=2))
        self.assertIn("leave one of them out", whimbrel("map", self.events, "--svg", "a", "--html", "b", status=2))
        self.assertIn("/nowhere/x: No such file", whimbrel("report", self.events, "-o", "/nowhere/x", status=2))

    @unittest.skipUnless(os.geteuid() == 0, "only root can become somebody else")
    def test_an_ordinary_user_sees_his_own_processes_only(self):
        done = subprocess.run(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", WHIMBREL, "map", str(os.getpid())],
                              capture_output=True, text=True, check=False, timeout=60)
        self.assertNotEqual(done.returncode, 0)
        own = subprocess.run(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "/bin/sh", "-c",
                              f'sleep 60 & sleep 0.5; "{WHIMBREL}" map $!; kill $!'], capture_output=True, text=True, check=False, timeout=60)
        if "Permission denied" in own.stderr:
            self.skipTest("this user may not run the program where it lies")
        self.assertRegex(own.stdout, r"sleep \d+: .* in RAM", own.stderr)


class Pages(Recorded):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.browser = browser.Browser()

    @classmethod
    def tearDownClass(cls):
        cls.browser.close()
        super().tearDownClass()

    def show(self, name):
        self.browser.errors.clear()
        self.browser.open(self.directory / name)
        self.assertEqual(self.browser.errors, [])

    def rectangle(self, selector):
        value = self.browser.value
        value(f"document.querySelector({selector!r}).scrollIntoView({{block: 'center'}})")
        box = value(f"(() => {{ const r = document.querySelector({selector!r}).getBoundingClientRect(); return [r.left, r.top, r.width, r.height]; }})()")
        self.assertGreater(min(box[2:]), 0)
        return box

    def test_the_report(self):
        self.show("report.html")
        value = self.browser.value
        self.assertIn("/usr/bin/python3 -c", value("document.querySelector('h1').textContent"))
        self.assertGreaterEqual(value("document.querySelectorAll('#why li').length"), 1)
        self.assertEqual(value("document.querySelectorAll('.chart svg').length"), 5)
        self.assertEqual(value("document.querySelectorAll('#budgets tbody tr').length"), 9)
        self.assertGreaterEqual(value("document.querySelectorAll('#hottest tbody tr').length"), 1)
        self.assertFalse(value("document.documentElement.scrollWidth > innerWidth"), "nothing runs out of the page")
        # The numbers under the mouse.
        left, top, width, height = self.rectangle(".chart svg")
        self.assertEqual(value("getComputedStyle(document.querySelector('.chart .tip')).display"), "none")
        self.browser.move(left + width / 2, top + height / 2)
        self.assertEqual(value("getComputedStyle(document.querySelector('.chart .tip')).display"), "block")
        self.assertRegex(value("document.querySelector('.chart .tip').textContent"), r"s\naway  .*\nin RAM  ")
        self.browser.screenshot(self.directory / "report.png")
        self.assertGreater((self.directory / "report.png").stat().st_size, 10000)
        self.assertEqual(self.browser.errors, [])

    def picture(self):
        return self.browser.value("document.getElementById('canvas').toDataURL()")

    def test_the_map_moves_through_time(self):
        self.show("map.html")
        value = self.browser.value
        later, clock = self.picture(), value("document.getElementById('clock').textContent")
        value("(() => { const s = document.getElementById('time'); s.value = 0; s.dispatchEvent(new Event('input')); })()")
        self.assertNotEqual(value("document.getElementById('clock').textContent"), clock)
        self.assertNotEqual(self.picture(), later)
        # A click on a region shows it alone, another one all of them.
        left, top, width, height = self.rectangle("#canvas")
        self.browser.click(left + width / 2, top + min(height, 400) / 2)
        self.assertNotEqual(value("document.getElementById('region').value"), "-1")
        self.assertLess(self.rectangle("#canvas")[3], height)
        left, top, _, _ = self.rectangle("#canvas")
        self.browser.move(left + 12, top + 30)
        self.assertRegex(value("document.getElementById('maptip').textContent"), r"^0x[0-9a-f]+  .*\nin RAM ")
        self.browser.click(left + 12, top + 30)
        self.assertEqual(value("document.getElementById('region').value"), "-1")
        value("(() => { const s = document.getElementById('zoom'); s.value = '2'; s.dispatchEvent(new Event('change')); })()")
        self.assertGreater(self.rectangle("#canvas")[3], height)
        value("document.getElementById('play').click()")
        self.assertEqual(value("document.getElementById('play').textContent"), "Stop")
        value("new Promise((done) => { const look = () => +document.getElementById('time').value >= 2 ? done() : setTimeout(look, 50); look(); })")
        value("document.getElementById('play').click()")
        self.assertEqual(self.browser.errors, [])

    def test_the_map_of_a_living_process(self):
        self.show("living.html")
        self.assertIn(f"python3 ({self.pid})", self.browser.value("document.querySelector('h1').textContent"))
        self.assertTrue(self.browser.value("document.getElementById('time').hidden"))
        self.assertIn("[heap]", self.browser.value("document.getElementById('region').textContent"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", type=pathlib.Path, required=True)
    options, rest = parser.parse_known_args()
    WHIMBREL = options.build.absolute() / "bin" / "whimbrel"
    if "Pages" in rest and browser.find() is None:
        print("SKIPPED: there is no chromium (scripts/setup browser)")
        sys.exit(77)
    unittest.main(argv=[sys.argv[0], *rest])
