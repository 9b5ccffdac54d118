"""Drafts: what they cost, that the ledger counts them as they run, and that a search by them is what it seems."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.counted import Counted
from tests.cover import each_once
from tests.scripted import Played
from ttsnap import BestOfN, SeedPruning, make_algorithm, search
from ttsnap.algorithms.evolution import Evolution
from ttsnap.algorithms.keep_all import KeepAll
from ttsnap.algorithms.pricing.fitting import fit
from ttsnap.algorithms.pricing.price_of_compute import PriceOfCompute
from ttsnap.core.grid import Task
from ttsnap.core.looks import ByStep, Draft, EstimatorAt, estimates
from ttsnap.core.moves import advance, fresh
from ttsnap.core.needs import NOTHING, Need
from ttsnap.core.results import Event
from ttsnap.engine.live import LiveEngine
from ttsnap.loop.budget import Budget, task_of
from ttsnap.loop.dry import DryEngine
from ttsnap.options.engine import EngineOptions
from ttsnap.options.record import RecordOptions
from ttsnap.recordings.folder import OpenRecording, load_recording, save_recording
from ttsnap.recordings.header import Header
from ttsnap.recordings.record import record
from ttsnap.recordings.replay import Recording, ReplayEngine
from ttsnap.rewards.reward_model import FunctionReward
from ttsnap.sampling.denoiser import Costs
from ttsnap.sampling.kernels import Ode, Sde
from ttsnap.sampling.rng import seeded


class Drafting(Counted):
    """Its drafter knows where the sampler ends, after which it adds an error that depends on the latent; a call of it
    takes one of the two passes of an evaluation. Counts what is drafted, row by row."""

    passes_per_nfe = 2

    def __init__(self, *args: Any, error: float = 0.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.error, self.drafted = error, 0
        self.drafts: Any = SimpleNamespace(calls=1, passes=1, guess=self.guess, level=self.level, start=None)

    def guess(self, x: Tensor, step: Tensor, cond: Tensor, calls: int) -> Tensor:
        self.drafted += calls * len(x)
        ode, noise, calls_before, batches = Ode(self.path, self.times), x, self.calls, self.batches
        ends = []
        for row, k, prompt in zip(x, step.tolist(), cond, strict=True):
            latent = row[None]
            for at in range(k, self.grid.steps):
                prediction = self.predict(latent, torch.tensor([at]), prompt[None])
                latent = ode.jump(latent, prediction, torch.tensor([at]), torch.tensor([at + 1]))
            ends.append(latent[0])
        self.calls, self.batches = calls_before, batches
        return torch.stack(ends) + self.error / calls * torch.sin(7 * noise)

    def level(self, step: int, calls: int) -> float:
        return 0.9 * self.grid.levels[step] / calls

    def costs(self) -> Costs:
        return super().costs()._replace(draft=3.0)


DRAFTS = frozenset({Need.DRAFT})


def bright() -> Any:
    return FunctionReward(lambda images, prompts: images.double().mean((1, 2, 3)), "bright")


def made(steps: int = 8, error: float = 0.0, batch: int = 4, rewards: Any = None, **settings: Any) -> LiveEngine:
    means, weights = torch.randn(4, 3, generator=seeded(0)), torch.tensor([0.1, 0.2, 0.3, 0.4])
    denoiser = Drafting(means, torch.full((4,), 0.3), weights, steps=steps, error=error)
    return LiveEngine(denoiser, rewards or [bright()], EngineOptions(batch), **settings)


def counted(live: LiveEngine) -> Drafting:
    assert isinstance(live.denoiser, Drafting)
    return live.denoiser


def test_a_perfect_drafter_finds_the_best_of_all_it_drafted() -> None:
    live = made()
    (result,) = search(["a"], SeedPruning(30, keep=(1.0,), draft_share=0.6), live)
    (every,) = search(["a"], BestOfN(30), made())
    assert result.best.seed == every.best.seed
    assert result.best.reward == pytest.approx(every.best.reward, abs=1e-12)
    assert result.spent.cost.draft_calls == counted(live).drafted == 30
    assert result.spent.cost.nfe == counted(live).calls < 30 * 8 / 4
    assert result.spent.forward_passes == 2 * result.spent.cost.nfe + 30 == 2 * result.spent.nfe
    assert (told := result.spent.to_json())["draft_calls"] == 30
    assert told["nfe"] == result.spent.counts()["nfe"] == result.spent.nfe == result.spent.cost.nfe + 15
    assert f"{result.spent.nfe:.0f} NFE" in repr(result)
    assert str(result.spent).startswith(f"{result.spent.nfe:.0f} nfe, ")


DRAFTING = st.one_of(
    st.builds(
        lambda n, share, check, calls: SeedPruning(n, (0.5,), steps=(check,), draft_share=share, draft_calls=calls),
        *(st.integers(1, 25), st.floats(0.05, 0.9), st.integers(0, 7), st.none() | st.integers(1, 3)),
    ),
    st.builds(
        lambda n, generations, parents, levels, share: Evolution(
            n, generations, parents, 0.7, (0.5,) * len(levels), levels, share
        ),
        *(st.integers(1, 9), st.integers(1, 4), st.floats(0.05, 1), st.sampled_from([(), (0.6,), (0.9, 0.4)])),
        st.sampled_from([0, 0.3]),
    ),
)


@given(
    algorithm=DRAFTING,
    budget=st.none() | st.integers(8, 120),
    batch=st.integers(1, 7),
    stop_after=st.none() | st.integers(0, 15),
)
@settings(max_examples=40, deadline=None)
def test_ledger_equals_counter(algorithm: Any, budget: int | None, batch: int, stop_after: int | None) -> None:
    live, ticks = made(batch=batch, error=1.0), []
    results = search(
        ["a", "b"], algorithm, live, None if budget is None else f"{budget}nfe",
        on_event=lambda event: ticks.append(event) if event.kind == "tick" else None,
        should_stop=lambda: stop_after is not None and len(ticks) > stop_after,
    )  # fmt: skip
    assert sum(r.spent.cost.nfe for r in results) == counted(live).calls
    assert sum(r.spent.cost.draft_calls for r in results) == counted(live).drafted
    assert all(r.spent.nfe <= (budget or np.inf) for r in results)
    assert all(r.images for r in results) or stop_after is not None
    if isinstance(algorithm, Evolution) and budget is stop_after is None:
        assert all(len(r.particles) == algorithm.n * algorithm.generations for r in results)  # type: ignore[operator]
        assert all(r.particles.seeds == algorithm.n for r in results)


@pytest.mark.parametrize("kind", [SeedPruning, Evolution])
@pytest.mark.parametrize("share", [0.1, 0.5])
def test_drafts_take_their_share_of_the_budget(kind: Any, share: float) -> None:
    (result,) = search(["a"], kind(draft_share=share), made(), "600nfe")
    drafts = result.spent.cost.draft_calls / 2
    assert drafts / result.spent.nfe == pytest.approx(share, abs=0.03)
    assert 575 < result.spent.nfe <= 600


def test_a_cap_in_flops_counts_drafts_by_their_flops() -> None:
    live = made()
    budget = Budget(flops=40 * 8 * live.price.flops.nfe)
    assert task_of(budget, live).draft_cost == pytest.approx(live.price.flops.draft_calls / live.price.flops.nfe)
    (result,) = search(["a"], SeedPruning(), live, budget)
    assert result.spent.flops <= budget.flops  # type: ignore[operator]
    assert result.spent.flops_by["denoise"] == pytest.approx(
        result.spent.cost.nfe * live.price.flops.nfe + 3.0 * result.spent.cost.draft_calls
    )
    (few,) = search(["a"], SeedPruning(), live, "400nfe,10draftcalls")
    assert few.spent.cost.draft_calls <= 10


def test_a_drafter_that_is_not_used_is_told_of() -> None:
    (result,) = search(["a"], BestOfN(2), made())
    (said,) = result.warnings
    assert said.startswith("the draft was not used: this search looks at none")
    (used,) = search(["a"], SeedPruning(9), made())
    assert used.warnings == ()
    assert used.spent.seeds == 9  # all that were drafted


def test_base_rows_are_the_same_with_drafts_beside_them() -> None:
    (plain,) = search(["a"], BestOfN(12), made(batch=1), keep=12)
    (drafted,) = search(["a"], SeedPruning(12, keep=(1.0,), draft_share=0.1), made(batch=1), keep=12)
    images = {c.seed: c.pixels for c in plain.images}
    assert len(drafted.images) > 1
    assert all(torch.equal(c.pixels, images[c.seed]) for c in drafted.images)


@pytest.mark.parametrize("algorithm", [SeedPruning(20), Evolution(6, mix=0.8)], ids=["seed-pruning", "evolution"])
def test_batches_change_nothing(algorithm: Any) -> None:
    one, many = (search(["a", "b"], algorithm, made(batch=b, error=1.0)) for b in (1, 9))
    for x, y in zip(one, many, strict=True):
        assert (x.best.seed, x.spent.cost) == (y.best.seed, y.spent.cost)
        np.testing.assert_array_equal(x.particles.parent, y.particles.parent)
        np.testing.assert_allclose(x.particles.scores[:, 0, 0], y.particles.scores[:, 0, 0], atol=1e-12)
        torch.testing.assert_close(x.best.image, y.best.image, atol=1e-6, rtol=1e-6)


def test_without_a_drafter_nothing_is_drafted() -> None:
    live = made()
    live.denoiser.drafts, live.draft_calls = None, 0
    (result,) = search(["a"], SeedPruning(), live, "200nfe")
    (shut,) = search(["a"], SeedPruning(draft_share=0), made(), "200nfe")
    assert result.spent.cost == shut.spent.cost
    assert "draft_calls" not in result.spent.cost.counts()


def test_a_look_that_the_engine_does_not_offer_is_refused() -> None:
    live = made()
    live.denoiser.drafts = None
    with pytest.raises(ValueError, match="--draft"):
        search(["a"], KeepAll(2, looks=("draft:1@0",)), live)


def test_an_algorithm_that_drafts_undeclared_is_refused_without_a_drafter() -> None:
    live = made()
    live.draft_calls = 0
    with pytest.raises(ValueError, match=r"Need\.DRAFT"):
        search(["a"], Played((lambda p: fresh(2, 0, look=Draft()),), NOTHING), live)


def test_kernels_that_draw_noise_are_refused() -> None:
    denoiser = made().denoiser
    with pytest.raises(ValueError, match="deterministic sampler"):
        made(kernel=Sde(denoiser.path, denoiser.times))


def test_a_noise_aware_reward_is_told_what_the_drafter_was_told() -> None:
    told: list[float] = []

    class Levels:
        name = "levels"

        def __call__(self, images: Any, prompts: Any, level: Any) -> Any:
            told.extend(level.tolist())
            return images.double().mean((1, 2, 3))

    (_,) = search(["a"], SeedPruning(3, keep=(1.0,), levels=(0.6,), draft_share=0.9), made(rewards=[Levels()]))
    assert told[:3] == pytest.approx([0.9] * 3)
    assert told[3] == 0.5  # of the first step whose level is at most 0.6


def test_without_other_checks_the_best_drafts_are_finished() -> None:
    (result,) = search(["a"], SeedPruning(keep=(), levels=(), draft_share=0.5), made(error=0.1), "160nfe")
    drafts, finished = result.spent.cost.draft_calls, result.spent.cost.decodes - result.spent.cost.draft_calls
    assert result.spent.cost.nfe == 8 * finished
    assert drafts / 2 / result.spent.nfe == pytest.approx(0.5, abs=0.03)
    (plain,) = search(["a"], SeedPruning(keep=(), levels=(), draft_share=0), made(), "160nfe")
    assert (plain.spent.nfe, plain.spent.cost.decodes) == (160, 20)  # best-of-N


def test_events_and_traces_tell_drafts_from_estimates() -> None:
    events: list[Event] = []
    search(["a"], SeedPruning(9, keep=(0.5,), steps=(3,)), made(), on_event=events.append)
    looks = {(e.look, e.step) for e in events if e.kind == "score"}
    assert looks == {("draft:1", 0), ("estimate", 3), ("", 8)}
    assert sum(e.nfe for e in events if e.kind == "tick") >= 4  # the progress bar goes on during drafts


def test_looks_are_read_and_written() -> None:
    assert str(EstimatorAt.read("draft:2@3")) == "draft:2@3"
    for text in ("rollout:3@2", "draft", "estimate:2@0", "draft:0@1", "draft:1@-1", "draft:1", "glance@0"):
        with pytest.raises(ValueError, match=r"look|1 call"):
            EstimatorAt.read(text)


@pytest.mark.parametrize("stop", [0, 2])
def test_rows_of_one_move_are_looked_at_as_is_planned_for_their_steps(stop: int) -> None:
    """One seed at a step that is drafted from, and another at one whose estimate is scored."""
    look = ByStep({stop: Draft(2)})
    mixed = Played((
        lambda p: fresh(2, 0, score=False),
        lambda p: advance(p, [0, 1], np.array([stop, 3]), look=look),
        lambda p: advance(p, [0, 1], 8),
    ), DRAFTS)  # fmt: skip
    live, plain, events = made(error=1.0), made(error=1.0), list[Event]()
    (result,) = search(["a"], mixed, live, on_event=events.append)
    (dry,) = search(["a"], mixed, DryEngine(live.grid, ("bright",), price=live.price, draft_calls=1))
    assert result.spent.cost == dry.spent.cost
    assert (result.spent.cost.nfe, result.spent.cost.draft_calls) == (2 * 8, 2)
    assert (counted(live).calls, counted(live).drafted) == (2 * 8, 2)
    looks = [(e.uids, e.look, e.step) for e in events if e.kind == "score"]
    assert sorted(looks[:2]) == [((0,), "draft:2", stop), ((1,), "estimate", 3)]
    (every,) = search(["a"], KeepAll(2, looks=(f"draft:2@{stop}",), steps=(3,)), plain)
    np.testing.assert_array_equal(result.particles.scores[0, stop], every.particles.scores[0, stop])
    np.testing.assert_array_equal(result.particles.scores[1, 3], every.particles.scores[1, 3])


def test_a_draft_from_a_state_on_the_way_keeps_the_evaluation_that_is_paid() -> None:
    twice = Played((
        lambda p: fresh(3, 2),
        lambda p: advance(p, [0, 1, 2], 2, look=Draft(2)),
        lambda p: advance(p, [0, 1, 2], 8),
    ), DRAFTS)  # fmt: skip
    live = made()
    (result,) = search(["a"], twice, live)
    assert (result.spent.cost.nfe, result.spent.cost.draft_calls) == (3 * 8, 6)
    assert (counted(live).calls, counted(live).drafted) == (3 * 8, 6)


# --- recordings ---------------------------------------------------------------------------------------------------


LOOKS = ("draft:1@0", "draft:2@0", "draft:1@3")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    folder = tmp_path_factory.mktemp("recorded") / "r"
    options = RecordOptions(seeds=40, seed=3, looks=LOOKS, block=(1, 13))
    return record(made(error=2.0), ["a", "b"], folder, options)


def test_a_recording_holds_the_scores_of_its_looks(recorded: Recording) -> None:
    denoiser, r = made(error=2.0).denoiser, recorded
    assert tuple(map(str, r.looks)) == LOOKS
    x, zero = denoiser.init_latents([seeded(s) for s in range(3, 43)]), torch.zeros(40, dtype=torch.long)
    for calls in (1, 2):
        drafts = denoiser.decode(denoiser.drafts.guess(x, zero, zero, calls)).double().mean((1, 2, 3))
        np.testing.assert_allclose(r.looks[EstimatorAt(f"draft:{calls}", 0)][0, :, 0], drafts, atol=1e-12)
    plain = denoiser.decode(denoiser.predict(x, zero, zero).x0).double().mean((1, 2, 3))
    np.testing.assert_allclose(r.scores[0, :, 0, 0], plain, atol=1e-12)
    assert (r.draft_calls, r.price.passes_per_draft, r.price.flops.draft_calls) == (1, 1, 3.0)
    assert r.offers == {Need.DRAFT}
    assert not r.failed


def test_it_survives_a_folder_and_a_choice(recorded: Recording, tmp_path: Path) -> None:
    save_recording(recorded, tmp_path / "r")
    again = load_recording(tmp_path / "r").select(slice(1, 2), slice(5, 9))
    for seen, scores in recorded.looks.items():
        np.testing.assert_array_equal(again.looks[seen], scores[1:2, 5:9])
    assert again.price == recorded.price


def test_coarse_rollouts_of_an_older_recording_are_left_alone(recorded: Recording, tmp_path: Path) -> None:
    header = dataclasses.replace(Header.of(recorded), looks=(*LOOKS, "rollout:3@2"))
    with OpenRecording(tmp_path / "r", header) as folder:
        folder.add(header.units()[0], np.concatenate([recorded.columns, recorded.columns[:, :, :1]], 2), None)
        folder.finish()
    again = load_recording(tmp_path / "r")
    np.testing.assert_array_equal(again.columns, recorded.columns)
    assert again.offers == {Need.DRAFT}


def test_a_recording_that_was_killed_goes_on_with_its_looks(recorded: Recording, tmp_path: Path) -> None:
    scored = 0

    class Fails:
        name = "bright"

        def __call__(self, images: Any, prompts: Any, level: Any) -> Any:
            nonlocal scored
            scored += len(images)
            if scored == 700:
                raise KeyboardInterrupt
            return images.double().mean((1, 2, 3))

    options = RecordOptions(seeds=40, seed=3, looks=LOOKS, block=(1, 13))
    with pytest.raises(KeyboardInterrupt):
        record(made(error=2.0, batch=1, rewards=[Fails()]), ["a", "b"], tmp_path / "r", options)
    whole = record(made(error=2.0, batch=1), ["a", "b"], tmp_path / "r", options)
    np.testing.assert_allclose(whole.columns, recorded.columns, atol=1e-12)
    with pytest.raises(ValueError, match="looks"):
        record(made(error=2.0, batch=1), ["a", "b"], tmp_path / "r", RecordOptions(seeds=40, seed=3, block=(1, 13)))


@pytest.mark.parametrize("budget", ["24nfe", "50nfe", "80nfe"])
@pytest.mark.parametrize("calls", [None, 2])
def test_live_equals_replay(recorded: Recording, budget: str, calls: int | None) -> None:
    algorithm = SeedPruning(draft_calls=calls)
    live = search(["a", "b"], algorithm, made(error=2.0), budget, seed=3)
    played = search(["a", "b"], algorithm, ReplayEngine(recorded), budget, seed=3)
    assert [r.best.seed for r in live] == [r.best.seed for r in played]
    assert [r.spent.cost for r in live] == [r.spent.cost for r in played]
    assert all(r.spent.cost.draft_calls for r in live)


@pytest.mark.parametrize(("width", "shared"), each_once([1, 3], [False, True]))
def test_a_priced_policy_that_drafts_is_the_same_live_and_replayed(
    recorded: Recording, width: int, shared: bool
) -> None:
    rng, known = np.random.default_rng(0), np.linspace(0.6, 1, 9)
    final, noise = rng.normal(size=(10, 30, 1)), rng.normal(size=(10, 30, 9))
    scores = 0.5 + 0.05 * (known * final + np.sqrt(1 - known**2) * noise)
    forecast = fit(scores, recorded.grid.levels, (EstimatorAt("draft:2", 0), *estimates(2, 4, 8)))
    algorithm = PriceOfCompute(forecast, n=40, width=width, price=0.002 if shared else None)
    for budget in ("12nfe", "41nfe", "90nfe"):
        engine = made(error=2.0)
        live = search(["a", "b"], algorithm, engine, budget, shared=shared, seed=3)
        replayed = ReplayEngine(recorded, capacity=engine.capacity)
        played = search(["a", "b"], algorithm, replayed, budget, shared=shared, seed=3)
        assert [r.best.seed for r in live] == [r.best.seed for r in played]
        assert [r.spent.cost for r in live] == [r.spent.cost for r in played]
        assert sum(r.spent.cost.nfe for r in live) == counted(engine).calls
        assert sum(r.spent.cost.draft_calls for r in live) == counted(engine).drafted >= 4
        assert sum(r.spent.nfe for r in live) <= 2 * float(budget[:-3])


def test_what_was_not_recorded_is_refused(recorded: Recording) -> None:
    with pytest.raises(ValueError, match=r"draft:3@0 .*: draft:1@0, draft:2@0"):
        search(["a"], SeedPruning(5, draft_calls=3), ReplayEngine(recorded), seed=3)
    with pytest.raises(ValueError, match="before step 8"):
        KeepAll(2, looks=("draft:1@8",)).init(Task(recorded.grid))


# --- noise that begins on the way -----------------------------------------------------------------------------------


def late(live: LiveEngine) -> Sde:
    return Sde(live.denoiser.path, live.denoiser.times, begin=0.6)


def test_drafts_then_pruning_then_branching_streams_in_one_search() -> None:
    """TTSnap and RBF whole: drafted seeds, of which some are pruned on the way, and streams from the survivors."""
    live = made(kernel=late(made()), error=0.5)
    (result,) = search(["a"], make_algorithm("ttsnap-rbf"), live, "150nfe")
    p, drafts = result.particles, result.spent.cost.draft_calls
    assert drafts == counted(live).drafted > p.seeds / 2 > 4
    assert result.spent.cost.nfe == counted(live).calls
    assert 100 < result.spent.nfe <= 150
    assert (p.parent >= 0).sum() > 3, "streams branch"
    # The survivors' first steps are those of the deterministic sampler, whose end was drafted.
    (plain,) = search(["a"], KeepAll(p.seeds), made())
    early = [uid for uid in range(len(p)) if p.parent[uid] < 0 and np.isfinite(p.scores[uid, 3, 0])]
    assert early
    for uid in early:
        seed = int(p.seed[uid])
        assert p.scores[uid, 3, 0] == pytest.approx(plain.particles.scores[seed, 3, 0], abs=1e-12)
