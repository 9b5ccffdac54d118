"""Climbing in initial noise: its gradient against finite differences, its steps, its stops."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ttsnap import Budget, make_algorithm, search
from ttsnap.algorithms.noise_ascent import NoiseAscent
from ttsnap.algorithms.refined import Refined
from ttsnap.algorithms.zero_order import ZeroOrder
from ttsnap.core.grid import Grid
from ttsnap.core.needs import Gradient
from ttsnap.core.prompt import Prompt
from ttsnap.core.utility import make
from ttsnap.engine.gradient_steppers import AscentStepper
from ttsnap.engine.live import LiveEngine
from ttsnap.engine.shared_denoiser import EncodedPrompts, InitialNoise
from ttsnap.engine.store import Node
from ttsnap.options.engine import EngineOptions
from ttsnap.recordings.replay import Recording, ReplayEngine
from ttsnap.rewards.reward_model import FunctionReward
from ttsnap.sampling.interpolants import VP
from ttsnap.sampling.kernels import Ode, Sde
from ttsnap.sampling.mixture import MixtureDenoiser

A = torch.tensor([1.0, 0.5, -0.5]).double()


class Plain(MixtureDenoiser):
    """Latents are the images."""

    def decode(self, x0: Tensor) -> Tensor:
        return x0[..., None, None]


def mixture(steps: int = 6, **options: Any) -> Plain:
    means = torch.tensor([[1.0, 0.5, 0.0], [-1.0, 0.0, 0.5]])
    return Plain(means, torch.tensor([0.5, 0.7]), torch.tensor([0.5, 0.5]), steps=steps, **options)


def score(images: Tensor, prompts: Any) -> Tensor:
    x = images.double()[..., 0, 0]
    return x @ A - 0.1 * x.square().sum(-1)


def one_prompt(denoiser: Plain) -> EncodedPrompts:
    prompts = EncodedPrompts(denoiser, lambda: denoiser.encode([""]))
    prompts.admit([Prompt("")])
    prompts.place(0)
    return prompts


def finished(denoiser: Plain, noise: Tensor, depth: int) -> Node:
    """The node of an image, with its trail."""
    x, trail = noise, []
    for k in range(denoiser.grid.steps):
        trail.append(x[0])
        at = torch.tensor([k])
        x = denoiser.kernel.step(x, denoiser.predict(x, at, torch.tensor([0])), at, [()], [None])[0]
    node = Node(0, 0, denoiser.grid.steps, x[0])
    node.latents_before = tuple(trail[-depth:])
    return node


def stepper(denoiser: Plain, depth: int) -> AscentStepper:
    noise = InitialNoise(denoiser, denoiser.kernel, EncodedPrompts(denoiser, lambda: None))
    return AscentStepper(noise, [FunctionReward(score)], Gradient(depth))


@pytest.mark.parametrize("path", [None, VP()])
def test_direction_is_the_gradient_on_the_sphere(path: Any) -> None:
    denoiser = mixture(path=path)
    denoiser.encode([""])
    noise = torch.randn(1, 3, generator=torch.Generator().manual_seed(3)).double()
    upward, cost = stepper(denoiser, 0).directions([finished(denoiser, noise, 6)], noise, one_prompt(denoiser))
    assert (cost.nfe, cost.decodes, cost.reward_calls, cost.gradients, cost.backwards) == (6, 1, 1, 1, 6)
    found = []
    for j in range(3):
        ends = []
        for h in (1e-6, -1e-6):
            moved = noise.clone()
            moved[0, j] += h
            ends.append(float(score(finished(denoiser, moved, 1).x[None, :, None, None], None)))
        found.append((ends[0] - ends[1]) / 2e-6)
    g = torch.tensor(found).double()
    x = noise[0]
    g = g - (g @ x) / (x @ x) * x
    torch.testing.assert_close(upward[0], g / g.norm() * x.norm(), rtol=1e-5, atol=1e-6)


def test_a_cut_gradient_is_that_of_its_last_evaluations() -> None:
    denoiser = mixture()
    denoiser.encode([""])
    noise = torch.randn(1, 3, generator=torch.Generator().manual_seed(3)).double()
    node = finished(denoiser, noise, 6)
    upward, cost = stepper(denoiser, 2).directions([node], noise, one_prompt(denoiser))
    assert (cost.nfe, cost.backwards) == (2, 2)
    start, ends = node.latents_before[-2], []
    for j in range(3):
        pair = []
        for h in (1e-6, -1e-6):
            x = start.clone()
            x[j] += h
            x = x[None]
            for k in (4, 5):
                at = torch.tensor([k])
                x = denoiser.kernel.step(x, denoiser.predict(x, at, torch.tensor([0])), at, [()], [None])[0]
            pair.append(float(score(x[..., None, None], None)))
        ends.append((pair[0] - pair[1]) / 2e-6)
    g, x = torch.tensor(ends).double(), noise[0]
    g = g - (g @ x) / (x @ x) * x
    torch.testing.assert_close(upward[0], g / g.norm() * x.norm(), rtol=1e-5, atol=1e-6)


def engine(denoiser: Any, rewards: Any, batch: int = 8) -> LiveEngine:
    return LiveEngine(denoiser, rewards, EngineOptions(batch), kernel=Ode(denoiser.path, denoiser.times))


class Wide(Plain):
    """Images of 4 x 4 pixels: in many dimensions chance does not get far."""

    def decode(self, x0: Tensor) -> Tensor:
        return x0.view(-1, 3, 4, 4)


def lit(images: Tensor, prompts: Any) -> Tensor:
    return images.double().mean((1, 2, 3))


@pytest.mark.parametrize("depth", [0, 2])
def test_climbing_beats_other_seeds_at_the_same_cost(depth: int) -> None:
    denoiser = Wide(torch.zeros(2, 48), torch.tensor([0.5, 1.0]), torch.ones(2), steps=6)
    reward = [FunctionReward(lit, "lit")]
    budget = Budget(flops=400 * engine(denoiser, reward).price.flops.nfe)
    best = {}
    for name, algorithm in (("ascent", NoiseAscent(ascends=depth)), ("seeds", make_algorithm("best-of-n"))):
        (result,) = search(["a"], algorithm, engine(denoiser, reward), budget, seed=5)
        assert budget.flops is not None
        assert 0.8 * budget.flops < result.spent.flops <= budget.flops
        best[name] = result.best.reward
    assert best["ascent"] > 1.5 * best["seeds"] > 0


def test_noise_keeps_its_length_and_gradients_are_taken_once() -> None:
    denoiser, seen = mixture(), []
    live = engine(denoiser, [FunctionReward(score, "r")])
    live._rest, rest = (
        lambda job, rows, *args: (seen.extend(row.node for row in rows), rest(job, rows, *args))[1],
        live._rest,
    )  # type: ignore[method-assign]
    (result,) = search(["a"], NoiseAscent(angle=1.2, rounds=8), live)
    lengths = [float(live.noise.of(node).norm()) for node in seen]
    np.testing.assert_allclose(lengths, lengths[0], rtol=1e-9)
    failed = sum(len(move["drop"]) and move["drop"][0] != result.best.uid for move in result.trace)
    tried = {move["parents"][0] for move in result.trace[1:]}
    assert failed
    assert result.spent.cost.gradients == len(tried) < len(result.trace) - 1
    assert live.stats["gradients"] == len(tried)


@pytest.mark.parametrize("cap", ["nfe", "decodes", "reward_calls"])
def test_what_climbs_take_is_counted_and_capped(cap: str) -> None:
    """Against counters in the denoiser and in the rewards, of which the climb asks one."""
    denoiser, seen = mixture(), {"decodes": 0, "reward_calls": 0, "nfe": 0}
    decode, predict = denoiser.decode, denoiser.predict

    def count(name: str, rows: Any) -> Any:
        seen[name] += len(rows)
        return rows

    denoiser.decode = lambda x0: decode(count("decodes", x0))  # type: ignore[method-assign]
    denoiser.predict = lambda x, *more: predict(count("nfe", x), *more)  # type: ignore[method-assign]
    names = ("climbed", "other")
    rewards = [FunctionReward(lambda images, texts: score(count("reward_calls", images), texts), n) for n in names]
    live = engine(denoiser, rewards)
    budget = Budget(nfe=90 if cap == "nfe" else 10_000, **({} if cap == "nfe" else {cap: 20}))
    (result,) = search(["a"], NoiseAscent(weights=(1, 0)), live, budget)
    spent, tried = result.spent, result.spent.calibration.reward_calls
    assert tried == 1
    assert spent.cost.gradients > 0
    assert (spent.nfe, spent.cost.decodes) == (seen["nfe"], seen["decodes"])
    assert spent.cost.reward_calls == seen["reward_calls"] - tried
    assert getattr(spent.cost, cap) <= getattr(budget, cap)
    assert all(live.stats[name] == getattr(spent.cost, name) for name in seen)


def test_it_stops_at_its_target() -> None:
    reward = [FunctionReward(score, "r")]
    (free,) = search(["a"], NoiseAscent(rounds=6), engine(mixture(), reward))
    values = [s[0] for s in free.particles.scores[:, -1].tolist()]
    target = values[0] + 0.3 * (free.best.reward - values[0])
    (stopped,) = search(["a"], NoiseAscent(rounds=6, target=target), engine(mixture(), reward))
    assert target <= stopped.best.reward < free.best.reward
    assert stopped.spent.nfe < free.spent.nfe


def test_a_held_out_reward_that_falls_ends_the_climb() -> None:
    """A reward that is hacked: what is climbed rises while what is meant falls."""
    rewards = [
        FunctionReward(score, "hacked"),
        FunctionReward(lambda images, prompts: -score(images, prompts), "meant"),
    ]
    algorithm = NoiseAscent(rounds=12, held_out=1, weights=(1, 0))
    utility = make([1.0, 0.0])
    (guarded,) = search(["a"], algorithm, engine(mixture(), rewards), utility=utility, keep=4)
    (free,) = search(["a"], NoiseAscent(rounds=12, weights=(1, 0)), engine(mixture(), rewards), utility=utility)
    start = guarded.particles.scores[0, -1]
    assert len(guarded.particles) == 4  # three strikes
    assert [c.uid for c in guarded.images] == [0]
    assert guarded.best.scores["meant"] == start[1]
    assert free.best.scores["hacked"] > start[0]
    assert free.best.scores["meant"] < start[1]


def test_what_cannot_be_climbed_is_refused() -> None:
    denoiser, reward = mixture(), FunctionReward(score, "r")
    noisy = LiveEngine(denoiser, [reward], kernel=Sde(denoiser.path, denoiser.times))
    with pytest.raises(ValueError, match=r"Sde is none"):
        search(["a"], NoiseAscent(rounds=2), noisy)
    blind = FunctionReward(lambda images, prompts: images.detach().mean((1, 2, 3)), "blind")
    with pytest.raises(ValueError, match=r"'blind'"):
        search(["a"], NoiseAscent(rounds=2), engine(denoiser, [blind]))
    grid = Grid((1.0, 0.5, 0.0))
    recording = Recording(("a",), np.zeros((1, 3, 3, 1)), grid, ("r",))
    with pytest.raises(ValueError, match=r"gradients .* recording"):
        search(["a"], NoiseAscent(rounds=2), ReplayEngine(recording))
    with pytest.raises(ValueError, match=r"rounds, or"):
        search(["a"], NoiseAscent(), engine(denoiser, [reward]))


# --- after a search -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["best-of-n", "seed-pruning"])
@pytest.mark.parametrize("second", [NoiseAscent(rounds=3, ascends=2), ZeroOrder(n=2, rounds=3, restart=0.0)])
def test_refinement_goes_on_from_the_best_and_stays_within_the_budget(first: str, second: Any) -> None:
    live = engine(mixture(), [FunctionReward(score, "r")])
    (result,) = search(["a"], Refined(first, second), live, Budget(nfe=120))  # type: ignore[arg-type]
    assert 100 <= result.spent.nfe <= 120
    seeds = result.particles.parent < 0
    best = np.nanmax(result.particles.scores[seeds, -1, 0])
    assert result.best.reward > best
    born = int(np.flatnonzero(~seeds)[0])
    assert result.particles.scores[result.particles.parent[born], -1, 0] == best


def test_refinement_says_what_it_needs() -> None:
    with pytest.raises(ValueError, match=r"number of rounds"):
        Refined(second=NoiseAscent())
    with pytest.raises(ValueError, match=r"number of rounds"):
        Refined(second=make_algorithm("best-of-n"))
    assert Refined("best-of-n", n=7).first.n == 7  # type: ignore[arg-type]
    assert math.isfinite(Refined().second.rounds)  # type: ignore[attr-defined]


def test_the_guard_on_the_embedded_model() -> None:
    """The learned reward is climbed and the exact checker watched: what comes back is no worse by it than the start."""
    from ttsnap.pipelines import defaults, load

    pipe, prompts = load(), ["two red circles and a blue square", "a green cross above a red square"]
    second = NoiseAscent(rounds=4, ascends=1, held_out=1, weights=(1, 0))
    out = pipe(prompts, search=Refined("best-of-n", second, n=2), reward=["scenes-learned", "scenes"],  # type: ignore[arg-type]
               utility=[1.0, 0.0], seed=0, **{**defaults(), "num_inference_steps": 6})  # fmt: skip
    for result in out.search:
        start = max(range(2), key=lambda uid: result.particles.scores[uid, -1, 0])
        before, after = result.particles.scores[[start, result.best.uid], -1]
        assert (after >= before).all()
