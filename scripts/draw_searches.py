"""Draws docs/searches/GROUP.png: what each group of algorithms does, as real searches of a model in
one dimension.

    python scripts/draw_searches.py              # all groups
    python scripts/draw_searches.py seeds trees  # some

The model is a mixture of three Gaussians with its exact score, and the reward is highest in a band
beside the smallest of them. Every line is a candidate's latent on its way from noise, left, to an
image, right: grey where it was dropped, green where an image was finished, thick for the winner.
What is drawn is what the search computed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import torch
from torch import Tensor

from ttsnap import make_algorithm, search
from ttsnap.core.results import Result
from ttsnap.engine.live import LiveEngine
from ttsnap.sampling.kernels import Kernel, Sde
from ttsnap.sampling.mixture import MixtureDenoiser

FOLDER = Path(__file__).parents[1] / "docs" / "searches"
STEPS = 12
TARGET, WIDTH = 2.0, 0.35
"""The reward of an image at y is exp(-((y - TARGET) / WIDTH)^2 / 2)."""
PICKED = 1332
"""The first seed of searches over seeds: one from which more seeds find more. From seed 0 all find
the same."""
DROPPED, FINISHED, WINNER = "#b8bec6", "#1a7f37", "#0b4f1e"


class Panel(NamedTuple):
    """A search to draw: its name in the catalogue, with options; whether steps draw noise; the
    budget in NFE; the first seed."""

    title: str
    algorithm: dict[str, Any]
    noisy: bool
    nfe: int
    seed: int = 0


GROUPS: dict[str, tuple[Panel, ...]] = {
    "seeds": (
        Panel("best-of-n: finish every seed", {"name": "best-of-n"}, False, 144, PICKED),
        Panel(
            "seed-pruning: score, drop, finish the best",
            {"name": "seed-pruning"},
            False,
            144,
            PICKED,
        ),
        Panel("ttsnap: several checks, early", {"name": "ttsnap"}, False, 144, PICKED),
    ),
    "steps": (
        Panel("svdd: at every step the best of several", {"name": "svdd"}, True, 144),
        Panel("code: the same, every few steps", {"name": "code"}, True, 144),
        Panel("rbf: the first that is better goes on", {"name": "rbf"}, True, 144),
    ),
    "particles": (
        Panel("smc: copy the heavy, drop the light", {"name": "smc", "n": 8}, True, 144),
        Panel("funnel: fewer after each check", {"name": "funnel"}, True, 144),
        Panel("fk-steering: four candidates", {"name": "fk-steering"}, True, 144),
    ),
    "trees": (
        Panel("best-first: extend the best part of a tree", {"name": "best-first"}, True, 144),
        Panel("depth-first: go back where it looks bad", {"name": "depth-first"}, True, 144),
        Panel(
            "search-over-paths: add noise, denoise, repeat",
            {"name": "search-over-paths"},
            False,
            144,
        ),
    ),
    "noise": (
        Panel("zero-order: noises near the best image's", {"name": "zero-order"}, False, 144),
        Panel("evolution: noises bred from the best", {"name": "evolution"}, False, 144),
    ),
    "combined": (
        Panel("ttsnap-rbf: prune, then branch", {"name": "ttsnap-rbf"}, True, 144),
        Panel("nested: the best noises, then svdd", {"name": "nested"}, True, 144),
    ),
}


@dataclass
class Traced:
    """A kernel that keeps where each step led: (step, latents before (D,), latents after (D,))."""

    kernel: Kernel
    steps: list[tuple[int, Tensor, Tensor]] = field(default_factory=list)

    @property
    def stochastic(self) -> bool:
        return self.kernel.stochastic

    @property
    def keeps_history(self) -> bool:
        return self.kernel.keeps_history

    def init(self, noise: Any, key: Any, generator: torch.Generator) -> Any:
        return self.kernel.init(noise, key, generator)

    def step(
        self, x: Tensor, prediction: Any, k: Tensor, keys: Any, state: Any
    ) -> tuple[Tensor, Any]:
        after, states = self.kernel.step(x, prediction, k, keys, state)
        self.steps += list(zip(k.tolist(), x, after, strict=True))
        return after, states

    def moments(self, x: Tensor, prediction: Any, k: Tensor) -> tuple[Tensor, Tensor]:
        return self.kernel.moments(x, prediction, k)  # type: ignore[attr-defined]


class Band:
    """The reward, of one pixel."""

    name = "band"

    def __call__(
        self, images: Tensor, prompts: Sequence[str], level: object = None
    ) -> np.ndarray[Any, Any]:
        y = torch.logit(images[:, 0, 0, 0].double(), eps=1e-9)
        return torch.exp(-(((y - TARGET) / WIDTH) ** 2) / 2).numpy()


def searched(panel: Panel) -> tuple[Result, Traced]:
    """The search, and the steps that it computed."""
    means = torch.tensor([[-2.0, 0, 0], [0.2, 0, 0], [2.1, 0, 0]])
    denoiser = MixtureDenoiser(
        means, torch.tensor([0.35, 0.3, 0.25]), torch.tensor([4.0, 4.0, 1.5]), steps=STEPS
    )
    traced = Traced(Sde(denoiser.path, denoiser.times) if panel.noisy else denoiser.kernel)
    denoiser.kernel = traced
    engine = LiveEngine(denoiser, [Band()])
    return search(
        ["a"], make_algorithm(panel.algorithm), engine, f"{panel.nfe}nfe", seed=panel.seed
    )[0], traced


def ways(traced: Traced) -> list[tuple[int, float, float, bytes, bytes]]:
    """Each step once, as (step, y before, y after, and the latents themselves to find what
    follows)."""
    found = {}
    for step, before, after in traced.steps:
        found[step, before.numpy().tobytes(), after.numpy().tobytes()] = (
            float(before[0]),
            float(after[0]),
        )
    return [(step, *ys, before, after) for (step, before, after), ys in found.items()]


def draw(group: str, path: Path) -> None:
    """One picture of a group, a panel an algorithm."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = GROUPS[group]
    figure, axes = plt.subplots(
        1,
        len(panels),
        figsize=(4.1 * len(panels), 2.9),
        sharey=True,
        squeeze=False,
        constrained_layout=True,
    )
    for axis, panel in zip(axes[0], panels, strict=True):
        result, traced = searched(panel)
        steps = ways(traced)
        ends = {after: y for step, _, y, _, after in steps if step == STEPS - 1}
        kept = leading(steps, set(ends))
        best = min(ends, key=lambda after: abs(ends[after] - TARGET))
        won = leading(steps, {best})
        axis.axhspan(TARGET - WIDTH, TARGET + WIDTH, color="#fff3c4", linewidth=0, zorder=0)
        for at, (step, y, y_after, _, _) in enumerate(steps):
            color = WINNER if at in won else FINISHED if at in kept else DROPPED
            axis.plot(
                (step, step + 1),
                (y, y_after),
                color=color,
                linewidth=2.6 if at in won else 1,
                zorder=2 + (at in kept),
            )
        for check in sorted(
            {stop for move in result.trace for stop in move["stop"] if stop < STEPS}
        ):
            axis.axvline(check, color="#8c959f", linewidth=0.6, linestyle=":", zorder=1)
        seeds = f"{result.spent.seeds} seed{'s' * (result.spent.seeds != 1)}"
        axis.set(
            title=panel.title,
            xlabel=f"{result.spent.nfe:g} NFE, {seeds}, {result.spent.finished} finished",
        )
        axis.title.set_fontsize(10)
        axis.set_xticks((0, STEPS), ("noise", "image"))
        axis.set(ylim=(-3, 3), yticks=[])
        for side in ("top", "right", "left"):
            axis.spines[side].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def leading(steps: list[tuple[int, float, float, bytes, bytes]], ends: set[bytes]) -> set[int]:
    """The places of the steps that lead to latents of `ends`."""
    wanted = {(STEPS, end) for end in ends}
    found = set()
    for at in sorted(range(len(steps)), key=lambda i: -steps[i][0]):
        step, _, _, before, after = steps[at]
        if (step + 1, after) in wanted:
            found.add(at)
            wanted.add((step, before))
    return found


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("groups", nargs="*", default=list(GROUPS), help=", ".join(GROUPS))
    FOLDER.mkdir(exist_ok=True)
    for group in p.parse_args().groups:
        draw(group, FOLDER / f"{group}.png")


if __name__ == "__main__":
    main()
