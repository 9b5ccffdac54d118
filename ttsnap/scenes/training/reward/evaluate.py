"""How often a reward of the embedded world prefers a picture's own caption to one with a single thing changed."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ttsnap.core.arrays import FloatArray
from ttsnap.core.protocols import Reward
from ttsnap.scenes.checker import check
from ttsnap.scenes.grammar import HARD_KINDS, Spec, caption, parse
from ttsnap.scenes.render import render
from ttsnap.scenes.training.base.evaluate import prompts_of_kind
from ttsnap.scenes.training.reward.negatives import CHANGES, changed


class Preferred(NamedTuple):
    """The share of `pictures` that prefer their own caption; nan where there is none."""

    share: float
    pictures: int


def hard_negatives(reward: Reward, images: FloatArray, specs: Sequence[Spec], seed: int = 0) -> dict[str, Preferred]:
    """For each of CHANGES: how many of the pictures (N, 3, 32, 32) prefer their own caption.

    A picture counts for a change that its caption can undergo; the changed caption is a false one by construction,
    and is drawn anew where the picture happens to satisfy it as well.
    """
    rng, out = np.random.default_rng(seed), {}
    own = _scores(reward, images, specs)
    for what in CHANGES:
        others = [changed(spec, what, rng) for spec in specs]
        rows = [i for i, other in enumerate(others) if other is not None]
        wrong = [other for other in others if other is not None]
        false = ~check(images[rows], wrong)[1] if rows else np.zeros(0, bool)
        right = own[rows] > _scores(reward, images[rows], wrong) if rows else np.zeros(0, bool)
        out[what] = Preferred(float(right[false].mean()) if false.any() else float("nan"), int(false.sum()))
    return out


def _scores(reward: Reward, images: FloatArray, specs: Sequence[Spec]) -> NDArray[np.float64]:
    pixels = torch.from_numpy(np.asarray(images, np.float32))
    return np.asarray(reward(pixels, [caption(spec) for spec in specs], torch.zeros(len(specs))), float)


def recorded_right(folder: Path, most: int) -> tuple[NDArray[np.float32], list[Spec]]:
    """Up to `most` finished pictures of a recording that are strictly right, and their specifications."""
    from ttsnap.recordings.folder import load_recording, read_images

    recording = load_recording(folder)
    specs = [parse(prompt) for prompt in recording.prompts]
    images, of = [], []
    for shown in read_images(folder):
        if shown.step == recording.grid.steps:
            images.append(shown.pixels.transpose(2, 0, 1).astype(np.float32) / 255)
            of.append(specs[shown.prompt])
    right = np.flatnonzero(check(np.stack(images), of)[1])
    right = np.random.default_rng(0).permutation(right)[:most]
    return np.stack([images[i] for i in right]), [of[i] for i in right]


def table(rows: dict[str, dict[str, Preferred]]) -> str:
    """Markdown, a line for each set of pictures."""
    lines = ["| pictures | " + " | ".join(CHANGES) + " |", "|---" * (1 + len(CHANGES)) + "|"]
    for name, preferred in rows.items():
        lines.append(f"| {name} | " + " | ".join(f"{a:.3f} ({n})" for a, n in preferred.values()) + " |")
    return "\n".join(lines)


def evaluate(reward: Reward, pictures: int, recording: Path | None, seed: int = 0) -> str:
    """Markdown: of renders of held-out captions, and of a recording's right pictures; up to `pictures` of each."""
    each = max(1, pictures // len(HARD_KINDS))
    specs = [parse(text) for kind in HARD_KINDS for text in prompts_of_kind(kind, each, seed)]
    images = render(specs, np.random.default_rng(seed))
    rows = {"renders of held-out captions": hard_negatives(reward, images, specs, seed)}
    if recording is not None:
        rows["generated, right"] = hard_negatives(reward, *recorded_right(recording, pictures), seed)
    return table(rows)
