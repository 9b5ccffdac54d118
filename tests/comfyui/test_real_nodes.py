"""The nodes in graphs that a whole ComfyUI runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.comfyui.server import ComfyServer, Graph, Output

pytestmark = pytest.mark.usefixtures("comfy")
PROMPT = "a red circle left of a blue square"


class Workflow(Graph):
    """A graph with the embedded model, the prompt's conditioning, and the nodes of ttsnap."""

    def __init__(self, parametrisation: str = "flow") -> None:
        super().__init__()
        self.model, self.clip, self.vae = self.add("ToyCheckpoint", 3, parametrisation=parametrisation)
        texts = [self.add("CLIPTextEncode", clip=self.clip, text=text) for text in (PROMPT, "")]
        latent = self.add("EmptySD3LatentImage", width=64, height=64, batch_size=1)
        self.how: dict[str, Any] = dict(zip(("positive", "negative"), texts, strict=True))
        self.how |= {"model": self.model, "latent_image": latent, "steps": 8, "cfg": 4.0, "denoise": 1.0}
        self.how |= {"sampler_name": "euler", "scheduler": "simple"}

    def reward(self, name: str, **given: Any) -> Output:
        made: Output = self.add("TtsnapReward", name=name, **{"weight": 1.0, "device": "cpu", **given})
        return made

    def search(self, **given: Any) -> list[Output]:
        """latent, images, seeds, scores, report."""
        how = {"prompt": PROMPT, "algorithm": "seed-pruning", "keep": 1, "seed": 5, "vae": self.vae, **self.how}
        reward = {} if "reward" in given else {"reward": self.reward("scenes")}
        made: list[Output] = self.add("TtsnapSearchSampler", 5, **{**how, **reward, **given})
        return made

    def stock(self, seed: int, **given: Any) -> Output:
        """The images of KSampler."""
        latent = self.add("KSampler", **{**self.how, "seed": seed, **given})
        made: Output = self.add("VAEDecode", samples=latent, vae=self.vae)
        return made

    def save(self, images: Output) -> Output:
        made: Output = self.add("SaveImage", images=images, filename_prefix="nodes")
        return made

    def read(self, value: Output) -> Output:
        made: Output = self.add("PreviewAny", source=value)
        return made


def apart(a: Image.Image, b: Image.Image) -> int:
    """The largest difference of two images of one size, in steps of 1/255."""
    return int(np.abs(np.asarray(a, int) - np.asarray(b, int)).max())


def test_the_winner_is_ksamplers_image_at_the_seed_that_is_reported(server: ComfyServer) -> None:
    graph = Workflow()
    _, images, seeds, scores, report = graph.search(keep=2)
    saved, seeds_read, scores_read, report_read = graph.save(images), *map(graph.read, (seeds, scores, report))
    outputs = server.run(graph)
    found = server.images(outputs, saved)
    again = Workflow()
    stock = [again.save(again.stock(int(seed))) for seed in outputs[seeds_read[0]]["text"]]
    made = server.run(again)
    assert [apart(one, *server.images(made, node)) for one, node in zip(found, stock, strict=True)] <= [1, 1]
    values = [float(score) for score in outputs[scores_read[0]]["text"]]
    assert len(values) == 2
    assert values == sorted(values, reverse=True)
    [text] = outputs[report_read[0]]["text"]
    assert f"KSampler with seed {outputs[seeds_read[0]]['text'][0]} " in text
