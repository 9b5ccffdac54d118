"""Guided steps: gradients against closed forms, log ratios that keep SMC's target, books that balance."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from ttsnap import make_algorithm, search
from ttsnap.algorithms.keep_all import KeepAll
from ttsnap.algorithms.smc.smc import SMC
from ttsnap.core.prompt import Prompt
from ttsnap.core.results import Result
from ttsnap.engine.gradients import Differentiator
from ttsnap.engine.live import LiveEngine
from ttsnap.loop.budget import Budget
from ttsnap.loop.dry import DryEngine
from ttsnap.options.engine import EngineOptions
from ttsnap.recordings.replay import Recording, ReplayEngine
from ttsnap.rewards.reward_model import FunctionReward, RewardError, RewardModel
from ttsnap.sampling.guided_steps import GuidedKernel, RewardGuidance
from ttsnap.sampling.interpolants import VP, Linear
from ttsnap.sampling.kernels import Ddim, Ode, Renoise, Sde
from ttsnap.sampling.mixture import MixtureDenoiser
from ttsnap.sampling.rng import noise

ANY = [f"{kind}:1-0" for kind in ("dps:0.5", "twisted:1", "tilted:0.3", "dps:0.5:x0", "twisted:1:x0", "tilted:0.3:x0")]
A = torch.tensor([1.0, 0.5, -0.5]).double()
CENTRE = torch.tensor([0.3, 0.0, -0.2]).double()


class Plain(MixtureDenoiser):
    """Latents are the images: rewards are exact functions of x0."""

    predicted = decoded = backward = 0

    def predict(self, x: Tensor, step: Tensor, cond: Tensor) -> Any:
        self.predicted += len(x)
        if x.requires_grad:
            self.backward += len(x)
        return super().predict(x, step, cond)

    def decode(self, x0: Tensor) -> Tensor:
        self.decoded += len(x0)
        return x0[..., None, None]


def points(images: Tensor) -> Tensor:
    return images.double()[..., 0, 0]


def linear(images: Tensor, prompts: Any) -> Tensor:
    return points(images) @ A


def quadratic(images: Tensor, prompts: Any) -> Tensor:
    return -0.6 * (points(images) - CENTRE).square().sum(-1)


everywhere: dict[str, Any] = {"every": 2, "first": 1.0, "last": 0.0}
REWARD = {"linear": linear, "quadratic": quadratic}


def gaussian(steps: int = 8, **options: Any) -> Plain:
    return Plain(torch.tensor([[0.4, -0.2, 0.1]]), torch.tensor([0.5]), torch.ones(1), steps=steps, **options)


def mixture(steps: int = 8, **options: Any) -> Plain:
    means = torch.tensor([[1.0, 0.5, 0.0], [-1.0, 0.0, 0.5], [0.0, -1.0, -0.5]])
    return Plain(means, torch.tensor([0.4, 0.6, 0.3]), torch.tensor([0.5, 0.3, 0.2]), steps=steps, **options)


def tilted(mu: Tensor, v: Tensor, name: str, lam: float) -> tuple[Tensor, Tensor]:
    """log Z and the posterior mean of N(mu, v I) under exp(lam r), in closed form; mu (M, D), v (M,)."""
    if name == "linear":
        log_z = lam * mu @ A + lam**2 * v * (A @ A) / 2
        return log_z, mu + lam * v[:, None] * A
    c = 1.2 * lam
    precision = 1 / v + c
    away = (mu - CENTRE).square().sum(-1)
    log_z = -0.5 * 3 * (v * precision).log() - 0.5 * c / (v * precision) * away
    return log_z, (mu / v[:, None] + c * CENTRE) / precision[:, None]


def run(algorithm: SMC, denoiser: Plain, reward: str, guide: str | None, seed: int) -> Result:
    """One search by the DDPM kernel, with its weighted sample in `state`."""
    guidance = None if guide is None else RewardGuidance.parse(guide)
    engine = LiveEngine(
        denoiser,
        [FunctionReward(REWARD[reward], "r")],
        EngineOptions(512),
        guidance=guidance,
        kernel=Ddim(denoiser.path, denoiser.times),
    )
    (result,) = search([""], algorithm, engine, seed=1000 * seed, keep=algorithm.n or 1)
    return result


def log_zs(algorithm: SMC, reward: str, guide: str | None, runs: int) -> Any:
    """(runs,) estimates of log Z on one Gaussian, from seeds of their own."""
    denoiser = gaussian()
    return np.array([run(algorithm, denoiser, reward, guide, seed).state.log_z for seed in range(runs)])


def truth(reward: str, lam: float) -> float:
    """log Z of the plain chain on that Gaussian."""
    denoiser = gaussian()
    return float(tilted(*law(denoiser, Ddim(denoiser.path, denoiser.times)), reward, lam)[0])


def off(log_z: Any, exact: float) -> float:
    """By how many standard errors the mean estimate of Z is off."""
    z = np.exp(log_z)
    return float((z.mean() - math.exp(exact)) / (z.std(ddof=1) / math.sqrt(len(z))))


def law(denoiser: Plain, kernel: Any) -> tuple[Tensor, Tensor]:
    """Mean (1, 3) and variance (1,) of what a plain chain on one Gaussian ends in: linear, so exact."""
    mu, var = torch.zeros(3).double(), torch.tensor(1.0).double()
    denoiser.encode([""])
    zero = torch.tensor([0])
    for k in range(denoiser.grid.steps):
        step = torch.tensor([k])

        def moved(value: float, key: int, step: Any = step, k: int = k) -> Any:
            x = torch.full((1, 3), value).double()
            return kernel.step(x, denoiser.predict(x, step, zero), step, [(0, key, k)], [None])[0][0]

        at0, at1, other = moved(0.0, 0), moved(1.0, 0), moved(0.0, 1)
        xi, xi2 = noise([(0, 0, k), (0, 1, k)], torch.zeros(2, 3).double())
        slope, gain = (at1 - at0)[0], ((other - at0) / (xi2 - xi))[0]
        mu, var = slope * mu + at0 - gain * xi, slope**2 * var + gain**2
    return mu[None], var[None]


# --- one step -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ANY)
@pytest.mark.parametrize("kernel", [Sde, Ddim, Renoise])
@pytest.mark.parametrize("path", [Linear(), VP()])
def test_log_ratio_is_that_of_two_gaussians(spec: str, kernel: Any, path: Any) -> None:
    denoiser = mixture(8, path=path)
    denoiser.encode([""])
    sampler, guidance = kernel(denoiser.path, denoiser.times), RewardGuidance.parse(spec)
    k, x = torch.tensor([1, 4, 6]), torch.randn(3, 3, generator=torch.Generator().manual_seed(0)).double()
    zero = torch.zeros(3, dtype=torch.long)
    pulled = Differentiator(denoiser, [FunctionReward(quadratic)], guidance.through)(x, k, zero, [""] * 3)
    keys, guided = [(1, 0, 1), (2, 0, 4), (3, 0, 6)], GuidedKernel(sampler, guidance, denoiser.grid)
    moved, ratio = guided.step(x, pulled.prediction, pulled.gradient, k, keys)
    mean, std = sampler.moments(x, pulled.prediction, k)
    xi = noise(keys, mean)
    kappa = math.sqrt(1 - guidance.scale**2) if guidance.kind == "tilted" else 1.0
    shift = moved - mean - std[:, None] * kappa * xi
    plain = torch.distributions.Normal(mean, std[:, None].expand_as(mean))
    guided = torch.distributions.Normal(mean + shift, kappa * std[:, None].expand_as(mean))
    torch.testing.assert_close(ratio, (plain.log_prob(moved) - guided.log_prob(moved)).sum(1), atol=1e-9, rtol=1e-9)
    assert (shift * pulled.gradient).sum(1).min() > 0
    size = shift.norm(dim=1)
    if guidance.kind == "dps":
        torch.testing.assert_close(size, guidance.scale * std)
    elif guidance.kind == "tilted":
        torch.testing.assert_close(size, guidance.scale * math.sqrt(3) * std)
    else:
        lam = guidance.tempered(denoiser.grid)
        torch.testing.assert_close(shift, std[:, None] ** 2 * lam[k][:, None] * pulled.gradient)


def test_gradient_is_that_of_finite_differences() -> None:
    denoiser = mixture()
    denoiser.encode(["", ""])
    differentiate = Differentiator(denoiser, [FunctionReward(quadratic, "q"), FunctionReward(linear, "l")],
                                   weights=(2.0, -1.0))  # fmt: skip
    x, k = torch.randn(2, 3, generator=torch.Generator().manual_seed(1)).double(), torch.tensor([2, 5])
    cond = torch.tensor([0, 1])
    found = differentiate(x, k, cond, ["", ""])
    for i in range(2):
        for j in range(3):
            ends = []
            for h in (1e-6, -1e-6):
                moved = x.clone()
                moved[i, j] += h
                images = denoiser.decode(denoiser.predict(moved, k, cond).x0)
                ends.append(float((2 * quadratic(images, None) - linear(images, None))[i]))
            assert float(found.gradient[i, j]) == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-6)


def test_x0_alone_is_exact_on_standard_normal_data() -> None:
    denoiser = Plain(torch.zeros(1, 3), torch.ones(1), torch.ones(1), path=VP())
    denoiser.encode([""])
    x, k, zero = torch.ones(2, 3).double(), torch.tensor([3, 12]), torch.zeros(2, dtype=torch.long)
    rewards = [FunctionReward(quadratic)]
    through, alone = (Differentiator(denoiser, rewards, t)(x, k, zero, [""] * 2) for t in ("denoiser", "x0"))
    torch.testing.assert_close(through.gradient, alone.gradient)


def test_no_gradient_no_guidance() -> None:
    denoiser, k = gaussian(), torch.tensor([2])
    denoiser.encode([""])
    x = torch.ones(1, 3).double()
    kernel, prediction = Sde(denoiser.path, denoiser.times), denoiser.predict(x, k, torch.tensor([0]))
    for gradient in (torch.zeros(1, 3), torch.full((1, 3), float("nan"))):
        for spec in ANY:
            guided = GuidedKernel(kernel, RewardGuidance.parse(spec), denoiser.grid)
            moved, ratio = guided.step(x, prediction, gradient, k, [(0, 0, 2)])
            torch.testing.assert_close(moved, kernel.step(x, prediction, k, [(0, 0, 2)], [None])[0])
            assert float(ratio) == pytest.approx(0, abs=1e-12)


# --- SMC keeps its target -----------------------------------------------------------------------------------------


FAST = {(0, "linear"), (1, "quadratic"), (5, "quadratic")}
"""Each kind of guidance, through the denoiser and not."""


@pytest.mark.parametrize(
    ("spec", "reward"),
    [
        pytest.param(spec, reward, marks=[] if (i, reward) in FAST else [pytest.mark.slow])
        for i, spec in enumerate(ANY)
        for reward in REWARD
    ],
)
def test_guided_smc_estimates_the_same_constant(spec: str, reward: str) -> None:
    found = log_zs(SMC(6, 1.0, "difference", ess=0.7, **everywhere), reward, spec, 60)
    z = off(found, truth(reward, 1.0))
    print(f"z = {z:+.2f}", spec, reward)
    assert abs(z) < 4


@dataclass(frozen=True)
class Forgets(SMC):
    """Takes the guided sampler for the plain one."""

    def step(self, s: Any, particles: Any, rng: Any) -> Any:
        return super().step(s, replace(particles, log_ratio=0 * particles.log_ratio), rng)


def test_weights_without_the_ratio_are_found_out() -> None:
    found = log_zs(Forgets(6, 1.0, **everywhere), "linear", "dps:0.5:1-0", 30)
    assert abs(off(found, truth("linear", 1.0))) > 6


def sampled(denoiser: Plain, kernel: Any, n: int = 40_000) -> Tensor:
    """What the plain chain ends in, (n, 3)."""
    generator = torch.Generator().manual_seed(0)
    denoiser.encode([""])
    x, zero = torch.randn(n, 3, generator=generator).double(), torch.zeros(n, dtype=torch.long)
    for k in range(denoiser.grid.steps):
        at = torch.full((n,), k)
        mean, std = kernel.moments(x, denoiser.predict(x, at, zero), at)
        x = mean + std[:, None] * torch.randn(n, 3, generator=generator)
    return x


@pytest.mark.parametrize("reward", [pytest.param("linear", marks=pytest.mark.slow), "quadratic"])
def test_tilted_mixture(reward: str) -> None:
    """Z and the posterior mean of a mixture: those of the plain chain reweighed, near the exact ones of the data."""
    denoiser, lam, n = mixture(32), 1.0, 32
    kernel = Ddim(denoiser.path, denoiser.times)
    plain = sampled(denoiser, kernel)
    weight = (lam * REWARD[reward](plain[..., None, None], None)).exp()
    log_z, means = tilted(denoiser.means, denoiser.stds**2, reward, lam)
    parts = denoiser.weights * log_z.exp()
    assert float(weight.mean()) == pytest.approx(float(parts.sum()), rel=0.08)  # the chain takes finite steps
    exact = (parts[:, None] * means).sum(0) / parts.sum()
    torch.testing.assert_close((weight[:, None] * plain).sum(0) / weight.sum(), exact, atol=0.06, rtol=0.0)
    totals, moments = [], []
    algorithm = SMC(n, lam, "difference", "linear", every=8, first=1.0, last=0.0)
    for seed in range(8):
        result = run(algorithm, denoiser, reward, f"twisted:{lam}:1-0", seed)
        state = result.state
        images = {c.uid: points(c.image[None])[0].numpy() for c in result.images}
        w = np.exp(state.logw)
        totals.append(w.sum())
        moments.append(sum(v * images[u] for v, u in zip(w, state.uids.tolist(), strict=True)))
    found = np.concatenate([np.array(totals)[:, None], np.array(moments)], 1)
    wanted = torch.cat([weight[:, None], weight[:, None] * plain], 1)
    error = np.sqrt(found.var(0, ddof=1) / len(found) + (wanted.var(0) / len(wanted)).numpy())
    z = (found.mean(0) - wanted.mean(0).numpy()) / error
    print("z =", z.round(2), reward)
    assert np.abs(z).max() < 4


@pytest.mark.slow
def test_guidance_needs_fewer_particles() -> None:
    """Root mean square error of log Z."""
    exact, errors = truth("linear", 3.0), {}
    for n, spec in ((4, None), (16, None), (4, "twisted:3:1-0"), (4, "dps:0.5:1-0")):
        found = log_zs(SMC(n, 3.0, "difference", **everywhere), "linear", spec, 30)
        errors[n, spec] = float(np.sqrt(np.mean(np.square(found - exact))))
    print(errors)
    assert errors[4, "twisted:3:1-0"] < 0.75 * errors[4, None]
    assert errors[4, "dps:0.5:1-0"] < 0.6 * errors[16, None]


# --- the books ----------------------------------------------------------------------------------------------------


class Counted(FunctionReward):
    """Counts images, and those whose gradient was asked for."""

    def __init__(self) -> None:
        super().__init__(quadratic, "r")
        self.plain = self.pulled = 0

    def __call__(self, images: Any, prompts: Any, level: Any) -> Any:
        self.plain += len(images)
        return super().__call__(images, prompts, level)

    def differentiable(self, images: Any, prompts: Any, level: Any) -> Any:
        self.pulled += len(images)
        return quadratic(images, prompts)


NAMES = ["smc", "svdd", "code", "rbf", "best-first", "best-of-n", "seed-pruning", "search-over-paths"]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(NAMES),
    spec=st.sampled_from(ANY),
    nfe=st.integers(12, 90),
    batch=st.integers(1, 9),
    first=st.sampled_from([1.0, 0.7]),
    after=st.one_of(st.none(), st.integers(0, 20)),
    decodes=st.one_of(st.none(), st.integers(8, 60)),
    calls=st.one_of(st.none(), st.integers(8, 60)),
    shared=st.booleans(),
)
def test_every_gradient_is_paid_within_every_cap(
    name: str,
    spec: str,
    nfe: int,
    batch: int,
    first: float,
    after: int | None,
    decodes: int | None,
    calls: int | None,
    shared: bool,
) -> None:
    denoiser, reward = mixture(), Counted()
    guidance = replace(RewardGuidance.parse(spec), first=first)
    engine = LiveEngine(
        denoiser, [reward], EngineOptions(batch), kernel=Sde(denoiser.path, denoiser.times), guidance=guidance
    )
    engine.start()
    engine.admit([Prompt("a")])  # measures a row once
    asked, ticks = reward.pulled, []
    denoiser.predicted = denoiser.decoded = denoiser.backward = 0
    budget = Budget(nfe=nfe, decodes=decodes, reward_calls=calls)
    results = search(["a", "b"], make_algorithm(name), engine, budget, shared=shared,
                     on_event=lambda e: ticks.extend([1] if e.kind == "tick" else []),
                     should_stop=lambda: after is not None and len(ticks) > after)  # fmt: skip
    spent = [r.spent.cost for r in results]
    gradients = reward.pulled - asked
    assert sum(c.gradients for c in spent) == gradients
    assert sum(c.reward_calls for c in spent) == reward.plain + gradients
    assert sum(c.nfe for c in spent) == denoiser.predicted
    assert sum(c.backwards for c in spent) == denoiser.backward == (gradients if guidance.through == "denoiser" else 0)
    assert sum(c.decodes for c in spent) == denoiser.decoded
    assert all(engine.stats[k] == sum(getattr(c, k) for c in spent) for k in ("nfe", "decodes", "reward_calls"))
    assert sum(c.nfe for c in spent) <= 2 * nfe
    for counted, cap in ((denoiser.decoded, decodes), (reward.plain + gradients, calls)):
        assert cap is None or counted <= 2 * cap
    for c in spent:
        assert shared or c.nfe <= nfe
        assert shared or decodes is None or c.decodes <= decodes
        assert shared or calls is None or c.reward_calls <= calls
    assert all(r.images for r in results) or after is not None


@pytest.mark.parametrize("name", ["smc", pytest.param("rbf", marks=pytest.mark.slow), "svdd"])
def test_budgets_in_flops_hold_and_batches_change_nothing(name: str) -> None:
    found = []
    for batch in (1, 7):
        denoiser = mixture()
        reward = Counted()
        reward.flops = 500.0  # type: ignore[attr-defined]
        engine = LiveEngine(
            denoiser,
            [reward],
            EngineOptions(batch),
            kernel=Sde(denoiser.path, denoiser.times),
            guidance=RewardGuidance("dps", 0.5, first=1.0, last=0.0),
        )
        budget = Budget(flops=60 * (engine.price.flops.nfe + 3000))
        (result,) = search(["a"], make_algorithm(name), engine, budget)
        assert result.spent.flops <= budget.flops
        assert result.spent.flops == engine.price.flops.of(result.spent.cost)
        assert result.spent.cost.gradients > 0
        found.append(result)
    assert [m["uids"] for m in found[0].trace] == [m["uids"] for m in found[1].trace]
    torch.testing.assert_close(found[0].best.image, found[1].best.image)


@pytest.mark.parametrize("weights", [None, (1.0, 0.0)])
def test_dry_runs_price_gradients(weights: Any) -> None:
    """A gradient is a decode and a call of each reward that it asks, those with a weight: live, dry and replayed."""
    denoiser, rewards = gaussian(), [Counted(), FunctionReward(linear, "other")]
    engine = LiveEngine(denoiser, rewards, kernel=Sde(denoiser.path, denoiser.times),
                        guidance=RewardGuidance(weights=weights))  # fmt: skip
    dry = DryEngine(engine.grid, ("r", "other"), price=engine.price)
    (recorded,) = search([""], KeepAll(5), engine)
    replay = ReplayEngine(Recording.from_results([recorded], engine.grid, ("r", "other"), price=engine.price))
    asked = 2 if weights is None else 1
    for name in ("seed-pruning", "best-of-n"):
        costs = [
            search([""], make_algorithm(name, n=5), e, Budget(nfe=60))[0].spent.cost for e in (dry, engine, replay)
        ]
        assert costs[0] == costs[1] == costs[2]
        assert costs[0].gradients > 0
        plain = costs[0].decodes - costs[0].gradients
        assert costs[0].reward_calls == 2 * plain + asked * costs[0].gradients


def test_flops_are_paid_once_and_trials_are_counted() -> None:
    """A gradient's forward half is among the decodes and reward calls, as it was: three forward passes in all."""
    denoiser, reward = mixture(), Counted()
    reward.flops = 500.0  # type: ignore[attr-defined]
    engine = LiveEngine(denoiser, [reward], kernel=Sde(denoiser.path, denoiser.times), guidance=RewardGuidance())
    tried = reward.pulled
    assert (tried, engine.calibration_cost.counts()) == (1, {"nfe": 0, "decodes": 0, "reward_calls": tried})
    (result,) = search(["a"], make_algorithm("best-of-n", n=2), engine)
    spent, rates = result.spent, engine.price.flops
    once, looks = rates.decodes + 500, spent.cost.decodes - spent.cost.gradients
    assert spent.cost.gradients > 0
    assert spent.flops_by["denoise"] == rates.nfe * spent.nfe
    backward = rates.backwards * spent.cost.backwards
    assert spent.flops == spent.flops_by["denoise"] + backward + once * (looks + 3 * spent.cost.gradients)
    assert spent.flops == pytest.approx(sum(spent.flops_by.values()))
    assert spent.calibration.reward_calls == tried + 1  # the trial, and the row whose memory is measured


# --- what is refused, and what stays as it was ----------------------------------------------------------------------


def test_refusals_come_before_any_compute() -> None:
    denoiser = gaussian()
    sde, reward = Sde(denoiser.path, denoiser.times), FunctionReward(linear, "r")

    def blind(images: Any, prompts: Any) -> Any:
        return images.detach().mean((1, 2, 3))

    def numbers(images: Any, prompts: Any) -> Any:
        return [0.0] * len(images)

    for rewards in ([FunctionReward(blind, "blind")], [FunctionReward(numbers, "numbers")]):
        with pytest.raises(ValueError, match=r"has no gradient"):
            LiveEngine(denoiser, rewards, kernel=sde, guidance=RewardGuidance())
    with pytest.raises(ValueError, match=r"stochastic step, and Ode draws none"):
        LiveEngine(denoiser, [reward], kernel=Ode(denoiser.path, denoiser.times), guidance=RewardGuidance())
    with pytest.raises(ValueError, match=r"2 weights for 1 rewards"):
        LiveEngine(denoiser, [reward], kernel=sde, guidance=RewardGuidance(weights=(1.0, 2.0)))
    with pytest.raises(ValueError, match=r"at least 1, got 0"):
        LiveEngine(denoiser, [reward], EngineOptions(gradient_batch_size=0), kernel=sde, guidance=RewardGuidance())
    assert denoiser.predicted == denoiser.decoded == 0
    assert RewardGuidance.parse("dps:2:x0:0.9-0.2") == RewardGuidance("dps", 2.0, "x0", 0.9, 0.2)
    assert RewardGuidance.parse("tilted:0.1:0.8-0.1") == RewardGuidance("tilted", 0.1, "denoiser", 0.8, 0.1)
    assert RewardGuidance.parse("dps") == RewardGuidance()
    for text in ("dps:-1", "tilted:1", "up:1", "dps:1:y0", "dps:one", "dps:inf", "dps:1:x0:2", "dps:1:x0:1-2-3",
                 "dps:1:x0:0.2-0.9", "dps:1:x0:x:1-0"):  # fmt: skip
        with pytest.raises(ValueError, match=r"cannot read guidance"):
            RewardGuidance.parse(text)


def test_plain_searches_build_no_graph() -> None:
    denoiser, seen = gaussian(), []

    def watched(images: Tensor, prompts: Any) -> Tensor:
        seen.append(images.requires_grad or torch.is_grad_enabled())
        return linear(images, prompts)

    engine = LiveEngine(denoiser, [FunctionReward(watched, "r")], kernel=Sde(denoiser.path, denoiser.times))
    search(["a"], make_algorithm("smc", n=4), engine)
    assert seen
    assert not any(seen)
    assert denoiser.backward == 0


def test_a_gradient_that_fails_from_the_start_ends_the_search() -> None:
    """Gray images of the trial had one; with zeros in place of all others the search would be called guided."""

    class Picky(Counted):
        def differentiable(self, images: Any, prompts: Any, level: Any) -> Any:
            if images.shape[-1] == 1:
                raise KeyError("too small")
            return images.mean((1, 2, 3))

    denoiser = mixture()
    engine = LiveEngine(denoiser, [Picky()], kernel=Sde(denoiser.path, denoiser.times), guidance=RewardGuidance())
    with pytest.raises(RewardError, match=r"the first gradient failed: r: KeyError: 'too small' \(.*test_guidance.py:"):
        search(["a"], make_algorithm("best-of-n", n=4), engine)
    assert denoiser.predicted <= 1


def test_a_reward_that_takes_tokens_has_no_part_in_gradients() -> None:
    """It has a gradient, but no way to charge one for its tokens; with the weight 0 it is asked for scores alone."""
    asked = []

    class Talks(RewardModel):
        name, tokens = "talks", 10

        def __call__(self, images: Any, prompts: Any, level: Any = None) -> Any:
            asked.extend(prompts)
            self.tokens_taken = [7] * len(prompts)
            return linear(images, prompts)

    denoiser = gaussian()
    sde, rewards = Sde(denoiser.path, denoiser.times), [Talks(), FunctionReward(linear, "r")]
    with pytest.raises(ValueError, match="'talks' asks a language model behind an API: gradients are not taken of it"):
        LiveEngine(denoiser, rewards, kernel=sde, guidance=RewardGuidance("dps", 0.5))
    climbing = LiveEngine(denoiser, rewards, kernel=Ode(denoiser.path, denoiser.times))
    with pytest.raises(ValueError, match="'talks' asks a language model"):
        search(["a"], make_algorithm("noise-ascent"), climbing)
    assert not asked
    engine = LiveEngine(denoiser, rewards, kernel=sde, guidance=RewardGuidance("dps", 0.5, weights=(0.0, 1.0)))
    (result,) = search(["a"], make_algorithm("best-of-n", n=3), engine, "100tokens,200nfe")
    assert result.spent.cost.gradients > 0
    assert result.spent.cost.tokens == 7 * len(asked) == engine.stats["tokens"]


def test_a_reward_that_writes_into_its_images_changes_no_other() -> None:
    def doubles(images: Any, prompts: Any) -> Any:
        return images.mul_(2).mean((1, 2, 3))

    rewards = [FunctionReward(doubles), FunctionReward(lambda images, prompts: images.mean((1, 2, 3)), "mean")]
    x0 = torch.full((1, 3), 0.5).double().requires_grad_()
    value = Differentiator(mixture(), rewards, "x0").value(x0, ["a"], torch.zeros(1))
    assert value.item() == pytest.approx((1.0 + 0.5) / 2)


def test_a_reward_that_fails_costs_a_gradient_and_not_the_search(caplog: Any) -> None:
    denoiser, calls = mixture(), []

    class Fails(Counted):
        def differentiable(self, images: Any, prompts: Any, level: Any) -> Any:
            calls.append(len(images))
            if len(calls) > 4:
                raise RuntimeError("the scorer is down")
            return quadratic(images, prompts)

    engine = LiveEngine(
        denoiser, [Fails()], kernel=Sde(denoiser.path, denoiser.times), guidance=RewardGuidance("dps", 0.5)
    )
    (result,) = search(["a"], make_algorithm("best-of-n", n=4), engine)
    assert result.images
    assert "no gradient of r: the scorer is down" in caplog.text
    assert result.spent.cost.gradients == engine.stats["gradients"]
