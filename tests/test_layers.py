"""Who may import whom, and that the light rooms stay light. docs/architecture.md shows the same as a picture."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import ttsnap.distill
import ttsnap.pipelines
import ttsnap.reward_models

import ttsnap

MAY_IMPORT: dict[str, set[str]] = {
    "files": {"core"},
    "core": set(),
    "options": {"core", "files"},
    "profiling": {"core"},
    "algorithms": {"core", "files"},
    "loop": {"core", "algorithms"},
    "request": {"core", "files", "options", "algorithms", "loop"},
    "sampling": {"core", "files", "options"},
    "rewards": {"core"},
    "engine": {"core", "options", "sampling", "rewards", "profiling"},
    "cluster": {"core", "files", "options", "sampling", "rewards", "engine", "loop", "profiling", "recordings"},
    "results": {"core", "files", "options", "rewards"},
    "recordings": {"core", "files", "options", "algorithms", "loop", "results", "rewards"},
    "simulation": {"core", "files", "algorithms", "loop", "recordings"},
    "bench": {"core", "files", "options", "algorithms", "loop", "results", "recordings"},
    "scenes": {"files"},
    "pipelines": {
        *("core", "files", "options", "algorithms", "loop", "sampling", "rewards", "engine", "profiling", "results"),
        *("scenes", "cluster"),
    },
    "reward_models": {"core", "files", "rewards", "profiling", "scenes"},
    "distill": {
        *("core", "files", "options", "rewards", "reward_models", "recordings", "results", "sampling", "pipelines"),
        *("engine", "scenes", "simulation"),
    },
    "service": {
        *("core", "files", "options", "algorithms", "loop", "engine", "results", "pipelines", "reward_models"),
        *("cluster", "rewards", "scenes", "request"),
    },
}
"""Every room, and the rooms that it may import. The demo and the command line stand on top and may import all."""
LIGHT = ("files", "core", "options", "algorithms", "loop", "recordings", "simulation", "bench", "request")
"""Rooms without torch: what decides, prices, records and simulates must run where there is none, and start at once."""
FLAT = {"__init__", "__main__", "extras", "version"}
"""Modules that stand in no room; any room may import them."""
WHERE = {
    "pipelines": Path(ttsnap.pipelines.__file__).parent,
    "reward_models": Path(ttsnap.reward_models.__file__).parent,
    "distill": Path(ttsnap.distill.__file__).parent,
}
ROOT = Path(ttsnap.__file__).parent


def files(room: str) -> list[Path]:
    found = sorted(WHERE.get(room, ROOT / room).rglob("*.py"))
    assert found
    return found


def imports(path: Path, *, run: bool = False) -> Iterator[str]:
    """Dotted names of all that a file imports, inside functions, too; names from a package as its modules.

    run: only what is imported when it runs, not what only type checkers read (`if TYPE_CHECKING:`).
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    tests = [node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    typing = {part for test in tests for statement in test.body for part in ast.walk(statement)}
    for node in ast.walk(tree):
        if run and node in typing:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from names if node.module == "ttsnap" else [node.module]


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_what_it_may(room: str) -> None:
    public = set(ttsnap.__all__)  # from ttsnap import search
    for path in files(room):
        rooms = {name.split(".")[1] for name in imports(path) if name.startswith("ttsnap.")}
        assert rooms - {room} - FLAT - public <= MAY_IMPORT[room], path


@pytest.mark.parametrize("room", LIGHT)
def test_light_rooms_import_no_torch(room: str) -> None:
    heavy = {"torch", "diffusers", "transformers"}
    for path in files(room):
        assert not {name.split(".")[0] for name in imports(path, run=True)} & heavy, path


def test_every_module_stands_in_a_room() -> None:
    assert {path.stem for path in ROOT.glob("*.py")} == FLAT
    rooms = {path.name for path in ROOT.iterdir() if (path / "__init__.py").is_file()}
    assert rooms - set(WHERE) == set(MAY_IMPORT) - set(WHERE) | {"demo", "cli"}


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_says_what_it_holds(room: str) -> None:
    text = ast.get_docstring(ast.parse((WHERE.get(room, ROOT / room) / "__init__.py").read_text(encoding="utf-8")))
    assert text is not None
    assert len(text.split()) > 10


def test_importing_and_help_stay_free_of_torch() -> None:
    code = "import sys, ttsnap, ttsnap.cli; sys.exit(any(m in sys.modules for m in ('torch', 'diffusers')))"
    subprocess.run([sys.executable, "-c", code], check=True)
    out = subprocess.run([sys.executable, "-X", "importtime", "-m", "ttsnap", "--help"], capture_output=True, text=True)
    assert out.returncode == 0
    assert "generate" in out.stdout
    assert "| torch" not in out.stderr


def test_the_picture_of_the_rooms_is_what_the_imports_say() -> None:
    script = ROOT.parent / "scripts" / "draw_architecture.py"
    checked = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_every_folder_with_code_is_installed() -> None:
    """An editable installation finds them all, so that no other test misses one."""
    project = ROOT.parent
    listed = set(
        tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    )
    for name, folder in {"ttsnap": ROOT, **{f"ttsnap.{room}": where for room, where in WHERE.items()}}.items():
        found = {".".join([name, *path.parent.relative_to(folder).parts]) for path in folder.rglob("*.py")}
        assert found <= listed, f"list {sorted(found - listed)} in pyproject.toml"
