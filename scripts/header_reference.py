"""The API reference: a public header as a page, its comments as text and its declarations as code.

The headers are written to be read from top to bottom, and one comment often speaks of several declarations; a page that keeps their
order and their neighbourhood says the same. Names of functions and types are anchors, and an index leads to them.
"""

import html
import re

# Names that a declaration introduces: C functions, types, C++ classes and members, macros.
NAMES = [re.compile(r"^#define (\w+)"), re.compile(r"^\s*(?:typedef )?(?:struct|class|enum class|enum|union)\s+(?:\w+\(.*?\)\s+)?(\w+)\s*(?:final\s*)?[:{;]"),
         re.compile(r"\b(\w+)\s*\([^()]*(?:\([^()]*\)[^()]*)*\)\s*(?:const)?\s*(?:noexcept)?\s*(?:WHIMBREL_API|HMM_API)?\s*(?:override)?\s*[;{]"), re.compile(r"^\w[\w *]*?\b(\w+)\([^;{]*$")]
KEYWORDS = {"if", "for", "while", "return", "switch", "sizeof", "alignof", "static_assert", "defined", "__attribute__", "catch", "requires"}


def page_name(header):
    return "reference/" + header.replace(".", "_") + ".html"


def pieces(text):
    """("text" or "code", lines) in the order of the file. Comments at the end of a line stay with their code."""
    lines, out = text.split("\n"), []

    def add(kind, some):
        if out and out[-1][0] == kind:
            out[-1][1].extend(some)
        else:
            out.append((kind, list(some)))
    i = 0
    while i < len(lines):
        bare = lines[i].strip()
        if bare.startswith("/*"):
            end = i
            while "*/" not in lines[end]:
                end += 1
            block = "\n".join(lines[i:end + 1]).strip()
            inner = re.sub(r"^ ?", "", re.sub(r"(?m)^\s*\*(?: |$)", "", re.sub(r"\s*\*/$", "", block[2:].lstrip("*"))))
            add("text", inner.split("\n"))
            i = end + 1
            continue
        if bare.startswith("//"):
            add("text", [re.sub(r"^//[/!]? ?", "", bare)])
        else:
            add("code", [lines[i]])
        i += 1
    return out


def paragraphs(lines):
    """Comment text as HTML: blank lines part paragraphs, indented lines are code, dashes make a heading."""
    out, block, code = [], [], []

    def flush():
        if block:
            out.append("<p>" + html.escape(" ".join(block)) + "</p>")
        if code:
            out.append("<pre><code>" + html.escape("\n".join(code)) + "</code></pre>")
        block.clear()
        code.clear()
    for line in lines:
        heading = re.match(r"^-{2,}\s*(.*?)\s*-{2,}$", line.strip())
        if heading and heading[1]:
            flush()
            out.append(f"<h2>{html.escape(heading[1])}</h2>")
        elif not line.strip():
            flush()
        elif line.startswith("  "):
            if block:
                flush()
            code.append(line)
        else:
            if code:
                flush()
            block.append(line.strip())
    flush()
    return "".join(re.sub(r"`([^`]+)`", r"<code>\1</code>", one) if one.startswith("<p>") else one for one in out)


def names_of(line):
    if line.startswith("#define") and ("_API" in line or len(line.split()) < 3):
        return  # of use to the header alone
    for pattern in NAMES:
        for name in pattern.findall(line):
            if name not in KEYWORDS and not name.startswith("_") and not name.isdigit():
                yield name


def code_block(lines, seen, headers):
    while lines and not lines[0].strip():
        lines = lines[1:]
    while lines and not lines[-1].strip():
        lines = lines[:-1]
    if not lines:
        return ""
    out = []
    for line in lines:
        text = html.escape(line)
        for name in names_of(line):
            if name not in seen:
                seen.append(name)
                text = re.sub(rf"\b{name}\b", f'<b id="{name}">{name}</b>', text, count=1)
        include = re.match(r"#include &lt;whimbrel/([\w.]+)&gt;", text)
        if include and include[1] in headers:
            text = f'#include &lt;whimbrel/<a href="{page_name(include[1]).split("/")[1]}">{include[1]}</a>&gt;'
        out.append(text)
    return "<pre><code>" + "\n".join(out) + "</code></pre>"


def page(header, headers):
    """(title, body) of one header."""
    seen, body = [], []
    for kind, lines in pieces(header.read_text()):
        body.append(paragraphs(lines) if kind == "text" else code_block(lines, seen, headers))
    index = " ".join(f'<a href="#{name}"><code>{name}</code></a>' for name in sorted(seen, key=str.lower))
    return f"whimbrel/{header.name}", f"<h1>whimbrel/{header.name}</h1><p class=index>{index}</p>" + "".join(body)
