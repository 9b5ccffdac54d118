"""Kernels that keep a history: what a particle carries goes with it, whatever batch it is in, and forks at a branch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from tests.counted import Brightness
from ttsnap import search
from ttsnap.core.moves import advance, fresh, perturb
from ttsnap.core.needs import Gradient, Need, Needs
from ttsnap.engine.live import LiveEngine
from ttsnap.options.engine import EngineOptions
from ttsnap.sampling import rng
from ttsnap.sampling.kernels import Ode, Prediction
from ttsnap.sampling.mixture import MixtureDenoiser


@dataclass(frozen=True)
class Remembering:
    """The ODE's step plus noise by key; a particle carries its key and every step that it took."""

    ode: Ode
    stochastic: ClassVar[bool] = True
    keeps_history: ClassVar[bool] = True

    def init(
        self, noise: Tensor, key: rng.Key, generator: torch.Generator, guess: Tensor | None = None
    ) -> tuple[Any, ...]:
        return (key,)

    def step(
        self, x: Tensor, prediction: Prediction, k: Tensor, keys: Sequence[rng.Source], state: Sequence[tuple[Any, ...]]
    ) -> tuple[Tensor, list[tuple[Any, ...]]]:
        moved, _ = self.ode.step(x, prediction, k, keys, state)
        moved = moved + 0.1 * rng.noise(keys, x)
        return moved, [(*before, key) for before, key in zip(state, keys, strict=True)]


@dataclass(frozen=True)
class Branching:
    """Two seeds to step 2; the first goes on with a child beside it, the second stays; then all to the end."""

    n: int = 2
    needs: ClassVar[Needs] = frozenset({Need.BRANCH, Need.MIX})
    lockstep: ClassVar[bool] = False

    def init(self, task: Any) -> int:
        return 0

    def step(self, state: int, particles: Any, rng: Any) -> Any:
        moves = (
            lambda: fresh(2, 2, score=False),
            lambda: advance(particles, [0, 0], 3, score=False),
            lambda: perturb([1], 0.5, 2),
            lambda: advance(particles, [0, 1, 2, 3], 4),
        )
        return (moves[state](), state + 1) if state < len(moves) else (None, state)


def remembering(batch: int) -> LiveEngine:
    denoiser = MixtureDenoiser(torch.randn(2, 3), torch.ones(2), torch.ones(2), steps=4)
    kernel = Remembering(Ode(denoiser.path, denoiser.times))
    return LiveEngine(denoiser, [Brightness()], EngineOptions(batch), kernel=kernel)


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_each_particle_carries_its_own_history(batch: int) -> None:
    live = remembering(batch)
    states: dict[int, tuple[Any, ...]] = {}
    release = live.release

    def ending(job: int) -> None:
        states.update({uid: live.store[job, uid].node.kernel_state for of, uid in live.store if of == job})
        release(job)

    live.release = ending  # type: ignore[method-assign]
    search(["a"], Branching(), live, seed=5, keep=4)
    trunk = (5, 0)
    assert states[0] == (trunk, (5, 0, 0), (5, 0, 1), (5, 0, 2), (5, 0, 3))
    assert states[1] == ((6, 0), (6, 0, 0), (6, 0, 1), (6, 0, 2), (6, 0, 3))
    # The child shares the trunk's first two steps, and draws its own noise from there on.
    assert states[2] == (trunk, (5, 0, 0), (5, 0, 1), (5, 3, 2), (5, 3, 3))
    # Mixed initial noise begins a history of its own.
    assert states[3] == ((6, 4), (6, 4, 0), (6, 4, 1), (6, 4, 2), (6, 4, 3))


def test_what_needs_a_sampler_without_history_is_refused() -> None:
    live = remembering(batch=2)
    assert live.offers == {Need.BRANCH, Need.MIX, Need.ASCEND}
    with pytest.raises(ValueError, match="deterministic sampler without a history, and Remembering is none"):
        live.differentiate(Gradient())
