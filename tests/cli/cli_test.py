#!/usr/bin/python3
"""The whimbrel command from outside: what it refuses and with which words, what it passes through, what it reports.

  cli_test.py --build build/release [unittest arguments, e.g. BadInput.test_ram_zero]

Every refusal must name the problem, name the next step, end with a status that is not 0, and not start the program.
"""

import json
import os
import pathlib
import re
import resource
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
import unittest

BUILD = None  # set by main
LIMIT = 60  # seconds for any one command
FIELDS = ("peak_resident_bytes", "peak_total_bytes", "pages_out", "pages_home", "faults", "zero_faults", "stored_bytes",
          "compression_ratio", "wait_ns", "ram_limit_bytes", "device", "exit_status")


class CommandTest(unittest.TestCase):
    def setUp(self):
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="whimbrel-cli-"))
        self.addCleanup(shutil.rmtree, self.directory, ignore_errors=True)
        self.whimbrel = BUILD / "bin" / "whimbrel"
        self.started = self.directory / "started"  # made by programs that must never be started

    def call(self, *command, before=(), **options):
        """Runs whimbrel; fails the test when it hangs."""
        full = [str(part) for part in (*before, self.whimbrel, *command)]
        try:
            return subprocess.run(full, capture_output=True, text=True, timeout=LIMIT, cwd=self.directory, check=False,
                                  stdin=options.pop("stdin", subprocess.DEVNULL) if "input" not in options else None,
                                  preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CORE, (0, 0)), **options)
        except subprocess.TimeoutExpired:
            self.fail("hangs: " + " ".join(full))

    def marker(self):
        """A program that tells that it was started."""
        return ["touch", self.started]

    def assert_refused(self, done, *words, status=None):
        """`words` are regular expressions that the message must match."""
        self.assertNotEqual(done.returncode, 0, done.stderr)
        self.assertGreater(done.returncode, 0, f"died by signal {-done.returncode}: {done.stderr}")
        if status is not None:
            self.assertEqual(done.returncode, status, done.stderr)
        self.assertRegex(done.stderr, r"(?m)^whimbrel: ")
        self.assertRegex(done.stderr, r"(?m)^  next: \S", "the message does not say what to do next")
        for word in words:
            self.assertRegex(done.stderr, word)
        self.assertEqual(done.stdout, "", "a refusal belongs on standard error")
        self.assertFalse(self.started.exists(), "the program was started all the same")

    def fill_command(self, megabytes, how="map"):
        return [BUILD / "tests" / "fill", megabytes, how]


class BadInput(CommandTest):
    def test_ram_zero(self):
        self.assert_refused(self.call("run", "--ram", "0", "--", *self.marker()), r"--ram", r"\b0\b")

    def test_ram_with_an_unknown_unit(self):
        self.assert_refused(self.call("run", "--ram", "10X", "--", *self.marker()), r"--ram", r"10X", r"10?[KMG]|[0-9]M")

    def test_ram_that_is_no_number(self):
        for text in ("", "M", "abc", "-5M", "1.2.3M", "5MM", " ", "0x10M", "1e6", "64M64M"):
            with self.subTest(text):
                self.assert_refused(self.call("run", "--ram=" + text, "--", *self.marker()), r"--ram")

    def test_ram_beyond_all_memory(self):
        self.assert_refused(self.call("run", "--ram", "99999999999999999999T", "--", *self.marker()), r"--ram")

    def test_ram_too_small_to_work_in(self):
        done = self.call("run", "--ram", "1K", "--", *self.marker())
        self.assert_refused(done, r"--ram", r"1K|1 KiB|1024", r"\d ?[KM]")

    def test_total_zero(self):
        self.assert_refused(self.call("run", "--total", "0", "--", *self.marker()), r"--total")

    def test_total_with_an_unknown_unit(self):
        self.assert_refused(self.call("run", "--total", "7Q", "--", *self.marker()), r"--total", r"7Q")

    def test_total_below_ram(self):
        done = self.call("run", "--ram", "256M", "--total", "64M", "--", *self.marker())
        self.assert_refused(done, r"--total", r"--ram")

    def test_unknown_device(self):
        done = self.call("run", "--ram", "64M", "--device", "papyrus", "--", *self.marker())
        self.assert_refused(done, r"papyrus", r"zstd", r"lz4", r"\bram\b")

    def test_unknown_device_option(self):
        done = self.call("run", "--ram", "64M", "--device", "zstd:colour=blue", "--", *self.marker())
        self.assert_refused(done, r"colour")

    def test_bad_device_option_value(self):
        done = self.call("run", "--ram", "64M", "--device", "zstd:capacity=much", "--", *self.marker())
        self.assert_refused(done, r"capacity", r"much")

    def test_missing_program(self):
        self.assert_refused(self.call("run", "--ram", "64M", "--", "no-such-program-here"), r"no-such-program-here",
                            status=127)

    def test_missing_program_with_a_path(self):
        self.assert_refused(self.call("run", "--ram", "64M", "--", "./not/here"), r"\./not/here", status=127)

    def test_directory_as_program(self):
        self.assert_refused(self.call("run", "--ram", "64M", "--", self.directory), str(self.directory), r"directory",
                            status=126)

    def test_file_that_may_not_be_executed(self):
        script = self.directory / "script"
        script.write_text("#!/bin/sh\ntouch started\n")
        self.assert_refused(self.call("run", "--ram", "64M", "--", script), r"chmod \+x", status=126)

    def test_file_that_is_no_program(self):
        file = self.directory / "noise"
        file.write_bytes(os.urandom(5000))
        file.chmod(0o755)
        self.assert_refused(self.call("run", "--ram", "64M", "--", file), r"noise", status=126)

    def test_truncated_program(self):
        file = self.directory / "cut"
        file.write_bytes(pathlib.Path("/bin/true").read_bytes()[:200])
        file.chmod(0o755)
        self.assert_refused(self.call("run", "--ram", "64M", "--", file), r"cut")

    def test_script_whose_interpreter_is_missing(self):
        script = self.directory / "script"
        script.write_text("#!/no/such/interpreter\n")
        script.chmod(0o755)
        self.assert_refused(self.call("run", "--ram", "64M", "--", script), r"/no/such/interpreter")

    def test_static_program(self):
        program = BUILD / "tests" / "static-program"
        self.assert_refused(self.call("run", "--ram", "64M", "--", program), r"static", status=126)

    def test_setuid_program(self):
        if os.geteuid() == 0:
            program = self.directory / "becomes-nobody"
            shutil.copy("/bin/true", program)
            os.chown(program, 65534, 65534)
            program.chmod(0o4755)
        else:
            program = next((p for p in ("/usr/bin/passwd", "/bin/su", "/usr/bin/su", "/bin/mount")
                            if os.path.exists(p) and os.stat(p).st_mode & stat.S_ISUID), None)
            if program is None:
                self.skipTest("not root, and no setuid program installed")
        self.assert_refused(self.call("run", "--ram", "64M", "--", program), r"setuid", status=126)

    def installed_copy(self, library):
        """whimbrel installed elsewhere, with this in place of its library."""
        (self.directory / "bin").mkdir()
        (self.directory / "lib").mkdir()
        shutil.copy(self.whimbrel, self.directory / "bin")
        self.whimbrel = self.directory / "bin" / "whimbrel"
        if library is not None:
            (self.directory / "lib" / "libwhimbrel-preload.so").write_bytes(library)

    def test_library_that_is_damaged(self):
        good = (BUILD / "lib" / "libwhimbrel-preload.so").read_bytes()
        self.installed_copy(b"")
        for text in (b"", b"not a library", good[:3000], good[:18] + b"\xb7" + good[19:]):  # b7: for another machine
            with self.subTest(text[:20]):
                (self.directory / "lib" / "libwhimbrel-preload.so").write_bytes(text)
                self.assert_refused(self.call("run", "--ram", "64M", "--", *self.marker()), r"library cannot be loaded",
                                    status=125)

    def test_library_on_a_file_system_without_execution(self):
        good = (BUILD / "lib" / "libwhimbrel-preload.so").read_bytes()
        self.installed_copy(None)
        mount = f"mount -t tmpfs -o noexec none {self.directory}/lib && cp {BUILD}/lib/libwhimbrel-preload.so {self.directory}/lib/"
        if subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True, check=False).returncode != 0:
            self.skipTest("mounting is not permitted")
        self.assertGreater(len(good), 0)
        done = self.call("run", "--ram", "64M", "--", *self.marker(),
                         before=["unshare", "-m", "sh", "-c", mount + ' && exec "$@"', "sh"])
        self.assert_refused(done, r"library cannot be loaded", r"noexec", status=125)

    def test_program_whose_loader_ignores_the_library(self):
        # Cannot be known before: it runs, and the end says that it ran unmanaged.
        done = self.call("run", "--ram", "64M", "--", BUILD / "tests" / "odd-program")
        self.assertEqual(done.stdout, "loaded by hand\n")
        self.assertEqual(done.returncode, 126, done.stderr)
        self.assertRegex(done.stderr, r"(?m)^whimbrel: .*without whimbrel")
        self.assertRegex(done.stderr, r"(?m)^  next: \S")

    def test_no_program_at_all(self):
        for command in (("run",), ("run", "--ram", "64M"), ("run", "--ram", "64M", "--")):
            with self.subTest(command):
                self.assert_refused(self.call(*command), r"program", status=2)

    def test_unknown_option(self):
        self.assert_refused(self.call("run", "--rum", "64M", "--", *self.marker()), r"--rum")

    def test_option_without_value(self):
        done = self.call("run", "--ram", "--", *self.marker())
        self.assertGreater(done.returncode, 0)
        self.assertRegex(done.stderr, r"--ram")
        self.assertFalse(self.started.exists())

    def test_unknown_command_and_none(self):
        for command in (("fly",), ()):
            with self.subTest(command):
                done = self.call(*command)
                self.assertEqual(done.returncode, 2, done.stderr)
                self.assertRegex(done.stderr, r"run|--help")

    def test_stats_file_that_cannot_be_written(self):
        done = self.call("run", "--ram", "64M", "--stats", "/no/such/directory/stats.json", "--", *self.marker())
        self.assert_refused(done, r"/no/such/directory/stats\.json", r"(?i)no such")

    def test_stats_file_that_is_a_directory(self):
        done = self.call("run", "--ram", "64M", "--stats", self.directory, "--", *self.marker())
        self.assert_refused(done, str(self.directory), r"directory")


class Config(CommandTest):
    """Defaults from a file; the command line has the last word."""

    def with_config(self, text, *command, **variables):
        path = self.directory / "config.toml"
        path.write_text(text)
        return self.call(*command, env={**os.environ, "WHIMBREL_CONFIG": str(path), **variables})

    def limits(self, done):
        self.assertEqual(done.returncode, 0, done.stderr)
        summary = json.loads(done.stderr.splitlines()[-1])
        return summary["ram_limit_bytes"], summary["total_limit_bytes"], summary["device"]

    def test_options_come_from_the_section_of_the_command(self):
        done = self.with_config('[run]\nram = "96M"\ndevice = "lz4"\njson = true\n[top]\ninterval = 3\n', "run", "--", "true")
        self.assertEqual(self.limits(done), (96 << 20, 0, "lz4"))

    def test_the_command_line_has_the_last_word(self):
        done = self.with_config('[run]\nram = "96M"\ndevice = "lz4"\n', "run", "--json", "--device", "zstd", "--ram", "80M", "--", "true")
        self.assertEqual(self.limits(done), (80 << 20, 0, "zstd"))

    def test_a_budget_of_the_command_line_replaces_the_whole_budget(self):
        done = self.with_config('[run]\nram = "96M"\n', "run", "--json", "--total", "128M", "--", "true")
        self.assertEqual(self.limits(done)[:2], (0, 128 << 20))

    def test_the_users_own_file_comes_before_that_of_all_users(self):
        home = self.directory / "home"
        (home / ".config" / "whimbrel").mkdir(parents=True)
        (home / ".config" / "whimbrel" / "config.toml").write_text('[run]\nram = "72M"\n')
        other = self.directory / "xdg"
        (other / "whimbrel").mkdir(parents=True)
        (other / "whimbrel" / "config.toml").write_text('[run]\nram = "88M"\n')
        clean = {name: value for name, value in os.environ.items() if name not in ("WHIMBREL_CONFIG", "XDG_CONFIG_HOME")}
        self.assertEqual(self.limits(self.call("run", "--json", "--", "true", env={**clean, "HOME": str(home)}))[0], 72 << 20)
        done = self.call("run", "--json", "--", "true", env={**clean, "HOME": str(home), "XDG_CONFIG_HOME": str(other)})
        self.assertEqual(self.limits(done)[0], 88 << 20)
        done = self.call("run", "--json", "--ram", "64M", "--", "true", env={**clean, "HOME": str(home), "WHIMBREL_CONFIG": ""})
        self.assertEqual(self.limits(done)[0], 64 << 20)

    def test_what_is_wrong_in_the_file_is_said_with_its_name(self):
        for text, word in (('[run]\nrum = "1G"\n', r"run has no option --rum"), ('ram = "1G"\n', r"in no command's section"),
                           ('[walk]\nram = "1G"\n', r"walk.ram"), ('[run]\nquiet = "perhaps"\n', r"perhaps"),
                           ('[budget]\nram = "1G"\n', r"section \[run\]"), ('[top]\nintervall = 3\n', r"top has no option --intervall")):
            with self.subTest(text):
                self.assert_refused(self.with_config(text, "run", "--ram", "64M", "--", *self.marker()), r"config\.toml", word, status=2)

    def test_a_size_in_the_file_is_judged_like_any_other(self):
        self.assert_refused(self.with_config('[run]\nram = "10X"\n', "run", "--", *self.marker()), r"10X", r"config\.toml", status=2)

    def test_a_file_that_was_named_must_be_there(self):
        done = self.call("run", "--", *self.marker(), env={**os.environ, "WHIMBREL_CONFIG": str(self.directory / "missing.toml")})
        self.assert_refused(done, r"missing\.toml", r"WHIMBREL_CONFIG", status=2)


class Restricted(CommandTest):
    def without(self, mode):
        return [BUILD / "tests" / "without-userfaultfd", mode]

    def test_no_userfaultfd(self):
        for mode in ("all", "missing"):
            with self.subTest(mode):
                done = self.call("run", "--ram", "64M", "--", *self.marker(), before=self.without(mode))
                self.assert_refused(done, r"userfaultfd", r"doctor|sysctl|seccomp|kernel", status=125)

    def test_doctor_without_userfaultfd(self):
        done = self.call("doctor", before=self.without("all"))
        self.assertEqual(done.returncode, 1, done.stdout + done.stderr)
        self.assertRegex(done.stdout, r"(?m)^programs that open sessions work .* whimbrel run cannot be used \(rung: guarded arenas\)$")
        self.assertRegex(done.stdout, r"userfaultfd")
        self.assertRegex(done.stdout, r"EPERM|not permitted")

    def test_doctor_with_user_faults_only(self):
        done = self.call("doctor", before=self.without("kernel-faults"))
        self.assertIn(done.returncode, (1, 2), done.stdout + done.stderr)
        self.assertRegex(done.stdout, r"user")

    def test_user_faults_only(self):
        # Either it works, with the right output, or it says why not; in no case may a system call see wrong memory.
        done = self.call("run", "--ram", "32M", "--", *self.fill_command(128), before=self.without("kernel-faults"))
        if done.returncode == 0:
            self.assertEqual(done.stdout, "128 blocks of 1048576 bytes right\n")
        else:
            self.assertRegex(done.stderr, r"(?m)^whimbrel: ")
            self.assertRegex(done.stderr, r"(?m)^  next: \S")
            self.assertEqual(done.stdout, "")

    def test_device_full(self):
        # Incompressible contents do not fit: said once, with a next step; the program loses nothing and ends as always.
        done = self.call("run", "--ram", "32M", "--device", "zstd:capacity=16M", "--", *self.fill_command(160, "random"))
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(done.stdout, "160 blocks of 1048576 bytes right\n")
        self.assertRegex(done.stderr, r"(?m)^whimbrel: .*full")
        self.assertEqual(len(re.findall(r"(?m)^whimbrel: .*full", done.stderr)), 1, "once is enough")
        self.assertRegex(done.stderr, r"next: ")

    def test_total_too_small_for_the_data(self):
        done = self.call("run", "--total", "64M", "--", *self.fill_command(200, "random"))
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(done.stdout, "200 blocks of 1048576 bytes right\n")
        numbers = re.findall(r"next: --total (\d+)M", done.stderr)
        self.assertEqual(len(numbers), 1, "said once, with a number: " + done.stderr)
        self.assertTrue(64 < int(numbers[0]) < 400, numbers)

    def test_no_room_for_the_statistics_page(self):
        # Nowhere to put the shared page: a message, not a crash.
        environment = dict(os.environ, XDG_RUNTIME_DIR="/no/such/directory", TMPDIR="/no/such/directory")
        done = self.call("run", "--ram", "64M", "--", "true", env=environment)
        if done.returncode != 0:
            self.assertRegex(done.stderr, r"(?m)^whimbrel: ")
            self.assertRegex(done.stderr, r"(?m)^  next: \S")


class PassThrough(CommandTest):
    def shell(self, script, *options, **more):
        return self.call("run", "--ram", "64M", *options, "--", "sh", "-c", script, **more)

    def test_exit_status(self):
        for status in (0, 1, 7, 125, 255):
            with self.subTest(status):
                self.assertEqual(self.shell(f"exit {status}").returncode, status)

    def test_death_by_signal(self):
        for name in ("SIGTERM", "SIGKILL", "SIGSEGV", "SIGABRT", "SIGUSR1", "SIGPIPE"):
            with self.subTest(name):
                number = getattr(signal, name)
                self.assertEqual(self.shell(f"kill -{int(number)} $$").returncode, -number)

    def test_input_output_and_arguments(self):
        done = self.call("run", "--ram", "64M", "--", "sh", "-c", 'cat; printf "<%s>" "$@"; echo err >&2', "sh", "two words",
                         "", "--ram", "--", "*", input="from stdin\n")
        self.assertEqual(done.stdout, "from stdin\n<two words><><--ram><--><*>")
        self.assertIn("err\n", done.stderr)

    def test_signals_to_whimbrel_reach_the_program(self):
        for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1"):
            with self.subTest(name):
                script = f"trap 'echo got {name}; exit 9' {name[3:]}; echo ready; while :; do sleep 0.05; done"
                running = subprocess.Popen([self.whimbrel, "run", "--ram", "64M", "--", "bash", "-c", script],
                                           stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                                           start_new_session=True)
                self.assertEqual(running.stdout.readline(), "ready\n")
                running.send_signal(getattr(signal, name))
                out, _ = running.communicate(timeout=LIMIT)
                self.assertEqual((out, running.returncode), (f"got {name}\n", 9))

    def test_end_of_file_reaches_the_reader(self):
        # The program closes its output and goes on: nobody else may hold the pipe open.
        running = subprocess.Popen([self.whimbrel, "run", "--ram", "64M", "--", "sh", "-c", "echo out; exec >&-; sleep 5"],
                                   stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        begin = time.monotonic()
        self.assertEqual(running.stdout.read(), "out\n")
        waited = time.monotonic() - begin
        running.terminate()
        running.wait(LIMIT)
        running.stdout.close()
        self.assertLess(waited, 4)

    def test_program_found_through_path_and_scripts(self):
        script = self.directory / "my-tool"
        script.write_text("#!/bin/sh\necho tool \"$1\"\n")
        script.chmod(0o755)
        environment = dict(os.environ, PATH=f"{self.directory}:{os.environ['PATH']}")
        self.assertEqual(self.call("run", "--ram", "64M", "--", "my-tool", "x", env=environment).stdout, "tool x\n")

    def test_own_preload_of_the_program_is_kept(self):
        done = self.shell("echo $LD_PRELOAD", env=dict(os.environ, LD_PRELOAD="libc.so.6"))
        self.assertIn("libc.so.6", done.stdout)

    def test_ordinary_user(self):
        if os.geteuid() != 0:
            self.skipTest("already an ordinary user")
        if not os.access("/usr/bin/setpriv", os.X_OK):
            self.skipTest("setpriv is not installed")
        self.directory.chmod(0o777)
        done = self.call("run", "--ram", "32M", "--", *self.fill_command(96),
                         before=["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"])
        if done.returncode == 0:
            self.assertEqual(done.stdout, "96 blocks of 1048576 bytes right\n")
        else:
            self.assert_refused(done, r"userfaultfd", r"sysctl|/dev/userfaultfd|CAP_SYS_PTRACE", status=125)


class Reports(CommandTest):
    def test_summary(self):
        done = self.call("run", "--ram", "32M", "--", *self.fill_command(128))
        self.assertEqual(done.returncode, 0, done.stderr)
        for word in ("resident", "32", "out", "home", "compressed", "waited"):
            self.assertIn(word, done.stderr)

    def test_quiet(self):
        done = self.call("run", "--ram", "32M", "--quiet", "--", "sh", "-c", "echo only this >&2")
        self.assertEqual(done.stderr, "only this\n")

    def check_numbers(self, report):
        for field in FIELDS:
            self.assertIn(field, report)
        self.assertEqual(report["ram_limit_bytes"], 32 << 20)
        self.assertIn("zstd", report["device"])
        # 128 MiB were filled and read back in 32 MiB: at least 96 MiB left, at least as much came home again.
        self.assertGreaterEqual(report["pages_out"], 24000)
        self.assertGreaterEqual(report["pages_home"], 24000)
        self.assertGreater(report["faults"], 0)
        self.assertGreaterEqual(report["pages_home"], report["faults"])
        self.assertGreater(report["zero_faults"] + report["faults"], 0)
        self.assertLessEqual(report["peak_resident_bytes"], 34 << 20)
        self.assertGreater(report["peak_resident_bytes"], 16 << 20)
        self.assertGreater(report["peak_total_bytes"], report["peak_resident_bytes"])
        self.assertGreater(report["compression_ratio"], 1.5)
        self.assertTrue((1 << 20) < report["stored_bytes"] < (128 << 20), report["stored_bytes"])
        self.assertGreater(report["wait_ns"], 0)

    def test_stats_file(self):
        stats = self.directory / "stats.json"
        done = self.call("run", "--ram", "32M", "--stats", stats, "--", *self.fill_command(128))
        self.assertEqual(done.returncode, 0, done.stderr)
        report = json.loads(stats.read_text())
        self.check_numbers(report)
        self.assertEqual(report["exit_status"], 0)

    def test_json_summary(self):
        done = self.call("run", "--ram", "32M", "--json", "--", *self.fill_command(128))
        lines = [line for line in done.stderr.splitlines() if line.startswith("{")]
        self.assertEqual(len(lines), 1, done.stderr)
        self.check_numbers(json.loads(lines[0]))

    def test_stats_of_a_program_that_was_killed(self):
        stats = self.directory / "stats.json"
        hostile = BUILD / "tests" / "hostile"
        done = self.call("run", "--ram", "16M", "--stats", stats, "--", hostile, "end", "kill")
        self.assertEqual(done.returncode, -signal.SIGKILL)
        self.assertGreater(json.loads(stats.read_text())["pages_out"], 0)

    def test_sizes_are_powers_of_1024(self):
        for text, size in (("64M", 64 << 20), ("0.5G", 512 << 20), ("65536K", 64 << 20), ("67108864", 64 << 20)):
            with self.subTest(text):
                stats = self.directory / "stats.json"
                self.call("run", "--ram", text, "--stats", stats, "--", "true")
                self.assertEqual(json.loads(stats.read_text())["ram_limit_bytes"], size)

    def test_help_and_version(self):
        for command, word in ((("--help",), "run"), (("run", "--help"), "--ram"), (("doctor", "--help"), "doctor"),
                              (("--version",), r"\d+\.\d+\.\d+")):
            done = self.call(*command)
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertRegex(done.stdout, word)

    def test_doctor(self):
        done = self.call("doctor")
        self.assertIn(done.returncode, (0, 1), done.stdout + done.stderr)
        for word in ("userfaultfd", "MOVE"):
            self.assertIn(word, done.stdout)
        report = json.loads(self.call("doctor", "--json").stdout)
        self.assertIsInstance(report, dict)

    def test_doctor_about_programs(self):
        self.assertRegex(self.call("doctor", "sort").stdout, r"sort")
        static = self.call("doctor", BUILD / "tests" / "static-program")
        self.assertRegex(static.stdout + static.stderr, r"static")
        self.assertNotEqual(static.returncode, 0)


def main():
    global BUILD
    arguments = sys.argv[1:]
    if len(arguments) < 2 or arguments[0] != "--build":
        sys.exit(__doc__)
    BUILD = pathlib.Path(arguments[1]).resolve()
    for needed in ("bin/whimbrel", "lib/libwhimbrel-preload.so", "tests/fill", "tests/hostile", "tests/static-program",
                   "tests/without-userfaultfd"):
        if not (BUILD / needed).exists():
            sys.exit(f"{BUILD / needed} is missing; build it: cmake --build {BUILD}")
    unittest.main(argv=[sys.argv[0], *arguments[2:]], verbosity=2)


if __name__ == "__main__":
    main()
