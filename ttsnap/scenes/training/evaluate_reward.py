"""How often a reward of the embedded world prefers a picture's own caption to one with a single thing changed.

``python -m ttsnap.scenes.training.evaluate_reward [REWARD] [--recording FOLDER]``
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ttsnap.scenes.checker import check
from ttsnap.scenes.grammar import HARD_KINDS, Spec, caption, parse
from ttsnap.scenes.render import render
from ttsnap.scenes.training.evaluate import prompts_of_kind
from ttsnap.scenes.training.negatives import CHANGES, changed


def hard_negatives(
    reward: Any, images: NDArray[np.floating[Any]], specs: Sequence[Spec], seed: int = 0
) -> dict[str, tuple[float, int]]:
    """For each of CHANGES: the share of pictures (N, 3, 32, 32) that prefer their own caption, and of how many.

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
        out[what] = (float(right[false].mean()) if false.any() else float("nan"), int(false.sum()))
    return out


def _scores(reward: Any, images: NDArray[np.floating[Any]], specs: Sequence[Spec]) -> NDArray[np.float64]:
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


def table(rows: dict[str, dict[str, tuple[float, int]]]) -> str:
    """Markdown, a line for each set of pictures."""
    lines = ["| pictures | " + " | ".join(CHANGES) + " |", "|---" * (1 + len(CHANGES)) + "|"]
    for name, found in rows.items():
        lines.append(f"| {name} | " + " | ".join(f"{a:.3f} ({n})" for a, n in found.values()) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m ttsnap.scenes.training.evaluate_reward", description=__doc__)
    parser.add_argument(
        "reward", nargs="?", default="scenes-learned", help="any reward, as --reward of ttsnap takes it"
    )
    parser.add_argument("--recording", type=Path, help="folder of a recording with images: those that are right count")
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)

    from ttsnap.rewards.registry import make_reward

    reward = make_reward(args.reward)
    each = max(1, args.pictures // len(HARD_KINDS))
    specs = [parse(text) for kind in HARD_KINDS for text in prompts_of_kind(kind, each, args.seed)]
    pictures = render(specs, np.random.default_rng(args.seed))
    rows = {"renders of held-out captions": hard_negatives(reward, pictures, specs, args.seed)}
    if args.recording is not None:
        rows["generated, right"] = hard_negatives(reward, *recorded_right(args.recording, args.pictures), args.seed)
    print(table(rows))


if __name__ == "__main__":
    main()
