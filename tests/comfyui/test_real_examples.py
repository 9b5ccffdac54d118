"""The example workflows in ComfyUI: as its page offers and loads them, and run with the embedded
model."""

from __future__ import annotations

import numpy as np
import pytest

from tests.comfyui.examples import FOLDER, PICTURE, WORKFLOWS, showing
from tests.comfyui.server import Graph

pytestmark = [pytest.mark.usefixtures("comfy"), pytest.mark.browser]
LOADERS = {
    "CheckpointLoaderSimple": (0, 1, 2),
    "UNETLoader": (0,),
    "CLIPLoader": (1,),
    "VAELoader": (2,),
}
"""What each output of a loader is among those of the Toy Checkpoint."""
CHANGED = {
    "EmptyLatentImage": {"width": 64, "height": 64},
    "EmptyHunyuanLatentVideo": {"width": 64, "height": 64},
    "TtsnapReward": {"name": "scenes", "device": "cpu"},
    "PrimitiveStringMultiline": {"value": "a red circle left of a blue square"},
}


@pytest.fixture(scope="module")
def page(server):
    with showing(server) as found:
        yield found


def on_the_embedded_model(prompt, parametrisation):
    """What the page would send, with the embedded model for the loaders, and all else as small as
    that."""
    links = {}
    for key in [key for key, node in prompt.items() if node["class_type"] in LOADERS]:
        links |= {
            (key, slot): ["toy", to]
            for slot, to in enumerate(LOADERS[prompt.pop(key)["class_type"]])
        }
    for node in prompt.values():
        given = node["inputs"]
        given |= {
            name: links.get(tuple(value), value)
            for name, value in given.items()
            if isinstance(value, list)
        }
        given |= CHANGED.get(node["class_type"], {})
        if node["class_type"] == "EmptyHunyuanLatentVideo":
            node["class_type"] = "EmptySD3LatentImage"  # the embedded model makes no videos
            del given["length"]
    toy = {"class_type": "ToyCheckpoint", "inputs": {"parametrisation": parametrisation}}
    return Graph({**prompt, "toy": toy})


@pytest.mark.parametrize(
    ("name", "parametrisation", "images", "spent"),
    [
        ("best_of_20_at_the_price_of_8", "eps", 1, 232),
        ("inpainting", "eps", 3, 0),
        ("video", "flow", 0, 120),
    ],
)
def test_the_page_loads_it_and_it_spends_what_its_note_says(
    server, page, name, parametrisation, images, spent
):
    assert name in server.client.get("/workflow_templates").json()["ttsnap"]
    offered = f"/api/workflow_templates/ttsnap/{name}"
    assert server.client.get(f"{offered}.jpg").read() == (FOLDER / f"{name}.jpg").read_bytes()
    page.load(server.client.get(f"{offered}.json").json())
    sent = page.prompt()
    assert not page.troubles()
    of_page = {
        str(node["id"]): node["type"]
        for node in WORKFLOWS[name]["nodes"]
        if node["type"] != "MarkdownNote"
    }
    assert {key: node["class_type"] for key, node in sent.items()} == of_page
    graph = on_the_embedded_model(sent, parametrisation)
    keys = {node["class_type"]: (key, 0) for key, node in graph.nodes.items()}
    outputs = server.run(graph)
    [report] = outputs[keys["PreviewAny"][0]]["text"]
    assert "KSampler with seed " in report
    assert f"spent {spent or ''}" in report
    made = server.images(outputs, keys["SaveImage"]) if images else []
    assert [image.size for image in made] == [(PICTURE, PICTURE)] * images
    if name == "inpainting":
        apart = np.ptp(np.stack([np.asarray(image, int) for image in made]), axis=0)
        kept, anew = apart[: PICTURE // 2 - 4], apart[PICTURE // 2 :]
        assert kept.mean() < anew.mean() / 5  # not 0, since the VAE sees the whole picture
