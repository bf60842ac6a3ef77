#!/usr/bin/python3
"""scripts/docs makes a site whose links all lead somewhere, that needs no network, and that fits a browser.

  site_test.py Links | Pages        needs cmark-gfm, Pages also chromium; status 77 and the reason when they are not there
"""

import html.parser
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests" / "cli"))
import browser  # noqa: E402  pylint: disable=wrong-import-position


class Page(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.links, self.resources, self.ids, self.repeated = [], [], set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if "id" in attributes:
            if attributes["id"] in self.ids:
                self.repeated.append(attributes["id"])
            self.ids.add(attributes["id"])
        if tag == "a" and "href" in attributes:
            self.links.append(attributes["href"])
        if "src" in attributes or tag == "link":
            self.resources.append(attributes.get("src") or attributes.get("href"))


class Built(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.temporary = tempfile.TemporaryDirectory(prefix="whimbrel-docs-")
        cls.site = pathlib.Path(cls.temporary.name) / "site"
        done = subprocess.run([ROOT / "scripts" / "docs", "--output", cls.site], capture_output=True, text=True, check=False, timeout=100)
        assert done.returncode == 0, done.stdout + done.stderr
        cls.pages = {path: Page(path.read_text()) for path in cls.site.rglob("*.html")}

    @classmethod
    def tearDownClass(cls):
        cls.temporary.cleanup()


class Links(Built):
    def test_every_link_leads_somewhere(self):
        broken = []
        for path, page in self.pages.items():
            for link in page.links + page.resources:
                if re.match(r"https?:", link):
                    continue
                name, _, anchor = link.partition("#")
                there = (path.parent / name).resolve() if name else path
                if not there.is_file():
                    broken.append(f"{path.relative_to(self.site)}: {link}")
                elif anchor and anchor not in self.pages[there].ids:
                    broken.append(f"{path.relative_to(self.site)}: {link}: no such place in that page")
        self.assertEqual(broken, [])

    def test_it_needs_no_network(self):
        for path, page in self.pages.items():
            self.assertEqual([one for one in page.resources if re.match(r"[a-z]+:|//", one)], [], path)
            self.assertNotIn("<script", path.read_text().split("<main>")[0])

    def test_anchors_are_single(self):
        for path, page in self.pages.items():
            self.assertEqual(page.repeated, [], path)

    def test_every_page_can_be_reached_from_the_first(self):
        seen, waiting = set(), [self.site / "index.html"]
        while waiting:
            path = waiting.pop()
            if path in seen or path not in self.pages:
                continue
            seen.add(path)
            waiting += [(path.parent / link.partition("#")[0]).resolve() for link in self.pages[path].links if not re.match(r"https?:|#", link)]
        self.assertEqual({path.relative_to(self.site) for path in set(self.pages) - seen}, set())

    def test_the_reference_has_every_function_of_the_c_interface(self):
        header = (ROOT / "include" / "whimbrel" / "whimbrel.h").read_text()
        functions = set(re.findall(r"\b(whimbrel_\w+)\s*\(", re.sub(r"/\*.*?\*/", "", header, flags=re.S)))
        self.assertGreater(len(functions), 15)
        self.assertLessEqual(functions, self.pages[self.site / "reference" / "whimbrel_h.html"].ids)

    def test_a_link_that_leads_nowhere_is_an_error(self):
        with tempfile.TemporaryDirectory(prefix="whimbrel-docs-") as directory:
            tree = pathlib.Path(directory) / "tree"
            for part in ("docs", "scripts", "include", "examples", "src", "tests/open.txt", "README.md", "ARCHITECTURE.md", "CHANGELOG.md"):
                (tree / part).parent.mkdir(parents=True, exist_ok=True)
                (shutil.copytree if (ROOT / part).is_dir() else shutil.copyfile)(ROOT / part, tree / part)
            with open(tree / "docs" / "stacks.md", "a", encoding="utf-8") as file:
                file.write("\nSee [that](no-such-page.md).\n")
            done = subprocess.run([tree / "scripts" / "docs"], capture_output=True, text=True, check=False, timeout=100)
            self.assertEqual(done.returncode, 1)
            self.assertIn("docs/stacks.md: there is no no-such-page.md", done.stdout)


class Pages(Built):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.browser = browser.Browser()

    @classmethod
    def tearDownClass(cls):
        cls.browser.close()
        super().tearDownClass()

    def test_each_page_fits(self):
        value = self.browser.value
        for name in ("index.html", "readme.html", "alternatives.html", "stacks.html", "reference/whimbrel_h.html", "reference/driver_hpp.html"):
            self.browser.open(self.site / name)
            self.assertFalse(value("document.documentElement.scrollWidth > innerWidth"), f"{name}: nothing runs out of the page")
            self.assertTrue(value("[...document.images].every((i) => i.complete && i.naturalWidth > 0)"), name)
            self.assertGreater(value("document.querySelector('h1').getBoundingClientRect().height"), 0)

    def test_the_first_page_says_what_it_is_at_once(self):
        self.browser.open(self.site / "index.html")
        value = self.browser.value
        self.assertIn("less memory than it needs", value("document.querySelector('h1').textContent"))
        self.assertLess(value("document.images[0].getBoundingClientRect().top"), 900, "the picture is on the first screen")
        link = value("document.querySelector('main a[href=\"stacks.html\"]').href")
        self.browser.open(link.removeprefix("file://"))
        self.assertEqual(value("document.title"), "Stacks: which lines wait for memory")

    def test_a_narrow_screen(self):
        self.addCleanup(self.browser.call, "Emulation.setDeviceMetricsOverride", width=1200, height=900, deviceScaleFactor=1, mobile=False)
        self.browser.call("Emulation.setDeviceMetricsOverride", width=400, height=800, deviceScaleFactor=1, mobile=False)
        self.browser.open(self.site / "index.html")
        self.assertFalse(self.browser.value("document.documentElement.scrollWidth > innerWidth"))


if __name__ == "__main__":
    missing = [name for name, there in (("cmark-gfm (scripts/setup docs)", shutil.which("cmark-gfm")), ("chromium (scripts/setup browser)", browser.find() or "Pages" not in sys.argv)) if not there]
    if missing:
        print("SKIPPED: there is no " + " and no ".join(missing))
        sys.exit(77)
    unittest.main()
