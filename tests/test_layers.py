"""Who may import whom, and that light rooms stay light (docs/architecture.md shows it), and so the
fast tests."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import ttsnap
from scripts import imports
from scripts.imports import APART, arrows, circles, imported, modules, named, room_of, tree_of
from tests.conftest import SYSTEM, TESTS, is_system

MAY_IMPORT = {
    room: set(others.split())
    for room, others in {
        "files": "core",
        "core": "",
        "options": "core files",
        "profiling": "core",
        "algorithms": "core files",
        "loop": "core algorithms",
        "request": "core files options algorithms loop",
        "sampling": "core files options",
        "rewards": "core",
        "engine": "core options sampling rewards reward_models profiling",
        "cluster": "request core files options engine profiling recordings",
        "results": "core files options rewards reward_models",
        "recordings": "core files options algorithms loop results rewards",
        "simulation": "core files options algorithms loop recordings",
        "bench": "core files options algorithms loop results",
        "scenes": "files",
        "signs": "core",
        "things": "scenes",
        "pipelines": (
            "core files options algorithms loop sampling rewards engine profiling results scenes"
            " signs things cluster request reward_models"
        ),
        "reward_models": "core files rewards profiling scenes signs things",
        "distill": (
            "core files options rewards reward_models recordings results sampling pipelines engine"
            " scenes simulation"
        ),
        "check": (
            "core files options algorithms loop results recordings simulation sampling engine"
            " pipelines request reward_models profiling"
        ),
        "service": (
            "core files options algorithms loop engine results pipelines reward_models cluster"
            " rewards sampling scenes request"
        ),
        "comfyui": "core files options loop results pipelines reward_models rewards request",
    }.items()
}
"""Every room, and the rooms that it may import. The demo and the command line stand on top and may
import all."""
LIGHT = (
    "files",
    "core",
    "options",
    "algorithms",
    "loop",
    "recordings",
    "simulation",
    "bench",
    "request",
)
"""Rooms without torch: what decides, prices, records and simulates must run where there is none,
and start at once."""
FLAT = {"__init__", "__main__", "extras", "version"}
"""Modules that stand in no room; any room may import them."""
REGISTRIES = {
    "ttsnap.algorithms.catalogue": {"algorithms"},
    "ttsnap.pipelines": {"pipelines"},
    "ttsnap.reward_models.registry": {"reward_models"},
}
"""Modules that name others in texts, which are imported when they are needed, and the rooms of
those. Their own room need not be allowed to import these rooms, and such an arrow may close a
circle."""
MODULES = modules()
ROOT = Path(ttsnap.__file__).parent


def files(room):
    """The modules of a room, by name."""
    return {module: path for module, path in MODULES.items() if room_of(module) == room}


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_what_it_may_and_says_what_it_holds(room):
    public = set(ttsnap.__all__)  # from ttsnap import search
    for module, path in files(room).items():
        names = [*imported(path), *(() if module in REGISTRIES else named(path))]
        assert not {name.split(".")[0] for name in names} & set(APART), (
            f"{path} imports a room by a second name"
        )
        rooms = {room_of(name) for name in names if name.startswith("ttsnap.")}
        assert rooms - {room} - FLAT - public <= MAY_IMPORT[room], path
        if room in LIGHT:
            heavy = {"torch", "diffusers", "transformers"}
            assert not {name.split(".")[0] for name in imported(path, run=True)} & heavy, path
    text = ast.get_docstring(tree_of(MODULES[f"ttsnap.{room}"]))
    assert text is not None
    assert len(text.split()) > 10


def test_registries_name_modules_of_the_rooms_that_they_are_for():
    for module, rooms in REGISTRIES.items():
        assert {room_of(name) for name in named(MODULES[module])} == rooms, module


def test_no_modules_import_each_other_in_a_circle():
    """Not inside functions either, nor for type checkers."""
    assert circles(arrows(without=REGISTRIES)) == []


def test_a_name_in_a_text_is_an_arrow_and_two_arrows_may_be_a_circle(tmp_path):
    path = tmp_path / "planted.py"
    path.write_text(
        'load_object("ttsnap.loop.search:search")\nx = f"ttsnap.core.{x}"\ny = "ttsnap.json"'
    )
    assert list(named(path)) == ["ttsnap.loop.search", "ttsnap.core"]
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set()}) == [["b", "c"]]


def test_every_module_stands_in_a_room():
    assert {path.stem for path in ROOT.glob("*.py")} == FLAT
    rooms = {path.name for path in ROOT.iterdir() if (path / "__init__.py").is_file()}
    assert rooms == set(MAY_IMPORT) | {"demo", "cli"}


def test_importing_and_help_stay_free_of_torch():
    code = """import sys, ttsnap, ttsnap.cli, ttsnap.scenes
try:
    ttsnap.cli.main(["--help"])
finally:
    print(sorted({"torch", "diffusers"} & set(sys.modules)))"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (out.returncode, out.stdout.splitlines()[-1]) == (0, "[]")
    assert "generate" in out.stdout


def test_the_picture_of_the_rooms_is_what_the_imports_say(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT.parent / "scripts"))
    monkeypatch.setitem(sys.modules, "imports", imports)  # which has read all files
    drawing = importlib.import_module("draw_architecture")
    assert drawing.draw() == drawing.PICTURE.read_text(encoding="utf-8")


def test_every_folder_with_code_is_installed():
    """An editable installation finds them all, so that no other test misses one."""
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text(encoding="utf-8"))
    listed = set(project["tool"]["setuptools"]["packages"])
    found = {
        module if path.stem == "__init__" else module.rpartition(".")[0]
        for module, path in MODULES.items()
    }
    assert found <= listed, f"list {sorted(found - listed)} in pyproject.toml"


@pytest.mark.parametrize("name", SYSTEM)
def test_what_is_named_as_of_the_other_tier_is_there(name):
    file, _, test = name.partition("::")
    assert (TESTS / file).exists()
    assert not test or f"def {test}(" in (TESTS / file).read_text(encoding="utf-8")


def test_the_fast_tier_imports_no_browser_server_or_ray():
    heavy = {"gradio", "gradio_client", "nbclient", "playwright", "ray", "sphinx", "uvicorn"}
    for path in TESTS.rglob("test_*.py"):
        if not is_system(path):
            names = re.findall(r"^ *(?:import|from) (\w+)", path.read_text(encoding="utf-8"), re.M)
            assert not set(names) & heavy, path
