#!/usr/bin/python3
"""What the preload library brings into a foreign program: as little as promised.

  library_test.py LIBRARY
"""

import re
import subprocess
import sys
import unittest

LIBRARY = None

# Of libc, what is harmless on any thread: no allocation, no lock, no standard streams. clock_gettime never fails for
# the clock that is asked for, and so leaves errno alone.
HARMLESS = {"memchr", "memcmp", "memcpy", "memmove", "memset", "strlen", "strcmp", "strncmp", "__stack_chk_fail",
            "clock_gettime"}
# The constructor's, on the program's own thread, before anything can be away.
# On the program's thread that calls them: the calls we stand before.
CALLS = {"__errno_location"}
CONSTRUCTOR = {"dlsym", "dl_iterate_phdr", "__cxa_finalize"}
# The prepare handler's, on the forking thread.
FORK_WALK = {"_IO_iter_begin", "_IO_iter_end", "_IO_iter_next", "_IO_iter_file", "_IO_list_lock", "_IO_list_unlock"}
# Of guarded arenas, which only sessions have: where the whole process is managed nobody comes there (Engine::make_mmu).
SESSIONS = {"sigaction"}
# Forks without handlers.
FORKS = {"_Fork", "syscall"}
# Calls that change the rights of all threads libc knows: the engine's are none of those.
RIGHTS = {"setuid", "setgid", "seteuid", "setegid", "setreuid", "setregid", "setresuid", "setresgid", "setgroups",
          "initgroups", "capset"}
WEAK = {"_ITM_deregisterTMCloneTable", "_ITM_registerTMCloneTable", "__gmon_start__", "ZSTD_trace_compress_begin",
        "ZSTD_trace_compress_end", "ZSTD_trace_decompress_begin", "ZSTD_trace_decompress_end"}
# The codecs' own creators of contexts, which nobody calls: ours are built in memory that is handed to them.
CODECS = {"malloc", "calloc", "free"}


def output(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


class Library(unittest.TestCase):
    def test_needs_libc_alone(self):
        needed = re.findall(r"\(NEEDED\).*\[(.*)\]", output("readelf", "-dW", LIBRARY))
        self.assertEqual(set(needed) - {"ld-linux-x86-64.so.2"}, {"libc.so.6"})

    def test_exports_what_it_must_see_and_no_more(self):
        exported = [line.split()[-1] for line in output("nm", "-D", "--defined-only", LIBRARY).splitlines()]
        self.assertEqual(set(exported), {"__register_atfork"} | FORKS | RIGHTS)

    def test_is_bound_at_load_and_initialised_first(self):
        flags = output("readelf", "-dW", LIBRARY)
        self.assertRegex(flags, r"FLAGS_1.*NOW")
        self.assertRegex(flags, r"FLAGS_1.*INITFIRST")

    def test_has_no_thread_locals(self):
        # Raw engine threads have no libc thread behind them: a thread-local of ours would need its allocator.
        self.assertNotRegex(output("readelf", "-lW", LIBRARY), r"(?m)^\s+TLS\s")

    def test_calls_nothing_of_libc_that_locks_or_allocates(self):
        undefined = {line.split()[-1].split("@")[0] for line in output("nm", "-D", "--undefined-only", LIBRARY).splitlines()}
        self.assertEqual(undefined - (HARMLESS | CALLS | CONSTRUCTOR | FORK_WALK | SESSIONS | WEAK | CODECS), set(), "a new dependency on libc: is it safe on a thread libc does not know?")


if __name__ == "__main__":
    LIBRARY = sys.argv.pop(1)
    unittest.main()
