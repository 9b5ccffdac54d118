"""Diffusion coefficients g(t) of the reverse SDE: how much noise a step draws and takes away (kernels.Sde)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ttsnap.sampling.interpolants import Interpolant


def power(scale: float = 3.0, exponent: float = 2.0) -> Callable[[Tensor], Tensor]:
    """Diffusion coefficient g(t) = scale * t ** exponent; RBF uses 3 t^2 (arXiv 2503.19385)."""
    return lambda t: scale * t**exponent


RBF_DIFFUSION = power(3.0, 2.0)
DIFFUSIONS: dict[str, Callable[[float, Interpolant], Callable[[Tensor], Tensor]]] = {
    "square": lambda scale, path: power(scale, 2.0),
    "linear": lambda scale, path: power(scale, 1.0),
    "constant": lambda scale, path: power(scale, 0.0),
    "sigma": lambda scale, path: lambda t: scale * path.sigma(t),
    "sin": lambda scale, path: lambda t: scale * torch.sin(0.5 * torch.pi * t),
    "sin2": lambda scale, path: lambda t: scale * torch.sin(0.5 * torch.pi * t) ** 2,
    "exp": lambda scale, path: lambda t: scale * torch.expm1(t) / torch.expm1(torch.ones_like(t)),
    "clipping": lambda scale, path: lambda t: scale * (2 * t - 1).clamp(min=0.0),
    "tan": lambda scale, path: lambda t: scale * torch.tan(0.5 * torch.pi * t.clamp(max=0.95)),
}
"""Diffusion coefficients g(t) by name, given scale and path. scale is g(1), but for "tan", which reaches 12.7 times it.

All but "sin2" are choices of RBF's code (whose "exp" is another); any function of t may be passed to Sde."""
