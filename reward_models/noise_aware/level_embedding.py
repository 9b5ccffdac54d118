"""How a network is told the noise level: an embedding added at several places, and a scale and shift of the score.

Everything starts at zero, so that a new embedding changes nothing. Levels lie in [0, 1] (see ttsnap.core.grid.Grid).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

OCTAVES = 4
"""Frequencies pi, 2 pi, 4 pi, 8 pi. Higher ones would fit a grid's levels and wiggle between them, where another grid
has its own."""
WIDTH = 128


def fourier(level: Tensor) -> Tensor:
    """(N,) -> (N, 1 + 2 OCTAVES) float32: the level, sines and cosines (Tancik et al., arXiv 2006.10739)."""
    angles = level.float()[:, None] * torch.pi * 2.0 ** torch.arange(OCTAVES, device=level.device)
    return torch.cat([level.float()[:, None], angles.sin(), angles.cos()], 1)


class LevelEmbedding(nn.Module):
    """Adds to the outputs of modules what depends on the noise level alone, and rescales scores by it.

    channels: sites, by their names in the network that is given to `attach`, and the channels of their outputs. Its
    own arithmetic is float32, under autocast, too: a score's shift has to be finer than half precision.
    """

    def __init__(self, channels: Mapping[str, int], width: int = WIDTH) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(1 + 2 * OCTAVES, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.sites = nn.ModuleDict({_key(name): _zero(nn.Linear(width, n)) for name, n in channels.items()})
        self.score = _zero(nn.Linear(width, 2))
        self._names = tuple(channels)
        self._features: Tensor | None = None

    def attach(self, network: nn.Module) -> None:
        """Hook the sites. Outside `at` the hooks do nothing."""
        for name in self._names:
            # A partial, unlike a closure, is copied together with the network.
            network.get_submodule(name).register_forward_hook(partial(_add, self, _key(name)))

    @contextmanager
    def at(self, level: Tensor) -> Iterator[Tensor]:
        """While this is entered, the rows of every batch have these levels (N,). Gives their features (N, width)."""
        with torch.autocast(level.device.type, enabled=False):
            self._features = features = self.body(fourier(level))
        try:
            yield features
        finally:
            self._features = None

    def shift(self, site: str, output: Tensor) -> Tensor | None:
        """output (N, C, h, w) or (N, T, C) of a site, plus its embedding; None outside `at`."""
        if self._features is None:
            return None
        with torch.autocast(output.device.type, enabled=False):
            added: Tensor = self.sites[site](self._features).to(output.dtype)
        channels = output.shape[1 if output.ndim == 4 else -1]
        if output.ndim not in (3, 4) or added.shape != (len(output), channels):
            raise ValueError(
                f"the output of {site} is {tuple(output.shape)} for {len(added)} images, but level_sites must name "
                "modules that give (N, C, h, w) or (N, T, C), and that end with a layer of these channels"
            )
        return output + (added[:, None] if output.ndim == 3 else added[:, :, None, None])

    def rescale(self, scores: Tensor, features: Tensor) -> Tensor:
        """s (N,) -> s exp(a) + b with a and b of the level, (N,) float32. Scores of blurred estimates tell less about
        the final one, so that they have to shrink towards its mean."""
        with torch.autocast(scores.device.type, enabled=False):
            both: Tensor = self.score(features)
            a, b = both.unbind(1)
            return scores.float() * a.exp() + b


def _add(embedding: LevelEmbedding, site: str, module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
    """A forward hook."""
    return embedding.shift(site, output)


def _key(name: str) -> str:
    """Names of an nn.ModuleDict have no dots."""
    return name.replace(".", "/")


def _zero(linear: nn.Linear) -> nn.Linear:
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
