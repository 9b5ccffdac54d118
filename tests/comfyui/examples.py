"""The example workflows of the pack, and what saves them anew by ComfyUI's page, and takes their
pictures and docs/comfyui.jpg:

COMFYUI_PATH=/path/to/ComfyUI python -m tests.comfyui.examples
"""

from __future__ import annotations

import io
import json
import tempfile
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from tests.browser import chromium
from tests.comfyui.server import ROOT, opened, serving

FOLDER = ROOT / "comfyui/example_workflows"
"""ComfyUI offers the workflows in it as templates, each with the picture of its name."""
WORKFLOWS = {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}
FOLDERS = {
    "CheckpointLoaderSimple": "checkpoints",
    "UNETLoader": "diffusion_models",
    "CLIPLoader": "text_encoders",
    "VAELoader": "vae",
}
"""Where each loader looks for its file."""
PICTURE = 32
"""Pixels of an image's side."""
WHERE = """() => {
    const {offset: [x, y], scale} = app.canvas.ds, boxes = app.graph.nodes.map(node => node.getBounding())
    const left = Math.min(...boxes.map(box => box[0])), right = Math.max(...boxes.map(box => box[0] + box[2]))
    const top = Math.min(...boxes.map(box => box[1])), bottom = Math.max(...boxes.map(box => box[1] + box[3]))
    return [left + x, top + y, right + x, bottom + y].map((side, i) => Math.round(side * scale + (i < 2 ? -12 : 12)))
}"""
"""Where the nodes are on the page: left, top, right, bottom."""
PLACES = {
    "TtsnapSearchSampler": (800, 0, 480, 1080),
    "PreviewAny": (1330, 480, 380, 260),
    "SaveImage": (1330, 0, 380, 420),
}


@contextmanager
def showing(server, *size):
    """The page, where all is that the workflows load: a picture, and empty files for weights, as
    newer pages mark a loader whose file is not there."""
    inputs = server.folder / "input"
    inputs.mkdir(exist_ok=True)
    ground = Image.new("RGBA", (PICTURE, PICTURE), "white")
    ground.putalpha(
        Image.linear_gradient("L")
        .resize((PICTURE, PICTURE))
        .point(lambda value: 255 * (value < 128))
    )
    ground.save(inputs / "example.png")  # the lower half is to be painted anew
    for node in (
        node
        for workflow in WORKFLOWS.values()
        for node in workflow["nodes"]
        if node["type"] in FOLDERS
    ):
        weights = server.folder / "models" / FOLDERS[node["type"]] / node["widgets_values"][0]
        weights.parent.mkdir(parents=True, exist_ok=True)
        weights.touch()
    with chromium() as browser, opened(server, browser, *size) as page:
        yield page


def under_way():
    """The first example on the embedded model, which the pack of the tests brings, with room for a
    picture."""
    workflow = json.loads(json.dumps(WORKFLOWS["best_of_20_at_the_price_of_8"]))
    workflow["nodes"] = [node for node in workflow["nodes"] if node["type"] != "MarkdownNote"]
    values = {
        "CheckpointLoaderSimple": ["eps"],
        "EmptyLatentImage": [64, 64, 1],
        "TtsnapReward": ["scenes", 1, "auto"],
        "PrimitiveStringMultiline": ["three green crosses and a red circle"],
    }
    for node in workflow["nodes"]:
        node["widgets_values"] = values.get(node["type"], node["widgets_values"])
        if node["type"] == "CheckpointLoaderSimple":
            node |= {"type": "ToyCheckpoint", "inputs": []}
        x, y, *size = PLACES.get(node["type"], (*node["pos"], *node["size"]))
        node |= {"pos": [x, y], "size": size}
    return workflow


def picture(page, path):
    """The nodes of the workflow, as JPEG."""
    box = page.page.evaluate(WHERE)
    shot = (
        Image.open(io.BytesIO(page.page.locator("canvas#graph-canvas").screenshot()))
        .convert("RGB")
        .crop(box)
    )
    shot.save(path, "JPEG", quality=80, optimize=True)


def save(page, path):
    """The workflow as the page saves it, without what differs from run to run."""
    told = page.page.evaluate("async () => JSON.stringify((await app.graphToPrompt()).workflow)")
    workflow = {**json.loads(told), "id": WORKFLOWS[path.stem]["id"]}
    path.write_text(json.dumps(workflow, indent=1) + "\n")


def main():
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(Path(folder)) as server,
        showing(server, 1600, 1000) as page,
    ):
        for name, workflow in WORKFLOWS.items():
            page.load(workflow)
            save(page, FOLDER / f"{name}.json")
            picture(page, FOLDER / f"{name}.jpg")
            print(name, page.troubles())
        page.load(under_way())
        page.page.evaluate(
            "app.api.addEventListener('progress', e => { window.done = e.detail.value /"
            " e.detail.max })"
        )
        page.page.evaluate("window.app.queuePrompt(0, 1)")
        page.page.wait_for_function("window.done >= 0.8")
        page.page.wait_for_timeout(300)
        picture(page, ROOT / "docs/comfyui.jpg")


if __name__ == "__main__":
    main()
