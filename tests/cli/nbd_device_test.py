#!/usr/bin/python3
"""`whimbrel run --device nbd:URI` from outside: real servers that go away, stop, come back, and refusals.

  nbd_device_test.py --build build/release [unittest arguments]

The servers are nbdkit's (Debian package nbdkit).
"""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

import cli_test
from composite_device_test import GENERATIONS

# Fills memory, then reads and checks it again and again, telling how far it is; ends when its input does.
READER = """
import os, select, sys, zlib
step, count = 65536, 1024
data = bytearray(step * count)
for i in range(count):
    data[i * step:(i + 1) * step] = os.urandom(step)
sums = [zlib.crc32(data[i * step:(i + 1) * step]) for i in range(count)]
print("filled", flush=True)
rounds = 0
while rounds < 2 or not select.select([0], [], [], 0)[0]:
    for i in range(count):
        if zlib.crc32(data[i * step:(i + 1) * step]) != sums[i]:
            sys.exit(f"block {i} is wrong")
        if i % 16 == rounds % 16:
            data[i * step] ^= 1
            sums[i] = zlib.crc32(data[i * step:(i + 1) * step])
    rounds += 1
    print("round", flush=True)
print("all right")
"""


class Server:
    def __init__(self, test, *arguments):
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="whimbrel-nbd-", dir="/var/tmp"))
        test.addCleanup(shutil.rmtree, self.directory, ignore_errors=True)
        self.socket = self.directory / "socket"
        self.uri = f"nbd+unix:///?socket={self.socket}"
        self.arguments = arguments
        self.process = None
        self.start()
        test.addCleanup(self.kill)

    def start(self):
        self.socket.unlink(missing_ok=True)
        self.process = subprocess.Popen(["nbdkit", "-f", "--exit-with-parent", "-U", str(self.socket), *self.arguments],
                                        stderr=subprocess.DEVNULL)
        end = time.monotonic() + cli_test.LIMIT
        while not self.socket.exists() and self.process.poll() is None and time.monotonic() < end:
            time.sleep(0.01)

    def kill(self):
        self.process.kill()
        self.process.wait()


class NbdTest(cli_test.CommandTest):
    def file_server(self):
        export = tempfile.NamedTemporaryFile(prefix="whimbrel-export-", dir="/var/tmp")
        self.addCleanup(export.close)
        export.truncate(1 << 30)
        return Server(self, "file", export.name)

    def begin_reader(self, spec):
        command = [cli_test.BUILD / "bin" / "whimbrel", "run", "--ram", "24M", "--device", spec, "--",
                   "/usr/bin/python3", "-c", READER]
        run = subprocess.Popen([str(part) for part in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
        self.addCleanup(run.kill)
        self.assertEqual(run.stdout.readline(), "filled\n")
        self.assertEqual(run.stdout.readline(), "round\n")
        return run

    def assert_ends_well(self, run):
        out, errors = run.communicate(input="end\n", timeout=cli_test.LIMIT)
        self.assertEqual(run.returncode, 0, errors)
        self.assertTrue(out.endswith("all right\n"), out + errors)
        return errors


class Programs(NbdTest):
    def test_fill(self):
        server = Server(self, "memory", "512M")
        done = self.call("run", "--ram", "32M", "--device", "nbd:" + server.uri, "--", cli_test.BUILD / "tests" / "fill", 96,
                         "random")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(done.stdout, "96 blocks of 1048576 bytes right\n")
        self.assertRegex(done.stderr, r"moved +[0-9.]+ [MG]iB out, [0-9.]+ [MG]iB home")
        self.assertNotRegex(done.stderr, r"full|fail|error|lost")

    def test_generations_of_processes(self):
        server = Server(self, "memory", "512M")
        done = self.call("run", "--ram", "32M", "--device", "nbd:" + server.uri, "--", "/usr/bin/python3", "-c", GENERATIONS)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(done.stdout, "all generations are right\n")

    def test_programs_side_by_side(self):
        server = Server(self, "memory", "512M")
        fill = str(cli_test.BUILD / "tests" / "fill")
        done = self.call("run", "--ram", "16M", "--device", f"nbd:{server.uri},compress=lz4,encrypt=on", "--", "/bin/sh", "-c",
                         f"{fill} 40 random & {fill} 40 map & {fill} 40 random & wait")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(done.stdout, "40 blocks of 1048576 bytes right\n" * 3)

    def test_two_runs_one_after_the_other_on_one_export(self):
        server = Server(self, "memory", "256M")
        for _ in range(2):
            done = self.call("run", "--ram", "24M", "--device", "nbd:" + server.uri, "--", cli_test.BUILD / "tests" / "fill",
                             40, "random")
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertNotIn("marked as in use", done.stderr)


class Servers(NbdTest):
    def test_killed_and_started_again(self):
        server = self.file_server()
        run = self.begin_reader("nbd:" + server.uri)
        for _ in range(3):
            server.kill()
            time.sleep(0.3)
            server.start()
            run.stdout.readline()
        errors = self.assert_ends_well(run)
        self.assertIn("connection lost", errors)
        self.assertIn("the server is back after", errors)

    def test_stopped_for_ten_seconds(self):
        server = Server(self, "memory", "256M")
        run = self.begin_reader("nbd:" + server.uri)
        server.process.send_signal(signal.SIGSTOP)
        time.sleep(10)
        server.process.send_signal(signal.SIGCONT)
        self.assert_ends_well(run)

    def test_gone_for_good(self):
        server = Server(self, "memory", "256M")
        run = self.begin_reader(f"nbd:{server.uri},timeout=2")
        server.kill()
        _, errors = run.communicate(timeout=cli_test.LIMIT)
        self.assertEqual(run.returncode, -signal.SIGBUS, errors)
        self.assertIn("connection lost", errors)

    def test_the_device_process_is_killed(self):
        server = Server(self, "memory", "256M")
        run = self.begin_reader("nbd:" + server.uri)
        pids = [pid for pid in os.listdir("/proc") if pid.isdigit() and self.is_our_device_process(int(pid), server)]
        self.assertEqual(len(pids), 1)
        os.kill(int(pids[0]), signal.SIGKILL)
        _, errors = run.communicate(timeout=cli_test.LIMIT)
        self.assertEqual(run.returncode, -signal.SIGBUS, errors)
        self.assertIn("the device process has ended", errors)

    @staticmethod
    def is_our_device_process(pid, server):
        """It is connected to the server's socket: its end is listed under the socket's name at the other one's only, so the
        program and its moment of birth tell."""
        try:
            if pathlib.Path(f"/proc/{pid}/comm").read_text() != "whimbrel-device\n":
                return False
            exe = os.readlink(f"/proc/{pid}/exe")
            return exe == str(cli_test.BUILD / "bin" / "whimbrel-device") and \
                os.stat(f"/proc/{pid}").st_ctime >= os.stat(server.directory).st_mtime - 0.01
        except OSError:
            return False

    def test_one_leg_of_a_mirror_dies(self):
        first, second = Server(self, "memory", "256M"), Server(self, "memory", "256M")
        run = self.begin_reader(f"mirror:nbd:{first.uri},timeout=2,nbd:{second.uri}")
        first.kill()
        for _ in range(2):
            self.assertEqual(run.stdout.readline(), "round\n")
        self.assert_ends_well(run)

    def test_at_the_end_of_a_chain(self):
        server = Server(self, "memory", "256M")
        run = self.begin_reader(f"chain:lz4@8M,nbd:{server.uri}")
        self.assert_ends_well(run)


class Refusals(NbdTest):
    def refused(self, spec, *words):
        done = self.call("run", "--ram", "64M", "--device", spec, "--", *self.marker())
        self.assert_refused(done, *words)

    def test_no_server(self):
        self.refused("nbd:nbd+unix:///?socket=/no/such/socket", "No such file", "check the address")
        self.refused("nbd://127.0.0.1:1/export", "refused")

    def test_no_uri(self):
        self.refused("nbd:", "names no server")
        self.refused("nbd:/dev/sda", "is no NBD URI")

    def test_small_and_read_only(self):
        self.refused("nbd:" + Server(self, "memory", "1M").uri, "at least 4 MiB")
        self.refused("nbd:" + Server(self, "-r", "memory", "64M").uri, "read-only")

    def test_something_is_there(self):
        self.refused("nbd:" + Server(self, "pattern", "64M").uri, "read-only|force=on")

    def test_in_a_mirror(self):
        server = Server(self, "memory", "64M")
        self.refused(f"mirror:nbd:{server.uri},nbd:nbd+unix:///?socket=/no/such", "No such file")


def main():
    arguments = sys.argv[1:]
    if arguments[:1] != ["--build"] or len(arguments) < 2:
        sys.exit(__doc__)
    cli_test.BUILD = pathlib.Path(arguments[1]).resolve()
    unittest.main(argv=[sys.argv[0], *arguments[2:]], verbosity=2)


if __name__ == "__main__":
    main()
