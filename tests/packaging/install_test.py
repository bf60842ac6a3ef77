#!/usr/bin/python3
"""Installs the build into a directory and uses what is there as other projects would: CMake, pkg-config, the command, shell
completion, the Python package; then makes the Debian packages and looks into them.

  install_test.py --source tests/packaging --build BUILD
"""

import argparse
import glob
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

OPTIONS = None
COMPONENTS = ("command", "runtime", "devel", "python")


def run(*command, **options):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, **options)
    if done.returncode != 0:
        raise AssertionError(f"{' '.join(map(str, command))}: status {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return done.stdout


class Installed(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.directory = tempfile.TemporaryDirectory(prefix="whimbrel-install-")
        cls.prefix = pathlib.Path(cls.directory.name) / "prefix"
        for component in COMPONENTS:
            run("cmake", "--install", OPTIONS.build, "--component", component, "--prefix", cls.prefix)
        cls.libraries = next(cls.prefix.rglob("libwhimbrel.so")).parent

    @classmethod
    def tearDownClass(cls):
        cls.directory.cleanup()

    def test_a_cmake_project(self):
        build = pathlib.Path(self.directory.name) / "consumer"
        run("cmake", "-G", "Ninja", "-S", OPTIONS.source / "consumer", "-B", build, f"-DCMAKE_PREFIX_PATH={self.prefix}")
        run("cmake", "--build", build, "-j", "1")
        for program in ("consumer_c", "consumer_cpp"):
            self.assertIn("consumer: ", run(build / program))

    def test_pkg_config(self):
        environment = dict(os.environ, PKG_CONFIG_PATH=str(self.libraries / "pkgconfig"))
        flags = run("pkg-config", "--cflags", "--libs", "whimbrel", env=environment).split()
        self.assertRegex(run("pkg-config", "--modversion", "whimbrel", env=environment), r"^\d+\.\d+\.\d+$")
        program = pathlib.Path(self.directory.name) / "by-pkg-config"
        run("cc", OPTIONS.source / "consumer" / "consumer.c", "-o", program, *flags)
        self.assertIn("consumer: ", run(program, env=dict(os.environ, LD_LIBRARY_PATH=str(self.libraries))))

    def test_the_library_has_a_soname_and_versioned_symbols(self):
        library = self.libraries / "libwhimbrel.so"
        self.assertRegex(run("readelf", "-dW", library), r"SONAME.*\[libwhimbrel\.so\.0\]")
        symbols = [line.split()[-1] for line in run("nm", "-D", "--defined-only", library).splitlines()]
        self.assertIn("whimbrel_session_open@@WHIMBREL_0", symbols)
        strangers = [name for name in symbols if not re.match(r"whimbrel_\w+@@WHIMBREL_0$|WHIMBREL_0", name)]
        self.assertEqual(strangers, [])

    def test_the_command_and_its_manual(self):
        command = self.prefix / "bin" / "whimbrel"
        self.assertIn("3", run(command, "run", "--ram", "64M", "--quiet", "--", "/usr/bin/python3", "-c", "print(1 + 2)"))
        manual = (self.prefix / "share/man/man1/whimbrel.1").read_text().replace("\\-", "-")
        bash = (self.prefix / "share/bash-completion/completions/whimbrel").read_text()
        zsh = (self.prefix / "share/zsh/vendor-completions/_whimbrel").read_text()
        commands = re.findall(r"(?m)^  ([a-z]+) {3,}", run(command, "--help"))
        self.assertIn("run", commands)
        words = set(commands)
        for name in commands:
            usage = run(command, name, "--help").split("\n\nExamples")[0]
            words |= set(re.findall(r"(?m)^ +(?:-\w,)?(--[a-z]+)", usage))
        self.assertGreater(len(words), 12)
        for word in words:
            for where, text in (("the manual", manual), ("bash completion", bash), ("zsh completion", zsh)):
                self.assertIn(word, text, f"not in {where}")

    def test_bash_completion(self):
        script = self.prefix / "share/bash-completion/completions/whimbrel"

        def complete(*words):
            line = " ".join(f"'{word}'" for word in words)
            return run("bash", "-c", f"source '{script}'; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _whimbrel; "
                                     "printf '%s\\n' \"${COMPREPLY[@]}\"").split()

        self.assertEqual(complete("whimbrel", "ru"), ["run"])
        self.assertEqual(complete("whimbrel", "run", "--dev"), ["--device"])
        self.assertEqual(complete("whimbrel", "run", "--device", "z"), ["zstd"])
        self.assertIn("whoami", complete("whimbrel", "run", "--ram", "1G", "--", "whoam"))

    def test_the_python_package(self):
        path = next(self.prefix.rglob("whimbrel/__init__.py")).parent.parent
        program = "import whimbrel; a = whimbrel.zeros(1 << 20, ram='4M'); a[:] = 2; print(whimbrel.__file__, a.sum())"
        out = run("/usr/bin/python3", "-c", program, env=dict(os.environ, PYTHONPATH=str(path)), cwd="/").split()
        self.assertTrue(out[0].startswith(str(self.prefix)))
        self.assertEqual(out[1], str(2.0 * (1 << 20)))


class Packages(unittest.TestCase):
    def test_debian_packages(self):
        with tempfile.TemporaryDirectory(prefix="whimbrel-deb-") as directory:
            run("cpack", "--config", OPTIONS.build / "CPackConfig.cmake", "-B", directory, "-D", "CPACK_DEBIAN_COMPRESSION_TYPE=gzip")
            contents = {}
            for path in glob.glob(f"{directory}/*.deb"):
                name = run("dpkg-deb", "-f", path, "Package").strip()
                contents[name] = run("dpkg-deb", "-c", path)
                depends = run("dpkg-deb", "-f", path, "Depends")
                if name == "libwhimbrel-dev":
                    self.assertIn("libwhimbrel0 (= ", depends)
                elif name == "python3-whimbrel":
                    self.assertIn("python3-numpy", depends)
                else:
                    self.assertIn("libc6", depends)
        for package, file in (("whimbrel", "./usr/bin/whimbrel"), ("whimbrel", "libwhimbrel-preload.so"),
                              ("libwhimbrel0", "libwhimbrel.so.0"), ("libwhimbrel-dev", "include/whimbrel/whimbrel.hpp"),
                              ("libwhimbrel-dev", "whimbrel-config.cmake"), ("libwhimbrel-dev", "whimbrel_session.3"),
                              ("python3-whimbrel", "./usr/lib/python3/dist-packages/whimbrel/py.typed")):
            self.assertIn(file, contents[package])
        self.assertNotIn("include", contents["libwhimbrel0"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=pathlib.Path, required=True)
    parser.add_argument("--build", type=pathlib.Path, required=True)
    OPTIONS, rest = parser.parse_known_args()
    unittest.main(argv=[sys.argv[0], *rest])
