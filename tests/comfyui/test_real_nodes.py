"""The nodes in graphs that a whole ComfyUI runs."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch

from tests.comfyui.server import LATENT, Graph
from tests.comfyui.test_nodes import CANCELS, cancelled
from ttsnap.comfyui.inputs import Weighted
from ttsnap.loop.budget import Budget
from ttsnap.reward_models.registry import make_reward

pytestmark = pytest.mark.usefixtures("comfy")
PROMPT = "a red circle left of a blue square"


class Workflow(Graph):
    """A graph with the embedded model, the prompt's conditioning, and the nodes of ttsnap."""

    def __init__(self, parametrisation="flow"):
        super().__init__()
        self.model, self.clip, self.vae = self.add(
            "ToyCheckpoint", 3, parametrisation=parametrisation
        )
        texts = [self.add("CLIPTextEncode", clip=self.clip, text=text) for text in (PROMPT, "")]
        latent = self.add("EmptySD3LatentImage", width=64, height=64, batch_size=1)
        self.how: dict[str, Any] = dict(zip(("positive", "negative"), texts, strict=True))
        self.how |= {
            "model": self.model,
            "latent_image": latent,
            "steps": 8,
            "cfg": 4.0,
            "denoise": 1.0,
        }
        self.how |= {"sampler_name": "euler", "scheduler": "simple"}

    def reward(self, name):
        return self.add("TtsnapReward", name=name, weight=1.0, device="cpu")

    def search(self, **given):
        """latent, images, seeds, scores, report."""
        how = {
            "prompt": PROMPT,
            "algorithm": "seed-pruning",
            "keep": 1,
            "seed": 5,
            "vae": self.vae,
            **self.how,
        }
        reward = {} if "reward" in given else {"reward": self.reward("scenes")}
        made = self.add("TtsnapSearchSampler", 5, **{**how, **reward, **given})
        return made

    def stock(self, seed, **given):
        """The images of KSampler."""
        latent = self.add("KSampler", **{**self.how, "seed": seed, **given})
        return self.add("VAEDecode", samples=latent, vae=self.vae)

    def save(self, images):
        return self.add("SaveImage", images=images, filename_prefix="nodes")

    def read(self, value):
        return self.add("PreviewAny", source=value)


def apart(a, b):
    """The largest difference of two images of one size, in steps of 1/255."""
    return int(np.abs(np.asarray(a, int) - np.asarray(b, int)).max())


def test_the_winner_is_ksamplers_image_at_the_seed_that_is_reported(server):
    graph = Workflow()
    _, images, seeds, scores, report = graph.search(keep=2)
    saved, seeds_read, scores_read, report_read = (
        graph.save(images),
        *map(graph.read, (seeds, scores, report)),
    )
    outputs = server.run(graph)
    found = server.images(outputs, saved)
    again = Workflow()
    stock = [again.save(again.stock(int(seed))) for seed in outputs[seeds_read[0]]["text"]]
    made = server.run(again)
    assert (
        max(apart(one, *server.images(made, node)) for one, node in zip(found, stock, strict=True))
        <= 1
    )
    values = [float(score) for score in outputs[scores_read[0]]["text"]]
    assert len(values) == 2
    assert values == sorted(values, reverse=True)
    [text] = outputs[report_read[0]]["text"]
    assert f"KSampler with seed {outputs[seeds_read[0]]['text'][0]} " in text


def test_stock_nodes_make_a_finished_draft_again(server):
    graph = Workflow()
    how = {"cfg": 2.0, "calls": 1, "first_time": 1.0, "finish": 0.4, "finish_steps": 3}
    drafter = graph.add("TtsnapDrafter", model=graph.model, **how)
    _, images, seeds, _, report = graph.search(drafter=drafter)
    saved, seed_read, report_read = graph.save(images), graph.read(seeds), graph.read(report)
    outputs = server.run(graph)
    [seed], [text] = (outputs[node[0]]["text"] for node in (seed_read, report_read))
    told = re.search(r"noise_seed (\d+), (\d+) steps, start_at_step (\d+) ", text)
    assert told is not None, text
    assert told[1] == seed
    again = Workflow()
    draft = again.add("KSampler", **again.how | {"seed": int(seed), "steps": 1, "cfg": 2.0})
    how = {**again.how, "latent_image": draft}
    del how["denoise"]
    how |= {
        "noise_seed": int(seed),
        "steps": int(told[2]),
        "start_at_step": int(told[3]),
        "end_at_step": 10000,
    }
    latent = again.add(
        "KSamplerAdvanced", **how, add_noise="enable", return_with_leftover_noise="disable"
    )
    made = again.save(again.add("VAEDecode", samples=latent, vae=again.vae))
    assert apart(*server.images(outputs, saved), *server.images(server.run(again), made)) <= 1


def test_particles_and_another_nodes_reward(server):
    graph = Workflow("eps")
    by_node = graph.add("TtsnapRewardbyNode", node="Toy Redness", weight=1.0)
    how = {
        "algorithm": "smc",
        "sampler_name": "ttsnap: sde",
        "previews": "previewer",
        "batch_size": 3,
    }
    report = graph.read(graph.search(reward=by_node, **how)[4])
    [text] = server.run(graph)[report[0]]["text"]
    assert "(Toy Redness 0." in text
    assert "KSampler" not in text


@CANCELS
def test_cancelling_leaves_no_thread_and_no_flag(returns, times, monkeypatch):
    """In this process, by the hook of ComfyUI's server."""
    import comfy.utils
    from comfy import model_management

    from tests.comfyui.toy_nodes.embedded import conditioning, embedded_model, embedded_vae
    from ttsnap.comfyui.nodes import search_sampler

    def hook(*_, **__):
        model_management.throw_exception_if_processing_interrupted()

    def on_call(cancel):
        def wrapped(apply, args):
            cancel()
            return apply(args["input"], args["timestep"], **args["c"])

        model.set_model_unet_function_wrapper(wrapped)

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", hook)
    model, reward = embedded_model(), (Weighted(make_reward("brightness"), 1.0),)
    links = {
        "MODEL": model,
        "CONDITIONING": conditioning(PROMPT),
        "VAE": embedded_vae(),
        "TTSNAP_REWARD": reward,
        "LATENT": {"samples": torch.zeros(LATENT)},
        "TTSNAP_BUDGET": Budget(images=8),
    }
    cancelled(search_sampler, links, on_call, returns, times)
