#!/usr/bin/python3
"""The Python package on the real kernel."""

import errno
import gc
import os
import subprocess
import sys
import threading
import unittest

import numpy as np

import whimbrel

MIB = 1 << 20
ON_GUARDED_ARENAS = whimbrel.Session(ram="4M").rung == "guarded arenas"


class Arrays(unittest.TestCase):
    def test_larger_than_their_budget(self):
        a = whimbrel.zeros(4 * MIB, "i8", ram="8M")
        a[:] = np.arange(4 * MIB, dtype="i8")
        self.assertTrue(np.array_equal(a[:: 1000], np.arange(0, 4 * MIB, 1000)))
        stats = whimbrel.stats(a)
        self.assertGreater(stats["pages_out"], 4000)
        self.assertLessEqual(stats["resident_pages"] * 4096, 9 * MIB)

    def test_shapes_types_orders_and_copies(self):
        f = whimbrel.empty((3, 5), "f4", "F", ram="4M")
        self.assertTrue(f.flags.f_contiguous and f.flags.writeable and not f.flags.owndata)
        self.assertEqual((f.shape, f.dtype, f.strides), ((3, 5), np.float32, (4, 12)))
        self.assertEqual(whimbrel.zeros((), ram="4M").shape, ())
        self.assertEqual(whimbrel.zeros((0, 7), ram="4M").size, 0)
        self.assertEqual(whimbrel.array("abc", ram="4M")[()], "abc")
        with self.assertRaises(TypeError):
            whimbrel.empty(3, object, ram="4M")

    def test_views_keep_the_memory_and_the_session(self):
        view = whimbrel.array(np.arange(MIB), ram="5M")[10:20]
        gc.collect()
        self.assertEqual(int(view.sum()), 145)
        self.assertEqual(whimbrel.session_of(view).stats()["allocated_bytes"], 8 * MIB)
        session = whimbrel.session_of(view)
        del view
        gc.collect()
        self.assertEqual(session.stats()["allocated_bytes"], 0)

    def test_sessions_end_with_their_last_array(self):
        gc.collect()
        before = threading_count()
        for _ in range(20):  # there can be 16 at a time
            with whimbrel.Session(ram="4M") as session:
                a = session.zeros(10)
        with self.assertRaises(ValueError):
            session.zeros(10)
        del session
        a[3] = 3
        self.assertEqual(float(a.sum()), 3)
        del a
        gc.collect()
        self.assertLessEqual(threading_count(), before)

    @unittest.skipIf(ON_GUARDED_ARENAS, "without userfaultfd system calls fail on what is away: see the next test")
    def test_system_calls_reach_memory_that_is_away(self):
        a = whimbrel.array(np.arange(MIB), ram="4M")
        whimbrel.migrate(a)
        with open("/dev/null", "wb") as sink:
            self.assertEqual(sink.write(a), 8 * MIB)
        read, write = os.pipe()
        whimbrel.migrate(a)
        self.assertEqual(os.write(write, a[:512]), 4096)
        whimbrel.migrate(a)
        self.assertEqual(os.readv(read, [a[1024:1536]]), 4096)
        self.assertTrue(np.array_equal(a[1024:1536], np.arange(512)))
        os.close(read), os.close(write)

    @unittest.skipUnless(ON_GUARDED_ARENAS, "system calls reach what is away")
    def test_system_calls_reach_what_is_pinned(self):
        a = whimbrel.array(np.arange(MIB), ram="4M")
        whimbrel.migrate(a)
        read, write = os.pipe()
        with self.assertRaises(OSError) as refused:
            os.write(write, a[:512])
        self.assertEqual(refused.exception.errno, errno.EFAULT)
        with whimbrel.pin(a[:512]):
            self.assertEqual(os.write(write, a[:512]), 4096)
        self.assertEqual(np.frombuffer(os.read(read, 4096), dtype=np.int64).tolist(), list(range(512)))
        os.close(read), os.close(write)


class Hints(unittest.TestCase):
    def setUp(self):
        self.session = whimbrel.Session(ram="32M", device="lz4")
        self.a = self.session.array(np.arange(2 * MIB))  # 4096 pages

    def where(self, kind):
        return int((self.session.residency(self.a)["where"] == kind).sum())

    def test_outcomes_and_residency_agree(self):
        out = self.session.migrate(self.a)
        self.assertEqual(out, whimbrel.Outcome(4096, 4096, 0, 0, 0, ()))
        self.assertEqual(self.where(whimbrel.AWAY), 4096)
        home = self.session.prefetch(self.a[: MIB])
        self.assertEqual((home.asked, home.moved, home.refused), (2048, 2048, 0))
        self.assertEqual((self.where(whimbrel.AWAY), self.where(whimbrel.RESIDENT)), (2048, 2048))
        self.assertTrue(np.array_equal(self.a, np.arange(2 * MIB)))

    def test_requests(self):
        out = self.session.migrate_later(self.a)
        self.assertEqual(out.wait().moved, 4096)
        self.assertEqual(out.wait().moved, 4096, "as often as one likes")
        coming = self.session.prefetch(self.a, wait=False)
        while coming.wait(0.01) is None:
            pass
        self.assertTrue(coming.done())
        self.assertEqual(self.where(whimbrel.RESIDENT), 4096)

    def test_pins(self):
        with self.session.pin(self.a[:512]) as pinned:
            self.assertEqual(pinned.already, 1)
            self.assertEqual(int(self.session.residency(self.a)["flags"].sum()), 1)
            self.assertEqual(self.session.migrate(self.a).reasons, ("pinned",))
        big = self.session.zeros(64 * MIB, "u1")
        with self.assertRaises(whimbrel.Error) as raised:
            with self.session.pin(big):
                pass
        self.assertEqual(raised.exception.errno, errno.ENOMEM)

    def test_discard_advice_and_budget(self):
        self.session.discard(self.a)
        self.assertEqual(int(self.a.sum()), 0)
        with self.assertRaises(ValueError):
            self.session.discard(self.a[::2])
        self.session.advise(self.a, "sequential")
        with self.assertRaises(ValueError):
            self.session.advise(self.a, "hot")
        self.session.set_budget(ram="4M")
        self.assertEqual(self.session.stats()["ram_limit_bytes"], 4 * MIB)

    def test_mistakes_are_explained(self):
        for call, words in ((lambda: whimbrel.Session(), "ram='1G'"), (lambda: whimbrel.Session(ram="much"), "not a size"),
                            (lambda: whimbrel.migrate(np.zeros(3)), "whimbrel.empty")):
            with self.assertRaisesRegex(ValueError, words):
                call()
        with self.assertRaisesRegex(whimbrel.Error, "(?s)tape.*next: "):
            whimbrel.Session(ram="4M", device="tape")
        with self.assertRaisesRegex(whimbrel.Error, "2 MiB"):
            whimbrel.Session(ram=4096)
        with self.assertRaises(MemoryError):
            self.session.empty(1 << 60, "u1")


class NumPyHandler(unittest.TestCase):
    def test_every_array_of_a_program(self):
        session = whimbrel.Session(ram="8M")
        with session.managed():
            a = np.arange(2 * MIB)
            b = (a * 2 + 1)[::-1].copy()
            small = np.zeros(10)
        outside = np.zeros(MIB)
        self.assertIs(whimbrel.session_of(a), session)
        self.assertIs(whimbrel.session_of(b), session)
        for other in (small, outside):
            with self.assertRaises(ValueError):
                whimbrel.session_of(other)
        self.assertEqual(int(b[0]), 4 * MIB - 1)
        self.assertTrue(np.array_equal(np.sort(b), a * 2 + 1))
        self.assertGreater(session.stats()["pages_out"], 4000)

    def test_growing_and_freeing(self):
        session = whimbrel.Session(ram="8M")
        with session.managed(least="4K"):
            a = np.zeros(100)
            for size in (1000, 100_000, 1_000_000, 50):  # from malloc to the session and back
                a.resize(size, refcheck=False)
                a[-1] = size
            self.assertEqual(a[49], 50)
            many = [np.full(2000, i) for i in range(200)]
            self.assertEqual([int(m[1999]) for m in many], list(range(200)))
        del a, many
        gc.collect()
        self.assertEqual(session.stats()["allocated_bytes"], 0)

    def test_arrays_keep_their_session(self):
        with whimbrel.Session(ram="8M") as session, session.managed():
            a = np.ones(4 * MIB)
        del session
        gc.collect()
        self.assertEqual(float(a.sum()), 4 * MIB)


class Processes(unittest.TestCase):
    @unittest.skipIf(ON_GUARDED_ARENAS, "without userfaultfd a child inherits nothing of a session: see guarded_session_test.cc")
    def test_a_forked_child_has_all_contents(self):
        a = whimbrel.array(np.arange(2 * MIB), ram="4M")
        child = os.fork()
        if child == 0:
            right = int(a.sum()) == MIB * (2 * MIB - 1)
            a[:] = 1
            os._exit(0 if right and int(a.sum()) == 2 * MIB else 1)
        self.assertEqual(os.waitpid(child, 0)[1], 0)
        self.assertEqual(int(a.sum()), MIB * (2 * MIB - 1))
        self.assertEqual(subprocess.run(["/bin/true"], check=True).returncode, 0)

    def test_threads(self):
        session = whimbrel.Session(ram="8M", device="lz4")
        wrong = []

        def work(salt):
            for n in range(5):
                a = session.array(np.arange(salt, salt + MIB // 2))
                session.migrate(a)
                session.prefetch(a[:1000], wait=False)
                if int(a[-1]) != salt + MIB // 2 - 1 or int(a.sum()) != MIB // 4 * (2 * salt + MIB // 2 - 1):
                    wrong.append((salt, n))

        threads = [threading.Thread(target=work, args=(salt,)) for salt in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(wrong, [])


def threading_count():
    return len(os.listdir("/proc/self/task"))


if __name__ == "__main__":
    sys.exit(unittest.main())
