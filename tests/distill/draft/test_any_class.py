"""A draft of any class of pipelines, whose stock call is suspended."""

from __future__ import annotations

import diffusers
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import nn

from benchmarks import support_parts
from ttsnap.distill.draft.run import distill_draft
from ttsnap.distill.draft.student import DraftStudent, blocks_of, check_sampler
from ttsnap.distill.training import METRICS, read_metrics
from ttsnap.pipelines import downgrade, load, search_class, upgrade

from ...pipelines.tiny import FAMILIES, shared  # noqa: TID252
from .small import config_of, recorded, stock_of

BLOCKS = {
    "UNet2DConditionModel": None,
    "SD3Transformer2DModel": "transformer_blocks",
    "FluxTransformer2DModel": "transformer_blocks",
    "Flux2Transformer2DModel": "transformer_blocks",
    "PixArtTransformer2DModel": "transformer_blocks",
    "SanaTransformer2DModel": "transformer_blocks",
    "QwenImageTransformer2DModel": "transformer_blocks",
    "ZImageTransformer2DModel": "layers",
    "Lumina2Transformer2DModel": "layers",
}


def network_of(pipe):
    parts = pipe.components
    net = parts.get("transformer") or parts["unet"]
    return net


def test_transformer_blocks_are_found_in_the_network():
    nets = [network_of(shared(name)) for name in FAMILIES]
    assert {type(net).__name__: blocks_of(net) for net in nets} == BLOCKS


@pytest.mark.parametrize("name", ["Flux", "Flux2", "Wan"])
def test_blocks_of_full_size(name):
    kind = getattr(diffusers, f"{name}Transformer{'3D' if name == 'Wan' else '2D'}Model")
    with torch.device("meta"):
        net = kind()
    assert blocks_of(net) == ("blocks" if name == "Wan" else "transformer_blocks")


@pytest.mark.parametrize("name", ["embedded", "sd3", "flux"])
def test_an_estimate_is_what_the_stock_call_makes_in_one_step(name):
    """With the LoRA, told the time, and not guided; and a gradient comes to the LoRA alone."""
    stock = downgrade(load(name)) if name == "embedded" else stock_of(name)
    text = "a red circle above a blue square"
    own = {"max_sequence_length": 1} if name == "embedded" else FAMILIES[name].call
    call = {**own, "num_inference_steps": 4}
    pipe = search_class(type(stock)).from_pipe(stock)
    student = DraftStudent(pipe, call, first_time=0.8, rank=2)
    generator = torch.Generator().manual_seed(0)
    for each in student.parameters.values():
        each.data += 0.1 * torch.randn(each.shape, generator=generator)
    student.encode([text])
    x = student.noise([1, 2])
    given = torch.tensor([student.time * 0.8, student.time / 2])
    found = student.estimate(x, given.double(), torch.zeros(2, dtype=torch.long))

    plain = stock.from_pipe(stock, transformer=student.net)
    plain.scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    plain.set_progress_bar_config(disable=True)
    alone = {**call, "num_inference_steps": 1, "output_type": "latent"}
    if name != "flux":  # whose network reads a scale
        alone["guidance_scale"] = 1.0
    for row, time in enumerate(given.tolist()):
        again = plain(text, **alone, sigmas=[time], latents=x[row : row + 1]).images
        torch.testing.assert_close(found[row : row + 1].detach(), again, atol=1e-4, rtol=1e-4)

    found.pow(2).mean().backward()
    moved = [bool(each.grad.abs().sum() > 0) for each in student.parameters.values()]
    assert sum(moved) > 0.9 * len(moved)  # the last block has layers whose output is not read
    parts = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    assert not any(each.grad is not None for part in parts for each in part.parameters())


# a video, one with processors that each call puts in, and one whose linear layers are in two lists
@pytest.mark.parametrize(
    "kind",
    [
        "WanPipeline",
        pytest.param("StableDiffusionPAGPipeline", marks=pytest.mark.slow),
        "ChromaPipeline",
    ],
)
def test_a_draft_is_made_of_a_class_that_nothing_knows(kind, tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        case = support_parts.stock(kind)
    call = {name: case.call[name] for name in case.call if name not in ("prompt", "generator")}
    call = {**call, "num_inference_steps": 5}
    pipe = upgrade(case.pipe)
    recording = recorded(tmp_path / "r", kind, pipe, call)
    training = {"checkpointing": True, "precision": "bf16", "warmup": 0, "ema": 0.0}
    config = config_of(recording, kind, **training, prompts=0)
    distill_draft(config, tmp_path / "out", lambda *_: pipe)
    lines = read_metrics(tmp_path / "out" / METRICS)
    first, last = (line for line in lines if "calls 1" in line)
    assert last["calls 1"] < first["calls 1"]
    assert (tmp_path / "out" / "draft" / "pytorch_lora_weights.safetensors").exists()


def test_what_no_draft_can_be_made_of_is_refused_before_it_is_trained(tmp_path):
    pipe = upgrade(shared("pixart_sigma"))
    config = config_of(recorded(tmp_path / "r", "pixart_sigma", pipe), "pixart_sigma")
    with pytest.raises(ValueError, match="PixArtTransformer2DModel"):
        distill_draft(config, tmp_path / "out", lambda *_: pipe)
    case = support_parts.stock("StableDiffusionImg2ImgPipeline")
    denoiser = upgrade(case.pipe).denoiser(**{**case.call, "num_inference_steps": 5})
    with pytest.raises(ValueError, match="picture"):
        check_sampler(denoiser)
    assert not (tmp_path / "out" / "checkpoints").exists()
