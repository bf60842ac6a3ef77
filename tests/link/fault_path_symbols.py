#!/usr/bin/python3
"""What the objects of the fault path refer to: no allocator, no exceptions, no standard streams, no locks of libc.

  fault_path_symbols.py check ARCHIVE...                 every object of these libraries
  fault_path_symbols.py self-test COMPILER FLAG...       is a planted reference found?

A symbol must be the project's own, or be allowed: everywhere, in one file (with the reason beside it), or within
functions that are never called. A permission that nothing needs any more is an error too.
"""

import collections
import pathlib
import re
import subprocess
import sys
import tempfile

# Copies and compares bytes, calculates: no state, no lock, no memory of its own.
EVERYWHERE = {"memset", "memcmp", "memcpy", "memmove", "memchr", "strlen", "__popcountdi2", "__udivti3",
              "_GLOBAL_OFFSET_TABLE_", "__stack_chk_fail"}
# Descriptions of classes, referred to by address only.
EVERYWHERE |= {f"_ZTVN10__cxxabiv1{kind}" for kind in
               ("17__class_type_infoE", "20__si_class_type_infoE", "21__vmi_class_type_infoE")}
EVERYWHERE |= {"__cxa_pure_virtual"}

CODEC = "works in memory that is handed to it: contexts are made by ZSTD_initStatic… and LZ4_initStream"
CIPHER = "libsodium's primitives on the caller's memory; no key is kept by the library"
LIBC_THREADS = "threads of libc, for programs that link the engine knowingly: started and joined by the program's own threads"
BY_FILE = {
    "clock.cc": {"clock_gettime": "answered in user space for this clock; never fails and so leaves errno alone"},
    "guard_signal.cc": {"sigaction": "async-signal-safe; libc's, so that sanitizers know of the handler"},
    "identity.cc": {"strncmp": "compares bytes"},
    "raw_engine_threads.cc": {"dl_iterate_phdr": "when threads are started, on the program's own thread"},
    "relied_on.cc": {"dl_iterate_phdr": "when the engine is set up, on the program's own thread"},
    "libc_engine_threads.cc": dict.fromkeys(
        ("__sysconf", "sysconf", "pthread_attr_destroy", "pthread_attr_init", "pthread_attr_setstacksize",
         "pthread_create", "pthread_join", "pthread_sigmask", "sigfillset"), LIBC_THREADS),
    "checksum.cc": {"ZSTD_XXH64": CODEC},
    "codec.cc": dict.fromkeys(
        ("LZ4_compress_fast_extState_fastReset", "LZ4_decompress_safe", "LZ4_initStream", "ZSTD_CCtx_setParameter",
         "ZSTD_DCtx_setParameter", "ZSTD_compress2", "ZSTD_decompressDCtx", "ZSTD_estimateCCtxSize_usingCParams",
         "ZSTD_estimateDCtxSize", "ZSTD_getCParams", "ZSTD_initStaticCCtx", "ZSTD_initStaticDCtx", "ZSTD_isError"), CODEC),
    "extent_cipher.cc": dict.fromkeys(
        ("__cpu_indicator_init", "__cpu_model", "crypto_aead_aes256gcm_beforenm",
         "crypto_aead_aes256gcm_decrypt_detached_afternm", "crypto_aead_aes256gcm_encrypt_detached_afternm",
         "sodium_memzero"), CIPHER),
}
# Permissions that some compilers make no use of.
MAYBE_UNUSED = {"__sysconf", "sysconf"}

# A virtual destructor brings a second one that also frees: in the table of the class, called by nobody, since objects of
# the engine are taken down by destroy_from().
NEVER_CALLED = {re.compile(r"_ZdlPvm(St11align_val_t)?$"): re.compile(r"D0Ev$")}


def output(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def undefined_symbols(archive):
    """{object: {symbol}}: what has no definition in this library or in the project at all."""
    out = collections.defaultdict(set)
    for line in output("nm", "-A", "--undefined-only", str(archive)).splitlines():
        place, symbol = line.rsplit(" ", 1)[0], line.split()[-1]
        out[place.split(":")[1]].add(symbol)
    return out


def is_own(symbol):
    return re.match(r"_Z.*8whimbrel", symbol) is not None


def users(archive, member, symbol):
    """The functions of an object that refer to the symbol."""
    with tempfile.TemporaryDirectory() as directory:
        subprocess.run(["ar", "x", str(pathlib.Path(archive).resolve()), member], check=True, cwd=directory)
        text = output("objdump", "-dr", "--no-show-raw-insn", f"{directory}/{member}")
    found, function = set(), "?"
    for line in text.splitlines():
        begins = re.match(r"[0-9a-f]+ <(.+)>:$", line)
        if begins:
            function = begins[1]
        reference = re.search(r"R_X86_64_\S+\s+([^\s+-]+)", line)
        if reference and reference[1] == symbol:
            found.add(function)
    return found


def problems_of(archive, used=None):
    """Sentences about what must not be there. Notes in `used` which permissions were needed."""
    used = set() if used is None else used
    problems, objects = [], undefined_symbols(archive)
    for member, symbols in sorted(objects.items()):
        source = member.removesuffix(".o")
        for symbol in sorted(symbols):
            if is_own(symbol) or symbol in EVERYWHERE:
                continue
            if symbol in BY_FILE.get(source, {}):
                used.add((source, symbol))
                continue
            callers = users(archive, member, symbol)
            only = [where for what, where in NEVER_CALLED.items() if what.match(symbol)]
            if only and callers and all(only[0].search(caller) for caller in callers):
                continue
            problems.append(f"{pathlib.Path(archive).name}: {member} refers to {symbol} (in {', '.join(sorted(callers)) or 'data'})")
    return problems, objects


def check(archives):
    problems, used, objects = [], set(), 0
    for archive in archives:
        found, members = problems_of(archive, used)
        problems += found
        objects += len(members)
    allowed = {(source, symbol) for source, symbols in BY_FILE.items() for symbol in symbols if symbol not in MAYBE_UNUSED}
    problems += [f"{source} does not refer to {symbol} any more: take the permission away" for source, symbol in sorted(allowed - used)]
    for problem in problems:
        print(problem)
    print(f"{objects} objects of {len(archives)} libraries, {len(used)} permissions in use, {len(problems)} problems")
    return 1 if problems or objects == 0 else 0


PLANTED = {
    "malloc": "#include <cstdlib>\nnamespace whimbrel { void* planted() { return std::malloc(8); } }",
    "_Znwm": "namespace whimbrel { int* planted() { return new int; } }",
    "_ZdlPvm": "namespace whimbrel { void planted(int* p) { delete p; } }",
    "__cxa_throw": "namespace whimbrel { void planted() { throw 1; } }",
    "__throw_out_of_range": "#include <bitset>\nnamespace whimbrel { void planted(std::bitset<8>& b, unsigned long i) { b.set(i); } }",
    "printf": '#include <cstdio>\nnamespace whimbrel { void planted(int n) { std::printf("%d", n); } }',
    "pthread_mutex_lock": "#include <mutex>\nnamespace whimbrel { void planted(std::mutex& m) { m.lock(); } }",
    "__errno_location": "#include <cerrno>\nnamespace whimbrel { int planted() { return errno; } }",
}
HARMLESS = """#include <cstring>
namespace whimbrel {
struct Base { virtual ~Base(); };
struct Planted final : Base { ~Planted() override; char text[100]; };
Base::~Base() = default;
Planted::~Planted() { std::memset(text, 0, sizeof text); }
}"""


def self_test(compile_command):
    failures = []
    for expected, code in {**PLANTED, None: HARMLESS}.items():
        with tempfile.TemporaryDirectory() as directory:
            source, archive = pathlib.Path(directory, "planted.cc"), pathlib.Path(directory, "libplanted.a")
            source.write_text(code + "\n")
            subprocess.run([*compile_command, "-std=c++23", "-O2", "-fPIC", "-c", str(source), "-o", f"{directory}/planted.cc.o"], check=True)
            subprocess.run(["ar", "crs", str(archive), f"{directory}/planted.cc.o"], check=True)
            problems, _ = problems_of(archive)
            noticed = any(expected in problem for problem in problems) if expected else not problems
            if not noticed:
                failures.append(f"{expected or 'harmless code'}: {problems}")
    for failure in failures:
        print("not as expected:", failure)
    print(f"{len(PLANTED) + 1} planted sources, {len(failures)} not judged as expected")
    return 1 if failures else 0


if __name__ == "__main__":
    if len(sys.argv) < 3 or sys.argv[1] not in ("check", "self-test"):
        sys.exit(__doc__)
    sys.exit((check if sys.argv[1] == "check" else self_test)(sys.argv[2:]))
