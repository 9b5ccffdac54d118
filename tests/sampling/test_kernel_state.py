"""Kernels that keep a history: what a particle carries goes with it, whatever batch it is in, and
forks at a branch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from tests.counted import Brightness
from tests.scripted import Played
from ttsnap import search
from ttsnap.core.moves import advance, fresh, perturb
from ttsnap.core.needs import Gradient, Need
from ttsnap.core.selection import Selection
from ttsnap.engine.live import LiveEngine
from ttsnap.options.engine import EngineOptions
from ttsnap.sampling import rng
from ttsnap.sampling.kernels import Ode
from ttsnap.sampling.mixture import MixtureDenoiser


@dataclass(frozen=True)
class Remembering:
    """The ODE's step plus noise by key; a particle carries its key and every step that it took."""

    ode: Ode
    stochastic: ClassVar[bool] = True
    keeps_history: ClassVar[bool] = True

    def init(self, noise, key, generator, guess=None):
        return (key,)

    def step(self, x, prediction, k, keys, state):
        moved, _ = self.ode.step(x, prediction, k, keys, state)
        return moved + 0.1 * rng.noise(keys, x), [
            (*before, key) for before, key in zip(state, keys, strict=True)
        ]


def remembering(batch):
    denoiser = MixtureDenoiser(torch.randn(2, 3), torch.ones(2), torch.ones(2), steps=4)
    kernel = Remembering(Ode(denoiser.path, denoiser.times))
    return LiveEngine(denoiser, [Brightness()], EngineOptions(batch), kernel=kernel)


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_each_particle_carries_its_own_history(batch):
    """Two seeds to step 2; the first goes on with a child beside it, the second stays; then all to
    the end."""
    live = remembering(batch)
    states = {}
    release = live.release

    def ending(job):
        states.update(
            {uid: live.store[job, uid].node.kernel_state for of, uid in live.store if of == job}
        )
        release(job)

    live.release = ending  # type: ignore[method-assign]
    moves = (
        lambda particles: fresh(2, 2, score=False),
        lambda particles: advance(particles, [0, 0], 3, score=False),
        lambda particles: perturb([1], 0.5, 2),
        lambda particles: advance(particles, [0, 1, 2, 3], 4),
    )
    search(
        ["a"],
        Played(moves, frozenset({Need.BRANCH, Need.MIX})),
        live,
        seed=5,
        selection=Selection(keep=4),
    )
    assert states == {
        0: ((5, 0), (5, 0, 0), (5, 0, 1), (5, 0, 2), (5, 0, 3)),
        1: ((6, 0), (6, 0, 0), (6, 0, 1), (6, 0, 2), (6, 0, 3)),
        # The child shares the trunk's first two steps, and draws its own noise from there on.
        2: ((5, 0), (5, 0, 0), (5, 0, 1), (5, 3, 2), (5, 3, 3)),
        # Mixed initial noise begins a history of its own.
        3: ((6, 4), (6, 4, 0), (6, 4, 1), (6, 4, 2), (6, 4, 3)),
    }


def test_what_a_kernel_or_a_denoiser_cannot_do_is_refused():
    live = remembering(batch=2)
    assert live.offers == {Need.BRANCH, Need.MIX, Need.ASCEND}
    with pytest.raises(ValueError, match="Remembering is none"):
        live.differentiate(Gradient())
    with pytest.raises(ValueError, match=r"set pipe\.preview_vae"):
        LiveEngine(live.denoiser, [Brightness()], EngineOptions(preview=True))
