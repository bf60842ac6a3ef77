"""Builds whimbrel's wheel with CMake, by the standard library alone: so `pip install .` downloads nothing.

Needs what scripts/setup build installs (cmake, ninja, g++, the codecs' libraries, pybind11's headers).
"""

import base64
import hashlib
import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile

ROOT = pathlib.Path(__file__).resolve().parents[2]


def _version():
    return re.search(r"project\(whimbrel VERSION ([\d.]+)", (ROOT / "CMakeLists.txt").read_text()).group(1)


def _metadata():
    return ("Metadata-Version: 2.1\nName: whimbrel\nVersion: " + _version() + "\n"
            "Summary: NumPy arrays larger than RAM: cold pages on a device, home when touched\n"
            "License: Apache-2.0\nRequires-Python: >=3.9\nRequires-Dist: numpy>=1.22\n")


def _run(*command):
    print("+", *command, flush=True)
    if subprocess.run([str(part) for part in command], check=False).returncode != 0:
        raise SystemExit("whimbrel: the build failed; the lines above say why. Packages that are needed: "
                         "scripts/setup --list build; or run scripts/setup build")


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    for tool in ("cmake", "ninja"):
        if shutil.which(tool) is None:
            raise SystemExit(f"whimbrel: {tool} is not installed; next: scripts/setup build")
    tag = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    name = f"whimbrel-{_version()}-{tag}-{tag}-{platform}.whl"
    info = f"whimbrel-{_version()}.dist-info"
    with tempfile.TemporaryDirectory(prefix="whimbrel-wheel-") as directory:
        build, stage = pathlib.Path(directory) / "build", pathlib.Path(directory) / "stage"
        _run("cmake", "-G", "Ninja", "-S", ROOT, "-B", build, "-DCMAKE_BUILD_TYPE=Release", "-DWHIMBREL_TESTS=OFF",
             "-DWHIMBREL_BENCH=OFF", "-DWHIMBREL_PYTHON=ON", f"-DPython3_EXECUTABLE={sys.executable}",
             "-DWHIMBREL_PYTHON_DIR=.", "-DWHIMBREL_WHEEL=ON")
        _run("cmake", "--build", build, "--target", "whimbrel_python", *_jobs())
        _run("cmake", "--install", build, "--component", "python", "--prefix", stage, "--strip")
        staged = [path for path in sorted(stage.rglob("*")) if path.is_file()]
        files = {str(path.relative_to(stage)): path.read_bytes() for path in staged}
        programs = {str(path.relative_to(stage)) for path in staged if os.access(path, os.X_OK)}
    files[f"{info}/METADATA"] = _metadata().encode()
    files[f"{info}/WHEEL"] = f"Wheel-Version: 1.0\nGenerator: whimbrel\nRoot-Is-Purelib: false\nTag: {tag}-{tag}-{platform}\n".encode()
    record = ""
    for path, contents in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(contents).digest()).rstrip(b"=").decode()
        record += f"{path},sha256={digest},{len(contents)}\n"
    files[f"{info}/RECORD"] = (record + f"{info}/RECORD,,\n").encode()
    with zipfile.ZipFile(pathlib.Path(wheel_directory) / name, "w", zipfile.ZIP_DEFLATED) as wheel:
        for path, contents in files.items():
            entry = zipfile.ZipInfo(path, (2020, 1, 1, 0, 0, 0))
            entry.external_attr = (0o100755 if path in programs else 0o100644) << 16
            wheel.writestr(entry, contents, zipfile.ZIP_DEFLATED)
    return name


def _jobs():
    jobs = os.environ.get("WHIMBREL_BUILD_JOBS")
    return ["-j", jobs] if jobs else []


def build_sdist(sdist_directory, config_settings=None):
    base = f"whimbrel-{_version()}"
    with tarfile.open(pathlib.Path(sdist_directory) / f"{base}.tar.gz", "w:gz") as archive:
        for path in sorted(ROOT.iterdir()):
            if path.name not in ("build", ".git"):
                archive.add(path, f"{base}/{path.name}")
    return f"{base}.tar.gz"
