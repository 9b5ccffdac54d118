"""What every algorithm of the registry promises: any budget, any batch, rewards that fail, a stop
at any time.

An algorithm that is added to ALGORITHMS is tested here without further ado; one that cannot run
with its defaults says what it needs in SETTINGS.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from tests.counted import Brightness
from tests.cover import each_once
from tests.scripted import Scripted, noisy
from ttsnap import Budget, make_algorithm, search
from ttsnap.algorithms import ALGORITHMS, name_of
from ttsnap.algorithms.code import CoDe
from ttsnap.algorithms.epsilon_greedy import EpsilonGreedy
from ttsnap.algorithms.nested import Nested
from ttsnap.algorithms.pricing.fitting import fit
from ttsnap.algorithms.rbf import RBF
from ttsnap.algorithms.search_over_paths import SearchOverPaths
from ttsnap.algorithms.top_noises import TopNoises
from ttsnap.algorithms.verifier_threshold import VerifierThreshold
from ttsnap.algorithms.zero_order import ZeroOrder
from ttsnap.core import Need
from ttsnap.core.looks import estimates
from ttsnap.core.requirement import Gate
from ttsnap.core.selection import Selection
from ttsnap.rewards import RewardError

PROMPTS, STEPS = ["a", "b", "c"], 8
LEVELS = tuple(np.linspace(1, 0, STEPS + 1))
WALKS = np.random.default_rng(0).normal(size=(12, 24, STEPS + 1)).cumsum(-1)
SETTINGS = {
    "price-of-compute": {"forecast": fit(WALKS, LEVELS, estimates(2, 4, STEPS)), "price": 1.0}
}
some, few = (
    settings(
        max_examples=n, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    for n in (4, 2)
)


class Coarse(Brightness):
    """Brightness of rounded pixels, so that the last digits, which the batch's shape may change,
    decide nothing."""

    def __call__(self, images, prompts, level):
        return super().__call__((images * 2**12).round() / 2**12, prompts, level)


def build(name):
    return make_algorithm(name, **SETTINGS.get(name, {}))


def fitting(engine, algorithm, rewards, batch):
    """The mixture with a kernel that the algorithm can use."""
    noisy = algorithm.needs & {Need.BRANCH, Need.RENOISE}
    live = engine(STEPS, rewards, batch, kernel="sde" if noisy else "pipeline")
    return live


def moves(result):
    """What was done, in what order, without the scores."""
    names = ("cost", "uids", "parents", "start", "stop", "seeds", "drop", "closing")
    return [[move[name] for name in names] for move in result.trace]


def played(
    engine,
    algorithm,
    rewards,
    budget,
    *,
    prompts,
    batch,
    shared,
    after,
    **more,
):
    """The results of a search that is stopped after so many ticks, held to its books, and the
    prompts that began."""
    live, ticks, started = fitting(engine, algorithm, rewards, batch), list[int](), list[int]()

    def watch(event):
        ticks.extend([1] if event.kind == "tick" else [])
        started.extend([event.job] if event.kind == "start" else [])

    results = search(
        PROMPTS[:prompts],
        algorithm,
        live,
        budget,
        shared=shared,
        on_event=watch,
        should_stop=lambda: after is not None and len(ticks) > after,
        **more,
    )
    spent = np.array(
        [(r.spent.nfe, r.spent.cost.decodes, r.spent.cost.reward_calls) for r in results]
    )
    denoiser = live.denoiser
    scored = rewards[0].images + rewards[1].images
    # each asks both rewards, by `differentiable`
    pulled = sum(r.spent.cost.gradients for r in results)
    assert tuple(spent.sum(0)) == (denoiser.calls, denoiser.decodes, scored + 2 * pulled)
    caps = [cap or np.inf for cap in (budget.nfe, budget.decodes, budget.reward_calls)]
    for used, times in [(spent.sum(0), prompts)] if shared else [(row, 1) for row in spent]:
        assert (used <= np.array(caps) * times).all()
    return results, started


@pytest.mark.parametrize("name", ALGORITHMS)
@some
@given(
    budget=st.one_of(
        st.builds(Budget, nfe=st.integers(STEPS, 80)),
        st.builds(Budget, decodes=st.integers(1, 20), nfe=st.integers(STEPS, 80)),
        st.builds(Budget, reward_calls=st.integers(2, 30), nfe=st.integers(STEPS, 120)),
    ),
    shared=st.booleans(),
    prompts=st.integers(1, 3),
    batch=st.integers(1, 9),
    least=st.sampled_from([None, -1.0, 0.45, 0.5, 0.55, 2.0]),  # of brightness in [0, 1]
    nan=st.sampled_from([0.0, 0.3, 1.0]),
    broken=st.sampled_from([0.0, 0.2]),
    keep=st.integers(1, 3),
    after=st.one_of(st.none(), st.integers(0, 20)),
)
def test_books_balance_and_the_best_that_meet_a_requirement_are_returned(
    engine,
    name,
    budget,
    shared,
    prompts,
    least,
    nan,
    broken,
    keep,
    after,
    **how,
):
    if (least is None and budget.reward_calls) or (least is not None and budget.decodes):
        budget = Budget(nfe=budget.nfe)
    rewards = [
        Coarse("one", nan if least is None else 0, broken if least is None else 0, spared=True),
        Brightness("two", 0 if least is None else min(nan, 0.3), spared=True),
    ]
    gate = None if least is None else Gate.of([f"two>={least}"], ["one", "two"], counted=1)
    selection = Selection(keep=keep, gate=gate)
    results, started = played(
        engine,
        build(name),
        rewards,
        budget,
        shared=shared,
        prompts=prompts,
        after=after,
        selection=selection,
        **how,
    )
    assert started
    assert after is not None or len(started) == prompts
    assert least is not None or all(results[job].images for job in started)
    for result in results:
        assert all(torch.isfinite(candidate.image).all() for candidate in result.images)
        refunds = sum(move.get("refund", {}).get("nfe", 0) for move in result.trace)
        assert sum(move["cost"]["nfe"] for move in result.trace) - refunds == result.spent.nfe
        if least is not None:
            check_required(result, name, least, keep)
            # the budget does not pay for another image
            if after is None and not result.images and not shared:
                calls = budget.reward_calls or np.inf
                assert (
                    result.spent.nfe + STEPS > budget.nfe
                    or result.spent.cost.reward_calls + 2 > calls
                )


def check_required(result, name, least, keep):
    """That the best of those that pass were returned, and that the others are told of."""
    one, two = result.particles.scores[:, -1].T
    done, found = result.particles.finished, [candidate.uid for candidate in result.images]
    passed = np.flatnonzero(done & (two >= least))
    assert set(found) <= set(passed.tolist())
    # what that makes may be rejected by a held-out reward
    if name != "noise-ascent" and len(passed):
        best = passed[
            np.argsort(-np.where(np.isnan(one[passed]), -np.inf, one[passed]), kind="stable")
        ]
        assert found == best[:keep].tolist()
        assert result.best.reward == one[found[0]]
    assert len(passed) == 0 or found
    failed = int((done & ~(two >= least)).sum())
    assert result.spent.refused == {f"two>={least:.12g}": failed}
    assert any(f"{failed} of {done.sum()} finished" in said for said in result.warnings) == (
        failed > 0
    )
    assert any("no image meets what" in said for said in result.warnings) == (
        failed > 0 and not found
    )


VARIANTS = [
    *(CoDe(n=6, streams=3, block=3), RBF(2, 3), RBF(2, 3, "published"), VerifierThreshold(2, 3)),
    *(
        Nested(TopNoises(12, 4), second)
        for second in (CoDe(n=4, streams=3, block=3), RBF(2), VerifierThreshold(3))
    ),
    *(EpsilonGreedy(20, streams=2), SearchOverPaths(5), ZeroOrder(check=0.5)),
]
LEAVE_SOME = {
    "top-noises",
    "fk-steering",
    "svdd",
    "code",
    "verifier-threshold",
    "epsilon-greedy",
    "smc",
    "evolution",
    "search-over-paths",
    "nested",
}
"""One candidate more of theirs costs more than an image, or they have a number of their own."""
FINISH_FEW = {"rbf-published", "depth-first", "price-of-compute"}


@pytest.mark.parametrize(
    "algorithm", [*map(build, ALGORITHMS), *VARIANTS], ids=lambda each: name_of(each)
)
@settings(max_examples=6, deadline=None)
@given(
    nfe=st.integers(STEPS, 120),
    cap=st.sampled_from(["", "", ",9decodes"]),
    fail=st.sampled_from([0.0, 0.3, 1.0]),
    keep=st.integers(1, 3),
)
def test_any_cut_leaves_images_within_the_budget_and_little_of_it(algorithm, nfe, cap, fail, keep):
    """On an engine of scores alone, which makes each search in a millisecond or a few."""
    (result,) = search(
        [""],
        algorithm,
        Scripted(noisy(nfe, fail), STEPS),
        f"{nfe}nfe{cap}",
        selection=Selection(keep=keep),
    )
    assert 1 <= len(result.images) <= keep
    assert STEPS <= result.spent.nfe <= nfe
    assert not cap or result.spent.cost.decodes <= 9
    if not cap and not fail and algorithm not in VARIANTS:
        assert nfe - result.spent.nfe < STEPS or name_of(algorithm) in LEAVE_SOME
        assert len(result.images) == keep or nfe < 96 or name_of(algorithm) in FINISH_FEW


@pytest.mark.parametrize("name", ALGORITHMS)
def test_without_a_budget_it_says_so_or_has_a_number_of_its_own(name):
    if name in ("top-noises", "fk-steering"):
        assert search([""], build(name), Scripted(noisy(0)))[0].images
        return
    with pytest.raises(ValueError, match=rf"^{name.removeprefix('ttsnap-')} .*budget"):
        search([""], build(name), Scripted(noisy(0)))


@pytest.mark.parametrize("name", ALGORITHMS)
@few
@given(
    nfe=st.integers(STEPS, 64),
    batch=st.integers(2, 11),
    nan=st.sampled_from([0.0, 0.3]),
    keep=st.integers(1, 3),
    seed=st.integers(0, 10**6),
)
def test_batch_and_company_change_nothing(engine, name, nfe, batch, nan, keep, seed):
    algorithm = build(name)

    def run(prompts, size):
        live = fitting(engine, algorithm, [Coarse(nan=nan)], size)
        denoiser = live.denoiser
        denoiser._by_prompt = denoiser._by_prompt[[PROMPTS.index(p) for p in prompts]]
        return search(
            prompts, algorithm, live, Budget(nfe=nfe), selection=Selection(keep=keep), seed=seed
        )

    try:
        together, again, alone = (
            run(PROMPTS[:2], batch),
            run(PROMPTS[:2], batch),
            run(PROMPTS[1:2], 1),
        )
    except RewardError:
        # Nothing but nan from the start, as where first estimates are all alike, ends a search.
        assert nan
        reject()
    assert [r.trace for r in together] == [r.trace for r in again] or nan
    assert [moves(r) for r in together] == [moves(r) for r in again]
    assert moves(together[1]) == moves(alone[0])
    for x, y in zip(together[1].images, alone[0].images, strict=True):
        assert (x.uid, x.seed) == (y.uid, y.seed)
        torch.testing.assert_close(x.image, y.image, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("name", "shared"), each_once(list(ALGORITHMS), [False, True]))
def test_a_requirement_that_all_images_meet_changes_nothing(engine, name, shared):
    def run(gate, rewards):
        live = fitting(engine, build(name), rewards, 4)
        return search(
            PROMPTS,
            build(name),
            live,
            Budget(nfe=60),
            selection=Selection(keep=2, gate=gate),
            shared=shared,
        )

    one = Coarse("one")
    plain, same = run(None, [one]), run(Gate.of(["one>=-9"], ["one"]), [one])
    more = run(Gate.of(["two<9"], ["one", "two"], counted=1), [one, Brightness("two")])
    assert [moves(r) for r in same] == [moves(r) for r in plain]
    for x, y in zip([*same, *more], [*plain, *plain], strict=True):
        assert [(c.uid, c.seed, c.reward) for c in x.images] == [
            (c.uid, c.seed, c.reward) for c in y.images
        ]
        assert all(torch.equal(a.image, b.image) for a, b in zip(x.images, y.images, strict=True))
        assert (x.spent.nfe, x.warnings, set(x.spent.refused.values())) == (
            y.spent.nfe,
            y.warnings,
            {0},
        )
