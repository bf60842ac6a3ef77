#!/usr/bin/python3
"""`whimbrel run --device file:...` from outside: real programs, refusals, full disks, damaged blocks.

  file_device_test.py --build build/release [unittest arguments]
"""

import glob
import hashlib
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

import cli_test

MAGIC = (0x7768696D62726C21).to_bytes(8, "little")


class File(cli_test.CommandTest):
    def setUp(self):
        super().setUp()
        # A real disk: /tmp may be memory.
        self.store = pathlib.Path(tempfile.mkdtemp(prefix="whimbrel-store-", dir="/var/tmp"))
        self.addCleanup(shutil.rmtree, self.store, ignore_errors=True)

    def fill_command(self, megabytes, how="map"):
        return [cli_test.BUILD / "tests" / "fill", megabytes, how]

    def assert_empty(self):
        self.assertEqual(os.listdir(self.store), [], "something was left behind")

    def assert_fills(self, spec, *words):
        done = self.call("run", "--ram", "32M", "--device", spec, "--", *self.fill_command(96, "random"))
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(done.stdout, "96 blocks of 1048576 bytes right\n")
        self.assertRegex(done.stderr, r"moved +[0-9.]+ [MG]iB out, [0-9.]+ [MG]iB home")
        for word in words:
            self.assertRegex(done.stderr, word)
        self.assert_empty()
        return done

    # ---- it works ----
    def test_a_directory(self):
        done = self.assert_fills(f"file:{self.store}")
        self.assertNotRegex(done.stderr, r"full|fail|error")

    def test_a_new_name(self):
        self.assert_fills(f"file:{self.store}/new,size=1G")

    def test_a_relative_name(self):
        done = self.call("run", "--ram", "32M", "--device", "file:here", "--", *self.fill_command(64))
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn(f"file:{self.directory}/here", done.stderr)

    def test_through_the_page_cache_without_rings(self):
        self.assert_fills(f"file:{self.store},direct=off,ring=off")

    def test_compressed(self):
        self.assert_fills(f"file:{self.store},compress=zstd,extent=16K")

    def test_encrypted(self):
        self.assert_fills(f"file:{self.store},encrypt=on")
        self.assert_fills(f"file:{self.store},encrypt=on,compress=lz4,direct=off,ring=off")

    def test_sort(self):
        rows = random.Random(5)
        text = "".join(f"{rows.getrandbits(64):016x} {i}\n" for i in range(400_000))
        source = self.directory / "rows"
        source.write_text(text)
        command = ["sort", "--parallel=1", "-S", "100M", str(source)]
        environment = dict(os.environ, LC_ALL="C")
        plain = subprocess.run(command, capture_output=True, check=True, env=environment)
        full = [cli_test.BUILD / "bin" / "whimbrel", "run", "--ram", "24M", "--device", f"file:{self.store}", "--", *command]
        managed = subprocess.run([str(part) for part in full], capture_output=True, check=True, env=environment,
                                 timeout=cli_test.LIMIT)
        self.assertEqual(hashlib.sha256(managed.stdout).digest(), hashlib.sha256(plain.stdout).digest())
        self.assertRegex(managed.stderr.decode(), r"moved +[0-9.]+ [MG]iB out")
        self.assert_empty()

    @unittest.skipUnless(shutil.which("sqlite3"), "sqlite3 is not installed")
    def test_sqlite(self):
        script = """pragma cache_size=-60000; create table t(a integer primary key, b text);
          insert into t select value, hex(value * 2654435761 % 4294967296) || printf('%060d', value)
            from generate_series(1, 100000);
          create index i on t(b); select count(*), sum(length(b)), min(b), max(b) from t where b > '4';
          update t set b = b || 'x' where a % 7 = 0; select sum(a * length(b)) from t;"""
        plain = subprocess.run(["sqlite3"], input=script, capture_output=True, text=True, check=True)
        managed = self.call("run", "--ram", "12M", "--device", f"file:{self.store},compress=lz4", "--", "sqlite3", input=script)
        self.assertEqual(managed.returncode, 0, managed.stderr)
        self.assertEqual(managed.stdout, plain.stdout)
        self.assertRegex(managed.stderr, r"moved +[0-9.]+ [MG]iB out")
        self.assert_empty()

    def test_children_and_programs_that_close_everything(self):
        program = """
import hashlib, os, sys
def block(i): return hashlib.sha256(b"%d" % i).digest() * 16384
blocks = [block(i) for i in range(96)]
def check():
    for i, b in enumerate(blocks): assert b == block(i), i
def child(deeper):
    check()
    own = [block(1000 + i) for i in range(64)]
    if deeper: run(lambda: child(False))
    assert all(b == block(1000 + i) for i, b in enumerate(own))
def run(body):
    pid = os.fork()
    if pid == 0:
        try: body()
        except BaseException as error: print("child:", repr(error), flush=True); os._exit(1)
        os._exit(0)
    for i in range(0, 96, 5): blocks[i] = block(i)
    assert os.waitpid(pid, 0)[1] == 0
os.closerange(3, 4096)
run(lambda: child(True))
run(lambda: child(False))
check()
print("right")
"""
        done = self.call("run", "--ram", "32M", "--device", f"file:{self.store}", "--", "/usr/bin/python3", "-c", program)
        self.assertEqual(done.stdout, "right\n", done.stderr)
        self.assertEqual(done.returncode, 0)
        self.assert_empty()

    # ---- it fails, and says so ----
    def refused(self, spec, *words):
        self.assert_refused(self.call("run", "--ram", "64M", "--device", spec, "--", *self.marker()), r"--device", *words)

    def test_no_path(self):
        self.refused("file", r"names no place")

    def test_a_directory_that_is_not_there(self):
        self.refused("file:/not/here/store", r"/not/here/store", r"no such file or directory")

    def test_a_file_that_exists(self):
        precious = self.store / "precious"
        precious.write_text("text")
        self.refused(f"file:{precious}", r"precious exists already", r"force=on")
        self.assertEqual(precious.read_text(), "text")

    def test_something_else(self):
        self.refused("file:/dev/zero", r"/dev/zero is neither a file, a directory nor a block device")

    def test_a_mounted_disk(self):
        mounts = pathlib.Path("/proc/mounts").read_text().split("\n")
        disks = [line.split()[0] for line in mounts if line.startswith("/dev/") and os.path.exists(line.split()[0])]
        if not disks or os.geteuid() != 0:
            self.skipTest("no mounted disk to be seen, or not root")
        # Where a container hides its disks they cannot even be opened.
        self.refused(f"file:{disks[0]}", r"is mounted, or in use|cannot be opened: operation not permitted")

    def test_full_by_its_size(self):
        done = self.assert_fills(f"file:{self.store},size=16M", r"the device is full: pages stay in RAM", r"next: ")
        self.assertEqual(len(re.findall(r"the device is full", done.stderr)), 1, "once is enough")

    def test_full_disk(self):
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24M", "none", self.store], capture_output=True,
                          check=False).returncode != 0:
            self.skipTest("may not mount a small file system")
        self.addCleanup(subprocess.run, ["umount", self.store], check=False)
        self.assert_fills(f"file:{self.store}", r"the device is full \(writing to the file: no space left\)", r"next: ")

    def test_damaged_block(self):
        command = [str(cli_test.BUILD / "bin" / "whimbrel"), "run", "--ram", "32M", "--device", f"file:{self.store}", "--",
                   str(cli_test.BUILD / "tests" / "count-bad-pages"), "96"]
        program = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.addCleanup(program.kill)
        self.assertEqual(program.stdout.readline(), "ready\n")
        damaged = self.damage_a_page()
        if damaged == 0:
            program.communicate("go\n", timeout=cli_test.LIMIT)
            self.skipTest("the engine's descriptors are not to be seen from here (not the same user?)")
        out, err = program.communicate("go\n", timeout=cli_test.LIMIT)
        self.assertEqual(out, "1 bad, 0 wrong\n", err)
        self.assertRegex(err, r"failed to give contents back \(the file does not hold what was stored\): that access got SIGBUS")
        self.assertRegex(err, r"device errors")

    def damage_a_page(self):
        """Changes a byte of a page in the store of the running program; the number of stores it found."""
        stores = set()
        for link in glob.glob("/proc/[0-9]*/task/[0-9]*/fd/*"):
            try:
                if os.readlink(link).startswith(str(self.store)):
                    stores.add(link)
            except OSError:
                continue
        for link in stores:
            fd = os.open(link, os.O_RDWR)
            end = os.lseek(fd, os.lseek(fd, 0, os.SEEK_DATA), os.SEEK_HOLE)
            for at in range(end // 2 // 4096 * 4096, end, 4096):
                if os.pread(fd, 8, at) != MAGIC:
                    continue
                byte = os.pread(fd, 1, at + 2000)[0]
                os.pwrite(fd, bytes([byte ^ 1]), at + 2000)
                os.close(fd)
                return len(stores)
            os.close(fd)
        return 0


def main():
    arguments = sys.argv[1:]
    if arguments[:1] != ["--build"] or len(arguments) < 2:
        sys.exit(__doc__)
    cli_test.BUILD = pathlib.Path(arguments[1]).resolve()
    unittest.main(argv=[sys.argv[0], *arguments[2:]], verbosity=2)


if __name__ == "__main__":
    main()
