"""The example workflows in ComfyUI: as its page offers and loads them, and run with the embedded model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.browser import chromium
from tests.comfyui.examples import EXAMPLES, FOLDER
from tests.comfyui.page import ComfyPage, opened
from tests.comfyui.server import ComfyServer, Graph

pytestmark = [pytest.mark.usefixtures("comfy"), pytest.mark.browser]
LOADERS = {"CheckpointLoaderSimple": (0, 1, 2), "UNETLoader": (0,), "CLIPLoader": (1,), "VAELoader": (2,)}
"""What each output of a loader is among those of the Toy Checkpoint."""
CHANGED: dict[str, dict[str, Any]] = {
    "EmptyLatentImage": {"width": 64, "height": 64},
    "EmptyHunyuanLatentVideo": {"width": 64, "height": 64},
    "TtsnapReward": {"name": "scenes", "device": "cpu"},
    "PrimitiveStringMultiline": {"value": "a red circle left of a blue square"},
}
PICTURE = 32
"""Pixels of an image's side."""


@pytest.fixture(scope="module")
def page(server: ComfyServer) -> Iterator[ComfyPage]:
    inputs = server.folder / "input"
    inputs.mkdir(exist_ok=True)
    ground = Image.new("RGBA", (PICTURE, PICTURE), "white")
    ground.putalpha(Image.linear_gradient("L").resize((PICTURE, PICTURE)).point(lambda value: 255 * (value < 128)))
    ground.save(inputs / "example.png")  # the lower half is to be painted anew
    with chromium() as browser, opened(server, browser) as found:
        yield found


def offered(server: ComfyServer, name: str) -> dict[str, Any]:
    """A workflow as the page gets it from the list of templates."""
    found: dict[str, Any] = server.client.get(f"/api/workflow_templates/ttsnap/{name}.json").json()
    return found


def on_the_embedded_model(prompt: dict[str, Any], parametrisation: str) -> Graph:
    """What the page would send, with the embedded model for the loaders, and all else as small as that."""
    links = {}
    for key in [key for key, node in prompt.items() if node["class_type"] in LOADERS]:
        links |= {(key, slot): ["toy", to] for slot, to in enumerate(LOADERS[prompt.pop(key)["class_type"]])}
    for node in prompt.values():
        of_toy = {
            name: links.get(tuple(value), value) for name, value in node["inputs"].items() if value.__class__ is list
        }
        node["inputs"] |= of_toy | CHANGED.get(node["class_type"], {})
        if node["class_type"] == "EmptyHunyuanLatentVideo":
            node["class_type"] = "EmptySD3LatentImage"  # the embedded model makes no videos
            del node["inputs"]["length"]
    toy = {"class_type": "ToyCheckpoint", "inputs": {"parametrisation": parametrisation}}
    return Graph({**prompt, "toy": toy})


def ran(server: ComfyServer, page: ComfyPage, name: str, parametrisation: str) -> tuple[list[Image.Image], str]:
    """The images, and the report."""
    page.load(offered(server, name))
    graph = on_the_embedded_model(page.prompt(), parametrisation)
    keys = {node["class_type"]: (key, 0) for key, node in graph.nodes.items()}
    outputs = server.run(graph)
    images = server.images(outputs, keys["SaveImage"]) if "SaveImage" in keys else []
    return images, outputs[keys["PreviewAny"][0]]["text"][0]


def test_all_are_offered_as_templates(server: ComfyServer) -> None:
    assert sorted(server.client.get("/workflow_templates").json()["ttsnap"]) == sorted(EXAMPLES)
    for name in EXAMPLES:
        shown = server.client.get(f"/api/workflow_templates/ttsnap/{name}.jpg")
        assert shown.read() == (FOLDER / f"{name}.jpg").read_bytes()


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_page_loads_it_as_it_was_drawn(server: ComfyServer, page: ComfyPage, name: str) -> None:
    page.load(offered(server, name))
    drawn, sent = EXAMPLES[name]().graph.nodes, page.prompt()
    kinds = [{key: node["class_type"] for key, node in nodes.items()} for nodes in (drawn, sent)]
    assert kinds[0] == kinds[1]
    assert all(node["inputs"].items() <= sent[key]["inputs"].items() for key, node in drawn.items())
    assert not page.troubles()


def test_twenty_seeds_cost_less_than_eight_images(server: ComfyServer, page: ComfyPage) -> None:
    images, report = ran(server, page, "best_of_20_at_the_price_of_8", "eps")
    assert [image.size for image in images] == [(PICTURE, PICTURE)]
    assert "spent 232 " in report
    assert "KSampler with seed " in report


def test_inpainting_keeps_what_is_not_masked(server: ComfyServer, page: ComfyPage) -> None:
    images, _ = ran(server, page, "inpainting", "eps")
    assert len(images) == 3
    apart = np.ptp(np.stack([np.asarray(image, int) for image in images]), axis=0)
    kept, anew = apart[: PICTURE // 2 - 4], apart[PICTURE // 2 :]
    assert kept.mean() < anew.mean() / 5  # not 0, since the VAE sees the whole picture


def test_the_search_for_a_video_takes_as_much_as_four(server: ComfyServer, page: ComfyPage) -> None:
    _, report = ran(server, page, "video", "flow")
    assert "spent 120 " in report
