#!/usr/bin/python3
"""Who looks at a managed program, or works beside it, from outside: debuggers, core dumps, stress-ng.

  outside_test.py --build build/release SUITE      SUITE: CoreDump, Debugger, Stress
"""

import argparse
import os
import pathlib
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import unittest

BUILD = None
PAGE = 4096
WORKING_SET = 64 << 20


def pattern(seed, index):
    mask = (1 << 64) - 1
    low = ((index + 1) * 0x9e3779b97f4a7c15 + seed * 0xc2b2ae3d27d4eb4f) & mask
    low ^= low >> 29
    return ((seed << 40) | (low & 0xffffffff)) & mask


def load_segments(core):
    """(address, bytes) of every segment of an ELF core that holds memory."""
    data = core.read_bytes()
    offset, = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    for i in range(count):
        kind, _, start, address, _, length = struct.unpack_from("<IIQQQQ", data, offset + i * size)
        if kind == 1 and length:
            yield address, memoryview(data)[start:start + length]


class CoreDump(unittest.TestCase):
    """What the dump of a managed program holds: what was in RAM; pages that were away are zeros there."""

    def test_holds_what_was_resident_and_nothing_wrong(self):
        if pathlib.Path("/proc/sys/kernel/core_pattern").read_text().strip() != "core":
            self.skipTest("core dumps do not go to the working directory here")
        with tempfile.TemporaryDirectory() as directory:
            subprocess.run([BUILD / "bin/whimbrel", "run", "--ram", "16M", "--", BUILD / "tests/hostile", "end", "dump"],
                           cwd=directory, timeout=120, check=False, capture_output=True,
                           preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CORE, (1 << 30, 1 << 30)))
            cores = list(pathlib.Path(directory).glob("core*"))
            self.assertEqual(len(cores), 1, "one core file, of the program")
            # Words of the pattern carry its seed in their upper half: find the longest run of pages that has it.
            held, zeros, wrong = 0, 0, 0
            for _, memory in load_segments(cores[0]):
                if len(memory) < WORKING_SET:
                    continue
                seed, first = self.find_pattern(memory)
                if seed is None:
                    continue
                for page in range(first, min(first + WORKING_SET // PAGE, len(memory) // PAGE)):
                    word, = struct.unpack_from("<Q", memory, page * PAGE)
                    if word == pattern(seed, (page - first) * PAGE // 8):
                        held += 1
                    elif not any(memory[page * PAGE:(page + 1) * PAGE]):
                        zeros += 1
                    else:
                        wrong += 1
            self.assertEqual(wrong, 0, "a page of the dump holds something else")
            self.assertGreater(held, (4 << 20) // PAGE, "what was resident is in the dump")
            self.assertGreater(zeros, (16 << 20) // PAGE, "what was away is zeros in the dump (docs/security.md says so)")
            self.assertLess(cores[0].stat().st_blocks * 512, 120 << 20, "the engine's own memory is not in the dump")

    @staticmethod
    def find_pattern(memory):
        """The seed of the pattern in this memory, and the page it begins with."""
        for page in range(len(memory) // PAGE):
            word, second = struct.unpack_from("<QQ", memory, page * PAGE)
            seed = word >> 40
            if not 0 < seed < 4096 or second >> 40 != seed:
                continue
            for first in range(page, -1, -1):  # which page of the pattern is this?
                if pattern(seed, (page - first) * PAGE // 8) == word:
                    return seed, first
        return None, 0


class Debugger(unittest.TestCase):
    def test_gdb_attaches_and_leaves(self):
        if shutil.which("gdb") is None:
            self.skipTest("gdb is not installed")
        with subprocess.Popen([BUILD / "bin/whimbrel", "run", "--ram", "16M", "--", BUILD / "tests/hostile", "huge-switch"],
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
            time.sleep(1)
            attached = 0
            for _ in range(3):
                children = subprocess.run(["pgrep", "-P", str(run.pid)], capture_output=True, text=True, check=False).stdout.split()
                if not children or run.poll() is not None:
                    break
                gdb = subprocess.run(["gdb", "-nx", "-batch", "-p", children[0], "-ex", "info threads", "-ex", "detach"],
                                     capture_output=True, text=True, timeout=120, check=False, stdin=subprocess.DEVNULL)
                if "ptrace: Operation not permitted" in gdb.stdout + gdb.stderr:
                    self.skipTest("attaching is not permitted here")
                attached += "whimbrel-fault" in gdb.stdout
            out, errors = run.communicate(timeout=300)
            self.assertEqual(run.returncode, 0, errors)
            self.assertIn("memory right with and without huge pages", out)
            self.assertGreater(attached, 0, "gdb saw the program with its engine")


class Stress(unittest.TestCase):
    def test_stress_ng_verifies_its_memory(self):
        if shutil.which("stress-ng") is None:
            self.skipTest("stress-ng is not installed; scripts/setup extra installs it")
        for method in ("flip", "galpat-0", "modulo-x", "walk-0d", "zero-one", "swap", "rand-sum", "prime-gray-0"):
            done = subprocess.run([BUILD / "bin/whimbrel", "run", "--ram", "24M", "--", "stress-ng", "--vm", "1", "--vm-bytes", "48M",
                                   "--vm-method", method, "--vm-ops", "40", "--verify", "--vm-keep", "--timeout", "60"],
                                  capture_output=True, text=True, timeout=280, check=False, stdin=subprocess.DEVNULL)
            text = done.stdout + done.stderr
            self.assertEqual(done.returncode, 0, f"{method}: {text}")
            self.assertNotIn("fail", text, method)


def main():
    global BUILD
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", type=pathlib.Path, required=True)
    parser.add_argument("suite")
    arguments = parser.parse_args()
    BUILD = arguments.build.resolve()
    os.environ.setdefault("LC_ALL", "C")
    suite = unittest.defaultTestLoader.loadTestsFromTestCase(globals()[arguments.suite])
    result = unittest.TextTestRunner(verbosity=2).run(suite)
    if result.skipped and len(result.skipped) == result.testsRun:
        print(result.skipped[0][1])
        sys.exit(77)
    sys.exit(0 if result.wasSuccessful() else 1)


if __name__ == "__main__":
    main()
