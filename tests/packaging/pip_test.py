#!/usr/bin/python3
"""`pip install .` without a network, into a directory of its own; then the package works from there.

  pip_test.py SOURCE
"""

import os
import subprocess
import sys
import tempfile

source = sys.argv[1]
try:
    import pip  # noqa: F401  pylint: disable=unused-import
except ImportError:
    print("SKIPPED: this Python has no pip (Debian: python3-pip)")
    sys.exit(77)

with tempfile.TemporaryDirectory(prefix="whimbrel-pip-") as target:
    environment = dict(os.environ, PIP_NO_INDEX="1", PIP_DISABLE_PIP_VERSION_CHECK="1", WHIMBREL_BUILD_JOBS="1", PIP_NO_CACHE_DIR="1")
    environment.pop("PYTHONPATH", None)
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--quiet", "--target", target, source]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        print(done.stdout[-4000:], done.stderr[-4000:])
        sys.exit("pip install . failed")
    program = ("import numpy, whimbrel; a = whimbrel.array(numpy.arange(1 << 21), ram='4M'); "
               "print(whimbrel.__file__, int(a.sum()), whimbrel.stats(a)['pages_out'] > 1000)")
    out = subprocess.run([sys.executable, "-c", program], env=dict(environment, PYTHONPATH=target), capture_output=True,
                         text=True, cwd="/", check=False)
    print(out.stdout, out.stderr)
    words = out.stdout.split()
    assert words[0].startswith(target) and words[1:] == [str((1 << 21) * ((1 << 21) - 1) // 2), "True"], words
    names = sorted(os.listdir(target))
    assert any(name.endswith(".dist-info") for name in names), names
