#!/usr/bin/env python3
"""Writes random replay scripts: generate.py FIRST LAST DIRECTORY.

Every seed gives one script of 20 to 60 operations, always the same one. Seeds 0, 1 modulo 4 use only the two
device-private nodes; seeds 2, 3 modulo 4 also use the device-coherent ones. A script works in a small part of the
window (four 2 MiB units) so that its operations meet. In random.vectors, device accesses that would crash the real driver
have been left out since; scripts straight from here may hold such, so keep them away from a real kernel.
"""
import random
import sys

UNIT, SPAN, END = 512, 2048, 4096      # remap also uses the units beyond the span


class Script:
    def __init__(self, seed):
        self.rng = random.Random(seed * 7919 + 17)
        self.coherent = seed % 4 >= 2
        self.lines = [f"# seed {seed}"]
        self.val = 0
        self.depth = 0
        self.files = 0
        self.ranges = []          # (off, n) that were mapped at some time
        self.handles = {}         # letter -> node

    def say(self, text):
        self.lines.append(" " * self.depth + text)

    def value(self):
        self.val += 1
        return self.val

    def span(self, whole=0.3):
        """A range, mostly inside something mapped."""
        r = self.rng
        if not self.ranges or r.random() < 0.05:
            off = r.randrange(SPAN)
            return off, min(r.choice([1, 3, 16, 100]), SPAN - off)
        off, n = r.choice(self.ranges)
        kind = r.random()
        if kind < whole:
            return off, n
        if kind < whole + 0.2 and n >= UNIT:               # an aligned unit inside
            first = (off + UNIT - 1) // UNIT * UNIT
            if first + UNIT <= off + n:
                count = (off + n - first) // UNIT
                return first + UNIT * r.randrange(count), UNIT
        start = off + r.randrange(n)
        if r.random() < 0.3:
            start = min(off + n - 1, max(off, (start + 85) // 170 * 170))     # thirds of a unit
        length = r.choice([1, 1, 2, 4, 8, 31, 33, 64, 65, 170, 512, 700])
        if r.random() > 0.1:
            length = min(length, off + n - start)
        return start, max(1, min(length, END - start))

    def page_run(self):
        off, n = self.span(0.1)
        n = min(n, self.rng.choice([1, 1, 1, 2, 5, 20, 600]))
        if n > 2 and self.rng.random() < 0.3:
            step = self.rng.choice([2, 3, 7, 64])
            return off, max(1, n // step), step
        return off, n, 1

    def device(self):
        return self.rng.choice(sorted(self.handles))

    # -- operations

    def map(self):
        r = self.rng
        n = r.choice([4, 16, 40, 200, 512, 512, 512, 1024, 1024, 700])
        off = r.choice([0, 0, 512, 512, 1024, 1536, 100, 300, 600, 1000])
        n = min(n, SPAN - off)
        kind = r.choices(["anon", "shanon", "file", "shfile"], [80, 4, 8, 8])[0]
        if kind.endswith("file"):
            n = min(n, 24)
            self.say(f"mkfile {self.files % 4} {n} {self.value()}")
            kind += f":{self.files % 4}"
            self.files += 1
        prot = r.choices(["rw", "r", "-"], [90, 8, 2])[0]
        how = r.choices([" huge", "", " nohuge"], [60, 20, 20])[0]
        self.say(f"map {off} {n} {prot} {kind}{how}")
        self.ranges.append((off, n))
        if len(self.ranges) > 3:
            self.ranges.pop(0)

    def unmap(self):
        off, n = self.span(0.1)
        self.say(f"unmap {off} {n}")

    def protect(self):
        off, n = self.span()
        self.say(f"protect {off} {n} {self.rng.choices(['r', 'rw', '-'], [40, 50, 10])[0]}")

    def advise(self):
        off, n = self.span()
        how = self.rng.choices(["dontneed", "free", "collapse", "popread", "popwrite", "cold", "hugepage", "nohugepage",
                                "dontfork", "wipeonfork"], [22, 6, 12, 14, 14, 4, 10, 6, 3, 3])[0]
        if how == "collapse":
            off, n = off // UNIT * UNIT, UNIT
        self.say(f"advise {off} {n} {how}")

    def remap(self):
        r = self.rng
        off, n = self.span()
        if r.random() < 0.15:
            self.say(f"remap {off} {n} {off} {max(1, n // 2)} stay")
            return
        to = r.choice([2048, 2560, 3072, 3100, 2048 + off, 2048 + off % 512])
        self.say(f"remap {off} {n} {to} {n} {r.choices(['fixed', 'dontunmap'], [70, 30])[0]}")
        self.ranges.append((to, n))
        if len(self.ranges) > 3:
            self.ranges.pop(0)

    def cpu_write(self):
        off, n, step = self.page_run()
        self.say(f"w {off} {n} {self.value()} {step}" if step > 1 else f"w {off} {n} {self.value()}")

    def cpu_read(self):
        off, n, step = self.page_run()
        self.say(f"r {off} {n} {step}" if step > 1 else f"r {off} {n}")

    def fill(self):
        off, n = self.span(0.6)
        self.say(f"w {off} {n} {self.value()}")

    def todev(self):
        self.say("todev {} {} {}".format(self.device(), *self.span(0.4)))

    def tosys(self):
        self.say("tosys {} {} {}".format(self.device(), *self.span(0.4)))

    def dread(self):
        self.say("dread {} {} {}".format(self.device(), *self.span(0.2)))

    def dwrite(self):
        self.say("dwrite {} {} {} {}".format(self.device(), *self.span(0.2), self.value()))

    def snap(self):
        if self.ranges and self.rng.random() < 0.7:
            off, n = self.rng.choice(self.ranges)
        else:
            off, n = self.span(0.5)
        self.say(f"snap {self.device()} {off} {n}")

    def excl(self):
        off, n = self.span(0.05)
        self.say(f"excl {self.device()} {off} {min(n, 20)}")

    def chkexcl(self):
        off, n = self.span(0.1)
        self.say(f"chkexcl {self.device()} {off} {n}")

    def fail(self):
        self.say(f"fail {self.device()}")

    def release(self):
        private = [h for h, d in self.handles.items() if d < 2]
        if private:
            self.say(f"release {self.rng.choice(sorted(private))}")

    def reopen(self):
        h = self.device()
        self.say(f"close {h}")
        self.say(f"open {h} {self.handles[h]}")

    def fork(self):
        if self.depth:
            return
        r = self.rng
        keep = list(self.ranges)
        self.say("fork")
        who = r.choice(["child", "parent"])
        for i in range(r.choice([1, 2, 2, 3])):
            self.say(who if i or r.random() < 0.9 else "child")
            self.depth = 2
            for _ in range(r.randrange(1, 6)):
                r.choices([self.cpu_read, self.cpu_write, self.unmap, self.advise, self.todev, self.tosys, self.snap,
                           self.dread, self.remap, self.protect, self.excl],
                          [22, 26, 4, 6, 10, 5, 12, 6, 2, 4, 3])[0]()
            self.depth = 0
            who = "parent" if who == "child" else "child"
        self.say("end")
        self.ranges = keep

    def write(self):
        r = self.rng
        nodes = [0, 1] if not self.coherent else r.choice([[2, 3], [2, 0], [2], [3, 1]])
        if r.random() < 0.35:
            nodes = nodes[:1]
        for letter, node in zip("ab", nodes):
            self.handles[letter] = node
            self.say(f"open {letter} {node}")
        self.map()
        self.fill()
        table = [(self.map, 5), (self.unmap, 3), (self.protect, 6), (self.advise, 8), (self.remap, 4), (self.cpu_write, 10),
                 (self.cpu_read, 9), (self.fill, 5), (self.todev, 22), (self.tosys, 7), (self.dread, 7), (self.dwrite, 7),
                 (self.snap, 14), (self.excl, 4), (self.chkexcl, 2), (self.fail, 4), (self.release, 1), (self.reopen, 1),
                 (self.fork, 5)]
        target = r.randrange(20, 58)
        while len(self.lines) < target:
            r.choices([f for f, _ in table], [w for _, w in table])[0]()
        for off, n in self.ranges:
            self.say(f"snap a {off} {n}")
        self.say(f"r 0 {SPAN}")
        self.say(f"r {SPAN} {END - SPAN}")
        return "\n".join(self.lines) + "\n"


def main():
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    for seed in range(int(sys.argv[1]), int(sys.argv[2]) + 1):
        with open(f"{sys.argv[3]}/random-{seed:03}.ops", "w") as out:
            out.write(Script(seed).write())


if __name__ == "__main__":
    main()
