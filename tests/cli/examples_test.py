#!/usr/bin/python3
"""The commands that README.md, docs/ and --help show are run as they stand, but for the program and the process number.

  examples_test.py --build BUILD
"""

import argparse
import os
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
WHIMBREL = None
WORK = "data = bytearray(b'x' * (24 << 20)); print(sum(data[::4096]))"


def shown():
    """(where, words) of every command line in the documents and in the help of each command."""
    texts = [(path.name, path.read_text()) for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))]
    commands = ("run", "watch", "doctor", "top", "budget", "device", "replay", "report", "map")
    for command in commands:
        done = subprocess.run([WHIMBREL, command, "--help"], capture_output=True, text=True, check=True, timeout=60)
        texts.append((f"whimbrel {command} --help", done.stdout))
    for where, text in texts:
        for line in re.findall(r"(?m)^(?:    |  )(?:build/release/bin/)?whimbrel (.*)$", text):
            line = re.split(r"  +|#", line)[0]  # what stands behind is an explanation
            words = shlex.split(line.replace("$(pidof -s python3)", "PID").replace("$(pidof python3)", "PID"), comments=True)
            if words and words[0] in commands and not re.search(r"\[|\||…|SPEC|FILE", line):
                yield where, words


class Examples(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.temporary = tempfile.TemporaryDirectory(prefix="whimbrel-examples-")
        cls.directory = cls.temporary.name
        cls.living = subprocess.Popen([WHIMBREL, "run", "--ram", "64M", "--quiet", "--", "/usr/bin/python3", "-c", "import sys; print('ready', flush=True); sys.stdin.read()"],
                                      stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert cls.living.stdout.readline() == b"ready\n"
        subprocess.run([WHIMBREL, "run", "--ram", "8M", "--quiet", "--events", "run.events", "--", "/usr/bin/python3", "-c", WORK],
                       cwd=cls.directory, check=True, timeout=100, stdout=subprocess.DEVNULL)

    @classmethod
    def tearDownClass(cls):
        cls.living.stdin.close()
        cls.living.stdout.close()
        cls.living.wait(timeout=60)
        cls.temporary.cleanup()

    def prepared(self, words):
        words = ["run.events" if word == "EVENTS" else str(self.living.pid) if word in ("PID", "4711") else word for word in words]
        words = [re.sub(r"/var/(tmp|lib/node_exporter)|/disk\d|/mnt/nvme", self.directory, word) for word in words]
        if words[0] in ("run", "watch"):
            end = words.index("--") if "--" in words else next((i for i, word in enumerate(words) if word.startswith(("PROGRAM", "./"))), len(words))
            words = ["another.events" if word in ("run.events", "job.events") else word for word in words]
            return words[:end] + ["--", "/bin/true"]
        if words[0] == "top":
            return [*words, "--once"] if "--once" not in words else words
        if words[0] == "doctor" and len(words) > 1 and not os.path.exists(words[1]):
            return None
        return words

    def test_every_command_that_is_shown_works(self):
        examples, ran = list(shown()), set()
        for where, words in examples:
            command = self.prepared(words)
            if command is None or tuple(command) in ran:
                continue
            ran.add(tuple(command))
            with self.subTest(where=where, command=" ".join(words)):
                done = subprocess.run([WHIMBREL, *command], cwd=self.directory, capture_output=True, text=True, check=False, timeout=100)
                if "--sample-stacks" in " ".join(command) and done.returncode == 125:
                    continue  # no performance events here: it says so, and another test looks at that
                if "nbd:" in " ".join(command):  # no such server here: it says so, and what next
                    self.assertEqual(done.returncode, 2, done.stdout + done.stderr)
                    self.assertIn("next: ", done.stderr)
                    continue
                allowed = (0, 1) if command[0] in ("doctor", "budget") else (0,)
                self.assertIn(done.returncode, allowed, done.stdout + done.stderr)
        self.assertGreater(len(ran), 20)
        self.assertEqual({command[0] for command in ran}, {"run", "watch", "doctor", "top", "budget", "device", "replay", "report", "map"})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", type=pathlib.Path, required=True)
    options, rest = parser.parse_known_args()
    WHIMBREL = str(options.build.absolute() / "bin" / "whimbrel")
    unittest.main(argv=[sys.argv[0], *rest])
