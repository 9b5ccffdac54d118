"""Losses and schedules against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ttsnap.distill.config import LossConfig
from ttsnap.distill.losses import Uncertainty, group_loss, mse_uncertain, pairwise
from ttsnap.distill.train import SCHEDULES, scheduled


def batch(seed: int = 0, groups: int = 3, size: int = 5) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    p = torch.randn(groups, size, generator=g, dtype=torch.float64).requires_grad_()
    return p, torch.randn(groups, size, generator=g, dtype=torch.float64)


def test_mse_centred_and_plain() -> None:
    p = torch.tensor([[1.0, 3.0], [0.0, 0.0]])
    t = torch.tensor([[0.0, 0.0], [5.0, 5.0]])
    assert group_loss(p, t, LossConfig("mse", centred=False, plain=0.0)) == pytest.approx((1 + 9 + 25 + 25) / 4)
    # Less the groups' means only the first group errs, by -1 and 1.
    assert group_loss(p, t, LossConfig("mse", plain=0.0)) == pytest.approx(0.5)
    assert group_loss(p, t, LossConfig("mse", plain=0.1)) == pytest.approx(0.5 + 0.1 * 15)
    with pytest.raises(ValueError, match=r"unknown name 'l1'"):
        LossConfig("l1")


def test_uncertain_is_a_gaussian_likelihood_with_its_minimum_at_the_error() -> None:
    p, t = batch()
    s = torch.full((), 0.3, dtype=torch.float64, requires_grad=True)
    loss = mse_uncertain(p, t, s)
    normal = torch.distributions.Normal(p, torch.exp(s / 2))
    assert loss.item() == pytest.approx((-2 * normal.log_prob(t).mean() - math.log(2 * math.pi)).item())
    error = (p - t).square().mean()
    best = error.log().detach().requires_grad_()
    at_best = mse_uncertain(p, t, best)
    assert at_best.item() == pytest.approx(1 + math.log(error.item()))
    assert torch.autograd.grad(at_best, best)[0].item() == pytest.approx(0, abs=1e-12)
    (gradient,) = torch.autograd.grad(loss, p)
    torch.testing.assert_close(gradient, 2 * torch.exp(-s) * (p - t) / p.numel())


def test_uncertainty_joins_its_knots_by_lines() -> None:
    module = Uncertainty(knots=3)
    with torch.no_grad():
        module.log_variance.copy_(torch.tensor([0.0, 2.0, -2.0]))
    levels = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0, 1.5, -1.0])
    torch.testing.assert_close(module(levels), torch.tensor([0.0, 1.0, 2.0, 0.0, -2.0, -2.0, 0.0]))


def test_pairwise_gradient_value_and_minimum() -> None:
    p, t = batch()
    temperature = 0.7
    (gradient,) = torch.autograd.grad(pairwise(p, t, temperature), p)
    n, size = p.shape
    pairs = size * (size - 1) // 2
    expected = torch.zeros_like(p)
    for i in range(size):
        for j in range(size):
            if i != j:
                wrong = torch.sigmoid((p[:, i] - p[:, j]) / temperature)
                wrong = wrong - torch.sigmoid((t[:, i] - t[:, j]) / temperature)
                expected[:, i] += wrong / temperature / (n * pairs)
    torch.testing.assert_close(gradient, expected)
    # Shifted targets are a minimum.
    there = (t + 3).requires_grad_()
    (gradient,) = torch.autograd.grad(pairwise(there, t, temperature), there)
    torch.testing.assert_close(gradient, torch.zeros_like(t))
    one = pairwise(torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 0.0]]))
    q = 1 / (1 + math.exp(-1))
    assert one.item() == pytest.approx(q * math.log1p(math.exp(-2)) + (1 - q) * math.log1p(math.exp(2)))


@pytest.mark.parametrize("name", ["mse", "mse-uncertain", "pairwise"])
def test_ties_and_constant_groups_give_finite_losses_and_no_pull_apart(name: str) -> None:
    constant = torch.full((2, 4), 0.5, dtype=torch.float64)
    p = torch.zeros(2, 4, dtype=torch.float64, requires_grad=True)
    log_variance = torch.zeros(2, 4) if name == "mse-uncertain" else None
    loss = group_loss(p, constant, LossConfig(name, plain=0.0), log_variance)
    assert loss.item() == pytest.approx(math.log(2) if name == "pairwise" else 0.0)
    (gradient,) = torch.autograd.grad(loss, p)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient))
    # A tie among others: equal targets are pulled together.
    p = torch.tensor([[0.0, 1.0, 2.0]], requires_grad=True)
    target = torch.tensor([[1.0, 1.0, 2.0]])
    log_variance = torch.zeros(1, 3) if name == "mse-uncertain" else None
    (gradient,) = torch.autograd.grad(group_loss(p, target, LossConfig(name, plain=0.0), log_variance), p)
    assert gradient[0, 0] < gradient[0, 1]


def test_schedules() -> None:
    for name, middle in (("linear", 0.5), ("cosine", 0.5), ("rex", 2 / 3)):
        values = [scheduled(i, 100, schedule=name) for i in range(100)]
        assert values[0] == 1
        assert values[50] == pytest.approx(middle)
        assert sorted(set(values), reverse=True) == values
        assert scheduled(100, 100, schedule=name) == pytest.approx(0)
        assert scheduled(100, 100, schedule=name, final=0.2) == pytest.approx(0.2)
        assert scheduled(50, 100, schedule=name, final=0.2) == pytest.approx(0.2 + 0.8 * middle)
    assert scheduled(0, 100, schedule="linear", warmup=4) == pytest.approx(0.25)
    assert scheduled(3, 100, schedule="linear", warmup=4) == pytest.approx(0.97)
    assert SCHEDULES["rex"](0.9) == pytest.approx(0.1 / 0.55)
