#!/usr/bin/env python3
"""Packs recorded pairs NAME.ops / NAME.expect into one file of vectors: pack.py DIRECTORY > FILE.

Every answer is put behind the operation it belongs to (see replay/vector_file.h). Fails when a record does not
follow its script.
"""
import pathlib
import re
import sys


def answers(record):
    """line number -> (stable, text of the answer)"""
    found = {}
    for line in record.splitlines():
        stable = not line.startswith("? ")
        number, rest = line.removeprefix("? ").lstrip().split(" ", 1)
        operation, answer = rest.split(" =>", 1)
        if int(number) in found:
            raise ValueError(f"two answers for line {number}")
        found[int(number)] = (stable, operation, answer.strip())
    return found


def pack(ops):
    found = answers(ops.with_suffix(".expect").read_text())
    yield f"== {ops.stem}"
    for number, line in enumerate(ops.read_text().splitlines(), 1):
        if number not in found:
            yield line.rstrip()
            continue
        stable, operation, answer = found.pop(number)
        script, _, comment = line.partition("#")
        if " ".join(script.split()) != operation or comment:
            raise ValueError(f"{ops}:{number}: the record says '{operation}'")
        indent = re.match(r"\s*", line).group()
        yield f"{indent}{operation} =>{'' if stable else '?'} {answer}"
    if found:
        raise ValueError(f"{ops}: answers for lines {sorted(found)} that do not exist")


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    for ops in sorted(pathlib.Path(sys.argv[1]).glob("*.ops")):
        print("\n".join(pack(ops)))


if __name__ == "__main__":
    main()
