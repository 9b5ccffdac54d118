"""Losses of predictions and targets (P, G): P groups of G seeds, each group of one prompt at one noise level."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ttsnap.distill.config import LossConfig


def centre(values: Tensor) -> Tensor:
    """(P, G) less each group's mean."""
    return values - values.mean(1, keepdim=True)


def mse(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error, a scalar."""
    return (prediction - target).square().mean()


def mse_uncertain(prediction: Tensor, target: Tensor, log_variance: Tensor) -> Tensor:
    """Mean of exp(-s) (p - t)^2 + s: twice a Gaussian's negative log-likelihood less a constant (arXiv 1703.04977).

    log_variance: s, broadcastable to (P, G); the best one is the log of the mean squared error.
    """
    return (torch.exp(-log_variance) * (prediction - target).square() + log_variance).mean()


def pairwise(prediction: Tensor, target: Tensor, temperature: float = 1.0) -> Tensor:
    """Bradley-Terry: mean cross-entropy over the pairs of a group, under soft labels sigmoid((t_i - t_j) / T).

    T divides predictions, too, so that the loss is smallest where differences of predictions equal those of targets.
    """
    i, j = torch.triu_indices(target.shape[1], target.shape[1], 1, device=target.device)
    label = torch.sigmoid((target[:, i] - target[:, j]) / temperature)
    logit = (prediction[:, i] - prediction[:, j]) / temperature
    return functional.binary_cross_entropy_with_logits(logit, label)


class Uncertainty(nn.Module):
    """Log-variance of the error, a function of the noise level: straight lines between evenly spaced knots."""

    def __init__(self, knots: int = 11) -> None:
        super().__init__()
        self.log_variance = nn.Parameter(torch.zeros(knots))

    def forward(self, level: Tensor) -> Tensor:
        """Levels in [0, 1] -> log-variances of the same shape."""
        last = len(self.log_variance) - 1
        at = level.clamp(0, 1).to(self.log_variance.dtype) * last
        below = at.floor().long().clamp(max=last - 1)
        return torch.lerp(self.log_variance[below], self.log_variance[below + 1], at - below)


def group_loss(prediction: Tensor, target: Tensor, loss: LossConfig, log_variance: Tensor | None = None) -> Tensor:
    """The configured loss, plus `loss.plain` times the mean squared error of the uncentred scores.

    log_variance: of the error, for "mse-uncertain" only.
    """
    p, t = (centre(prediction), centre(target)) if loss.centred else (prediction, target)
    if loss.name == "pairwise":
        configured = pairwise(prediction, target, loss.temperature)
    else:
        configured = mse(p, t) if log_variance is None else mse_uncertain(p, t, log_variance)
    return configured + loss.plain * mse(prediction, target) if loss.plain else configured
