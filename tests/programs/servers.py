"""The servers of the matrix. Each has a client that fills it, checks it, and prints what must be identical in every run.

The server runs plain or managed and is watched; the client is this process, and never managed.
"""

import pathlib
import random
import shutil
import socket
import subprocess
import time

import watch


class ServerFailed(RuntimeError):
    """The client gave up; the message holds how the server ended and what it said."""

    def __init__(self, error, outcome):
        last = outcome.errors.decode(errors="replace").strip()[-800:]
        said = outcome.output.decode(errors="replace").strip()[-800:]
        super().__init__(f"{error}; the server ended with {outcome.ending}\n{said}\n{last}")


class Lines:
    """A buffered line protocol over a Unix socket."""

    def __init__(self, path, seconds):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(seconds)
        self.socket.connect(str(path))
        self.reader = self.socket.makefile("rb", buffering=1 << 18)

    def send(self, data):
        self.socket.sendall(data)

    def line(self):
        line = self.reader.readline()
        if not line.endswith(b"\r\n"):
            raise RuntimeError("the server closed the connection")
        return line[:-2]

    def exactly(self, count):
        data = self.reader.read(count)
        if len(data) != count:
            raise RuntimeError("the server closed the connection")
        return data

    def close(self):
        self.reader.close()
        self.socket.close()


def connect(path, running, seconds):
    """Connects to a server that is starting; raises when it has ended instead."""
    def ready():
        if running.process.poll() is not None:
            raise RuntimeError("the server ended at the start: " + running.errors_so_far().decode(errors="replace"))
        try:
            return Lines(path, seconds)
        except (FileNotFoundError, ConnectionRefusedError):
            return None
    box = []
    watch.wait_until(lambda: box.append(ready()) or box[-1] is not None, seconds, f"no server at {path}")
    return box[-1]


# --- redis ---

class Redis:
    """Enough of a redis client for filling, saving and digests."""

    def __init__(self, path, running, seconds):
        self.lines = connect(path, running, seconds)

    @staticmethod
    def encode(*words):
        parts = [b"*%d\r\n" % len(words)]
        for word in words:
            word = word if isinstance(word, bytes) else str(word).encode()
            parts.append(b"$%d\r\n%b\r\n" % (len(word), word))
        return b"".join(parts)

    def reply(self):
        line = self.lines.line()
        kind, rest = line[:1], line[1:]
        if kind == b"-":
            raise RuntimeError("redis: " + rest.decode())
        if kind == b"$":
            if rest == b"-1":
                return None
            data = self.lines.exactly(int(rest) + 2)[:-2]
            return data
        return int(rest) if kind == b":" else rest

    def call(self, *words):
        self.lines.send(self.encode(*words))
        return self.reply()

    def pipeline(self, commands):
        batch = [self.encode(*command) for command in commands]
        self.lines.send(b"".join(batch))
        return [self.reply() for _ in batch]

    def info(self, section, field):
        for line in self.call("INFO", section).decode().split("\r\n"):
            if line.startswith(field + ":"):
                return line[len(field) + 1:]
        raise RuntimeError(f"redis: no {field} in INFO {section}")


def _redis_value(number, version):
    """About 1 kB, a third of it different in every value."""
    seed = number * 2654435761 + version * 40503
    return b"".join(b"%016x field %d of record %d;" % ((seed * (k + 1) * 0x9E3779B97F4A7C15) & (2**64 - 1), k, number)
                    for k in range(24))


def _redis_fill(client, numbers, version):
    batch = []
    for number in numbers:
        if number % 10 == 0:
            value = _redis_value(number, version)
            batch.append(("HSET", f"hash:{number}", "a", value[:300], "b", value[300:], "v", version))
        else:
            batch.append(("SET", f"key:{number}", _redis_value(number, version)))
        if len(batch) == 200:
            client.pipeline(batch)
            batch = []
    if batch:
        client.pipeline(batch)


def _redis_wait_for_save(client, seconds):
    watch.wait_until(lambda: client.info("persistence", "rdb_bgsave_in_progress") == "0", seconds, "BGSAVE never ended")
    status = client.info("persistence", "rdb_last_bgsave_status")
    if status != "ok":
        raise RuntimeError("BGSAVE failed: " + status)


def _redis_command(work, socket_name):
    return ["redis-server", "--port", "0", "--unixsocket", work / socket_name, "--dir", work, "--save", "",
            "--appendonly", "no", "--enable-debug-command", "yes", "--loglevel", "warning",
            "--rdbchecksum", "yes", "--rdb-save-incremental-fsync", "no", "--timeout", "0"]


def _redis_digest_of_dump(tools, work, dump, limit):
    """Digest of a dump as an unmanaged server reads it."""
    shutil.copy(work / dump, work / "dump.rdb")
    (work / "second.sock").unlink(missing_ok=True)
    running = watch.Running(tools, _redis_command(work, "second.sock"), cwd=work, limit=limit)
    try:
        client = Redis(work / "second.sock", running, limit)
        watch.wait_until(lambda: client.info("persistence", "loading") == "0", limit, "the dump never loaded")
        digest = client.call("DEBUG", "DIGEST")
        client.lines.send(Redis.encode("SHUTDOWN", "NOSAVE"))
        return digest
    finally:
        if running.finish().exit_status != 0:
            raise RuntimeError("the unmanaged server that reads the dump failed")


class RedisWorkload:
    """Fill, BGSAVE while everything is being overwritten, BGSAVE again; both dumps must equal the data."""

    name = "redis"
    limit = 180
    packages = "redis-server"

    def missing(self):
        if shutil.which("redis-server") is None:
            return f"redis-server is not installed (apt-get install {self.packages})"
        return None

    def prepare(self, data, scale):
        pass

    def run(self, tools, data, work, scale, limit, **budget):
        count = {"ci": 15_000, "full": 800_000}[scale]
        running = watch.Running(tools, _redis_command(work, "redis.sock"), cwd=work, limit=limit,
                                env=watch.programs_environment(), **budget)
        said = []
        try:
            client = Redis(work / "redis.sock", running, limit)
            _redis_fill(client, range(count), 1)
            first = client.call("DEBUG", "DIGEST")
            client.call("BGSAVE")
            # The child reads everything while the parent writes everything.
            _redis_fill(client, range(0, count, 3), 2)
            client.pipeline([("DEL", f"key:{number}") for number in range(1, count, 10)])
            _redis_wait_for_save(client, limit)
            (work / "dump.rdb").rename(work / "first.rdb")
            second = client.call("DEBUG", "DIGEST")
            client.call("BGSAVE")
            _redis_wait_for_save(client, limit)
            (work / "dump.rdb").rename(work / "second.rdb")
            wrong = 0
            for number in range(2, count, 97):
                if number % 10 not in (0, 1):
                    wrong += client.call("GET", f"key:{number}") != _redis_value(number, 2 if number % 3 == 0 else 1)
            said += [f"digest after filling {first.decode()}", f"digest after rewriting {second.decode()}",
                     f"{wrong} wrong values"]
            client.lines.send(Redis.encode("SHUTDOWN", "NOSAVE"))
        except (RuntimeError, OSError) as error:
            running.stop()
            raise ServerFailed(error, running.finish()) from error
        outcome = running.finish()
        for dump, digest in (("first.rdb", first), ("second.rdb", second)):
            same = _redis_digest_of_dump(tools, work, dump, limit) == digest
            said.append(f"{dump} {'equals' if same else 'DIFFERS FROM'} the data it was made of")
        outcome.output = ("\n".join(said) + "\n").encode()
        return outcome

    @staticmethod
    def accept(output):
        """What must hold of the output even in the plain run."""
        return b"DIFFERS" not in output and b"\n0 wrong values" in output


# --- memcached ---

def _memcached_value(number, version):
    return b"".join(b"%d:%d:%016x " % (number, version, (number * k * 0x9E3779B97F4A7C15) & (2**64 - 1))
                    for k in range(1, 2 + number % 60))


def _memcached_set(lines, numbers, version):
    batch = []
    for number in numbers:
        value = _memcached_value(number, version)
        batch.append(b"set k%d 0 0 %d\r\n%b\r\n" % (number, len(value), value))
    lines.send(b"".join(batch))
    for _ in batch:
        if lines.line() != b"STORED":
            raise RuntimeError("memcached did not store a value")


def _memcached_get(lines, numbers):
    """Values of the keys that are there, by number."""
    lines.send(b"get " + b" ".join(b"k%d" % number for number in numbers) + b"\r\n")
    found = {}
    while (line := lines.line()) != b"END":
        _, key, _, length = line.split()
        found[int(key[1:])] = lines.exactly(int(length) + 2)[:-2]
    return found


class MemcachedWorkload:
    """Sets, overwrites, deletes and checks every value it gets; nothing may be wrong and nothing missing."""

    name = "memcached"
    limit = 120
    packages = "memcached"

    def missing(self):
        if shutil.which("memcached") is None:
            return f"memcached is not installed (apt-get install {self.packages})"
        return None

    def prepare(self, data, scale):
        pass

    def run(self, tools, data, work, scale, limit, **budget):
        count = {"ci": 60_000, "full": 900_000}[scale]
        command = ["memcached", "-s", work / "memcached.sock", "-m", {"ci": "512", "full": "3000"}[scale], "-t", "4",
                   "-P", work / "pid", "-u", "root"]
        running = watch.Running(tools, command, cwd=work, limit=limit, env=watch.programs_environment(), **budget)
        try:
            lines = connect(work / "memcached.sock", running, limit)
            others = [connect(work / "memcached.sock", running, limit) for _ in range(3)]
            links = [lines, *others]  # one worker thread of the server each
            version = dict.fromkeys(range(count), 1)
            for at in range(0, count, 100):
                _memcached_set(links[at // 100 % 4], range(at, min(at + 100, count)), 1)
            generator = random.Random(5)
            wrong = missing = checked = 0
            for step in range(600):
                link = links[step % 4]
                numbers = sorted(set(generator.sample(range(count), 40)))
                found = _memcached_get(link, numbers)
                for number in numbers:
                    if number not in found:
                        missing += version[number] != 0
                    elif version[number] == 0 or found[number] != _memcached_value(number, version[number]):
                        wrong += 1
                    checked += 1
                again = numbers[::4]
                _memcached_set(link, again, step + 2)
                for number in again:
                    version[number] = step + 2
                gone = numbers[1]
                link.send(b"delete k%d\r\n" % gone)
                link.line()
                version[gone] = 0
            output = f"{checked} checked, {wrong} wrong, {missing} missing\n"
            for link in links:
                link.close()
            subprocess.run(["kill", "-TERM", (work / "pid").read_text().strip()], check=True)
        except (RuntimeError, OSError) as error:
            running.stop()
            raise ServerFailed(error, running.finish()) from error
        outcome = running.finish()
        outcome.output = output.encode()
        return outcome

    @staticmethod
    def accept(output):
        return b" 0 wrong, 0 missing" in output


def server_workloads():
    return [RedisWorkload(), MemcachedWorkload()]
