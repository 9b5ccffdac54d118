"""What a checklist gives a search by finished drafts, on captions of kinds that nobody trained on.

    python benchmarks/checklists.py --folder FOLDER

Draft and finished image of every seed are made once for each caption, and kept in FOLDER. Searches
of `--budgets` evaluations draft a share of them, drawn again for each of `--repeats`, finish those
that rank best, and return the best. Drafts are ranked, and images chosen, by the checker's soft
score, by the product of a checklist's answers, or, of drafts, by how likely they are to be right:
a logistic fit of answers and soft score on the captions of `--fit-seed`. Differences are paired by
caption, errors are over captions.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize

from ttsnap import BestOfN, scenes, search
from ttsnap.core.arrays import BoolArray, FloatArray
from ttsnap.core.checklist import YES
from ttsnap.core.prompt import Prompt
from ttsnap.core.selection import Selection
from ttsnap.core.utility import product
from ttsnap.files.writing import markdown, write_json
from ttsnap.pipelines import defaults, load
from ttsnap.reward_models.checklist import likely
from ttsnap.reward_models.checklist.questions import MOST, questions
from ttsnap.reward_models.checklist.worlds import looked
from ttsnap.sampling.rng import seeded

DRAFT, FINISH = 0.5, 3.0
"""Evaluations of a draft, and of finishing it."""


class Looks(NamedTuple):
    """What was seen of the drafts, or of the finished images, of P captions x N seeds."""

    answers: FloatArray
    """(P, N, MOST), 1 beyond a caption's items."""
    soft: FloatArray
    right: BoolArray


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--prompt-seed", type=int, nargs="+", default=[0, 1])
    p.add_argument("--fit-seed", type=int, nargs="+", default=[101, 202], help="of other captions")
    p.add_argument("--prompts", type=int, default=24, help="captions of each prompt seed")
    p.add_argument("--seeds", type=int, default=360, help="of each caption")
    p.add_argument("--budgets", type=int, nargs="+", default=[25, 50, 100, 200])
    p.add_argument("--repeats", type=int, default=20)
    p.add_argument("--save", type=Path, help="the file for the fit, likely.json of ScenesLikely")
    p.add_argument("--folder", type=Path, default=Path("checklists"), help="of the images")
    a = p.parse_args()
    a.folder.mkdir(parents=True, exist_ok=True)
    found = [seen(seed, a) for seed in a.prompt_seed]
    drafts, ends = together([each[1] for each in found]), together([each[2] for each in found])
    others = [seen(seed, a) for seed in a.fit_seed]
    told_by = np.concatenate([features(prompts, early) for prompts, early, _ in others])
    fit = fitted(told_by, np.concatenate([late.right for _, _, late in others]))
    if a.save is not None:
        write_json(a.save, {"weights": [float(f"{weight:.6g}") for weight in fit]})
    found_in = np.concatenate([features(prompts, early) for prompts, early, _ in found])
    odds = found_in @ fit[:-1] + fit[-1]
    ranks = {"soft score": drafts.soft, "checklist": product(drafts.answers), "fitted": odds}
    chosen = {"soft score": ends.soft, "checklist": product(ends.answers)}
    base, _ = searched(ends, drafts.soft, ends.soft, 0.5, a)
    rows = []
    for rank, choose, share, stop in [
        ("soft score", "soft score", 0.5, 0),
        ("soft score", "soft score", 0.6, 0),
        ("soft score", "soft score", 0.7, 0),
        ("soft score", "checklist", 0.5, 0),
        ("checklist", "checklist", 0.5, 0),
        ("checklist", "checklist", 0.6, 0),
        ("checklist", "checklist", 0.7, 0),
        ("fitted", "checklist", 0.5, 0),
        ("fitted", "checklist", 0.6, 0),
        ("fitted", "checklist", 0.7, 0),
        *(("checklist", "checklist", 0.5, many) for many in (1, 4, 16)),
        ("fitted", "checklist", 0.6, 4),
    ]:
        right, spent = searched(ends, ranks[rank], chosen[choose], share, a, stop)
        cells = [told(each) for each in right.T]
        leads = [f"{told(each, sign='+')}" for each in (right - base).T]
        nfe = [f"{each:.1f}" for each in spent.mean(0)]
        rows.append([rank, choose, share, stop or "", *cells, *leads, *nfe])
        print(rows[-1], flush=True)
    heads = ["drafts by", "images by", "share", "stops, at once"]
    for what in ("right", "above the default", "NFE"):
        heads += [f"{what} at {b}" for b in a.budgets]
    print(markdown(heads, [list(map(str, row)) for row in rows]))


def together(looks: list[Looks]) -> Looks:
    return Looks(*(np.concatenate(each) for each in zip(*looks, strict=True)))


def told(values: FloatArray, sign: str = "") -> str:
    return f"{values.mean():{sign}.3f} ± {values.std(ddof=1) / len(values) ** 0.5:.3f}"


def seen(prompt_seed: int, a: argparse.Namespace) -> tuple[list[str], Looks, Looks]:
    """The captions, and what is seen of their drafts and of these finished."""
    prompts = scenes.sample_prompts(a.prompts, prompt_seed, list(scenes.UNSEEN_KINDS))
    path = a.folder / f"{prompt_seed}-{a.prompts}-{a.seeds}.npz"
    if not path.is_file():
        drafts, ends = zip(*(made(prompt, a.seeds) for prompt in prompts), strict=True)
        np.savez(path, draft=np.stack(drafts), final=np.stack(ends))
    with np.load(path) as file:
        return prompts, looks_at(prompts, file["draft"]), looks_at(prompts, file["final"])


PIPE = load("embedded", dtype=torch.float32)
PIPE.set_progress_bar_config(disable=True)


def made(prompt: str, seeds: int) -> tuple[np.ndarray, np.ndarray]:
    """(N, 3, 32, 32) levels of the drafts of these seeds, and of the images that they become."""
    engine = PIPE.engine(["scenes"], draft="embedded", finish="0.4:3", **defaults("embedded"))
    (result,) = search([prompt], BestOfN(seeds), engine, selection=Selection(keep=seeds))
    by_seed = {image.seed: torch.as_tensor(image.pixels) for image in result.images}
    denoiser = engine.denoiser
    denoiser.encode([Prompt(prompt)])
    drafts = []
    for start in range(0, seeds, 60):
        noise = denoiser.init_latents([seeded(s) for s in range(start, min(seeds, start + 60))])
        begun = denoiser.starter.begin(noise, torch.zeros(len(noise), dtype=torch.long), (), ())
        drafts.append(denoiser.decode(begun.guesses))
    print(f"made: {prompt}", flush=True)
    return levels(torch.cat(drafts)), levels(torch.stack([by_seed[s] for s in range(seeds)]))


def levels(images: torch.Tensor) -> np.ndarray:
    return (images.detach().float().clamp(0, 1) * 255).round().byte().numpy()


def looks_at(prompts: list[str], images: np.ndarray) -> Looks:
    """images (P, N, 3, 32, 32) in levels."""
    answers = np.ones((*images.shape[:2], MOST))
    soft, right = np.zeros(images.shape[:2]), np.zeros(images.shape[:2], bool)
    for i, (prompt, pictures) in enumerate(zip(prompts, images, strict=True)):
        pixels = pictures.astype(np.float32) / 255
        soft[i], right[i] = scenes.check(pixels, [scenes.parse(prompt)] * len(pixels))
        objects = scenes.detect(pixels)
        for j, item in enumerate(questions(prompt)):
            look = looked(str(item))
            answers[i, :, j] = [look(objects, k) for k in range(len(pixels))]
    return Looks(answers, soft, right)


def features(prompts: list[str], drafts: Looks) -> FloatArray:
    """(P, N, 6) as of `likely.features`."""
    found = []
    for prompt, answers, soft in zip(prompts, drafts.answers, drafts.soft, strict=True):
        items = [str(item) for item in questions(prompt)]
        found.append(likely.features(answers[:, : len(items)], items, soft))
    return np.stack(found)


def fitted(x: FloatArray, right: BoolArray) -> FloatArray:
    """A logistic fit with a ridge of 1 on standardised features (P, N, D): (D + 1,) the weights of
    the features as they are, and the bias."""
    flat, y = x.reshape(-1, x.shape[-1]), right.ravel().astype(float)
    centre, width = flat.mean(0), flat.std(0) + 1e-9
    z = (flat - centre) / width

    def loss(w: FloatArray) -> float:
        t = z @ w[:-1] + w[-1]
        return float(np.logaddexp(0, t).sum() - (y * t).sum() + w[:-1] @ w[:-1])

    w = minimize(loss, np.r_[np.zeros(z.shape[1]), -3.0]).x
    print(f"fitted weights of standardised features: {w.round(2).tolist()}")
    return np.r_[w[:-1] / width, w[-1] - (centre / width) @ w[:-1]]


def searched(
    ends: Looks,
    rank: FloatArray,
    choose: FloatArray,
    share: float,
    a: argparse.Namespace,
    stop: int = 0,
) -> tuple[FloatArray, FloatArray]:
    """(P, B) shares of winners that are right, and evaluations. stop: how many images are finished
    before the search looks whether one has all; 0: it never stops."""
    rng, shape = np.random.default_rng(0), (len(rank), len(a.budgets))
    right, spent = np.zeros(shape), np.zeros(shape)
    for i in range(shape[0]):
        for _ in range(a.repeats):
            order = rng.permutation(rank.shape[1])
            for j, cap in enumerate(a.budgets):
                n = min(len(order), int(share * cap / DRAFT + 1e-9))
                k = min(n, max(1, int((cap - n * DRAFT) / FINISH + 1e-9)))
                best = order[:n][np.argsort(-rank[i, order[:n]], kind="stable")[:k]]
                has_all = np.flatnonzero((ends.answers[i, best] >= YES).all(-1))
                if stop and len(has_all):
                    best = best[: min(k, (has_all[0] // stop + 1) * stop)]
                winner = best[np.argmax(choose[i, best])]
                right[i, j] += ends.right[i, winner] / a.repeats
                spent[i, j] += (n * DRAFT + len(best) * FINISH) / a.repeats
    return right, spent


if __name__ == "__main__":
    main()
