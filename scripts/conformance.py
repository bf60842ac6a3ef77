#!/usr/bin/env python3
"""Checks docs/conformance.md against the tree, and counts.

usage: conformance.py [--list untested|open|deviation]      run from the root of the tree

Fails when
  * a cited file or test does not exist,
  * a requirement id that the tree mentions is not in the table, an id is there twice, or a number is left out,
  * a row that speaks of a deviation is not explained in docs/deviations.md, or an id there is not in the table.

Forms of the last column, separated by commas:
  `Suite.Name`         a GoogleTest test
  `group.case`         a case of tests/mirror
  `vectors:script`     a recorded script of tests/vectors
  `ctest:name`         a test by the name that CMake gives it
  deviation            see docs/deviations.md
  driver               a rule for drivers; a file of the third column tells it to them, with its id
  untested
A row counts as shown when at least one of its tests runs; as open when all of them are listed in one of the open lists
(tests/open.txt, tests/mirror/open.txt, tests/vectors/open.txt).
"""
import fnmatch
import pathlib
import re
import sys

TABLE = pathlib.Path("docs/conformance.md")
DEVIATIONS = pathlib.Path("docs/deviations.md")
ROW = re.compile(r"^\| (?P<id>[A-Z]+-\d+[a-z]?) \| (?P<rule>[^|]+) \| (?P<code>[^|]*) \| (?P<shown>[^|]+) \|$")
SOURCES = [p for top in ("src", "sim", "tests", "include", "examples", "bench", "docs")
           for p in sorted(pathlib.Path(top).rglob("*"))
           if p.suffix in (".cc", ".c", ".h", ".hpp", ".md", ".txt", ".py") and p.is_file()]


def read_rows(problems):
    rows = {}
    for number, line in enumerate(TABLE.read_text().splitlines(), 1):
        if not re.match(r"^\| [A-Z]+-\d", line):
            continue
        row = ROW.match(line)
        if row is None:
            problems.append(f"{TABLE}:{number}: not a row of four columns")
        elif row["id"] in rows:
            problems.append(f"{TABLE}:{number}: {row['id']} is there twice")
        else:
            rows[row["id"]] = (number, row["code"], row["shown"])
    return rows


class Tree:
    """What exists: tests of every kind, and which of them are left out."""

    def __init__(self):
        text = {p: p.read_text(errors="replace") for p in SOURCES}
        code = "\n".join(t for p, t in text.items() if p.suffix in (".cc", ".c", ".h"))
        self.text = text
        self.gtests = {f"{suite}.{name}" for suite, name in
                       re.findall(r"\bT(?:YPED_)?EST(?:_F|_P)?\(\s*(\w+),\s*(\w+)\s*\)", code)}
        self.cases = {f"{group}.{name}": kinds for group, name, kinds in
                      re.findall(r"MIRROR_CASE\((\w+), (\w+), (\w+)", code)}
        vectors = "\n".join(p.read_text() for p in pathlib.Path("tests/vectors").glob("*.vectors"))
        self.vectors = set(re.findall(r"^== (\S+)", vectors, re.MULTILINE))
        cmake = "\n".join(p.read_text() for p in pathlib.Path(".").glob("*/**/CMakeLists.txt") if p.parts[0] != "build")
        self.ctests = set(re.findall(r"(?:whimbrel_test\(|add_test\(NAME )([\w${}]+)", cmake))
        self.ctests |= {f"example_{name}" for name in re.findall(r"whimbrel_example\((\w+)", cmake)}
        self.open_ctests = self._list("tests/open.txt")
        self.open_cases = self._list("tests/mirror/open.txt")
        self.open_vectors = self._list("tests/vectors/open.txt")

    @staticmethod
    def _list(name):
        path = pathlib.Path(name)
        lines = path.read_text().splitlines() if path.is_file() else []
        return [line.split()[0] for line in lines if line.strip() and not line.startswith("#")]

    def _left_out(self, ctest):
        return any(re.fullmatch(pattern, ctest) for pattern in self.open_ctests)

    def look_up(self, cited):
        """None: there is no such test. Otherwise whether it runs."""
        if cited.startswith("ctest:"):
            name = cited.removeprefix("ctest:")
            return None if name not in self.ctests else not self._left_out(name)
        if cited.startswith("vectors:"):
            name = cited.removeprefix("vectors:")
            if name not in self.vectors:
                return None
            return not self._left_out("vectors_replay") and not any(fnmatch.fnmatch(name, o) for o in self.open_vectors)
        if cited in self.gtests:
            return not self._left_out(cited)
        if cited in self.cases:
            kinds = {"PRIVATE": ["private"], "COHERENT": ["coherent"]}.get(self.cases[cited], ["private", "coherent"])
            runs = [k for k in kinds if not any(fnmatch.fnmatch(f"{k}/{cited}", o) for o in self.open_cases)]
            return bool(runs) and not self._left_out("mirror_client_" + cited.split(".")[0])
        return None


def check_row(row_id, row, tree, deviations, problems):
    number, code, shown = row
    where = f"{TABLE}:{number}: {row_id}"
    for path in re.findall(r"`([^`]+)`", code):
        if not pathlib.Path(path).is_file():
            problems.append(f"{where}: there is no file {path}")
    runs, kinds = [], set()
    for item in (part.strip() for part in shown.split(",")):
        if item in ("deviation", "driver", "untested"):
            kinds.add(item)
            continue
        cited = item.strip("`")
        state = tree.look_up(cited) if item.startswith("`") and item.endswith("`") else None
        if state is None:
            problems.append(f"{where}: there is no test {item}")
        else:
            runs.append(state)
    if "untested" in kinds and runs:
        problems.append(f"{where}: says untested and cites a test")
    if "driver" in kinds and not any(row_id in tree.text.get(pathlib.Path(p), "") for p in re.findall(r"`([^`]+)`", code)):
        problems.append(f"{where}: a rule for drivers that none of its files tells them")
    if "deviation" in kinds and row_id not in deviations:
        problems.append(f"{where}: the deviation is not explained in {DEVIATIONS}")
    if any(runs):
        return "shown"
    if runs:
        return "open"
    return "deviation" if "deviation" in kinds else "driver" if "driver" in kinds else "untested"


def check_ids(rows, tree, deviations, problems):
    families = {}
    for row_id in rows:
        prefix, number = row_id.rsplit("-", 1)
        families.setdefault(prefix, set()).add(int(re.match(r"\d+", number)[0]))
    for prefix, numbers in families.items():
        for missing in sorted(set(range(1, max(numbers) + 1)) - numbers):
            problems.append(f"{TABLE}: {prefix}-{missing:02} is left out")
    pattern = re.compile(r"(?<![\w-])((?:%s)-\d\d[a-z]?)(?!\w)" % "|".join(sorted(families, key=len, reverse=True)))
    for path, text in tree.text.items():
        if path == TABLE:
            continue
        for mentioned in sorted(set(pattern.findall(text))):
            if mentioned not in rows:
                problems.append(f"{path}: {mentioned} is not in {TABLE}")
    for mentioned in sorted(set(pattern.findall(deviations))):
        if mentioned not in rows:
            problems.append(f"{DEVIATIONS}: {mentioned} is not in {TABLE}")


def main():
    problems = []
    rows = read_rows(problems)
    tree = Tree()
    deviations = DEVIATIONS.read_text()
    result = {row_id: check_row(row_id, row, tree, deviations, problems) for row_id, row in rows.items()}
    check_ids(rows, tree, deviations, problems)
    if len(sys.argv) == 3 and sys.argv[1] == "--list":
        print("\n".join(row_id for row_id, state in result.items() if state == sys.argv[2]))
    count = {state: list(result.values()).count(state) for state in ("shown", "open", "deviation", "driver", "untested")}
    also = sum("deviation" in row[2] for row in rows.values()) - count["deviation"]
    print(f"{len(rows)} requirements: {count['shown']} shown by tests that run (or by tests and a deviation: {also}), "
          f"{count['open']} by tests that are listed as open only, {count['deviation']} deviations, "
          f"{count['driver']} rules for drivers, {count['untested']} untested")
    print("\n".join(problems))
    return 1 if problems or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
