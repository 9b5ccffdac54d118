"""What the neural rewards share: batches, no gradients, checks of the input, FLOPs."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Self

import torch
from torch import Tensor, nn
from ttsnap.reward_models.preprocess import Preprocess, check_images

from ttsnap.profiling.flops import count_flops
from ttsnap.rewards.reward_model import RewardModel

logger = logging.getLogger(__name__)


class Scorer(RewardModel):
    """A frozen network that scores images. Subclasses define `score`, and `count_tokens` where texts are cut.

    network: in evaluation mode, on its device and in its dtype; preprocess: from images to its input; batch_size: most
    images per forward pass; max_tokens: what the text encoder reads of a prompt, None without a limit. Scores are
    float32, on the network's device.

    For student.py a class names, as regular expressions of whole names in `network`: `adapted`, the modules on the
    image side that low-rank adapters go into (an nn.MultiheadAttention as its .in_proj and .out_proj); `trained`, the
    parameters that full finetuning changes; `level_sites`, the modules to whose outputs, (N, C, h, w) or (N, T, C) with
    a row per image, an embedding of the noise level is added. Text towers that encode each prompt once stay out.
    """

    name: str = "scorer"
    heavy = True
    max_tokens: int | None = None
    adapted: str = ""
    trained: str = ""
    level_sites: str = ""
    network: nn.Module

    def __init__(self, network: nn.Module, preprocess: Preprocess, *, batch_size: int = 32) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.network = network.eval().requires_grad_(False)
        self.preprocess, self.batch_size = preprocess, batch_size

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.network.parameters()).dtype

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """One batch: images (N, 3, H, W) in [0, 1], N prompts -> (N,) float32. Differentiable in the network."""
        raise NotImplementedError

    @torch.no_grad()
    def __call__(self, images: Tensor, prompts: Sequence[str], level: Tensor | None = None) -> Tensor:
        """images (N, 3, H, W) float in [0, 1], N prompts -> (N,) float32. `level` is ignored: this reward is for clean
        images, and its scores of noisy estimates are what they are."""
        check_images(images, prompts)
        size = self.batch_size
        parts = [self.score(images[i : i + size], list(prompts[i : i + size])) for i in range(0, len(images), size)]
        return torch.cat(parts) if parts else torch.zeros(0, device=self.device)

    def differentiable(self, images: Tensor, prompts: Sequence[str], level: Tensor | None = None) -> Tensor:
        """As calling it, with a graph back to the images, in one batch; pixels are not rounded to 8 bits on the way."""
        check_images(images)
        smooth = copy.copy(self)
        smooth.preprocess = replace(self.preprocess, exact=False)
        return smooth.score(images, list(prompts))

    def on(self, network: nn.Module) -> Self:
        """This scorer on another network of the same structure. Nothing is copied."""
        other = copy.copy(self)
        other.network = network
        vars(other).pop("flops", None)
        return other

    def pixels(self, images: Tensor) -> Tensor:
        """The network's input: preprocessed on the images' device, then moved, since it is smaller by then."""
        return self.preprocess(images).to(self.device, self.dtype)

    def without_alpha(self, images: Tensor) -> Tensor:
        """(N, 4, H, W) in [0, 1] -> (N, 3, h, w): images to call this with, freed of alpha as by the reference."""
        return self.preprocess.without_alpha(images)

    def count_tokens(self, prompt: str) -> int:
        """Tokens of the whole prompt, with the special ones."""
        return 0

    def check(self, prompts: Sequence[str]) -> None:
        """Warn of prompts that the text encoder cuts, as the published reward does: their tails do not count."""
        for prompt in prompts:
            n = self.count_tokens(prompt)
            if self.max_tokens is not None and n > self.max_tokens:
                message = "%s reads %d tokens and cuts the rest; this prompt has %d: %.60r"
                logger.warning(message, self.name, self.max_tokens, n, prompt)

    @cached_property
    def flops(self) -> float:
        """FLOPs of one image with a prompt of its own, counted on one call. Repeated prompts of a batch cost less."""
        return count_flops(lambda: self.score(self.trial_image(), [self.example]))

    def trial_image(self) -> Tensor:
        size = self.preprocess.size
        return torch.full((1, 3, size, size), 0.4, device=self.device)
