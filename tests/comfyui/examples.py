"""The example workflows of the pack, which ComfyUI's page saved, and what takes their pictures, and
docs/comfyui.jpg:

COMFYUI_PATH=/path/to/ComfyUI python -m tests.comfyui.examples
"""

from __future__ import annotations

import io
import json
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from tests.browser import chromium
from tests.comfyui.server import ROOT, ComfyPage, opened, serving

FOLDER = ROOT / "comfyui/example_workflows"
"""ComfyUI offers the workflows in it as templates, each with the picture of its name."""
WORKFLOWS: dict[str, dict[str, Any]] = {
    path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))
}
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


def under_way() -> dict[str, Any]:
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


def picture(page: ComfyPage, path: Path) -> None:
    """The nodes of the workflow, as JPEG."""
    box = page.page.evaluate(WHERE)
    shot = (
        Image.open(io.BytesIO(page.page.locator("canvas#graph-canvas").screenshot()))
        .convert("RGB")
        .crop(box)
    )
    shot.save(path, "JPEG", quality=80, optimize=True)


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(Path(folder)) as server,
        chromium() as browser,
        opened(server, browser, 1600, 1000) as page,
    ):
        for name, workflow in WORKFLOWS.items():
            page.load(workflow)
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
