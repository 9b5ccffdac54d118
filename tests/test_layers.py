"""Who may import whom, and that the light parts stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import ttsnap.distill
import ttsnap.pipelines
import ttsnap.reward_models

import ttsnap

ROOT = Path(ttsnap.__file__).parent
NUMPY_ONLY = [
    "types",
    "typed",
    "payload",
    "search",
    "loop",
    "moves",
    "lockstep",
    "forecast",
    "simulate",
    "tune",
    "calibrate",
    "metrics",
    "dry",
    "replay",
    "resampling",
    "table",
    "buckets",
    "budget",
    "utility",
    "rewards",
    "files",
    "outputs",
    "sheet",
    "lineage",
    "extras",
    "header",
    "journal",
    "lock",
    "shards",
    "recordings",
    "record",
    "version",
    "algorithms/*",
]
PACKAGES = {
    "core": ROOT,
    "pipelines": Path(ttsnap.pipelines.__file__).parent,
    "reward_models": Path(ttsnap.reward_models.__file__).parent,
    "distill": Path(ttsnap.distill.__file__).parent,
}


def imports(path: Path, *, top_level: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level else list(ast.walk(tree))
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("pattern", NUMPY_ONLY)
def test_light_modules_do_not_import_torch(pattern: str) -> None:
    files = list(ROOT.glob(f"{pattern}.py"))
    assert files
    for path in files:
        assert not [m for m in imports(path) if m.split(".")[0] in ("torch", "diffusers", "transformers")], path


def test_arrows_point_one_way() -> None:
    for path in ROOT.rglob("*.py"):
        found = imports(path, top_level=True)
        upward = {m for m in found if m.startswith(("ttsnap.pipelines", "ttsnap.reward_models", "ttsnap.distill"))}
        assert not upward or path.is_relative_to(PACKAGES["pipelines"]), (path, upward)
        if path.name != "demo.py" and path.parent.name not in ("cli", "scenes"):
            assert not {m for m in imports(path) if m.startswith("ttsnap.pipelines")}, path
        if path.parent.name != "cli":
            assert not {m for m in imports(path) if m.startswith("ttsnap.distill")}, path
    for name, above in {
        "pipelines": ("ttsnap.distill",),
        "reward_models": ("ttsnap.pipelines", "ttsnap.distill"),
        "distill": ("ttsnap.pipelines",),
    }.items():
        for path in PACKAGES[name].rglob("*.py"):
            assert not {m for m in imports(path) if m.startswith(above)}, path


def test_importing_and_help_stay_free_of_torch() -> None:
    code = "import sys, ttsnap, ttsnap.cli; sys.exit(any(m in sys.modules for m in ('torch', 'diffusers')))"
    subprocess.run([sys.executable, "-c", code], check=True)
    out = subprocess.run([sys.executable, "-X", "importtime", "-m", "ttsnap", "--help"], capture_output=True, text=True)
    assert out.returncode == 0
    assert "generate" in out.stdout
    assert "| torch" not in out.stderr
