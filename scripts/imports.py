"""What the code imports, read from its text: nothing is run. For the test of layers, measure.py,
draw_architecture.py.

A module is named as it is imported ("ttsnap.pipelines.mixin"). An arrow leads from a module to each
module that it imports: inside functions too, for type checkers too, and by name, as in
load_object("a.b:c").
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Collection, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
APART = ("pipelines", "reward_models", "distill")
"""Rooms that have folders of their own beside ttsnap/, to which links lead from there."""
NAME = re.compile(r"(ttsnap(?:\.\w+)+)\.?(?::[\w.]+)?")
"""A text that names a module of ours, or something in it, as registries do; the start of one in an
f-string."""


@functools.cache
def modules() -> dict[str, Path]:
    """Every module by its name; a package is its __init__."""
    found = {}
    for folder in ("", *APART):  # rglob follows no links
        for path in sorted((ROOT / "ttsnap" / folder).rglob("*.py")):
            found[
                ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            ] = path
    return found


def module_of(name: str) -> str:
    """The module that a dotted name lies in: itself, or what it is taken from; "ttsnap" or nothing
    for other names."""
    while name and name not in modules():
        name = name.rpartition(".")[0]
    return name


def room_of(module: str) -> str:
    """The part of its name after "ttsnap"; empty for that itself."""
    return module.split(".")[1] if "." in module else ""


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def imported(path: Path, *, run: bool = False) -> tuple[str, ...]:
    """Dotted names of all that a file imports; of `from a import b` that is a.b, module or not.

    run: only what is imported when it runs, not what only type checkers read (`if TYPE_CHECKING:`).
    """
    nodes = list(ast.walk(tree_of(path)))
    ifs = [node for node in nodes if isinstance(node, ast.If)] if run else []
    typing = {
        part
        for node in ifs
        if ast.unparse(node.test) == "TYPE_CHECKING"
        for statement in node.body
        for part in ast.walk(statement)
    }
    found: list[str] = []
    for node in nodes:
        if isinstance(node, ast.Import) and node not in typing:
            found += [alias.name for alias in node.names]
        elif (
            isinstance(node, ast.ImportFrom)
            and node.module
            and not node.level
            and node not in typing
        ):
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return tuple(found)


@functools.cache
def named(path: Path) -> tuple[str, ...]:
    """Modules of ours that a file names in texts, from which they may be imported."""
    texts = [node.value for node in ast.walk(tree_of(path)) if isinstance(node, ast.Constant)]
    matches = [NAME.fullmatch(text) for text in texts if isinstance(text, str)]
    return tuple(module for match in matches if match and "." in (module := module_of(match[1])))


def arrows(without: Collection[str] = ()) -> dict[str, set[str]]:
    """Of every module those that it imports. without: modules whose texts do not count, as they are
    registries."""
    return {
        module: {
            module_of(name)
            for name in (*imported(path), *(() if module in without else named(path)))
        }
        - {"", "ttsnap", module}
        for module, path in modules().items()
    }


def between_rooms(arrows: Mapping[str, Collection[str]]) -> dict[str, set[str]]:
    """The same between rooms, the command line and other packages; modules that stand in no room
    are left out."""
    rooms = {room_of(module) for module in arrows if module.count(".") > 1}
    found: dict[str, set[str]] = {room: set() for room in sorted(rooms)}
    for module, targets in arrows.items():
        if (room := room_of(module)) in rooms:
            found[room] |= {room_of(target) for target in targets} & rooms - {room}
    return found


def circles(arrows: Mapping[str, Collection[str]]) -> list[list[str]]:
    """Groups of nodes each of which can be reached from every other one of its group."""

    def reach(node: str) -> set[str]:
        found, left = set[str](), list(arrows[node])
        while left:
            if (at := left.pop()) not in found:
                found.add(at)
                left += arrows[at]
        return found

    ways = {node: reach(node) for node in arrows}
    groups = {
        frozenset(other for other in ways[node] if node in ways[other])
        for node in arrows
        if node in ways[node]
    }
    return sorted(sorted(group) for group in groups)
