"""Kernels against diffusers' own step and against Gaussian mixtures with the exact score."""

from __future__ import annotations

from collections.abc import Sequence
from unittest import mock

import pytest
import torch
from diffusers import DDIMScheduler, EulerAncestralDiscreteScheduler, FlowMatchEulerDiscreteScheduler

from ttsnap.pipelines.latents.scheduler_kernel import FlowEuler
from ttsnap.sampling.interpolants import VP, Cosine, Discrete, Interpolant, Linear, forward, rows
from ttsnap.sampling.kernels import Ddim, Kernel, Ode, Prediction, Renoise, Sde, make_kernel
from ttsnap.sampling.mixture import MixtureDenoiser
from ttsnap.sampling.paths import DIFFUSIONS as NAMES
from ttsnap.sampling.paths import power
from ttsnap.sampling.rng import noise, seeded

PATHS: list[Interpolant] = [Linear(), VP(), Cosine()]


def x0_from_eps(path: Interpolant, x: torch.Tensor, eps: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """The x0 estimate (N, ...) of a noise estimate `eps` at x (N, ...) and times t (N,): (x - sigma eps) / alpha."""
    return (x - rows(path.sigma(t), x) * eps) / rows(path.alpha(t), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_euler_is_diffusers_step_at_every_row(dtype: torch.dtype, shift: float) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(7)
    kernel = FlowEuler(scheduler.sigmas)
    x, out = torch.randn(2, 7, 4, 8, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    k = torch.randperm(7, generator=torch.Generator().manual_seed(1))
    ours, _ = kernel.step(x, Prediction(out, out), k, [], [])
    for i in range(7):
        one = FlowMatchEulerDiscreteScheduler(shift=shift)
        one.set_timesteps(7)
        stock = one.step(out[i : i + 1], one.timesteps[k[i]], x[i : i + 1], return_dict=False)[0]
        assert torch.equal(ours[i : i + 1], stock)


def test_renoising_has_the_moments_of_diffusers_stochastic_euler() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)
    scheduler.set_timesteps(5)
    x, out = torch.full((4000, 1), 0.7), torch.full((4000, 1), -0.2)
    k = torch.full((4000,), 2)
    sigmas, keys = scheduler.sigmas.double(), [(0, i) for i in range(4000)]
    ours, _ = Renoise(Linear(), sigmas).step(x, Prediction(out, x - sigmas[2].float() * out), k, keys, [])
    torch.manual_seed(0)
    stock = scheduler.step(out, scheduler.timesteps[2], x, return_dict=False)[0]
    assert ours.mean() == pytest.approx(float(stock.mean()), abs=0.03)
    assert ours.std() == pytest.approx(float(stock.std()), abs=0.03)


def run(kernel: Kernel, denoiser: MixtureDenoiser, n: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    t0 = denoiser.times[:1]
    # Start from the exact marginal at the first time: VP does not quite reach pure noise.
    component = torch.multinomial(denoiser.weights, n, replacement=True, generator=generator)
    x0 = denoiser.means[component] + denoiser.stds[component, None] * torch.randn(
        n, denoiser.means.shape[1], generator=generator, dtype=torch.float64
    )
    eps = torch.randn(x0.shape, generator=generator, dtype=torch.float64)
    x = denoiser.path.alpha(t0) * x0 + denoiser.path.sigma(t0) * eps
    cond = torch.zeros(n, dtype=torch.long)
    # Noise by the key of each row, which tests below hold to its key, takes most of the time of thousands.
    with mock.patch("ttsnap.sampling.rng.noise", lambda _, x: torch.randn(x.shape, generator=generator, dtype=x.dtype)):
        for step in range(denoiser.grid.steps):
            k = torch.full((n,), step)
            x, _ = kernel.step(x, denoiser.predict(x, k, cond), k, [], [None] * n)
    return x


def mixture(path: Interpolant, steps: int) -> MixtureDenoiser:
    means = torch.tensor([[1.5, 0.0], [-1.0, 1.0], [0.0, -1.5]])
    stds, weights = torch.tensor([0.3, 0.5, 0.2]), torch.tensor([0.5, 0.3, 0.2])
    # Finer steps towards the data, where the mixture's score is sharp.
    times = torch.linspace(1, 0, steps + 1, dtype=torch.float64) ** 1.5
    return MixtureDenoiser(means, stds, weights, steps=times, path=path)


def check_moments(x: torch.Tensor, denoiser: MixtureDenoiser) -> None:
    w, m, s = denoiser.weights, denoiser.means, denoiser.stds
    mean = (w[:, None] * m).sum(0)
    covariance = torch.einsum("i,ij,ik->jk", w, m - mean, m - mean) + (w * s**2).sum() * torch.eye(2)
    n = len(x)
    # Five standard errors of sampling, and 0.01 for the steps being finite.
    assert torch.allclose(x.mean(0), mean, atol=5 * float(covariance.max() / n) ** 0.5 + 0.01)
    assert torch.allclose(x.T.cov(), covariance, atol=5 * float(covariance.max()) * (2 / n) ** 0.5 + 0.01)


@pytest.mark.parametrize("path", PATHS, ids=["linear", "vp", "cosine"])
def test_ode_reproduces_the_mixture(path: Interpolant) -> None:
    denoiser = mixture(path, 250)
    check_moments(run(Ode(path, denoiser.times), denoiser, 4000), denoiser)


DIFFUSIONS = {"3t^2": power(3, 2), "t": power(1, 1), "0": power(0, 1)}


def crossed(names: Sequence[str], fast: set[tuple[str, str]]) -> list[object]:
    """Each of the paths with each of these; what is not `fast` is marked slow."""
    paths = ["linear", "vp", "cosine"]
    return [
        pytest.param(name, path, marks=[] if (name, kind) in fast else pytest.mark.slow, id=f"{name}-{kind}")
        for name in names
        for kind, path in zip(paths, PATHS, strict=True)
    ]


@pytest.mark.parametrize(
    ("g", "path"),
    crossed(list(DIFFUSIONS), {("3t^2", "linear"), ("t", "vp"), ("3t^2", "cosine")}),
)
def test_sde_marginals_do_not_depend_on_g(g: str, path: Interpolant) -> None:
    denoiser = mixture(path, 120)
    check_moments(run(Sde(path, denoiser.times, DIFFUSIONS[g]), denoiser, 4000), denoiser)


@pytest.mark.parametrize(("name", "path"), crossed(["sigma"], {("sigma", "vp")}))
def test_named_diffusions_keep_the_marginals(name: str, path: Interpolant) -> None:
    denoiser = mixture(path, 120)
    check_moments(run(make_kernel(f"sde:{name}:1", denoiser), denoiser, 4000), denoiser)


@pytest.mark.parametrize(("eta", "path"), crossed(["0.4", "1.0"], {("0.4", "linear"), ("1.0", "vp")}))
def test_ddim_reproduces_the_mixture(eta: str, path: Interpolant) -> None:
    denoiser = mixture(path, 120)
    check_moments(run(Ddim(path, denoiser.times, float(eta)), denoiser, 4000), denoiser)


def test_ddim_is_diffusers_step() -> None:
    """eps-models in discrete time, and Euler ancestral in its own scaling."""
    stock = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False,
                          set_alpha_to_one=False)  # fmt: skip
    stock.set_timesteps(5)
    path = Discrete(stock.alphas_cumprod)
    times = torch.cat([stock.timesteps.double() / 999, torch.zeros(1, dtype=torch.float64)])
    x, eps, noise_ = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for k in range(4):
        at = torch.full((6,), k)
        x0 = x0_from_eps(path, x, eps, times[at])
        for eta in (0.0, 0.7, 1.0):
            expected = stock.step(eps, stock.timesteps[k], x, eta=eta, variance_noise=noise_).prev_sample
            with mock.patch("ttsnap.sampling.rng.noise", return_value=noise_):
                ours, _ = Ddim(path, times, eta).step(x, Prediction(eps, x0), at, [], [])
            torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-5)
    assert torch.equal(Ddim(path, times).step(x, Prediction(eps, x0), torch.full((6,), 4), [], [])[0], x0)


def test_euler_ancestral_is_ddim_with_eta_1() -> None:
    stock = EulerAncestralDiscreteScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    stock.set_timesteps(5)
    path, sigmas = Discrete(stock.alphas_cumprod), stock.sigmas.double()
    times = torch.cat([path.inverse_ratio(1 / sigmas[:-1]), torch.zeros(1, dtype=torch.float64)])
    y, eps = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for k in range(4):
        at, alpha = torch.full((6,), k), path.alpha(times)
        stock.is_scale_input_called, stock._step_index = True, k
        expected = stock.step(eps, stock.timesteps[k], y, generator=seeded(1)).prev_sample.double()
        drawn = torch.randn(y.shape, generator=seeded(1), dtype=y.dtype)
        x = alpha[k] * y
        with mock.patch("ttsnap.sampling.rng.noise", return_value=drawn):
            ours, _ = Ddim(path, times).step(x, Prediction(eps, x0_from_eps(path, x, eps, times[at])), at, [], [])
        torch.testing.assert_close(ours / alpha[k + 1], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("path", PATHS, ids=["linear", "vp", "cosine"])
def test_forward_noising_is_exact(path: Interpolant) -> None:
    t, s = torch.full((6400,), 0.3, dtype=torch.float64), torch.full((6400,), 0.8, dtype=torch.float64)
    x = torch.full((6400, 1), 2.0, dtype=torch.float64)
    moved = forward(path, x, t, s, [(5, i) for i in range(6400)])
    ratio = path.alpha(s[:1]) / path.alpha(t[:1])
    spread = (path.sigma(s[:1]) ** 2 - (ratio * path.sigma(t[:1])) ** 2).sqrt()
    assert float(moved.mean()) == pytest.approx(float(2 * ratio), abs=5 * float(spread) / 80)
    assert float(moved.std()) == pytest.approx(float(spread), rel=0.04)
    assert torch.equal(forward(path, x[:2], t[:2], t[:2], [(0,), (1,)]), x[:2])


def test_renoise_draws_all_noise_anew() -> None:
    times = torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)
    x, x0 = torch.randn(2, 4000, 1, generator=seeded(0), dtype=torch.float64)
    keys = [(7, i) for i in range(4000)]
    moved, _ = Renoise(Linear(), times).step(x, Prediction(x, x0), torch.zeros(4000, dtype=torch.long), keys, [])
    torch.testing.assert_close(moved, 0.5 * x0 + 0.5 * noise(keys, x0))


def test_noise_may_begin_on_the_way() -> None:
    """Before it does, the steps are the ODE's to the last bit; after it, those of the SDE that draws from the start."""
    denoiser = mixture(Linear(), 10)
    ode, whole = make_kernel("ode", denoiser), make_kernel("sde:square:3", denoiser)
    late = make_kernel("sde:square:3:0.6", denoiser)
    x, keys = denoiser.init_latents([seeded(i) for i in range(5)]), [(i, 0, 7) for i in range(5)]
    for k in range(10):
        at = torch.full((5,), k)
        prediction = denoiser.predict(x, at, torch.zeros(5, dtype=torch.long))
        other = ode if denoiser.times[k] > 0.6 + 1e-6 else whole
        found, expected = (kernel.step(x, prediction, at, keys, [None] * 5)[0] for kernel in (late, other))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    for spec in ("sde:square:3:0", "sde:square:3:1.5", "sde:square:3:x", "sde:square:3:0.7:1"):
        with pytest.raises(ValueError, match=r"unknown kernel"):
            make_kernel(spec, denoiser)


@pytest.mark.parametrize("spec", ["ode", "sde", "ddim:0.3", "ancestral", "renoise", "sde:constant:1", "sde:linear"])
def test_kernels_by_name(spec: str) -> None:
    kernel = make_kernel(spec, mixture(Linear(), 4))
    assert kernel.stochastic == (spec != "ode")
    assert make_kernel(kernel, None) is kernel


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
    ],
)
def test_unknown_kernels_are_named(spec: str) -> None:
    with pytest.raises(ValueError, match="unknown kernel"):
        make_kernel(spec, mixture(Linear(), 4))


@pytest.mark.parametrize("spec", ["sde:square:1e308", "sde:square:1e308:0.5", "sde:sigma:1e9"])
def test_noise_under_which_latents_overflow_is_refused(spec: str) -> None:
    denoiser = mixture(Linear(), 8)
    with pytest.raises(ValueError, match=f"kernel '{spec}' draws so much noise that latents overflow in 8 steps"):
        make_kernel(spec, denoiser)
    # The test can fail: such steps give no numbers.
    kernel = Sde(Linear(), denoiser.times, power(1e20))
    assert kernel.growth() > 1e38
    assert not torch.isfinite(run(kernel, denoiser, 4).float()).all()


@pytest.mark.parametrize("steps", [2, 20])
@pytest.mark.parametrize("name", NAMES)
def test_noise_of_every_name_at_its_own_scale_is_taken(name: str, steps: int) -> None:
    make_kernel(f"sde:{name}", mixture(Linear(), steps))


def test_wrong_drift_would_be_seen() -> None:
    # The test can fail: without the score term the marginals are wrong.
    denoiser = mixture(Linear(), 120)

    class Broken(Sde):
        def step(self, x, prediction, k, keys, state):  # type: ignore[no-untyped-def]
            h = (self.times[k] - self.times[k + 1])[:, None]
            g = self.g(self.times[k])[:, None]
            return x - prediction.out * h + g * h.sqrt() * torch.randn_like(x), state

    with pytest.raises(AssertionError):
        check_moments(run(Broken(Linear(), denoiser.times), denoiser, 4000), denoiser)


def test_noise_belongs_to_the_key() -> None:
    like = torch.empty(3, 5)
    a = noise([(1, 0, 0), (1, 1, 0), (1, 0, 1)], like)
    b = noise([(1, 0, 1), (1, 0, 0)], like)
    assert torch.equal(a[0], b[1])
    assert torch.equal(a[2], b[0])
    assert not torch.equal(a[0], a[1])
    assert a.dtype == torch.float32
    assert noise([(0,)], like.double()).dtype == torch.float64
