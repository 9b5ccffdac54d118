"""A double of what a search calls of ComfyUI: a guider with `sample`, samplers as loops, models of closed form.

Written from ComfyUI's documented contract; tests/comfyui/test_real_search.py holds the same searches to ComfyUI itself.
The model's images are Gaussian, so that its x0 estimates are exact.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

SHAPE = (1, 2, 4, 4)
HOOKS = "sampler_post_cfg_function"


class InterruptProcessingException(Exception):  # noqa: N818 (ComfyUI's name)
    pass


class Const:
    """comfy.model_sampling.CONST: a flow."""

    sigma_max = 1.0

    def noise_scaling(self, sigma: Tensor, noise: Tensor, latent: Tensor, max_denoise: bool = False) -> Tensor:
        return sigma * noise + (1 - sigma) * latent

    def inverse_noise_scaling(self, sigma: Tensor, latent: Tensor) -> Tensor:
        return latent / (1 - sigma)


class Exploding:
    """comfy.model_sampling.EPS: x = latent + sigma noise, which is scaled in place."""

    sigma_max = 10.0

    def noise_scaling(self, sigma: Tensor, noise: Tensor, latent: Tensor, max_denoise: bool = False) -> Tensor:
        noise *= torch.sqrt(1 + sigma**2) if max_denoise else sigma
        noise += latent
        return noise

    def inverse_noise_scaling(self, sigma: Tensor, latent: Tensor) -> Tensor:
        return latent


class Sampler:
    """comfy.samplers.Sampler."""

    def max_denoise(self, model_wrap: Any, sigmas: Tensor) -> bool:
        largest, first = float(model_wrap.inner_model.model_sampling.sigma_max), float(sigmas[0])
        return math.isclose(largest, first, rel_tol=1e-5) or first > largest


class Inpaint:
    """comfy.samplers.KSamplerX0Inpaint."""

    latent_image: Tensor
    noise: Tensor

    def __init__(self, model: Any, sigmas: Tensor) -> None:
        self.inner_model, self.sigmas = model, sigmas

    def __call__(self, x: Tensor, sigma: Tensor, denoise_mask: Tensor | None, **more: Any) -> Tensor:
        if denoise_mask is None:
            made: Tensor = self.inner_model(x, sigma, **more)
            return made
        sampling, keep = self.inner_model.inner_model.model_sampling, 1 - denoise_mask
        at = sigma.reshape(-1, *[1] * (x.ndim - 1))
        around = sampling.noise_scaling(at, self.noise.clone(), self.latent_image.expand_as(x))
        made = self.inner_model(x * denoise_mask + around * keep, sigma, **more)
        return made * denoise_mask + self.latent_image * keep


Loop = Callable[..., Tensor]


@dataclass
class Stock(Sampler):
    """comfy.samplers.KSAMPLER: a loop over the model."""

    loop: Loop

    def sample(
        self,
        model_wrap: Any,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Any,
        noise: Tensor,
        latent_image: Tensor,
        denoise_mask: Tensor | None = None,
        disable_pbar: bool = False,
    ) -> Tensor:
        model = Inpaint(model_wrap, sigmas)
        model.latent_image, model.noise = latent_image, noise
        sampling = model_wrap.inner_model.model_sampling
        x = sampling.noise_scaling(sigmas[0], noise.clone(), latent_image, self.max_denoise(model_wrap, sigmas))
        step = (lambda i, x0: None) if callback is None else (lambda i, x0: callback(i, x0, x, len(sigmas) - 1))
        done = self.loop(model, x, sigmas, {**extra_args, "denoise_mask": denoise_mask}, step)
        made: Tensor = sampling.inverse_noise_scaling(sigmas[-1], done)
        return made


def euler(model: Any, x: Tensor, sigmas: Tensor, args: dict[str, Any], step: Any) -> Tensor:
    """The velocity step from x0 = model(x, sigma)."""
    call = _caller(model, args, x)
    for i in range(len(sigmas) - 1):
        x0 = call(x, sigmas[i])
        step(i, x0)
        x = x + (x - x0) / sigmas[i] * (sigmas[i + 1] - sigmas[i])
    return x


def heun(model: Any, x: Tensor, sigmas: Tensor, args: dict[str, Any], step: Any) -> Tensor:
    """Two calls a step but the last."""
    call = _caller(model, args, x)
    for i in range(len(sigmas) - 1):
        x0 = call(x, sigmas[i])
        step(i, x0)
        d, h = (x - x0) / sigmas[i], sigmas[i + 1] - sigmas[i]
        if sigmas[i + 1] == 0:
            x = x + d * h
        else:
            there = x + d * h
            x = x + (d + (there - call(there, sigmas[i + 1])) / sigmas[i + 1]) / 2 * h
    return x


def ancestral(model: Any, x: Tensor, sigmas: Tensor, args: dict[str, Any], step: Any) -> Tensor:
    """Fresh noise at each step, of the candidate's seed; keeps the last estimate (a history)."""
    call, noise, last = _caller(model, args, x), torch.Generator().manual_seed(args["seed"] + 1), torch.zeros_like(x)
    for i in range(len(sigmas) - 1):
        x0 = call(x, sigmas[i])
        step(i, x0)
        drawn, s = torch.randn(x.shape, generator=noise), sigmas[i + 1]
        x = x0 + 0.1 * s * (x0 - last) + s * drawn
        last = x0
    return x


def unguided(model: Any, x: Tensor, sigmas: Tensor, args: dict[str, Any], step: Any) -> Tensor:
    """Steps along the negative pass, which a hook of its own reads (as the cfg_pp samplers)."""
    negative = torch.zeros_like(x)

    def read(values: dict[str, Any]) -> Tensor:
        nonlocal negative
        negative = values["uncond_denoised"]
        made: Tensor = values["denoised"]
        return made

    options = {**args["model_options"], HOOKS: [*args["model_options"].get(HOOKS, []), read]}
    call = _caller(model, {**args, "model_options": {**options, "disable_cfg1_optimization": True}}, x)
    for i in range(len(sigmas) - 1):
        x0 = call(x, sigmas[i])
        step(i, x0)
        x = x0 + (x - negative) / sigmas[i] * sigmas[i + 1]
    return x


def churning(model: Any, x: Tensor, sigmas: Tensor, args: dict[str, Any], step: Any) -> Tensor:
    """Noise from torch's global generator."""
    return euler(model, x + 0.1 * torch.randn_like(x), sigmas, args, step)


def adaptive(model: Any, x: Tensor, sigmas: Tensor, args: dict[str, Any], step: Any) -> Tensor:
    """A step whose size the image decides."""
    sigma = float(sigmas[0]) * (0.5 + 0.1 * float(torch.tanh(_caller(model, args, x)(x, sigmas[0]).mean())))
    return _caller(model, args, x)(x, torch.tensor(sigma))


LOOPS = {"euler": euler, "heun": heun, "ancestral": ancestral, "unguided": unguided}
EVALUATIONS = {"euler": 1, "heun": 2, "ancestral": 1, "unguided": 1}
"""Of a step but the last, which takes one."""


def _caller(model: Any, args: dict[str, Any], x: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    more = {"denoise_mask": args["denoise_mask"], "model_options": args["model_options"], "seed": args["seed"]}

    def call(at: Tensor, sigma: Tensor) -> Tensor:
        made: Tensor = model(at, sigma * x.new_ones([len(x)]), **more)
        return made

    return call


@dataclass
class Model:
    """A BaseModel. Images are N(centre, spread^2) under the positive text, and around 0 under the negative one."""

    model_sampling: Any
    centre: float = 0.5
    spread: float = 0.3
    rows: list[int] = field(default_factory=list)
    """Of each call of the network."""
    on_call: Callable[[], None] = lambda: None

    def x0(self, x: Tensor, sigma: Tensor, centre: float) -> Tensor:
        """E[x0 | x]."""
        s = sigma.reshape(-1, *[1] * (x.ndim - 1))
        a = 1 - s if isinstance(self.model_sampling, Const) else torch.ones_like(s)
        gain = a * self.spread**2 / (a**2 * self.spread**2 + s**2)
        return centre + gain * (x - a * centre)

    def process_latent_in(self, latent: Tensor) -> Tensor:
        return latent * 2

    def process_latent_out(self, latent: Tensor) -> Tensor:
        return latent / 2

    def memory_required(self, shape: list[int]) -> int:
        return 100 * shape[0]


@dataclass
class Patcher:
    """A ModelPatcher."""

    model: Model
    size: int = 0
    load_device = torch.device("cpu")

    def model_size(self) -> int:
        return self.size

    def loaded_size(self) -> int:
        return 0


class Guider:
    """A CFGGuider."""

    def __init__(self, model: Model, cfg: float = 2.0, options: dict[str, Any] | None = None) -> None:
        self.model_patcher, self.cfg, self.options = Patcher(model), cfg, options or {}
        self.running = False

    def sample(
        self,
        noise: Tensor,
        latent_image: Tensor,
        sampler: Any,
        sigmas: Tensor,
        denoise_mask: Tensor | None = None,
        callback: Any = None,
        disable_pbar: bool = False,
        seed: int | None = None,
    ) -> Tensor:
        self.inner_model, self.loaded_models, self.conds = self.model_patcher.model, [], {"positive": 1, "negative": 0}
        self.running = True
        try:
            if torch.count_nonzero(latent_image):
                latent_image = self.inner_model.process_latent_in(latent_image)
            args, mask = {"model_options": self.options, "seed": seed}, denoise_mask
            if mask is not None:
                mask = mask.expand(noise.shape)
            made = sampler.sample(self, sigmas, args, callback, noise, latent_image, mask, disable_pbar)
            return self.inner_model.process_latent_out(made.float())
        finally:
            self.running = False

    def __call__(self, x: Tensor, sigma: Tensor, model_options: dict[str, Any], seed: int | None = None) -> Tensor:
        model = self.inner_model
        model.on_call()
        spared = math.isclose(self.cfg, 1) and not model_options.get("disable_cfg1_optimization")
        positive, negative = model.x0(x, sigma, model.centre), model.x0(x, sigma, 0.0)
        model.rows.append(len(x) * (1 if spared else 2))
        x0 = positive if spared else negative + self.cfg * (positive - negative)
        for hook in model_options.get(HOOKS, []):
            x0 = hook({"denoised": x0, "uncond_denoised": negative, "cond_denoised": positive, "input": x})
        return x0


@dataclass
class Vae:
    """A VAE whose images are the first latent channel, tripled."""

    decoded: list[int] = field(default_factory=list)

    def decode(self, latents: Tensor) -> Tensor:
        self.decoded.append(len(latents))
        return (latents[:, :1].movedim(1, -1) / 2 + 0.5).clamp(0, 1).expand(*latents.shape[:1], *latents.shape[2:], 3)


class Management(ModuleType):
    """comfy.model_management."""

    InterruptProcessingException = InterruptProcessingException

    def __init__(self) -> None:
        super().__init__("comfy.model_management")
        self.loads: list[float] = []
        self.interrupted, self.free = False, 10**9

    def load_models_gpu(self, models: list[Any], memory_required: float = 0) -> None:
        self.loads.append(memory_required)

    def throw_exception_if_processing_interrupted(self) -> None:
        if self.interrupted:
            self.interrupted = False
            raise InterruptProcessingException

    def get_free_memory(self, device: torch.device) -> int:
        return self.free

    def intermediate_device(self) -> torch.device:
        return torch.device("cpu")


def _with_hook(options: dict[str, Any], hook: Any, disable_cfg1_optimization: bool = False) -> dict[str, Any]:
    """comfy.model_patcher.set_model_options_post_cfg_function."""
    options[HOOKS] = [*options.get(HOOKS, []), hook]
    if disable_cfg1_optimization:
        options["disable_cfg1_optimization"] = True
    return options


@contextmanager
def comfyui() -> Iterator[Management]:
    """`import comfy...` gives the double."""
    management = Management()
    parts: dict[str, dict[str, Any]] = {
        "comfy.samplers": {"Sampler": Sampler, "KSamplerX0Inpaint": Inpaint},
        "comfy.model_sampling": {"CONST": Const},
        "comfy.model_patcher": {"set_model_options_post_cfg_function": _with_hook},
    }
    modules: dict[str, ModuleType] = {"comfy": ModuleType("comfy"), "comfy.model_management": management}
    for name, members in parts.items():
        modules[name] = ModuleType(name)
        vars(modules[name]).update(members)
    for name, module in modules.items():
        if "." in name:
            setattr(modules["comfy"], name.split(".")[1], module)
    before = {name: sys.modules.pop(name) for name in [*sys.modules] if name.split(".")[0] == "comfy"}
    sys.modules.update(modules)
    try:
        yield management
    finally:
        for name in modules:
            del sys.modules[name]
        sys.modules.update(before)
