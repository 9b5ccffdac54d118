"""A search on many engines finds what it finds on one, whatever happens to them, and its books are
the same."""

from __future__ import annotations

import time
from functools import partial

import numpy as np
import pytest
import torch

from ttsnap import make_algorithm, search
from ttsnap.algorithms import ALGORITHMS
from ttsnap.cluster.engine import ClusterEngine
from ttsnap.cluster.merging import ClusterMeter
from ttsnap.core.cost import Cost
from ttsnap.core.needs import Need
from ttsnap.core.prompt import Prompt
from ttsnap.core.selection import Selection
from ttsnap.engine.live import LiveEngine
from ttsnap.loop.budget import Budget
from ttsnap.loop.clock import RequestClock
from ttsnap.loop.request import LoopSearch
from ttsnap.loop.run import Run
from ttsnap.loop.search import prepared
from ttsnap.options.engine import EngineOptions
from ttsnap.sampling.guided_steps import RewardGuidance
from ttsnap.sampling.kernels import KERNELS

from ..algorithms.test_contract import PROMPTS, STEPS, Coarse, build, moves  # noqa: TID252
from ..engine.test_drafts import finishing  # noqa: TID252
from ..loop.test_requests import ByText  # noqa: TID252
from .local import LocalPool, Shelf


@pytest.fixture
def mixture(counted):
    """Makes engines of the Gaussian mixture for an algorithm."""

    def make(algorithm, kind=ByText, guide="", **options):
        denoiser = counted(STEPS)
        denoiser.__class__ = kind
        kernel = KERNELS[
            "sde" if guide or algorithm.needs & {Need.BRANCH, Need.RENOISE} else "pipeline"
        ](denoiser)
        guidance = RewardGuidance.parse(guide) if guide else None
        return LiveEngine(
            denoiser, [Coarse()], EngineOptions(3, **options), kernel=kernel, guidance=guidance
        )

    return make


def on_actors(mixture, algorithm, actors=2, **how):
    pool = LocalPool(lambda: mixture(algorithm), actors, **how)
    return ClusterEngine(pool), pool


def same(one, other):
    """The same moves, the same books, the same images."""
    for a, b in zip(one, other, strict=True):
        assert moves(a) == moves(b)
        assert a.spent.cost == b.spent.cost
        assert [(c.uid, c.seed) for c in a.images] == [(c.uid, c.seed) for c in b.images]
        for x, y in zip(a.images, b.images, strict=True):
            assert x.reward == pytest.approx(y.reward, abs=1e-6)
            torch.testing.assert_close(x.image, y.image, atol=1e-5, rtol=1e-5)
        np.testing.assert_allclose(a.particles.scores, b.particles.scores, atol=1e-6)


def spent(results):
    return Cost().plus(*(result.spent.cost for result in results))


def search_again(alone, algorithm, cluster, **how):
    """A search on a cluster, which must find what was found `alone` and pay for all that ran and
    was not lost."""
    found = search([result.prompt for result in alone], algorithm, cluster, **how)
    same(alone, found)
    assert cluster.group.ran - cluster.lost == spent(found)
    assert found[0].spent.lost == cluster.lost
    return found


DEATHS = [
    (2, 1),
    *(pytest.param(n, kills, marks=pytest.mark.slow) for n in (1, 2, 3) for kills in (0, 20)),
]


@pytest.mark.parametrize(("actors", "kills"), DEATHS)
@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_finds_the_same_on_engines_that_die(mixture, name, actors, kills):
    algorithm = build(name)
    how = {"budget": Budget(nfe=60), "selection": Selection(keep=2)}
    alone = search(PROMPTS[:2], algorithm, mixture(algorithm), **how)
    cluster, pool = on_actors(mixture, algorithm, actors, kills=kills, often=0.2)
    search_again(alone, algorithm, cluster, **how)
    assert cluster.sent == [0] * actors
    # The same actors search again, undisturbed, and nothing is left of the search before.
    pool.kills = 0
    search_again(alone[::-1], algorithm, cluster, **how)
    assert cluster.lost == Cost()


@pytest.mark.parametrize("kills", [0, 2])
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("drafts", "best-of-n"),
        ("drafts", "seed-pruning"),
        ("gradients", "svdd"),
        ("gradients", "seed-pruning"),
        ("features", "seed-pruning"),
    ],
)
def test_so_do_drafts_gradients_and_images_that_differ(mixture, kind, name, kills):
    algorithm = build(name)
    selection = Selection(keep=3, diversity=2.0 if kind == "features" else 0.0)
    how = {"budget": Budget(nfe=60), "selection": selection}
    make, paid = {
        "drafts": (finishing, "draft_calls"),
        "gradients": (partial(mixture, algorithm, guide="tilted:0.2"), "gradients"),
        "features": (partial(mixture, algorithm, features="pixels"), "features"),
    }[kind]
    alone = search(PROMPTS[:2], algorithm, make(), **how)
    pool = LocalPool(make, 2, kills=kills, often=0.2)
    found = search_again(alone, algorithm, ClusterEngine(pool), **how)
    assert getattr(spent(found), paid) > 0
    assert bool(pool.deaths) == bool(kills)


@pytest.mark.parametrize("after", [2, 5, 8, 11])
@pytest.mark.parametrize("kills", [0, 2])
@pytest.mark.parametrize("name", ["best-of-n", "svdd", "seed-pruning"])
def test_a_search_that_is_stopped_keeps_what_is_finished_and_pays_what_ran(
    mixture, monkeypatch, name, kills, after
):
    if after % 2:  # asked while other rows are denoised
        monkeypatch.setattr(Coarse, "runs_on", "elsewhere", raising=False)
    (cluster, _), events = on_actors(mixture, build(name), seed=after, kills=kills), list[str]()
    results = search(
        PROMPTS,
        build(name),
        cluster,
        Budget(nfe=80),
        should_stop=lambda: events.count("tick") > after,
        on_event=lambda event: events.append(event.kind),
    )
    assert all(result.images or not result.trace for result in results)
    assert all(result.spent.nfe <= 80 for result in results)
    assert kills or cluster.group.ran == spent(results)


def test_an_actor_that_keeps_dying_ends_the_search_with_what_was_found(mixture):
    cluster, pool = on_actors(mixture, build("best-of-n"))

    def listen(event):
        pool.hopeless = pool.hopeless or (event.kind == "score" and event.uids[0] > 3)

    (found,) = search(PROMPTS[:1], build("best-of-n"), cluster, Budget(nfe=200), on_event=listen)
    assert found.images
    assert "died 3 times in a row" in found.warnings[0]
    assert "ended with what was found" in found.warnings[0]


def test_a_device_without_memory_for_a_row_ends_the_search_with_what_was_found(
    mixture,
):
    made = []

    def cramped():
        made.append(live := mixture(build("best-of-n")))
        predict = live.denoiser.predict

        def full(x, *rest):
            if made[0] is live and live.nfe > STEPS * 3:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return predict(x, *rest)

        live.denoiser.predict = full  # type: ignore[method-assign]
        return live

    cluster = ClusterEngine(LocalPool(cramped, 2))
    (found,) = search(
        PROMPTS[:1], build("best-of-n"), cluster, Budget(nfe=200), selection=Selection(keep=99)
    )
    assert 3 <= len(found.images) < 200 // STEPS
    assert all(np.isfinite(candidate.reward) for candidate in found.images)
    assert "memory ran out" in " ".join(found.warnings)
    assert cluster.group.ran == spent([found]) == Cost().plus(*(live.ran for live in made))


def add(run, nfe):
    """A search for the best of as many seeds as such a budget affords."""
    spec = prepared(LoopSearch(build("best-of-n"), Budget(nfe=nfe)), run.engine)
    return run.add([Prompt(PROMPTS[0])], spec, RequestClock(time.monotonic, 0.0))


def requests_on(cluster, *budgets):
    """A loop over a cluster with searches under way, and one batch behind them."""
    run = Run(cluster)
    found = [add(run, nfe) for nfe in budgets]
    for _ in range(4):
        run.turn()
    return run, found


def test_an_actor_that_dies_for_good_while_a_search_is_cancelled_ends_all_with_what_they_have(
    mixture,
):
    cluster, pool = on_actors(mixture, build("best-of-n"))
    run, (first, second) = requests_on(cluster, 200, 200)
    pool.hopeless = True
    run.cancel(first)
    assert (first.done, second.done, run.busy) == (True, True, False)
    assert any("died 3 times in a row" in str(warning) for warning in second.jobs[0].warnings)


@pytest.mark.parametrize("fair", [True, False])
def test_a_large_request_keeps_a_small_one_waiting_only_where_jobs_take_no_turns(mixture, fair):
    cluster, _ = on_actors(partial(mixture, fair=fair), build("best-of-n"))
    run, (large,) = requests_on(cluster, 1200)
    before = cluster.nfe
    small = add(run, 2 * STEPS)
    while not small.done:
        run.turn()
    assert (cluster.nfe - before < 200) == fair
    assert large.done != fair
    run.cancel(large)


def test_weights_reach_all_actors_until_their_job_is_released(mixture):
    cluster, pool = on_actors(partial(mixture, fair=True), build("best-of-n"))

    def weights():
        cluster.check([])
        return [dict(actor.engine.scheduler.turns.share.weights) for actor in pool.actors]

    run, (first, second) = requests_on(cluster, 200, 200)
    cluster.weigh(second.jobs[0].index, 2.5)
    assert weights() == [{1: 2.5}] * 2
    run.cancel(second)
    assert weights() == [{}] * 2
    assert not first.done
    run.cancel(first)


@pytest.mark.parametrize("how", ["cancel", "stop", "add"])
def test_an_actor_that_dies_as_a_request_comes_or_goes_changes_nothing_of_the_others(mixture, how):
    alone, _ = on_actors(mixture, build("best-of-n"))
    quiet, (other,) = requests_on(alone, 200)
    while quiet.busy:
        quiet.turn()
    cluster, pool = on_actors(mixture, build("best-of-n"))
    run, (kept, gone) = requests_on(cluster, 200, 200)
    before = cluster.room
    assert before >= cluster.nfe > 0
    pool.dead.add(1)
    if how == "add":
        last = add(run, 200)
    else:
        getattr(run, how)(gone)
        last = kept
    while run.busy:
        run.turn()
    assert cluster.room >= before, "what the dead actor did is not forgotten"
    wanted = [request.jobs[0] for request in (other, kept, last)]
    assert len({tuple(job.particles.scores[:, -1].ravel()) for job in wanted}) == 1
    assert gone.jobs[0].finished or how == "cancel"
    assert cluster.lost.nfe > 0


@pytest.mark.parametrize("name", ["price-of-compute", "seed-pruning"])
def test_prompts_that_share_a_budget_find_the_same_when_actors_die(mixture, name):
    algorithm = build(name)
    how = {"budget": Budget(nfe=60), "shared": True}
    alone = search(PROMPTS, algorithm, mixture(algorithm), **how)
    for kills in (1, 4):
        cluster, pool = on_actors(mixture, algorithm, 2, kills=kills, often=0.1)
        search_again(alone, algorithm, cluster, **how)
        assert pool.deaths


def test_a_search_that_kills_its_actors_at_the_same_step_comes_to_an_end(mixture):
    """Turns pass between deaths, so that no actor seems hopeless."""
    cluster, pool = on_actors(mixture, build("best-of-n"), 1)

    def listen(event):
        if event.kind == "score":
            pool.dead.add(0)

    (found,) = search(PROMPTS[:1], build("best-of-n"), cluster, Budget(nfe=60), on_event=listen)
    assert "before a prompt was done" in found.warnings[0]
    assert cluster.group.ran.nfe > 60


def test_the_seeds_of_one_prompt_run_on_all_engines(mixture):
    algorithm = make_algorithm("seed-pruning", n=48)
    cluster, pool = on_actors(mixture, algorithm, 3, seed=5)
    search_again(search(["a"], algorithm, mixture(algorithm)), algorithm, cluster)
    ran = [actor.engine.stats["nfe"] for actor in pool.actors]
    assert min(ran) > 0.5 * max(ran)  # they take their turns by chance


def test_what_an_engine_refuses_is_refused_as_it_would_be(mixture, counted):
    algorithm = build("best-of-n")
    cluster, _ = on_actors(mixture, algorithm)
    for prompt, name, why in (
        ("a", "svdd", "noise-ascent|deterministic"),
        ("unknown", "best-of-n", "in list"),
    ):
        with pytest.raises(ValueError, match=why):
            search([prompt], build(name), cluster, Budget(nfe=60))
    assert search(["a"], algorithm, cluster, Budget(nfe=60))[0].images
    made = iter([mixture(algorithm), LiveEngine(counted(5), [Coarse()], EngineOptions(3))])
    with pytest.raises(ValueError, match="actor 0"):
        ClusterEngine(LocalPool(lambda: next(made), 2))


@pytest.mark.parametrize(("second", "together"), [(3.0, 5.0), (None, None)])
def test_actors_use_energy_together_and_memory_each(second, together):
    meter = ClusterMeter([])  # type: ignore[arg-type]
    meter.parts = [
        {"energy_joules": 2.0, "peak_memory_bytes": 9},
        {"energy_joules": second, "peak_memory_bytes": 7},
    ]
    assert meter.summary() == {"energy_joules": together, "peak_memory_bytes": 9}


@pytest.mark.parametrize("everywhere", [True, False])
def test_a_prompt_that_actors_cannot_encode_changes_nothing_for_later_ones(mixture, everywhere):
    cluster, pool = on_actors(mixture, build("best-of-n"))
    if not everywhere:
        pool.actors[0].engine.denoiser.encode = lambda prompts: None
    cluster.start()
    cluster.admit([Prompt("a")])
    with pytest.raises(ValueError, match="in list"):
        cluster.admit([Prompt("unknown"), Prompt("b")])
    cluster.admit([Prompt("c")])
    assert [actor.engine.executor.prompts._prompts for actor in pool.actors] == [
        {0: Prompt("a"), 1: Prompt("c")}
    ] * 2
    assert not cluster.group.busy


class Large(ByText):
    """Images of 256 x 256 pixels, 786 kB each."""

    def decode(self, x0):
        return super().decode(x0).expand(-1, -1, 256, 256).contiguous()


def test_only_kept_images_reach_the_driver(mixture):
    cluster, pool = on_actors(partial(mixture, kind=Large), build("best-of-n"))
    found = search(["a"], make_algorithm("best-of-n", n=24), cluster, selection=Selection(keep=2))
    image, small = 3 * 256 * 256 * 4, 3 * 256 * 256
    assert len(Shelf.images) == 24
    assert [candidate.pixels.shape for candidate in found[0].images] == [(3, 256, 256)] * 2
    assert 2 * image <= sum(Shelf.fetched) < 2 * image + 1000
    assert pool.heard < 24 * small + 60_000, "answers hold small copies only"


def test_an_image_that_is_lost_with_its_machine_gives_way_to_the_next_best(mixture):
    algorithm = make_algorithm("best-of-n", n=6)
    plain = search(["a"], algorithm, mixture(algorithm), selection=Selection(keep=2))[0]

    def lose(event):
        if event.kind == "score" and event.uids[0] == plain.best.uid:
            Shelf.images[event.picture.place.number] = b""

    found = search(
        ["a"],
        algorithm,
        on_actors(mixture, algorithm)[0],
        selection=Selection(keep=1),
        on_event=lose,
    )[0]
    assert found.best.uid == plain.images[1].uid
    assert f"the image of seed {plain.best.seed} is lost" in found.warnings[0]


@pytest.mark.parametrize("kills", [0, 2])
@pytest.mark.parametrize("name", ["best-of-n", "svdd", "seed-pruning"])
def test_a_person_leads_a_search_and_what_ran_is_paid(mixture, name, kills):
    cluster, _ = on_actors(mixture, build(name), seed=3, kills=kills)
    leds = []

    def listen(event):
        leds.extend([event.led] * (event.led is not None))
        if event.kind == "tick":
            for led in leds:
                led.drop(2)
                led.finish(1, prompt=1)

    results = search(PROMPTS[:2], build(name), cluster, Budget(nfe=80), on_event=listen)
    assert all(result.images and result.spent.nfe <= 80 for result in results)
    assert any(result.by_hand for result in results)
    assert cluster.group.ran - cluster.lost == spent(results)
