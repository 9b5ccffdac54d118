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
    "noise": "Improve the initial noise: go on from noises that scored well",
    "combined": "Combine two algorithms",
    "study": "Study: see everything, decide nothing",
}
"""The kinds of algorithm, in the order in which they are listed, each with a sentence about it."""

STOCHASTIC = "a kernel that draws noise (sde, ddim, ancestral)"
COUNTED = "a budget in evaluations, FLOPs or seconds"
PATH = "a kernel with a path and no history (ode, sde)"


class Entry(NamedTuple):
    """An algorithm: where (module:attribute), its group (a key of GROUPS), a title and a line for people, what it
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
        "best_of_n:BestOfN", "seeds", "Best-of-N", "finish every seed, keep the best image (the baseline)"
    ),
    "seed-pruning": _entry(
        "seed_pruning:SeedPruning",
        "seeds",
        "Seed pruning",
        "score many seeds once, late; finish the best (default)",
        "arXiv 2511.22242 (its TTSp)",
    ),
    "ttsnap": _entry(
        "seed_pruning:ttsnap",
        "seeds",
        "TTSnap",
        "seed pruning with early checks, for noise-aware rewards",
        "arXiv 2511.22242",
        "a noise-aware reward (scenes-noise-aware, or one made by ttsnap distill)",
    ),
    "price-of-compute": _entry(
        "pricing.price_of_compute:PriceOfCompute",
        "seeds",
        "Price of compute",
        "look where a look is worth most; stop when none is",
        "ours, after Weitzman 1979",
        "a forecast file, made from a recording by ttsnap calibrate",
    ),
    "top-noises": _entry(
        "top_noises:TopNoises",
        "seeds",
        "Top noises",
        "score seeds at the first step, finish the best few",
        "arXiv 2506.01320",
    ),
    "svdd": _entry(
        "code:svdd",
        "steps",
        "SVDD",
        "at every step, try n continuations and take the best",
        "arXiv 2408.08252",
        STOCHASTIC,
    ),
    "code": _entry(
        "code:CoDe",
        "steps",
        "CoDe",
        "every few steps, try n continuations and take the best",
        "arXiv 2502.00968",
        STOCHASTIC,
    ),
    "rbf": _entry(
        "rbf:RBF",
        "steps",
        "Rollover budget forcing",
        "take the first continuation that beats the best so far",
        "arXiv 2503.19385",
        f"{STOCHASTIC}; {COUNTED}",
    ),
    "rbf-published": _entry(
        "rbf:rbf_published",
        "steps",
        "Rollover budget forcing, as published",
        "rbf exactly as its authors' code does it",
        "arXiv 2503.19385",
        f"{STOCHASTIC}; {COUNTED}",
    ),
    "verifier-threshold": _entry(
        "verifier_threshold:VerifierThreshold",
        "steps",
        "Verifier-threshold",
        "rbf with a fixed score to reach at each step",
        "arXiv 2512.08985",
        f"{STOCHASTIC}; {COUNTED}",
    ),
    "epsilon-greedy": _entry(
        "epsilon_greedy:EpsilonGreedy",
        "steps",
        "Epsilon-greedy",
        "svdd in rounds that try step noises near the best",
        "arXiv 2506.03164",
        "a kernel that draws noise and keeps no history (sde, ddim, ancestral)",
    ),
    "smc": _entry(
        "smc.smc:SMC",
        "particles",
        "Sequential Monte Carlo",
        "weight candidates by score, resample at a few steps",
        "arXiv 2501.06848, 2501.05803",
        STOCHASTIC,
    ),
    "fk-steering": _entry(
        "smc.smc:fk_steering",
        "particles",
        "FK steering",
        "smc with 4 candidates and published settings",
        "arXiv 2501.06848",
        STOCHASTIC,
    ),
    "funnel": _entry(
        "smc.smc:funnel",
        "particles",
        "Funnel",
        "smc with fewer candidates after each check",
        "arXiv 2508.12361",
        STOCHASTIC,
    ),
    "best-first": _entry(
        "tree:BestFirst",
        "trees",
        "Best-first tree",
        "keep a tree of all candidates, extend its best part",
        "after arXiv 2506.20701, 2505.23614",
        f"{STOCHASTIC}; {COUNTED}",
    ),
    "depth-first": _entry(
        "depth_first:DepthFirst",
        "trees",
        "Depth-first search",
        "follow one image; where it looks bad, go back and retry",
        "arXiv 2505.23614",
        PATH,
    ),
    "search-over-paths": _entry(
        "search_over_paths:SearchOverPaths",
        "trees",
        "Search over paths",
        "add noise in several ways, denoise, keep the best",
        "arXiv 2501.09732",
        PATH,
    ),
    "zero-order": _entry(
        "zero_order:ZeroOrder",
        "noise",
        "Zero-order search",
        "try noises near that of the best image",
        "arXiv 2501.09732",
        COUNTED,
    ),
    "evolution": _entry(
        "evolution:Evolution",
        "noise",
        "Evolution of noises",
        "breed noises from the best, finish the best of all",
        "after arXiv 2505.17618",
    ),
    "noise-ascent": _entry(
        "noise_ascent:NoiseAscent",
        "noise",
        "Noise ascent",
        "turn the initial noise along the reward's gradient",
        "after arXiv 2406.04312",
        "a kernel that draws no noise (pipeline, ode); a differentiable reward",
    ),
    "ttsnap-rbf": _entry(
        "nested:ttsnap_rbf",
        "combined",
        "TTSnap + RBF",
        "prune many seeds early, then branch from the survivors",
        "arXiv 2511.22242, 2503.19385; their union is ours",
        f"{STOCHASTIC}; {COUNTED}",
    ),
    "nested": _entry(
        "nested:Nested",
        "combined",
        "Nested",
        "choose noises by one algorithm, go on by another",
        "arXiv 2506.01320",
        STOCHASTIC,
    ),
    "refined": _entry(
        "refined:Refined",
        "combined",
        "Refined",
        "search by one algorithm, improve its best by another",
        "ours",
        "what its parts need: by default a differentiable reward",
    ),
    "keep-all": _entry("keep_all:KeepAll", "study", "Keep all", "finish every seed, score every step (for recordings)"),
}
"""Names for --algorithm and search=, group by group."""
