"""Docstrings here are plain text with `code` in single backticks, not reStructuredText: say so to
Sphinx.

What reStructuredText would read as markup (emphasis, substitutions, references by a trailing
underscore) is escaped, and links from signatures find a type alias, which Sphinx files as data and
looks up as a class.
"""

from __future__ import annotations

import importlib
import inspect
import re
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.nodes import make_refnode

CODE = re.compile(r"(`+[^`]+`+)")
ENTRY = re.compile(r"(\w+(?:, \w+)*): (.*)")
MARKUP = re.compile(r"([*|\\]|(?<=\w)_(?!\w))")


def escape(line: str) -> str:
    """The line with reStructuredText's inline markup escaped outside of backticks, and code in
    double ones."""
    parts = CODE.split(line)
    return "".join(
        f"``{part.strip('`')}``" if i % 2 else MARKUP.sub(r"\\\1", part)
        for i, part in enumerate(parts)
    )


def process(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Escape a docstring in place, as autodoc-process-docstring asks for. A block that is set off
    is literal."""
    names = parameters(obj)
    lines[:] = [line for block in blocks(lines) for line in (listed(block, names) or joined(block))]
    out: list[str] = []
    literal = False
    for i, line in enumerate(lines):
        if line.startswith("    ") and i > 1 and not lines[i - 1].strip() and not literal:
            before = next((old for old in reversed(lines[:i]) if old.strip()), "")
            literal = not before.startswith(" ")
            if literal:
                out += ["::", ""]
        elif line.strip() and not line.startswith(" "):
            literal = False
        out.append(line if literal else escape(line))
    lines[:] = [embolden(line, names) for line in out]


def blocks(lines: list[str]) -> list[list[str]]:
    """The lines in paragraphs; a blank line is one of its own."""
    found: list[list[str]] = [[]]
    for line in lines:
        if bool(line.strip()) != bool(found[-1] and found[-1][-1].strip()):
            found.append([])
        found[-1].append(line)
    return found


def listed(block: list[str], names: tuple[str, ...]) -> list[str]:
    """A definition list of lines `name: what it is`, each of which may go on in indented lines;
    else nothing."""
    entries: list[list[str]] = []
    for line in block:
        match = ENTRY.fullmatch(line)
        if line.startswith("    ") and entries:
            entries[-1].append(f"   {line.strip()}")
        elif match and set(match[1].split(", ")) <= set(names):
            entries.append([f"`{match[1]}`", f"   {match[2]}"])
        else:
            return []
    return [line for entry in entries for line in entry] if len(entries) > 1 or block[1:] else []


def joined(block: list[str]) -> list[str]:
    """The lines of a paragraph, those that go on in deeper ones with them."""
    found: list[str] = []
    for line in block:
        deeper = bool(found) and margin(line) > margin(found[-1])
        if deeper and margin(block[0]) == 0 and not found[-1].endswith(":"):
            found[-1] += f" {line.strip()}"
        else:
            found.append(line)
    return found


def margin(line: str) -> int:
    """By how many spaces a line is indented."""
    return len(line) - len(line.lstrip())


def parameters(obj: Any) -> tuple[str, ...]:
    """The names that a docstring may explain."""
    try:
        return tuple(inspect.signature(obj).parameters) if callable(obj) else ()
    except (TypeError, ValueError):
        return ()


def embolden(line: str, names: tuple[str, ...]) -> str:
    """Parameters are explained in running text, as `name: what it is.`; their names stand out in
    bold."""
    if not names or line.startswith("    "):
        return line
    found = "|".join(map(re.escape, names))
    return re.sub(rf"(^|(?<=[.;] ))({found})(?=(, \w+)?: )", r"**\2**", line)


def shorten(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: Any, returns: Any
) -> Any:
    """Signatures without what Sphinx stumbles over: defaults made by a function, aliases inside
    other types."""

    def plain(text: str | None) -> str | None:
        return text and re.sub(
            r"TypeAliasForwardRef\('([\w.]+)'\)", r"\1", re.sub(r"<[^<>]*>", "...", text)
        )

    return plain(signature), plain(returns)


def resolve_alias(app: Sphinx, env: Any, node: Any, contnode: Any) -> nodes.Node | None:
    """What signatures name as a class and is none: a link where it is documented, else the bare
    name."""
    if node.get("refdomain") != "py":
        return None
    target: str = node["reftarget"]
    domain = env.get_domain("py")
    for name in (target, f"ttsnap.core.{target.rpartition('.')[2]}"):
        if name in domain.objects:
            found = domain.objects[name]
            return make_refnode(
                app.builder, node["refdoc"], found.docname, found.node_id, contnode, target
            )
    return contnode if is_alias(target) else None


def is_alias(target: str) -> bool:
    """Whether one of our modules has a type alias or a type variable of this (perhaps shortened)
    name."""
    where, _, name = target.rpartition(".")
    for module in (where, f"ttsnap.{where}"):
        if module.startswith("ttsnap."):
            try:
                found = getattr(importlib.import_module(module), name, None)
            except ImportError:
                continue
            return found is not None and not isinstance(found, type)
    return False


def skip_fields(
    app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any
) -> bool | None:
    """Fields of named tuples are in their signature, and Python's docstrings of them say
    nothing."""
    return True if type(obj).__name__ == "_tuplegetter" else None


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("autodoc-process-docstring", process)
    app.connect("autodoc-process-signature", shorten)
    app.connect("autodoc-skip-member", skip_fields)
    app.connect("missing-reference", resolve_alias)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
