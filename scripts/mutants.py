"""Plants one fault at a time, each in another function, and counts how many of them the tests find.

    python scripts/mutants.py --tier all              # 200 faults: fast and system tests, a room's own first
    python scripts/mutants.py --tier all --part 1/5   # every fifth of them; parts may run on machines of their own
    python scripts/mutants.py --sample 40 --room cli  # 40 in one room
    python scripts/mutants.py --tier all --before build/old.jsonl --out build/new.jsonl   # after a change of the tests

Which faults are planted follows from the code alone. Functions are in the order of a hash of their
names, and in each the fault with the lowest number, a hash of the expression that it changes. Moved
code keeps its faults, rewritten code gets others. Results are kept in --out, one line a fault, and
a run that was stopped goes on there. After tests changed, --before makes each fault meet the file
of tests that found it first.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import re
import runpy
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TESTS: dict[str, tuple[str, ...]] = {
    "core": (
        *("core", "loop", "algorithms", "recordings/test_replay.py", "sampling/test_guidance.py"),
        "results/test_shown.py",
    ),
    "loop": (
        "loop",
        "core",
        "algorithms/test_contract.py",
        "engine",
        "gpu/test_engine.py",
        "cluster/test_cluster.py",
    ),
    "engine": (
        "engine",
        "loop",
        "gpu/test_engine.py",
        "sampling/test_guidance.py",
        "pipelines/test_parity.py",
    ),
    "sampling": ("sampling", "engine", "pipelines/test_schedule.py", "algorithms"),
    "algorithms": ("algorithms", "loop", "simulation"),
    "pipelines": ("pipelines", "gpu", "sampling/test_drafts.py"),
    "reward_models": ("reward_models", "rewards"),
    "rewards": ("rewards", "reward_models"),
    "distill": ("distill",),
    "service": ("service", "request"),
    "cli": ("cli", "bench", "options"),
    "results": ("results", "cli"),
    "recordings": ("recordings", "simulation", "cli/test_cli_record.py", "test_strangers.py"),
    "simulation": ("simulation", "cli/test_cli_simulate.py"),
    "bench": ("bench", "cli"),
    "request": ("request", "service", "demo", "comfyui"),
    "options": ("options", "request", "cli"),
    "files": ("files", "results", "recordings", "test_strangers.py"),
    "demo": ("demo",),
    "cluster": ("cluster", "engine"),
    "scenes": ("scenes", "rewards"),
    "signs": ("signs",),
    "comfyui": ("comfyui",),
    "check": ("check", "cli"),
    "profiling": ("profiling", "pipelines/test_flops.py"),
}
"""Rooms of ttsnap/ that get faults, and the tests that are asked about them."""
SELECTED = {
    "fast": "not slow and not gpu and not system",
    "system": "system and not slow and not gpu and not browser",
}
SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
}
NAMES = {"min": "max", "max": "min", "any": "all", "all": "any"}


@dataclass(frozen=True)
class Fault:
    """A change of one node: `number` chooses faults and names them, `place` finds the node in its
    file again."""

    number: str
    file: str
    function: str
    change: str
    place: int


def room_of(fault: Fault) -> str:
    """The innermost folder that has tests: pipelines/comfyui is of the room comfyui."""
    return next(part for part in reversed(Path(fault.file).parts[:-1]) if part in TESTS)


def changed(node: ast.AST) -> ast.AST | None:
    """The node with a fault in it; None where there is none to plant."""
    new = deepcopy(node)
    if isinstance(new, ast.Compare) and type(new.ops[0]) in SWAPS:
        new.ops[0] = SWAPS[type(new.ops[0])]()  # type: ignore[assignment]
    elif isinstance(new, ast.BoolOp | ast.BinOp | ast.AugAssign) and type(new.op) in SWAPS:
        new.op = SWAPS[type(new.op)]()  # type: ignore[assignment]
    elif isinstance(new, ast.Constant) and type(new.value) is bool:
        new.value = not new.value
    elif isinstance(new, ast.Constant) and type(new.value) is int:
        new.value += 1
    elif isinstance(new, ast.If | ast.IfExp | ast.While):
        new.test = ast.UnaryOp(ast.Not(), new.test)
    elif isinstance(new, ast.Name) and isinstance(new.ctx, ast.Load) and new.id in NAMES:
        new.id = NAMES[new.id]
    elif isinstance(new, ast.Expr) and isinstance(new.value, ast.Call):
        return ast.Pass()
    else:
        return None
    return new


def statements(tree: ast.AST, function: str = "") -> Iterator[tuple[ast.AST, str]]:
    """Every node within functions, with the qualified name of its function; annotations are left
    out."""
    for name, value in ast.iter_fields(tree):
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or name in (
                "annotation",
                "returns",
                "decorator_list",
            ):
                continue
            inner = function
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                inner = f"{function}.{child.name}" if function else child.name
            elif function:
                yield child, function
            yield from statements(child, inner)


def digest(*words: object) -> str:
    return hashlib.sha256(" ".join(map(str, words)).encode()).hexdigest()[:12]


def faults(tree: Path) -> list[Fault]:
    """One fault a function, the functions in the order of their names' hashes."""
    found: dict[str, Fault] = {}
    for room in TESTS:
        for path in sorted((tree / "ttsnap" / room).rglob("*.py")):
            same: Counter[tuple[str, str]] = Counter()
            for place, (node, function) in enumerate(
                statements(ast.parse(path.read_text(encoding="utf-8")))
            ):
                if (new := changed(node)) is None:
                    continue
                before, after = (
                    ast.unparse(ast.fix_missing_locations(x)).split("\n")[0] for x in (node, new)
                )
                key = (function, f"{before}  ->  {after}")
                same[key] += 1
                fault = Fault(
                    digest(key, same[key]), path.relative_to(tree).as_posix(), *key, place
                )
                name = digest(path.stem, function)
                found[name] = min(found.get(name, fault), fault, key=lambda fault: fault.number)
    return [found[name] for name in sorted(found)]


def planted(source: str, place: int) -> str:
    """The file with the fault at this place."""
    tree = ast.parse(source)
    target, _ = list(statements(tree))[place]
    new = changed(target)
    assert new is not None
    for parent in ast.walk(tree):
        for name, value in ast.iter_fields(parent):
            if value is target:
                setattr(parent, name, new)
            elif isinstance(value, list):
                setattr(parent, name, [new if child is target else child for child in value])
    return ast.unparse(ast.fix_missing_locations(tree))


class Finder:
    """Notes in a file which file of tests failed first, or could not be collected."""

    def __init__(self, note: Path) -> None:
        self.note = note

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and not self.note.exists():
            self.note.write_text(report.nodeid.partition("::")[0], encoding="utf-8")

    pytest_collectreport = pytest_runtest_logreport


def outcome(tree: Path, tests: list[str], marked: str, seconds: float) -> tuple[str, float, str]:
    """What pytest says of these tests in a child of this process, which has imported what does not
    change; the seconds that it took, and the file of tests that found the fault ("" where none
    did).
    """
    begun = time.monotonic()
    note = tree.parent / "found"
    note.unlink(missing_ok=True)
    if (child := os.fork()) == 0:
        os.setsid()
        os.chdir(tree)
        sys.path.insert(0, str(tree))
        os.environ["PYTHONPATH"] = str(tree)
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        import pytest

        options = ["-q", "-x", "-p", "no:cacheprovider", "--hypothesis-seed=0", "-m", marked]
        os._exit(int(pytest.main([*options, *tests], plugins=[Finder(note)])))
    while time.monotonic() < begun + seconds:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            by = note.read_text(encoding="utf-8") if note.exists() else ""
            return {0: "survived", 5: "survived"}.get(code, "killed"), time.monotonic() - begun, by
        time.sleep(0.2)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "killed by time", seconds, ""


def copied(to: Path) -> Path:
    """A copy of the checkout."""
    left_out = shutil.ignore_patterns(
        ".git", ".venv", "build", "dist", "outputs", ".*_cache", ".hypothesis"
    )
    shutil.copytree(ROOT, to, symlinks=True, ignore=left_out)
    return to


def asked(tree: Path, room: str, changed: Path, first: str = "") -> list[str]:
    """Files of tests: `first`, those of the room that have the name of the changed file in them,
    its others, and those of other rooms that import the file."""
    folders = [tree / "tests" / name for name in TESTS[room]]
    files = [
        file
        for path in folders
        for file in (sorted(path.rglob("test_*.py")) if path.is_dir() else [path])
    ]
    *package, stem = changed.with_suffix("").parts
    named, folder = re.compile(rf"\b{stem}\b"), r"\.".join(package)
    imported = re.compile(rf"\b{folder}(\.| import .*\b){stem}\b")
    files.sort(key=lambda file: named.search(file.read_text(encoding="utf-8")) is None)
    every = sorted((tree / "tests").rglob("test_*.py"))
    files += [
        file
        for file in every
        if file not in files and imported.search(file.read_text(encoding="utf-8"))
    ]
    return sorted((str(file.relative_to(tree)) for file in files), key=lambda file: file != first)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tier", choices=("fast", "system", "all"), default="fast")
    parser.add_argument("--sample", type=int, default=200, help="how many faults")
    parser.add_argument("--room", choices=TESTS, help="faults in this room only")
    parser.add_argument(
        "--part", default="1/1", metavar="K/N", help="of N parts of the faults, the K-th"
    )
    parser.add_argument(
        "--timeout", type=float, default=900, help="seconds for the tests of one fault"
    )
    parser.add_argument(
        "--out", type=Path, default=ROOT / "build" / "mutants.jsonl", help="results, kept and read"
    )
    parser.add_argument(
        "--before", type=Path, help="results of an earlier run: what found a fault is asked first"
    )
    parser.add_argument("--list", action="store_true", help="print the faults and plant none")
    a = parser.parse_args()
    part, parts = map(int, a.part.split("/"))
    chosen = [fault for fault in faults(ROOT) if a.room in (None, room_of(fault))][: a.sample][
        part - 1 :: parts
    ]
    if a.list:
        for fault in chosen:
            print(f"{fault.number}  {fault.file}  {fault.function}  {fault.change}")
        return
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
    os.environ["OMP_NUM_THREADS"] = "1"
    import diffusers.loaders  # noqa: F401
    import hypothesis  # noqa: F401
    import scipy.optimize  # noqa: F401
    import transformers  # noqa: F401

    a.out.parent.mkdir(parents=True, exist_ok=True)
    lines, old = (
        list(map(json.loads, path.read_text().splitlines())) if path and path.exists() else []
        for path in (a.out, a.before)
    )
    known: dict[tuple[str, str], str] = {
        (line["number"], line["tier"]): line["outcome"] for line in lines
    }
    finders = {line["number"]: line["by"] for line in old}
    tiers = ("fast", "system") if a.tier == "all" else (a.tier,)
    # not kept: a child imports its tree's
    is_system = runpy.run_path(str(ROOT / "tests/conftest.py"))["is_system"]
    own = {room: is_system(ROOT / "tests" / tests[0]) for room, tests in TESTS.items()}
    with tempfile.TemporaryDirectory() as folder:
        tree = copied(Path(folder) / "tree")

        def tried(number: str, tier: str, room: str, fault: Fault | None = None) -> str:
            """What the tests say of a fault, or of the room without one, now or in an earlier
            run."""
            if (number, tier) not in known:
                name = Path(fault.file if fault else "ttsnap/__init__.py")
                path = tree / name
                source = path.read_text(encoding="utf-8")
                path.write_text(planted(source, fault.place) if fault else source, encoding="utf-8")
                tests = asked(tree, room, name, finders.get(number, ""))
                said, seconds, by = outcome(tree, tests, SELECTED[tier], a.timeout)
                path.write_text(source, encoding="utf-8")
                known[number, tier] = said
                line = {
                    "number": number,
                    "tier": tier,
                    "outcome": said,
                    "seconds": round(seconds),
                    "by": by,
                }
                with a.out.open("a", encoding="utf-8") as out:
                    out.write(json.dumps(line | (vars(fault) if fault else {})) + "\n")
                change = (
                    f"{fault.file} {fault.function}: {fault.change}"
                    if fault
                    else f"{room}: no fault"
                )
                print(f"{said:15}{tier:8}{seconds:5.0f} s  {change}", flush=True)
            return known[number, tier]

        for fault in chosen:
            room = room_of(fault)
            for tier in reversed(tiers) if own[room] else tiers:
                if (fault.number, tier) not in known and tried(room, tier, room) != "survived":
                    parser.error(
                        f"tests of {room} fail in the tier {tier} without a fault; see this line in"
                        f" {a.out}"
                    )
                if tried(fault.number, tier, room, fault) != "survived":
                    break
    found = sum(
        any(known.get((fault.number, tier), "survived") != "survived" for tier in tiers)
        for fault in chosen
    )
    print(f"{found} of {len(chosen)} faults found")


if __name__ == "__main__":
    main()
