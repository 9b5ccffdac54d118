"""Initial noise: climbed by gradients of rewards, and mixed with another; made again from seeds and
keys."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.counted import Counted
from ttsnap import Budget, make_algorithm, search
from ttsnap.algorithms.noise_ascent import NoiseAscent
from ttsnap.algorithms.refined import Refined
from ttsnap.algorithms.zero_order import ZeroOrder
from ttsnap.core.cost import Cost
from ttsnap.core.grid import Grid
from ttsnap.core.needs import Gradient
from ttsnap.core.prompt import Prompt
from ttsnap.core.selection import Selection
from ttsnap.core.utility import make
from ttsnap.engine.gradient_steppers import AscentStepper
from ttsnap.engine.live import LiveEngine
from ttsnap.engine.noise import InitialNoise
from ttsnap.engine.prompts import EncodedPrompts
from ttsnap.engine.store import Node
from ttsnap.options.engine import EngineOptions
from ttsnap.recordings.replay import Recording, ReplayEngine
from ttsnap.rewards.reward_model import FunctionReward
from ttsnap.sampling.interpolants import VP
from ttsnap.sampling.kernels import Ode, Sde
from ttsnap.sampling.mixture import MixtureDenoiser
from ttsnap.sampling.rng import seeded

A = torch.tensor([1.0, 0.5, -0.5]).double()


class Plain(Counted):
    """Latents are the images."""

    def decode(self, x0):
        self.decodes += len(x0)
        return x0[..., None, None]


def mixture(steps=6, **options):
    means = torch.tensor([[1.0, 0.5, 0.0], [-1.0, 0.0, 0.5]])
    return Plain(means, torch.tensor([0.5, 0.7]), torch.tensor([0.5, 0.5]), steps=steps, **options)


def score(images, prompts):
    x = images.double()[..., 0, 0]
    return x @ A - 0.1 * x.square().sum(-1)


def one_prompt(denoiser):
    prompts = EncodedPrompts(denoiser, lambda: denoiser.encode([""]))
    prompts.admit([Prompt("")])
    prompts.place(0)
    return prompts


def test_jobs_that_are_retracted_leave_no_prompt():
    prompts = EncodedPrompts(None, lambda: None)  # type: ignore[arg-type]
    prompts.admit([Prompt("a"), Prompt("b")])
    prompts.retract(1)
    assert prompts.living == [Prompt("a")]


def stepped(denoiser, x, begin=0):
    """The latents on the way from this one at step `begin`."""
    found = [x]
    for k in range(begin, denoiser.grid.steps):
        at = torch.tensor([k])
        x = denoiser.kernel.step(x, denoiser.predict(x, at, torch.tensor([0])), at, [()], [None])[0]
        found.append(x)
    return found


@pytest.mark.parametrize(("path", "depth"), [(None, 0), (VP(), 0), (None, 2)])
def test_direction_is_the_gradient_of_its_last_evaluations_on_the_sphere(path, depth):
    denoiser = mixture(path=path)
    denoiser.encode([""])
    noise = torch.randn(1, 3, generator=torch.Generator().manual_seed(3)).double()
    *trail, end = stepped(denoiser, noise)
    begin = 6 - depth if depth else 0
    node = Node(0, 0, 6, end[0])
    node.latents_before = tuple(x[0] for x in trail[begin:])
    start = InitialNoise(denoiser, denoiser.kernel, EncodedPrompts(denoiser, lambda: None))
    stepper = AscentStepper(start, [FunctionReward(score)], Gradient(depth))
    upward, cost = stepper.directions([node], noise, one_prompt(denoiser))
    assert cost == Cost(6 - begin, 1, 1, gradients=1, backwards=6 - begin)
    near = 1e-6 * torch.cat([torch.eye(3), -torch.eye(3)]).double()
    ends = [
        score(stepped(denoiser, trail[begin] + h, begin)[-1][..., None, None], None) for h in near
    ]
    g, x = torch.cat(ends[:3]) - torch.cat(ends[3:]), noise[0]
    g = g - (g @ x) / (x @ x) * x
    torch.testing.assert_close(upward[0], g / g.norm() * x.norm(), rtol=1e-5, atol=1e-6)


def engine(denoiser, rewards, batch=8):
    return LiveEngine(
        denoiser, rewards, EngineOptions(batch), kernel=Ode(denoiser.path, denoiser.times)
    )


def test_noise_keeps_its_length_and_gradients_are_taken_once():
    seen, live = [], engine(mixture(), [FunctionReward(score, "r")])
    rest = live._rest
    live._rest = lambda job, rows, *more: (
        seen.extend(row.node for row in rows),
        rest(job, rows, *more),
    )[1]  # type: ignore[method-assign]
    (result,) = search(["a"], NoiseAscent(angle=1.2, rounds=8), live)
    lengths = [float(live.noise.of(node).norm()) for node in seen]
    np.testing.assert_allclose(lengths, lengths[0], rtol=1e-9)
    assert any(move["drop"] and move["drop"][0] != result.best.uid for move in result.trace), (
        "some climbs fail"
    )
    tried = {move["parents"][0] for move in result.trace[1:]}
    assert (
        live.stats["gradients"] == result.spent.cost.gradients == len(tried) < len(result.trace) - 1
    )


@pytest.mark.parametrize("cap", ["nfe", "decodes", "reward_calls", "flops"])
def test_what_climbs_take_is_counted_and_capped(cap):
    """Against counters in the denoiser and in the rewards, of which the climb asks one."""
    shown = list[int]()

    def noted(images, prompts):
        shown.append(len(images))
        return score(images, prompts)

    live = engine(mixture(), [FunctionReward(noted, "climbed"), FunctionReward(noted, "other")])
    most = {"nfe": 90, "flops": 200 * live.price.flops.nfe}.get(cap, 20)
    (result,) = search(
        ["a"], NoiseAscent(weights=(1, 0)), live, Budget(**{"nfe": 10_000, cap: most})
    )
    cost, tried = result.spent.cost, result.spent.calibration.reward_calls
    assert tried == 1
    assert cost.gradients > 0
    assert (cost.nfe, cost.decodes, cost.reward_calls + tried) == (
        live.denoiser.calls,
        live.denoiser.decodes,
        sum(shown),
    )
    assert 0.7 * most <= (result.spent.flops if cap == "flops" else getattr(cost, cap)) <= most
    assert all(
        live.stats[name] == getattr(cost, name) for name in ("nfe", "decodes", "reward_calls")
    )


def test_it_stops_at_its_target():
    reward = [FunctionReward(score, "r")]
    (free,) = search(["a"], NoiseAscent(rounds=6), engine(mixture(), reward))
    begin = float(free.particles.scores[0, -1, 0])
    target = begin + 0.3 * (free.best.reward - begin)
    (stopped,) = search(["a"], NoiseAscent(rounds=6, target=target), engine(mixture(), reward))
    assert target <= stopped.best.reward < free.best.reward
    assert stopped.spent.nfe < free.spent.nfe


def test_a_held_out_reward_that_falls_ends_the_climb():
    """A reward that is hacked: what is climbed rises while what is meant falls."""
    meant = FunctionReward(lambda images, prompts: -score(images, prompts), "meant")
    selection = Selection(make([1.0, 0.0]), keep=4)

    def climbed(held_out):
        algorithm = NoiseAscent(rounds=12, held_out=held_out, weights=(1, 0))
        made = engine(mixture(), [FunctionReward(score, "hacked"), meant])
        return search(["a"], algorithm, made, selection=selection)[0]

    guarded, free = climbed(1), climbed(None)
    start = guarded.particles.scores[0, -1]
    assert len(guarded.particles) == 4  # three strikes
    assert [c.uid for c in guarded.images] == [0]
    assert guarded.best.scores["meant"] == start[1]
    assert free.best.scores["hacked"] > start[0]
    assert free.best.scores["meant"] < start[1]


def test_what_cannot_be_climbed_is_refused():
    denoiser, climb = mixture(), NoiseAscent(rounds=2)
    blind = FunctionReward(lambda images, prompts: images.detach().mean((1, 2, 3)), "blind")
    noisy = LiveEngine(denoiser, [FunctionReward(score)], kernel=Sde(denoiser.path, denoiser.times))
    recording = Recording(("a",), np.zeros((1, 3, 3, 1)), Grid((1.0, 0.5, 0.0)), ("r",))
    for algorithm, where, why in (
        (climb, noisy, "Sde"),
        (climb, engine(denoiser, [blind]), "'blind'"),
        (climb, ReplayEngine(recording), "gradients .* recording"),
        (NoiseAscent(), engine(denoiser, [FunctionReward(score)]), "rounds"),
    ):
        with pytest.raises(ValueError, match=why):
            search(["a"], algorithm, where)
    for second in (NoiseAscent(), make_algorithm("best-of-n")):
        with pytest.raises(ValueError, match="rounds"):
            Refined(second=second)  # type: ignore[arg-type]


# --- after a search -------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["best-of-n", "seed-pruning"])
@pytest.mark.parametrize(
    "second", [NoiseAscent(rounds=3, ascends=2), ZeroOrder(n=2, rounds=3, restart=0.0)]
)
def test_refinement_goes_on_from_the_best_and_stays_within_the_budget(first, second):
    live = engine(mixture(), [FunctionReward(score, "r")])
    (result,) = search(["a"], Refined(first, second), live, Budget(nfe=120))  # type: ignore[arg-type]
    assert 100 <= result.spent.nfe <= 120
    seeds = result.particles.parent < 0
    best = np.nanmax(result.particles.scores[seeds, -1, 0])
    assert result.best.reward > best
    born = int(np.flatnonzero(~seeds)[0])
    assert result.particles.scores[result.particles.parent[born], -1, 0] == best


# --- mixed with another ---------------------------------------------------------------------------


def noise_of(size, init=lambda x, key, generator: None):
    """Initial noise of so many float64 numbers."""
    denoiser = MixtureDenoiser(torch.zeros(1, size), torch.ones(1), torch.ones(1), steps=2)
    kernel = SimpleNamespace(init=init)
    return InitialNoise(denoiser, kernel, one_prompt(denoiser))


def test_a_seeds_noise_depends_on_the_seed_alone():
    begun = []
    noise = noise_of(
        6, lambda x, key, generator: begun.append((key, torch.randn(3, generator=generator)))
    )
    nodes = [Node(0, seed, 0) for seed in (17, 3, 8, 16)]
    noise.draw(nodes)
    for node, (key, next_drawn) in zip(nodes, begun, strict=True):
        expected = seeded(node.seed)
        assert torch.equal(node.x, torch.randn(6, generator=expected).double())
        assert key == (node.seed, 0)
        # what a sampler draws goes on from there
        assert torch.equal(next_drawn, torch.randn(3, generator=expected))
    assert torch.equal(noise.of(nodes[2]), nodes[2].x)


@given(changes=st.lists(st.floats(0, 1), min_size=1, max_size=5), seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_mixed_noise_is_made_again(changes, seed):
    noise, node = noise_of(33), Node(0, seed, 0)
    for i, share in enumerate(changes):
        node = noise.near(node, share, (seed, i + 1, 99))
    assert torch.equal(noise.of(node), node.x)
    assert torch.equal(noise.of(Node(0, seed, 5, mixed_in=node.mixed_in)), node.x)


@pytest.mark.parametrize("share", [0.0, 0.8])
def test_it_is_standard_normal_and_correlated_as_said(share):
    n, noise = 3000, noise_of(32)
    pairs = [
        (noise.of(node := Node(0, s, 0)), noise.near(node, share, (s, 1, 99)).x) for s in range(n)
    ]
    parents, children = map(torch.stack, zip(*pairs, strict=True))
    assert all(x.mean().abs() < 4 / math.sqrt(x.numel()) for x in (parents, children))
    for one, other, expected in (
        (parents, parents, 1),
        (children, children, 1),
        (parents, children, share),
    ):
        off = one.T @ other / n - expected * torch.eye(32, dtype=torch.float64)
        assert off.abs().max() < 5.5 / math.sqrt(n)
