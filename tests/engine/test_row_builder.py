"""What each kind of row starts from, and what is scored where it stops."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from ttsnap.core.looks import ESTIMATE
from ttsnap.core.moves import Kind, Rows
from ttsnap.core.plans import Plan
from ttsnap.core.prompt import Prompt
from ttsnap.engine.looks import EstimateRun, FinishedRun, LookRun, look_run
from ttsnap.engine.rows import Beginning, NearNoise, RowBuilder
from ttsnap.engine.shared_denoiser import EncodedPrompts, InitialNoise
from ttsnap.engine.stepper import Stepper
from ttsnap.engine.store import Node, Particle, Store
from ttsnap.sampling import rng
from ttsnap.sampling.kernels import Prediction, Sde
from ttsnap.sampling.mixture import MixtureDenoiser


@pytest.fixture
def denoiser() -> MixtureDenoiser:
    return MixtureDenoiser(torch.eye(3), torch.ones(3), torch.ones(3), steps=8)


@pytest.fixture
def noise(denoiser: MixtureDenoiser) -> InitialNoise:
    prompts = EncodedPrompts(denoiser, lambda: denoiser.encode(["", "", ""]))
    prompts.admit([Prompt(""), Prompt(""), Prompt("")])
    prompts.place(0)
    return InitialNoise(denoiser, Sde(denoiser.path, denoiser.times), prompts)


def parent(denoiser: MixtureDenoiser, at: int = 4) -> Node:
    node = Node(job=1, seed=7, position=at, latent=torch.tensor([0.3, -0.2, 0.9]).double())
    node.prediction = Prediction(node.x, node.x)
    return node


KEY = (7, 9)
"""Of a child with uid 8."""


def begin(noise: InitialNoise, kind: Kind, *particles: Particle, start: int = 4, share: float = 1.0) -> Beginning:
    """How a row of this kind begins, from particle 0 where there is one; a row NEAR is near particle 1."""
    seed, store = particles[0].node.seed if particles else 5, Store({(1, i): p for i, p in enumerate(particles)})
    one, none = np.ones(1, int), np.empty(0, int)
    rows = Rows(kind * one, one - 1 if particles else -one, start * one, one * 8, one > 0, share * one)
    plan = Plan(rows, one * 8, (seed * one).astype(np.uint64), one, one > 0, {}, ESTIMATE, none, none)
    return RowBuilder(noise, store).beginning(1, plan, 0)


def test_a_fresh_seed_is_drawn_only_when_the_network_is_to_see_it(noise: InitialNoise) -> None:
    begun = begin(noise, Kind.FRESH)
    assert (begun.node.job, begun.node.seed, begun.node.position, begun.node.latent) == (1, 5, 0, None)
    with pytest.raises(RuntimeError, match="noise of seed 5 was not drawn yet"):
        _ = begun.node.x
    noise.draw([begun.node])
    assert torch.equal(begun.node.x, torch.randn(3, generator=rng.seeded(5)).double())
    assert begun.key == (5, 0)


def test_who_goes_on_keeps_its_noise_and_a_child_gets_its_own(denoiser: MixtureDenoiser, noise: InitialNoise) -> None:
    node, key = parent(denoiser), (7, 3)
    sibling = parent(denoiser, at=5)
    on, child = (begin(noise, kind, Particle(node, key)) for kind in (Kind.CONTINUE, Kind.BRANCH))
    with pytest.raises(ValueError, match="particle 1 was not made by one step from where 0 is"):
        begin(noise, Kind.NEAR, Particle(node, key), Particle(sibling, (7, 4)), share=0.6)
    sibling.step_noise = (7, 4, 4)
    near = begin(noise, Kind.NEAR, Particle(node, key), Particle(sibling, (7, 4)), share=0.6)
    assert on.node is child.node is near.node is node
    assert (on.key, on.branched_at) == (key, -1)
    assert (child.key, child.branched_at, child.near) == (KEY, 4, None)
    assert (near.key, near.branched_at, near.near) == (KEY, 4, NearNoise((7, 4, 4), 0.6))


def test_mixed_noise_is_made_of_the_parents_and_fresh_noise(denoiser: MixtureDenoiser, noise: InitialNoise) -> None:
    first = begin(noise, Kind.MIX, Particle(parent(denoiser), (7, 3)), share=0.8).node
    old, new = noise.of(parent(denoiser)), denoiser.init_latents([rng.generator((*KEY, 8))])[0]
    torch.testing.assert_close(first.x, 0.8 * old + 0.6 * new)
    assert (first.position, first.prediction) == (0, None)
    # What was mixed once is mixed again, and can be made again from seeds and keys.
    second = noise.near(first, 0.6, (7, 11, 8))
    torch.testing.assert_close(noise.of(second), second.x)
    torch.testing.assert_close(second.x, 0.6 * first.x + 0.8 * denoiser.init_latents([rng.generator((7, 11, 8))])[0])


def test_a_renoised_latent_is_the_parents_with_noise_on_it(denoiser: MixtureDenoiser, noise: InitialNoise) -> None:
    node = parent(denoiser)
    found = begin(noise, Kind.RENOISE, Particle(node, (7, 3)), start=2).node
    t, s = float(denoiser.times[4]), float(denoiser.times[2])
    ratio = (1 - s) / (1 - t)
    xi = rng.noise([(*KEY, 8)], node.x[None])[0]
    torch.testing.assert_close(found.x, ratio * node.x + math.sqrt(s**2 - (ratio * t) ** 2) * xi)
    assert (found.position, found.prediction, found.seed) == (2, None, 7)


def test_an_ascending_row_waits_for_its_parents_gradient(denoiser: MixtureDenoiser, noise: InitialNoise) -> None:
    node = parent(denoiser, at=8)
    begun = begin(noise, Kind.ASCEND, Particle(node, (7, 3)), share=0.9)
    assert begun.ascends_from == (node, 0.9)
    assert (begun.node.position, begun.node.latent) == (0, None)
    with pytest.raises(RuntimeError, match="plain steps follow no gradient"):
        Stepper(denoiser, Sde(denoiser.path, denoiser.times)).differentiate(
            [node], EncodedPrompts(denoiser, lambda: None)
        )


@pytest.mark.parametrize(
    ("look", "score", "stop", "kind"),
    [
        (ESTIMATE, False, 3, LookRun),
        (ESTIMATE, True, 3, EstimateRun),
        (ESTIMATE, True, 8, FinishedRun),
    ],
)
def test_the_look_that_a_row_gets(
    denoiser: MixtureDenoiser, look: Any, score: bool, stop: int, kind: type[LookRun]
) -> None:
    found = look_run(look, score, stop, denoiser)
    assert type(found) is kind
    assert found.scores == score
    assert found.reads_estimate == (kind is EstimateRun)


def test_an_unknown_look_is_refused(denoiser: MixtureDenoiser) -> None:
    class Crystal:
        name = "crystal ball"

    with pytest.raises(ValueError, match="cannot look at particles by 'crystal ball'"):
        look_run(Crystal(), True, 3, denoiser)  # type: ignore[arg-type]


def test_particles_leave_the_store_when_they_are_dropped() -> None:
    store, particle = Store(), Particle(Node(0, 1, 0), (1, 0))
    store[0, 5] = particle
    store.remove(1, [5])
    assert store[0, 5] is particle
    store.remove(0, [5, 6])
    with pytest.raises(KeyError):
        _ = store[0, 5]
