"""The loop: ledgers against independent counters, the reserve, batching, stopping, bad input."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.counted import Brightness
from tests.scripted import Played
from ttsnap import BestOfN, Budget, Grid, SeedPruning, make_algorithm, search
from ttsnap.core.cost import Cost, Price, Rates
from ttsnap.core.moves import Kind, Move, advance, ascend, fresh, perturb, renoise
from ttsnap.core.needs import NOTHING, Need, Needs
from ttsnap.core.prompt import Prompt
from ttsnap.engine.live import LiveEngine
from ttsnap.engine.store import Node
from ttsnap.loop.dry import DryEngine
from ttsnap.loop.search import dry_costs, fit
from ttsnap.options.engine import EngineOptions
from ttsnap.recordings.replay import Recording, ReplayEngine
from ttsnap.reward_models.staged import Staged
from ttsnap.rewards.reward_model import FunctionReward, RewardError
from ttsnap.sampling.denoiser import Capability
from ttsnap.sampling.kernels import KERNELS
from ttsnap.sampling.rng import seeded

PROMPTS = ["a", "b", "c"]
NAN = float("nan")
relaxed = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def counts(result: Any) -> tuple[int, int, int]:
    return result.spent.nfe, result.spent.cost.decodes, result.spent.cost.reward_calls


@dataclasses.dataclass(frozen=True)
class Wild:
    """Asks for anything legal, at random: what the loop must survive."""

    n: int | None = 6
    moves: int = 6
    seed: int = 0
    needs: ClassVar[Needs] = frozenset({Need.BRANCH})
    lockstep: ClassVar[bool] = False

    def init(self, task: Any) -> tuple[int, int]:
        return task.grid.steps, self.moves

    def step(self, state: tuple[int, int], particles: Any, rng: Any) -> tuple[Move | None, tuple[int, int]]:
        steps, left = state
        if not left:
            return None, state
        rng = np.random.default_rng([self.seed, left, len(particles)])
        alive = np.flatnonzero(particles.alive)
        if not len(alive) or rng.random() < 0.4:
            stop = rng.integers(0, steps + 1)
            return fresh(int(rng.integers(1, self.n + 1)), int(stop), score=bool(rng.random() < 0.7)), (steps, left - 1)
        rows = rng.choice(alive, size=int(rng.integers(1, self.n + 1)))
        at = particles.step[rows]
        stop = np.array([rng.integers(a, steps + 1) for a in at])
        drop = np.setdiff1d(alive[rng.random(len(alive)) < 0.2], rows)
        score = rng.random(len(rows)) < 0.6
        return advance(particles, rows, stop, score=score, drop=drop), (steps, left - 1)


algorithms = st.one_of(
    st.builds(BestOfN, n=st.one_of(st.none(), st.integers(1, 9))),
    st.builds(
        lambda n, checks: SeedPruning(n, tuple(k for _, k in checks), steps=tuple(s for s, _ in checks)),
        st.one_of(st.none(), st.integers(1, 12)),
        st.lists(
            st.tuples(st.integers(0, 7), st.floats(0.05, 1)), min_size=1, max_size=4, unique_by=lambda c: c[0]
        ).map(sorted),
    ),
    st.builds(Wild, n=st.integers(1, 7), moves=st.integers(0, 8), seed=st.integers(0, 10**6)),
)
budgets = st.one_of(
    st.builds(Budget, nfe=st.integers(8, 90)),
    st.builds(Budget, decodes=st.integers(1, 12), nfe=st.integers(8, 200)),
    st.builds(Budget, reward_calls=st.integers(5, 30), flops=st.floats(2000, 30000)),
)


@relaxed
@given(
    algorithm=algorithms,
    budget=budgets,
    shared=st.booleans(),
    batch=st.integers(1, 9),
    nan=st.sampled_from([0.0, 0.3, 1.0]),
    broken=st.sampled_from([0.0, 0.2, 1.0]),
    prompts=st.integers(1, 3),
    frames=st.one_of(st.none(), st.tuples(st.integers(1, 6), st.integers(1, 4))),
)
def test_ledger_equals_counter_and_no_budget_is_exceeded(
    engine: Any, algorithm: Any, budget: Budget, shared: bool, batch: int, nan: float, broken: float, prompts: int,
    frames: tuple[int, int] | None,
) -> None:  # fmt: skip
    """frames: of a video, and how many of these a reward of images sees; None for images."""
    rewards = [Brightness("one", nan, broken, times=min(frames or (1,))), Brightness("two")]
    kernel = "sde" if Need.BRANCH in algorithm.needs else "pipeline"
    live = engine(batch_size=batch)
    if frames is not None:
        live.denoiser.frames, rewards[1].needs = frames[0], {"video"}
    live = LiveEngine(live.denoiser, rewards, EngineOptions(batch, frames=(frames or (0, 4))[1]),
                      kernel=KERNELS[kernel](live.denoiser))  # fmt: skip
    try:
        results = search(PROMPTS[:prompts], algorithm, live, budget, shared=shared)
    except RewardError:
        assert rewards[0].hopeless
        return
    assert not rewards[0].hopeless
    total = np.array([counts(r) for r in results]).sum(0)
    denoiser: Any = live.denoiser
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
        assert result.images
        assert result.best.image.shape == ((3, 1, 1) if frames is None else (frames[0], 3, 1, 1))
        assert sum(m["cost"]["nfe"] for m in result.trace) == result.spent.nfe


def with_kernel(live: LiveEngine, name: str) -> LiveEngine:
    kernel = KERNELS[name](live.denoiser)
    return LiveEngine(live.denoiser, live.rewards, EngineOptions(live.batch_size), kernel=kernel)


@relaxed
@given(algorithm=algorithms, batch=st.integers(1, 11), order=st.permutations(PROMPTS), nfe=st.integers(8, 90))
def test_batching_changes_nothing(engine: Any, algorithm: Any, batch: int, order: list[str], nfe: int) -> None:
    # By prompt, whatever the batch size, the order of the prompts and the company they keep.
    kernel = "sde" if Need.BRANCH in algorithm.needs else "pipeline"

    def run(prompts: list[str], batch_size: int) -> dict[str, Any]:
        live = engine(batch_size=batch_size)
        offsets = live.denoiser._by_prompt[[PROMPTS.index(p) for p in prompts]]
        live.denoiser._by_prompt = offsets
        return {r.prompt: r for r in search(prompts, algorithm, with_kernel(live, kernel), Budget(nfe=nfe), keep=3)}

    together, alone = run(order, batch), {p: run([p], 1)[p] for p in PROMPTS}
    for prompt in PROMPTS:
        a, b = together[prompt], alone[prompt]
        assert [c.uid for c in a.images] == [c.uid for c in b.images]
        assert counts(a) == counts(b)
        for x, y in zip(a.images, b.images, strict=True):
            torch.testing.assert_close(x.image, y.image, atol=1e-6, rtol=1e-6)


def test_best_of_n_returns_the_best_seed(engine: Any) -> None:
    live = engine(steps=6)
    (result,) = search(["a"], BestOfN(7), live, seed=100, keep=7)
    assert sorted(c.seed for c in result.images) == list(range(100, 107))
    x = live.denoiser.init_latents([seeded(s) for s in range(100, 107)])
    live.denoiser.encode(["a"])
    for k in range(6):
        step = torch.full((7,), k)
        x, _ = live.kernel.step(x, live.denoiser.predict(x, step, torch.zeros(7, dtype=torch.long)), step, [], [])
    scores = live.denoiser.decode(x).mean((1, 2, 3))
    assert result.best.seed == 100 + int(scores.argmax())
    assert result.best.reward == pytest.approx(float(scores.max()), abs=1e-7)
    assert [c.reward for c in result.images] == sorted((c.reward for c in result.images), reverse=True)


def test_pruning_pays_for_estimates_once(engine: Any) -> None:
    # 8 seeds to step 2 scored (3 calls each), 4 go on to step 5 (2 + 1 - 0 cached), 2 finish.
    live = engine(steps=8)
    (result,) = search(["a"], SeedPruning(8, (0.5, 0.5), steps=(2, 5)), live)
    assert counts(result) == (8 * 3 + 4 * 3 + 2 * 2, 8 + 4 + 2, 14)
    assert live.denoiser.calls == 40
    assert result.spent.finished == 2


def test_children_share_their_parents_evaluation(engine: Any) -> None:
    twins = Played((lambda p: fresh(1, 3, score=False), lambda p: advance(p, [0] * 4, 8)), frozenset({Need.BRANCH}))
    live = with_kernel(engine(), "sde")
    (result,) = search(["a"], twins, live, keep=4)
    assert counts(result) == (3 + 1 + 4 * 4, 4, 4)
    assert live.denoiser.calls == 20
    images = torch.stack([c.image for c in result.images])
    assert len(torch.unique(images, dim=0)) == 4  # they diverge
    assert {int(p) for p in result.particles.parent} == {-1, 0}


def test_reserve_finishes_one_when_the_algorithm_never_does(engine: Any) -> None:
    (result,) = search(["a"], Played((lambda p: fresh(50, 1),) * 99, NOTHING), engine(), "41nfe")
    assert result.best.image is not None
    # 17 seeds scored at step 1 cost 34, finishing the best one 6 more.
    assert result.spent.seeds == 17
    assert result.spent.nfe == 40
    assert result.trace[-1]["closing"]
    uid = result.best.uid
    assert result.particles.scores[uid, 1, 0] == result.particles.scores[:, 1, 0].max()
    assert any("afforded" in w for w in result.warnings)


def test_schedules_get_the_most_seeds_that_the_budget_pays_for() -> None:
    """By trying every number of seeds: caps of several kinds, survivors by the handful, where costs rise in jumps."""
    rng, price = np.random.default_rng(0), Price(Rates(1.0, 0.3, 0.1))
    dry = DryEngine(Grid(tuple(np.linspace(1, 0, 9).tolist())), ("r",), price=price)
    for _ in range(12):
        steps = tuple(sorted(rng.choice(8, 2, replace=False).tolist()))
        schedule = SeedPruning(None, tuple(rng.uniform(0.05, 1, 2).tolist()), steps=steps)
        costs = dry_costs(schedule, dry)
        for text in ("20nfe", "90nfe", "140flop", "60rewards", "25decodes,200nfe"):
            budget = Budget.parse(text)
            affordable = [n for n in range(1, 61) if budget.shortfall(costs(n, budget), price) is None]
            assert fit(schedule, dry, budget, most=60).n == max(affordable, default=1), (schedule, text)


def test_the_rest_of_a_budget_is_for_drafts_of_further_seeds() -> None:
    """By trying every number of further seeds; as many survive each check as of the seeds that were fitted."""
    price = Price(Rates(1.0, 0.3, 0.1, draft_calls=0.5), passes_per_nfe=2, passes_per_draft=1)
    dry = DryEngine(Grid(tuple(np.linspace(1, 0, 21).tolist())), ("r",), price=price, draft_calls=1)
    fewer = 0
    for text, keep in (("19nfe", 1), ("50nfe", 3), ("100nfe", 1), ("140flop", 3), ("57decodes,100nfe", 1)):
        schedule, budget = SeedPruning(), Budget.parse(text)
        costs = dry_costs(schedule, dry, keep)
        affordable = [n for n in range(1, 99) if not budget.shortfall(costs(n, budget), price)]
        sized, n = fit(schedule, dry, budget, keep), max(affordable, default=1)
        assert isinstance(sized, SeedPruning)
        assert (sized.shares_of or sized.n) == n, (text, keep)
        ends = [budget.shortfall(dry_costs(wide := SeedPruning(n).widened(m), dry, keep)(n + m, budget), price)
                for m in range(1, 99)]  # fmt: skip
        assert sized.n == n + next(m for m, short in enumerate(ends) if short), (text, keep, wide)
        found, bare = (search([""], s, dry, keep=keep)[0] for s in (sized, SeedPruning(n)))
        assert [len(m["uids"]) for m in found.trace[1:]] == [len(m["uids"]) for m in bare.trace[1:]]
        fewer += sized.n > n
    assert fewer > 1
    assert fit(SeedPruning(7), dry, Budget(nfe=100)) == SeedPruning(7)
    assert fit(SeedPruning(), dry, Budget(nfe=100), most=39) == SeedPruning(39)
    assert fit(SeedPruning(), dry, Budget(nfe=100)) == SeedPruning(48, shares_of=39)


def test_costs_that_rise_evenly_are_fitted_by_a_few_dry_runs() -> None:
    dry = DryEngine(Grid(tuple(np.linspace(1, 0, 9).tolist())), ("r",))
    algorithm = make_algorithm("epsilon-greedy")  # of n candidates it takes 1 + 7 n evaluations
    costs, ran = dry_costs(algorithm, dry), list[int]()

    def counted(n: int, budget: Budget) -> Cost:
        ran.append(n)
        return costs(n, budget)

    assert fit(algorithm, dry, Budget(nfe=706), costs=counted).n == 100
    assert set(ran) == {1, 2, 4, 100, 101}


def test_n_is_fitted_to_the_budget(engine: Any) -> None:
    (result,) = search(["a"], BestOfN(), engine(), "50nfe")
    assert result.spent.nfe == 48
    assert result.spent.seeds == 6
    (result,) = search(["a"], SeedPruning(None, (0.5,), steps=(3,)), engine(), "50nfe")
    assert 44 <= result.spent.nfe <= 50
    for budget, most, n in ((50, 4096, 6), (50, 5, 5), (10_000, 48, 48), (10_000, 1, 1), (8, 64, 1), (520, 64, 64)):
        assert fit(BestOfN(), engine(), Budget(nfe=budget), most=most).n == n, (budget, most)


def test_shared_budget_is_one_pot(engine: Any) -> None:
    firsts = [r.best.reward for r in search(PROMPTS, BestOfN(1), engine())]

    @dataclasses.dataclass(frozen=True)
    class Greedy:
        """A prompt is content with one image unless it is a dark one; what it leaves, the others may use."""

        n: int = 1
        needs: ClassVar[Needs] = NOTHING
        lockstep: ClassVar[bool] = False

        def init(self, task: Any) -> None:
            return None

        def step(self, state: None, particles: Any, rng: Any) -> Any:
            if not len(particles):
                return fresh(1, 8), state
            first = float(particles.scores[0, -1, 0])
            return (None if first > min(firsts) else dataclasses.replace(fresh(1, 8), value=1 - first)), state

    results = search(PROMPTS, Greedy(), engine(), "40nfe", shared=True)
    spent = [r.spent.nfe for r in results]
    assert sum(spent) == 120
    assert max(spent) > 40 > min(spent)
    assert all(r.images for r in results)


def test_failed_reward_ranks_last_and_is_reported(engine: Any) -> None:
    class Once(Brightness):
        def __call__(self, images: Any, prompts: Any, level: Any) -> Any:
            scores = super().__call__(images, prompts, level)
            scores[scores.argmax()] = float("nan")
            return scores

    (result,) = search(["a"], BestOfN(4), engine(rewards=[Once()]), keep=4)
    assert np.isnan(result.images[-1].reward)
    assert not np.isnan(result.best.reward)
    assert "particle" in result.warnings[0]
    assert "seed" in result.warnings[0]


class Fails:
    """Raises or returns nan at the calls that `when` names, counted from 0; else the brightness."""

    def __init__(self, name: str, when: Any, error: bool = True) -> None:
        self.name, self.when, self.error, self.calls = name, when, error, 0

    def __call__(self, images: Any, prompts: Any, level: Any) -> Any:
        self.calls += 1
        if self.when(self.calls - 1) and self.error:
            raise KeyError("no such key")
        scores = images.mean((1, 2, 3))
        return scores * NAN if self.when(self.calls - 1) else scores


@pytest.mark.parametrize("prompts", [1, 3])
def test_a_reward_that_fails_from_the_start_ends_the_search(engine: Any, prompts: int) -> None:
    reward = Fails("mine", lambda call: True)
    live = engine(rewards=[Brightness(), reward])
    with pytest.raises(RewardError) as found:
        search(PROMPTS[:prompts], SeedPruning(40, (0.5,), steps=(3,)), live)
    line = Fails.__call__.__code__.co_firstlineno + 3
    assert str(found.value) == (
        f"none of the first 4 images could be scored: mine: KeyError: 'no such key' ({__file__}:{line}, in __call__)"
    )
    assert isinstance(found.value.__cause__, KeyError)
    assert reward.calls == 1
    assert live.denoiser.calls <= 2 * 4 * 4  # one batch to step 3, and what is under way


def test_a_reward_that_returns_something_else_ends_the_search(engine: Any) -> None:
    class Wrong(Brightness):
        def __call__(self, images: Any, prompts: Any, level: Any) -> Any:
            return images.mean()

    with pytest.raises(RewardError, match="odd: ValueError: returned"):
        search(["a"], BestOfN(2), engine(rewards=[Wrong("odd")]))


@pytest.mark.parametrize("batch", [1, 4])
def test_nothing_but_nan_ends_the_search(engine: Any, batch: int) -> None:
    reward = Fails("mine", lambda call: True, error=False)
    first = 8
    with pytest.raises(RewardError, match=f"none of the first {first} images .* mine failed; it gave nan or inf"):
        search(["a"], BestOfN(40), engine(rewards=[reward], batch_size=batch))
    assert reward.calls == first // batch


def test_images_that_are_nothing_but_nan_end_the_search(engine: Any) -> None:
    live = engine()
    decode = live.denoiser.decode
    live.denoiser.decode = lambda x0: decode(x0) * NAN
    with pytest.raises(RewardError, match="precision, try bfloat16"):
        search(["a"], BestOfN(40), live)


@pytest.mark.parametrize(("when", "batch", "error"), [
    (lambda call: call == 0, 1, False),  # one nan is no batch
    (lambda call: call > 0, 4, True),
    (lambda call: call > 0, 4, False),
    (lambda call: call % 2 == 1, 1, True),
])  # fmt: skip
def test_a_reward_that_fails_later_costs_scores_only(engine: Any, when: Any, batch: int, error: bool) -> None:
    results = search(PROMPTS, BestOfN(8), engine(rewards=[Fails("mine", when, error)], batch_size=batch), "64nfe")
    assert all(r.images and r.spent.nfe == 64 for r in results)
    assert any("no score for particle" in w for r in results for w in r.warnings)


def test_a_second_judge_that_fails_ends_the_search_when_it_is_first_asked(engine: Any) -> None:
    """ "A then B": estimates say nothing about B, which sees finished images only."""
    reward = Staged(Brightness("early"), Fails("late", lambda call: True))
    with pytest.raises(RewardError, match="late: KeyError: 'no"):
        search(["a"], SeedPruning(8, (0.5,), steps=(3,)), engine(rewards=[reward]))


def test_recorded_and_dry_scores_may_be_missing(engine: Any) -> None:
    """Only a reward that runs is stopped: a recording whose first scores failed is played to its end."""
    scores = np.full((1, 8, 9, 1), NAN)
    scores[0, -1] = 1.0
    recording = Recording(("a",), scores, engine().grid, ("r",))
    (result,) = search(["a"], BestOfN(8), ReplayEngine(recording))
    assert result.best.seed == 7
    (nothing,) = search(["a"], BestOfN(4), ReplayEngine(recording), keep=2)
    assert np.isnan([c.reward for c in nothing.images]).all()
    assert "no image has a score" in " ".join(nothing.warnings)


def test_stop_keeps_what_is_finished_and_refunds_the_rest(engine: Any) -> None:
    live = engine(batch_size=2)
    asked = []

    def stop() -> bool:
        asked.append(1)
        return live.denoiser.batches >= 10

    results = search(PROMPTS, BestOfN(6), live, "60nfe", should_stop=stop)
    total = np.array([counts(r) for r in results]).sum(0)
    assert total[0] == live.denoiser.calls
    assert total[1] == live.denoiser.decodes
    assert results[0].images
    assert "stopped early" in " ".join(results[0].warnings)
    assert not results[2].images
    with pytest.raises(ValueError, match="stopped before"):
        _ = results[2].best


@relaxed
@given(algorithm=algorithms, after=st.integers(0, 25), batch=st.integers(1, 6), prompts=st.integers(1, 3))
def test_stopping_anywhere_keeps_the_books(engine: Any, algorithm: Any, after: int, batch: int, prompts: int) -> None:
    live = with_kernel(engine(batch_size=batch), "sde" if Need.BRANCH in algorithm.needs else "pipeline")
    ticks: list[int] = []
    results = search(
        PROMPTS[:prompts],
        algorithm,
        live,
        "80nfe",
        should_stop=lambda: len(ticks) > after,
        on_event=lambda e: ticks.append(1) if e.kind == "tick" else None,
    )
    denoiser: Any = live.denoiser
    total = np.array([counts(r) for r in results]).sum(0)
    assert tuple(total[:2]) == (denoiser.calls, denoiser.decodes)
    assert results[0].images


def test_deadline_ends_every_prompt_with_an_image(engine: Any) -> None:
    live = engine(batch_size=4)
    now = [0.0]
    denoiser: Any = live.denoiser
    plain = denoiser.predict

    def slow(x: Any, step: Any, cond: Any) -> Any:
        now[0] += 1.0
        return plain(x, step, cond)

    denoiser.predict = slow
    from ttsnap.core.cost import Price, Rates

    live._price = Price(seconds=Rates(call=1.0))
    results = search(PROMPTS, BestOfN(50), live, "20s", clock=lambda: now[0])
    assert all(r.images for r in results)
    assert now[0] <= 60
    assert sum(r.spent.nfe for r in results) == denoiser.calls


def test_events_tell_the_story(engine: Any) -> None:
    events: list[Any] = []
    (result,) = search(["a"], SeedPruning(6, (0.5,), steps=(3,)), engine(), on_event=events.append)
    kinds = [e.kind for e in events]
    assert kinds[0] == "start"
    assert kinds[-1] == "end"
    assert kinds.count("score") == 6 + 3
    assert sum(e.nfe for e in events if e.kind == "tick") == result.spent.nfe
    assert [len(e.uids) for e in events if e.kind == "drop"] == [3]
    assert [e for e in events if e.kind == "score"][-1].best == pytest.approx(result.best.reward)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"budget": "7nfe"}, "too small for one image.*8 NFE of 7"),
        ({"prompts": []}, "no prompts"),
        ({"keep": 0}, "keep must be at least 1, got 0"),
        ({"algorithm": BestOfN(), "budget": None}, "no budget; give a budget, as 20images, an effort"),
        ({"algorithm": Wild()}, "deterministic"),
        ({"algorithm": SeedPruning(4, (0.5,), steps=(8,))}, r"do not fit a grid of 8 steps"),
    ],
)
def test_bad_input_is_refused_before_any_compute(engine: Any, change: dict[str, Any], message: str) -> None:
    live = engine()
    arguments = {"prompts": ["a"], "algorithm": BestOfN(2), "budget": "100nfe", **change}
    with pytest.raises(ValueError, match=message):
        search(arguments.pop("prompts"), arguments.pop("algorithm"), live, **arguments)
    assert live.denoiser.calls == 0


def test_effort_and_saturation(engine: Any) -> None:
    (result,) = search(["a"], BestOfN(), engine(), "low")
    assert result.spent.nfe == 40
    finished = result.particles.scores[:, -1, 0]
    pairs = [max(a, b) for a, b in itertools.combinations(finished, 2)]
    assert result.spent.gain_of_second_half == pytest.approx(max(finished) - np.mean(pairs))
    assert not result.saturated
    (flat,) = search(["a"], BestOfN(8), engine(rewards=[FunctionReward(lambda images, prompts: [1.0] * len(images))]))
    assert flat.saturated
    assert search(["a"], BestOfN(3), engine())[0].spent.gain_of_second_half is None


PLAIN = frozenset({Need.RENOISE, Need.MIX})
"""Needs of moves on an engine that draws no noise."""


def alter(move: Move, **columns: Any) -> Move:
    return dataclasses.replace(move, rows=move.rows._replace(**columns))


@pytest.mark.parametrize(("move", "message"), [
    (lambda p: perturb([0], NAN, 8), r"share must be in \[0, 1\], got \[nan\]"),
    (lambda p: dataclasses.replace(fresh(1, 8), value=NAN), r"the value of a move is nan"),
    (lambda p: alter(fresh(2, 8), share=np.zeros(1)), r"share must hold one number for each of the 2 rows"),
    (lambda p: alter(fresh(1, 8), stop=np.array([7.5])), r"stop must hold one whole number .* got float64"),
    (lambda p: alter(fresh(1, 8), kind=np.array([False])), r"kind must hold one whole number"),
    (lambda p: alter(fresh(1, 8), kind=np.array([Kind.BRANCH])), r"parents \[-1\] outside 0..1"),
    (lambda p: alter(advance(p, [0], 8), kind=np.array([Kind.BRANCH])), r"no row can be of kind 2; kinds to ask for"),
    (lambda p: alter(advance(p, [0], 8), start=np.array([2])), r"goes on from the step where it is, got parents \[0\]"),
    (lambda p: alter(fresh(1, 8), start=np.array([1])), r"fresh seeds start at step 0"),
    (lambda p: renoise([0], 3, 8), r"starts after step 0 and before the parent's step"),
    (lambda p: advance(p, [0], 2), r"rows must go from start to stop"),
    (lambda p: ascend([0], 0.5, 8), r"rows that ascend start at step 0, from finished parents"),
    (lambda p: advance(p, [0], 8, drop=[2]), r"drop must list uids in 0..1, got \[2\]"),
    (lambda p: advance(p, [0], 8, drop=[-1]), r"drop must list uids in 0..1, got \[-1\]"),
    (lambda p: advance(p, [0], 8, drop=[0]), r"drops particles \[0\], from which its own rows go on"),
    (lambda p: dataclasses.replace(fresh(1, 8), reject=np.array([5])), r"reject must list uids in 0..1, got \[5\]"),
])  # fmt: skip
def test_moves_that_mean_nothing_are_refused(engine: Any, move: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        search(["a"], Played((lambda p: fresh(2, 3), move), PLAIN), engine())


def test_a_particle_is_dropped_once(engine: Any) -> None:
    again = tuple(lambda p, stop=stop: advance(p, [0], stop, drop=[1]) for stop in (5, 8))
    with pytest.raises(ValueError, match=r"\[1\] includes particles"):
        search(["a"], Played((lambda p: fresh(2, 3), *again), PLAIN), engine())


@pytest.mark.parametrize("idle", [lambda p: advance(p, [0], 3, score=False), lambda p: fresh(1, 0, score=False)])
def test_moves_that_cost_nothing_come_to_an_end(engine: Any, idle: Any) -> None:
    (result,) = search(
        ["a"], Played((lambda p: fresh(1, 3), *[idle] * 20, lambda p: advance(p, [0], 8)), PLAIN), engine()
    )
    assert result.images
    with pytest.raises(RuntimeError, match="over 1000 moves"):
        search(["a"], Played((lambda p: fresh(1, 3), *[idle] * 1100), PLAIN), engine(), "90nfe")


@pytest.mark.parametrize("first", [2**63 - 2, 2**64 - 2])
def test_the_largest_seeds_count_on_as_those_of_torch(engine: Any, first: int) -> None:
    (result,) = search(["a"], BestOfN(4), engine(), seed=first, keep=4)
    seeds = [(first + i) % 2**64 for i in range(4)]
    assert sorted(c.seed for c in result.images) == sorted(seeds)
    assert result.trace[0]["seeds"] == seeds
    r = Recording.from_results([result], engine().grid, ("brightness",))
    (again,) = search(["a"], BestOfN(4), ReplayEngine(r), seed=first)
    assert again.best.seed == result.best.seed


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seeds_that_torch_does_not_have(engine: Any, seed: int) -> None:
    with pytest.raises(ValueError, match=r"0..2\^64 - 1"):
        search(["a"], BestOfN(1), engine(), seed=seed)


def test_perturbed_noise_is_mixed_and_paid_in_full(engine: Any) -> None:
    whole = Played((lambda p: fresh(2, 8), lambda p: perturb([0, 0, 1], 0.8, 8), lambda p: perturb([2], 0.6, 8)), PLAIN)
    found = []
    for batch in (1, 3, 16):
        live = engine(batch_size=batch)
        latents: list[torch.Tensor] = []
        predict = live.denoiser.predict

        def watched(x: Any, step: Any, cond: Any, predict: Any = predict, latents: Any = latents) -> Any:
            latents.extend(x[step == 0])
            return predict(x, step, cond)

        live.denoiser.predict = watched
        (result,) = search(["a"], whole, live, seed=5, keep=6)
        assert counts(result) == (6 * 8, 6, 6)
        assert live.denoiser.calls == 48
        found.append(torch.stack(latents))
        assert [int(s) for s in result.particles.seed] == [5, 6, 5, 5, 6, 5]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    first, second, a, b, c, d = found[0]
    fresh_part = [(a - 0.8 * first) / 0.6, (b - 0.8 * first) / 0.6, (c - 0.8 * second) / 0.6, (d - 0.6 * a) / 0.8]
    assert len({tuple(f.tolist()) for f in fresh_part}) == 4
    big = engine()
    big.admit([Prompt("a")])
    noise = torch.stack([big.noise.near(Node(0, s, 0), 0.5, (s, 1, big.grid.nfe)).x for s in range(4000)])
    assert noise.std() == pytest.approx(1.0, abs=0.03)
    assert noise.mean() == pytest.approx(0.0, abs=0.03)


def test_renoised_particles_have_the_marginals_of_their_step(engine: Any) -> None:
    """From step 6 back to step 2: the latents there are spread as those that came there from noise."""
    there: dict[str, list[torch.Tensor]] = {}
    for name, moves in {
        "forward": (lambda p: fresh(600, 2),),
        "back": (lambda p: fresh(600, 6, score=False), lambda p: renoise(np.arange(600), 2, 2)),
    }.items():
        live = engine(steps=8, batch_size=600, keep=("latents",))
        seen: list[torch.Tensor] = []
        predict = live.denoiser.predict

        def watched(x: Any, step: Any, cond: Any, predict: Any = predict, seen: Any = seen) -> Any:
            seen.append(x[step == 2])
            return predict(x, step, cond)

        live.denoiser.predict = watched
        search(["a"], Played(moves, PLAIN), live)
        there[name] = [x for x in seen if len(x) == 600]
    forward, back = there["forward"][-1], there["back"][-1]
    assert (len(there["forward"]), len(there["back"])) == (1, 2)
    assert torch.allclose(forward.mean(0), back.mean(0), atol=0.2)
    assert torch.allclose(forward.std(0), back.std(0), rtol=0.15)


def test_renoising_needs_a_path(engine: Any) -> None:
    live = engine()
    live.denoiser.can -= {Capability.PATH}
    with pytest.raises(ValueError, match="noisier steps"):
        search(["a"], Played((lambda p: fresh(1, 8),), PLAIN), live)


@pytest.mark.parametrize(("name", "move"), [
    ("BRANCH", lambda p: advance(p, [0, 0], 8)),
    ("RENOISE", lambda p: renoise([0], 1, 8)),
    ("MIX", lambda p: perturb([0], 0.5, 8)),
])  # fmt: skip
def test_moves_that_an_algorithm_did_not_declare_are_refused(engine: Any, name: str, move: Any) -> None:
    with pytest.raises(ValueError, match=f"Need.{name}"):
        search(["a"], Played((lambda p: fresh(1, 3), move), NOTHING), engine())


@pytest.mark.parametrize("name", ["zero-order", "best-first", "rbf"])
def test_algorithms_that_plan_by_their_budget_take_seconds(engine: Any, name: str) -> None:
    live = with_kernel(engine(), "sde")
    (result,) = search(["a"], make_algorithm(name), live, "1s")
    assert result.images
    assert result.spent.seconds_all_prompts < 10
    with pytest.raises(ValueError, match="budget"):
        search(["a"], make_algorithm(name), live, None)


def test_what_is_no_algorithm_is_refused_by_what_it_lacks(engine: Any) -> None:
    class Old:
        n, lockstep, branches = 1, False, False

        def init(self, task: Any) -> None:
            return None

    with pytest.raises(ValueError, match="Old is no"):
        search(["a"], Old(), engine())  # type: ignore[arg-type]
