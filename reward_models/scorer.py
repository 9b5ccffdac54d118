"""What rewards with a network share: loading, batches, checks of the input, gradients, FLOPs."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from ttsnap.profiling.flops import count_flops
from ttsnap.reward_models.preprocess import Preprocess, Sight, check_images
from ttsnap.rewards.reward_model import RewardModel

logger = logging.getLogger(__name__)


class NetworkReward(RewardModel):
    """A frozen network that scores images, (N,) float32. Subclasses define `load` and `score`.

    network: on its device and in its dtype. preprocess: from images to the network's input, None
    where the network's own processor does that. batch_size: most rows of a forward pass.
    """

    weights = ""
    """The hub id of the published weights."""
    trained_dtype = torch.float32
    """The default dtype of the network."""
    trial_size = 64
    """Pixels of a side of the trial image."""
    network: Any
    """Its methods and outputs are known to subclasses."""
    score: Callable[..., Tensor]
    """One batch: (images, prompts), and `source` where `needs` has it -> (N,), with a graph back to
    the network."""

    def __init__(
        self,
        network: nn.Module,
        preprocess: Preprocess | Sight | None = None,
        *,
        batch_size: int = 32,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.network = network.eval().requires_grad_(False)
        self.preprocess = preprocess
        self.batch_size = batch_size

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path | None = None,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> Self:
        """The reward with weights from a file, a folder or a hub id; by default the published ones.

        dtype: of the towers, by default `trained_dtype`; heads stay in float32. options: of `load`
        and of the class. ValueError where something cannot be loaded, or does not fit.
        """
        made = cls.load(str(name_or_path or cls.weights), dtype or cls.trained_dtype, **options)
        made.network.to(device)
        return made

    @classmethod
    def load(cls, source: str, dtype: torch.dtype, **options: Any) -> Self:
        """The reward on the CPU. source: a file, a folder or a hub id."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        device: torch.device = next(self.network.parameters()).device
        return device

    @property
    def runs_on(self) -> torch.device:  # type: ignore[override]
        return self.device

    @torch.no_grad()
    def __call__(
        self,
        images: Tensor,
        prompts: Sequence[str],
        level: Tensor | None = None,
        source: Tensor | None = None,
    ) -> Tensor:
        """images (N, 3, H, W), or videos (N, T, 3, H, W), float in [0, 1], N prompts -> (N,)
        float32.

        level: ignored; these rewards are made for clean images. source: the images that were
        edited, (N, 3, h, w), where `needs` has it.
        """
        self.check_rows(images, prompts, source)
        parts = [torch.zeros(0, device=self.device)]
        for start in range(0, len(images), self.batch_size):
            rows = slice(start, start + self.batch_size)
            given = (source[rows],) if source is not None and "source" in self.needs else ()
            parts.append(self.score(images[rows], list(prompts[rows]), *given))
        return torch.cat(parts)

    def differentiable(
        self, images: Tensor, prompts: Sequence[str], level: Tensor | None = None
    ) -> Tensor:
        """As a call, in one batch, with a graph back to the images: pixels are not rounded to 8
        bits.

        There is no graph where a processor makes the network's input.
        """
        if self.preprocess is None:
            return self(images, prompts)
        self.check_rows(images, prompts, None)
        smooth = copy.copy(self)
        smooth.preprocess = replace(self.preprocess, exact=False)
        return smooth.score(images, list(prompts))

    def check_rows(self, images: Tensor, prompts: Sequence[str], source: Tensor | None) -> None:
        """ValueError unless there are as many prompts, and sources where `needs` has them, as
        images or videos."""
        video = "video" in self.needs
        if video and images.ndim != 5:
            raise ValueError(
                f"{self.name} scores videos (N, T, 3, H, W), got {tuple(images.shape)}"
            )
        check_images(images.flatten(0, 1) if video else images)
        if len(prompts) != len(images):
            raise ValueError(
                f"{len(prompts)} prompts for {len(images)} images; give one prompt per image"
            )
        if "source" in self.needs:
            if source is None or len(source) != len(images):
                given = "none" if source is None else f"{len(source)} for {len(images)} images"
                raise ValueError(
                    f"{self.name} compares each image with the one that was edited, its source; got"
                    f" {given}"
                )
            check_images(source)

    @cached_property
    def flops(self) -> float:
        """FLOPs of one image or video with a prompt of its own, counted on one call.

        Repeated prompts of a batch cost less; answers in words cost by their length.
        """
        trial = self.trial_image()
        return count_flops(
            lambda: self(trial, [self.example], None, trial if "source" in self.needs else None)
        )

    def trial_image(self) -> Tensor:
        return torch.full((1, 3, self.trial_size, self.trial_size), 0.4, device=self.device)


class Scorer(NetworkReward):
    """A network that scores preprocessed images.

    Noise-aware rewards read `adapted`, `trained` and `level_sites`: regular expressions of whole
    names in `network`. Text towers that encode each prompt once stay out of all three.
    """

    tokenizer: Any = None
    """That of the text encoder, if any."""
    max_tokens: int | None = None
    """Tokens of a prompt that the text encoder reads, None without a limit."""
    adapted: str = ""
    """Modules of the image side for low-rank adapters (an nn.MultiheadAttention as its .in_proj and
    .out_proj)."""
    trained: str = ""
    """Parameters that full finetuning changes."""
    level_sites: str = ""
    """Modules with outputs (N, C, h, w) or (N, T, C), a row per image, that get an embedding of the
    noise level."""
    published: Mapping[str, str] = {}
    """Published names of the network's tensors, where those are others."""
    preprocess: Preprocess

    def __init__(self, network: nn.Module, preprocess: Preprocess, *, batch_size: int = 32) -> None:
        super().__init__(network, preprocess, batch_size=batch_size)
        self.trial_size = preprocess.size

    def on(self, network: nn.Module) -> Self:
        """This scorer with another network of the same structure. No weights are copied."""
        other = copy.copy(self)
        other.network = network
        vars(other).pop("flops", None)
        return other

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = next(self.network.parameters()).dtype
        return dtype

    def pixels(self, images: Tensor) -> Tensor:
        """The network's input. Preprocessing runs on the images' device: its result is smaller to
        move."""
        return self.preprocess(images).to(self.device, self.dtype)

    def without_alpha(self, images: Tensor) -> Tensor:
        """(N, 4, H, W) in [0, 1] -> (N, 3, h, w) for a call, without alpha as in the reference."""
        return self.preprocess.without_alpha(images)

    def count_tokens(self, prompt: str) -> int:
        """Tokens of the whole prompt, with the special ones."""
        if self.tokenizer is not None:
            return len(self.tokenizer(prompt, truncation=False)["input_ids"])
        return 0

    def check(self, prompts: Sequence[str]) -> None:
        """Warn of prompts that the text encoder cuts, as the published reward does."""
        for prompt in prompts:
            n = self.count_tokens(prompt)
            if self.max_tokens is not None and n > self.max_tokens:
                message = "%s reads %d tokens and cuts the rest; a prompt has %d"
                logger.warning(message, self.name, self.max_tokens, n)
