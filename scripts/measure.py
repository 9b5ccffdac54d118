"""Counts signs of how simple the code is, and prints them as a table. They are signs, not the aim:
it should read well.

python scripts/measure.py            # or: make measure
python scripts/measure.py --budget   # fails above the tokens that pyproject.toml allows, as make lint does
python scripts/measure.py --trace    # and what a live search enters (trace_search.py), in half a minute
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
import tomllib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from imports import APART, ROOT, arrows, between_rooms, circles, modules, room_of, tree_of

CORE = ("core", "loop", "algorithms", "engine", "sampling")
"""The rooms in which a search is decided and run."""
PROGRAMS = ("scenes", "demo", "cli")
"""Rooms that are left out of the counts of probes: the embedded world and what people run."""
DOORS = ("cli", "service", "demo", "cluster", "comfyui")
"""Rooms by which people come in: they hold how users type, a listener, and how a result is
shown."""
REACH = {
    "finish": "finish finishes Finish finish_drafts FromDrafts from_drafts",
    "variety": "variety repel Repel Coupled couple_seeds coupled COUPLE",
    "require": "require Requirement Gate gate",
    "diverse": "diverse diversity likeness Likeness make_likeness",
}
"""Names in the code by which a feature is built, by feature: what mentions one must know of it."""
OTHERS = {"finish": {"algorithms", "core", "loop", "demo"}, "require": {"check"}}
"""Rooms that mean another thing by such a name: rbf has an option `finish`, and people finish a
candidate of a running search; check reads the requirements of packages."""
SEARCHES = ("SearchRequest", "EngineSpec", "Prepared", "LoopSearch")
"""Classes that say what a search does. The room `request` makes them."""
WIDE = 100
"""Columns of a line of code."""
SENTENCE = re.compile(r'match=r?f?"(?:[^"\s]+\s+){3}')
"""What a test matches in four words or more."""
MOST_LINES, MOST_PARAMETERS, MOST_WORDS = 300, 6, 20
FILES = modules()
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
SPACE = {
    tokenize.COMMENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
    tokenize.INDENT,
    tokenize.NEWLINE,
    tokenize.NL,
}
"""Tokens that say nothing."""


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
    """Whether a node reads one of these names: `Any` in an annotation counts once each time that it
    is written."""
    return lambda node: isinstance(node, ast.Name) and node.id in wanted


def parameters(function: ast.AST) -> int:
    """Of a function, without self and cls; 0 for other nodes."""
    if not isinstance(function, DEFINITIONS):
        return 0
    given = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    return sum(argument.arg not in ("self", "cls") for argument in given)


def identifiers(path: Path) -> set[str]:
    """The names that a file's code uses or defines, and texts that are names, as keys are."""
    found: set[str | None] = set()
    for node in ast.walk(tree_of(path)):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name):
                found.add(name)
            case ast.keyword(arg=name) | ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                found.add(name)
            case ast.alias(name=name):
                found.add(name.rpartition(".")[2])
            case ast.Constant(value=str() as name):
                found.add(name)
    return {name for name in found if name is not None}


def reach(feature: str) -> set[str]:
    """The rooms whose code mentions what a feature is built by."""
    names = set(REACH[feature].split())
    rooms = {room_of(module) for module, path in FILES.items() if names & identifiers(path)}
    return rooms - OTHERS.get(feature, set())


def tokens(path: Path) -> tuple[int, int]:
    """Tokens of a file, and the lines that hold them: without comments and docstrings."""
    told: set[int] = set()
    for node in ast.walk(tree_of(path)):
        match node:
            case ast.Expr(value=ast.Constant(value=str()), lineno=first, end_lineno=last):
                told.update(range(first, (last or first) + 1))
    count, held = 0, set[int]()
    for token in tokenize.generate_tokens(io.StringIO(text_of(path)).readline):
        if token.type not in SPACE and token.start[0] not in told:
            count += 1
            held.update(range(token.start[0], token.end[0] + 1))
    return count, len(held)


def fields() -> set[str]:
    """The fields of the classes of a search."""
    found = [node for name in SEARCHES for node in classes()[name]]
    return {
        statement.target.id
        for node in found
        for statement in node.body
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
    }


def replaces(known: set[str]) -> Callable[[ast.AST], bool]:
    """Whether a node is a `replace(...)` of nothing but such fields."""

    def matches(node: ast.AST) -> bool:
        if not isinstance(node, ast.Call) or ast.unparse(node.func) != "replace":
            return False
        return bool(node.keywords) and all(keyword.arg in known for keyword in node.keywords)

    return matches


def classes() -> dict[str, list[ast.ClassDef]]:
    """Every class by its name, which may have several homes."""
    found: dict[str, list[ast.ClassDef]] = defaultdict(list)
    for node in nodes(FILES.values()):
        if isinstance(node, ast.ClassDef):
            found[node.name].append(node)
    return found


def longest_entry() -> int:
    """Lines of the longest entry of a version in the changelog."""
    return max(len(part.splitlines()) for part in text_of(ROOT / "CHANGELOG.md").split("\n## ")[1:])


def long_sentences(page: str) -> int:
    """Sentences of a page's paragraphs and lists with more than MOST_WORDS words; a piece of code
    counts as one."""
    text = re.sub(
        r"^( *)(`{3,}|:{3,}).*?^\1\2 *$|!\[[^\]]*\]\([^)]*\)", "", page, flags=re.M | re.S
    )
    text = re.sub(r"\[((?:[^\[\]]|\[[^\]]*\])*)\]\([^)]*\)", r"\1", text)  # links: their texts
    blocks = re.split(r"\n\s*\n|\n(?= *(?:[-*]|\d+\.) )", text)
    prose = [" ".join(block.split()) for block in blocks if not re.match(r"\s*[#|]|    ", block)]
    sentences = [
        part for block in prose for part in re.split(r"(?<=[.!?])[\"*)]* +(?=[A-Z`\"*(\[])", block)
    ]
    return sum(
        len(re.findall(r"\w[\w'’.-]*", re.sub(r"`[^`]*`", "code", part))) > MOST_WORDS
        for part in sentences
    )


def measures() -> dict[str, float]:
    """What is counted, and how much of it there is."""
    every = list(FILES.values())
    own = [path for module, path in FILES.items() if room_of(module) not in APART]
    core = [path for module, path in FILES.items() if room_of(module) in CORE]
    asking = [path for module, path in FILES.items() if room_of(module) != "request"]
    checked = [path for path in own if not set(path.relative_to(ROOT).parts) & set(PROGRAMS)]
    doors = [path for path in own if set(path.relative_to(ROOT).parts) & set(DOORS)]
    tests = sorted((ROOT / "tests").rglob("*.py"))
    docs = set((ROOT / "docs").rglob("*.md"))
    made = set((ROOT / "docs" / "reference" / "commands").glob("*.md"))  # by the build of the site
    journal = {path for path in docs if path.parent.name in ("journal", "evidence")}
    others = set((ROOT / "docs" / "contributing").glob("*.md"))  # for other people's pages
    prose = [ROOT / "README.md", *sorted(docs - made - journal - others)]
    counted = [tokens(path) for path in every]
    count_of_tokens, held = (sum(column) for column in zip(*counted, strict=True))
    texts = [line for path in every for line in text_of(path).splitlines()]
    return {
        **{f"rooms that {feature} reaches": len(reach(feature)) for feature in REACH},
        "tokens of code": count_of_tokens,
        "tokens a line of code": round(count_of_tokens / held, 1),
        f"lines over {WIDE} columns": sum(len(line) > WIDE for line in texts),
        "# fmt: skip": sum("# fmt: skip" in line for line in texts),
        "replace(...) of a search, outside of request": count(asking, replaces(fields())),
        "class names with several homes": sum(len(found) > 1 for found in classes().values()),
        "lines": len(texts),
        "lines of the doors": sum(map(lines, doors)),
        "lines of the tests": sum(map(lines, tests)),
        "files": len(every),
        f"files over {MOST_LINES} lines": sum(lines(path) > MOST_LINES for path in every),
        "functions": count(every, lambda node: isinstance(node, DEFINITIONS)),
        f"functions in ttsnap/ with more than {MOST_PARAMETERS} parameters": count(
            own, lambda node: parameters(node) > MOST_PARAMETERS
        ),
        "places where a test matches four words or more": sum(
            len(SENTENCE.findall(text_of(path))) for path in tests
        ),
        "words of README and docs": sum(len(text_of(path).split()) for path in prose),
        f"sentences there of more than {MOST_WORDS} words": sum(
            long_sentences(text_of(path)) for path in prose
        ),
        "words of the journal and the evidence": sum(
            len(text_of(path).split()) for path in journal
        ),
        "lines of the longest entry of the changelog": longest_entry(),
        "import circles between rooms, imports by name included": len(
            circles(between_rooms(arrows()))
        ),
        "getattr and hasattr in ttsnap/, outside scenes, demo and cli": count(
            checked, reads("getattr", "hasattr")
        ),
        "uses of Any in ttsnap/, outside scenes, demo and cli": count(checked, reads("Any")),
        f"uses of Any in {', '.join(CORE)}": count(core, reads("Any")),
        "type: ignore": sum(len(re.findall(r"#\s*type:\s*ignore", line)) for line in texts),
    }


def check_budget() -> None:
    """End with what to do where there is more code than pyproject.toml allows."""
    most = tomllib.loads(text_of(ROOT / "pyproject.toml"))["tool"]["ttsnap"]["most_tokens"]
    count = sum(tokens(path)[0] for path in FILES.values())
    if count > most:
        sys.exit(
            f"{count:,} tokens of code, and pyproject.toml allows {most:,}: name what goes before "
            "you write what comes"
        )
    print(f"{count:,} tokens of code, of {most:,}")


if __name__ == "__main__":
    if "--budget" in sys.argv[1:]:
        check_budget()
        sys.exit()
    for what, number in measures().items():
        print(f"{number:>9,}  {what}")
    if "--trace" in sys.argv[1:]:
        subprocess.run(
            [sys.executable, str(Path(__file__).with_name("trace_search.py"))], check=True
        )
