#!/usr/bin/python3
"""The file device beside fio: the same directory, size of transfers and depth, in turns, medians of several rounds.

  file_against_fio.py --build build/release [--directory /var/tmp] [--mib 1024] [--rounds 5] [--options compress=none]

Prints a table and the load of the machine before and after; on a machine that is not idle the figures are worth little.
"""

import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile

DEPTH = 16


def ours(build, directory, mib, options):
    spec = f"file:{directory},depth={DEPTH}" + (f",{options}" if options else "")
    out = subprocess.run([build / "bin" / "bench_file_device", spec, str(mib), str(DEPTH)], check=True, capture_output=True,
                         text=True)
    return json.loads(out.stdout)


def fio_job(path, mib, how, size, depth, count=None):
    with open(path, "a"):
        os.truncate(path, mib << 20)  # as the device does: no write has to lengthen the file
    command = ["fio", "--name=x", f"--filename={path}", "--ioengine=io_uring", "--direct=1", f"--rw={how}", f"--bs={size}",
               f"--iodepth={depth}", f"--size={mib}M", "--output-format=json", "--refill_buffers", "--norandommap",
               "--randrepeat=0", "--fallocate=none"]
    # As a pager does: a batch at a time, then wait for all of it.
    command += [f"--iodepth_batch_submit={depth}", f"--iodepth_batch_complete_min={depth}"]
    if count is not None:
        command.append(f"--number_ios={count}")
    job = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["jobs"][0]
    side = job["write" if "write" in how else "read"]
    return side["bw_bytes"] / 1e6, side["clat_ns"]["percentile"]["50.000000"] / 1e3, side["slat_ns"]["mean"] / 1e3


def fio(directory, mib):
    path = os.path.join(directory, "fio")
    write = fio_job(path, mib, "write", "64k", DEPTH)[0]
    read = fio_job(path, mib, "read", "64k", DEPTH)[0]
    _, unit, unit_submit = fio_job(path, mib, "randread", "64k", 1, 4000)
    _, page, page_submit = fio_job(path, mib, "randread", "4k", 1, 4000)
    os.unlink(path)
    return {"write_MBs": write, "read_MBs": read, "random_us": unit + unit_submit, "page_us": page + page_submit}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", type=pathlib.Path, required=True)
    parser.add_argument("--directory", default="/var/tmp")
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--options", default="")
    arguments = parser.parse_args()
    if shutil.which("fio") is None:
        sys.exit("fio is not installed; next: apt-get install fio")
    print("load before:", *os.getloadavg())
    rounds = []
    with tempfile.TemporaryDirectory(prefix="whimbrel-bench-", dir=arguments.directory) as directory:
        for _ in range(arguments.rounds):
            # In turns, so that whatever else the machine does meets both.
            rounds.append((ours(arguments.build, directory, arguments.mib, arguments.options), fio(directory, arguments.mib)))
    print("load after:", *os.getloadavg())
    for key, better in (("write_MBs", "more"), ("read_MBs", "more"), ("random_us", "less"), ("page_us", "less")):
        mine = statistics.median(r[0][key] for r in rounds)
        theirs = statistics.median(r[1][key] for r in rounds)
        ratio = statistics.median(r[0][key] / r[1][key] for r in rounds)
        print(f"{key:10} device {mine:8.1f}  fio {theirs:8.1f}  ratio {ratio:5.2f}  ({better} is better; {arguments.rounds} rounds)")


if __name__ == "__main__":
    main()
