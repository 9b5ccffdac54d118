"""The example workflows of the pack, as graphs, and what makes their files and pictures of them:

COMFYUI_PATH=/path/to/ComfyUI python -m tests.comfyui.examples
"""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from tests.browser import chromium
from tests.comfyui.page import ComfyPage, opened
from tests.comfyui.server import ROOT, ComfyServer, Graph, Output, serving

FOLDER = ROOT / "comfyui/example_workflows"
"""ComfyUI offers the workflows in it as templates, each with the picture of its name."""
SHOT = ROOT / "docs/comfyui.jpg"
WHERE = """() => {
    const {offset: [x, y], scale} = app.canvas.ds, boxes = app.graph.nodes.map(node => node.getBounding())
    const left = Math.min(...boxes.map(box => box[0])), right = Math.max(...boxes.map(box => box[0] + box[2]))
    const top = Math.min(...boxes.map(box => box[1])), bottom = Math.max(...boxes.map(box => box[1] + box[3]))
    return [left + x, top + y, right + x, bottom + y].map((side, i) => Math.round(side * scale + (i < 2 ? -12 : 12)))
}"""
"""Where the nodes are on the page: left, top, right, bottom."""
Place = tuple[int, int, int, int]
"""x, y, width, height of a node."""


class Example(NamedTuple):
    graph: Graph
    places: dict[str, Place]
    """By node."""
    note: str
    """What stands beside the nodes, in Markdown."""


class Drawing(Graph):
    """A graph whose nodes have places."""

    def __init__(self) -> None:
        super().__init__()
        self.places: dict[str, Place] = {}

    def put(self, place: Place, node: str, outputs: int = 1, /, **inputs: Any) -> Any:
        found = self.add(node, outputs, **inputs)
        self.places[str(len(self.nodes))] = place
        return found

    def texts(self, clip: Output, prompt: str, negative: str = "text, watermark, blurry") -> dict[str, Output]:
        """What a Search Sampler takes of a prompt."""
        text = self.put((380, 0, 380, 110), "PrimitiveStringMultiline", value=prompt)
        positive = self.put((380, 160, 380, 80), "CLIPTextEncode", clip=clip, text=text)
        avoided = self.put((380, 290, 380, 100), "CLIPTextEncode", clip=clip, text=negative)
        return {"prompt": text, "positive": positive, "negative": avoided}

    def search(self, images: float, reward: str = "pickscore", **given: Any) -> Output:
        """The images of a Search Sampler, with its reward and budget."""
        scorer = self.put((380, 440, 380, 110), "TtsnapReward", name=reward, weight=1.0, device="auto")
        caps = {"evaluations": 0, "decodes": 0, "seconds": 0.0}
        budget = self.put((380, 610, 380, 130), "TtsnapBudget", images=images, **caps)
        usual = {"seed": 1, "denoise": 1.0, "algorithm": "seed-pruning", "keep": 1, "options": "", "batch_size": 0}
        usual |= {"steps": 30, "previews": "vae", "on_cancel": "return the best so far"}
        usual |= {"reward": scorer, "budget": budget}
        made: list[Output] = self.put((800, 0, 380, 740), "TtsnapSearchSampler", 5, **usual | given)
        self.put((1230, 480, 380, 260), "PreviewAny", source=made[4])
        return made[1]

    def example(self, note: str) -> Example:
        return Example(self, self.places, note)


SDXL = {"ckpt_name": "sd_xl_base_1.0.safetensors"}
SDXL_WEIGHTS = (
    "Weights: the file of that name in stabilityai/stable-diffusion-xl-base-1.0 on Hugging Face, in "
    "models/checkpoints. This workflow was not run with them yet."
)
HOW = {"cfg": 7.0, "sampler_name": "dpmpp_2m", "scheduler": "karras"}


def sdxl() -> Example:
    drawing = Drawing()
    model, clip, vae = drawing.put((0, 0, 340, 110), "CheckpointLoaderSimple", 3, **SDXL)
    latent = drawing.put((0, 170, 340, 130), "EmptyLatentImage", width=1024, height=1024, batch_size=1)
    how = drawing.texts(clip, "a red fox asleep on a stack of old books, beside it a blue cup of tea, morning light")
    how |= {"model": model, "latent_image": latent, "vae": vae}
    images = drawing.search(8.0, options='{"n": 20, "levels": [0.9, 0.7], "keep": [0.4, 0.5]}', **HOW, **how)
    drawing.put((1230, 0, 380, 420), "SaveImage", images=images, filename_prefix="search")
    return drawing.example(
        "## The best of 20 seeds, at the price of 8\n"
        "20 seeds begin. 8 go on after 5 of 30 steps, 4 after 13, and these are finished: 232 evaluations of the "
        "model, where 8 images take 240. Without `options`, 12 seeds begin, and one later look at them takes 240.\n\n"
        "The report names the winner's seed. KSampler with that seed and the same inputs makes it again.\n\n"
        f"{SDXL_WEIGHTS}"
    )


def under_way() -> Example:
    """The first example on the embedded model, which the pack of the tests brings."""
    drawing = Drawing()
    model, clip, vae = drawing.put((0, 0, 340, 110), "ToyCheckpoint", 3, parametrisation="eps")
    latent = drawing.put((0, 170, 340, 130), "EmptyLatentImage", width=64, height=64, batch_size=1)
    how = drawing.texts(clip, "three green crosses and a red circle", "")
    how |= {"model": model, "latent_image": latent, "vae": vae, "cfg": 4.0, "sampler_name": "dpmpp_2m"}
    options = '{"n": 20, "levels": [0.9, 0.7], "keep": [0.4, 0.5]}'
    images = drawing.search(8.0, "scenes", options=options, scheduler="karras", **how)
    drawing.put((1330, 0, 380, 420), "SaveImage", images=images, filename_prefix="search")
    sampler, report = (int(images[0]), int(images[0]) + 1)
    drawing.places |= {str(sampler): (800, 0, 480, 1080), str(report): (1330, 480, 380, 260)}
    return drawing.example("")


def inpainting() -> Example:
    drawing = Drawing()
    model, clip, vae = drawing.put((0, 0, 340, 110), "CheckpointLoaderSimple", 3, **SDXL)
    pixels, mask = drawing.put((0, 170, 340, 310), "LoadImage", 2, image="example.png")
    encoded = drawing.put((0, 540, 340, 60), "VAEEncode", pixels=pixels, vae=vae)
    latent = drawing.put((0, 660, 340, 60), "SetLatentNoiseMask", samples=encoded, mask=mask)
    how = drawing.texts(clip, "a small wooden boat on a calm lake")
    how |= {"model": model, "latent_image": latent, "vae": vae}
    images = drawing.search(6.0, denoise=0.85, keep=3, **HOW, **how)
    drawing.put((1230, 0, 380, 420), "SaveImage", images=images, filename_prefix="inpainted")
    return drawing.example(
        "## The best of several ways to fill a mask\n"
        "Right-click Load Image, open the mask editor, and paint over what is to be drawn anew. All else stays as "
        "it is. The three best images come out, best first.\n\n"
        "`denoise` below 1 lets what is there shine through.\n\n"
        f"{SDXL_WEIGHTS}"
    )


def video() -> Example:
    drawing = Drawing()
    weights = {"unet_name": "wan2.1_t2v_1.3B_fp16.safetensors", "weight_dtype": "default"}
    unet = drawing.put((0, 0, 340, 90), "UNETLoader", **weights)
    model = drawing.put((0, 150, 340, 70), "ModelSamplingSD3", model=unet, shift=8.0)
    encoder = {"clip_name": "umt5_xxl_fp8_e4m3fn_scaled.safetensors", "type": "wan", "device": "default"}
    clip = drawing.put((0, 280, 340, 110), "CLIPLoader", **encoder)
    vae = drawing.put((0, 450, 340, 60), "VAELoader", vae_name="wan_2.1_vae.safetensors")
    size = {"width": 832, "height": 480, "length": 33, "batch_size": 1}
    latent = drawing.put((0, 570, 340, 150), "EmptyHunyuanLatentVideo", **size)
    how = drawing.texts(clip, "a fox runs through deep snow between fir trees, the camera follows it")
    how |= {"model": model, "latent_image": latent, "vae": vae, "sampler_name": "uni_pc", "scheduler": "simple"}
    images = drawing.search(4.0, options='{"levels": [0.91]}', cfg=6.0, batch_size=1, **how)
    made = drawing.put((1230, 0, 380, 80), "CreateVideo", images=images, fps=16.0)
    drawing.put((1230, 140, 380, 280), "SaveVideo", video=made, filename_prefix="search", format="auto", codec="auto")
    return drawing.example(
        "## The best of several videos, with Wan 2.1\n"
        "6 seeds begin. After 15 of 30 steps rewards look at frames of what each is becoming, and 2 are finished: "
        "120 evaluations, as many as 4 videos take. With a shift of 8 most steps are noisy ones, which is why "
        "`options` say to look at a level of 0.91.\n\n"
        "Weights: the files of those names in Comfy-Org/Wan_2.1_ComfyUI_repackaged on Hugging Face. This workflow was "
        "not run with them yet."
    )


EXAMPLES: dict[str, Callable[[], Example]] = {
    "best_of_20_at_the_price_of_8": sdxl,
    "inpainting": inpainting,
    "video": video,
}
"""By the names of their files."""


def saved(page: ComfyPage, example: Example) -> dict[str, Any]:
    """The workflow as the page saves it, with places, a note, and seeds that stay."""
    page.load(example.graph)
    workflow = page.workflow()
    for node in workflow["nodes"]:
        x, y, *size = example.places[str(node["id"])]
        node |= {"pos": [x, y], "size": size}
        values = node.get("widgets_values", [])
        if node["type"] == "PrimitiveStringMultiline":
            node["title"] = "Prompt"
        node["widgets_values"] = ["fixed" if value == "randomize" else value for value in values]
    last = workflow["last_node_id"] = workflow["last_node_id"] + 1
    bottom = max(y + height for _, y, _, height in example.places.values())
    frame = {"id": last, "pos": [0, bottom + 60], "size": [1180, 180], "title": "About", "color": "#432"}
    rest = {"flags": {}, "order": 0, "mode": 0, "inputs": [], "outputs": [], "properties": {}, "bgcolor": "#653"}
    workflow["nodes"].append({**frame, **rest, "type": "MarkdownNote", "widgets_values": [example.note]})
    return workflow


def picture(page: ComfyPage) -> bytes:
    """The nodes of the workflow, as JPEG."""
    box = page.page.evaluate(WHERE)
    shot = Image.open(io.BytesIO(page.page.locator("canvas#graph-canvas").screenshot())).convert("RGB").crop(box)
    file = io.BytesIO()
    shot.save(file, "JPEG", quality=80, optimize=True)
    return file.getvalue()


def photograph(page: ComfyPage, share: float) -> None:
    """A search under way, with this share of its evaluations made."""
    workflow = saved(page, under_way())
    workflow["nodes"].pop()
    page.load(workflow)
    page.page.evaluate("app.api.addEventListener('progress', e => { window.done = e.detail.value / e.detail.max })")
    page.page.evaluate("window.app.queuePrompt(0, 1)")
    page.page.wait_for_function(f"window.done >= {share}")
    page.page.wait_for_timeout(300)
    SHOT.write_bytes(picture(page))


def write(server: ComfyServer) -> None:
    FOLDER.mkdir(exist_ok=True)
    with chromium() as browser, opened(server, browser, 1600, 1000) as page:
        for name, example in EXAMPLES.items():
            workflow = saved(page, example())
            page.load(workflow)
            (FOLDER / f"{name}.json").write_text(json.dumps(workflow, indent=1, ensure_ascii=False) + "\n")
            (FOLDER / f"{name}.jpg").write_bytes(picture(page))
            print(name, page.troubles())
        photograph(page, 0.8)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as running:
        write(running)
