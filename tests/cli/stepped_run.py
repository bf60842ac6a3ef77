"""A program under `whimbrel run` that takes a step when it is told to, for tests that change the run meanwhile."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

# Fills MIB MiB, says so, and for each line of input checks and changes every page, and forks a child that does the same.
PROGRAM = """
import os, sys
size = int(sys.argv[1]) << 20
data = bytearray(size)
def stamp(at, round): return (at >> 12) * 31 + round & 255
for at in range(0, size, 4096): data[at] = stamp(at, 0)
print("ready", flush=True)
for round, line in enumerate(sys.stdin):
    wrong = sum(data[at] != stamp(at, round) for at in range(0, size, 4096))
    child = os.fork()
    if child == 0: os._exit(sum(data[at] != stamp(at, round) for at in range(0, size, 4096)) != 0)
    wrong += os.waitpid(child, 0)[1] != 0
    for at in range(0, size, 4096): data[at] = stamp(at, round + 1)
    print("wrong", wrong, flush=True)
"""


class SteppedRun:
    """A program under `whimbrel run`, in a directory of its own for statistics."""

    def __init__(self, whimbrel, *options, size=64):
        self.whimbrel = whimbrel
        self.directory = tempfile.TemporaryDirectory(prefix="whimbrel-stepped-")
        self.environment = dict(os.environ, XDG_RUNTIME_DIR=self.directory.name)
        self.stats = pathlib.Path(self.directory.name) / "stats.json"
        self.process = subprocess.Popen([self.whimbrel, "run", *options, "--quiet", "--stats", self.stats, "--", "/usr/bin/python3", "-c", PROGRAM,
                                         str(size)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=self.environment)
        assert self.process.stdout.readline() == "ready\n"

    def ask(self, command, *arguments, pid=None):
        """What whimbrel COMMAND says about the run."""
        return subprocess.run([self.whimbrel, command, str(pid or self.process.pid), *arguments], capture_output=True, text=True, check=False,
                              timeout=90, env=self.environment)

    def budget(self, *arguments, pid=None):
        return self.ask("budget", *arguments, pid=pid)

    def device(self, *arguments, pid=None):
        return self.ask("device", *arguments, pid=pid)

    def round(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.process.stdout.readline()

    def program(self):
        return json.loads(self.budget("--json").stdout)["processes"][0]

    def end(self):
        self.process.stdin.close()
        status = self.process.wait(timeout=60)
        self.process.stdout.close()
        report = json.loads(self.stats.read_text())
        self.directory.cleanup()
        return status, report


class TopViewer:
    """`whimbrel top` in a terminal of its own, with the run picked."""

    def __init__(self, run):
        script = "import pty, os, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn([sys.argv[1], 'top', '--interval', '0.2'])))"
        self.process = subprocess.Popen([sys.executable, "-c", script, run.whimbrel], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        env=dict(run.environment, TERM="xterm"))
        self.seen = b""
        # Other runs may be under way on this machine: Tab until ours is picked.
        for _ in range(100):
            self.until("> run ")
            self.until(" --device")
            if f"> run {run.process.pid}:".encode() in self.seen:
                break
            self.press("\t")

    def until(self, text):
        while text.encode() not in self.seen:
            data = os.read(self.process.stdout.fileno(), 65536)
            assert data, self.seen
            self.seen += data

    def press(self, keys):
        self.seen = b""
        self.process.stdin.write(keys.encode())
        self.process.stdin.flush()

    def leave(self):
        """Its exit status."""
        self.press("q")
        while os.read(self.process.stdout.fileno(), 65536):
            pass
        self.process.stdin.close()
        self.process.stdout.close()
        return self.process.wait(timeout=30)
