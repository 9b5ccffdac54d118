"""Counts signs of how simple the code is, and prints them as a table. They are signs, not the aim: it should read well.

python scripts/measure.py            # or: make measure
python scripts/measure.py --trace    # and what a live search enters (trace_search.py), in half a minute
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from imports import APART, ROOT, arrows, between_rooms, circles, modules, named, room_of, tree_of

CORE = ("core", "loop", "algorithms", "engine", "sampling")
"""The rooms in which a search is decided and run."""
PROGRAMS = ("scenes", "demo", "cli")
"""Rooms that are left out of the counts of probes: the embedded world and what people run."""
DOORS = ("cli", "service", "demo", "cluster", "comfyui")
"""Rooms by which people come in: they hold how users type, a listener, and how a result is shown."""
FRAMEWORKS = ("files/settings", "options/option", "cli/parser", "cli/arguments", "cli/help", "cli/configs",
              "request/limits", "request/offer", "service/requests", "service/bodies", "service/sizes")  # fmt: skip
"""Modules of ttsnap that check values, declare options and parse them."""
SENTENCE = re.compile(r'match=r?f?"(?:[^"\s]+\s+){3}')
"""What a test matches in four words or more."""
GRADIENTS = re.compile(r"gradient", re.IGNORECASE)
FEWEST_LINES, MOST_LINES, MOST_PARAMETERS, MOST_WORDS = 60, 300, 6, 20
FILES = modules()
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
MADE_BY = {"model", "sampler", "call"}
"""Keys of what PNGs, traces and recordings note of how an image was made."""


def nodes(paths: Iterable[Path]) -> Iterator[ast.AST]:
    for path in paths:
        yield from ast.walk(tree_of(path))


def count(paths: Iterable[Path], matches: Callable[[ast.AST], int]) -> int:
    return sum(map(matches, nodes(paths)))


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def lines(path: Path) -> int:
    return len(text_of(path).splitlines())


def reads(*wanted: str) -> Callable[[ast.AST], bool]:
    """Whether a node reads one of these names: `Any` in an annotation counts once each time that it is written."""
    return lambda node: isinstance(node, ast.Name) and node.id in wanted


def parameters(function: ast.AST) -> int:
    """Of a function, without self and cls; 0 for other nodes."""
    if not isinstance(function, DEFINITIONS):
        return 0
    given = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    return sum(argument.arg not in ("self", "cls") for argument in given)


def is_short(function: ast.AST) -> bool:
    """Whether a function has one statement or none beside its docstring."""
    if not isinstance(function, DEFINITIONS):
        return False
    return len(function.body) - (ast.get_docstring(function) is not None) <= 1


def unpackings(node: ast.AST) -> int:
    """How often a call or a dict unpacks an options object, by `**values(options)`."""
    unpacked = [node.value] if isinstance(node, ast.keyword) and node.arg is None else []
    if isinstance(node, ast.Dict):
        unpacked = [value for key, value in zip(node.keys, node.values, strict=True) if key is None]
    return sum(isinstance(value, ast.Call) and ast.unparse(value.func) == "values" for value in unpacked)


def notes_how(node: ast.AST) -> bool:
    """Whether this writes out how an image was made."""
    keys = {key.value for key in node.keys if isinstance(key, ast.Constant)} if isinstance(node, ast.Dict) else set()
    return keys >= MADE_BY


def classes() -> dict[str, list[ast.ClassDef]]:
    """Every class by its name, which may have several homes."""
    found: dict[str, list[ast.ClassDef]] = defaultdict(list)
    for node in nodes(FILES.values()):
        if isinstance(node, ast.ClassDef):
            found[node.name].append(node)
    return found


def chain(name: str, found: dict[str, list[ast.ClassDef]], root: str) -> int:
    """How many classes stand in line from this one down to `root`, both counted; 0 where it is not one of its bases."""
    if name == root:
        return 1
    bases = {ast.unparse(base).split("[")[0].split(".")[-1] for one in found.get(name, ()) for base in one.bases}
    longest = max((chain(base, found, root) for base in bases - {name}), default=0)
    return longest + 1 if longest else 0


def inside(kind: type[ast.AST], path: str, name: str) -> int:
    """How many nodes of this kind a class defines."""
    (found,) = (node for node in nodes([ROOT / path]) if isinstance(node, ast.ClassDef) and node.name == name)
    return sum(isinstance(node, kind) for node in found.body)


def longest_entry() -> int:
    """Lines of the longest entry of a version in the changelog."""
    return max(len(part.splitlines()) for part in text_of(ROOT / "CHANGELOG.md").split("\n## ")[1:])


def long_sentences(page: str) -> int:
    """Sentences of a page's paragraphs and lists with more than MOST_WORDS words; a piece of code counts as one."""
    text = re.sub(r"^( *)(`{3,}|:{3,}).*?^\1\2 *$|!\[[^\]]*\]\([^)]*\)", "", page, flags=re.M | re.S)
    text = re.sub(r"\[((?:[^\[\]]|\[[^\]]*\])*)\]\([^)]*\)", r"\1", text)  # links: their texts
    blocks = re.split(r"\n\s*\n|\n(?= *(?:[-*]|\d+\.) )", text)
    prose = [" ".join(block.split()) for block in blocks if not re.match(r"\s*[#|]|    ", block)]
    sentences = [part for block in prose for part in re.split(r"(?<=[.!?])[\"*)]* +(?=[A-Z`\"*(\[])", block)]
    return sum(len(re.findall(r"\w[\w'’.-]*", re.sub(r"`[^`]*`", "code", part))) > MOST_WORDS for part in sentences)


def measures() -> dict[str, int]:
    """What is counted, and how much of it there is."""
    every = list(FILES.values())
    own = [path for module, path in FILES.items() if room_of(module) not in APART]
    core = [path for module, path in FILES.items() if room_of(module) in CORE]
    checked = [path for path in own if not set(path.relative_to(ROOT).parts) & set(PROGRAMS)]
    families = [path for path in every if path.parent.name == "families" and path.stem != "__init__"]
    homes, every_arrow = classes(), arrows()
    by_name = {module: {room_of(other) for other in named(path)} for module, path in FILES.items()}
    all_functions = count(every, lambda node: isinstance(node, DEFINITIONS))
    doors = [path for path in every if path.relative_to(ROOT).parts[:2] in {("ttsnap", door) for door in DOORS}]
    tests = sorted((ROOT / "tests").rglob("*.py"))
    journal = [path for folder in ("journal", "evidence") for path in sorted((ROOT / "docs" / folder).glob("*.md"))]
    made = ROOT / "docs" / "reference" / "commands"  # by the build of the site
    prose = [
        ROOT / "README.md",
        *(p for p in (ROOT / "docs").rglob("*.md") if p not in journal and made not in p.parents),
    ]
    return {
        "lines": sum(map(lines, every)),
        "lines of the doors": sum(map(lines, doors)),
        "lines of own checks, options and parsers": sum(
            lines(path) for name in FRAMEWORKS if (path := ROOT / "ttsnap" / f"{name}.py").is_file()
        ),
        "files that mention gradients": sum(bool(GRADIENTS.search(text_of(path))) for path in every),
        "functions called request_of": count(
            every, lambda node: isinstance(node, DEFINITIONS) and node.name == "request_of"
        ),
        "lines of the tests": sum(map(lines, tests)),
        "places where a test matches four words or more": sum(len(SENTENCE.findall(text_of(path))) for path in tests),
        "words of README and docs": sum(len(text_of(path).split()) for path in prose),
        f"sentences there of more than {MOST_WORDS} words": sum(long_sentences(text_of(path)) for path in prose),
        "words of the journal and the evidence": sum(len(text_of(path).split()) for path in journal),
        "lines of the longest entry of the changelog": longest_entry(),
        "files": len(every),
        f"files under {FEWEST_LINES} lines": sum(lines(path) < FEWEST_LINES for path in every),
        f"files over {MOST_LINES} lines": sum(lines(path) > MOST_LINES for path in every),
        "modules flat in ttsnap/": len(list((ROOT / "ttsnap").glob("*.py"))),
        "functions": all_functions,
        "% of them of one statement or none": round(100 * count(every, is_short) / all_functions),
        f"functions in ttsnap/ with more than {MOST_PARAMETERS} parameters": count(
            own, lambda node: parameters(node) > MOST_PARAMETERS
        ),
        "options unpacked into keywords by **values(": count(every, unpackings),
        "places that write how an image was made": count(every, notes_how),
        "classes named Asked, Wanted or Configuration": sum(
            len(homes[name]) for name in ("Asked", "Wanted", "Configuration")
        ),
        "class names with several homes": sum(len(found) > 1 for found in homes.values()),
        "longest chain of denoiser classes": max(chain(name, homes, "Denoiser") for name in list(homes)),
        "methods of Denoiser": inside(ast.FunctionDef, "ttsnap/sampling/denoiser.py", "Denoiser"),
        "fields of Move": inside(ast.AnnAssign, "ttsnap/core/moves.py", "Move"),
        "import circles between modules": len(circles(arrows(without=FILES))),
        "import circles between rooms, imports by name included": len(circles(between_rooms(every_arrow))),
        "modules that name modules of another room in texts": sum(
            bool(rooms - {room_of(module)}) for module, rooms in by_name.items()
        ),
        "getattr and hasattr in ttsnap/, outside scenes, demo and cli": count(checked, reads("getattr", "hasattr")),
        "uses of Any in ttsnap/, outside scenes, demo and cli": count(checked, reads("Any")),
        f"uses of Any in {', '.join(CORE)}": count(core, reads("Any")),
        "type: ignore": sum(len(re.findall(r"#\s*type:\s*ignore", text_of(path))) for path in every),
        "lines of a family's file, on average": round(sum(map(lines, families)) / len(families)),
    }


if __name__ == "__main__":
    for what, number in measures().items():
        print(f"{number:>7,}  {what}")
    if "--trace" in sys.argv[1:]:
        subprocess.run([sys.executable, str(Path(__file__).with_name("trace_search.py"))], check=True)
