"""Every search algorithm by name: where it is, what kind it is, what it does in a line, what it
needs and who found it.

The command line, the demo and the documentation take their lists from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

GROUPS: dict[str, str] = {
    "seeds": "Choose among seeds: start many, finish the promising ones",
    "steps": (
        "Choose step by step: make several continuations of an image in the making, go on with the"
        " best"
    ),
    "particles": (
        "Resample together: multiply the good among many images in the making, drop the poor"
    ),
    "trees": (
        "Go back and try again: return to earlier, noisier states and take other ways from there"
    ),
    "noise": "Improve the initial noise: go on from noises that scored well",
    "combined": "Combine two algorithms",
    "study": "Study: see everything, decide nothing",
}
"""The kinds of algorithm, in the order in which they are listed, each with a sentence about it."""

STOCHASTIC = "a kernel that draws noise (sde, ddim, ancestral)"
COUNTED = "a budget in evaluations, FLOPs or seconds"
PATH = "a kernel with a path and no history (ode, sde)"


class Entry(NamedTuple):
    """An algorithm, or a preset of one: the same class with other defaults."""

    where: str
    """module:class."""
    group: str
    """A key of GROUPS."""
    title: str
    summary: str
    """A line for people."""
    source: str = ""
    """arXiv numbers, or what it comes from."""
    needs: str = ""
    """What it needs beside a reward and a budget."""
    fixed: Mapping[str, Any] = MappingProxyType({})
    """Fields of the class that a preset sets, so that they are no options of it."""
    defaults: Mapping[str, Any] = MappingProxyType({})
    """Options of a preset whose defaults are not those of the class."""
    renamed: Mapping[str, str] = MappingProxyType({})
    """Options of a preset by the field that each sets: {"alpha": "temperature"}, {"keep":
    "first.keep"} of a part."""
    texts: Mapping[str, str] = MappingProxyType({})
    """What options of a preset mean, where not what the docstrings of the fields say."""
    about: str = ""
    """What else there is to know of a preset, in place of the docstring of the class."""

    @property
    def preset(self) -> bool:
        """Whether its class has other defaults."""
        return bool(self.fixed or self.defaults)


def _entry(
    group: str,
    where: str,
    title: str,
    summary: str,
    source: str = "",
    needs: str = "",
    **preset: Any,
) -> Entry:
    return Entry(f"ttsnap.algorithms.{where}", group, title, summary, source, needs, **preset)


_seeds, _steps, _particles, _trees, _noise, _combined, _study = (
    partial(_entry, group) for group in GROUPS
)
"""Entries of each group."""

ALGORITHMS: dict[str, Entry] = {
    "best-of-n": _seeds(
        "best_of_n:BestOfN", "Best-of-N", "finish every seed, keep the best image (the baseline)"
    ),
    "seed-pruning": _seeds(
        "seed_pruning:SeedPruning",
        "Seed pruning",
        "score many seeds once, late; finish the best (default)",
        "arXiv 2511.22242 (its TTSp)",
    ),
    "ttsnap": _seeds(
        "seed_pruning:SeedPruning",
        "TTSnap",
        "seed pruning with early checks, for noise-aware rewards",
        "arXiv 2511.22242",
        "a noise-aware reward (scenes-noise-aware, or one made by ttsnap distill)",
        defaults={"keep": (0.4, 0.4, 0.5), "levels": (0.9, 0.7, 0.45)},
        texts={
            "keep": "Share kept at each check, in (0, 1] [arXiv 2511.22242].",
            "levels": "Noise levels of the checks, falling [arXiv 2511.22242].",
        },
        about=(
            "Seed pruning with the paper's single-reward schedule (steps 2, 6, 11 of 20): for"
            " noise-aware rewards."
        ),
    ),
    "price-of-compute": _seeds(
        "pricing.price_of_compute:PriceOfCompute",
        "Price of compute",
        "look where a look is worth most; stop when none is",
        "ours, after Weitzman 1979",
        "a forecast file, made from a recording by ttsnap tune --policy price-of-compute",
    ),
    "top-noises": _seeds(
        "top_noises:TopNoises",
        "Top noises",
        "score seeds at the first step, finish the best few",
        "arXiv 2506.01320",
    ),
    "svdd": _steps(
        "code:CoDe",
        "SVDD",
        "at every step, try n continuations and take the best",
        "arXiv 2408.08252",
        STOCHASTIC,
        fixed={"block": 1},
        renamed={"alpha": "temperature"},
        texts={
            "alpha": (
                "0 for the best continuation, else one is drawn by weights exp(score / alpha), so"
                " it is in units of the reward [SVDD's code takes the best]."
            )
        },
        about=(
            "SVDD (arXiv 2408.08252, Algorithm 1): a choice at every step. A stream takes one"
            " evaluation for its noise, and n for every step but the last."
        ),
    ),
    "code": _steps(
        "code:CoDe",
        "CoDe",
        "every few steps, try n continuations and take the best",
        "arXiv 2502.00968",
        STOCHASTIC,
    ),
    "rbf": _steps(
        "rbf:RBF",
        "Rollover budget forcing",
        "take the first continuation that beats the best so far",
        "arXiv 2503.19385",
        f"{STOCHASTIC}; {COUNTED}",
    ),
    "rbf-published": _steps(
        "rbf:RBF",
        "Rollover budget forcing, as published",
        "rbf exactly as its authors' code does it",
        "arXiv 2503.19385",
        f"{STOCHASTIC}; {COUNTED}",
        fixed={"finish": "published"},
        about=(
            "As the paper's code: an image of the last step's best candidate, also where an earlier"
            " one was better."
        ),
    ),
    "verifier-threshold": _steps(
        "verifier_threshold:VerifierThreshold",
        "Verifier-threshold",
        "rbf with a fixed score to reach at each step",
        "arXiv 2512.08985",
        f"{STOCHASTIC}; {COUNTED}",
    ),
    "epsilon-greedy": _steps(
        "epsilon_greedy:EpsilonGreedy",
        "Epsilon-greedy",
        "svdd in rounds that try step noises near the best",
        "arXiv 2506.03164",
        "a kernel that draws noise and keeps no history (sde, ddim, ancestral)",
    ),
    "smc": _particles(
        "smc.smc:SMC",
        "Sequential Monte Carlo",
        "weight candidates by score, resample at a few steps",
        "arXiv 2501.06848, 2501.05803",
        STOCHASTIC,
    ),
    "fk-steering": _particles(
        "smc.smc:SMC",
        "FK steering",
        "smc with 4 candidates and published settings",
        "arXiv 2501.06848",
        STOCHASTIC,
        fixed={"temper": "constant", "resampler": "multinomial"},
        defaults={"n": 4},
        texts={"n": "Particles; None for as many as the budget affords [FK steering's code]."},
        about="FK steering as published for SDXL: checks at 20, 40, 60 and 80 % of the steps.",
    ),
    "funnel": _particles(
        "smc.smc:SMC",
        "Funnel",
        "smc with fewer candidates after each check",
        "arXiv 2508.12361",
        STOCHASTIC,
        defaults={"shrink": 0.25},
        texts={
            "shrink": (
                "Share of particles left after the last check [ours; the paper's schedule is not"
                " known to us]."
            )
        },
        about="SMC from many particles to few, early rewards weighing less (arXiv 2508.12361).",
    ),
    "best-first": _trees(
        "tree:BestFirst",
        "Best-first tree",
        "keep a tree of all candidates, extend its best part",
        "after arXiv 2506.20701, 2505.23614",
        f"{STOCHASTIC}; {COUNTED}",
    ),
    "depth-first": _trees(
        "depth_first:DepthFirst",
        "Depth-first search",
        "follow one image; where it looks bad, go back and retry",
        "arXiv 2505.23614",
        PATH,
    ),
    "search-over-paths": _trees(
        "search_over_paths:SearchOverPaths",
        "Search over paths",
        "add noise in several ways, denoise, keep the best",
        "arXiv 2501.09732",
        PATH,
    ),
    "zero-order": _noise(
        "zero_order:ZeroOrder",
        "Zero-order search",
        "try noises near that of the best image",
        "arXiv 2501.09732",
        COUNTED,
    ),
    "evolution": _noise(
        "evolution:Evolution",
        "Evolution of noises",
        "breed noises from the best, finish the best of all",
        "after arXiv 2505.17618",
    ),
    "noise-ascent": _noise(
        "noise_ascent:NoiseAscent",
        "Noise ascent",
        "turn the initial noise along the reward's gradient",
        "after arXiv 2406.04312",
        "a kernel that draws no noise (pipeline, ode); a differentiable reward",
    ),
    "ttsnap-rbf": _combined(
        "nested:Nested",
        "TTSnap + RBF",
        "prune many seeds early, then branch from the survivors",
        "arXiv 2511.22242, 2503.19385; their union is ours",
        f"{STOCHASTIC}; {COUNTED}",
        fixed={"first": {"name": "seed-pruning"}, "second": {"name": "rbf"}},
        defaults={"n": None, "share": 0.5, "keep": (0.4, 0.25), "levels": (0.9, 0.7), "streams": 2},
        renamed={
            "n": "first.n",
            "keep": "first.keep",
            "levels": "first.levels",
            "streams": "second.streams",
        },
        texts={
            "n": "Seeds; None for as many as `share` of the budget prunes.",
            "share": "Of the budget, for pruning [ours].",
            "keep": "Share of the seeds kept at each check, in (0, 1] [ours].",
            "levels": (
                "Noise levels of the checks, falling; at the last the streams take over [ours]."
            ),
            "streams": "Paths that go on, from the best of the survivors [arXiv 2503.19385].",
        },
        about=(
            "TTSnap, then RBF: seeds are pruned early, as in TTSnap (arXiv 2511.22242), by a"
            " noise-aware reward or any other. Rollover budget forcing (arXiv 2503.19385) takes the"
            " survivors over, a stream from each, at the step where they are. It plans with the"
            " rest of the budget."
        ),
    ),
    "nested": _combined(
        "nested:Nested",
        "Nested",
        "choose noises by one algorithm, go on by another",
        "arXiv 2506.01320",
        STOCHASTIC,
    ),
    "refined": _combined(
        "refined:Refined",
        "Refined",
        "search by one algorithm, improve its best by another",
        "ours",
        "what its parts need: by default a differentiable reward",
    ),
    "keep-all": _study(
        "keep_all:KeepAll", "Keep all", "finish every seed, score every step (for recordings)"
    ),
}
"""Names for --algorithm and search=, group by group."""
