"""Ways to make the seeds of a prompt differ more, and what search gains by them at equal FLOPs.

    python benchmarks/look_alike.py
    python benchmarks/variety.py

Models: the embedded one at its own guidance and at a strong one, its few-step version, a copy of
that whose seeds look alike (look_alike.py), and `signs`. The method is `repel`: groups of seeds push
each other apart at high noise levels (ttsnap.sampling.repel).

Every seed of a prompt is denoised once; its x0 estimate at the check of seed pruning is scored, and
its image. Of that: the mean distance between two seeds of a prompt, in features that no search sees
(`scenes-learned`) and in pixels; the share of right images; and how often the winner of best-of-N
(exact) and of seed pruning (searches of the recorded scores) is right, at the FLOPs of --images
images of the plain model, passes, decodes and checks counted.

A method's setting is the one whose pruning is right most often on prompts of its own; the figures
are of other prompts. Brackets hold the 95 % interval of a bootstrap over prompts; differences to
the plain model are paired by prompt. Denoised images are kept in --folder, and an interrupted run
goes on from there.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from arguments import add_dtype
from torch import Tensor
from variety_methods import METHODS, Plain

from ttsnap import Budget, SeedPruning
from ttsnap.core.arrays import FloatArray
from ttsnap.core.cost import Rates
from ttsnap.core.grid import Grid
from ttsnap.core.price import Price
from ttsnap.core.prompt import Prompt
from ttsnap.core.utility import weighted
from ttsnap.files.writing import markdown
from ttsnap.pipelines import defaults, load
from ttsnap.recordings.replay import Recording
from ttsnap.reward_models.likeness import make_likeness
from ttsnap.reward_models.ocr import OCR
from ttsnap.reward_models.registry import make_rewards
from ttsnap.sampling import rng
from ttsnap.scenes import HARD_KINDS, UNSEEN_KINDS
from ttsnap.scenes import sample_prompts as scenes_prompts
from ttsnap.signs import sample_prompts as signs_prompts
from ttsnap.simulation.simulate import best_of_n_curve, curve

FIRST = weighted([1.0, 0.0])
"""Searches choose by the soft score; what is right is only reported."""

SEED = 7
"""Of prompts."""


class Model(NamedTuple):
    """A model whose seeds are compared."""

    name: str
    call: dict[str, Any]
    weights: str | None = None
    """File in --folder of other weights for its transformer."""
    shared: float = 0.0
    """Share of the variance of initial noise that all seeds have in common: that of seed 0."""


MODELS = {
    "scenes-turbo": Model("scenes-turbo", {}),
    "turbo, alike": Model("scenes-turbo", {}, "look_alike.pt"),
    "turbo, near": Model("scenes-turbo", {}, shared=0.9),
    "signs": Model("signs", {"num_inference_steps": 10}),
    "scenes": Model("embedded", {"num_inference_steps": 10}),
    "scenes at 10": Model("embedded", {"num_inference_steps": 10, "guidance_scale": 10.0}),
}


class Sampled(NamedTuple):
    """S seeds of P prompts."""

    early: FloatArray
    """(P, S, 2) soft score and whether it is right, of the x0 estimate at the check."""
    final: FloatArray
    """(P, S, 2) the same of the image."""
    features: FloatArray
    """(P,) mean distance between two seeds' features, each of length 1; nan where no packaged
    reward has some."""
    pixels: FloatArray
    """(P,) the same of pixels, root mean square."""


class Bench:
    """One model, and what is sampled of it."""

    def __init__(
        self, name: str, folder: Path, dtype: torch.dtype, choose: int, tell: int, seed: int
    ) -> None:
        model = MODELS[name]
        self.name, self.folder, self.signs, self.shared = (
            name,
            folder,
            model.name == "signs",
            model.shared,
        )
        n, kinds = choose + tell, (*HARD_KINDS, *UNSEEN_KINDS)
        every = signs_prompts(n, seed) if self.signs else scenes_prompts(n, seed, kinds)
        self.sizes = f"{choose}+{tell}" + ("" if seed == SEED else f"of{seed}")
        self.prompts = {"choose": every[:choose], "tell": every[choose:]}
        self.pipe = load(model.name, dtype=dtype)
        if model.weights is not None:
            self.pipe.transformer.load_state_dict(
                torch.load(folder / model.weights, weights_only=True)
            )
        self.call = {**defaults(model.name), **model.call}
        plain = self.denoiser()
        self.grid = plain.grid
        self.passes = plain.passes_per_nfe
        self.check = plain.grid.step_at(SeedPruning().settled().levels[0])
        costs = plain.costs()
        self.flops = Rates(nfe=costs.nfe / plain.passes_per_nfe, decodes=costs.decode)
        self.rewards = [OCR("line")] if self.signs else make_rewards(["scenes", "scenes-strict"])
        self.likeness = None if self.signs else make_likeness("scenes-learned", [])

    def denoiser(self) -> Any:
        return self.pipe.denoiser(**self.call)

    def scored(self, images: Tensor, prompts: Sequence[str]) -> FloatArray:
        """(N, 2) soft score and whether it is right."""
        columns = [
            np.asarray(r(images, prompts, torch.zeros(len(images))), float) for r in self.rewards
        ]
        return np.stack([columns[0], columns[0] == 1.0 if self.signs else columns[1]], -1)

    @torch.no_grad()
    def sample(self, method: Plain, prompts: Sequence[str], seeds: int) -> Sampled:
        """All seeds of these prompts, one prompt after the other."""
        d = self.denoiser()
        predict = method.of(d)
        rows = []
        for text in prompts:
            d.encode([Prompt(text)])
            cond, names = torch.zeros(seeds, dtype=torch.long), [text] * seeds
            x = d.init_latents([rng.seeded(seed) for seed in range(seeds)])
            x = self.shared**0.5 * x[:1] + (1 - self.shared) ** 0.5 * x if self.shared else x
            state: Any = [None] * seeds
            early = np.empty((seeds, 2))
            for k in range(d.grid.steps):
                prediction = predict(x, k, cond)
                if k == self.check:
                    early = self.scored(d.decode(prediction.x0), names)
                keys = [(seed, 0, k) for seed in range(seeds)]
                x, state = d.kernel.step(x, prediction, torch.full((seeds,), k), keys, state)
            images = d.decode(x)
            seen = (
                np.nan
                if self.likeness is None
                else apart(torch.nn.functional.normalize(self.likeness(images).flatten(1).double()))
            )
            pixels = images.double().flatten(1)
            rows.append(
                (early, self.scored(images, names), seen, apart(pixels) / pixels.shape[1] ** 0.5)
            )
            print(".", end="", flush=True)
        return Sampled(*(np.array(column) for column in zip(*rows, strict=True)))

    def kept(self, method: Plain, part: str, seeds: int) -> Sampled:
        """`sample` of one part of the prompts, from its file or made."""
        file = self.folder / f"{self.name}-{part}-{self.sizes}x{seeds}-{method}.npz"
        if not file.exists():
            made = self.sample(method, self.prompts[part], seeds)
            np.savez_compressed(file, **made._asdict())
        found = np.load(file)
        return Sampled(*(found[name] for name in Sampled._fields))

    def measured(self, found: Sampled, images: int, repeats: int) -> dict[str, FloatArray]:
        """Figures of each prompt (P,) of these samples, with searches at the FLOPs of so many plain
        images."""
        steps = self.grid.steps
        evals = [self.passes] * steps
        budget = Budget(
            flops=images * (sum(evals) * self.flops.nfe + self.flops.decodes) * (1 + 1e-9)
        )
        scores = np.full((*found.final.shape[:2], steps + 1, 2), np.nan)
        scores[:, :, self.check], scores[:, :, -1] = found.early, found.final
        recording = Recording(
            tuple(map(str, range(len(scores)))),
            scores,
            Grid(self.grid.levels, tuple(evals)),
            ("soft", "right"),
            scored=tuple(k in (self.check, steps) for k in range(steps + 1)),
            price=Price(self.flops),
        )
        pruned = curve(recording, SeedPruning(), [budget], repeats, utility=FIRST)
        return {
            "features": found.features,
            "pixels": found.pixels,
            "right": found.final[..., 1].mean(1),
            "any right": found.final[..., 1].max(1),
            "best-of-N": best_of_n_curve(recording, [budget], utility=FIRST).scores[:, 0, 1],
            "pruning": pruned.scores[:, 0, 1],
        }


def apart(features: Tensor) -> float:
    """Mean distance between two rows of (N, D)."""
    return float(torch.pdist(features).mean())


def interval(values: FloatArray, draws: int = 4000) -> str:
    """Mean of values (P,) with its 95 % interval over prompts."""
    picks = np.random.default_rng(0).integers(len(values), size=(draws, len(values)))
    low, high = np.percentile(values[picks].mean(1), [2.5, 97.5])
    return f"{values.mean():.3f} [{low:.3f}, {high:.3f}]"


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    p.add_argument(
        "--methods", nargs="+", help="of those that there are, beside none; all by default"
    )
    p.add_argument(
        "--choose",
        type=int,
        default=10,
        help="prompts on which settings are chosen; 0: the first are taken",
    )
    p.add_argument("--prompts", type=int, default=40, help="prompts of the figures")
    p.add_argument(
        "--prompt-seed",
        type=int,
        default=SEED,
        help="another seed, other held-out prompts of the same kinds",
    )
    p.add_argument("--seeds", type=int, default=16, help="of each prompt; no search can start more")
    p.add_argument(
        "--images", type=int, default=8, help="of the plain model, whose FLOPs a search may take"
    )
    p.add_argument("--repeats", type=int, default=40, help="searches per prompt")
    p.add_argument(
        "--folder", type=Path, default=Path("build/variety"), help="where samples are kept"
    )
    add_dtype(p)
    a = p.parse_args()
    a.folder.mkdir(parents=True, exist_ok=True)
    for name in a.models:
        bench = Bench(name, a.folder, getattr(torch, a.dtype), a.choose, a.prompts, a.prompt_seed)

        def figures(method: Plain, part: str, bench: Bench = bench) -> dict[str, FloatArray]:
            return bench.measured(bench.kept(method, part, a.seeds), a.images, a.repeats)

        best: dict[str, Plain] = {}
        print(f"\n## {name}\n")
        for kind, settings in METHODS.items():
            if a.methods and kind not in ("none", *a.methods):
                continue
            tried = [figures(method, "choose") for method in settings] if a.choose else []
            means = [found["pruning"].mean() for found in tried] or [0.0]
            best[kind] = settings[int(np.argmax(means))]
            for method, found in zip(settings, tried, strict=False):
                print(
                    f"{method}: "
                    + ", ".join(f"{key} {values.mean():.3f}" for key, values in found.items()),
                    flush=True,
                )
        told = {kind: figures(method, "tell") for kind, method in best.items()}
        print(table(told, best), flush=True)


def table(told: dict[str, dict[str, FloatArray]], best: dict[str, Plain]) -> str:
    """Markdown: a line for each method, then one with its differences to none."""
    lines = []
    for kind, found in told.items():
        lines.append(
            [
                kind if kind == "none" else str(best[kind]),
                *(interval(values) for values in found.values()),
            ]
        )
        if kind != "none":
            lines.append(
                ["less none", *(interval(found[key] - told["none"][key]) for key in found)]
            )
    return markdown(["method", *told["none"]], lines)


if __name__ == "__main__":
    main()
