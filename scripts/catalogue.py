#!/usr/bin/python3
"""An ordinary program with a large database in memory; it knows nothing of whimbrel.

  catalogue.py MEGABYTES FILE...

Loads Debian package lists (and file contents lists) into an in-memory SQLite database, as often as it takes to reach
MEGABYTES, indexes it, queries it, and prints the answers. Progress goes to standard error.
"""

import sqlite3
import sys

FIELDS = ("Package", "Version", "Section", "Priority", "Installed-Size", "Size", "Maintainer", "Depends", "Description",
          "Homepage", "Tag", "Filename", "SHA256")


def progress(text):
    print(text, file=sys.stderr, flush=True)


def paragraphs(path):
    """Each package of a Packages file as a dict of its fields."""
    fields, name = {}, None
    with open(path, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if line == "\n":
                if "Package" in fields:
                    yield fields
                fields, name = {}, None
            elif line[0] in " \t":
                if name:
                    fields[name] += line[:-1]
            else:
                name, _, value = line.partition(":")
                fields[name] = value.strip()
    if "Package" in fields:
        yield fields


def database_megabytes(db):
    pages, = db.execute("PRAGMA page_count").fetchone()
    size, = db.execute("PRAGMA page_size").fetchone()
    return pages * size / 1e6


def load_packages(db, edition, path):
    packages, needs = [], []
    for fields in paragraphs(path):
        packages.append((edition, *(fields.get(name, "") for name in FIELDS)))
        for alternative in fields.get("Depends", "").split(","):
            target = alternative.split("|")[0].split("(")[0].strip()
            if target:
                needs.append((edition, fields["Package"], target))
        if len(packages) >= 5000:
            insert(db, packages, needs)
    insert(db, packages, needs)


def insert(db, packages, needs):
    db.executemany(f"INSERT INTO package VALUES ({','.join('?' * (len(FIELDS) + 1))})", packages)
    db.executemany("INSERT INTO needs VALUES (?, ?, ?)", needs)
    packages.clear()
    needs.clear()


def load_contents(db, edition, path):
    rows = []
    with open(path, encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines):
            if number >= 400_000:  # a part is enough: these lists are very long
                break
            file, _, owner = line.rpartition(" ")
            rows.append((edition, file.strip(), owner.strip()))
    db.executemany("INSERT INTO contents VALUES (?, ?, ?)", rows)


QUERIES = {
    "packages by section": "SELECT Section, count(*), sum(CAST(Size AS INTEGER)) FROM package GROUP BY Section ORDER BY 1",
    "most needed": "SELECT target, count(*) c FROM needs GROUP BY target ORDER BY c DESC, target LIMIT 40",
    "largest": "SELECT edition, Package, Size FROM package ORDER BY CAST(Size AS INTEGER) DESC, edition, Package LIMIT 40",
    "maintainers": "SELECT Maintainer, count(*) c FROM package GROUP BY Maintainer ORDER BY c DESC, Maintainer LIMIT 40",
    "needed but absent": """SELECT count(*), min(target), max(target) FROM needs n WHERE edition = 0 AND NOT EXISTS
        (SELECT 1 FROM package p WHERE p.edition = 0 AND p.Package = n.target)""",
    "one package in all editions": "SELECT edition, Version, SHA256 FROM package WHERE Package = 'coreutils' ORDER BY 1, 2, 3",
    "words": "SELECT count(*), sum(length(Description)) FROM package WHERE Description LIKE '%memory%'",
    "contents": "SELECT count(*), min(file), max(file) FROM contents",
    "checksum": "SELECT edition, count(*), sum(length(SHA256)), sum(unicode(substr(SHA256, 1 + edition, 1))) FROM package GROUP BY 1",
}


def main():
    target, files = float(sys.argv[1]), sys.argv[2:]
    db = sqlite3.connect(":memory:")
    columns = ", ".join(f'"{name}" TEXT' for name in FIELDS)
    db.execute(f"CREATE TABLE package (edition INTEGER, {columns})")
    db.execute("CREATE TABLE needs (edition INTEGER, package TEXT, target TEXT)")
    db.execute("CREATE TABLE contents (edition INTEGER, file TEXT, owner TEXT)")
    edition = 0
    while database_megabytes(db) < target * 0.78:  # the indexes are the rest
        for path in files:
            (load_contents if "_Contents-" in path else load_packages)(db, edition, path)
        edition += 1
        progress(f"loaded edition {edition}: {database_megabytes(db):.0f} MB")
    db.execute("CREATE INDEX package_name ON package(Package, edition)")
    progress(f"indexed packages: {database_megabytes(db):.0f} MB")
    db.execute("CREATE INDEX needs_target ON needs(target)")
    db.execute("CREATE INDEX needs_package ON needs(package, edition)")
    progress(f"indexed dependencies: {database_megabytes(db):.0f} MB")
    for name, query in QUERIES.items():
        print(f"-- {name}")
        for row in db.execute(query):
            print("|".join(str(cell) for cell in row))
        progress(f"answered: {name}")
    db.execute("UPDATE package SET Description = Description || ' (' || Version || ')' WHERE edition % 2 = 0")
    progress("rewrote every second edition")
    print("-- after rewriting")
    for row in db.execute("SELECT edition, sum(length(Description)), max(Description) FROM package GROUP BY 1 ORDER BY 1"):
        print("|".join(str(cell) for cell in row))
    print("integrity", *db.execute("PRAGMA integrity_check").fetchone())


if __name__ == "__main__":
    main()
