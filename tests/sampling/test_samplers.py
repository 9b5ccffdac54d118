"""Kernels against diffusers' own step and against Gaussians with the exact score, and that of their
mixtures."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from torch import distributions

from ttsnap.pipelines.latents.scheduler_kernel import FlowEuler
from ttsnap.sampling.interpolants import VP, Cosine, Discrete, Linear, forward
from ttsnap.sampling.kernels import Ddim, Ode, Prediction, Renoise, Sde, make_kernel
from ttsnap.sampling.mixture import MixtureDenoiser
from ttsnap.sampling.paths import DIFFUSIONS, INTERPOLANTS, power
from ttsnap.sampling.rng import noise, seeded

PATHS = {"linear": Linear(), "vp": VP(), "cosine": Cosine()}
VP_BETAS = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
}


def drawing(drawn):
    return mock.patch("ttsnap.sampling.rng.noise", return_value=drawn)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_euler_is_diffusers_step_at_every_row(dtype, shift):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(7)
    kernel = FlowEuler(scheduler.sigmas)
    x, out = torch.randn(2, 7, 4, 8, 8, generator=seeded(0)).to(dtype)
    k = torch.randperm(7, generator=seeded(1))
    ours, _ = kernel.step(x, Prediction(out, out), k, [], [])
    for i in range(7):
        one = FlowMatchEulerDiscreteScheduler(shift=shift)
        one.set_timesteps(7)
        stock = one.step(out[i : i + 1], one.timesteps[k[i]], x[i : i + 1], return_dict=False)[0]
        assert torch.equal(ours[i : i + 1], stock)


def test_renoising_is_diffusers_stochastic_euler():
    scheduler = FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)
    scheduler.set_timesteps(5)
    x, out = torch.randn(2, 6, 4, generator=seeded(0))
    stock = scheduler.step(out, scheduler.timesteps[2], x, generator=seeded(1), return_dict=False)[
        0
    ]
    sigmas, k = scheduler.sigmas.double(), torch.full((6,), 2)
    with drawing(torch.randn(6, 4, generator=seeded(1))):
        ours, _ = Renoise(Linear(), sigmas).step(
            x, Prediction(out, x - sigmas[2].float() * out), k, [], []
        )
    torch.testing.assert_close(ours, stock)


def test_ddim_is_diffusers_step():
    stock = DDIMScheduler(**VP_BETAS, clip_sample=False, set_alpha_to_one=False)
    stock.set_timesteps(5)
    path = Discrete(stock.alphas_cumprod)
    times = torch.cat([stock.timesteps.double() / 999, torch.zeros(1, dtype=torch.float64)])
    x, eps, drawn = torch.randn(3, 6, 4, generator=seeded(0), dtype=torch.float64)
    for k in range(4):
        at = torch.full((6,), k)
        x0 = (x - path.sigma(times[k]) * eps) / path.alpha(times[k])
        for eta in (0.0, 0.7, 1.0):
            expected = stock.step(
                eps, stock.timesteps[k], x, eta=eta, variance_noise=drawn
            ).prev_sample
            with drawing(drawn):
                ours, _ = Ddim(path, times, eta).step(x, Prediction(eps, x0), at, [], [])
            torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-5)
    assert torch.equal(
        Ddim(path, times).step(x, Prediction(eps, x0), torch.full((6,), 4), [], [])[0], x0
    )


def test_euler_ancestral_is_ddim_with_eta_1():
    """In its own scaling."""
    stock = EulerAncestralDiscreteScheduler(**VP_BETAS)
    stock.set_timesteps(5)
    path, sigmas = Discrete(stock.alphas_cumprod), stock.sigmas.double()
    times = torch.cat([path.inverse_ratio(1 / sigmas[:-1]), torch.zeros(1, dtype=torch.float64)])
    y, eps = torch.randn(2, 6, 4, generator=seeded(0), dtype=torch.float64)
    for k in range(4):
        at, alpha, sigma = torch.full((6,), k), path.alpha(times), path.sigma(times)
        stock.is_scale_input_called, stock._step_index = True, k
        expected = stock.step(eps, stock.timesteps[k], y, generator=seeded(1)).prev_sample.double()
        x = alpha[k] * y
        with drawing(torch.randn(y.shape, generator=seeded(1), dtype=y.dtype)):
            ours, _ = Ddim(path, times).step(
                x, Prediction(eps, y - sigma[k] / alpha[k] * eps), at, [], []
            )
        torch.testing.assert_close(ours / alpha[k + 1], expected, atol=1e-5, rtol=1e-5)


def ending(kernel, path, mean, std):
    """Mean and deviation of what the chain ends in for data N(mean, std^2): linear, so exact for
    its steps."""
    times = kernel.times
    denoiser = MixtureDenoiser(
        torch.tensor([[mean]]), torch.tensor([std]), torch.ones(1), steps=times, path=path
    )
    a, s, zero = path.alpha(times[0]), path.sigma(times[0]), torch.zeros(2, dtype=torch.long)
    mu, var, ends = a * mean, a**2 * std**2 + s**2, torch.tensor([[0.0], [1.0]]).double()
    for k in range(len(times) - 1):
        prediction = denoiser.predict(ends, zero + k, zero)
        if isinstance(kernel, Ode):
            (at0, at1), drawn = kernel.step(ends, prediction, zero + k, [], [])[0], 0.0
        else:
            (at0, at1), (drawn, _) = kernel.moments(ends, prediction, zero + k)
        mu, var = (at1 - at0) * mu + at0, (at1 - at0) ** 2 * var + drawn**2
    return float(mu), float(var.sqrt())


def fine(steps):
    """Times with finer steps towards the data, where the score is sharp."""
    return torch.linspace(1, 0, steps + 1, dtype=torch.float64) ** 1.5


CHAINS = {
    "ode": Ode,
    "sde:3t^2": lambda path, times: Sde(path, times, power(3, 2)),
    "sde:t": lambda path, times: Sde(path, times, power(1, 1)),
    "sde:sigma": lambda path, times: Sde(path, times, DIFFUSIONS["sigma"](1.0, path)),
    "sde:late": lambda path, times: Sde(path, times, power(3, 2), begin=0.6),
    "ddim:0.4": lambda path, times: Ddim(path, times, 0.4),
    "ddim:1": Ddim,
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("chain", CHAINS)
def test_many_steps_end_in_the_data(chain, path):
    found = ending(CHAINS[chain](PATHS[path], fine(150)), PATHS[path], 1.5, 0.3)
    assert found == pytest.approx((1.5, 0.3), abs=0.012)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_the_estimate_of_a_mixture_is_tweedies(path):
    means, stds, w = (
        torch.tensor([[1.5, 0.0], [-1.0, 1.0], [0.0, -1.5]]),
        torch.tensor([0.3, 0.5, 0.2]),
        torch.ones(3),
    )
    denoiser, k = MixtureDenoiser(means, stds, w * stds, steps=6, path=path), torch.arange(1, 6)
    x, t = (
        torch.randn(5, 2, generator=seeded(0), dtype=torch.float64).requires_grad_(),
        denoiser.times[k],
    )
    a, s = path.alpha(t)[:, None], path.sigma(t)[:, None]
    spread = torch.hypot(a * denoiser.stds, s)[..., None].expand(5, 3, 2)
    parts = distributions.Independent(
        distributions.Normal(a[..., None] * denoiser.means, spread), 1
    )
    law = distributions.MixtureSameFamily(
        distributions.Categorical(denoiser.weights.expand(5, 3)), parts
    )
    (score,) = torch.autograd.grad(law.log_prob(x).sum(), x)
    torch.testing.assert_close(denoiser.predict(x, k, 0 * k).x0, (x + s**2 * score) / a)


@pytest.mark.parametrize("path", INTERPOLANTS.values(), ids=INTERPOLANTS)
def test_forward_noising_is_exact(path):
    """The share of the data and the variance of the noise become those of the later time."""
    t, s = torch.tensor([[0.3, 0.3], [0.8, 0.8]], dtype=torch.float64)
    ends, keys = torch.tensor([[0.0], [1.0]], dtype=torch.float64), [(5, 1), (5, 1)]
    at0, at1 = forward(path, ends, t, s, keys)
    spread = at0 / noise(keys, ends)[0]
    assert float((at1 - at0) * path.alpha(t[0])) == pytest.approx(float(path.alpha(s[0])))
    assert float(((at1 - at0) * path.sigma(t[0])) ** 2 + spread**2) == pytest.approx(
        float(path.sigma(s[0]) ** 2)
    )
    assert torch.equal(forward(path, ends, t, t, keys), ends)


def plain(steps=4):
    return MixtureDenoiser(
        torch.tensor([[1.5, 0.0], [-1.0, 1.0]]), torch.ones(2), torch.ones(2), steps=steps
    )


def test_noise_may_begin_on_the_way():
    """Before it does, the steps are the ODE's to the last bit; after it, those of the SDE that
    draws from the start."""
    denoiser = plain(10)
    ode, whole, late = (
        make_kernel(name, denoiser) for name in ("ode", "sde:square:3", "sde:square:3:0.6")
    )
    x, keys = denoiser.init_latents([seeded(i) for i in range(5)]), [(i, 0, 7) for i in range(5)]
    for k in range(10):
        at = torch.full((5,), k)
        prediction = denoiser.predict(x, at, torch.zeros(5, dtype=torch.long))
        other = ode if denoiser.times[k] > 0.6 + 1e-6 else whole
        found, expected = (
            kernel.step(x, prediction, at, keys, [None] * 5)[0] for kernel in (late, other)
        )
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_noise_belongs_to_the_key():
    like = torch.empty(3, 5)
    a, b = noise([(1, 0, 0), (1, 1, 0), (1, 0, 1)], like), noise([(1, 0, 1), (1, 0, 0)], like)
    assert torch.equal(a[[0, 2]], b[[1, 0]])
    assert not torch.equal(a[0], a[1])


@pytest.mark.parametrize(
    "spec", ["ode", "sde", "ddim:0.3", "ancestral", "renoise", *(f"sde:{d}" for d in DIFFUSIONS)]
)
def test_kernels_by_name(spec):
    for steps in (2, 20):  # noise of every name at its own scale is taken
        kernel = make_kernel(spec, plain(steps))
    assert kernel.stochastic == (spec != "ode")
    assert make_kernel(kernel, None) is kernel  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "spec",
    [
        "euler",
        "sde:cubic",
        "sde:tan",
        "ddim:2",
        "ddim:x",
        "ode:1",
        "sde:square:a",
        "sde:square:nan",
        "sde:square:1e999",
        "sde:square:-1",
        "sde:square:3:0",
        "sde:square:3:1.5",
        "sde:square:3:x",
        "sde:square:3:0.7:1",
    ],
)
def test_unknown_kernels_are_named(spec):
    with pytest.raises(ValueError, match=f"unknown kernel '{spec}'"):
        make_kernel(spec, plain())


@pytest.mark.parametrize("spec", ["sde:square:1e308", "sde:square:1e308:0.5", "sde:sigma:1e9"])
def test_noise_under_which_latents_overflow_is_refused(spec):
    with pytest.raises(ValueError, match=f"kernel '{spec}' .* overflow in 8 steps"):
        make_kernel(spec, plain(8))
    assert Sde(Linear(), plain(8).times, power(1e20)).growth() > 1e38  # beyond float32
