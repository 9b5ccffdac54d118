"""Parity: whether a search makes the images that the stock pipeline makes, in any batch, and the
same ones again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ttsnap.algorithms.best_of_n import BestOfN
from ttsnap.check.ladder import Figure, Rung, Setup
from ttsnap.check.titles import title
from ttsnap.core.selection import Selection
from ttsnap.loop.search import search
from ttsnap.results.media import to_uint8

SEEDS = 4
"""Images of the search."""
STOCK = "stock"
"""The figure of the winner made again by the stock pipeline."""
SAME = 0.02
CLOSE = 0.1
"""Up to these shares of what two seeds differ by, images are the same to the eye, and the same
picture."""


def parity(setup: Setup) -> Rung:
    """Best-of-4 of the first prompt in a batch that fits, again, and one by one; its winner by a
    stock call."""
    rung = Rung("parity")
    prompt = setup.prompts[0]
    whole, winner, told = _images(setup, None)
    for notice in told:
        setup.say(notice)
    denoiser: Any = setup.engine().denoiser
    if not denoiser.wide:
        setup.say("each image has a stock call of its own, since one for several makes others")
    if len(whole) < SEEDS:
        rung.missing["parity"] = f"{SEEDS} images do not fit into the time; give more --minutes"
        return rung
    other = differs(whole[0], whole[1])
    rung.note("two-seeds", _in_255ths(other), "")
    makers = {
        STOCK: lambda: {winner: _stock(setup, prompt, winner)},
        "two-runs": lambda: _images(setup, None)[0],
    }
    if setup.engine().batch_size > 1:
        makers[f"batch-of-1:{SEEDS}"] = lambda: _images(setup, 1)[0]
    worst = 0.0
    for name, make in makers.items():
        if setup.left <= 0:
            rung.missing[name] = "the time was over; give more --minutes"
            continue
        setup.say(f"comparing {title(name)}")
        pairs = [differs(whole[seed], image) for seed, image in make().items()]
        worst = max(worst, compared(rung, name, pairs, other))
    rung.done = not rung.missing
    rung.holds = False if worst > CLOSE else True if rung.done else None
    return rung


def compared(rung: Rung, name: str, pairs: Sequence[Any], other: Any) -> float:
    """Note the largest of these differences of what should be one image, by what two seeds differ
    by (`other`); the share of that which it is."""
    most = max(pairs, key=lambda pair: float(pair.mean()))
    rung.figures[name] = _in_255ths(most)
    share = float(most.mean()) / max(float(other.mean()), 1e-9)
    kind = "another picture"
    if share <= CLOSE:
        same = "the same to the eye" if share <= SAME else "the same picture"
        kind = f"{same}; kernels round differently in other batches, most in bfloat16"
    said = f"up to {most.max()} of 255, {share:.1%} of what two seeds differ by: {kind}"
    rung.said.append(f"{title(name)}: {said if most.any() else 'equal to the last bit of 8'}")
    return share


def differs(a: Any, b: Any) -> Any:
    """How far two images (H, W, 3) uint8 are apart in each value; 255 where they are not of one
    size."""
    if a.shape != b.shape:
        return np.full(a.shape, 255, np.uint8)
    return np.maximum(a, b) - np.minimum(a, b)


def _in_255ths(difference: Any) -> Figure:
    """The mean over all pixels, and the least and the largest."""
    return Figure(
        float(difference.mean()), float(difference.min()), float(difference.max()), "of 255"
    )


def _images(setup: Setup, batch_size: int | None) -> tuple[dict[int, Any], int, list[str]]:
    """The images (H, W, 3) uint8 by seed, those that the time allows; which one won; how they were
    computed."""
    engine = setup.engine(batch_size)
    (result,) = search(
        setup.prompts[:1],
        BestOfN(SEEDS),
        engine,
        selection=Selection(setup.utility, keep=SEEDS),
        should_stop=lambda: setup.left <= 0,
    )
    images = {found.seed: to_uint8(found.pixels) for found in result.images}
    return images, result.best.seed, list(engine.notices)


def _stock(setup: Setup, prompt: Any, seed: int) -> Any:
    """The image (H, W, 3) uint8 of a stock call from this seed."""
    made = setup.pipe(
        prompt.text,
        generator=torch.Generator().manual_seed(seed),
        output_type="pt",
        **setup.spec.call,
    )
    image: torch.Tensor = made.images[0]
    return to_uint8(image.float())
