"""Scores after a short coarse rollout: what they are, what they cost, and that the particle does not follow them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ttsnap import BestOfN, SeedPruning, search
from ttsnap.core.grid import Task
from ttsnap.core.looks import Estimator, Rollout
from ttsnap.engine.live import LiveEngine
from ttsnap.options.engine import EngineOptions
from ttsnap.rewards.reward_model import FunctionReward
from ttsnap.sampling.kernels import Ode
from ttsnap.sampling.mixture import MixtureDenoiser
from ttsnap.sampling.rng import seeded
from ttsnap.simulation.lockstep import lockstep


def bright() -> Any:
    return FunctionReward(lambda images, prompts: images.double().mean((1, 2, 3)), "bright")


def make(steps: int = 12, batch: int = 4) -> LiveEngine:
    means, weights = torch.randn(4, 3, generator=seeded(0)), torch.tensor([0.1, 0.2, 0.3, 0.4])
    denoiser = MixtureDenoiser(means, torch.full((4,), 0.3), weights, steps=steps)
    denoiser.calls = 0  # type: ignore[attr-defined]
    predict = denoiser.predict

    def counted(x: Any, step: Any, cond: Any) -> Any:
        denoiser.calls += len(x)  # type: ignore[attr-defined]
        return predict(x, step, cond)

    denoiser.predict = counted  # type: ignore[method-assign]
    return LiveEngine(denoiser, [bright()], EngineOptions(batch))


@pytest.mark.parametrize(("stop", "rollout", "points"), [
    (0, 3, [4, 8]), (0, 1, []), (2, 2, [7]), (10, 5, [11]), (11, 4, []), (12, 4, []), (0, 12, list(range(1, 12))),
])  # fmt: skip
def test_points_are_spread_over_what_is_left(stop: int, rollout: int, points: list[int]) -> None:
    assert Rollout(rollout).points(stop, 12) == points


def test_a_rollout_is_a_coarse_rollout_from_the_particles_state() -> None:
    live = make()
    (result,) = search(["a"], SeedPruning(5, (0.4,), steps=(2,), rollout=3), live, keep=2)
    denoiser = make().denoiser
    x, cond = denoiser.init_latents([seeded(i) for i in range(5)]), torch.zeros(5, dtype=torch.long)
    ode = Ode(denoiser.path, denoiser.times)
    points = [0, 1, 2, *Rollout(3).points(2, 12)]
    for k, to in zip(points, [*points[1:], 12], strict=True):
        at = torch.full((5,), k)
        x = ode.jump(x, denoiser.predict(x, at, cond), at, torch.full((5,), to))
    expected = denoiser.decode(x).double().mean((1, 2, 3))
    np.testing.assert_allclose(result.particles.scores[:, 2, 0], expected, atol=1e-12)
    # 5 seeds take 3 + 2 evaluations each, 2 survivors go on from step 2, where their first one is paid.
    assert result.spent.nfe == 5 * (3 + 2) + 2 * (12 - 3) == live.denoiser.calls  # type: ignore[attr-defined]
    # What survives is what best-of-N makes of the same seeds: the rollout was not followed.
    (whole,) = search(["a"], BestOfN(5), make(), keep=5)
    by_seed = {c.seed: c.reward for c in whole.images}
    assert all(c.reward == pytest.approx(by_seed[c.seed], abs=1e-12) for c in result.images)


@given(
    seeds=st.integers(1, 9),
    rollout=st.integers(1, 6),
    check=st.integers(0, 7),
    budget=st.integers(8, 90),
    batch=st.integers(1, 7),
    stop_after=st.none() | st.integers(0, 15),
)
@settings(max_examples=80, deadline=None)
def test_ledger_equals_counter(
    seeds: int, rollout: int, check: int, budget: int, batch: int, stop_after: int | None
) -> None:
    live, ticks = make(8, batch), []
    results = search(
        ["a", "b"], SeedPruning(seeds, (0.5,), steps=(check,), rollout=rollout), live, f"{budget}nfe",
        on_event=lambda event: ticks.append(event) if event.kind == "tick" else None,
        should_stop=lambda: stop_after is not None and len(ticks) > stop_after,
    )  # fmt: skip
    assert sum(r.spent.nfe for r in results) == live.denoiser.calls  # type: ignore[attr-defined]
    assert all(r.spent.nfe <= budget for r in results)
    assert all(r.images for r in results) or stop_after is not None


def test_simulation_counts_a_rollout_as_the_ledger_does() -> None:
    def lookup(searches: Any, rows: Any, steps: Any, look: Estimator) -> Any:
        return np.random.default_rng(0).normal(size=(*rows.shape, 1))

    algorithm, task = SeedPruning(5, (0.4,), steps=(2,), rollout=3), Task(make().grid)
    assert lockstep(algorithm, lookup, 4, task).paid.nfe.tolist() == [5 * (3 + 2) + 2 * (12 - 3)] * 4


def test_rollouts_need_a_path_and_a_replay_refuses_them(monkeypatch: pytest.MonkeyPatch) -> None:
    live = make()
    monkeypatch.setattr(MixtureDenoiser, "can", frozenset())
    with pytest.raises(ValueError, match="rollouts"):
        search(["a"], SeedPruning(2, rollout=3), live)
