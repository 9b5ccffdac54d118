"""Seeds that begin in groups: what they cost, that the ledger counts them as they run, and what depends on what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.counted import Counted
from tests.engine.test_drafts import bright
from ttsnap import BestOfN, SeedPruning, make_algorithm, search
from ttsnap.algorithms.catalogue import ALGORITHMS
from ttsnap.algorithms.pricing.fitting import fit
from ttsnap.algorithms.pricing.price_of_compute import PriceOfCompute
from ttsnap.core.cost import Cost, SeedGroups
from ttsnap.core.looks import estimates
from ttsnap.core.plans import image_cost
from ttsnap.core.prompt import Prompt
from ttsnap.engine.live import LiveEngine
from ttsnap.loop.budget import Budget
from ttsnap.loop.dry import DryEngine
from ttsnap.options.engine import EngineOptions
from ttsnap.options.record import RecordOptions
from ttsnap.recordings.folder import load_recording, save_recording
from ttsnap.recordings.record import describe, record
from ttsnap.recordings.replay import Recording, ReplayEngine
from ttsnap.sampling.kernels import Sde
from ttsnap.sampling.rng import seeded
from ttsnap.simulation.orders import Orders
from ttsnap.simulation.simulate import curve

STEPS, AHEAD, SIZE = 8, 2, 4
OTHERS = {"price-of-compute", "keep-all", "by-hand", "refined", "noise-ascent"}
"""Algorithms that refuse groups, or have no budget."""


class Grouped(Counted):
    """Takes `AHEAD` of its eight steps in groups, whose members are pushed away from their mean."""

    def __init__(self, size: int = SIZE, push: float = 0.5, noisy: bool = False) -> None:
        mixture = torch.randn(4, 3, generator=seeded(0)), torch.full((4,), 0.3), torch.tensor([0.1, 0.2, 0.3, 0.4])
        self.whole, self.push, self.sizes = Counted(*mixture, steps=STEPS), push, list[int]()
        super().__init__(*mixture, steps=self.whole.times[AHEAD:])
        self.grid = replace(self.grid, image_nfe=STEPS)
        if noisy:
            self.kernel, self.whole.kernel = Sde(self.path, self.times), Sde(self.path, self.whole.times)
        self.groups: Any = SimpleNamespace(size=size, nfe=AHEAD, begin=self.together, flops=lambda: 0.5)

    def encode(self, prompts: Any) -> None:
        super().encode(prompts)
        self.whole.encode(prompts)

    def together(
        self, noise: Tensor, cond: Tensor, keys: Sequence[Any], generators: Sequence[torch.Generator]
    ) -> tuple[Tensor, list[None]]:
        x, kernel, alone = noise, self.whole.kernel, keys[0][1] > 0
        self.sizes.append(0 if alone else len(x))
        for k in range(AHEAD):
            at = torch.full((len(x),), k)
            x, _ = kernel.step(x, self.whole.predict(x, at, cond), at, [(*key, k) for key in keys], [None] * len(x))
            if not alone:
                x = x + self.push * (x - x.mean(0))
        return x, [None] * len(x)


def made(batch: int = 4, **how: Any) -> LiveEngine:
    return LiveEngine(Grouped(**how), [bright()], EngineOptions(batch))


def ran(live: LiveEngine) -> tuple[int, int, int]:
    """Evaluations of the denoiser, coupled ones, and decodes."""
    denoiser = live.denoiser
    assert isinstance(denoiser, Grouped)
    return denoiser.calls + denoiser.whole.calls, AHEAD * sum(denoiser.sizes), denoiser.decodes


def attack(number: int) -> bool:
    """A random search by any algorithm, with any budget, size of groups and batches, stopped anywhere or not at all;
    False where that cannot be."""
    draw, ticks = np.random.default_rng(number), list[Any]()
    live = made(int(draw.integers(1, 9)), size=int(draw.integers(1, 7)), noisy=draw.random() < 0.8)
    name, one = str(draw.choice(sorted(set(ALGORITHMS) - OTHERS))), image_cost(live.grid, 1, live.price).nfe
    options = {"n": int(draw.integers(2, 20))} if draw.random() < 0.8 else {}
    budget, stop_after = int(draw.integers(one, 3 * one)), int(draw.integers(0, 30))
    try:
        results = search(
            ["a", "b"], make_algorithm(name, **options), live, f"{budget}nfe", shared=bool(draw.integers(2)),
            seed=int(draw.integers(100)), on_event=lambda event: ticks.append(event) if event.kind == "tick" else None,
            should_stop=lambda: len(ticks) > stop_after,
        )  # fmt: skip
    except ValueError:
        assert ran(live) == (0, 0, 0), name
        return False
    spent = sum((r.spent.cost for r in results), Cost())
    assert (spent.nfe, spent.coupled, spent.decodes) == ran(live), (number, name)
    assert spent.nfe <= 2 * budget, (number, name)
    assert all(r.images for r in results) or len(ticks) > stop_after, (number, name)
    return True


def test_ledger_equals_counter() -> None:
    assert sum(attack(number) for number in range(300)) > 200


def found(live: LiveEngine, prompts: Sequence[str], n: int = 6, seed: int = 3) -> dict[tuple[str, int], Tensor]:
    results = search(prompts, BestOfN(n), live, keep=n, seed=seed)
    return {(result.prompt, image.seed): image.pixels for result in results for image in result.images}


@pytest.mark.parametrize("noisy", [False, True])
def test_a_group_of_one_is_the_model(noisy: bool) -> None:
    """Noise of steps is drawn by the same keys."""
    alone = found(made(size=1, noisy=noisy), ["a"])
    model = made(noisy=noisy).denoiser.whole  # type: ignore[attr-defined]
    plain = found(LiveEngine(model, [bright()], EngineOptions(3)), ["a"])
    assert all(torch.equal(alone[key], pixels) for key, pixels in plain.items())
    grouped = found(made(noisy=noisy), ["a"])
    assert not any(torch.equal(grouped[key], pixels) for key, pixels in plain.items())


def test_what_is_found_depends_on_no_other_request_and_no_batch() -> None:
    """Nor on how many seeds of a group are searched."""
    alone = found(made(1), ["b"], 8)
    for others in (found(made(7), ["a", "b", "c"], 8), found(made(3), ["b"], 6)):
        for (prompt, seed), pixels in others.items():
            if prompt == "b":
                assert torch.equal(alone[prompt, seed], pixels)


def test_a_group_is_evaluated_whole_or_not_at_all() -> None:
    live = made()
    (result,) = search(["a"], BestOfN(6), live, "53nfe", seed=3)
    assert live.denoiser.sizes == [SIZE, SIZE]  # type: ignore[attr-defined]
    assert result.spent.nfe == 2 * SIZE * AHEAD + 6 * (STEPS - AHEAD)
    assert [row["cost"]["nfe"] for row in result.trace] == [result.spent.nfe]
    assert image_cost(live.grid, 1, live.price).nfe == SIZE * AHEAD + STEPS - AHEAD
    assert Budget.parse("2images").on(live.grid).nfe == 2 * STEPS
    with pytest.raises(ValueError, match="one image with the group of 4 seeds"):
        search(["a"], BestOfN(), live, "13nfe")
    assert not live.noise.groups._ready  # type: ignore[union-attr]


def test_a_group_that_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError

    live = made()
    monkeypatch.setattr(live.denoiser.groups, "begin", full)
    with pytest.raises(ValueError, match="take smaller groups"):
        search(["a"], BestOfN(3), live)
    assert live.batch_size == 4


def test_mixed_noise_begins_alone() -> None:
    live = made(noisy=True)
    (result,) = search(["a"], make_algorithm("zero-order"), live, "90nfe")
    mixed = int((result.particles.parent >= 0).sum())
    assert mixed > 0
    assert live.denoiser.sizes.count(0) == mixed  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["noise-ascent", "refined"])
def test_gradients_of_initial_noise_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        search(["a"], make_algorithm(name), made(), "90nfe")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    options = RecordOptions(seeds=30, seed=3, block=(1, 12))
    return record(made(), ["a", "b"], tmp_path_factory.mktemp("recorded") / "r", options)


def test_a_replay_is_the_live_search(recorded: Recording, tmp_path: Path) -> None:
    save_recording(recorded, tmp_path / "r")
    again = load_recording(tmp_path / "r")
    assert (again.grid, again.price) == (recorded.grid, recorded.price)
    assert again.price.groups == SeedGroups(SIZE, AHEAD)
    for algorithm in (SeedPruning(), BestOfN()):
        live = search(["a", "b"], algorithm, made(), "60nfe", seed=3)
        replayed = search(["a", "b"], algorithm, ReplayEngine(again), "60nfe", seed=3)
        for x, y in zip(live, replayed, strict=True):
            assert (x.best.seed, x.spent.cost) == (y.best.seed, y.spent.cost)
            assert [(m["uids"], m["stop"]) for m in x.trace] == [(m["uids"], m["stop"]) for m in y.trace]


def test_a_replay_begins_where_a_group_does(recorded: Recording) -> None:
    search(["a"], BestOfN(3), ReplayEngine(recorded), seed=3 + SIZE)
    with pytest.raises(ValueError, match="of which 4 begins none"):
        search(["a"], BestOfN(3), ReplayEngine(recorded), seed=4)


def test_a_block_of_a_recording_holds_whole_groups(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds a multiple"):
        record(made(), ["a"], tmp_path / "r", RecordOptions(seeds=30, block=(1, 13)))
    whole = record(made(2), ["a"], tmp_path / "s", RecordOptions(seeds=21))
    parts = record(made(2), ["a"], tmp_path / "t", RecordOptions(seeds=21, block=(1, 4)))
    assert np.array_equal(whole.scores, parts.scores)
    assert describe(made(), [Prompt("a")], RecordOptions(seeds=2 * SIZE), {}).nfe == STEPS  # a seed


def test_lockstep_pays_as_the_loop_does_and_keeps_groups_together(recorded: Recording) -> None:
    for algorithm in (SeedPruning(), BestOfN()):
        in_step = curve(recorded, algorithm, [Budget(nfe=60)], 5)
        dry = DryEngine(recorded.grid, ("bright",), price=recorded.price)
        assert in_step.spent.mean() == pytest.approx(search(["a"], algorithm, dry, "60nfe")[0].spent.nfe)
    seeds = Orders.drawn(recorded, 50, np.random.default_rng(0)).seeds
    assert (np.sort(seeds, 1) == np.arange(30)).all()
    groups = seeds[:, :28].reshape(100, 7, SIZE) // SIZE
    assert (groups == groups[..., :1]).all()
    assert len({tuple(row) for row in groups[..., 0].tolist()}) > 90
    assert len({tuple(row) for row in seeds[:, :SIZE].tolist()}) > 50
    forecast = fit(np.tile(recorded.scores[..., 0], (2, 1, 1)), recorded.grid.levels, estimates(1, 6))
    with pytest.raises(ValueError, match="starts seeds that wait"):
        search(["a"], PriceOfCompute(forecast, price=0.01), ReplayEngine(recorded), "25nfe", seed=3)
