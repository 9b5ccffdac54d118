"""The network of a noise-aware reward: a frozen network, copies of it that are trained in part, and
the noise level.

Adapters: LoRA (arXiv 2106.09685) and DoRA (arXiv 2402.09353), by peft. A copy starts as the
network: adapters, level embedding and rescaling begin at zero. Levels lie in [0, 1]
(ttsnap.core.grid.Grid).
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from ttsnap.reward_models.scorer import Scorer

OCTAVES = 4
"""Frequencies pi, 2 pi, 4 pi, 8 pi. Higher ones would fit a grid's levels and wiggle between them,
where another grid has its own."""
WIDTH = 128


class Network(nn.Module):
    """All parameters of a NoiseAware: the base's network, frozen, and one trained copy, or one for
    each of `levels`.

    A copy has a module tree of its own and shares every tensor that it does not train: adapters
    never touch the base, and memory holds the weights once. Always in evaluation mode.
    """

    def __init__(
        self, base: Scorer, kind: str, rank: int, levels: tuple[float, ...], level_embedding: bool
    ) -> None:
        super().__init__()
        self.base = base.network
        self.copies = nn.ModuleList([trained_copy(base, kind, rank) for _ in levels or (0.0,)])
        self.scorers = [base.on(network) for network in self.copies]
        self.levels = levels
        self.embedding: LevelEmbedding | None = None
        if level_embedding:
            sites = {
                name: module
                for name, module in self.base.named_modules()
                if re.fullmatch(base.level_sites, name)
            }
            if not sites:
                raise ValueError(
                    f"no module of {base.name} matches {base.level_sites!r}; is it another"
                    " architecture?"
                )
            # Of a layer, and of a block that ends with one, the last parameter is as long as the
            # output is wide.
            channels = {name: len(list(module.parameters())[-1]) for name, module in sites.items()}
            self.embedding = LevelEmbedding(channels).to(base.device)
            self.embedding.attach(self.copies[0])
        self.eval()

    def train(self, mode: bool = True) -> Network:
        return super().train(False)  # Dropout would make a new student differ from its base.

    def forward(
        self,
        x: Tensor,
        prompts: Sequence[str],
        level: Tensor,
        scale: float = 1.0,
        shift: float = 0.0,
        *,
        smooth: bool = False,
    ) -> Tensor:
        """images (N, 3, H, W), N prompts, levels (N,) -> (N,) float32; smooth: with a graph back to
        the images.

        scale, shift: from the scorer's scores to those that are predicted.
        """
        scorers = [scorer.differentiable if smooth else scorer.score for scorer in self.scorers]
        if self.embedding is not None:
            with self.embedding.at(level.to(self.scorers[0].device)) as features:
                return self.embedding.rescale(
                    scorers[0](x, prompts).float() * scale + shift, features
                )
        index = torch.tensor([self.nearest(value) for value in level.tolist()])
        groups = [(i, (index == i).nonzero()[:, 0]) for i in index.unique().tolist()]
        parts = [
            scorers[i](x[rows.to(x.device)], [prompts[j] for j in rows.tolist()])
            for i, rows in groups
        ]
        order = torch.cat([rows for _, rows in groups]).argsort()
        return torch.cat(parts)[order.to(parts[0].device)] * scale + shift

    def nearest(self, level: float, among: Sequence[int] | None = None) -> int:
        """The copy with the nearest level; of two, the cleaner one."""
        return min(
            among or range(len(self.copies)),
            key=lambda i: abs(self.levels[i] - level) if self.levels else 0,
        )

    @torch.no_grad()
    def warm_start(self, level: float) -> None:
        """Start the copy for `level` from the nearest trained one. A trained copy is its own
        nearest, and stays."""
        tensors = [{n: p for n, p in c.named_parameters() if p.requires_grad} for c in self.copies]
        own = dict(self.base.named_parameters())

        def moved(name: str, parameter: nn.Parameter) -> bool:
            """Whether it was trained: half of an adapter begins at 0, a tensor of the network as
            the base's."""
            if "lora_B" in name:
                return bool(parameter.any())
            return name in own and not torch.equal(parameter, own[name])

        trained = [
            i for i, named in enumerate(tensors) if any(moved(*item) for item in named.items())
        ]
        to = self.nearest(level)
        if trained:
            source = tensors[self.nearest(self.levels[to], trained)]
            for name, parameter in tensors[to].items():
                parameter.copy_(source[name])


def trained_copy(base: Scorer, kind: str, rank: int) -> nn.Module:
    """A copy of base.network with LoRA or DoRA on `base.adapted`, or (kind "full") with
    `base.trained` of its own.

    All other tensors are shared. Adapters are float32 whatever the network's dtype.
    """
    if kind == "full":
        network = share(base.network, base.trained)
        own = [p for name, p in network.named_parameters() if re.fullmatch(base.trained, name)]
        if not own:
            raise ValueError(
                f"no parameter of {base.name} matches {base.trained!r}; is it another architecture?"
            )
        for parameter in own:
            parameter.requires_grad_(True)
        return network
    network = share(base.network)
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.MultiheadAttention) and re.fullmatch(
            base.adapted, f"{name}.in_proj"
        ):
            network.set_submodule(name, ProjectedAttention(module))
    matches = [name for name, _ in network.named_modules() if re.fullmatch(base.adapted, name)]
    if not matches:
        raise ValueError(
            f"no module of {base.name} matches {base.adapted!r}; is it another architecture?"
        )
    import peft  # it takes seconds to import

    config = peft.LoraConfig(
        r=rank, lora_alpha=rank, target_modules=base.adapted, use_dora=kind == "dora"
    )
    adapted: nn.Module = peft.inject_adapter_in_model(config, network)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return adapted


def share(network: nn.Module, own: str = "") -> nn.Module:
    """A copy of the module tree with the same tensors, except copies of parameters whose names
    match `own`."""
    tensors = chain(network.named_parameters(), network.named_buffers())
    memo = {id(tensor): tensor for name, tensor in tensors if not re.fullmatch(own, name)}
    return copy.deepcopy(network, memo)  # type: ignore[arg-type]


class ProjectedAttention(nn.Module):
    """The self-attention of an nn.MultiheadAttention, on the same parameters, with projections as
    modules for adapters.

    peft's own way with nn.MultiheadAttention adds the update to the weight before every call and
    subtracts it after. That leaves a rounding error each time, and there is no DoRA.
    """

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        if (
            not attention.batch_first
            or attention.in_proj_weight is None
            or attention.bias_k is not None
        ):
            raise ValueError(
                "only batch-first self-attention without extra keys can be adapted, got"
                f" {attention}"
            )
        self.heads = attention.num_heads
        self.out_proj = attention.out_proj
        self.in_proj = nn.Linear(1, 1, device="meta")
        self.in_proj.weight = attention.in_proj_weight
        self.in_proj.bias = attention.in_proj_bias
        self.in_proj.out_features, self.in_proj.in_features = attention.in_proj_weight.shape

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """query (N, T, D), the same as key and value; attn_mask as in
        scaled_dot_product_attention."""
        n, t, d = query.shape
        q, k, v = (
            self.in_proj(query).view(n, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        )
        mixed = scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
        return self.out_proj(mixed.transpose(1, 2).reshape(n, t, d)), None


def fourier(level: Tensor) -> Tensor:
    """(N,) -> (N, 1 + 2 OCTAVES) float32: the level, sines and cosines (Tancik et al., arXiv
    2006.10739)."""
    angles = level.float()[:, None] * torch.pi * 2.0 ** torch.arange(OCTAVES, device=level.device)
    return torch.cat([level.float()[:, None], angles.sin(), angles.cos()], 1)


class LevelEmbedding(nn.Module):
    """Adds a function of the noise level to the outputs of modules (sites), and rescales scores by
    the level.

    channels: of each site's output, by the site's name in the network of `attach`. Arithmetic is
    float32 under autocast too: a score's shift has to be finer than half precision.
    """

    def __init__(self, channels: Mapping[str, int], width: int = WIDTH) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(1 + 2 * OCTAVES, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )
        self.sites = nn.ModuleDict(
            {_key(name): _zero(nn.Linear(width, n)) for name, n in channels.items()}
        )
        self.score = _zero(nn.Linear(width, 2))
        self._names = tuple(channels)
        self._features: Tensor | None = None

    def attach(self, network: nn.Module) -> None:
        """Hook the sites. Outside `at` the hooks do nothing."""
        for name in self._names:
            # A partial, unlike a closure, is copied together with the network.
            network.get_submodule(name).register_forward_hook(partial(self.shift, _key(name)))

    @contextmanager
    def at(self, level: Tensor) -> Iterator[Tensor]:
        """A context in which the rows of every batch have these levels (N,). Yields their features
        (N, width)."""
        with torch.autocast(level.device.type, enabled=False):
            self._features = features = self.body(fourier(level))
        try:
            yield features
        finally:
            self._features = None

    def shift(self, site: str, module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        """A forward hook: a site's output (N, C, h, w) or (N, T, C) plus its embedding; None
        outside `at`."""
        if self._features is None:
            return None
        with torch.autocast(output.device.type, enabled=False):
            added: Tensor = self.sites[site](self._features).to(output.dtype)
        channels = output.shape[1 if output.ndim == 4 else -1]
        if output.ndim not in (3, 4) or added.shape != (len(output), channels):
            raise ValueError(
                f"the output of {site} is {tuple(output.shape)} for {len(added)} images, but"
                " level_sites must name modules that give (N, C, h, w) or (N, T, C), and that end"
                " with a layer of these channels"
            )
        return output + (added[:, None] if output.ndim == 3 else added[:, :, None, None])

    def rescale(self, scores: Tensor, features: Tensor) -> Tensor:
        """s (N,) -> s exp(a) + b, (N,) float32, with a and b of the level.

        Scores of blurred estimates tell less about the final score, and have to shrink towards its
        mean.
        """
        with torch.autocast(scores.device.type, enabled=False):
            both: Tensor = self.score(features)
            a, b = both.unbind(1)
            return scores.float() * a.exp() + b


def _key(name: str) -> str:
    """A site's name without dots, as an nn.ModuleDict wants it."""
    return name.replace(".", "/")


def _zero(linear: nn.Linear) -> nn.Linear:
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
