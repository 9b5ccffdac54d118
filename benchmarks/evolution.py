"""Searches in the initial noise where generations are cheap, on the embedded model: evolution
against pruning.

    python benchmarks/evolution.py --json evolution.json
    python benchmarks/evolution.py --heritability --steps 10

Hard held-out prompts are searched with the exact checker's soft score (`scenes`); its strict
verdict is only reported. A budget counts evaluations, in which a draft call takes half a one. Each
figure is the mean over prompts of the mean over seeds, with the standard error over prompts.
"draft" is the mean of the scores by which drafts chose the noises that were finished, "image" that
of the same noises' finished images: where breeding only finds noises that please the drafter, the
first rises and the second does not. OUT is written after every run, and runs that it holds are not
made again.

--heritability tells how much of what a noise is worth its children have: the rank correlation
within prompts of parents' and children's finished images, for each kind of children.
"""

from __future__ import annotations

import itertools
import time
from typing import Any

import numpy as np
import torch
from runs import SETTINGS, cell, parser, read, winners, write
from scipy.stats import spearmanr

from ttsnap import Budget, make_algorithm, search
from ttsnap.algorithms.evolution import Evolution
from ttsnap.core.results import Result
from ttsnap.engine.live import LiveEngine
from ttsnap.files.writing import markdown
from ttsnap.pipelines import load
from ttsnap.reward_models.registry import make_rewards
from ttsnap.scenes import HARD_KINDS, sample_prompts

METHODS: dict[str, tuple[dict[str, Any], bool]] = {
    "seed-pruning, drafts": ({"name": "seed-pruning"}, True),
    "evolution, drafts": ({"name": "evolution"}, True),
    "evolution, drafts, mix .9": ({"name": "evolution", "mix": 0.9}, True),
    "fresh seeds alone, drafts": ({"name": "evolution", "generations": 1}, True),
    "best-of-n": ({"name": "best-of-n"}, False),
    "seed-pruning": ({"name": "seed-pruning"}, False),
    "evolution, estimates": ({"name": "evolution"}, False),
    "evolution, finished images": ({"name": "evolution", "keep": [], "levels": []}, False),
}
"""The algorithm, and whether it has a drafter."""
BASE = "seed-pruning, drafts"
"""What the others are compared with, prompt by prompt and seed by seed."""


def main() -> None:
    p = parser(__doc__)
    p.set_defaults(prompts=24, steps=20, reward="scenes", held_out=["scenes-strict"])
    p.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    p.add_argument("--budgets", type=int, nargs="+", default=[50, 100, 200], help="NFE per prompt")
    p.add_argument(
        "--draft",
        default="embedded",
        help="what guesses finished images (see ttsnap generate --help)",
    )
    p.add_argument(
        "--kinds", nargs="+", default=list(HARD_KINDS), help="of captions, in turn (ttsnap.scenes)"
    )
    p.add_argument(
        "--heritability",
        action="store_true",
        help="only tell how much children have of a parent's score",
    )
    a = p.parse_args()
    settings = {k: getattr(a, k) for k in (*SETTINGS, "draft", "kinds")}
    done = read(a.json, settings)
    pipe = load(dtype=getattr(torch, a.dtype))
    call = {"num_inference_steps": a.steps, "batch_size": a.batch_size}
    prompts, metrics = sample_prompts(a.prompts, a.prompt_seed, a.kinds), make_rewards(a.held_out)
    if a.heritability:
        tell_heritability(prompts, pipe.engine(a.reward, **call))
        return
    engines = {
        drafts: pipe.engine(a.reward, **call, **({"draft": a.draft} if drafts else {}))
        for drafts in (False, True)
    }
    # Seed by seed, so that what is there when it is interrupted compares all methods.
    for seed, nfe, name in itertools.product(range(a.seeds), a.budgets, a.methods):
        if (key := f"{name}|{nfe}|{seed}") in done:
            continue
        spec, drafts = METHODS[name]
        begin = time.perf_counter()
        results = search(
            prompts, make_algorithm(spec), engines[drafts], Budget(nfe=nfe), seed=seed * 100_000
        )
        done[key] = {
            **winners(results, metrics),
            **trusted(results),
            "seconds": time.perf_counter() - begin,
        }
        print(
            f"{key}: {np.mean(done[key]['reward']):.3f} reward, {done[key]['seconds']:.0f} s",
            flush=True,
        )
        write(a.json, settings, done)
    print(table(done, a.held_out))


def tell_heritability(prompts: list[str], engine: LiveEngine, noises: int = 8) -> None:
    """Print Spearman of children, one of each noise, with their parents, by kind, and its error
    over prompts."""
    print("| children | Spearman |\n|---|---|")
    for mix in (0.98, 0.9, 0.7):
        family = Evolution(noises, 2, parents=1.0, mix=mix, keep=(), levels=())
        ranks = []
        for result in search(prompts, family, engine):
            ends, children = result.particles.scores[:, -1, 0], np.arange(noises, 2 * noises)
            ranks.append(
                spearmanr(ends[children], ends[result.particles.parent[children]]).statistic
            )
        # of a prompt whose images are all alike there is none
        known = np.array(ranks)[np.isfinite(ranks)]
        error = known.std(ddof=1) / len(known) ** 0.5
        print(f"| mix {mix:g} | {known.mean():.3f} ± {error:.3f} |", flush=True)


def trusted(results: list[Result]) -> dict[str, list[float]]:
    """Per prompt, of the noises that were finished: the mean score of their looks at step 0, nan
    where there were none, and that of their images."""
    scores = [r.particles.scores[r.particles.finished, :, 0] for r in results]
    return {
        "draft": [float(s[:, 0].mean()) for s in scores],
        "image": [float(s[:, -1].mean()) for s in scores],
    }


def table(runs: dict[str, Any], held_out: list[str]) -> str:
    """Markdown: a line for each method and budget, over the seeds that were run."""
    names = ["reward", *held_out, "draft", "image"]
    lines = []
    groups: dict[tuple[str, str], dict[str, Any]] = {}
    for key, run in runs.items():
        name, nfe, seed = key.split("|")
        groups.setdefault((name, nfe), {})[seed] = run
    for (name, nfe), found in sorted(groups.items(), key=lambda group: int(group[0][1])):
        cells = [cell(list(found.values()), metric).replace("nan ± nan", "") for metric in names]
        base = groups.get((BASE, nfe), {})
        pairs = [
            np.subtract(run["reward"], base[seed]["reward"])
            for seed, run in found.items()
            if seed in base
        ]
        over = cell([{"over": pair} for pair in pairs], "over") if pairs and name != BASE else ""
        lines.append([name, nfe, len(found), *cells, over])
    return markdown(["method", "NFE", "seeds", *names, f"over {BASE}"], lines)


if __name__ == "__main__":
    main()
