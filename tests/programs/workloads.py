"""The real programs of the matrix: how to make their input, how to start them, what of their output must be identical.

Each workload has two scales: "ci" (some tens of seconds in all, 20 to 200 MB) and "full" (about 1 GB where the program can use it).
Inputs are generated from fixed seeds and kept in a data directory between runs.
"""

import dataclasses
import hashlib
import os
import pathlib
import random
import shutil
import subprocess
import textwrap
from typing import Callable, Optional

HERE = pathlib.Path(__file__).resolve().parent


@dataclasses.dataclass
class Workload:
    name: str
    needs: list  # programs that must be installed; the first one is the one that is run
    prepare: Callable  # prepare(data_dir, scale): makes the input if it is not there
    command: Callable  # command(data_dir, scale, tools) -> argument list; runs in a fresh work directory
    outputs: Callable = lambda work: []  # output files in the work directory, compared beside stdout
    set_up: Callable = lambda data, work: None  # fills the fresh work directory
    limit: int = 120  # seconds for one run at ci scale; five times as much at full scale
    packages: str = ""  # Debian packages to name when `needs` is not met

    extra_check: Callable = lambda: None  # another reason why it cannot run, or None

    def missing(self) -> Optional[str]:
        for program in self.needs:
            if shutil.which(program) is None:
                return f"{program} is not installed (apt-get install {self.packages})"
        return self.extra_check()


def _write_once(path, write):
    """Creates `path` through a temporary name, so that an interrupted run leaves no half an input."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(path.suffix + ".partial")
    with open(partial, "w", encoding="ascii") as out:
        write(out)
    partial.rename(path)


_WORDS = ("page fault device memory migrate resident budget frame window clump store block table walk lock event "
          "thread kernel fetch evict huge zero dirty clean range notify owner share child parent").split()


def _text(out, megabytes, words_a_line=5):
    """Log-like lines in random order: a key that varies, words that repeat."""
    generator = random.Random(1)
    written = 0
    while written < megabytes << 20:
        lines = []
        for _ in range(10000):
            value = generator.getrandbits(96)
            words = " ".join(_WORDS[value >> shift & 31 if value >> shift & 31 < len(_WORDS) else 0]
                             for shift in range(0, 5 * words_a_line, 5))
            lines.append(f"{value >> 48:012x} {words} {value & 0xffffff}\n")
        block = "".join(lines)
        out.write(block)
        written += len(block)


# --- sort ---

_SORT_MB = {"ci": 12, "full": 1024}


def _sort_prepare(data, scale):
    # In a gigabyte, lines of 100 bytes: three times the memory of shorter ones would be sort's own notes about them.
    _write_once(data / f"text-{scale}", lambda out: _text(out, _SORT_MB[scale], 5 if scale == "ci" else 13))


def _sort_command(data, scale, tools):
    return ["sort", "--parallel=2", "-S", f"{_SORT_MB[scale] * 5 // 2}M", "-o", "sorted", data / f"text-{scale}"]


# --- sqlite3 ---

_SQL = """
.headers on
CREATE TABLE item(id INTEGER PRIMARY KEY, name TEXT, grp INTEGER, weight REAL, note TEXT);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows})
INSERT INTO item SELECT i, printf('item-%08x', (i * 2654435761) % 4294967296), (i * 48271) % 1000,
  ((i * 69621) % 100003) / 7.0, printf('note %d of group %d, checked %d times', i, (i * 48271) % 1000, i % 17) FROM n;
CREATE INDEX item_name ON item(name);
CREATE INDEX item_group ON item(grp, weight);
SELECT grp, count(*), round(sum(weight), 3), min(name), max(name) FROM item GROUP BY grp ORDER BY grp LIMIT 200;
SELECT count(*) FROM item a JOIN item b ON b.name = printf('item-%08x', ((a.id + 1) * 2654435761) % 4294967296)
  WHERE a.id % 10 = 0;
UPDATE item SET note = note || ' again' WHERE id % 5 = 0;
DELETE FROM item WHERE grp BETWEEN 100 AND 150;
SELECT count(*), sum(length(note)), max(name) FROM item;
SELECT name, weight FROM item WHERE name > 'item-8' ORDER BY name LIMIT 100;
PRAGMA integrity_check;
"""


def _sqlite_prepare(data, scale):
    rows = {"ci": 150_000, "full": 5_000_000}[scale]
    _write_once(data / f"queries-{scale}.sql", lambda out: out.write(_SQL.format(rows=rows)))


def _sqlite_command(data, scale, tools):
    return ["sqlite3", "-batch", "-init", "/dev/null", ":memory:", f".read {data}/queries-{scale}.sql"]


# --- python3 with numpy ---

_NUMPY = """
import hashlib, sys
import numpy as np
n = int(sys.argv[1]) * (1 << 20) // 8 // 4
generator = np.random.Generator(np.random.PCG64(7))
a = generator.integers(0, 1 << 20, n, dtype=np.int64)
b = generator.standard_normal(n)
order = np.argsort(a, kind="stable")
c = b[order]
print(hashlib.sha256(c.tobytes()).hexdigest())
print(hashlib.sha256(np.cumsum(a).tobytes()).hexdigest())
for step in range(4):
    b = np.sqrt(np.abs(c)) + a * 1e-6
    c = b[::-1].copy()
    print(step, hashlib.sha256(c.tobytes()).hexdigest())
m = int(n ** 0.5) // 8 * 8
print(hashlib.sha256(np.ascontiguousarray(a[: m * m].reshape(m, m).T)).hexdigest())
print(len(np.unique(a)), int(a.sum()))
"""


def _numpy_prepare(data, scale):
    _write_once(data / "arrays.py", lambda out: out.write(_NUMPY))


def _numpy_missing_package():
    done = subprocess.run(["/usr/bin/python3", "-c", "import numpy"], capture_output=True, check=False)
    return None if done.returncode == 0 else "/usr/bin/python3 has no numpy (apt-get install python3-numpy)"


# --- cc1plus ---

_CPP_CLASSES = {"ci": 3, "full": 60}


def _cpp_source(out, classes):
    out.write("#include <algorithm>\n#include <functional>\n#include <map>\n#include <memory>\n#include <string>\n"
              "#include <unordered_map>\n#include <variant>\n#include <vector>\n\n")
    for i in range(classes):
        out.write(textwrap.dedent(f"""\
            struct Key{i} {{ int a; long b; bool operator<(const Key{i}& o) const {{ return a < o.a || b < o.b; }} }};
            struct Record{i} {{
              std::map<Key{i}, std::vector<std::string>> index;
              std::unordered_map<std::string, std::variant<int, std::string, std::vector<Key{i}>>> values;
              std::vector<std::unique_ptr<Key{i}>> owned;
              std::function<int(const Key{i}&)> score = [](const Key{i}& k) {{ return k.a * {i} + 1; }};
              int run(int n) {{
                for (int i = 0; i < n; ++i) {{
                  index[Key{i}{{i % 7, i}}].push_back(std::to_string(i));
                  values["k" + std::to_string(i % 13)] = std::vector<Key{i}>{{{{i, n}}}};
                  owned.push_back(std::make_unique<Key{i}>(Key{i}{{i, {i}}}));
                }}
                std::sort(owned.begin(), owned.end(), [](const auto& x, const auto& y) {{ return *x < *y; }});
                int sum = 0;
                for (auto& [k, v] : index) sum += score(k) + static_cast<int>(v.size());
                for (auto& [k, v] : values) sum += static_cast<int>(v.index());
                return sum;
              }}
            }};
            int use{i}(int n) {{ Record{i} r; return r.run(n); }}
            """))


def _cc1plus_prepare(data, scale):
    _write_once(data / f"large-{scale}.cc", lambda out: _cpp_source(out, _CPP_CLASSES[scale]))


# --- node ---

_NODE = """
const n = Number(process.argv[2]);
const { execSync } = require('child_process');
const crypto = require('crypto');
const sum = (s) => crypto.createHash('sha256').update(s).digest('hex');
const map = new Map();
for (let i = 0; i < n; i++) map.set('key' + (i * 2654435761 % 4294967296), { id: i, tags: ['a' + i % 31, 'b' + i % 17] });
let total = 0;
for (const [k, v] of map) total += v.id % 97 + v.tags[0].length + k.length;
console.log(map.size, total);
const text = JSON.stringify([...map].slice(0, n / 2));
console.log(text.length, sum(text));
const back = JSON.parse(text);
console.log(back.length, back[back.length - 1][1].id);
console.log(execSync('echo from a child').toString().trim());
const buffer = Buffer.alloc(n * 128);
for (let i = 0; i < buffer.length; i += 4) buffer.writeUInt32LE((i * 40503) >>> 0 & 0xffffff, i);
console.log(sum(buffer));
for (let i = 0; i < n; i += 3) map.delete('key' + (i * 2654435761 % 4294967296));
let check = 0;
for (const v of map.values()) check = (check * 31 + v.id) % 1000000007;
console.log(map.size, check, sum(buffer));
"""


def _node_prepare(data, scale):
    _write_once(data / "maps.js", lambda out: out.write(_NODE))


# --- java ---

_JAVA = """
import java.util.*;
public class Maps {
  static int depth(Integer[] values, int i) {
    try { return values[i].intValue(); } catch (NullPointerException e) { return -1; }
  }
  static int[] record(int i) {
    int[] values = new int[200];
    for (int k = 0; k < values.length; k++) values[k] = i / (k + 1) % 1013;
    values[0] = i;
    return values;
  }
  public static void main(String[] args) throws Exception {
    int n = Integer.parseInt(args[0]);
    Map<String, int[]> map = new HashMap<>();
    for (int i = 0; i < n; i++) map.put("key" + i * 31L % 1000003 + "-" + i, record(i));
    long sum = 0;
    for (var e : map.entrySet()) sum += e.getKey().length() * 3L + e.getValue()[0];
    System.out.println(map.size() + " " + sum);
    // Implicit null checks are signals that the machine itself handles.
    Integer[] holes = new Integer[100000];
    for (int i = 0; i < holes.length; i += 2) holes[i] = i;
    long caught = 0;
    for (int round = 0; round < 20; round++) for (int i = 0; i < holes.length; i++) caught += depth(holes, i);
    System.out.println(caught);
    // Comparing strings that lie anywhere: each comparison is a fault or two, so not all of them.
    List<String> keys = new ArrayList<>();
    for (String k : map.keySet()) if (k.hashCode() % 64 == 0) keys.add(k);
    Collections.sort(keys);
    long hash = 7;
    for (String k : keys) hash = hash * 1000003 + k.hashCode() + map.get(k)[3];
    System.out.println(hash);
    for (int round = 0; round < 30; round++) {
      byte[][] garbage = new byte[64][];
      for (int i = 0; i < 64; i++) { garbage[i] = new byte[65536]; Arrays.fill(garbage[i], (byte) (i + round)); }
      for (int i = 0; i < 64; i++) hash = hash * 31 + garbage[i][i * 7];
    }
    System.out.println(hash);
  }
}
"""


def _java_prepare(data, scale):
    classes = data / "java"
    _write_once(classes / "Maps.java", lambda out: out.write(_JAVA))
    if not (classes / "Maps.class").exists():
        subprocess.run(["javac", "-d", classes, classes / "Maps.java"], check=True)


def _java_command(data, scale, tools):
    heap, n = {"ci": ("72m", "35000"), "full": ("1400m", "1000000")}[scale]
    # The heap at its full size from the start: how it grows depends on the time that things take.
    return ["java", f"-Xms{heap}", f"-Xmx{heap}", "-XX:+UseSerialGC", "-Xshare:auto", "-cp", data / "java", "Maps", n]


# --- perl ---

_PERL = """
use strict;
my $n = shift;
our %h;  # a lexical would be freed piece by piece at the end: a fault for each
for my $i (1 .. $n) { $h{sprintf('%08x', ($i * 2654435761) % 4294967296)} = "value $i " . ($i % 101) . ' and more of it' x 40; }
my ($sum, $checked) = (0, 0);
for (my $i = 1; $i <= $n; $i += 25) {  # each look-up is a handful of faults
  my $v = $h{sprintf('%08x', ($i * 2654435761) % 4294967296)};
  die "wrong value for $i" if $v ne "value $i " . ($i % 101) . ' and more of it' x 40;
  $checked++;
  $sum = ($sum * 31 + length $v) % 1000000007;
}
my $k = 0;
my @some = grep { /00$/ } keys %h;  # comparing all of them means a fault each: a measurement of patience
for my $key (sort @some) { $k = ($k * 33 + hex substr($key, 0, 4)) % 1000000007; }
print "$checked $sum $k ", scalar(keys %h), "\\n";
"""


def _perl_prepare(data, scale):
    _write_once(data / "hash.pl", lambda out: out.write(_PERL))


# --- git gc ---

_GIT_BLOBS = {"ci": (8, 5, 500), "full": (60, 10, 2000)}  # files, versions, KiB each


def _git_prepare(data, scale):
    """A bare repository of loose history, made by fast-import: many versions of a few large text files."""
    repository = data / f"repository-{scale}.git"
    if repository.exists():
        return
    files, versions, kib = _GIT_BLOBS[scale]
    partial = data / f"partial-{scale}.git"
    shutil.rmtree(partial, ignore_errors=True)
    data.mkdir(parents=True, exist_ok=True)
    subprocess.run(["git", "init", "-q", "--bare", "-b", "main", partial], check=True)
    importer = subprocess.Popen(["git", "-C", partial, "fast-import", "--quiet"], stdin=subprocess.PIPE)
    generator = random.Random(3)
    lines = [[f"{generator.getrandbits(64):016x} {i} {_WORDS[i % len(_WORDS)]}\n" for i in range(kib * 1024 // 32)]
             for _ in range(files)]
    for version in range(versions):
        out = [f"commit refs/heads/main\ncommitter Test <t@example.org> {1700000000 + version} +0000\ndata 2\nc\n\n"]
        for number, content in enumerate(lines):
            for _ in range(50):
                at = generator.randrange(len(content))
                content[at] = f"{generator.getrandbits(64):016x} changed in {version}\n"
            text = "".join(content)
            out.append(f"M 100644 inline file{number}\ndata {len(text)}\n{text}\n")
        importer.stdin.write("".join(out).encode())
    importer.stdin.close()
    if importer.wait() != 0:
        raise RuntimeError("git fast-import failed")
    partial.rename(repository)


def _git_set_up(data, work):
    scale = work.name
    shutil.copytree(data / f"repository-{scale}.git", work / "repository.git")


def _git_command(data, scale, tools):
    # One thread and fixed settings: the pack is then the same bytes each time. gc reports, fsck re-reads everything.
    script = ("cd repository.git && git -c pack.threads=1 -c gc.auto=0 -c pack.windowMemory=0 -c core.bigFileThreshold=1g "
              "gc --quiet --aggressive --prune=now && git fsck --full --strict && git count-objects -v && "
              "sha256sum objects/pack/*.pack && git log --format=%H%T | sha256sum")
    return ["sh", "-c", script]


# --- fork storm ---

_FORKS = """
declare -A table
n=$1
printf -v padding '%0250d' 7
for ((i = 0; i < n; i++)); do table[key$i]="value $((i * 7919 % 10007)) of $i $padding"; done
sum=0
for ((i = 0; i < 100; i++)); do
  v=$(echo "${table[key$((i * 331 % n))]}" | tr a-z A-Z)   # two forks each
  sum=$(((sum * 31 + ${#v}) % 1000003))
done
for ((i = 0; i < n; i += 997)); do echo "${table[key$i]}"; done | cksum
ls -d / | while read -r line; do echo "$line"; done
(for ((i = 0; i < n; i += 13)); do table[key$i]=changed; done; echo "${#table[@]} ${table[key13]}")
echo "${#table[@]} $sum ${table[key13]:0:30}"
"""


def _forks_prepare(data, scale):
    _write_once(data / "forks.sh", lambda out: out.write(_FORKS))


# --- xz ---

_XZ_MB = {"ci": 5, "full": 60}
_XZ_LINES = {"ci": 100, "full": 600}


def _repeated_text(out, megabytes, line_count):
    """The same few kilobytes again and again, a line in fifty another one each time: where text never repeats the search
    for matches touches a random page for each byte, and shows nothing but patience."""
    generator = random.Random(5)
    lines = [f"{generator.getrandbits(64):016x} {' '.join(generator.choices(_WORDS, k=4))}\n" for _ in range(line_count)]
    written = 0
    while written < megabytes << 20:
        for _ in range(len(lines) // 50):
            lines[generator.randrange(len(lines))] = f"{generator.getrandbits(64):016x} {generator.choice(_WORDS)}\n"
        block = "".join(lines)
        out.write(block)
        written += len(block)


def _xz_prepare(data, scale):
    _write_once(data / f"xz-repeated-{scale}", lambda out: _repeated_text(out, _XZ_MB[scale], _XZ_LINES[scale]))


def _xz_command(data, scale, tools):
    # The small text with a dictionary of its size: the tables of the usual one (64 MiB) would be all that is measured.
    mode = {"ci": "--lzma2=preset=9e,dict=8MiB", "full": "-9e"}[scale]
    return ["sh", "-c", f"xz {mode} -T1 -c '{data}/xz-repeated-{scale}' > packed.xz && xz -dc packed.xz | cksum"]


def simple_workloads():
    """Workloads of the kind: start it, wait for it, compare what it wrote."""
    return [
        Workload("sort", ["sort"], _sort_prepare, _sort_command, outputs=lambda work: [work / "sorted"],
                 limit=240),
        Workload("sqlite3", ["sqlite3"], _sqlite_prepare, _sqlite_command, packages="sqlite3"),
        Workload("numpy", ["/usr/bin/python3"], _numpy_prepare,
                 lambda data, scale, tools: ["/usr/bin/python3", data / "arrays.py", {"ci": "110", "full": "1000"}[scale]],
                 packages="python3 python3-numpy", extra_check=_numpy_missing_package),
        Workload("cc1plus", ["/usr/bin/g++"], _cc1plus_prepare,
                 lambda data, scale, tools: ["/usr/bin/g++", "-std=c++17", "-O1", "-c", data / f"large-{scale}.cc",
                                             "-o", "large.o"],
                 outputs=lambda work: [work / "large.o"], packages="g++", limit=240),
        Workload("node", ["node"], _node_prepare,
                 lambda data, scale, tools: ["node", data / "maps.js", {"ci": "300000", "full": "2000000"}[scale]],
                 packages="nodejs"),
        Workload("java", ["java", "javac"], _java_prepare, _java_command, packages="openjdk-17-jdk-headless",
                 limit=240),
        Workload("perl", ["perl"], _perl_prepare,
                 lambda data, scale, tools: ["perl", data / "hash.pl", {"ci": "35000", "full": "1000000"}[scale]],
                 packages="perl", limit=240),
        Workload("git", ["git"], _git_prepare, _git_command, set_up=_git_set_up, packages="git", limit=240),
        Workload("forks", ["bash"], _forks_prepare,
                 lambda data, scale, tools: ["bash", data / "forks.sh", {"ci": "60000", "full": "1500000"}[scale]],
                 packages="bash"),
        Workload("threads", ["true"], lambda data, scale: None,
                 lambda data, scale, tools: [tools.hostile, "thread-churn", {"ci": "32", "full": "512"}[scale]]),
        Workload("xz", ["xz"], _xz_prepare, _xz_command, outputs=lambda work: [work / "packed.xz"],
                 packages="xz-utils", limit=240),
    ]


def digest(path):
    """SHA-256 of a file, or of its absence."""
    if not os.path.exists(path):
        return "absent"
    sha = hashlib.sha256()
    with open(path, "rb") as data:
        for block in iter(lambda: data.read(1 << 20), b""):
            sha.update(block)
    return sha.hexdigest()
