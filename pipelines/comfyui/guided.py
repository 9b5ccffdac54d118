"""The denoiser over ComfyUI's guider, inside one `guider.sample`: what stock samplers and ttsnap's
kernels share."""

from __future__ import annotations

import logging
import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ttsnap.core.prompt import Prompt
from ttsnap.pipelines.comfyui.fields import Shapes, joined, split
from ttsnap.sampling import rng
from ttsnap.sampling.denoiser import Capability, Costs, Denoiser

logger = logging.getLogger(__name__)

Options = Mapping[str, Any]
"""ComfyUI's model_options."""


@dataclass(frozen=True)
class GuidedCall:
    """What ComfyUI hands a SAMPLER in the middle of `guider.sample`. Latents are in the network's
    scale."""

    guider: Any
    """A CFGGuider, with its model loaded and its conditioning processed."""
    sigmas: Tensor
    """(K+1,) noise levels of the steps, falling to 0."""
    options: Options
    """Patches, hooks and wrappers that the MODEL carries."""
    latent: Tensor
    """(1, C, ...) what is redrawn; zeros where an image is made from noise alone."""
    mask: Tensor | None = None
    """(1, C, ...) 1 where the latent is painted anew; None: everywhere."""
    shapes: Shapes = ()
    """Of the fields that a nested latent joins in one tensor; none for others."""

    @property
    def flow(self) -> bool:
        return is_flow(self.guider.inner_model)

    def noised(self, noise: Tensor, latent: Tensor) -> Tensor:
        """What samplers begin with: latents (N, ...) of initial noise and what is redrawn."""
        from comfy.samplers import Sampler

        scaling = self.guider.inner_model.model_sampling
        most = Sampler().max_denoise(self.guider, self.sigmas)
        # some add the latent in place
        x: Tensor = scaling.noise_scaling(self.sigmas[0], noise.clone(), latent, most)
        return x

    def told(self, seed: int, call: Callable[..., Tensor], *columns: Tensor) -> Tensor:
        """call(*columns), while the guider tells its model what it does for this seed."""
        usual = self.guider.conds
        self.guider.conds = self.conds(seed)
        try:
            return call(*columns)
        finally:
            self.guider.conds = usual

    def painted(self, x: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
        """x0 estimates of latents (N, ...) at noise levels (N,), with the latent where the mask
        keeps it; that is noised by initial noise (N, ...)."""
        from comfy.samplers import KSamplerX0Inpaint

        model = KSamplerX0Inpaint(self.guider, self.sigmas)
        mask = self.mask
        model.latent_image = self.latent
        model.noise = noise
        if mask is not None:
            mask = mask.expand_as(x)
        made: Tensor = model(x, sigma, denoise_mask=mask, model_options=self.options, seed=None)
        return made

    def noise(self, generator: torch.Generator) -> Tensor:
        """Initial noise (1, ...), as comfy.sample.prepare_noise draws it from torch's global
        generator."""
        shapes = self.shapes or (self.latent.shape,)
        return joined([torch.randn(shape, generator=generator) for shape in shapes])

    def pictures(self, latents: Tensor) -> Tensor:
        """What VAEs decode of latents (N, ...): all, or the video of those with sound, which is
        their first field."""
        return split(latents, self.shapes)[0]

    def conds(self, seed: int) -> dict[str, list[Any]]:
        """What the guider tells its model, as for an image of this seed: some models noise what
        they are given."""
        from comfy.samplers import encode_model_conds

        model = self.guider.inner_model
        noise = torch.zeros_like(self.latent)
        given: dict[str, Any] = {
            "latent_image": self.latent,
            "denoise_mask": self.mask,
            "seed": seed,
        }
        if self.shapes:
            given["latent_shapes"] = self.shapes
        how: Any = (noise, noise.device)
        return {
            name: encode_model_conds(model.extra_conds, [*told], *how, name, **given)
            for name, told in self.guider.conds.items()
        }

    def corner(self) -> GuidedCall:
        """The same call for a small corner of the latent; for all of a nested one, which models
        take apart."""
        if self.shapes:
            return self
        mask = None if self.mask is None else self.mask[..., :4, :4]
        return replace(self, latent=self.latent[..., :4, :4], mask=mask)

    def passes(self, *, hooked: bool) -> int:
        """Forward passes of one evaluation, by the rule of ComfyUI's guider: no negative one at a
        scale of 1.

        hooked: whether the sampler reads the negative pass, which is then always made.
        """
        spared = math.isclose(self.guider.cfg, 1.0) and not self.options.get(
            "disable_cfg1_optimization", False
        )
        return 2 if self.guider.conds.get("negative") is not None and (hooked or not spared) else 1


def is_flow(model: Any) -> bool:
    """Whether a BaseModel has x = (1 - sigma) x0 + sigma eps. All others of ComfyUI have x = x0 +
    sigma eps."""
    from comfy.model_sampling import CONST

    return isinstance(model.model_sampling, CONST)


def levels(sigmas: Tensor, *, flow: bool) -> tuple[float, ...]:
    """Noise levels as of Grid, of sigmas (N,) of a model that is a flow or not."""
    wide = sigmas.double().cpu()
    return tuple((wide if flow else wide / (1 + wide)).tolist())


def alike(a: Any, b: Any) -> bool:
    """Whether two things that a model is told are equal, with all tensors in them."""
    if a is b or type(a) is not type(b):
        return a is b
    if isinstance(a, Tensor):
        return a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(alike(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(alike, a, b))
    return alike(vars(a), vars(b)) if hasattr(a, "__dict__") else bool(np.array_equal(a, b))


class Residency:
    """Whose networks are on the device. ComfyUI may unload them when it loads others."""

    def __init__(self) -> None:
        self.here: Any = None
        """The guider whose networks are there; None where that is not known."""
        self.cancels = True
        """Whether a user who cancels ends calls."""

    def need(self, guider: Any, x: Tensor) -> None:
        """Load the networks of a guider for a call with latents x (N, ...), where something else
        came in between.

        Raises ComfyUI's InterruptProcessingException where the user has cancelled.
        """
        from comfy import model_management

        if self.cancels:
            model_management.throw_exception_if_processing_interrupted()
        if self.here is not guider:
            needed = guider.model_patcher.model.memory_required([2 * len(x), *x.shape[1:]])
            model_management.load_models_gpu(
                [guider.model_patcher, *guider.loaded_models], memory_required=needed
            )
            self.here = guider


class GuidedDenoiser(Denoiser):
    """A denoiser over a guider, whose conditioning is the only prompt. Its latents are in the
    network's scale.

    Subclasses set `grid` and `kernel`, and define `begin_from` and `predict`.
    """

    def __init__(
        self, guided: GuidedCall, vae: Any, previewer: Any, *, hooked: bool = False
    ) -> None:
        self.guided = guided
        self.vae = vae
        self.previewer = previewer
        self.residency = Residency()
        self.device = guided.latent.device
        self.passes_per_nfe = guided.passes(hooked=hooked)
        self.can = frozenset({Capability.PREVIEW} if previewer is not None else ())
        shape = guided.pictures(guided.latent).shape
        self.frames = int(shape[2]) if len(shape) == 5 and shape[2] > 1 else None
        self._conditions: dict[int, int] = {}
        """The number of each seed's condition, from 0 in the order of the seeds."""
        self._seeded: dict[int, bool] = {}
        """Whether what a guider tells its model depends on the seed, by the guider's id."""
        self._lone: set[int] = set()
        """Guiders that take one latent a call, by their ids."""

    def ask(
        self, guided: GuidedCall, call: Callable[..., Tensor], cond: Tensor, *columns: Tensor
    ) -> Tensor:
        """call(*columns) of columns with N rows each, of these conditions (N,), with the networks
        of a guider.

        It is made row by row where the model takes no batch, as MiniMax-H3, which packs one
        sequence; that is tried. And where it is told other things for each seed.
        """
        guider = guided.guider
        key = id(guided.guider)
        self.residency.need(guider, columns[0])
        if key not in self._seeded:
            self._seeded[key] = not alike(guided.conds(0), guided.conds(1))
        if len(cond) == 1:
            if self._seeded[key]:
                return guided.told(self.seeds_of(cond)[0], call, *columns)
            return call(*columns)
        if not self._seeded[key] and key not in self._lone:
            try:
                return call(*columns)
            except (ValueError, RuntimeError) as why:
                if isinstance(why, torch.OutOfMemoryError) or "out of memory" in str(why):
                    raise
                logger.info(
                    "rows go through the model one by one, as it does not take several: %s", why
                )
                self._lone.add(key)
        rows = zip(*(column.split(1) for column in (cond, *columns)), strict=True)
        return torch.cat([self.ask(guided, call, *row) for row in rows])

    def by_level(
        self,
        call: Callable[[Tensor, Tensor, Tensor], Tensor],
        x: Tensor,
        sigma: Tensor,
        cond: Tensor,
    ) -> Tensor:
        """call(rows of x, their sigmas, their conditions) of latents x (N, ...) at noise levels
        (N,), in one call a level.

        Ranges of conditioning, ControlNets and hooks read the noise level of a call's first row
        alone.
        """
        out: Tensor | None = None
        for level in sorted(set(sigma.tolist()), reverse=True):
            here = (sigma == level).nonzero()[:, 0]
            rows = x if len(here) == len(x) else x[here.to(x.device)]
            told = cond[here]
            part = self.ask(self.guided, call, told, rows, sigma[here].to(x.device), told)
            if len(here) == len(x):
                return part
            out = part.new_empty((len(x), *part.shape[1:])) if out is None else out
            out[here.to(x.device)] = part
        if out is None:
            raise ValueError("no latents to denoise")
        return out

    @abstractmethod
    def in_model(self, x: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        """Latents x (N, ...) at grid steps (N,) before the last, as the guider takes them, and its
        sigmas (N,)."""

    @abstractmethod
    def begin_from(self, latent: Tensor, noise: Tensor, cond: Tensor) -> Tensor:
        """As `begin`, of latents (N, ...) that are redrawn."""

    def close(self) -> None:
        """End what is still under way."""

    def kept(self, x0: Tensor) -> Tensor:
        """Estimates (N, ...) with the latent where the mask keeps it."""
        mask = self.guided.mask
        return x0 if mask is None else x0 * mask + self.guided.latent * (1 - mask)

    def unscaled(self, latents: Tensor) -> Tensor:
        """Finished latents (N, ...) as VAEs and other nodes take them."""
        made: Tensor = self.guided.guider.inner_model.process_latent_out(latents.float())
        return made

    # --- sampling.Denoiser ------------------------------------------------------------------------

    def encode(self, prompts: Sequence[Prompt]) -> None:
        if len(prompts) > 1:
            raise ValueError(
                f"a guider of ComfyUI holds one prompt, got {len(prompts)}; search for them in turn"
            )

    def conditions(self, prompts: Tensor, seeds: Sequence[int]) -> Tensor:
        return torch.tensor(
            [self._conditions.setdefault(seed, len(self._conditions)) for seed in seeds]
        )

    def seeds_of(self, cond: Tensor) -> list[int]:
        """The seeds of these conditions (N,)."""
        seeds = list(self._conditions)
        return [seeds[number] for number in cond.tolist()]

    def noise_of(self, cond: Tensor) -> Tensor:
        """The initial noise (N, ...) of the seeds of these conditions (N,)."""
        return self.init_latents([rng.seeded(seed) for seed in self.seeds_of(cond)])

    def init_latents(self, generators: Sequence[torch.Generator]) -> Tensor:
        return torch.cat([self.guided.noise(each) for each in generators]).to(self.device)

    def begin(self, noise: Tensor, cond: Tensor) -> Tensor:
        return self.begin_from(self.guided.latent.expand_as(noise), noise, cond)

    def decode(self, x0: Tensor) -> Tensor:
        images: Tensor = self.vae.decode(self.guided.pictures(self.unscaled(x0)))
        self.residency.here = None
        if self.frames is None and images.ndim == 5:  # one frame, of a model of videos
            images = images[:, 0]
        if self.frames is not None and images.ndim == 4:  # frames of all videos in a row
            images = images.unflatten(0, (len(x0), -1))
        return images[..., :3].movedim(-1, -3).to(self.device, torch.float32)

    def preview(self, x0: Tensor) -> Tensor:
        if self.previewer is None:
            return super().preview(x0)
        made = torch.stack([self._previewed(one[None]) for one in self.guided.pictures(x0)])
        self.residency.here = None  # what scores them may load other networks
        return made.movedim(-1, -3).to(self.device, torch.float32)

    def _previewed(self, x0: Tensor) -> Tensor:
        """The picture (H, W, 3) in [0, 1] of one estimate (1, C, ...), or frames (T, H, W, 3) of a
        video: all where ComfyUI has a small VAE of videos for the model (TAEHV), else the first."""
        small: Any = getattr(self.previewer, "taesd", None)
        # TAESD, of images, is no VAE of ComfyUI
        if self.frames is not None and hasattr(small, "first_stage_model"):
            frames: Tensor = small.decode(x0)[0, ..., :3]
            return frames.clamp(0, 1)
        picture = torch.from_numpy(np.array(self.previewer.decode_latent_to_preview(x0))) / 255
        return picture if self.frames is None else picture[None]

    def costs(self) -> Costs:
        # ComfyUI's networks are not counted in FLOPs; latents.py refuses budgets in these
        return Costs(0.0, 0.0)
