"""Drafts, drafts that are finished, and seeds that begin in groups: what they cost, and known
answers."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from tests.counted import Brightness, Counted
from tests.cover import each_once
from tests.scripted import Played
from ttsnap import BestOfN, SeedPruning, make_algorithm, search
from ttsnap.algorithms.catalogue import ALGORITHMS
from ttsnap.algorithms.evolution import Evolution
from ttsnap.algorithms.keep_all import KeepAll
from ttsnap.algorithms.pricing.fitting import fit
from ttsnap.algorithms.pricing.price_of_compute import PriceOfCompute
from ttsnap.core.cost import Cost
from ttsnap.core.grid import Task
from ttsnap.core.looks import ByStep, Draft, EstimatorAt, estimates
from ttsnap.core.memory import NotEnoughMemoryError
from ttsnap.core.moves import advance, fresh
from ttsnap.core.needs import NOTHING, Need
from ttsnap.core.plans import image_cost
from ttsnap.core.prompt import Prompt
from ttsnap.core.results import Event, Led
from ttsnap.core.selection import Selection
from ttsnap.core.start import AS_NOISE, Start
from ttsnap.engine.live import LiveEngine
from ttsnap.loop.budget import Budget, task_of
from ttsnap.loop.dry import DryEngine
from ttsnap.options.engine import EngineOptions
from ttsnap.options.record import RecordOptions
from ttsnap.options.sampler import Finish, SamplerOptions
from ttsnap.recordings.folder import load_recording, save_recording
from ttsnap.recordings.header import Header
from ttsnap.recordings.record import describe, record
from ttsnap.recordings.replay import ReplayEngine
from ttsnap.rewards.reward_model import FunctionReward
from ttsnap.sampling.kernels import Ode, Sde
from ttsnap.sampling.rng import seeded
from ttsnap.sampling.starts import Begun, FromDrafts
from ttsnap.simulation.orders import Orders
from ttsnap.simulation.simulate import curve

STEPS, AHEAD, SIZE = 8, 2, 4
MIXTURE = (
    torch.randn(4, 3, generator=seeded(0)),
    torch.full((4,), 0.3),
    torch.tensor([0.1, 0.2, 0.3, 0.4]),
)


class Drafting(Counted):
    """Its drafter knows where the sampler ends, after which it adds an error that depends on the
    latent; a call of it takes one of the two passes of an evaluation. Counts what is drafted, row
    by row."""

    passes_per_nfe = 2

    def __init__(self, *args, error=0.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.error, self.drafted = error, 0
        self.drafts: Any = SimpleNamespace(calls=1, passes=1, guess=self.guess, level=self.level)

    def guess(self, x, step, cond, calls):
        self.drafted += calls * len(x)
        ode, ends, before = Ode(self.path, self.times), x.clone(), (self.calls, self.batches)
        for k in range(int(step.min()), self.grid.steps):
            on = step <= k
            at = torch.full((int(on.sum()),), k)
            ends[on] = ode.jump(ends[on], self.predict(ends[on], at, cond[on]), at, at + 1)
        self.calls, self.batches = before
        return ends + self.error / calls * torch.sin(7 * x)

    def level(self, step, calls):
        return 0.9 * self.grid.levels[step] / calls

    def costs(self):
        return super().costs()._replace(draft=3.0)


class Finishing(Drafting):
    """Begins at step `begin` of eight from the drafts of a perfect drafter with an error, put back
    by the noise."""

    def __init__(self, begin, error=0.0, calls=1):
        self.whole = Drafting(*MIXTURE, steps=STEPS, error=error)
        super().__init__(*MIXTURE, steps=self.whole.times[begin:], error=error)
        self.drafts = SimpleNamespace(calls=calls, passes=1, guess=self.guess, level=self.level)
        self.starter = FromDrafts(self.drafted_noise, self.noised, calls, 0.9 / calls, STEPS)

    def encode(self, prompts):
        super().encode(prompts)
        self.whole.encode(prompts)

    def drafted_noise(self, noise, cond):
        self.drafted += self.drafts.calls * len(noise)
        zero = torch.zeros(len(noise), dtype=torch.long)
        return self.whole.guess(noise, zero, cond, self.drafts.calls)

    def noised(self, guess, noise, cond):
        return (1 - self.times[0]) * guess + self.times[0] * noise


IN_GROUPS = Start(SIZE, Cost(SIZE * AHEAD, coupled=SIZE * AHEAD), AHEAD, STEPS)


class Together(NamedTuple):
    """A way to begin that is none of ttsnap's own."""

    grouped: Grouped
    size: int
    guess_level: float = 0.0

    @property
    def start(self):
        whole = self.size * AHEAD
        return replace(IN_GROUPS, size=self.size, cost=Cost(whole, coupled=whole))

    def begin(self, *given):
        return Begun(*self.grouped.together(*given))

    def flops(self):
        return {"coupled": 0.5}


class Grouped(Counted):
    """Takes `AHEAD` of its eight steps in groups, whose members are pushed away from their mean."""

    def __init__(self, size=SIZE, noisy=False):
        self.whole, self.sizes = Counted(*MIXTURE, steps=STEPS), list[int]()
        super().__init__(*MIXTURE, steps=self.whole.times[AHEAD:])
        if noisy:
            self.kernel, self.whole.kernel = (
                Sde(self.path, self.times),
                Sde(self.path, self.whole.times),
            )
        self.starter = Together(self, size)

    def encode(self, prompts):
        super().encode(prompts)
        self.whole.encode(prompts)

    def together(
        self,
        noise,
        cond,
        keys,
        generators,
    ):
        x, kernel, fresh = noise, self.whole.kernel, sum(branch == 0 for _, branch in keys)
        self.sizes.append(fresh)
        for k in range(AHEAD):
            at = torch.full((len(x),), k)
            x, _ = kernel.step(
                x, self.whole.predict(x, at, cond), at, [(*key, k) for key in keys], [None] * len(x)
            )
            if fresh and self.start.size > 1:
                x = x + 0.5 * (x - x.mean(0))
        return x, [None] * len(x)


def bright():
    return FunctionReward(lambda images, prompts: images.double().mean((1, 2, 3)), "bright")


def made(error=0.0, batch=4, rewards=None, **settings):
    denoiser = Drafting(*MIXTURE, steps=STEPS, error=error)
    return LiveEngine(denoiser, rewards or [bright()], EngineOptions(batch), **settings)


def finishing(begin=4, error=1.0, batch=4, calls=1):
    return LiveEngine(Finishing(begin, error, calls), [bright()], EngineOptions(batch))


def grouped(batch=4, **how):
    return LiveEngine(Grouped(**how), [bright()], EngineOptions(batch))


def paid(results, live):
    """What a search took, which is what was counted where it ran."""
    cost, one = Cost().plus(*(result.spent.cost for result in results)), live.denoiser
    if isinstance(one, Grouped):
        assert (cost.nfe, cost.coupled) == (one.calls + one.whole.calls, AHEAD * sum(one.sizes))
    elif isinstance(one, Drafting):
        assert (cost.nfe, cost.draft_calls) == (one.calls, one.drafted)
    assert cost.decodes == one.decodes  # type: ignore[attr-defined]
    assert live.ran == cost
    return cost


def any_engine(kind, draw):
    batch = int(draw.integers(1, 9))
    if kind == "groups":
        return grouped(batch, size=int(draw.integers(1, 7)), noisy=draw.random() < 0.8)
    if kind == "finish":
        return finishing(int(draw.integers(1, 8)), batch=batch, calls=int(draw.integers(1, 3)))
    return made(batch=batch, error=1.0)


def any_algorithm(live, draw):
    # refuse groups, or have no budget
    never = {"price-of-compute", "keep-all", "refined", "noise-ascent"}
    names = [
        name
        for name in sorted(set(ALGORITHMS) - never)
        if make_algorithm(name).needs <= live.offers
    ]
    name, options = (
        str(draw.choice(names + ["seed-pruning", "evolution"] * 3)),
        {"n": int(draw.integers(2, 20))},
    )
    if name in ("seed-pruning", "evolution"):
        options |= {"draft_share": draw.uniform(0.05, 0.9), "draft_calls": int(draw.integers(1, 4))}
    return make_algorithm(name, **(options if draw.random() < 0.7 else {}))


def lead(draw, led, event):
    """Drop or finish a candidate at random, now and then. led: the search, once it is told."""
    if event.led is not None:
        event.led.in_parts = draw.random() < 0.7
        led[:] = [event.led]
    elif event.kind == "tick" and draw.random() < 0.3:
        said = led[0].drop if draw.integers(2) else led[0].finish
        said(int(draw.integers(20)), int(draw.integers(2)))


def attack(kind, number):
    """A random search by any algorithm, with any budget, size of groups and batches, led by hand or
    not, stopped anywhere or not at all; False where that cannot be."""
    draw, ticks = np.random.default_rng(number), list[Any]()
    live = any_engine(kind, draw)
    one = image_cost(live.grid, 1, live.price)
    most = int(draw.integers(one.nfe + one.draft_calls, 3 * one.nfe + 20 * one.draft_calls))
    stop_after, shared = int(draw.integers(0, 30)), bool(draw.integers(2))
    by_hand, led = np.random.default_rng(number), list[Led]()

    def listen(event):
        ticks.extend([event] * (event.kind == "tick"))
        if number % 2:
            lead(by_hand, led, event)

    try:
        results = search(
            ["a", "b"],
            any_algorithm(live, draw),
            live,
            f"{most}nfe",
            shared=shared,
            seed=int(draw.integers(100)),
            on_event=listen,
            should_stop=lambda: len(ticks) > stop_after,
        )
    except ValueError:
        paid([], live)
        return False
    paid(results, live)
    assert sum(r.spent.nfe for r in results) <= 2 * most
    assert shared or all(r.spent.nfe <= most for r in results)
    assert all(r.images for r in results) or len(ticks) > stop_after
    return True


@pytest.mark.parametrize("live", [finishing(1), grouped()], ids=["finish", "groups"])
def test_commands_come_between_the_batches_of_a_move_that_cannot_be_interrupted(
    live,
):
    seen = []
    named = []

    def listen(event):
        seen.append(event)
        if event.led is not None:
            event.led.in_parts = True
        if event.kind == "score" and not named:
            named.extend(event.uids)
            seen[0].led.finish(*named)  # type: ignore[union-attr]

    (result,) = search(["a"], SeedPruning(24, (0.5,), steps=(2,)), live, on_event=listen)
    paid([result], live)
    moves = [event.move for event in seen if event.move is not None]
    assert len(moves[0]["uids"]) == live.capacity // 2
    assert moves[1]["by_hand"] == {"finish": named}
    assert result.particles.finished[named].all()
    assert result.spent.seeds == 24


@pytest.mark.parametrize(("kind", "searches"), [("drafts", 16), ("finish", 16), ("groups", 32)])
def test_ledger_equals_counter(kind, searches):
    assert sum(attack(kind, number) for number in range(searches)) > 0.5 * searches


@pytest.mark.parametrize("name", ["noise-ascent", "refined"])
@pytest.mark.parametrize("made", [finishing, grouped])
def test_gradients_of_initial_noise_are_refused(name, made):
    with pytest.raises(ValueError, match=name):
        search(["a"], make_algorithm(name), made(), "90nfe")


LOOKS = ("draft:1@0", "draft:2@0", "draft:1@3")
KINDS = {
    "drafts": (partial(made, 2.0), LOOKS, ("24nfe", "60nfe")),
    "finish": (finishing, LOOKS[:1], ("30nfe",)),
    "groups": (grouped, (), ("60nfe",)),
}
"""What makes an engine, what a recording of it holds besides, and budgets."""


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    folder, options = (
        tmp_path_factory.mktemp("recorded"),
        RecordOptions(seeds=40, seed=3, block=(1, 12)),
    )
    return {
        kind: record(make(), ["a", "b"], folder / kind, replace(options, looks=looks))
        for kind, (make, looks, _) in KINDS.items()
    }


def replayed(kind, recording, algorithm, budget, shared=False):
    """A search that finds the same live and played back."""
    engine = KINDS[kind][0]()
    playing = ReplayEngine(recording, capacity=engine.capacity)
    live, again = (
        search(["a", "b"], algorithm, on, budget, shared=shared, seed=3) for on in (engine, playing)
    )
    for x, y in zip(live, again, strict=True):
        assert (x.best.seed, x.spent.cost) == (y.best.seed, y.spent.cost)
        assert [(m["uids"], m["stop"]) for m in x.trace] == [
            (m["uids"], m["stop"]) for m in y.trace
        ]
    paid(live, engine)
    return live


@pytest.mark.parametrize("kind", KINDS)
def test_a_replay_is_the_live_search(kind, recordings, tmp_path):
    save_recording(recordings[kind], tmp_path / "r")
    again = load_recording(tmp_path / "r")
    assert (again.grid, again.price) == (recordings[kind].grid, recordings[kind].price)
    begins = {
        "drafts": AS_NOISE,
        "finish": Start(cost=Cost(draft_calls=1), image_nfe=STEPS),
        "groups": IN_GROUPS,
    }
    assert again.price.start == begins[kind]
    for budget in KINDS[kind][2]:
        for algorithm in (
            SeedPruning(),
            BestOfN(),
            *([SeedPruning(draft_calls=2)] if kind == "drafts" else []),
        ):
            live = replayed(kind, again, algorithm, budget)
            if kind == "drafts" and isinstance(algorithm, SeedPruning):
                assert all(r.spent.cost.draft_calls for r in live)


@pytest.mark.parametrize("kind", KINDS)
def test_a_header_says_how_particles_begin(kind, recordings):
    header = Header.of(recordings[kind])
    assert Header.from_json(json.loads(json.dumps(header.to_json())), Path("x")) == header


@pytest.mark.parametrize("kind", ["finish", "groups"])
def test_lockstep_pays_as_the_loop_does_and_priced_searches_are_refused(kind, recordings):
    recording, (budget,) = recordings[kind], KINDS[kind][2]
    for algorithm in (SeedPruning(), BestOfN()):
        dry = DryEngine(
            recording.grid, ("bright",), price=recording.price, draft_calls=int(kind == "finish")
        )
        (alone,) = search(["a"], algorithm, dry, budget)
        assert curve(recording, algorithm, [Budget.parse(budget)], 5).spent.mean() == pytest.approx(
            alone.spent.nfe
        )
    steps = recording.grid.steps
    forecast = fit(
        np.tile(recording.scores[..., 0], (2, 1, 1)), recording.grid.levels, estimates(1, steps)
    )
    with pytest.raises(ValueError, match="starts seeds"):
        search(
            ["a"], PriceOfCompute(forecast, price=0.01), ReplayEngine(recording), "25nfe", seed=3
        )


@pytest.mark.parametrize(
    ("make", "algorithm"),
    [(made, SeedPruning(20)), (made, Evolution(6, mix=0.8)), (finishing, SeedPruning(20))],
)
def test_batches_change_nothing(make, algorithm):
    one, many = (search(["a", "b"], algorithm, make(error=1.0, batch=b)) for b in (1, 9))
    for x, y in zip(one, many, strict=True):
        assert (x.best.seed, x.spent.cost) == (y.best.seed, y.spent.cost)
        np.testing.assert_array_equal(x.particles.parent, y.particles.parent)
        np.testing.assert_allclose(
            x.particles.scores[:, 0, 0], y.particles.scores[:, 0, 0], atol=1e-12
        )
        torch.testing.assert_close(x.best.image, y.best.image, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "budget", "steps"), [(made, "160nfe", 8), (partial(finishing, 5), "60nfe", 3)]
)
def test_without_other_checks_the_best_drafts_are_finished(make, budget, steps):
    algorithm, events = SeedPruning(keep=(), levels=(), draft_share=0.5), list[Any]()
    (result,) = search(["a"], algorithm, make(error=0.1), budget, on_event=events.append)
    cost = result.spent.cost
    assert cost.nfe == steps * (cost.decodes - cost.draft_calls)
    assert cost.draft_calls / 2 / result.spent.nfe == pytest.approx(0.5, abs=0.05)
    assert {(e.look, e.step) for e in events if e.kind == "score"} == {("draft:1", 0), ("", steps)}


# --- drafts ---------------------------------------------------------------------------------------


def test_a_perfect_drafter_finds_the_best_of_all_it_drafted():
    live = made()
    (result,) = search(["a"], SeedPruning(30, keep=(1.0,), draft_share=0.6), live)
    (every,) = search(["a"], BestOfN(30), made())
    assert result.best.seed == every.best.seed
    assert result.best.reward == pytest.approx(every.best.reward, abs=1e-12)
    cost, told = paid([result], live), result.spent.to_json()
    assert (
        (told["draft_calls"], told["nfe"])
        == (cost.draft_calls, cost.nfe + 15)
        == (30, result.spent.nfe)
    )
    assert cost.nfe < 30 * 8 / 4
    assert result.spent.forward_passes == 2 * cost.nfe + 30
    assert f"{result.spent.nfe:.0f} NFE" in repr(result)
    assert str(result.spent).startswith(f"{result.spent.nfe:.0f} nfe, ")


@pytest.mark.parametrize("kind", [SeedPruning, Evolution])
@pytest.mark.parametrize("share", [0.1, 0.5])
def test_drafts_take_their_share_of_the_budget(kind, share):
    (result,) = search(["a"], kind(draft_share=share), made(batch=16), "600nfe")
    assert result.spent.cost.draft_calls / 2 / result.spent.nfe == pytest.approx(share, abs=0.03)
    assert 575 < result.spent.nfe <= 600


def test_a_cap_in_flops_counts_drafts_by_their_flops():
    live = made()
    rates, most = live.price.flops, 12 * 8 * live.price.flops.nfe
    assert task_of(Budget(flops=most), live).draft_cost == pytest.approx(
        rates.draft_calls / rates.nfe
    )
    (result,) = search(["a"], SeedPruning(), live, Budget(flops=most))
    cost = result.spent.cost
    assert result.spent.flops <= most
    assert result.spent.flops_by["denoise"] == pytest.approx(
        cost.nfe * rates.nfe + 3.0 * cost.draft_calls
    )
    (few,) = search(["a"], SeedPruning(), live, "200nfe,10draftcalls")
    assert few.spent.cost.draft_calls <= 10


def test_a_drafter_that_is_not_used_is_told_of_and_without_one_nothing_is_drafted():
    (result,) = search(["a"], BestOfN(2), made())
    assert "the draft was not used" in result.warnings[0]
    (used,) = search(["a"], SeedPruning(9), made())
    assert (used.warnings, used.spent.seeds) == ((), 9)  # all that were drafted
    live = made()
    live.denoiser.drafts, live.draft_calls = None, 0
    (without,), (shut,) = (
        search(["a"], SeedPruning(draft_share=share), on, "200nfe")
        for share, on in ((0.35, live), (0, made()))
    )
    assert without.spent.cost == shut.spent.cost
    assert "draft_calls" not in without.spent.cost.counts()


def test_what_cannot_be_drafted_is_refused():
    live, denoiser = made(), made().denoiser
    live.denoiser.drafts, live.draft_calls = None, 0
    with pytest.raises(ValueError, match="--draft"):
        search(["a"], KeepAll(2, looks=("draft:1@0",)), live)
    with pytest.raises(ValueError, match=r"Need\.DRAFT"):
        search(["a"], Played((lambda p: fresh(2, 0, look=Draft()),), NOTHING), live)
    with pytest.raises(ValueError, match="deterministic"):
        made(kernel=Sde(denoiser.path, denoiser.times))
    with pytest.raises(ValueError, match="before step 8"):
        KeepAll(2, looks=("draft:1@8",)).init(Task(denoiser.grid))
    for text in (
        "rollout:3@2",
        "draft",
        "estimate:2@0",
        "draft:0@1",
        "draft:1@-1",
        "draft:1",
        "glance@0",
    ):
        with pytest.raises(ValueError, match=r"look|1 call"):
            EstimatorAt.read(text)


def test_a_noise_aware_reward_is_told_what_the_drafter_was_told():
    told = []

    class Levels(Brightness):
        def __call__(self, images, prompts, level):
            told.extend(level.tolist())
            return super().__call__(images, prompts, level)

    search(
        ["a"], SeedPruning(3, keep=(1.0,), levels=(0.6,), draft_share=0.9), made(rewards=[Levels()])
    )
    assert told[:3] == pytest.approx([0.9] * 3)
    assert told[3] == 0.5  # of the first step whose level is at most 0.6


@pytest.mark.parametrize("stop", [0, 2])
def test_rows_of_one_move_are_looked_at_as_is_planned_for_their_steps(stop):
    """One seed at a step that is drafted from, and another at one whose estimate is scored."""
    look = ByStep({stop: Draft(2)})
    mixed = Played(
        (
            lambda p: fresh(2, 0, score=False),
            lambda p: advance(p, [0, 1], np.array([stop, 3]), look=look),
            lambda p: advance(p, [0, 1], 8),
        ),
        frozenset({Need.DRAFT}),
    )
    live, plain, events = made(error=1.0), made(error=1.0), list[Event]()
    (result,) = search(["a"], mixed, live, on_event=events.append)
    (dry,) = search(
        ["a"], mixed, DryEngine(live.grid, ("bright",), price=live.price, draft_calls=1)
    )
    assert result.spent.cost == dry.spent.cost == paid([result], live)
    assert (result.spent.cost.nfe, result.spent.cost.draft_calls) == (2 * 8, 2)
    # the progress bar goes on during drafts
    assert sum(e.nfe for e in events if e.kind == "tick") == 2 * 8 + 1
    looks = [(e.uids, e.look, e.step) for e in events if e.kind == "score"]
    assert sorted(looks[:2]) == [((0,), "draft:2", stop), ((1,), "estimate", 3)]
    (every,) = search(["a"], KeepAll(2, looks=(f"draft:2@{stop}",), steps=(3,)), plain)
    np.testing.assert_array_equal(result.particles.scores[0, stop], every.particles.scores[0, stop])
    np.testing.assert_array_equal(result.particles.scores[1, 3], every.particles.scores[1, 3])


def test_a_draft_from_a_state_on_the_way_keeps_the_evaluation_that_is_paid():
    twice = Played(
        (
            lambda p: fresh(3, 2),
            lambda p: advance(p, [0, 1, 2], 2, look=Draft(2)),
            lambda p: advance(p, [0, 1, 2], 8),
        ),
        frozenset({Need.DRAFT}),
    )
    live = made()
    (result,) = search(["a"], twice, live)
    cost = paid([result], live)
    assert (cost.nfe, cost.draft_calls) == (3 * 8, 6)


def test_a_recording_holds_the_scores_of_its_looks(recordings):
    denoiser, r = made(error=2.0).denoiser, recordings["drafts"]
    assert tuple(map(str, r.looks)) == LOOKS
    x, zero = (
        denoiser.init_latents([seeded(s) for s in range(3, 43)]),
        torch.zeros(40, dtype=torch.long),
    )
    for calls in (1, 2):
        drafts = (
            denoiser.decode(denoiser.drafts.guess(x, zero, zero, calls)).double().mean((1, 2, 3))
        )
        np.testing.assert_allclose(
            r.looks[EstimatorAt(f"draft:{calls}", 0)][0, :, 0], drafts, atol=1e-12
        )
    plain = denoiser.decode(denoiser.predict(x, zero, zero).x0).double().mean((1, 2, 3))
    np.testing.assert_allclose(r.scores[0, :, 0, 0], plain, atol=1e-12)
    assert (r.draft_calls, r.price.passes_per_draft, r.price.flops.draft_calls) == (1, 1, 3.0)
    assert r.offers == {Need.DRAFT}
    assert not r.failed
    with pytest.raises(ValueError, match=r"draft:3@0 .*: draft:1@0, draft:2@0"):
        search(["a"], SeedPruning(5, draft_calls=3), ReplayEngine(r), seed=3)


def test_a_part_of_a_recording_has_its_looks(recordings):
    recorded = recordings["drafts"]
    part = recorded.select(slice(1, 2), slice(5, 9))
    for seen, scores in recorded.looks.items():
        np.testing.assert_array_equal(part.looks[seen], scores[1:2, 5:9])


@pytest.mark.parametrize(("width", "shared"), each_once([1, 3], [False, True]))
def test_a_priced_policy_that_drafts_is_the_same_live_and_replayed(recordings, width, shared):
    rng, known = np.random.default_rng(0), np.linspace(0.6, 1, 9)
    final, noise = rng.normal(size=(10, 30, 1)), rng.normal(size=(10, 30, 9))
    scores = 0.5 + 0.05 * (known * final + np.sqrt(1 - known**2) * noise)
    forecast = fit(
        scores, recordings["drafts"].grid.levels, (EstimatorAt("draft:2", 0), *estimates(2, 4, 8))
    )
    algorithm = PriceOfCompute(forecast, n=40, width=width, price=0.002 if shared else None)
    for budget in ("12nfe", "41nfe", "90nfe"):
        live = replayed("drafts", recordings["drafts"], algorithm, budget, shared)
        assert sum(r.spent.cost.draft_calls for r in live) >= 4
        assert sum(r.spent.nfe for r in live) <= 2 * float(budget[:-3])


def test_drafts_then_pruning_then_branching_streams_in_one_search():
    """TTSnap and RBF whole: drafted seeds, of which some are pruned on the way, and streams from
    the survivors."""
    denoiser = made().denoiser
    live = made(kernel=Sde(denoiser.path, denoiser.times, begin=0.6), error=0.5)
    (result,) = search(["a"], make_algorithm("ttsnap-rbf"), live, "150nfe")
    p = result.particles
    assert paid([result], live).draft_calls > p.seeds / 2 > 4
    assert 100 < result.spent.nfe <= 150
    assert (p.parent >= 0).sum() > 3, "streams branch"
    # The survivors' first steps are those of the deterministic sampler, whose end was drafted.
    (plain,) = search(["a"], KeepAll(p.seeds), made())
    early = (p.parent < 0) & np.isfinite(p.scores[:, 3, 0])
    expected = plain.particles.scores[p.seed[early].astype(int), 3, 0]
    assert early.any()
    np.testing.assert_allclose(p.scores[early, 3, 0], expected, atol=1e-12)


# --- drafts that are finished ---------------------------------------------------------------------


def test_a_perfect_draft_ends_as_its_seed_does():
    """x0 estimates of a drafter without error: put back by the seed's noise, they lie on the line
    to its end, from which few steps end near it; the nearer to the end they begin, the nearer."""
    (plain,) = search(
        ["a"], BestOfN(6), LiveEngine(Finishing(0).whole, [bright()]), selection=Selection(keep=6)
    )
    ends = {c.seed: c.pixels for c in plain.images}
    off = []
    for begin in (4, 7):
        (finished,) = search(
            ["a"], BestOfN(6), finishing(begin, error=0.0), selection=Selection(keep=6)
        )
        off.append(max(float((c.pixels - ends[c.seed]).abs().max()) for c in finished.images))
    assert off[1] < off[0] < 0.1
    assert off[1] < 0.05


@pytest.mark.parametrize(
    ("live", "one", "least", "why"),
    [
        (finishing(6), Cost(2, 1, 1, draft_calls=1), 3, "too small"),
        (grouped(), Cost(14, 1, 1, coupled=8), 14, "group of 4"),
    ],
)
def test_an_image_is_priced_with_all_that_begins_with_it(live, one, least, why):
    assert image_cost(live.grid, 1, live.price) == one
    assert Budget.parse("2images").on(live.grid, live.price.start).nfe == 2 * STEPS
    (result,) = search(["a"], BestOfN(), live, f"{least}nfe")
    assert paid([result], live).nfe == one.nfe
    with pytest.raises(ValueError, match=why):
        search(["a"], BestOfN(), live, f"{least - 1}nfe")


def test_finishes_are_read_and_written():
    assert str(Finish.parse("0.6:4")) == "0.6:4"
    assert Finish.parse(SamplerOptions(draft="hot", finish=0.6).finish) == Finish(0.6)
    assert Finish.parse("1").level == 1
    for text in ("0", "0.0:3", "1.2", "0.6:0", "often", "0.6:"):
        with pytest.raises(ValueError, match="finish"):
            SamplerOptions(draft="hot", finish=text)


# --- groups ---------------------------------------------------------------------------------------


def found(live, prompts="a", n=6):
    results = search(prompts, BestOfN(n), live, selection=Selection(keep=n), seed=3)
    return {
        (result.prompt, image.seed): image.pixels for result in results for image in result.images
    }


@pytest.mark.parametrize("noisy", [False, True])
def test_a_group_of_one_is_the_model(noisy):
    """Noise of steps is drawn by the same keys."""
    alone, together = found(grouped(size=1, noisy=noisy)), found(grouped(noisy=noisy))
    plain = found(LiveEngine(Grouped(noisy=noisy).whole, [bright()], EngineOptions(3)))
    assert all(torch.equal(alone[key], pixels) for key, pixels in plain.items())
    assert not any(torch.equal(together[key], pixels) for key, pixels in plain.items())


def test_what_is_found_depends_on_no_other_request_no_batch_and_not_on_how_many_of_a_group_are_searched():
    alone = found(grouped(1), "b", 8)
    for others in (found(grouped(7), "abc", 8), found(grouped(3), "b", 6)):
        for key, pixels in others.items():
            assert key[0] != "b" or torch.equal(alone[key], pixels)


def test_a_group_is_evaluated_whole_or_not_at_all():
    live = grouped()
    (result,) = search(["a"], BestOfN(6), live, "53nfe", seed=3)
    assert live.denoiser.sizes == [SIZE, SIZE]  # type: ignore[attr-defined]
    assert result.spent.nfe == 2 * SIZE * AHEAD + 6 * (STEPS - AHEAD)
    assert [row["cost"]["nfe"] for row in result.trace] == [result.spent.nfe]
    assert not live.noise._ready


def test_a_group_that_does_not_fit_is_refused():
    live = grouped()
    live.denoiser.together = Mock(side_effect=torch.OutOfMemoryError)  # type: ignore[attr-defined]
    with pytest.raises(NotEnoughMemoryError, match="smaller groups"):
        search(["a"], BestOfN(3), live)
    assert live.batch_size == 4


def test_mixed_noise_begins_alone_or_from_its_own_draft():
    (drafted,) = search(["a"], make_algorithm("zero-order"), finishing(), "90nfe")
    assert (drafted.particles.parent >= 0).any()
    assert len(np.unique(drafted.particles.scores[:, -1, 0])) == len(drafted.particles)
    live = grouped(noisy=True)
    (result,) = search(["a"], make_algorithm("zero-order"), live, "90nfe")
    mixed = int((result.particles.parent >= 0).sum())
    assert live.denoiser.sizes.count(0) == mixed > 0  # type: ignore[attr-defined]


def test_recordings_hold_whole_groups_and_replays_begin_where_one_does(tmp_path):
    with pytest.raises(ValueError, match="multiple"):
        record(grouped(), ["a"], tmp_path / "r", RecordOptions(seeds=30, block=(1, 13)))
    whole = record(grouped(2), ["a"], tmp_path / "s", RecordOptions(seeds=21, seed=3))
    parts = record(grouped(2), ["a"], tmp_path / "t", RecordOptions(seeds=21, seed=3, block=(1, 4)))
    assert np.array_equal(whole.scores, parts.scores)
    # a seed
    assert describe(grouped(), [Prompt("a")], RecordOptions(seeds=2 * SIZE), {}).nfe == STEPS
    search(["a"], BestOfN(3), ReplayEngine(whole), seed=3 + SIZE)
    with pytest.raises(ValueError, match="4 begins none"):
        search(["a"], BestOfN(3), ReplayEngine(whole), seed=4)
    seeds = Orders.drawn(whole, 50, np.random.default_rng(0)).seeds
    assert (np.sort(seeds, 1) == np.arange(21)).all()
    groups = seeds[:, :20].reshape(-1, 5, SIZE) // SIZE
    assert (groups == groups[..., :1]).all()
    assert len({tuple(row) for row in groups[..., 0].tolist()}) > 25
    assert len({tuple(row) for row in seeds[:, :SIZE].tolist()}) > 25
