"""A search on many engines finds what it finds on one, whatever happens to them, and its books are the same."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import pytest

from ttsnap import SeedPruning, make_algorithm, search
from ttsnap.algorithms import ALGORITHMS
from ttsnap.cluster.engine import ClusterEngine
from ttsnap.core.cost import Cost
from ttsnap.core.prompt import Prompt
from ttsnap.core.protocols import Algorithm
from ttsnap.engine.live import LiveEngine
from ttsnap.loop.budget import Budget
from ttsnap.loop.clock import RequestClock
from ttsnap.loop.request import LoopSearch, RunningRequest
from ttsnap.loop.run import Run
from ttsnap.loop.search import prepared
from ttsnap.options.engine import EngineOptions
from ttsnap.sampling.guided_steps import RewardGuidance
from ttsnap.sampling.kernels import KERNELS

from ..algorithms.test_contract import PROMPTS, STEPS, Coarse, build  # noqa: TID252
from ..engine.test_finish import made as finishing  # noqa: TID252
from ..loop.test_requests import ByText  # noqa: TID252
from .local import LocalPool, Shelf, same, search_again, spent, stopped


def on_actors(mixture: Any, algorithm: Algorithm, actors: int, **how: Any) -> tuple[ClusterEngine, LocalPool]:
    pool = LocalPool(lambda: mixture(algorithm), actors, **how)
    return ClusterEngine(pool), pool


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_finds_the_same_on_two_engines_of_which_one_dies(mixture: Any, name: str) -> None:
    algorithm, budget = build(name), Budget(nfe=60)
    alone = search(PROMPTS[:2], algorithm, mixture(algorithm), budget, keep=2)
    cluster, pool = on_actors(mixture, algorithm, 2, kills=1, often=0.2)
    together = search_again(alone, algorithm, cluster, budget)
    assert together[0].spent.lost == cluster.lost
    assert cluster.sent == [0, 0]
    # The same actors search again, undisturbed, and nothing is left of the search before.
    pool.kills = 0
    again = search_again(alone[::-1], algorithm, cluster, budget)
    assert cluster.lost == again[0].spent.lost == Cost()


@pytest.mark.slow
@pytest.mark.parametrize("actors", [1, 2, 3])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_actors_that_die_all_the_time_change_nothing(mixture: Any, name: str, actors: int) -> None:
    algorithm, budget = build(name), Budget(nfe=90)
    alone = search(PROMPTS, algorithm, mixture(algorithm), budget, keep=2)
    for seed, kills in ((0, 0), (1, 20), (2, 20)):
        cluster, pool = on_actors(mixture, algorithm, actors, seed=seed, kills=kills, often=0.15)
        search_again(alone, algorithm, cluster, budget)
        assert bool(pool.deaths) == bool(kills)
        assert kills or cluster.lost == Cost()


@pytest.mark.parametrize("name", ["best-of-n", "seed-pruning"])
def test_drafts_are_finished_as_on_one_engine_of_which_one_dies(name: str) -> None:
    algorithm, budget = build(name), Budget(nfe=60)
    alone = search(PROMPTS[:2], algorithm, finishing(), budget, keep=2)
    pool = LocalPool(finishing, 2, kills=1, often=0.2)
    found = search_again(alone, algorithm, ClusterEngine(pool), budget)
    assert found[0].spent.cost.draft_calls >= found[0].spent.seeds > 1
    assert pool.deaths


@pytest.mark.parametrize("kills", [0, 2])
@pytest.mark.parametrize("name", ["best-of-n", "svdd", "seed-pruning"])
def test_a_search_that_is_stopped_keeps_what_is_finished_and_pays_what_ran(mixture: Any, name: str, kills: int) -> None:
    algorithm = build(name)
    for after in range(2, 14, 3):
        cluster, _ = on_actors(mixture, algorithm, 2, seed=after, kills=kills)
        results = stopped(PROMPTS, algorithm, cluster, after)
        for result in results:
            assert result.images or not result.trace
            assert result.spent.nfe <= 80
        if not kills:
            assert cluster.group.ran == spent(results)


def test_an_actor_that_keeps_dying_ends_the_search_with_what_was_found(mixture: Any) -> None:
    algorithm = build("best-of-n")
    cluster, pool = on_actors(mixture, algorithm, 2)

    def listen(event: Any) -> None:
        if event.kind == "score" and event.uids[0] > 3:
            pool.hopeless = True

    found = search(PROMPTS[:1], algorithm, cluster, Budget(nfe=200), on_event=listen)[0]
    assert found.images
    assert "died 3 times in a row" in found.warnings[0]
    assert "ended with what was found" in found.warnings[0]


def add(run: Run, nfe: int) -> RunningRequest:
    """A search for the best of as many seeds as such a budget affords."""
    spec = prepared(LoopSearch(make_algorithm("best-of-n"), Budget(nfe=nfe)), run.engine)
    return run.add([Prompt(PROMPTS[0])], spec, RequestClock(time.monotonic, 0.0))


def requests_on(cluster: ClusterEngine, *budgets: int) -> tuple[Run, list[RunningRequest]]:
    """A loop over a cluster with searches under way, and one batch behind them."""
    run = Run(cluster)
    found = [add(run, nfe) for nfe in budgets]
    for _ in range(4):
        run.turn()
    return run, found


def test_an_actor_that_dies_for_good_while_a_search_is_cancelled_ends_all_with_what_they_have(mixture: Any) -> None:
    cluster, pool = on_actors(mixture, build("best-of-n"), 2)
    run, (first, second) = requests_on(cluster, 200, 200)
    pool.hopeless = True
    run.cancel(first)
    assert first.done
    assert second.done
    assert not run.busy
    assert any("died 3 times in a row" in warning for warning in map(str, second.jobs[0].warnings))


def fair_pool(mixture: Any, *, fair: bool = True) -> LocalPool:
    """Two actors on which jobs take turns."""

    def make() -> LiveEngine:
        plain = mixture(build("best-of-n"))
        return LiveEngine(plain.denoiser, [Coarse()], EngineOptions(3, fair=fair), kernel=plain.kernel)

    return LocalPool(make, 2)


@pytest.mark.parametrize("fair", [True, False])
def test_a_large_request_keeps_a_small_one_waiting_only_where_jobs_take_no_turns(mixture: Any, fair: bool) -> None:
    cluster = ClusterEngine(fair_pool(mixture, fair=fair))
    run, (large,) = requests_on(cluster, 1200)
    before = cluster.nfe
    small = add(run, 2 * STEPS)
    while not small.done:
        run.turn()
    assert (cluster.nfe - before < 200) == fair
    assert large.done != fair
    if fair:
        run.cancel(large)


def test_weights_reach_all_actors_and_those_that_take_the_place_of_a_dead_one(mixture: Any) -> None:
    def weights() -> list[dict[int, float]]:
        turns = [actor.engine.scheduler.turns for actor in pool.actors]
        return [dict(one.share.weights) for one in turns if one is not None]

    pool = fair_pool(mixture)
    cluster = ClusterEngine(pool)
    run, (first, second) = requests_on(cluster, 200, 200)
    cluster.weigh(second.jobs[0].index, 2.5)
    cluster.check([])
    assert weights() == [{1: 2.5}] * 2
    before = cluster.room
    assert before >= cluster.nfe > 0
    pool.dead.add(1)
    cluster.check([])
    assert weights() == [{1: 2.5}] * 2
    assert cluster.room >= before, "what the dead actor did is not forgotten"
    run.cancel(second)
    cluster.check([])
    assert weights() == [{}] * 2
    assert not first.done
    run.cancel(first)


def test_the_seeds_of_one_prompt_run_on_all_engines(mixture: Any) -> None:
    algorithm = make_algorithm("seed-pruning", n=48)
    cluster, pool = on_actors(mixture, algorithm, 3, seed=5)
    alone, together = (search(["a"], algorithm, engine) for engine in (mixture(algorithm), cluster))
    same(alone, together)
    ran = [actor.engine.stats["nfe"] for actor in pool.actors]
    assert min(ran) > 0.5 * max(ran)  # they take their turns by chance


def test_steps_that_follow_gradients_are_the_same_on_several_engines_that_die(counted: Any) -> None:
    def make() -> LiveEngine:
        stock = counted(STEPS)
        denoiser = ByText(stock.means, stock.stds, stock.weights, steps=STEPS, by_prompt=stock._by_prompt)
        guidance = RewardGuidance.parse("tilted:0.2")
        return LiveEngine(denoiser, [Coarse()], EngineOptions(3), kernel=KERNELS["sde"](denoiser), guidance=guidance)

    for name in ("svdd", "seed-pruning"):
        algorithm = build(name)
        alone = search(PROMPTS, algorithm, make(), Budget(nfe=60))
        for kills in (0, 3):
            cluster = ClusterEngine(LocalPool(make, 2, kills=kills))
            together = search(PROMPTS, algorithm, cluster, Budget(nfe=60))
            same(alone, together)
            assert kills or cluster.group.ran == spent(together)


def test_what_an_engine_refuses_is_refused_as_it_would_be(mixture: Any) -> None:
    algorithm = build("best-of-n")
    cluster, _ = on_actors(mixture, algorithm, 2)
    with pytest.raises(ValueError, match=r"noise-ascent|deterministic"):
        search(["a"], build("svdd"), cluster, Budget(nfe=60))
    with pytest.raises(ValueError, match="in list"):
        search(["unknown"], algorithm, cluster, Budget(nfe=60))
    assert search(["a"], algorithm, cluster, Budget(nfe=60))[0].images


@pytest.mark.parametrize("everywhere", [True, False])
def test_a_prompt_that_actors_cannot_encode_changes_nothing_for_later_ones(mixture: Any, everywhere: bool) -> None:
    algorithm = build("best-of-n")
    cluster, pool = on_actors(mixture, algorithm, 2)
    if not everywhere:
        pool.actors[0].engine.denoiser.encode = lambda prompts: None
    cluster.start()
    cluster.admit([Prompt("a")])
    with pytest.raises(ValueError, match="in list"):
        cluster.admit([Prompt("unknown"), Prompt("b")])
    cluster.admit([Prompt("c")])
    assert [actor.engine.executor.prompts._prompts for actor in pool.actors] == [{0: Prompt("a"), 1: Prompt("c")}] * 2
    assert not cluster.group.busy
    assert search(["a"], algorithm, on_actors(mixture, algorithm, 2)[0], Budget(nfe=60))[0].images


def test_engines_that_differ_are_refused(mixture: Any, counted: Any) -> None:
    made = iter([mixture(build("best-of-n")), LiveEngine(counted(5), [Coarse()], EngineOptions(3))])
    with pytest.raises(ValueError, match="actor 0"):
        ClusterEngine(LocalPool(lambda: next(made), 2))


@pytest.mark.parametrize("kills", [0, 2])
def test_images_that_differ_are_the_same_ones_on_many_engines(mixture: Any, kills: int) -> None:
    algorithm, budget = SeedPruning(), Budget(nfe=90)
    engines = partial(mixture, algorithm, features="pixels")
    alone = search(PROMPTS[:2], algorithm, engines(), budget, keep=3, diversity=2.0)
    cluster = ClusterEngine(LocalPool(engines, 2, kills=kills, often=0.2))
    found = search(PROMPTS[:2], algorithm, cluster, budget, keep=3, diversity=2.0)
    same(alone, found)
    assert cluster.group.ran - cluster.lost == spent(found)
    assert spent(found).features > 0


class Large(ByText):
    """Images of 256 x 256 pixels, 786 kB each."""

    def decode(self, x0: Any) -> Any:
        return super().decode(x0).expand(-1, -1, 256, 256).contiguous()


def test_only_kept_images_reach_the_driver(counted: Any) -> None:
    def make() -> LiveEngine:
        stock = counted(STEPS)
        denoiser = Large(stock.means, stock.stds, stock.weights, steps=STEPS, by_prompt=stock._by_prompt)
        return LiveEngine(denoiser, [Coarse()], EngineOptions(3))

    pool = LocalPool(make, 2)
    found = search(["a"], make_algorithm("best-of-n", n=24), ClusterEngine(pool), keep=2)
    image, small = 3 * 256 * 256 * 4, 3 * 256 * 256
    assert len(Shelf.images) == 24
    assert [candidate.pixels.shape for candidate in found[0].images] == [(3, 256, 256)] * 2
    assert 2 * image <= sum(Shelf.fetched) < 2 * image + 1000
    assert pool.heard < 24 * small + 60_000, "answers hold small copies only"


def test_an_image_that_is_lost_with_its_machine_gives_way_to_the_next_best(mixture: Any) -> None:
    algorithm = make_algorithm("best-of-n", n=6)
    plain = search(["a"], algorithm, mixture(algorithm), keep=2)[0]
    cluster = ClusterEngine(LocalPool(lambda: mixture(algorithm), 2))

    def lose(event: Any) -> None:
        if event.kind == "score" and event.uids[0] == plain.best.uid:
            Shelf.images[event.picture.place.number] = b""

    found = search(["a"], algorithm, cluster, keep=1, on_event=lose)[0]
    assert found.best.uid == plain.images[1].uid
    assert f"the image of seed {plain.best.seed} is lost" in found.warnings[0]
