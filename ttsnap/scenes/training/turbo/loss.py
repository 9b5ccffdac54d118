"""What the few-step model learns: to go straight from a start to where the guided teacher ends (arXiv 2209.03003)."""

from __future__ import annotations

from torch import Tensor


def on_the_way(start: Tensor, end: Tensor, share: Tensor) -> Tensor:
    """Points (N, ...) of the straight lines from starts (N, ...) to ends (N, ...).

    share: (N,), of the noise level of the start that is left: 1 is the start, 0 the end.
    """
    left = share.view(-1, *[1] * (start.ndim - 1))
    return end + left * (start - end)


def straight_velocity(start: Tensor, end: Tensor, level: Tensor) -> Tensor:
    """The velocity (N, ...) along these lines, per noise level; x - level * velocity is the end all along."""
    return (start - end) / level.view(-1, *[1] * (start.ndim - 1))


def velocity_loss(found: Tensor, start: Tensor, end: Tensor, level: Tensor) -> Tensor:
    """Mean squared error of velocities (N, ...), a scalar."""
    return (found - straight_velocity(start, end, level)).pow(2).mean()
