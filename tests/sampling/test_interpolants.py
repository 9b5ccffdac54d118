"""Conversions to 1e-12 in float64, derivatives, SNR transfer."""

from __future__ import annotations

import pytest
import torch

from ttsnap.sampling import interpolants as ip
from ttsnap.sampling.interpolants import VP, Cosine, Linear
from ttsnap.sampling.paths import INTERPOLANTS

paths = pytest.mark.parametrize("path", INTERPOLANTS.values(), ids=INTERPOLANTS)
exact = {"rtol": 1e-12, "atol": 1e-12}
T = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)


def sample(path):
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, len(T), 2, 3, generator=generator, dtype=torch.float64)
    return x0, eps, ip.rows(path.alpha(T), x0) * x0 + ip.rows(path.sigma(T), x0) * eps


@paths
def test_conversions_give_what_the_pair_has(path):
    x0, eps, x = sample(path)
    sigma, steep = ip.rows(path.sigma(T), x), ip.rows(1 + path.d_sigma(T), x)
    velocity = ip.rows(path.d_alpha(T), x) * x0 + ip.rows(path.d_sigma(T), x) * eps
    scale = 1 / sigma + 1  # what each conversion amplifies rounding by
    for found, expected in (
        (ip.eps_from_x0(path, x, x0, T), eps),
        (ip.velocity_from_x0(path, x, x0, T) / steep, velocity / steep),
        (ip.score_from_x0(path, x, x0, T) * sigma, -eps),
    ):
        torch.testing.assert_close(found / scale, expected / scale, **exact)


@paths
def test_derivatives_are_those_of_autograd(path):
    for value, derivative in ((path.alpha, path.d_alpha), (path.sigma, path.d_sigma)):
        t = T.clone().requires_grad_()
        torch.testing.assert_close(
            derivative(T), torch.autograd.grad(value(t).sum(), t)[0], **exact
        )


@paths
def test_ends_and_snr_inverse(path):
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert (path.alpha(ends)[0], path.sigma(ends)[0]) == (1, 0)
    assert (path.alpha(ends)[1] < 0.01, path.sigma(ends)[1] > 0.9999) == (True, True)
    torch.testing.assert_close(path.inverse_ratio(ip.ratio(path, T)), T, **exact)
    assert path.inverse_ratio(torch.tensor([float("inf")], dtype=torch.float64)) == 0


@pytest.mark.parametrize("source", INTERPOLANTS.values(), ids=INTERPOLANTS)
@pytest.mark.parametrize("target", INTERPOLANTS.values(), ids=INTERPOLANTS)
def test_transfer_keeps_x0_and_eps(source, target):
    # Nearer to 1 a time itself no longer tells signal-to-noise ratios apart (LinearVP: 1 - t is
    # about rho^2 / 2).
    s = T[T < 0.95]
    x0, eps, x = (v[: len(s)] for v in sample(target))
    t, scale = ip.transfer(source, target, s)
    there = ip.rows(source.alpha(t), x) * x0 + ip.rows(source.sigma(t), x) * eps
    torch.testing.assert_close(there * ip.rows(scale, x), x, **exact)
    torch.testing.assert_close(ip.level(source, t), ip.level(target, s), **exact)
    back, inverse = ip.transfer(target, source, t)
    torch.testing.assert_close(back, s, **exact)
    torch.testing.assert_close(scale * inverse, torch.ones_like(scale), **exact)


def test_discrete_schedule_is_exact_at_its_timesteps_and_inverts():
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    kept = (1 - betas).cumprod(0)
    path, t, infinite = (
        ip.Discrete(kept),
        torch.linspace(0, 1, 1000, dtype=torch.float64),
        float("inf"),
    )
    torch.testing.assert_close(path.alpha(t) ** 2, kept, **exact)
    torch.testing.assert_close(path.alpha(T) ** 2 + path.sigma(T) ** 2, torch.ones_like(T), **exact)
    torch.testing.assert_close(path.inverse_ratio(ip.ratio(path, T)), T, **exact)
    assert path.inverse_ratio(torch.tensor([infinite, 0.0], dtype=torch.float64)).tolist() == [
        0.0,
        1.0,
    ]
    # Derivatives between the timesteps, by central differences within one piece.
    middle, h = (torch.arange(10, 990, 7, dtype=torch.float64) + 0.5) / 999, 1e-6
    for value, derivative in ((path.alpha, path.d_alpha), (path.sigma, path.d_sigma)):
        slope = (value(middle + h) - value(middle - h)) / (2 * h)
        torch.testing.assert_close(derivative(middle), slope, rtol=1e-6, atol=1e-8)
    with pytest.raises(ValueError, match="falling"):
        ip.Discrete(kept.flip(0))


def test_level_is_rectified_flow_time():
    torch.testing.assert_close(ip.level(Linear(), T), T, **exact)
    assert ip.level(Cosine(), torch.tensor([0.5], dtype=torch.float64)) == pytest.approx(0.5)
    with pytest.raises(ValueError, match=r"beta_max, got 2\.0, 1\.0"):
        VP(2.0, 1.0)
