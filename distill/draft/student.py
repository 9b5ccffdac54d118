"""The network that learns to draft: the model's own with a LoRA, called without guidance at a
conditioning time.

The LoRA is exported as a folder that plain diffusers loads with `pipe.load_lora_weights(folder)`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from safetensors.torch import load_file
from safetensors.torch import save as serialized
from torch import Tensor, nn

from ttsnap.files.reading import foreign
from ttsnap.files.run_folder import whole_folder
from ttsnap.files.settings import Json
from ttsnap.files.writing import write_text, write_whole
from ttsnap.pipelines.denoiser import PipelineDenoiser
from ttsnap.pipelines.drafting.drafters import Drafter
from ttsnap.pipelines.drafting.drafting import estimated, use_drafter
from ttsnap.pipelines.latents.convert import own_path
from ttsnap.pipelines.pipeline_copy import shared_copy
from ttsnap.sampling import rng
from ttsnap.sampling.denoiser import Denoiser
from ttsnap.sampling.drafts import DraftSettings, write_draft
from ttsnap.sampling.interpolants import Interpolant

WEIGHTS = "pytorch_lora_weights.safetensors"
CARD = "README.md"


class DraftStudent:
    """A copy of a pipeline's network with a new LoRA, which shares the network's frozen weights.

    call: arguments of the pipeline's call.
    first_time: conditioning time of first calls, as a share of the true time.
    rank: of the LoRA.
    """

    def __init__(
        self, pipe: Any, call: Mapping[str, Json], *, first_time: float, rank: int
    ) -> None:
        denoiser = pipe.denoiser(**call)
        check_sampler(denoiser)
        schedule = denoiser.schedule
        self.path: Interpolant = own_path(schedule)
        alpha = schedule.alpha[0].double()
        sigma = schedule.sigma[0].double()
        time = self.path.inverse_ratio(alpha / sigma)
        self.time = float(time)
        """That of the noise on the model's own path."""
        size = torch.hypot(alpha, sigma) / torch.hypot(self.path.alpha(time), self.path.sigma(time))
        self._scale = size.float()
        self.first_time = first_time
        self.network = denoiser.network
        self.device = denoiser.device
        self._dtype = pipe.dtype
        self._given = torch.tensor([self.time * first_time, self.time / 2], dtype=torch.float64)
        self.net: Any = shared_copy(denoiser.net)
        self.parameters = add_lora(self.net, rank)
        use_drafter(denoiser, Drafter(self.net, DraftSettings(first_time=first_time)))
        self._denoiser: PipelineDenoiser = denoiser.drafts.twin()

    def checkpoint(self) -> None:
        """Compute the blocks again in the backward pass, to save memory. ValueError for a network
        that cannot."""
        with foreign(f"checkpointing does not work with a {type(self.net).__name__}"):
            self.net.enable_gradient_checkpointing()

    def compile(self) -> None:
        """Compile the blocks in place, or the whole network where it has none."""
        blocks = blocks_of(self.net)
        for part in [self.net] if blocks is None else self.net.get_submodule(blocks):
            part.compile(dynamic=False)

    def encode(self, prompts: Sequence[str]) -> None:
        """Encode these prompts, which `cond` of `estimate` indexes."""
        self._denoiser.forget_prompts()  # so that bits do not depend on what was encoded before
        with torch.no_grad():
            self._denoiser.encode(prompts)

    def noise(self, seeds: Sequence[int]) -> Tensor:
        """The noises (N, ...) that the sampler begins with, as points of the model's own path. Some
        prompt must be encoded."""
        x = self._denoiser.init_latents([rng.seeded(seed) for seed in seeds])
        return x.float() / self._scale.to(x.device)

    def estimate(self, x: Tensor, time: Tensor, cond: Tensor) -> Tensor:
        """x0 estimates (N, ...) at points x (N, ...) of the path, conditioning times (N,), of
        prompts cond (N,).

        Possible times: first_time times that of the noise, and half of that of the noise.
        """
        at = (time.double().unsqueeze(1) - self._given).abs().argmin(1)
        step = torch.zeros_like(at)
        return estimated(self._denoiser, x, self._given[at], step, cond, self._dtype)


def check_sampler(denoiser: Denoiser) -> None:
    """ValueError where noise does not decide where this sampler ends, or a step takes several
    evaluations."""
    if denoiser.kernel.stochastic:
        raise ValueError(
            f"the sampler ({type(denoiser.kernel).__name__}) draws noise at every step, so that"
            " noise does not decide where a trajectory ends: a draft needs a deterministic one, as"
            " Euler, DDIM or DPM-Solver++"
        )
    if not denoiser.mixes_noise:
        raise ValueError(
            "what this call makes of a seed depends on more than its initial noise, which is all"
            " that a draft sees; give it no picture"
        )
    if denoiser.grid.nfe != denoiser.grid.steps:
        raise ValueError(
            "the sampler takes several evaluations in a step; choose one that takes one (Euler,"
            " DDIM)"
        )


def blocks_of(net: nn.Module) -> str | None:
    """The name of the network's list of transformer blocks; None where it has none, as U-Nets.

    That is its longest list of modules of one class, and the last of those of one length; in networks
    of two kinds of blocks, as FLUX, the list that bears this name.
    """
    lists = {name: part for name, part in net.named_children() if isinstance(part, nn.ModuleList)}
    if "down_blocks" in lists:
        return None
    alike = {name: part for name, part in lists.items() if len(set(map(type, part))) == 1}
    if "transformer_blocks" in alike:
        return "transformer_blocks"
    return max(reversed(alike), key=lambda name: len(alike[name]), default=None)


def check_lora(pipe: Any, net: Any) -> None:
    """ValueError where diffusers puts no LoRA into this network, or saves none of this pipeline."""
    if not (hasattr(net, "add_adapter") and hasattr(pipe, "save_lora_weights")):
        raise ValueError(
            f"a draft is a LoRA, and diffusers has none for a {type(net).__name__} of a"
            f" {pipe.stock_class().__name__}"
        )


def add_lora(net: Any, rank: int) -> dict[str, nn.Parameter]:
    """Put a LoRA in float32, which changes nothing yet, on every linear layer of the blocks; its
    parameters by name.

    With several lists of blocks (FLUX has double and single ones, Lumina refiners) all of them get
    it; without any, all linear layers of the network. ValueError for a network that carries a LoRA.
    """
    from peft import LoraConfig

    if net._hf_peft_config_loaded:
        raise ValueError(
            "the model carries a LoRA already, and a draft needs a model without one: merge it into"
            " the weights (pipe.fuse_lora(), pipe.unload_lora_weights()), and save that as the"
            " model"
        )
    lists = tuple(
        f"{name}." for name, part in net.named_children() if isinstance(part, nn.ModuleList)
    )
    within = "" if blocks_of(net) is None else lists
    linear = [
        name
        for name, part in net.named_modules()
        if isinstance(part, nn.Linear) and name.startswith(within)
    ]
    net.requires_grad_(False)
    net.add_adapter(
        LoraConfig(r=rank, lora_alpha=rank, target_modules=linear, init_lora_weights="gaussian")
    )
    trained = {name: p for name, p in net.named_parameters() if p.requires_grad}
    for p in trained.values():
        p.data = p.data.float()
    return trained


@torch.no_grad()
def start_from(student: DraftStudent, folder: Path) -> None:
    """Copy the weights of an earlier draft into the student's LoRA. ValueError where they do not
    fit."""
    with foreign(f"start: cannot read {folder / WEIGHTS}"):
        tensors = load_file(folder / WEIGHTS)
    prefix = f"{student.network}."
    for name, p in student.parameters.items():
        value = tensors.get(prefix + name.replace(".default.", "."))
        if value is None or value.shape != p.shape:
            there = "missing" if value is None else tuple(value.shape)
            raise ValueError(
                f"start {folder} does not fit: {name} is {there} there, here {tuple(p.shape)}"
            )
        p.copy_(value)


def export(
    student: DraftStudent, pipe: Any, settings: DraftSettings, card: str, folder: Path
) -> None:
    """Write the LoRA in bfloat16, with its adapter's configuration, draft.json and a card; whole or
    not at all."""
    from peft import get_peft_model_state_dict

    tensors = get_peft_model_state_dict(student.net)
    layers = {
        name: value.detach().to("cpu", torch.bfloat16).contiguous()
        for name, value in tensors.items()
    }

    def save(named: dict[str, Tensor], path: str) -> None:
        # One key, since safetensors writes several in any order and the bytes should be the same
        # every time.
        write_whole(
            Path(path),
            lambda file: file.write(serialized(named, {LORA_ADAPTER_METADATA_KEY: about(student)})),
        )

    with whole_folder(folder) as temporary:
        type(pipe).save_lora_weights(
            temporary, **{f"{student.network}_lora_layers": layers}, save_function=save
        )
        write_draft(temporary, settings)
        write_text(temporary / CARD, card)


def about(student: DraftStudent) -> str:
    """What any peft reads of the adapter's configuration, as JSON: rank, alpha and layers.

    Keys begin with the network's name, as diffusers writes them. Other settings differ between
    versions of peft, and a version refuses those that it does not know.
    """
    config = student.net.peft_config["default"]
    # The order of a set differs between processes.
    told = {
        "r": config.r,
        "lora_alpha": config.lora_alpha,
        "target_modules": sorted(config.target_modules),
    }
    return json.dumps(
        {f"{student.network}.{key}": value for key, value in told.items()}, sort_keys=True
    )
