"""Every search algorithm by name: where it is, what kind it is, what it does in a line, what it needs and who found it.

The command line, the demo and the documentation take their lists from here.
"""

from __future__ import annotations

from typing import NamedTuple

GROUPS: dict[str, str] = {
    "seeds": "Choose among seeds: start many, finish the promising ones",
    "steps": "Choose step by step: make several continuations of an image in the making, go on with the best",
    "particles": "Resample together: multiply the good among many images in the making, drop the poor",
    "trees": "Go back and try again: return to earlier, noisier states and take other ways from there",
    "noise": "Improve the initial noise of an image that is finished",
    "combined": "Combine two algorithms",
    "study": "Study: see everything, decide nothing",
}
"""The kinds of algorithm, in the order in which they are listed, each with a sentence about it."""

STOCHASTIC = "a kernel that draws noise (sde, ddim, ancestral)"
COUNTED = "a budget in evaluations, FLOPs or seconds"
PATH = "a kernel with a path and no history (ode, sde)"


class Entry(NamedTuple):
    """An algorithm: where (module:attribute), its group (a key of GROUPS), a title and a sentence for people, what it
    needs beside a reward and a budget, and its source (arXiv numbers, or what it comes from)."""

    where: str
    group: str
    title: str
    summary: str
    source: str = ""
    needs: str = ""


def _entry(where: str, group: str, title: str, summary: str, source: str = "", needs: str = "") -> Entry:
    return Entry(f"ttsnap.algorithms.{where}", group, title, summary, source, needs)


ALGORITHMS: dict[str, Entry] = {
    "best-of-n": _entry(
        "best_of_n:BestOfN", "seeds", "Best-of-N", "finish every seed and keep the best image: the baseline"
    ),
    "seed-pruning": _entry(
        "seed_pruning:SeedPruning",
        "seeds",
        "Seed pruning",
        "score the estimates of many seeds once, late, and finish the best of them (the default)",
        "arXiv 2511.22242 (its TTSp)",
    ),
    "ttsnap": _entry(
        "seed_pruning:ttsnap",
        "seeds",
        "TTSnap",
        "seed pruning with the paper's three early checks, for rewards that can read noisy estimates",
        "arXiv 2511.22242",
        "a noise-aware reward (scenes-noise-aware, or one made by ttsnap distill)",
    ),
    "price-of-compute": _entry(
        "price_of_compute:PriceOfCompute",
        "seeds",
        "Price of compute",
        "look at one candidate at a time, where a look is worth most, and stop when none is worth its price",
        "ours, after Weitzman 1979",
        "a forecast file, made from a recording by ttsnap calibrate",
    ),
    "top-noises": _entry(
        "top_noises:TopNoises",
        "seeds",
        "Top noises",
        "score the estimates of many seeds at the very first step and finish the best few",
        "arXiv 2506.01320",
    ),
    "svdd": _entry(
        "code:svdd",
        "steps",
        "SVDD",
        "at every step make n continuations and go on with the best",
        "arXiv 2408.08252",
        STOCHASTIC,
    ),
    "code": _entry(
        "code:CoDe",
        "steps",
        "CoDe",
        "every few steps make n continuations and go on with the best",
        "arXiv 2502.00968",
        STOCHASTIC,
    ),
    "rbf": _entry(
        "rbf:RBF",
        "steps",
        "Rollover budget forcing",
        "take the first continuation that beats the best so far; what a step saves, later ones may spend",
        "arXiv 2503.19385",
        f"{STOCHASTIC}; {COUNTED}",
    ),
    "rbf-published": _entry(
        "rbf:rbf_published",
        "steps",
        "Rollover budget forcing, as published",
        "rbf as its authors' code does it, which may lose a better image seen earlier",
        "arXiv 2503.19385",
        f"{STOCHASTIC}; {COUNTED}",
    ),
    "verifier-threshold": _entry(
        "verifier_threshold:VerifierThreshold",
        "steps",
        "Verifier-threshold",
        "rbf with a fixed score to reach at each step; may stop early and spend less",
        "arXiv 2512.08985",
        f"{STOCHASTIC}; {COUNTED}",
    ),
    "epsilon-greedy": _entry(
        "epsilon_greedy:EpsilonGreedy",
        "steps",
        "Epsilon-greedy",
        "svdd in rounds, each trying step noises near the best one so far",
        "arXiv 2506.03164",
        "a kernel that draws noise and keeps no history (sde, ddim, ancestral)",
    ),
    "smc": _entry(
        "smc:SMC",
        "particles",
        "Sequential Monte Carlo",
        "weight the candidates by their scores and resample them at a few steps",
        "arXiv 2501.06848, 2501.05803",
        STOCHASTIC,
    ),
    "fk-steering": _entry(
        "smc:fk_steering",
        "particles",
        "FK steering",
        "smc with the settings published for SDXL and 4 candidates",
        "arXiv 2501.06848",
        STOCHASTIC,
    ),
    "funnel": _entry(
        "smc:funnel",
        "particles",
        "Funnel",
        "smc that starts with many candidates and leaves fewer at each check",
        "arXiv 2508.12361",
        STOCHASTIC,
    ),
    "best-first": _entry(
        "tree:BestFirst",
        "trees",
        "Best-first tree",
        "keep a tree of everything scored and always continue the most promising part of it",
        "after arXiv 2506.20701, 2505.23614",
        f"{STOCHASTIC}; {COUNTED}",
    ),
    "depth-first": _entry(
        "depth_first:DepthFirst",
        "trees",
        "Depth-first search",
        "follow one image; where a check looks bad, add noise again and take another way",
        "arXiv 2505.23614",
        PATH,
    ),
    "search-over-paths": _entry(
        "search_over_paths:SearchOverPaths",
        "trees",
        "Search over paths",
        "repeatedly add noise in several ways, denoise further than before, keep the best",
        "arXiv 2501.09732",
        PATH,
    ),
    "zero-order": _entry(
        "zero_order:ZeroOrder",
        "noise",
        "Zero-order search",
        "make images from noises near that of the best one, and move to what is better",
        "arXiv 2501.09732",
        COUNTED,
    ),
    "noise-ascent": _entry(
        "noise_ascent:NoiseAscent",
        "noise",
        "Noise ascent",
        "turn the initial noise along the reward's gradient, step by step",
        "after arXiv 2406.04312",
        "a kernel that draws no noise (pipeline, ode); a differentiable reward",
    ),
    "nested": _entry(
        "nested:Nested",
        "combined",
        "Nested",
        "one algorithm chooses initial noises, another goes on from them: by default top-noises, then code",
        "arXiv 2506.01320",
        STOCHASTIC,
    ),
    "refined": _entry(
        "refined:Refined",
        "combined",
        "Refined",
        "one search to its end, then another from its winner: by default seed-pruning, then noise-ascent",
        "ours",
        "what its parts need: by default a differentiable reward",
    ),
    "keep-all": _entry(
        "keep_all:KeepAll", "study", "Keep all", "finish every seed and score it at every step: for recordings"
    ),
}
"""Names for --algorithm and search=, group by group."""
