"""What is asked of a model that denoises: the base class of every denoiser."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, MutableMapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from ttsnap.core.grid import Grid
from ttsnap.core.prompt import Prompt
from ttsnap.sampling.interpolants import Interpolant
from ttsnap.sampling.kernels import Kernel, Prediction


class Denoiser(ABC):
    """One pipeline family, set up for one call: fixed size, steps and guidance.

    A subclass sets the attributes without a value and defines the abstract methods. The rest has a default, which says
    that this denoiser cannot do it, or that there is nothing to know.
    """

    grid: Grid
    path: Interpolant
    times: Tensor
    """(K+1,) float64, the path's times at the grid points. Denoisers that follow a scheduler may have neither."""
    kernel: Kernel
    """The pipeline's own scheduler."""
    passes_per_nfe: int

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where it computes."""

    @abstractmethod
    def encode(self, prompts: Sequence[Prompt]) -> None:
        """Encode these prompts; `cond` below indexes them. Those of the last call may be kept from then, whose last
        digits depend on what they were encoded with."""

    def forget_prompts(self) -> None:  # noqa: B027 (to keep nothing is a fine default)
        """Keep no prompt for the next `encode`, so that what that gives depends on its own prompts alone."""

    @abstractmethod
    def init_latents(self, generators: Sequence[torch.Generator]) -> Tensor:
        """Initial noise (N, ...), row i as stock diffusers draws it from generators[i]."""

    @abstractmethod
    def predict(self, x: Tensor, step: Tensor, cond: Tensor) -> Prediction:
        """One guided evaluation of x (N, ...); every row has its own step (N,) and prompt (N,), long on the CPU.

        Where a grid step takes several evaluations, `step` counts evaluations (Grid.calls).
        """

    # --- rows that have more than a prompt: an image to edit, a mask ---------------------------------------------

    def conditions(self, prompts: Tensor, seeds: Sequence[int]) -> Tensor:
        """`cond` (N,) of rows of these encoded prompts (N,) and of these initial seeds: by default the prompts.

        A call whose conditions differ from seed to seed, as where a VAE samples the image that is edited, numbers them.
        """
        return prompts

    def begin(self, noise: Tensor, cond: Tensor) -> Tensor:
        """Latents (N, ...) at step 0 of initial noise: by default the noise; where an image is redrawn, that image
        noised by it."""
        return noise

    @property
    def applies_mask(self) -> bool:
        """Whether `apply_mask` changes anything."""
        return False

    def apply_mask(self, x: Tensor, step: Tensor, cond: Tensor) -> Tensor:
        """Latents (N, ...) that were brought to positions `step` (N,), with what the call keeps from being changed: by
        default nothing; where a part is painted anew, the rest of the image, noised as far."""
        return x

    @abstractmethod
    def decode(self, x0: Tensor) -> Tensor:
        """(N, ...) -> images (N, 3, H, W) float32 in [0, 1], or videos (N, T, 3, H, W) where it makes these (`frames`);
        as `predict`, with a graph where gradients are enabled."""

    @abstractmethod
    def flops(self) -> tuple[float, float]:
        """FLOPs of one guided evaluation and of one decode, per particle."""

    @property
    def frames(self) -> int | None:
        """T, the frames of each video that it makes; None where it makes images. A preview may have fewer."""
        return None

    @property
    def has_path(self) -> bool:
        """Whether `path` and `times` are there."""
        return True

    @property
    def offloaded(self) -> bool:
        """Whether only one of its networks is on the device at a time, so that going from one to another is slow."""
        return False

    # --- edits ----------------------------------------------------------------------------------------------------

    @property
    def edits(self) -> bool:
        """Whether its prompts say what to change in images, which `sources` gives."""
        return False

    def sources(self, cond: Tensor) -> Tensor:
        """The images (N, 3, h, w) float in [0, 1] that these prompts (N,) edit, as in `predict`; they need not have the
        size of what comes out. ValueError where it edits none."""
        raise ValueError(f"{type(self).__name__} edits no images")

    # --- cheap decodes --------------------------------------------------------------------------------------------

    @property
    def previews(self) -> bool:
        """Whether it can also decode cheaply, by `preview`."""
        return False

    def preview(self, x0: Tensor) -> Tensor:
        """As `decode`, by a small VAE. ValueError where there is none."""
        raise ValueError(f"{type(self).__name__} has no preview VAE; set pipe.preview_vae")

    def preview_flops(self) -> float:
        """FLOPs of one preview."""
        return 0.0

    # --- drafts ---------------------------------------------------------------------------------------------------

    @property
    def drafts(self) -> bool:
        """Whether it has a drafter, which guesses where the deterministic sampler ends (ttsnap.sampling.drafts)."""
        return False

    @property
    def draft_calls(self) -> int:
        """Calls of the drafter that a guess takes where nothing else is said; 0 where there is none."""
        return 0

    @property
    def passes_per_draft(self) -> int:
        """Forward passes of one call of the drafter: 1 without guidance; 0 where there is none."""
        return 0

    def draft(self, x: Tensor, step: Tensor, cond: Tensor, calls: int) -> Tensor:
        """Where the deterministic sampler ends from x (N, ...), guessed in so many calls of the drafter: x0 (N, ...).

        Every row has its own grid step (N,), before the last, and prompt (N,), long on the CPU. Nothing is drawn.
        ValueError where there is no drafter, and for no calls.
        """
        raise no_drafter(self)

    def draft_level(self, step: int, calls: int) -> float:
        """The noise level, in (0, 1], that the drafter's last call is told in such a guess from a grid step."""
        raise no_drafter(self)

    def draft_flops(self) -> float:
        """FLOPs of one forward pass of the drafter, per particle."""
        return 0.0

    # --- several calls at once ------------------------------------------------------------------------------------

    def merge_schedule(self, other: Self) -> int:
        """Let `predict` take rows of another call as well, which differs from this one in its steps alone: its
        positions then follow those that there are. Returns how many these are. ValueError where that cannot be.
        """
        raise ValueError(f"{type(self).__name__} evaluates rows of one call only; let each have a network of its own")

    # --- estimates ------------------------------------------------------------------------------------------------

    def guide_estimates(self, scale: float) -> None:
        """Let `predict` make a second x0 estimate for scores, at this classifier-free guidance (Prediction.estimate).

        It takes no evaluation more, since both passes are there. ValueError where they are not.
        """
        raise ValueError(f"{type(self).__name__} has no two passes to guide estimates by; leave estimate_guidance out")

    # --- gradients ------------------------------------------------------------------------------------------------

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether a backward pass makes the forward pass again, to save memory."""
        return False

    def check_differentiable(self, through: str) -> None:  # noqa: B027 (nothing to check is a fine default)
        """ValueError where gradients cannot go back through its decoder and, where `through` is "denoiser" and not
        "x0" (guided_steps.Guidance), through its network."""

    def parameters(self) -> Iterable[Tensor]:
        """The weights of its networks."""
        return ()

    # --- what was measured before ---------------------------------------------------------------------------------

    @property
    def memo(self) -> MutableMapping[tuple[Hashable, ...], Any]:
        """What was measured of this model before, by what it was measured with; by default nothing is kept."""
        return {}

    def setting(self, decoder: str = "decode") -> tuple[Hashable, ...]:
        """What the cost and the memory of a row depend on, with the decoder "decode" or "preview"."""
        return ()


def no_drafter(denoiser: Denoiser) -> ValueError:
    """What is raised where a draft is asked for and there is nothing to make it."""
    return ValueError(f"{type(denoiser).__name__} has no drafter to guess finished images by; set draft, as 'hot'")
