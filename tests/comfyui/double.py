"""A double of what a search calls of ComfyUI: a guider with `sample`, samplers as loops, models of
closed form.

Written from ComfyUI's documented contract; tests/comfyui/test_real_search.py holds the same
searches to ComfyUI itself. The model's images are Gaussian, so that its x0 estimates are exact.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

SHAPE = (1, 2, 4, 4)
HOOKS = "sampler_post_cfg_function"


class InterruptProcessingException(Exception):  # noqa: N818 (ComfyUI's name)
    pass


class Const:
    """comfy.model_sampling.CONST: a flow."""

    sigma_max = 1.0

    def noise_scaling(self, sigma, noise, latent, max_denoise=False):
        return sigma * noise + (1 - sigma) * latent

    def inverse_noise_scaling(self, sigma, latent):
        return latent / (1 - sigma)


class Exploding:
    """comfy.model_sampling.EPS: x = latent + sigma noise, which is scaled in place."""

    sigma_max = 10.0

    def noise_scaling(self, sigma, noise, latent, max_denoise=False):
        noise *= torch.sqrt(1 + sigma**2) if max_denoise else sigma
        noise += latent
        return noise

    def inverse_noise_scaling(self, sigma, latent):
        return latent


class Sampler:
    """comfy.samplers.Sampler."""

    def max_denoise(self, model_wrap, sigmas):
        largest, first = float(model_wrap.inner_model.model_sampling.sigma_max), float(sigmas[0])
        return math.isclose(largest, first, rel_tol=1e-5) or first > largest


class Inpaint:
    """comfy.samplers.KSamplerX0Inpaint."""

    latent_image: Tensor
    noise: Tensor

    def __init__(self, model, sigmas):
        self.inner_model = model

    def __call__(self, x, sigma, denoise_mask, **more):
        if denoise_mask is None:
            made = self.inner_model(x, sigma, **more)
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
        model_wrap,
        sigmas,
        extra_args,
        callback,
        noise,
        latent_image,
        denoise_mask=None,
        disable_pbar=False,
    ):
        model = Inpaint(model_wrap, sigmas)
        model.latent_image, model.noise = latent_image, noise
        sampling = model_wrap.inner_model.model_sampling
        x = sampling.noise_scaling(
            sigmas[0], noise.clone(), latent_image, self.max_denoise(model_wrap, sigmas)
        )
        step = (
            (lambda i, x0: None)
            if callback is None
            else (lambda i, x0: callback(i, x0, x, len(sigmas) - 1))
        )
        done = self.loop(model, x, sigmas, {**extra_args, "denoise_mask": denoise_mask}, step)
        made = sampling.inverse_noise_scaling(sigmas[-1], done)
        return made


Call = Callable[[Tensor, Tensor], Tensor]
Args = dict[str, Any]


def _caller(model, args):
    return lambda x, sigma: model(x, sigma * x.new_ones([len(x)]), **args)


def _looped(advance):
    """A loop of steps: advance(call, x, x0, sigma, the next sigma)."""

    def loop(model, x, sigmas, args, step):
        call = _caller(model, args)
        for i, (now, then) in enumerate(itertools.pairwise(sigmas)):
            x0 = call(x, now)
            step(i, x0)
            x = advance(call, x, x0, now, then)
        return x

    return loop


@_looped
def euler(call, x, x0, now, then):
    return x + (x - x0) / now * (then - now)


@_looped
def heun(call, x, x0, now, then):
    """Two calls a step but the last."""
    d = (x - x0) / now
    there = x + d * (then - now)
    return there if then == 0 else x + (d + (there - call(there, then)) / then) / 2 * (then - now)


def ancestral(model, x, sigmas, args, step):
    """Fresh noise at each step, of the candidate's seed; keeps the last estimate (a history)."""
    noise, last = torch.Generator().manual_seed(args["seed"] + 1), torch.zeros_like(x)

    def advance(call, x, x0, now, then):
        nonlocal last
        before, last = last, x0
        return x0 + 0.1 * then * (x0 - before) + then * torch.randn(x.shape, generator=noise)

    return _looped(advance)(model, x, sigmas, args, step)


def unguided(model, x, sigmas, args, step):
    """Steps along the negative pass, which a hook of its own reads (as the cfg_pp samplers)."""
    negative = torch.zeros_like(x)

    def read(values):
        nonlocal negative
        negative = values["uncond_denoised"]
        return values["denoised"]

    options = _with_hook(dict(args["model_options"]), read, disable_cfg1_optimization=True)
    advance = _looped(lambda call, x, x0, now, then: x0 + (x - negative) / now * then)
    return advance(model, x, sigmas, {**args, "model_options": options}, step)


def churning(model, x, sigmas, args, step):
    """Noise from torch's global generator."""
    return euler(model, x + 0.1 * torch.randn_like(x), sigmas, args, step)


def adaptive(model, x, sigmas, args, step):
    """A step whose size the image decides."""
    call = _caller(model, args)
    return call(x, sigmas[0] * (0.5 + 0.1 * torch.tanh(call(x, sigmas[0]).mean())))


LOOPS = {"euler": euler, "heun": heun, "ancestral": ancestral, "unguided": unguided}
EVALUATIONS = {"euler": 1, "heun": 2, "ancestral": 1, "unguided": 1}
"""Of a step but the last, which takes one."""


@dataclass
class Model:
    """A BaseModel. Images are N(centre, spread^2) under the positive text, and around 0 under the
    negative one."""

    model_sampling: Any
    centre: float = 0.5
    spread: float = 0.3
    rows: list[int] = field(default_factory=list)
    """Of each call of the network."""
    on_call: Callable[[], None] = lambda: None
    most_rows: int | None = None
    """Of one call; None for any."""
    noised: bool = False
    """Whether the positive text is told with noise of the seed."""
    latent_format: ClassVar[None] = None

    def x0(self, x, sigma, centre):
        """E[x0 | x]."""
        s = sigma.reshape(-1, *[1] * (x.ndim - 1))
        a = 1 - s if isinstance(self.model_sampling, Const) else torch.ones_like(s)
        gain = a * self.spread**2 / (a**2 * self.spread**2 + s**2)
        return centre + gain * (x - a * centre)

    def extra_conds(self, seed, **_):
        return {"offset": (seed % 7) / 10} if self.noised else {}

    def process_latent_in(self, latent):
        return latent * 2

    def process_latent_out(self, latent):
        return latent / 2

    def memory_required(self, shape):
        return 100 * shape[0]


@dataclass
class Patcher:
    """A ModelPatcher."""

    model: Model
    size: int = 0
    load_device = torch.device("cpu")
    model_options: ClassVar[dict[str, Any]] = {}

    def clone(self):
        return self

    def model_size(self):
        return self.size

    def loaded_size(self):
        return 0


def encode_model_conds(extra_conds, conds, noise, device, prompt_type, **more):
    """comfy.samplers.encode_model_conds."""
    return [
        {**each, "model_conds": {**each["model_conds"], **extra_conds(**more)}} for each in conds
    ]


class Guider:
    """A CFGGuider."""

    def __init__(self, model, cfg=2.0):
        self.model_patcher, self.cfg = Patcher(model), cfg

    def set_conds(self, positive, negative):
        pass

    def set_cfg(self, cfg):
        self.cfg = cfg

    def sample(
        self,
        noise,
        latent_image,
        sampler,
        sigmas,
        denoise_mask=None,
        callback=None,
        disable_pbar=False,
        seed=None,
    ):
        self.inner_model, self.loaded_models = self.model_patcher.model, []
        self.conds = {
            name: encode_model_conds(
                self.inner_model.extra_conds, [{"model_conds": {}}], noise, None, name, seed=seed
            )
            for name in ("positive", "negative")
        }
        if latent_image.is_nested:
            shapes = [field.shape for field in latent_image.unbind()]
            latent_image, noise, denoise_mask = (
                each and pack_latents(each.unbind())[0]
                for each in (latent_image, noise, denoise_mask)
            )
            made = self.sample(
                noise, latent_image, sampler, sigmas, denoise_mask, callback, disable_pbar, seed
            )
            return NestedTensor(unpack_latents(made, shapes))
        if torch.count_nonzero(latent_image):
            latent_image = self.inner_model.process_latent_in(latent_image)
        args = {"model_options": {}, "seed": seed}
        mask = None if denoise_mask is None else denoise_mask.expand(noise.shape)
        made = sampler.sample(self, sigmas, args, callback, noise, latent_image, mask, disable_pbar)
        return self.inner_model.process_latent_out(made.float())

    def __call__(self, x, sigma, model_options, seed=None):
        model = self.inner_model
        if model.most_rows is not None and len(x) > model.most_rows:
            raise ValueError(f"this model supports batch size {model.most_rows}")
        model.on_call()
        spared = math.isclose(self.cfg, 1) and not model_options.get("disable_cfg1_optimization")
        offset = self.conds["positive"][0]["model_conds"].get("offset", 0.0)
        positive, negative = model.x0(x, sigma, model.centre + offset), model.x0(x, sigma, 0.0)
        model.rows.append(len(x) * (1 if spared else 2))
        x0 = positive if spared else negative + self.cfg * (positive - negative)
        for hook in model_options.get(HOOKS, []):
            x0 = hook(
                {"denoised": x0, "uncond_denoised": negative, "cond_denoised": positive, "input": x}
            )
        return x0


class NestedTensor:
    """comfy.nested_tensor.NestedTensor: several fields."""

    is_nested = True

    def __init__(self, fields):
        self.fields = list(fields)

    def unbind(self):
        return self.fields

    def __getitem__(self, rows):
        return NestedTensor([field[rows] for field in self.fields])

    @property
    def shape(self):
        return self.fields[0].shape


def pack_latents(fields):
    """comfy.utils.pack_latents."""
    return torch.cat([field.flatten(1)[:, None] for field in fields], -1), [
        field.shape for field in fields
    ]


def unpack_latents(packed, shapes):
    """comfy.utils.unpack_latents."""
    parts = packed[:, 0].split([math.prod(shape[1:]) for shape in shapes], -1)
    return [part.unflatten(-1, shape[1:]) for part, shape in zip(parts, shapes, strict=True)]


class Vae:
    """A VAE whose images are the first latent channel, tripled."""

    def decode(self, latents):
        return (
            (latents[:, :1].movedim(1, -1) / 2 + 0.5)
            .clamp(0, 1)
            .expand(*latents.shape[:1], *latents.shape[2:], 3)
        )


class Management(ModuleType):
    """comfy.model_management."""

    InterruptProcessingException = InterruptProcessingException

    def __init__(self):
        super().__init__("comfy.model_management")
        self.loads: list[float] = []
        self.interrupted, self.free = False, 10**9
        self.updates: list[tuple[Any, ...]] = []
        """Of progress bars, which may hear that the user has cancelled, as on ComfyUI's server."""
        self.bars_hear = True

    def load_models_gpu(self, models, memory_required=0):
        self.loads.append(memory_required)

    def throw_exception_if_processing_interrupted(self):
        if self.interrupted:
            self.interrupted = False
            raise InterruptProcessingException

    def get_free_memory(self, device):
        return self.free

    def interrupt_current_processing(self, value=True):
        self.interrupted = value

    def processing_interrupted(self):
        return self.interrupted

    def get_torch_device(self):
        return torch.device("cpu")

    intermediate_device = get_torch_device


def _with_hook(options, hook, disable_cfg1_optimization=False):
    """comfy.model_patcher.set_model_options_post_cfg_function."""
    options[HOOKS] = [*options.get(HOOKS, []), hook]
    if disable_cfg1_optimization:
        options["disable_cfg1_optimization"] = True
    return options


def installed(patch, modules):
    """These can be imported. modules: by name, themselves or their members; packages first."""
    for name, given in modules.items():
        module = given if isinstance(given, ModuleType) else ModuleType(name)
        vars(module).update({} if isinstance(given, ModuleType) else given)
        patch.setitem(sys.modules, name, module)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)


@contextmanager
def comfyui():
    """`import comfy...` gives the double."""
    management = Management()
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in sys.modules if name.split(".")[0] == "comfy"]:
            patch.delitem(sys.modules, name)
        installed(
            patch,
            {
                "comfy": {},
                "comfy.model_management": management,
                "comfy.model_sampling": {"CONST": Const},
                "comfy.samplers": {
                    "Sampler": Sampler,
                    "KSamplerX0Inpaint": Inpaint,
                    "encode_model_conds": encode_model_conds,
                },
                "comfy.model_patcher": {"set_model_options_post_cfg_function": _with_hook},
                "comfy.nested_tensor": {"NestedTensor": NestedTensor},
                "comfy.utils": {"pack_latents": pack_latents, "unpack_latents": unpack_latents},
            },
        )
        yield management
