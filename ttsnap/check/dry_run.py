"""A search on paper: what a model takes of memory and FLOPs, by its configurations alone, and which
cards that fits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ttsnap.check.cost import evaluate
from ttsnap.engine.batch_sizes import MOST
from ttsnap.files.writing import markdown
from ttsnap.loop.search import foreseen, prepared
from ttsnap.pipelines.on_paper import Answers
from ttsnap.pipelines.opening import decoder_stays
from ttsnap.profiling.memory import SHARE
from ttsnap.request.request import Prepared
from ttsnap.sampling import rng

CARDS = (8, 12, 16, 24, 48, 80)
"""GB of the cards that are tried."""
CONTEXT = 0.5
"""GiB of a card that its driver takes."""
GIB = 2**30
REWARDS = {
    "clip": 1.6,
    "open_clip": 0.6,
    "aesthetics": 1.6,
    "counting": 0.9,
    "imagereward": 1.7,
    "pickscore": 3.7,
    "hpsv2": 3.7,
    "hpsv2.1": 3.7,
    "videoalign": 4.4,
    "hpsv3": 15.5,
    "unifiedreward": 15.5,
    "vqascore": 31.0,
}
"""GiB of the weights of rewards, by their published numbers of parameters. They stay on the card."""


@dataclass(frozen=True)
class Batch:
    """What a batch takes beside weights, in bytes."""

    first: int
    """With one row."""
    more: int
    """For each further one."""

    def fits(self, free: float) -> int:
        """How many rows fit, as a search plans them (profiling/memory.py), where so much is
        free."""
        further = int((SHARE * free - self.first) // max(1, self.more))
        return 0 if self.first > free else max(1, min(MOST, 1 + further))


@dataclass(frozen=True)
class Card:
    """What fits into a card."""

    gb: int
    offload: str | None
    """As --offload takes it; None where nothing fits."""
    rows: int = 0
    """Of a batch of the denoiser."""
    decodes: int = 0
    """Of a batch of images."""


@dataclass(frozen=True)
class Paper:
    """What a search takes. Sizes are bytes."""

    model: str
    dtype: str
    height: int
    width: int
    frames: int | None
    """Of a video."""
    steps: int
    passes: int
    """Of an evaluation: 2 with guidance."""
    weights: Mapping[str, int]
    """By part."""
    rewards: Mapping[str, float]
    """The weights of rewards, by name."""
    denoisers: tuple[str, ...]
    """The parts that denoise."""
    largest: int
    """The weights of the largest single layer."""
    encoders: Mapping[str, int]
    """What encoding a prompt takes beside weights, by part."""
    row: Batch
    decode: Batch
    flops: Mapping[str, float]
    """Of an evaluation, a decode and the search."""
    search: str
    """Which one that is."""

    def cards(self) -> list[Card]:
        """What fits into each card."""
        return [self.on(gb) for gb in CARDS]

    def on(self, gb: int) -> Card:
        """What fits into a card, with as little offloading as it takes."""
        free = (gb - CONTEXT) * GIB - sum(self.rewards.values())
        for offload in ("none", "model", "group"):
            encoding, denoising, decoding = self._resident(offload, free)
            rows = self.row.fits(free - denoising)
            decodes = self.decode.fits(free - decoding)
            if min(rows, decodes) and encoding + max(self.encoders.values(), default=0) <= free:
                return Card(gb, offload, rows, min(decodes, rows))
        return Card(gb, None)

    def _resident(self, offload: str, free: float) -> tuple[int, int, int]:
        """The weights on the device while it encodes, denoises and decodes."""
        if offload == "none":
            return (sum(self.weights.values()),) * 3
        if offload == "group":  # a layer at work, and the next one
            return (2 * self.largest,) * 3
        vae = self.weights.get("vae", 0)
        denoiser = max(self.weights[name] for name in self.denoisers)
        largest = max((size for name, size in self.weights.items() if name != "vae"), default=0)
        if decoder_stays(self.weights, free):  # and so does the denoiser while it decodes
            return vae + largest, vae + denoiser, vae + denoiser
        return largest, denoiser, vae


def worked_out(
    pipe: Any,
    networks: Mapping[str, Answers],
    search: Prepared,
    name: str,
    rewards: Sequence[str] = (),
) -> Paper:
    """Encode a prompt, evaluate and decode one row and two on paper, and price the search. rewards:
    names of REWARDS, in the place of which the search has others."""
    engine = pipe.engine_of(search.engine)
    denoiser: Any = engine.denoiser
    encoders = _noted(networks, lambda: denoiser.encode(search.prompts[:1]))
    texts = {part for part, net in networks.items() if isinstance(net.part, PreTrainedModel)}
    calls = [partial(work, denoiser, n) for work in (evaluate, _decode) for n in (1, 2)]
    passes = [_noted(networks, call) for call in calls]
    sizes = [[size for part, size in each.items() if part not in texts] for each in passes]
    costs = [max(each, default=0) for each in sizes]
    one = passes[0]
    weights = {part: sum(p.nbytes for p in net.part.parameters()) for part, net in networks.items()}
    layers = (layer for net in networks.values() for layer in net.part.modules())
    cost, _ = foreseen(prepared(search.loop, engine), engine)
    flops = engine.price.flops
    return Paper(
        name,
        str(pipe.dtype).removeprefix("torch."),
        denoiser.height,
        denoiser.width,
        denoiser.frames,
        denoiser.grid.steps,
        denoiser.passes_per_nfe,
        weights,
        {reward: REWARDS[reward] * GIB for reward in rewards},
        tuple(part for part in one if part not in texts | {"vae"}),
        max(map(_own_bytes, layers), default=0),
        {part: size for part, size in {**one, **encoders}.items() if part in texts},
        Batch(costs[0], max(0, costs[1] - costs[0])),
        Batch(costs[2], max(0, costs[3] - costs[2])),
        {"an evaluation": flops.nfe, "a decode": flops.decodes, "the search": flops.of(cost)},
        f"{search.request.label}, {search.budget}",
    )


def _own_bytes(layer: nn.Module) -> int:
    return sum(each.nbytes for each in layer.parameters(recurse=False))


def _decode(denoiser: Any, n: int) -> object:
    return denoiser.decode(denoiser.init_latents([rng.seeded(i) for i in range(n)]))


@torch.no_grad()
def _noted(networks: Mapping[str, Answers], call: Callable[[], object]) -> dict[str, int]:
    """The peaks of the parts that a call asks."""
    for each in networks.values():
        each.peak = 0
        each.remembers = True
    call()
    for each in networks.values():
        each.remembers = False
    return {name: each.peak for name, each in networks.items() if each.peak}


def lines(paper: Paper) -> Iterator[str]:
    """All of it as tables to read."""
    guided = f"{paper.passes} passes" if paper.passes > 1 else "1 pass"
    frames = "" if paper.frames is None else f", {paper.frames} frames"
    yield (
        f"{paper.model} on paper: {paper.width} x {paper.height}{frames}, {paper.dtype},"
        f" {paper.steps} steps, {guided} an evaluation"
    )
    weights = {**paper.weights, **paper.rewards}
    sizes: dict[str, float] = {f"weights: {name}": size for name, size in weights.items()}
    sizes |= {f"encoding a prompt: {name}": size for name, size in paper.encoders.items()}
    sizes |= {"a row": paper.row.first, "each further row": paper.row.more}
    sizes |= {"a decode": paper.decode.first, "each further decode": paper.decode.more}
    yield ""
    yield markdown(("what", "GiB"), [(name, f"{size / GIB:.2f}") for name, size in sizes.items()])
    yield ""
    yield markdown(
        ("what", "TFLOP"), [(name, f"{each / 1e12:.3g}") for name, each in paper.flops.items()]
    )
    yield f"the search: {paper.search}"
    yield ""
    yield markdown(
        ("card, GB", "option", "RAM, GiB", "rows", "decodes"),
        [_line(card, sum(paper.weights.values())) for card in paper.cards()],
    )


def _line(card: Card, weights: int) -> Sequence[object]:
    """weights: bytes of all parts, which an offload keeps in the machine's memory."""
    if card.offload is None:
        return card.gb, "does not fit", "", "", ""
    moves = card.offload != "none"
    return (
        card.gb,
        f"--offload {card.offload}" if moves else "",
        f"{weights / GIB:.0f}" if moves else "",
        card.rows,
        card.decodes,
    )
