"""The folder that ComfyUI loads: what it says of itself, and of a ttsnap that is not there."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import ttsnap

PACK = Path(ttsnap.__file__).parents[1] / "comfyui"


def pack(folder: Path = PACK) -> Any:
    spec = importlib.util.spec_from_file_location("pack", folder / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_without_ttsnap_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ttsnap.comfyui.nodes", None)
    with pytest.raises(ImportError, match="need ttsnap in the Python that runs ComfyUI"):
        asyncio.run(pack().comfy_entrypoint())


def test_what_else_is_missing_is_told_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "comfy", None)
    monkeypatch.delitem(sys.modules, "ttsnap.comfyui.nodes", raising=False)
    with pytest.raises(ModuleNotFoundError, match="comfy"):
        asyncio.run(pack().comfy_entrypoint())


def test_it_keeps_the_registrys_conventions() -> None:
    told = tomllib.loads((PACK / "pyproject.toml").read_text(encoding="utf-8"))
    project = told["project"]
    assert "comfyui" not in project["name"].lower()
    assert project["license"] == {"text": "Apache-2.0"}
    assert all(part.isdecimal() for part in project["version"].split("."))
    assert ttsnap.__version__.startswith(project["version"])
    assert project["dependencies"] == ["ttsnap"]
    assert {"PublisherId", "DisplayName", "requires-comfyui"} <= told["tool"]["comfy"].keys()
