"""Paths between data and noise by name, the points of a search on one, and how much noise its steps
draw."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ttsnap.core.names import unknown
from ttsnap.sampling.interpolants import VP, Cosine, Interpolant, Linear, LinearVP

INTERPOLANTS: dict[str, Interpolant] = {
    "linear": Linear(),
    "vp": VP(),
    "cosine": Cosine(),
    "linear-vp": LinearVP(),
}
TIMES = ("pipeline", "uniform", "sqrt")


def make_path(path: str | Interpolant) -> Interpolant:
    """By a name of INTERPOLANTS, or an Interpolant. ValueError for unknown names."""
    if not isinstance(path, str):
        return path
    if path not in INTERPOLANTS:
        raise ValueError(unknown("path", path, INTERPOLANTS))
    return INTERPOLANTS[path]


def times_on(path: Interpolant, times: str | Tensor, levels: Tensor) -> Tensor:
    """Times (K+1,) float64 on `path`: where each of the K steps starts, then 0.

    levels (K,) float64: the noise levels at which the model's own K steps start. times: "pipeline",
    the points of these levels; "uniform", 1 - i/K; "sqrt", sqrt(1 - (i/K)^2), which stays near the
    noise, as RBF does with "vp"; or (K+1,), falling from at most 1 to 0. ValueError for unknown
    names, and for times that do not end with 0.
    """
    steps = torch.arange(len(levels), dtype=torch.float64) / len(levels)
    if isinstance(times, Tensor):
        starts = times.double()[:-1]
        if float(times[-1]) != 0:
            raise ValueError(f"times must end with 0, got {times.tolist()}")
    elif times == "pipeline":
        starts = path.inverse_ratio(1 / levels - 1)
        # Where the path begins with less noise than the model, early points are spread evenly
        # before the next one.
        early = int((starts >= 1).sum())
        following = starts[early] if early < len(starts) else starts.new_zeros(())
        starts[:early] = 1 - (1 - following) * torch.arange(early) / max(1, early)
    elif times in TIMES:
        starts = 1 - steps if times == "uniform" else torch.sqrt(1 - steps**2)
    else:
        raise ValueError(unknown("times", times, TIMES))
    return torch.cat([starts, torch.zeros(1, dtype=torch.float64)])


def power(scale: float = 3.0, exponent: float = 2.0) -> Callable[[Tensor], Tensor]:
    """Diffusion coefficient g(t) = scale * t ** exponent; RBF uses 3 t^2 (arXiv 2503.19385)."""
    return lambda t: scale * t**exponent


RBF_DIFFUSION = power(3.0, 2.0)
DIFFUSIONS: dict[str, Callable[[float, Interpolant], Callable[[Tensor], Tensor]]] = {
    "square": lambda scale, path: power(scale, 2.0),
    "linear": lambda scale, path: power(scale, 1.0),
    "constant": lambda scale, path: power(scale, 0.0),
    "sigma": lambda scale, path: lambda t: scale * path.sigma(t),
}
"""Diffusion coefficients g(t) by name, given scale and path; scale is g(1). Any function of t may
be passed to Sde."""
