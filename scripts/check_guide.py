#!/usr/bin/env python3
"""Checks that every code block of a guide that names its source is part of it, word for word.

usage: check_guide.py GUIDE.md...      run from the root of the tree

A block is preceded by a line <!-- path -->. Blocks without a language are text and are not checked; a block with one must
name its source.
"""
import pathlib
import re
import sys

BLOCK = re.compile(r"^(?:<!-- (?P<source>\S+) -->\n)?```(?P<language>\w+)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)


def check(guide: pathlib.Path) -> tuple[int, list[str]]:
    text = guide.read_text()
    problems, count = [], 0
    for block in BLOCK.finditer(text):
        line = text.count("\n", 0, block.start("code")) + 1
        count += 1
        source = block["source"]
        if source is None:
            problems.append(f"{guide}:{line}: a block of {block['language']} that does not say where it is from")
        elif not pathlib.Path(source).is_file():
            problems.append(f"{guide}:{line}: there is no {source}")
        elif block["code"] not in pathlib.Path(source).read_text():
            problems.append(f"{guide}:{line}: {source} does not contain this block")
    return count, problems


def main() -> int:
    total, problems = 0, []
    for name in sys.argv[1:]:
        count, found = check(pathlib.Path(name))
        if count == 0:
            found.append(f"{name}: no code blocks found")
        total += count
        problems += found
    print("\n".join(problems) or f"{total} code blocks are in their sources")
    return 1 if problems or total == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
