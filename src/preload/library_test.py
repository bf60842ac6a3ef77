#!/usr/bin/python3
"""What the preload library brings into a foreign program: as little as promised.

  library_test.py LIBRARY
"""

import re
import subprocess
import sys
import unittest

LIBRARY = None

# Of libc, what may be called on engine threads or in a fork handler: no allocation, no lock, no errno, no stdio.
# The rest is used by the constructor, on the program's own thread, before anything can be away.
HARMLESS = {"memchr", "memcmp", "memcpy", "memmove", "memset", "strlen", "strcmp", "__memcpy_chk", "__memset_chk",
            "__stack_chk_fail"}
CONSTRUCTOR = {"dlsym", "dl_iterate_phdr", "__cxa_finalize", "__cxa_atexit", "__tls_get_addr"}
FORK_WALK = {"_IO_iter_begin", "_IO_iter_end", "_IO_iter_next", "_IO_iter_file", "_IO_list_lock", "_IO_list_unlock"}
WEAK_LEFTOVERS = {"_ITM_deregisterTMCloneTable", "_ITM_registerTMCloneTable", "__gmon_start__"}
# Referenced by code of static libraries that the engine never reaches (contexts and threads of their own making).
UNREACHED = {"malloc", "calloc", "free", "abort", "fprintf", "fwrite", "stderr", "qsort", "__errno_location",
             "__libc_single_threaded", "dl_find_object", "_dl_find_object", "write", "sysconf"}


def output(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


class Library(unittest.TestCase):
    def test_needs_libc_alone(self):
        needed = re.findall(r"\(NEEDED\).*\[(.*)\]", output("readelf", "-dW", LIBRARY))
        self.assertEqual(set(needed) - {"ld-linux-x86-64.so.2"}, {"libc.so.6"})

    def test_exports_one_symbol(self):
        exported = [line.split()[-1] for line in output("nm", "-D", "--defined-only", LIBRARY).splitlines()]
        self.assertEqual(exported, ["__register_atfork"])

    def test_is_bound_at_load_and_initialised_first(self):
        flags = output("readelf", "-dW", LIBRARY)
        self.assertRegex(flags, r"FLAGS_1.*NOW")
        self.assertRegex(flags, r"FLAGS_1.*INITFIRST")

    def test_has_no_thread_locals(self):
        # Raw engine threads have no libc thread behind them: a thread-local of ours would need its allocator.
        self.assertNotRegex(output("readelf", "-lW", LIBRARY), r"(?m)^\s+TLS\s")

    def test_calls_nothing_of_libc_that_locks_or_allocates(self):
        undefined = {line.split()[-1].split("@")[0] for line in output("nm", "-D", "--undefined-only", LIBRARY).splitlines()}
        allowed = HARMLESS | CONSTRUCTOR | FORK_WALK | WEAK_LEFTOVERS | UNREACHED
        strange = {name for name in undefined - allowed if not name.startswith("pthread_")}
        self.assertEqual(strange, set(), "a new dependency on libc: is it safe on a thread libc does not know?")


if __name__ == "__main__":
    LIBRARY = sys.argv.pop(1)
    unittest.main()
