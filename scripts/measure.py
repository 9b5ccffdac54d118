"""Counts signs of how simple the code is, and prints them as a table. They are signs, not the aim: it should read well.

python scripts/measure.py      # or: make measure
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("ttsnap", "pipelines", "reward_models", "distill")
PROGRAMS = ("scenes", "demo", "cli")
"""Rooms that are left out of some counts: the embedded world and what people run."""
MOST_LINES, MOST_PARAMETERS = 300, 6


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def names(paths: Iterable[Path], *wanted: str) -> int:
    """How often these names are read: `Any` in an annotation counts once each time that it is written."""
    found = 0
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            found += isinstance(node, ast.Name) and node.id in wanted
    return found


def functions(paths: Iterable[Path]) -> Iterator[int]:
    """The number of parameters of every function, without self and cls."""
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                yield sum(argument.arg not in ("self", "cls") for argument in given)


def fields(path: Path, name: str) -> int:
    """The number of fields of a dataclass."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    (found,) = (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == name)
    return sum(isinstance(node, ast.AnnAssign) for node in found.body)


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def measures() -> dict[str, int]:
    """What is counted, and how much of it there is."""
    every, own = sources(*PACKAGES), sources("ttsnap")
    inner = [path for path in own if not set(path.relative_to(ROOT).parts) & set(PROGRAMS)]
    families = [path for path in sources("pipelines/families") if path.stem != "__init__"]
    ignored = sum(len(re.findall(r"#\s*type:\s*ignore", path.read_text(encoding="utf-8"))) for path in every)
    return {
        "lines": sum(map(lines, every)),
        f"files over {MOST_LINES} lines": sum(lines(path) > MOST_LINES for path in every),
        "modules flat in ttsnap/": len(list((ROOT / "ttsnap").glob("*.py"))),
        "getattr and hasattr in ttsnap/, outside scenes, demo and cli": names(inner, "getattr", "hasattr"),
        "uses of Any in ttsnap/, outside scenes, demo and cli": names(inner, "Any"),
        f"functions in ttsnap/ with more than {MOST_PARAMETERS} parameters": sum(
            n > MOST_PARAMETERS for n in functions(own)
        ),
        "type: ignore": ignored,
        "fields of Move": fields(ROOT / "ttsnap/core/moves.py", "Move"),
        "lines of a family's file, on average": round(sum(map(lines, families)) / len(families)),
    }


if __name__ == "__main__":
    for what, count in measures().items():
        print(f"{count:>7,}  {what}")
