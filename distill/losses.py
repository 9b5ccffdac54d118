"""Losses of predictions and targets (P, G): P groups of G seeds, each group of one prompt at one
noise level."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ttsnap.distill.config import LossConfig


def centre(values: Tensor) -> Tensor:
    """(P, G) less each group's mean."""
    return values - values.mean(1, keepdim=True)


def mse(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error, a scalar."""
    return (prediction - target).square().mean()


def pairwise(prediction: Tensor, target: Tensor, temperature: float = 1.0) -> Tensor:
    """Bradley-Terry: mean cross-entropy over the pairs of a group, under soft labels sigmoid((t_i -
    t_j) / T).

    T divides predictions, too, so that the loss is smallest where differences of predictions equal
    those of targets.
    """
    i, j = torch.triu_indices(target.shape[1], target.shape[1], 1, device=target.device)
    label = torch.sigmoid((target[:, i] - target[:, j]) / temperature)
    logit = (prediction[:, i] - prediction[:, j]) / temperature
    return functional.binary_cross_entropy_with_logits(logit, label)


def group_loss(prediction: Tensor, target: Tensor, loss: LossConfig) -> Tensor:
    """The configured loss, plus `loss.plain` times the mean squared error of the uncentred
    scores."""
    if loss.name == "pairwise":
        configured = pairwise(prediction, target, loss.temperature)
    elif loss.centred:
        configured = mse(centre(prediction), centre(target))
    else:
        configured = mse(prediction, target)
    return configured + loss.plain * mse(prediction, target) if loss.plain else configured
