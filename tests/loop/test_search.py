"""The loop: ledgers against independent counters, the reserve, batching, stopping, bad input."""

from __future__ import annotations

import dataclasses
import itertools
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.counted import Brightness
from tests.scripted import Played
from ttsnap import BestOfN, Budget, Grid, Prompt, SeedPruning, search
from ttsnap.core import Kind, Need, Price, Rates, advance, ascend, fresh, perturb, renoise
from ttsnap.core.needs import NOTHING, Needs
from ttsnap.core.selection import Selection
from ttsnap.engine.live import LiveEngine
from ttsnap.engine.store import Node
from ttsnap.loop.dry import DryEngine
from ttsnap.loop.search import dry_costs, fit
from ttsnap.options.engine import EngineOptions
from ttsnap.recordings.replay import Recording, ReplayEngine
from ttsnap.reward_models.staged import Staged
from ttsnap.rewards.reward_model import FunctionReward, RewardError, RewardModel
from ttsnap.sampling.denoiser import Capability
from ttsnap.sampling.kernels import KERNELS
from ttsnap.sampling.rng import seeded

PROMPTS = ["a", "b", "c"]
NAN = float("nan")


def counts(result):
    return result.spent.nfe, result.spent.cost.decodes, result.spent.cost.reward_calls


@dataclasses.dataclass(frozen=True)
class Wild:
    """Asks for anything legal, at random: what the loop must survive."""

    n: int | None = 6
    moves: int = 6
    seed: int = 0
    needs: ClassVar[Needs] = frozenset({Need.BRANCH})
    lockstep: ClassVar[bool] = False

    def init(self, task):
        return task.grid.steps, self.moves

    def step(self, state, particles, rng):
        steps, left = state
        if not left:
            return None, state
        rng = np.random.default_rng([self.seed, left, len(particles)])
        alive = np.flatnonzero(particles.alive)
        if not len(alive) or rng.random() < 0.4:
            stop = rng.integers(0, steps + 1)
            return fresh(
                int(rng.integers(1, self.n + 1)), int(stop), score=bool(rng.random() < 0.7)
            ), (steps, left - 1)
        rows = rng.choice(alive, size=int(rng.integers(1, self.n + 1)))
        at = particles.step[rows]
        stop = np.array([rng.integers(a, steps + 1) for a in at])
        drop = np.setdiff1d(alive[rng.random(len(alive)) < 0.2], rows)
        score = rng.random(len(rows)) < 0.6
        return advance(particles, rows, stop, score=score, drop=drop), (steps, left - 1)


budgets = st.one_of(
    st.builds(Budget, nfe=st.integers(8, 90)),
    st.builds(Budget, decodes=st.integers(1, 12), nfe=st.integers(8, 200)),
    st.builds(Budget, reward_calls=st.integers(5, 30), flops=st.floats(2000, 30000)),
)


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    algorithm=st.builds(
        Wild, n=st.integers(1, 7), moves=st.integers(0, 8), seed=st.integers(0, 10**6)
    ),
    budget=budgets,
    shared=st.booleans(),
    batch=st.integers(1, 9),
    nan=st.sampled_from([0.0, 0.3, 1.0]),
    broken=st.sampled_from([0.0, 0.2, 1.0]),
    prompts=st.integers(1, 3),
    frames=st.one_of(st.none(), st.tuples(st.integers(1, 6), st.integers(1, 4))),
    after=st.one_of(st.none(), st.integers(0, 9)),
)
def test_ledger_equals_counter_and_no_budget_is_exceeded(
    engine,
    algorithm,
    budget,
    shared,
    batch,
    nan,
    broken,
    prompts,
    frames,
    after,
):
    """frames: of a video, and how many of these a reward of images sees; None for images. after:
    ticks to the stop."""
    rewards, ticks = (
        [Brightness("one", nan, broken, times=min(frames or (1,))), Brightness("two")],
        list[int](),
    )
    live = engine(batch_size=batch)
    if frames is not None:
        live.denoiser.frames, rewards[1].needs = frames[0], {"video"}
    live = LiveEngine(
        live.denoiser,
        rewards,
        EngineOptions(batch, frames=(frames or (0, 4))[1]),
        kernel=KERNELS["sde"](live.denoiser),
    )
    try:
        results = search(
            PROMPTS[:prompts],
            algorithm,
            live,
            budget,
            shared=shared,
            should_stop=lambda: after is not None and len(ticks) > after,
            on_event=lambda e: ticks.extend([1] if e.kind == "tick" else []),
        )
    except RewardError:
        assert rewards[0].hopeless
        return
    assert not rewards[0].hopeless
    total = np.array([counts(r) for r in results]).sum(0)
    denoiser = live.denoiser
    assert tuple(total) == (denoiser.calls, denoiser.decodes, rewards[0].images + rewards[1].images)
    caps = (budget.nfe, budget.decodes, budget.reward_calls)
    groups = [total] if shared else [np.array(counts(r)) for r in results]
    for spent in groups:
        times = prompts if shared else 1
        assert all(cap is None or s <= cap * times for s, cap in zip(spent, caps, strict=True))
        flops = live.price.flops
        cost = flops.nfe * spent[0] + flops.decodes * spent[1]
        assert budget.flops is None or cost <= budget.flops * times * (1 + 1e-9)
    for result in results:
        assert result.images or (after is not None and result != results[0])
        assert all(
            c.image.shape == ((3, 1, 1) if frames is None else (frames[0], 3, 1, 1))
            for c in result.images
        )
        refunds = sum(m.get("refund", {}).get("nfe", 0) for m in result.trace)
        assert sum(m["cost"]["nfe"] for m in result.trace) - refunds == result.spent.nfe


def test_best_of_n_returns_the_best_seed(engine):
    live = engine(steps=6)
    (result,) = search(["a"], BestOfN(7), live, seed=100, selection=Selection(keep=7))
    assert sorted(c.seed for c in result.images) == list(range(100, 107))
    x = live.denoiser.init_latents([seeded(s) for s in range(100, 107)])
    live.denoiser.encode(["a"])
    for k in range(6):
        step = torch.full((7,), k)
        x, _ = live.kernel.step(
            x, live.denoiser.predict(x, step, torch.zeros(7, dtype=torch.long)), step, [], []
        )
    scores = live.denoiser.decode(x).mean((1, 2, 3))
    assert result.best.seed == 100 + int(scores.argmax())
    assert result.best.reward == pytest.approx(float(scores.max()), abs=1e-7)
    assert [c.reward for c in result.images] == sorted(
        (c.reward for c in result.images), reverse=True
    )


def test_reserve_finishes_one_when_the_algorithm_never_does(engine):
    """17 seeds scored at step 1 cost 34, finishing the best one 6 more."""
    (result,) = search(["a"], Played((lambda p: fresh(50, 1),) * 99, NOTHING), engine(), "41nfe")
    assert (result.spent.seeds, result.spent.nfe) == (17, 40)
    assert result.trace[-1]["closing"]
    assert result.best.uid == result.particles.scores[:, 1, 0].argmax()
    assert any("afforded" in w for w in result.warnings)


def test_schedules_get_the_most_seeds_that_the_budget_pays_for():
    """By trying every number of seeds: caps of several kinds, survivors by the handful, where costs
    rise in jumps."""
    rng, price = np.random.default_rng(0), Price(Rates(1.0, 0.3, 0.1))
    dry = DryEngine(Grid(tuple(np.linspace(1, 0, 9).tolist())), ("r",), price=price)
    for _ in range(6):
        steps = tuple(sorted(rng.choice(8, 2, replace=False).tolist()))
        schedule = SeedPruning(None, tuple(rng.uniform(0.05, 1, 2).tolist()), steps=steps)
        costs = dry_costs(schedule, dry)
        for text in ("20nfe", "90nfe", "140flop", "60rewards", "25decodes,200nfe"):
            budget = Budget.parse(text)
            affordable = [
                n for n in range(1, 21) if budget.shortfall(costs(n, budget), price) is None
            ]
            assert fit(schedule, dry, budget, most=20).n == max(affordable, default=1), (
                schedule,
                text,
            )
    for nfe, most, n in (
        (50, 4096, 6),
        (50, 5, 5),
        (10_000, 48, 48),
        (10_000, 1, 1),
        (8, 64, 1),
        (520, 64, 64),
    ):
        assert fit(BestOfN(), dry, Budget(nfe=nfe), most=most).n == n, (nfe, most)


def test_the_rest_of_a_budget_is_for_drafts_of_further_seeds():
    """By trying every number of further seeds; as many survive each check as of the seeds that were
    fitted."""
    price = Price(Rates(1.0, 0.3, 0.1, draft_calls=0.5), passes_per_nfe=2, passes_per_draft=1)
    dry = DryEngine(Grid(tuple(np.linspace(1, 0, 21).tolist())), ("r",), price=price, draft_calls=1)
    fewer = 0
    for text, keep in (("19nfe", 1), ("50nfe", 3), ("100nfe", 1), ("57decodes,100nfe", 1)):
        schedule, budget = SeedPruning(), Budget.parse(text)
        costs = dry_costs(schedule, dry, keep)
        affordable = [n for n in range(1, 60) if not budget.shortfall(costs(n, budget), price)]
        sized, n = fit(schedule, dry, budget, keep), max(affordable, default=1)
        assert isinstance(sized, SeedPruning)
        assert (sized.shares_of or sized.n) == n, (text, keep)
        ends = [
            budget.shortfall(
                dry_costs(wide := SeedPruning(n).widened(m), dry, keep)(n + m, budget), price
            )
            for m in range(1, 30)
        ]
        assert sized.n == n + next(m for m, short in enumerate(ends) if short), (text, keep, wide)
        found, bare = (
            search([""], s, dry, selection=Selection(keep=keep))[0] for s in (sized, SeedPruning(n))
        )
        assert [len(m["uids"]) for m in found.trace[1:]] == [len(m["uids"]) for m in bare.trace[1:]]
        fewer += sized.n > n
    assert fewer > 1
    assert fit(SeedPruning(7), dry, Budget(nfe=100)) == SeedPruning(7)
    assert fit(SeedPruning(), dry, Budget(nfe=100), most=39) == SeedPruning(39)
    assert fit(SeedPruning(), dry, Budget(nfe=100)) == SeedPruning(48, shares_of=39)


def test_shared_budget_is_one_pot(engine):
    """A prompt is content with one image unless it is a dark one; what it leaves, the others may
    use."""
    firsts = [r.best.reward for r in search(PROMPTS, BestOfN(1), engine())]

    def more(particles):
        first = float(particles.scores[0, -1, 0])
        return None if first > min(firsts) else dataclasses.replace(fresh(1, 8), value=1 - first)

    results = search(
        PROMPTS,
        Played((lambda p: fresh(1, 8), *[more] * 99), NOTHING),
        engine(),
        "40nfe",
        shared=True,
    )
    spent = [r.spent.nfe for r in results]
    assert sum(spent) == 120
    assert max(spent) > 40 > min(spent)
    assert all(r.images for r in results)


class Fails:
    """Raises or returns nan at the calls that `when` names, counted from 0; else the brightness."""

    def __init__(self, name, when, error=True):
        self.name, self.when, self.error, self.calls = name, when, error, 0

    def __call__(self, images, prompts, level):
        self.calls += 1
        if self.when(self.calls - 1) and self.error:
            raise KeyError("no such key")
        scores = images.mean((1, 2, 3))
        return scores * NAN if self.when(self.calls - 1) else scores


@pytest.mark.parametrize("prompts", [1, 3])
def test_a_reward_that_fails_from_the_start_ends_the_search(engine, prompts):
    reward = Fails("mine", lambda call: True)
    live = engine(rewards=[Brightness(), reward])
    with pytest.raises(RewardError) as found:
        search(PROMPTS[:prompts], SeedPruning(40, (0.5,), steps=(3,)), live)
    line = Fails.__call__.__code__.co_firstlineno + 3
    assert (
        f"first 4 images could be scored: mine: KeyError: 'no such key' ({__file__}:{line},"
        in str(found.value)
    )
    assert isinstance(found.value.__cause__, KeyError)
    assert reward.calls == 1
    assert live.denoiser.calls <= 2 * 4 * 4  # one batch to step 3, and what is under way


class Columns(RewardModel):
    """Brightness and its square; the second one fails from image 6 on."""

    def __init__(self, names=("light", "square")):
        self.name, self.own, self.calls, self.rows = names[0], names, 0, 0

    @property
    def names(self):
        return self.own

    def __call__(self, images, prompts, level=None):
        self.calls += 1
        light = images.mean((1, 2, 3)).double()
        square = light**2
        square[max(0, 6 - self.rows) :] = NAN
        self.rows += len(images)
        self.failures = {"square": KeyError("no such key")} if self.rows > 6 else {}
        found = torch.stack([light, square], 1)
        return found if len(self.own) > 1 else found[:, ["light", "square"].index(self.name)]


@pytest.mark.parametrize("frames", [None, 4])
def test_a_reward_with_columns_is_as_many_rewards_of_one_call(engine, frames):
    def searched(rewards):
        live = engine()
        live.denoiser.frames = frames
        live = LiveEngine(live.denoiser, rewards, EngineOptions(4, frames=1))
        (result,) = search(["a"], BestOfN(8), live, selection=Selection(keep=8))
        return live, result

    whole = Columns()
    live, together = searched([whole])
    _, apart = searched([Columns(("light",)), Columns(("square",))])
    assert whole.calls == 2
    assert live.reward_names == ("light", "square")
    assert [each.scores for each in together.images[:6]] == [
        each.scores for each in apart.images[:6]
    ]
    assert [each.seed for each in together.images] == [each.seed for each in apart.images]
    assert together.spent.cost == apart.spent.cost
    assert "square: KeyError" in together.warnings[0]


class Wrong(Brightness):
    def __call__(self, images, prompts, level):
        return images.mean()


@pytest.mark.parametrize(
    ("reward", "batch", "images", "said"),
    [
        (Wrong("odd"), 4, 4, "odd: ValueError: returned"),
        (Fails("mine", lambda call: True, error=False), 1, 8, "first 8 images .* mine"),
        (Fails("mine", lambda call: True, error=False), 4, 8, "first 8 images .* mine"),
        # "A then B": estimates say nothing about B, which sees finished images only.
        (
            Staged(Brightness("early"), Fails("late", lambda call: True)),
            4,
            99,
            "late: KeyError: 'no",
        ),
    ],
)
def test_rewards_that_score_nothing_end_the_search(engine, reward, batch, images, said):
    live = engine(rewards=[reward], batch_size=batch)
    with pytest.raises(RewardError, match=said):
        search(["a"], SeedPruning(12, (0.5,), steps=(3,)), live)
    assert live.denoiser.decodes <= images


def test_images_that_are_nothing_but_nan_end_the_search(engine):
    live = engine()
    decode = live.denoiser.decode
    live.denoiser.decode = lambda x0: decode(x0) * NAN
    with pytest.raises(RewardError, match="bfloat16"):
        search(["a"], BestOfN(40), live)


@pytest.mark.parametrize(
    ("when", "batch", "error"),
    [
        (lambda call: call == 0, 1, False),  # one nan is no batch
        (lambda call: call > 0, 4, True),
        (lambda call: call > 0, 4, False),
        (lambda call: call % 2 == 1, 1, True),
    ],
)
def test_a_reward_that_fails_later_costs_scores_only(engine, when, batch, error):
    live = engine(rewards=[Fails("mine", when, error)], batch_size=batch)
    results = search(PROMPTS, BestOfN(8), live, "64nfe", selection=Selection(keep=8))
    assert any("no score for particle" in w for r in results for w in r.warnings)
    for result in results:
        failed = [c.seed for c in result.images if np.isnan(c.reward)]
        assert failed == [c.seed for c in result.images][8 - len(failed) :]  # ranked last
        assert not failed or any(f"seed {seed}" in result.warnings[0] for seed in failed)
        assert result.spent.nfe == 64


@pytest.mark.parametrize("failed", [1, 2])
def test_images_whose_last_score_failed_are_ranked_by_the_one_before(engine, failed):
    """Behind those that have one."""
    early = np.array([0.4, 0.1, 0.9, 0.3, 0.8, 0.2])
    scores = np.full((1, 6, 9, 1), NAN)
    scores[0, :, 3, 0] = early
    scores[0, 4, 8] = 0.1 if failed == 1 else NAN
    recording = Recording(("a",), scores, engine().grid, ("r",))
    search_of = SeedPruning(6, (0.5,), steps=(3,))
    (result,) = search(["a"], search_of, ReplayEngine(recording), selection=Selection(keep=3))
    assert [each.seed for each in result.images] == ([4, 2, 0] if failed == 1 else [2, 4, 0])
    assert np.isnan(result.best.reward) == (failed == 2)
    assert (failed == 2) == any("no image has a score" in line for line in result.warnings)


def test_recorded_and_dry_scores_may_be_missing(engine):
    """Only a reward that runs is stopped: a recording whose first scores failed is played to its
    end."""
    scores = np.full((1, 8, 9, 1), NAN)
    scores[0, -1] = 1.0
    recording = Recording(("a",), scores, engine().grid, ("r",))
    (result,) = search(["a"], BestOfN(8), ReplayEngine(recording))
    assert result.best.seed == 7
    (nothing,) = search(["a"], BestOfN(4), ReplayEngine(recording), selection=Selection(keep=2))
    assert np.isnan([c.reward for c in nothing.images]).all()
    assert "no image has a score" in " ".join(nothing.warnings)


def test_events_tell_the_story(engine):
    events = []
    (result,) = search(["a"], SeedPruning(6, (0.5,), steps=(3,)), engine(), on_event=events.append)
    kinds = [e.kind for e in events]
    assert (kinds[0], kinds[-1], kinds.count("score")) == ("start", "end", 6 + 3)
    assert sum(e.nfe for e in events if e.kind == "tick") == result.spent.nfe
    assert [len(e.uids) for e in events if e.kind == "drop"] == [3]
    assert [e for e in events if e.kind == "score"][-1].best == pytest.approx(result.best.reward)


@pytest.mark.parametrize(
    "wrong", [{"keep": 0}, {"keep": 1.5}, {"diversity": -1.0}, {"diversity": np.inf}]
)
def test_a_selection_that_cannot_be_is_refused(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"{name} must be"):
        Selection(**wrong)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"budget": "7nfe"}, "takes 8 NFE;"),
        ({"prompts": []}, "no prompts"),
        ({"algorithm": BestOfN(), "budget": None}, "20images"),
        ({"algorithm": Wild()}, "deterministic"),
        ({"algorithm": SeedPruning(4, (0.5,), steps=(8,))}, "8 steps"),
        ({"algorithm": SimpleNamespace(n=1)}, "it has no init"),
        ({"algorithm": BestOfN(10**12)}, "000 seeds at once"),
        ({"seed": -1}, r"0..2\^64 - 1"),
        ({"seed": 2**64}, r"0..2\^64 - 1"),
        ({"algorithm": Played((), frozenset({Need.RENOISE}))}, "noisier steps"),
    ],
)
def test_bad_input_is_refused_before_any_compute(engine, change, said):
    live = engine()
    live.denoiser.can -= {Capability.PATH}
    arguments = {"prompts": ["a"], "algorithm": BestOfN(2), "budget": "100nfe", **change}
    with pytest.raises(ValueError, match=said):
        search(arguments.pop("prompts"), arguments.pop("algorithm"), live, **arguments)
    assert live.denoiser.calls == 0


def test_effort_and_saturation(engine):
    (result,) = search(["a"], BestOfN(), engine(), "low")
    assert result.spent.nfe == 40
    finished = result.particles.scores[:, -1, 0]
    pairs = [max(a, b) for a, b in itertools.combinations(finished, 2)]
    assert result.spent.gain_of_second_half == pytest.approx(max(finished) - np.mean(pairs))
    assert not result.saturated
    (flat,) = search(
        ["a"],
        BestOfN(8),
        engine(rewards=[FunctionReward(lambda images, prompts: [1.0] * len(images))]),
    )
    assert flat.saturated
    assert search(["a"], BestOfN(3), engine())[0].spent.gain_of_second_half is None


PLAIN = frozenset({Need.RENOISE, Need.MIX})
"""Needs of moves on an engine that draws no noise."""


def alter(move, **columns):
    return dataclasses.replace(move, rows=move.rows._replace(**columns))


@pytest.mark.parametrize(
    ("move", "said"),
    [
        (lambda p: perturb([0], NAN, 8), r"share .* got \[nan\]"),
        (lambda p: dataclasses.replace(fresh(1, 8), value=NAN), "value .* nan"),
        (lambda p: alter(fresh(2, 8), share=np.zeros(1)), "share .* 2 rows"),
        (lambda p: alter(fresh(1, 8), stop=np.array([7.5])), "stop .* got float64"),
        (lambda p: alter(fresh(1, 8), kind=np.array([False])), "kind .* whole"),
        (lambda p: alter(fresh(1, 8), kind=np.array([Kind.BRANCH])), r"\[-1\] outside 0..1"),
        (lambda p: alter(advance(p, [0], 8), kind=np.array([Kind.BRANCH])), "kind 2"),
        (
            lambda p: alter(advance(p, [0], 8), start=np.array([2])),
            r"where it is, got parents \[0\]",
        ),
        (lambda p: alter(fresh(1, 8), start=np.array([1])), "fresh seeds start"),
        (lambda p: renoise([0], 3, 8), "before the parent's step"),
        (lambda p: advance(p, [0], 2), "start to stop"),
        (lambda p: ascend([0], 0.5, 8), "finished parents"),
        (lambda p: advance(p, [0], 8, drop=[2]), r"drop .* 0..1, got \[2\]"),
        (lambda p: advance(p, [0], 8, drop=[-1]), r"drop .* 0..1, got \[-1\]"),
        (lambda p: advance(p, [0], 8, drop=[0]), r"drops particles \[0\]"),
        (lambda p: dataclasses.replace(fresh(1, 8), reject=np.array([5])), r"reject .* got \[5\]"),
        (lambda p: advance(p, [0], 5, drop=[1]), r"\[1\] includes"),  # again
        (lambda p: advance(p, [0, 0], 8), "Need.BRANCH"),
        (lambda p: renoise([0], 1, 8), "Need.RENOISE"),
        (lambda p: perturb([0], 0.5, 8), "Need.MIX"),
    ],
)
def test_moves_that_mean_nothing_or_were_not_declared_are_refused(engine, move, said):
    with pytest.raises(ValueError, match=said):
        search(
            ["a"],
            Played((lambda p: fresh(2, 3), move, move), NOTHING if "Need" in said else PLAIN),
            engine(),
        )


@pytest.mark.parametrize(
    "idle", [lambda p: advance(p, [0], 3, score=False), lambda p: fresh(1, 0, score=False)]
)
def test_moves_that_cost_nothing_come_to_an_end(engine, idle):
    few, many = (
        Played((lambda p: fresh(1, 3), *[idle] * n, lambda p: advance(p, [0], 8)), PLAIN)
        for n in (20, 1100)
    )
    assert search(["a"], few, engine())[0].images
    with pytest.raises(RuntimeError, match="over 1000 moves"):
        search(["a"], many, engine(), "90nfe")


@pytest.mark.parametrize("first", [2**63 - 2, 2**64 - 2])
def test_the_largest_seeds_count_on_as_those_of_torch(engine, first):
    (result,) = search(["a"], BestOfN(4), engine(), seed=first, selection=Selection(keep=4))
    seeds = [(first + i) % 2**64 for i in range(4)]
    assert sorted(c.seed for c in result.images) == sorted(seeds)
    assert result.trace[0]["seeds"] == seeds
    r = Recording.from_results([result], engine().grid, ("brightness",))
    (again,) = search(["a"], BestOfN(4), ReplayEngine(r), seed=first)
    assert again.best.seed == result.best.seed


def inputs(live):
    """The latents and steps of every batch from now on."""
    seen = []
    denoiser = live.denoiser
    predict = denoiser.predict
    denoiser.predict = lambda x, step, cond: (
        seen.append((x.clone(), step)),
        predict(x, step, cond),
    )[1]
    return seen


def test_what_is_under_way_holds_no_earlier_latents(engine):
    live, held = engine(batch_size=1), list[list[tuple[int, int]]]()
    twice = Played((lambda p: fresh(2, 2), lambda p: advance(p, [0], 4)), PLAIN)
    search(
        ["a"],
        twice,
        live,
        on_event=lambda event: held.append(sorted(live.store)) if event.kind == "tick" else None,
    )
    assert held[5:7] == [[(0, 0), (0, 1)], [(0, 1)]]  # particle 0 is on its way


def test_perturbed_noise_is_mixed_and_paid_in_full(engine):
    whole = Played(
        (
            lambda p: fresh(2, 8),
            lambda p: perturb([0, 0, 1], 0.8, 8),
            lambda p: perturb([2], 0.6, 8),
        ),
        PLAIN,
    )
    found = []
    for batch in (1, 16):
        live = engine(batch_size=batch)
        seen = inputs(live)
        (result,) = search(["a"], whole, live, seed=5, selection=Selection(keep=6))
        assert counts(result) == (6 * 8, 6, 6)
        assert live.denoiser.calls == 48
        found.append(torch.cat([x[step == 0] for x, step in seen]))
        assert [int(s) for s in result.particles.seed] == [5, 6, 5, 5, 6, 5]
    assert torch.equal(found[0], found[1])
    first, second, a, b, c, d = found[0]
    fresh_part = [
        (a - 0.8 * first) / 0.6,
        (b - 0.8 * first) / 0.6,
        (c - 0.8 * second) / 0.6,
        (d - 0.6 * a) / 0.8,
    ]
    assert len({tuple(f.tolist()) for f in fresh_part}) == 4
    big = engine()
    big.admit([Prompt("a")])
    noise = torch.stack(
        [big.noise.near(Node(0, s, 0), 0.5, (s, 1, big.grid.nfe)).x for s in range(4000)]
    )
    assert noise.std() == pytest.approx(1.0, abs=0.03)
    assert noise.mean() == pytest.approx(0.0, abs=0.03)


def test_renoised_particles_have_the_marginals_of_their_step(engine):
    """From step 6 back to step 2: the latents there are spread as those that came there from
    noise."""
    latents = []
    back = (lambda p: fresh(600, 6, score=False), lambda p: renoise(np.arange(600), 2, 2))
    for moves in ((lambda p: fresh(600, 2),), back):
        live = engine(steps=8, batch_size=600)
        seen = inputs(live)
        search(["a"], Played(moves, PLAIN), live)
        latents.append([x for x, step in seen if (step == 2).sum() == 600])
    (there,), (_, again) = latents
    assert torch.allclose(there.mean(0), again.mean(0), atol=0.2)
    assert torch.allclose(there.std(0), again.std(0), rtol=0.15)
