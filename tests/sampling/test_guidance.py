"""Guided steps: gradients against closed forms, log ratios that keep SMC's target, books that
balance."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ttsnap import make_algorithm, search
from ttsnap.algorithms.keep_all import KeepAll
from ttsnap.algorithms.smc.smc import SMC
from ttsnap.core.prompt import Prompt
from ttsnap.core.selection import Selection
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

ANY = [
    f"{kind}:1-0"
    for kind in (
        "dps:0.5",
        "twisted:1",
        "tilted:0.3",
        "dps:0.5:x0",
        "twisted:1:x0",
        "tilted:0.3:x0",
    )
]
A = torch.tensor([1.0, 0.5, -0.5]).double()
CENTRE = torch.tensor([0.3, 0.0, -0.2]).double()


class Plain(MixtureDenoiser):
    """Latents are the images: rewards are exact functions of x0."""

    predicted = decoded = backward = 0

    def predict(self, x, step, cond):
        self.predicted += len(x)
        self.backward += len(x) if x.requires_grad else 0
        return super().predict(x, step, cond)

    def decode(self, x0):
        self.decoded += len(x0)
        return x0[..., None, None]


def points(images):
    return images.double()[..., 0, 0]


def linear(images, prompts):
    return points(images) @ A


def quadratic(images, prompts):
    return -0.6 * (points(images) - CENTRE).square().sum(-1)


def gaussian():
    return Plain(torch.tensor([[0.4, -0.2, 0.1]]), torch.tensor([0.5]), torch.ones(1), steps=5)


def mixture(**options):
    means = torch.tensor([[1.0, 0.5, 0.0], [-1.0, 0.0, 0.5], [0.0, -1.0, -0.5]])
    return Plain(
        means, torch.tensor([0.4, 0.6, 0.3]), torch.tensor([0.5, 0.3, 0.2]), steps=8, **options
    )


def engine_of(
    denoiser,
    *rewards,
    guide=None,
    kernel=Sde,
    batch=512,
    **options,
):
    guidance = None if guide is None else RewardGuidance.parse(guide)
    return LiveEngine(
        denoiser,
        rewards,
        EngineOptions(batch, **options),
        guidance=guidance,
        kernel=kernel(denoiser.path, denoiser.times),
    )


@pytest.mark.parametrize("spec", ANY)
@pytest.mark.parametrize("kernel", [Sde, Ddim, Renoise])
@pytest.mark.parametrize("path", [Linear(), VP()])
def test_log_ratio_is_that_of_two_gaussians(spec, kernel, path):
    denoiser = mixture(path=path)
    denoiser.encode([""])
    sampler, guidance = kernel(denoiser.path, denoiser.times), RewardGuidance.parse(spec)
    k, x = (
        torch.tensor([1, 4, 6]),
        torch.randn(3, 3, generator=torch.Generator().manual_seed(0)).double(),
    )
    zero = torch.zeros(3, dtype=torch.long)
    pulled = Differentiator(denoiser, [FunctionReward(quadratic)], guidance.through)(
        x, k, zero, [""] * 3
    )
    keys, guided = [(1, 0, 1), (2, 0, 4), (3, 0, 6)], GuidedKernel(sampler, guidance, denoiser.grid)
    moved, ratio = guided.step(x, pulled.prediction, pulled.gradient, k, keys)
    mean, std = sampler.moments(x, pulled.prediction, k)
    xi = noise(keys, mean)
    kappa = math.sqrt(1 - guidance.scale**2) if guidance.kind == "tilted" else 1.0
    shift = moved - mean - std[:, None] * kappa * xi
    plain = torch.distributions.Normal(mean, std[:, None].expand_as(mean))
    guided = torch.distributions.Normal(mean + shift, kappa * std[:, None].expand_as(mean))
    torch.testing.assert_close(
        ratio, (plain.log_prob(moved) - guided.log_prob(moved)).sum(1), atol=1e-9, rtol=1e-9
    )
    assert (shift * pulled.gradient).sum(1).min() > 0
    size = shift.norm(dim=1)
    if guidance.kind == "dps":
        torch.testing.assert_close(size, guidance.scale * std)
    elif guidance.kind == "tilted":
        torch.testing.assert_close(size, guidance.scale * math.sqrt(3) * std)
    else:
        lam = (2 ** ((k + 1) / (0.87 * 8)) - 1).clamp(max=1)[:, None].double()  # as DAS tempers
        torch.testing.assert_close(
            shift, std[:, None] ** 2 * lam * pulled.gradient, rtol=1e-6, atol=1e-9
        )


def test_gradients_are_those_of_the_weighted_rewards_and_through_x0_those_of_standard_normal_data():
    denoiser, rewards, cond = (
        mixture(),
        [FunctionReward(quadratic), FunctionReward(linear)],
        torch.tensor([0, 1]),
    )
    denoiser.encode(["", ""])
    x, k = (
        torch.randn(2, 3, generator=torch.Generator().manual_seed(1)).double().requires_grad_(),
        torch.tensor([2, 5]),
    )
    found = Differentiator(denoiser, rewards, weights=(2.0, -1.0))(x, k, cond, ["", ""])
    images = denoiser.decode(denoiser.predict(x, k, cond).x0)
    (expected,) = torch.autograd.grad((2 * quadratic(images, None) - linear(images, None)).sum(), x)
    torch.testing.assert_close(found.gradient, expected, rtol=1e-9, atol=1e-12)
    normal = Plain(torch.zeros(1, 3), torch.ones(1), torch.ones(1), path=VP())
    normal.encode([""])
    through, alone = (
        Differentiator(normal, rewards, t)(x, k, 0 * k, [""] * 2) for t in ("denoiser", "x0")
    )
    torch.testing.assert_close(through.gradient, alone.gradient)


def test_no_gradient_no_guidance():
    denoiser, k = gaussian(), torch.tensor([2])
    denoiser.encode([""])
    x = torch.ones(1, 3).double()
    kernel, prediction = (
        Sde(denoiser.path, denoiser.times),
        denoiser.predict(x, k, torch.tensor([0])),
    )
    for gradient in (torch.zeros(1, 3), torch.full((1, 3), float("nan"))):
        for spec in ANY:
            guided = GuidedKernel(kernel, RewardGuidance.parse(spec), denoiser.grid)
            moved, ratio = guided.step(x, prediction, gradient, k, [(0, 0, 2)])
            torch.testing.assert_close(moved, kernel.step(x, prediction, k, [(0, 0, 2)], [None])[0])
            assert float(ratio) == pytest.approx(0, abs=1e-12)


def law():
    """Mean (3,) and variance of what the plain chain on one Gaussian ends in: linear, so exact."""
    denoiser, mu, var, zero = (
        gaussian(),
        torch.zeros(3).double(),
        torch.tensor(1.0).double(),
        torch.zeros(2).long(),
    )
    kernel, ends = (
        Ddim(denoiser.path, denoiser.times),
        torch.tensor([[0.0], [1.0]]).double().expand(2, 3),
    )
    denoiser.encode([""])
    for step in range(denoiser.grid.steps):
        (at0, at1), std = kernel.moments(
            ends, denoiser.predict(ends, zero + step, zero), zero + step
        )
        slope = (at1 - at0)[0]
        mu, var = slope * mu + at0, slope**2 * var + std[0] ** 2
    return mu, var


def tilted():
    """Z of that chain under exp(r), and Z times the posterior mean, in closed form."""
    mu, v = law()
    precision, away = 1 / v + 1.2, (mu - CENTRE).square().sum()
    log_z, mean = (
        -1.5 * (v * precision).log() - 0.6 / (v * precision) * away,
        (mu / v + 1.2 * CENTRE) / precision,
    )
    return [float(log_z.exp()), *(log_z.exp() * mean).tolist()]


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param(spec, marks=[] if i in (0, 1, 5) else pytest.mark.slow)
        for i, spec in enumerate(ANY)
    ],
)
def test_guided_smc_estimates_the_same_constant_and_mean(spec):
    """In standard errors, from seeds of their own."""
    found, algorithm = [], SMC(6, 1.0, "difference", every=2, first=1.0, last=0.0, ess=0.7)
    engine = engine_of(gaussian(), FunctionReward(quadratic, "r"), guide=spec, kernel=Ddim)
    for seed in range(40):
        (result,) = search([""], algorithm, engine, seed=1000 * seed, selection=Selection(keep=6))
        images = {c.uid: points(c.image[None])[0].numpy() for c in result.images}
        weights = zip(np.exp(result.state.logw), result.state.uids.tolist(), strict=True)
        found.append(
            [
                np.exp(result.state.log_z),
                *np.sum([weight * images[uid] for weight, uid in weights], 0),
            ]
        )
    z = (np.mean(found, 0) - tilted()) / (np.std(found, 0, ddof=1) / math.sqrt(40))
    assert np.abs(z).max() < 4, z


class Counted(FunctionReward):
    """Counts images, and those whose gradient was asked for."""

    flops = 500.0

    def __init__(self):
        super().__init__(quadratic, "r")
        self.plain = self.pulled = 0

    def __call__(self, images, prompts, level):
        self.plain += len(images)
        return super().__call__(images, prompts, level)

    def differentiable(self, images, prompts, level):
        self.pulled += len(images)
        return quadratic(images, prompts)


NAMES = [
    "smc",
    "svdd",
    "code",
    "rbf",
    "best-first",
    "best-of-n",
    "seed-pruning",
    "search-over-paths",
]
CAP = st.none() | st.integers(8, 60)


@settings(max_examples=20, deadline=None)
@given(
    how=st.tuples(st.sampled_from(NAMES), st.sampled_from(ANY), st.sampled_from([1.0, 0.7])),
    caps=st.tuples(st.integers(12, 90), CAP, CAP),
    batch=st.integers(1, 9),
    after=st.none() | st.integers(0, 20),
    shared=st.booleans(),
)
def test_every_gradient_is_paid_within_every_cap(how, caps, batch, after, shared):
    (name, spec, first), (nfe, decodes, calls) = how, caps
    denoiser, reward = mixture(), Counted()
    guidance = replace(RewardGuidance.parse(spec), first=first)
    engine = engine_of(denoiser, reward, guide=guidance, batch=batch)
    engine.start()
    engine.admit([Prompt("a")])  # measures a row once
    asked, ticks = reward.pulled, []
    denoiser.predicted = denoiser.decoded = denoiser.backward = 0
    budget = Budget(nfe=nfe, decodes=decodes, reward_calls=calls)
    results = search(
        ["a", "b"],
        make_algorithm(name),
        engine,
        budget,
        shared=shared,
        on_event=lambda e: ticks.extend([1] if e.kind == "tick" else []),
        should_stop=lambda: after is not None and len(ticks) > after,
    )
    spent = [r.spent.cost for r in results]
    gradients = reward.pulled - asked
    assert sum(c.gradients for c in spent) == gradients
    assert sum(c.reward_calls for c in spent) == reward.plain + gradients
    assert sum(c.nfe for c in spent) == denoiser.predicted
    assert (
        sum(c.backwards for c in spent)
        == denoiser.backward
        == (gradients if guidance.through == "denoiser" else 0)
    )
    assert sum(c.decodes for c in spent) == denoiser.decoded
    assert all(
        engine.stats[k] == sum(getattr(c, k) for c in spent)
        for k in ("nfe", "decodes", "reward_calls")
    )
    for unit, cap in (("nfe", nfe), ("decodes", decodes), ("reward_calls", calls)):
        took = [getattr(c, unit) for c in spent]
        assert cap is None or (sum(took) <= 2 * cap if shared else max(took) <= cap)
    assert all(r.images for r in results) or after is not None


@pytest.mark.parametrize("name", ["smc", "svdd"])
def test_budgets_in_flops_hold_and_batches_change_nothing(name):
    """A gradient's forward half is among the decodes and reward calls, as it was: three forward
    passes in all."""
    found = []
    for batch in (1, 7):
        engine = engine_of(mixture(), reward := Counted(), guide="dps:0.5:1-0", batch=batch)
        assert (reward.pulled, engine.calibration_cost.counts()) == (
            1,
            {"nfe": 0, "decodes": 0, "reward_calls": 1},
        )
        rates, budget = engine.price.flops, Budget(flops=60 * (engine.price.flops.nfe + 3000))
        (result,) = search(["a"], make_algorithm(name), engine, budget)
        spent, cost = result.spent, result.spent.cost
        passes = cost.decodes + 2 * cost.gradients
        assert spent.flops_by["denoise"] == rates.nfe * spent.nfe
        assert (
            spent.flops
            == rates.nfe * spent.nfe
            + rates.backwards * cost.backwards
            + (rates.decodes + 500) * passes
        )
        assert spent.flops == pytest.approx(sum(spent.flops_by.values()))
        assert spent.flops <= budget.flops
        # the trial, and the row whose memory is measured
        assert spent.calibration.reward_calls == 2
        assert cost.gradients > 0
        found.append(result)
    assert [m["uids"] for m in found[0].trace] == [m["uids"] for m in found[1].trace]
    torch.testing.assert_close(found[0].best.image, found[1].best.image)


@pytest.mark.parametrize("weights", [None, (1.0, 0.0)])
def test_dry_runs_price_gradients(weights):
    """A gradient is a decode and a call of each reward that it asks, those with a weight: live, dry
    and replayed."""
    engine = engine_of(
        gaussian(),
        Counted(),
        FunctionReward(linear, "other"),
        guide=RewardGuidance(weights=weights),
    )
    dry = DryEngine(engine.grid, ("r", "other"), price=engine.price)
    (recorded,) = search([""], KeepAll(5), engine)
    replay = ReplayEngine(
        Recording.from_results([recorded], engine.grid, ("r", "other"), price=engine.price)
    )
    for name in ("seed-pruning", "best-of-n"):
        algorithm = make_algorithm(name, n=5)
        costs = [search([""], algorithm, e, "60nfe")[0].spent.cost for e in (dry, engine, replay)]
        assert costs[0] == costs[1] == costs[2]
        assert costs[0].gradients > 0
        plain, asked = costs[0].decodes - costs[0].gradients, 2 if weights is None else 1
        assert costs[0].reward_calls == 2 * plain + asked * costs[0].gradients


def test_refusals_come_before_any_compute():
    denoiser, reward = gaussian(), FunctionReward(linear, "r")
    blind = FunctionReward(lambda images, prompts: images.detach().mean((1, 2, 3)), "blind")
    for made, how, said in (
        (blind, {}, "has no gradient"),
        (FunctionReward(lambda images, prompts: [0.0] * len(images)), {}, "has no gradient"),
        (reward, {"kernel": Ode}, "Ode draws none"),
        (reward, {"guide": RewardGuidance(weights=(1.0, 2.0))}, "2 weights for 1 rewards"),
        (reward, {"gradient_batch_size": 0}, "equal to 1, got 0"),
    ):
        with pytest.raises(ValueError, match=said):
            engine_of(denoiser, made, **{"guide": RewardGuidance(), **how})
    assert denoiser.predicted == denoiser.decoded == 0


def test_guidance_is_read():
    assert RewardGuidance.parse("dps:2:x0:0.9-0.2") == RewardGuidance("dps", 2.0, "x0", 0.9, 0.2)
    assert RewardGuidance.parse("tilted:0.1:0.8-0.1") == RewardGuidance(
        "tilted", 0.1, "denoiser", 0.8, 0.1
    )
    assert RewardGuidance.parse("dps") == RewardGuidance()
    for text in (
        "dps:-1",
        "tilted:1",
        "up:1",
        "dps:1:y0",
        "dps:one",
        "dps:inf",
        "dps:1:x0:2",
        "dps:1:x0:1-2-3",
        "dps:1:x0:0.2-0.9",
        "dps:1:x0:x:1-0",
    ):
        with pytest.raises(ValueError, match=f"guidance '{text}'"):
            RewardGuidance.parse(text)


def test_plain_searches_build_no_graph():
    seen = []

    def watched(images, prompts):
        seen.append(torch.is_grad_enabled())
        return linear(images, prompts)

    search(["a"], make_algorithm("smc", n=4), engine_of(gaussian(), FunctionReward(watched)))
    assert set(seen) == {False}


def test_a_first_gradient_that_fails_ends_the_search_and_a_later_one_costs_a_gradient(
    caplog,
):
    """With zeros in place of all gradients the search would be called guided."""

    class Fails(Counted):
        good = 1

        def differentiable(self, images, prompts, level):
            if self.pulled >= self.good:
                raise KeyError("down")
            return super().differentiable(images, prompts, level)

    denoiser, late = mixture(), Fails()
    with pytest.raises(RewardError, match=r"r: KeyError: 'down' \(.*test_guidance.py:"):
        search(["a"], make_algorithm("best-of-n", n=4), engine_of(denoiser, Fails(), guide="dps"))
    assert denoiser.predicted <= 1
    late.good = 4
    engine = engine_of(denoiser, late, guide="dps:0.5", batch=1)
    (result,) = search(["a"], make_algorithm("best-of-n", n=4), engine)
    assert result.images
    assert "no gradient of r: 'down'" in caplog.text
    assert result.spent.cost.gradients == engine.stats["gradients"]


def test_a_reward_that_takes_tokens_has_no_part_in_gradients():
    """It has a gradient, but no way to charge one for its tokens; with the weight 0 it is asked for
    scores alone."""
    asked = []

    class Talks(RewardModel):
        name, tokens = "talks", 10

        def __call__(self, images, prompts, level=None):
            asked.extend(prompts)
            self.tokens_taken = [7] * len(prompts)
            return linear(images, prompts)

    rewards = Talks(), FunctionReward(linear, "r")
    with pytest.raises(ValueError, match="'talks'"):
        engine_of(gaussian(), *rewards, guide="dps:0.5")
    with pytest.raises(ValueError, match="'talks'"):
        search(["a"], make_algorithm("noise-ascent"), engine_of(gaussian(), *rewards, kernel=Ode))
    assert not asked
    engine = engine_of(gaussian(), *rewards, guide=RewardGuidance("dps", 0.5, weights=(0.0, 1.0)))
    (result,) = search(["a"], make_algorithm("best-of-n", n=3), engine, "100tokens,200nfe")
    assert result.spent.cost.gradients > 0
    assert result.spent.cost.tokens == 7 * len(asked) == engine.stats["tokens"]


def test_a_reward_that_writes_into_its_images_changes_no_other():
    rewards = [
        FunctionReward(lambda images, prompts: images.mul_(2).mean((1, 2, 3)), "doubles"),
        FunctionReward(lambda images, prompts: images.mean((1, 2, 3)), "mean"),
    ]
    x0 = torch.full((1, 3), 0.5).double().requires_grad_()
    zero = torch.zeros(1, dtype=torch.long)
    value = Differentiator(mixture(), rewards, "x0").value(x0, zero, ["a"], torch.zeros(1))
    assert value.item() == pytest.approx((1.0 + 0.5) / 2)
