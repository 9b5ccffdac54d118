"""Protocols of papers as tables, for `ttsnap bench --preset`: options of the command, and the algorithms of each part.

DOG-Trim: arXiv 2511.22242, its later version. 35 steps at 512 x 512 pixels; estimates are scored after every 7, and
half of the particles kept. Its baselines get what it takes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ttsnap.files.settings import Json

LOOKS = (6, 13, 20, 27)
"""Steps whose evaluation is the 7th, 14th, 21st and 28th."""


def halves(n: int) -> list[float]:
    """The share that each look keeps, of n at first: max(1, round(n / 2)), halves to even as in the authors' code."""
    shares = []
    for _ in LOOKS:
        kept = max(1, round(n / 2))
        shares.append(kept / n)
        n = kept
    return shares


def dogtrim(n: int) -> tuple[str, ...]:
    """DOG-Trim with n seeds, and its baselines, as `--algorithms` takes them."""
    looks, keep = (str(list(of)).replace(" ", "") for of in (LOOKS, halves(n)))
    group = math.ceil(n / math.ceil(n / 8))  # theirs are of 8 but for the last; ours are equal and evaluated whole
    one = "keep=[0.0001]"  # the best one
    near = "zero-order n=2 restart=0 mix=0.98869"  # sqrt(1 - .15^2)
    smc = f"smc steps={looks} lam=0.5 ess=1"
    return (
        f"seed-pruning n={n} keep={keep} steps={looks} variety=repel:{group} name=DOG-Trim",
        "best-of-n",
        f"{near} name='noise, greedy'",
        f"{near} eps=0.4 name='noise, epsilon-greedy'",
        "search-over-paths streams=1 legs=[10,5] kernel=ode name=paths",
        "code streams=1 block=7 kernel=sde name='greedy, SDE'",
        f"seed-pruning {one} steps=[6] name='greedy, ODE'",
        f"{smc} kernel=sde name='SMC, SDE'",
        f"{smc} unique=true n={round(2 * n / 3)} name='SMC, ODE'",
        f"seed-pruning {one} steps=[14] name='early selection'",
    )


_EMBEDDED: Mapping[str, Json] = {
    "steps": 35,
    "utility": "rank_sum",
    "as_first": True,
    "reward": ["scenes", "scenes-strict", "scenes-noise-aware"],
}
_FLUX: Mapping[str, Json] = {
    "model": "black-forest-labs/FLUX.1-dev",
    "guidance": 3.5,
    "height": 512,
    "width": 512,
}
PRESETS: Mapping[str, Mapping[str, Json]] = {
    "dogtrim": {**_EMBEDDED, **_FLUX, "reward": ["hpsv2.1", "pickscore", "imagereward"]},
    "dogtrim-embedded": _EMBEDDED,
}
"""Options of `ttsnap bench` by preset; the second is a rehearsal on the embedded model, by its own rewards."""
PARTS: Mapping[str, Mapping[str, Sequence[str]]] = {
    name: {f"n={n}": dogtrim(n) for n in (5, 10, 15, 20)} for name in PRESETS
}
"""The algorithms of each part of a preset. Each part is a benchmark in a folder of its name."""
