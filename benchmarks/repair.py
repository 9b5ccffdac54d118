"""Repair against pruning with drafts, at equal evaluations: is it better to mend an image than to
draw another?

    python benchmarks/repair.py --prompt-seed 0 1 --json repair.json

Both searches begin alike: pruning with drafts for half of the budget. One goes on with pruning. The
other takes the two images that the first half finished, asks the exact checker what is right in
each, and draws the rest again: children start at step --start, what is kept is imposed at its noise
level until step --until, and then runs free, so that both parts agree. Children are pruned by their
estimates at step --look as seeds are. In the next round a better child is a parent. Captions are
held out, of kinds that the embedded model never saw.

What is kept of an image is drawn by chance: all but the faults and a place for what is missing, or
nothing but the right objects (--wide, its probability); a right object may go, too (--let-go).
Where all objects are right, those of one group go. With --resample R each step between --start and
--until is made R times (RePaint, arXiv 2201.09865).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from arguments import add_dtype
from torch import Tensor

from ttsnap import BestOfN, Budget, SeedPruning, __version__, search
from ttsnap.core.selection import Selection
from ttsnap.core.utility import weighted
from ttsnap.files.writing import markdown
from ttsnap.pipelines import defaults, load
from ttsnap.scenes import UNSEEN_KINDS, Spec, check, detect, parse, sample_prompts
from ttsnap.scenes.checker import MIN_OVERLAP
from ttsnap.scenes.grammar import COLORS, SHAPES

SOFT = weighted([1.0, 0.0])
CELLS, PIXELS = 8, 4
"""Cells of a latent along a side, and pixels of a cell."""
REACH = 5.5
"""Pixels from its centre that an object is taken to reach, of 3.5 to 6.4."""
METHODS = {
    "pruning with drafts": SeedPruning(),
    "pruning": SeedPruning(draft_share=0),
    "best-of-n": BestOfN(),
}


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--prompts", type=int, default=24, help="captions of each prompt seed")
    p.add_argument("--prompt-seed", type=int, nargs="+", default=[0, 1])
    p.add_argument("--budget", type=int, default=200, help="NFE per prompt")
    p.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    p.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 5000, 10000, 15000], help="of searches"
    )
    p.add_argument("--start", type=int, default=2, help="of children, a step of 20")
    p.add_argument("--until", type=int, default=8)
    p.add_argument("--look", type=int, default=6)
    p.add_argument("--keep", type=float, default=0.3, help="share of children that is finished")
    p.add_argument("--rounds", type=int, default=1)
    p.add_argument("--resample", type=int, default=1)
    p.add_argument("--wide", type=float, default=0.5)
    p.add_argument("--let-go", type=float, default=0.15)
    add_dtype(p)
    p.add_argument("--json", type=Path)
    a = p.parse_args()

    pipe = load(dtype=getattr(torch, a.dtype))
    pipe.set_progress_bar_config(disable=True)
    engine = pipe.engine(["scenes", "scenes-strict"], batch_size=64, draft="embedded", **defaults())
    prompts = [
        text for seed in a.prompt_seed for text in sample_prompts(a.prompts, seed, UNSEEN_KINDS)
    ]
    right: dict[str, list[np.ndarray]] = {}
    children: list[np.ndarray] = []
    for seed in a.seeds:
        half = search(
            prompts,
            SeedPruning(),
            engine,
            Budget(nfe=a.budget // 2),
            selection=Selection(utility=SOFT, keep=2),
            seed=seed,
        )
        right.setdefault("the first half", []).append(
            np.array([r.best.scores["scenes-strict"] for r in half])
        )
        images = [[image.seed for image in r.images] for r in half]
        spent = np.array([engine.price.evaluations(r.spent.cost) for r in half])
        found, verdicts = Repair(pipe, prompts, a).run(images, a.budget - spent, seed)
        right.setdefault("repair", []).append(found)
        children.append(verdicts)
        for name in a.methods:
            whole = search(
                prompts,
                METHODS[name],
                engine,
                Budget(nfe=a.budget),
                selection=Selection(utility=SOFT),
                seed=seed,
            )
            right.setdefault(name, []).append(
                np.array([r.best.scores["scenes-strict"] for r in whole])
            )
        report(a, right, np.concatenate(children))


def report(a: argparse.Namespace, right: dict[str, list[np.ndarray]], children: np.ndarray) -> None:
    """Print the shares of strictly right winners, and write them."""
    each = {name: np.mean(found, 0) for name, found in right.items()}
    error = len(each["repair"]) ** -0.5
    rows = []
    for name, x in each.items():
        lead = each["repair"] - x
        rows.append(
            [
                name,
                f"{x.mean():.3f} ± {x.std(ddof=1) * error:.3f}",
                f"{lead.mean():+.3f} ± {lead.std(ddof=1) * error:.3f}",
            ]
        )
    failed = np.array(right["the first half"]) < 1
    later = {name: float(np.array(found)[failed].mean()) for name, found in right.items()}
    print(markdown(["method", "strictly right", "repair's lead"], rows))
    print(f"where the first half was wrong ({failed.sum()} searches), right in the end: {later}")
    print(f"{len(children)} finished children, {children.mean():.3f} of them right", flush=True)
    if a.json:
        setting = {k: str(v) if isinstance(v, Path) else v for k, v in vars(a).items()}
        a.json.write_text(
            json.dumps(
                {
                    "ttsnap": __version__,
                    "setting": setting,
                    "right": {name: np.array(found).tolist() for name, found in right.items()},
                    "later": later,
                    "children": float(children.mean()),
                },
                indent=1,
            )
        )


# --- what is kept ---------------------------------------------------------------------------------


class Seen(NamedTuple):
    """What the checker says of an image."""

    centres: np.ndarray
    """(M, 2) x and y in pixels."""
    right: dict[int, int]
    """Those that the caption names, and which of its objects each of them is."""
    missing: int


def objects_of(image: np.ndarray, spec: Spec) -> Seen:
    """What the checker finds in an image (3, 32, 32)."""
    found, right = detect(image[None]), dict[int, int]()
    for i, (color, shape) in enumerate(map(str.split, spec.objects)):
        for j in range(len(found.color)):
            alike = COLORS[found.color[j]] == color and SHAPES[found.overlap[j].argmax()] == shape
            if j not in right and alike and found.overlap[j].max() >= MIN_OVERLAP:
                right[j] = i
                break
    centres = np.stack([found.x, found.y], 1)
    return Seen(centres, right, max(0, len(spec.objects) - len(centres)))


def cells(centres: np.ndarray, reach: float) -> np.ndarray:
    """(8, 8) whether a cell of the latent is touched by a disc about one of the centres (M, 2)."""
    low = np.arange(CELLS) * PIXELS
    touched = np.zeros((CELLS, CELLS), bool)
    for x, y in centres:
        dx, dy = (np.maximum(0, np.maximum(low - c, c - low - PIXELS)) for c in (x, y))
        touched |= np.hypot(dx[None], dy[:, None]) < reach
    return touched


def kept(of: Seen, spec: Spec, rng: np.random.Generator, wide: float, let_go: float) -> np.ndarray:
    """(8, 8) the cells that a child keeps."""
    wrong, right = [j for j in range(len(of.centres)) if j not in of.right], list(of.right)
    gone = [right[rng.integers(len(right))]] if right and rng.random() < let_go else []
    only = rng.random() < wide
    if not wrong and not of.missing:  # the relation or the background is wrong
        group = bool(rng.integers(2))
        gone = [j for j in right if (of.right[j] < spec.groups[0].count) == group]
        only = True
    held = cells(of.centres[[j for j in right if j not in gone]], REACH)
    if only:
        return held
    opened = cells(of.centres[wrong + gone], REACH + PIXELS / 2)
    for _ in range(of.missing):
        places = [(i, j) for i in range(1, CELLS - 1) for j in range(1, CELLS - 1)]
        taken = [
            (held | opened)[i - 1 : i + 2, j - 1 : j + 2].sum() + 1.5 * rng.random()
            for i, j in places
        ]
        i, j = places[int(np.argmin(taken))]
        opened[i - 1 : i + 2, j - 1 : j + 2] = True
    return held | ~opened


# --- drawing again --------------------------------------------------------------------------------


class Repair:
    """Repairs images of these prompts."""

    def __init__(self, pipe: Any, prompts: list[str], a: argparse.Namespace) -> None:
        self.pipe, self.prompts, self.a = pipe, prompts, a
        self.specs = [parse(text) for text in prompts]
        self.call = defaults()
        self.texts = pipe.encode_prompt(
            prompts, None, None, max_sequence_length=self.call["max_sequence_length"]
        )
        pipe.scheduler.set_timesteps(self.call["num_inference_steps"])
        self.sigmas = pipe.scheduler.sigmas.tolist()
        self.steps = len(self.sigmas) - 1

    @torch.no_grad()
    def run(
        self, seeds: list[list[int]], budgets: np.ndarray, seed: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """(P,) whether the best image of each prompt is strictly right, and (M,) that of each
        finished child.

        seeds: of the images to begin with. budgets: (P,) evaluations. seed: of children."""
        rng, noise = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
        of = np.array([p for p, mine in enumerate(seeds) for _ in mine])
        draws = [torch.Generator().manual_seed(s) for mine in seeds for s in mine]
        texts = [self.prompts[p] for p in of]
        latents = torch.cat(
            [
                self.pipe(
                    texts[i : i + 64],
                    generator=draws[i : i + 64],
                    output_type="latent",
                    **self.call,
                ).images.float()
                for i in range(0, len(texts), 64)
            ]
        )
        pool = Pool(of, latents, *self.judged(latents, of))
        first, left, per_round = len(of), budgets.astype(float), budgets / self.a.rounds
        for _ in range(self.a.rounds):
            parents = np.concatenate(
                [self.parents(pool, p, min(left[p], per_round[p])) for p in range(len(seeds))]
            )
            children, spent = self.children(pool, parents, rng, noise)
            np.subtract.at(left, pool.of[parents], spent)
            pool = pool.joined(children)
        assert (left > -1e-9).all(), left.min()
        print(
            f"repair: {(budgets - left).mean():.1f} evaluations a prompt after the first half",
            flush=True,
        )
        best = [
            max(np.flatnonzero(pool.of == p), key=lambda i: pool.soft[i]) for p in range(len(seeds))
        ]
        return pool.right[best].astype(float), pool.right[first:].astype(float)

    def parents(self, pool: Pool, p: int, budget: float) -> np.ndarray:
        """A parent for each child that the budget pays for: the two best images in turn."""
        two = sorted(np.flatnonzero(pool.of == p), key=lambda i: -pool.soft[i])[:2]
        n = 1
        while self.cost(n + 1) <= budget:
            n += 1
        return np.array([two[i % len(two)] for i in range(n)])

    def cost(self, n: int) -> int:
        """Evaluations of n children."""
        again = (self.a.resample - 1) * (min(self.a.until, self.a.look) - self.a.start)
        return n * (self.a.look + 1 - self.a.start + again) + self.finished(n) * (
            self.steps - self.a.look - 1
        )

    def finished(self, n: int) -> int:
        """How many of n children are finished."""
        return max(1, round(self.a.keep * n))

    def children(
        self, pool: Pool, parents: np.ndarray, rng: np.random.Generator, noise: torch.Generator
    ) -> tuple[Pool, np.ndarray]:
        """The finished ones of these parents' children, and (C,) the evaluations of each child."""
        a, of = self.a, pool.of[parents]
        pixels = self.pixels(pool.latents)
        seen = {i: objects_of(pixels[i], self.specs[pool.of[i]]) for i in set(parents.tolist())}
        keep = np.stack(
            [kept(seen[i], self.specs[pool.of[i]], rng, a.wide, a.let_go) for i in parents]
        )
        mask, known = torch.from_numpy(keep)[:, None].float(), pool.latents[parents]
        z = torch.randn(known.shape, generator=noise)
        start = self.sigmas[a.start]
        # An open cell begins from the ground of its image: the mean of the cells without objects.
        free = torch.from_numpy(np.stack([~cells(seen[i].centres, REACH) for i in parents]))[
            :, None
        ].float()
        ground = (known * free).sum((2, 3), keepdim=True) / free.sum((2, 3), keepdim=True).clamp(
            min=1
        )
        x = (1 - start) * (mask * known + (1 - mask) * ground) + start * z
        spent = np.full(len(parents), 0.0)

        def imposed(x: Tensor, step: int, rows: np.ndarray) -> Tensor:
            s, m = self.sigmas[step], mask[rows]
            return m * ((1 - s) * known[rows] + s * z[rows]) + (1 - m) * x if step <= a.until else x

        rows = np.arange(len(parents))
        for k in range(a.start, self.steps):
            s, t = self.sigmas[k], self.sigmas[k + 1]
            for again in reversed(range(a.resample if k < min(a.until, a.look) else 1)):
                v = self.velocity(x, s, of[rows])
                spent[rows] += 1
                y = imposed(x + (t - s) * v, k + 1, rows)
                if again:  # noised forward to where the step began
                    share = (1 - s) / (1 - t)
                    y = share * y + (s**2 - (share * t) ** 2) ** 0.5 * torch.randn(
                        y.shape, generator=noise
                    )
                    y = imposed(y, k, rows)
                x, before = y, x
            if k == a.look:
                soft = self.judged(before - s * v, of[rows])[0]
                best = [
                    mine[np.argsort(-soft[mine], kind="stable")][: self.finished(len(mine))]
                    for mine in (np.flatnonzero(of == p) for p in np.unique(of))
                ]
                rows = rows[chosen := np.concatenate(best)]
                x = x[chosen]
        return Pool(of[rows], x, *self.judged(x, of[rows])), spent

    def velocity(self, x: Tensor, s: float, of: np.ndarray) -> Tensor:
        """The guided velocity at x (N, ...), rows of the prompts `of`."""
        out = []
        for i in range(0, len(x), 64):
            rows, mine = x[i : i + 64], of[i : i + 64]
            words, none, pooled, no_pooled = (text[mine] for text in self.texts)
            both = self.pipe.transformer(
                hidden_states=torch.cat([rows, rows]).to(words.dtype),
                timestep=torch.full((2 * len(rows),), 1000 * s),
                encoder_hidden_states=torch.cat([none, words]),
                pooled_projections=torch.cat([no_pooled, pooled]),
                return_dict=False,
            )[0].float()
            without, with_words = both.chunk(2)
            out.append(without + self.call["guidance_scale"] * (with_words - without))
        return torch.cat(out)

    def pixels(self, latents: Tensor) -> np.ndarray:
        """(N, 3, 32, 32) in [0, 1]."""
        vae = self.pipe.vae
        x = (latents / vae.config.scaling_factor + vae.config.shift_factor).to(vae.dtype)
        return (vae.decode(x, return_dict=False)[0].float() / 2 + 0.5).clamp(0, 1).numpy()

    def judged(self, latents: Tensor, of: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(N,) the soft score and the strict verdict."""
        return check(self.pixels(latents), [self.specs[p] for p in of])


class Pool(NamedTuple):
    """N finished images."""

    of: np.ndarray
    """Their prompts."""
    latents: Tensor
    soft: np.ndarray
    right: np.ndarray

    def joined(self, more: Pool) -> Pool:
        return Pool(
            np.concatenate([self.of, more.of]),
            torch.cat([self.latents, more.latents]),
            np.concatenate([self.soft, more.soft]),
            np.concatenate([self.right, more.right]),
        )


if __name__ == "__main__":
    main()
