"""A whole ComfyUI: graphs through its HTTP API, and its page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.browser import chromium
from tests.comfyui.page import opened
from tests.comfyui.real import LATENT
from tests.comfyui.server import ComfyServer, Graph, Output

pytestmark = pytest.mark.usefixtures("comfy")
PROMPT, STEPS, CFG, SEED = "a red circle left of a blue square", 6, 4.0, 3


def sampled(graph: Graph, model: Output, clip: Output, **changed: Any) -> Output:
    """The stock nodes that draw a LATENT of the prompt."""
    positive, negative = (graph.add("CLIPTextEncode", clip=clip, text=text) for text in (PROMPT, ""))
    latent = graph.add("EmptySD3LatentImage", width=64, height=64, batch_size=1)
    where: dict[str, Any] = {"model": model, "positive": positive, "negative": negative, "latent_image": latent}
    how = {"steps": STEPS, "cfg": CFG, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0, "seed": SEED}
    found: Output = graph.add("KSampler", **where, **how | changed)
    return found


def here(model: Any) -> torch.Tensor:
    """The same, in this process."""
    import comfy.sample

    from tests.comfyui.toy_nodes.embedded import conditioning

    latent = torch.zeros(1, model.model.latent_format.latent_channels, *LATENT[2:])
    texts, noise = (conditioning(PROMPT), conditioning("")), comfy.sample.prepare_noise(latent, SEED)
    with torch.inference_mode():
        found: torch.Tensor = comfy.sample.sample(
            model, noise, STEPS, CFG, "euler", "simple", *texts, latent, seed=SEED, disable_pbar=True
        )
    return found


def toy_graph() -> tuple[Graph, Output]:
    graph = Graph()
    model, clip, vae = graph.add("ToyCheckpoint", 3, parametrisation="flow")
    image = graph.add("VAEDecode", samples=sampled(graph, model, clip), vae=vae)
    return graph, graph.add("SaveImage", images=image, filename_prefix="toy")


def test_the_embedded_model_draws_there_what_it_draws_here(server: ComfyServer) -> None:
    from tests.comfyui.toy_nodes.embedded import embedded_model, embedded_vae

    graph, saved = toy_graph()
    [image] = server.images(server.run(graph, workflow={"nodes": []}), saved)
    with torch.inference_mode():
        expected = embedded_vae().decode(here(embedded_model()))[0].numpy() * 255
    assert np.abs(np.asarray(image) - expected).max() < 1.01  # rounded down
    assert json.loads(image.info["prompt"]) == graph.nodes
    assert json.loads(image.info["workflow"]) == {"nodes": []}


def test_a_checkpoint_in_a_file(server: ComfyServer) -> None:
    from safetensors.torch import load

    from tests.comfyui.real import tiny_sd3_model

    graph = Graph()
    _, clip, _ = graph.add("ToyCheckpoint", 3, parametrisation="flow")
    model = graph.add("UNETLoader", unet_name="tiny_sd3.safetensors", weight_dtype="default")
    saved = graph.add("SaveLatent", samples=sampled(graph, model, clip), filename_prefix="tiny")
    [content] = server.files(server.run(graph), saved)
    assert torch.allclose(load(content)["latent_tensor"], here(tiny_sd3_model()), atol=1e-5)


def test_a_graph_that_cannot_run(server: ComfyServer) -> None:
    graph = Graph()
    model, clip, _ = graph.add("ToyCheckpoint", 3, parametrisation="flow")
    graph.add("SaveLatent", samples=sampled(graph, model, clip, sampler_name="none"))
    with pytest.raises(ValueError, match="none"):
        server.run(graph)


def test_progress_and_previews_are_heard(server: ComfyServer) -> None:
    graph = Graph()
    model, clip, _ = graph.add("ToyCheckpoint", 3, parametrisation="flow")
    latent = sampled(graph, model, clip, seed=2**33)  # not in the cache
    graph.add("SaveLatent", samples=latent, filename_prefix="heard")
    with server.listening() as heard:
        server.run(graph)
    assert heard.progress(latent)[-1] == (STEPS, STEPS)
    assert [preview.size for preview in heard.previews] == [(512, 512)] * STEPS  # enlarged


@pytest.mark.browser
def test_the_page_loads_and_runs_a_graph(server: ComfyServer, tmp_path: Path) -> None:
    graph, _ = toy_graph()
    with chromium() as browser, opened(server, browser) as comfy_page:
        comfy_page.load(graph)
        workflow = comfy_page.workflow()
        assert [node["type"] for node in workflow["nodes"]] == [node["class_type"] for node in graph.nodes.values()]
        comfy_page.load(workflow)  # as saved
        inputs = {key: node["inputs"] for key, node in comfy_page.prompt().items()}
        assert inputs == {key: node["inputs"] for key, node in graph.nodes.items()}
        comfy_page.run()
        comfy_page.save(tmp_path / "page.png")
        assert not comfy_page.troubles()
    shown = {tuple(colour) for colour in np.asarray(Image.open(tmp_path / "page.png").convert("RGB")).reshape(-1, 3)}
    assert len(shown) > 50
