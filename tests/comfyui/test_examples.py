"""The files of example workflows, read without ComfyUI."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ttsnap.algorithms.seed_pruning import SeedPruning
from ttsnap.comfyui.inputs import OFFERED

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "comfyui/example_workflows").glob("*.json"))
STOCK = {
    *("CheckpointLoaderSimple", "UNETLoader", "CLIPLoader", "VAELoader", "ModelSamplingSD3", "CLIPTextEncode"),
    *("EmptyLatentImage", "EmptyHunyuanLatentVideo", "LoadImage", "VAEEncode", "SetLatentNoiseMask"),
    *("SaveImage", "CreateVideo", "SaveVideo", "PreviewAny", "PrimitiveStringMultiline", "MarkdownNote"),
}
"""Classes of ComfyUI's own nodes, as of v0.3.64."""
TITLES = set(re.findall(r'@node\("([\w ]+)"', (ROOT / "ttsnap/comfyui/nodes.py").read_text()))
OURS = {f"Ttsnap{title.replace(' ', '')}" for title in TITLES}
MOST_BYTES = 150_000


def workflow(path: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(path.read_text())
    return read


def nodes(path: Path, kind: str) -> list[dict[str, Any]]:
    return [node for node in workflow(path)["nodes"] if node["type"] == kind]


def test_there_are_three() -> None:
    assert [path.stem for path in FILES] == ["best_of_20_at_the_price_of_8", "inpainting", "video"]
    assert {"TtsnapSearchSampler", "TtsnapReward", "TtsnapBudget"} <= OURS


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_its_nodes_exist_and_are_connected(path: Path) -> None:
    read = workflow(path)
    by_id = {node["id"]: node for node in read["nodes"]}
    assert {node["type"] for node in read["nodes"]} <= STOCK | OURS
    for link, source, slot, target, place, kind in read["links"]:
        assert link in by_id[source]["outputs"][slot]["links"]
        assert by_id[target]["inputs"][place]["link"] == link
        assert kind in (by_id[source]["outputs"][slot]["type"], "*")
    for node in read["nodes"]:
        needed = [one for one in node["inputs"] if "widget" not in one and one.get("shape") != 7]  # 7: optional
        assert all(one["link"] for one in needed), node["type"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_its_values_are_ones_that_are_offered_and_stay(path: Path) -> None:
    [sampler], [reward] = nodes(path, "TtsnapSearchSampler"), nodes(path, "TtsnapReward")
    values = sampler["widgets_values"]
    assert "fixed" in values
    assert "seed-pruning" in values
    assert reward["widgets_values"][0] in OFFERED
    for options in (value for value in values if str(value).startswith("{")):
        SeedPruning(**json.loads(options))
    assert "randomize" not in path.read_text()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_has_a_small_picture(path: Path) -> None:
    picture = path.with_suffix(".jpg")
    assert picture.stat().st_size < MOST_BYTES
    assert Image.open(picture).width >= 1000
