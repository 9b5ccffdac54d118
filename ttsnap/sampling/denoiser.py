"""The base class of every denoiser: a model that takes noise away."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, MutableMapping, Sequence
from enum import StrEnum
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor

from ttsnap.core.cost import Cost
from ttsnap.core.grid import Grid
from ttsnap.core.prompt import Prompt
from ttsnap.core.start import AS_NOISE, Start
from ttsnap.sampling.interpolants import Interpolant
from ttsnap.sampling.kernels import Kernel, Prediction
from ttsnap.sampling.starts import Starter


class Capability(StrEnum):
    """What a denoiser can do besides drawing noise, predicting and decoding."""

    PATH = "path"
    """`path` and `times` are there, which most kernels step along."""
    PREVIEW = "preview"
    """It decodes cheaply, by `preview`."""
    EDIT = "edit"
    """Its prompts say what to change in images, which `sources` gives."""
    MASK = "mask"
    """`apply_mask` keeps a part of an image as it is."""
    SHARE = "share"
    """`merge_schedule` lets it evaluate rows of other calls."""
    DIFFERENTIATE = "differentiate"
    """Gradients go back through its networks."""
    DRAFT = "draft"
    """It takes a drafter, which guesses finished images."""
    COUPLE = "couple"
    """Groups of seeds may take their first steps together (starts.Coupled)."""


class Costs(NamedTuple):
    """FLOPs per particle: of a guided evaluation, a decode, a preview, and a forward pass of the
    drafter."""

    nfe: float
    decode: float
    preview: float = 0.0
    draft: float = 0.0


class Drafts(Protocol):
    """A drafter at work: it guesses where the deterministic sampler ends
    (ttsnap.sampling.drafts)."""

    @property
    def calls(self) -> int:
        """Calls of the drafter that a guess takes where nothing else is said."""

    @property
    def passes(self) -> int:
        """Forward passes of one call: 1 without guidance."""

    def guess(self, x: Tensor, step: Tensor, cond: Tensor, calls: int) -> Tensor:
        """x (N, ...) at grid steps (N,) before the last, of prompts (N,) -> x0 (N, ...), in so many
        calls.

        step and cond are long, on the CPU. Nothing is drawn. ValueError for no calls.
        """

    def level(self, step: int, calls: int) -> float:
        """The noise level, in (0, 1], that the last call is told in such a guess from a grid
        step."""

    def flops(self) -> float:
        """FLOPs of one forward pass of the drafter, per particle."""


class Denoiser(ABC):
    """A model, set up for one call: fixed size, steps and guidance.

    A subclass sets the attributes without a value and defines the abstract methods. The rest has a
    default, which says that this denoiser cannot do it, or that there is nothing to know.
    """

    grid: Grid
    path: Interpolant
    times: Tensor
    """(K+1,) float64, the path's times at the grid points. Denoisers that follow a scheduler may
    have neither."""
    kernel: Kernel
    """The pipeline's own scheduler."""
    passes_per_nfe: int
    device: torch.device
    """Where it computes."""
    can: frozenset[Capability] = frozenset({Capability.PATH, Capability.DIFFERENTIATE})
    drafts: Drafts | None = None
    starter: Starter | None = None
    """How particles come to step 0; None where they begin as noise."""
    frames: int | None = None
    """T, the frames of each video that it makes; None where it makes images. A preview may have
    fewer."""
    offloaded: bool = False
    """Whether denoiser and decoder are on the device in turns: going from one to the other is
    slow."""
    mixes_noise: bool = True
    """Whether latents at step 0 follow from initial noise alone, into which other noise can be
    mixed."""
    gradient_checkpointing: bool = False
    """Whether a backward pass makes the forward pass again, to save memory."""

    @property
    def start(self) -> Start:
        """What it takes to bring particles to step 0."""
        return AS_NOISE if self.starter is None else self.starter.start

    # --- prompts ----------------------------------------------------------------------------------

    @abstractmethod
    def encode(self, prompts: Sequence[Prompt]) -> None:
        """Encode these prompts; `cond` below indexes them. Those of the last call may be kept from
        then, whose last digits depend on what they were encoded with."""

    def forget_prompts(self) -> None:  # noqa: B027 (to keep nothing is a fine default)
        """Keep no prompt for the next `encode`, so that what that gives depends on its own prompts
        alone."""

    def conditions(self, prompts: Tensor, seeds: Sequence[int]) -> Tensor:
        """`cond` (N,) of rows of these encoded prompts (N,) and of these initial seeds: by default
        the prompts.

        A call numbers its conditions where they differ from seed to seed: a VAE may sample the
        image that is edited.
        """
        return prompts

    def sources(self, cond: Tensor) -> Tensor:
        """The images (N, 3, h, w) float in [0, 1] that these prompts (N,) edit, as in `predict`;
        they need not have the size of what comes out. ValueError where it edits none."""
        raise ValueError(f"{type(self).__name__} edits no images")

    # --- latents ----------------------------------------------------------------------------------

    @abstractmethod
    def init_latents(self, generators: Sequence[torch.Generator]) -> Tensor:
        """Initial noise (N, ...), row i as stock diffusers draws it from generators[i]."""

    def begin(self, noise: Tensor, cond: Tensor) -> Tensor:
        """Latents (N, ...) at step 0 of initial noise: by default the noise; where an image is
        redrawn, that image noised by it."""
        return noise

    @abstractmethod
    def predict(self, x: Tensor, step: Tensor, cond: Tensor) -> Prediction:
        """One guided evaluation of x (N, ...); every row has its own step (N,) and prompt (N,),
        long on the CPU.

        Where a grid step takes several evaluations, `step` counts evaluations (Grid.calls).
        """

    def apply_mask(self, x: Tensor, step: Tensor, cond: Tensor) -> Tensor:
        """Latents (N, ...) that were brought to positions `step` (N,), with what the call keeps
        from being changed: by default nothing; where a part is painted anew, the rest of the image,
        noised as far."""
        return x

    @abstractmethod
    def decode(self, x0: Tensor) -> Tensor:
        """(N, ...) -> images (N, 3, H, W) float32 in [0, 1], or videos (N, T, 3, H, W) where it
        makes these (`frames`); as `predict`, with a graph where gradients are enabled."""

    def decode_rows(self, x0: Tensor, cond: Tensor) -> Tensor:
        """As `decode`, of latents of these prompts (N,), as in `predict`: they may end in other
        ways, as where each has a picture that is painted in."""
        return self.decode(x0)

    def trim(self, particles: int) -> None:  # noqa: B027 (most keep nothing for particles)
        """So many particles are left, which is the most for which anything needs to be kept."""

    def tried(self) -> Cost:
        """What it has computed since this was last asked, to find how to compute what it is asked
        for."""
        return Cost()

    @property
    def notices(self) -> tuple[str, ...]:
        """What whoever reads results should know of how they were computed."""
        return ()

    def preview(self, x0: Tensor) -> Tensor:
        """As `decode`, by a small VAE. ValueError where there is none."""
        raise ValueError(f"{type(self).__name__} has no preview VAE; set pipe.preview_vae")

    # --- what it costs, and what it shares --------------------------------------------------------

    @abstractmethod
    def costs(self) -> Costs:
        """FLOPs, of a preview and of a draft where it makes these."""

    def memo(self, decoder: str = "decode") -> MutableMapping[Hashable, Any]:
        """Measurements of calls in which a row costs as much time and memory as here, with the
        decoder "decode" or "preview"; by default nothing is kept."""
        return {}

    def merge_schedule(self, other: Self) -> int:
        """Let `predict` take rows of another call as well, which differs from this one in its steps
        alone: its positions then follow those that there are. Returns how many these are.
        ValueError where that cannot be.
        """
        raise ValueError(
            f"{type(self).__name__} evaluates rows of one call only; let each have a network of"
            " its own"
        )

    def differentiable(self, through: str) -> Sequence[Tensor]:
        """The weights of its networks. ValueError where gradients cannot go back through its
        decoder and, where `through` is "denoiser" and not "x0" (guided_steps.RewardGuidance),
        through its network."""
        return ()


def drafts_of(denoiser: Denoiser) -> Drafts:
    """The drafter of a denoiser at work. ValueError where there is nothing to guess finished images
    by."""
    if denoiser.drafts is None:
        raise ValueError(
            f"{type(denoiser).__name__} has no drafter to guess finished images by; set draft, as"
            " 'hot'"
        )
    return denoiser.drafts
