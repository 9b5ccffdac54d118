"""Rewards that leave the denoiser's device free: asked while other rows are denoised, and nothing
found changes."""

from __future__ import annotations

import random
import signal
import threading
import time
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.counted import Brightness
from ttsnap import Budget, make_algorithm, search
from ttsnap.core.prompt import Prompt
from ttsnap.core.protocols import RunUsage
from ttsnap.core.selection import Selection
from ttsnap.engine.background import Background
from ttsnap.loop.clock import RequestClock
from ttsnap.loop.report import report
from ttsnap.loop.request import LoopSearch
from ttsnap.loop.run import Run
from ttsnap.loop.search import prepared
from ttsnap.reward_models.staged import Staged
from ttsnap.rewards.reward_model import FunctionReward, RewardError

PROMPTS = ["a", "b", "c"]


class Remote(Brightness):
    """Elsewhere, after a random delay; no call may begin before another one has ended."""

    runs_on = "elsewhere"

    def __init__(self, name="remote", seconds=0.003, **fails):
        super().__init__(name, **fails)
        self.seconds, self.busy, self.sizes = seconds, threading.Lock(), list[int]()
        self.threads, self.fault = set[str](), dict[int, Exception]()

    def __call__(self, images, prompts, level):
        assert self.busy.acquire(blocking=False)
        try:
            self.threads.add(threading.current_thread().name)
            self.sizes.append(len(images))
            assert not torch.is_grad_enabled()
            if (fault := self.fault.pop(len(self.sizes), None)) is not None:
                raise fault
            time.sleep(self.seconds * random.random())
            return super().__call__(images, prompts, level)
        finally:
            self.busy.release()


def gone():
    """Whether the thread ends in a second."""
    threads = [thread for thread in threading.enumerate() if thread.name == "ttsnap-rewards"]
    for thread in threads:
        thread.join(1)
    return not any(thread.is_alive() for thread in threads)


def counted_beside(engine):
    """How many rows are asked about during each batch from now on."""
    beside, forward = list[int](), engine.executor.forward

    def counting(batch, *more):
        beside.append(engine.asked.row_count if batch.evaluations else 0)
        forward(batch, *more)

    engine.executor.forward = counting  # type: ignore[method-assign]
    return beside


def told(results):
    """All that a search found, to the bit."""
    return repr(
        [
            (
                r.spent.cost,
                r.trace,
                r.warnings,
                r.particles.scores.tolist(),
                [(c.uid, c.image) for c in r.images],
            )
            for r in results
        ]
    )


@pytest.mark.parametrize("number", range(6))
def test_winners_ledgers_and_traces_are_those_of_rewards_that_are_waited_for(engine, number):
    rng = np.random.default_rng(number)
    algorithm = ("best-of-n", "seed-pruning", "svdd", "smc", "evolution", "zero-order")[number % 6]
    options = {
        "batch_size": int(rng.integers(1, 6)),
        "decode_batch_size": int(rng.integers(1, 4)),
        "fair": number % 4 == 3,
        "features": "pixels" if number % 3 == 0 else None,
    }
    selection = Selection(keep=2, diversity=0.5 * (number % 3 == 0))
    how = {"seed": number, "shared": number % 5 == 4, "selection": selection}
    budget, prompts = Budget(nfe=int(rng.integers(60, 100))), PROMPTS[: 1 + number % 3]
    found, beside = list[str](), list[int]()
    for away in (None, "elsewhere"):
        remote = Remote(nan=0.1 * (number % 2))
        remote.runs_on = away
        live = engine(rewards=[remote, Brightness()], kernel="sde", **options)
        beside = counted_beside(live)
        found.append(told(search(prompts, make_algorithm(algorithm), live, budget, **how)))
        assert remote.threads == {"ttsnap-rewards" if away else "MainThread"}
        assert not live.store
        assert gone()
    assert found[0] == found[1]
    assert sum(beside) > 0


def test_a_reward_that_looks_at_finished_images_alone_is_left_alone_with_them(engine):
    remote = Remote()
    staged = Staged(Brightness("here"), remote)
    live = engine(rewards=[staged], batch_size=2, decode_batch_size=2)
    beside = counted_beside(live)
    (result,) = search(["a"], make_algorithm("seed-pruning", n=12), live, Budget(nfe=90))
    assert sum(remote.sizes) == result.spent.finished > 1
    assert remote.threads == {"ttsnap-rewards"}
    assert any(beside)


def test_what_follows_gradients_or_compares_features_is_asked_in_turn(engine):
    remote = Remote()
    remote.embed_images = lambda images: images.flatten(1).float()
    search(
        ["a"],
        make_algorithm("best-of-n", n=4),
        engine(rewards=[remote], features="remote"),
        Budget(nfe=40),
    )
    remote.runs_on = torch.device("cpu")
    search(["a"], make_algorithm("best-of-n", n=4), engine(rewards=[remote]), Budget(nfe=40))
    assert remote.threads == {"MainThread"}
    function = lambda images, prompts: images.mean((1, 2, 3))  # noqa: E731
    free = [FunctionReward(function).leaves_free(torch.device("cpu"), early=True)]
    for place in ("cpu", "cuda", "elsewhere"):
        function.runs_on = place
        free.append(FunctionReward(function).leaves_free(torch.device("cuda", 0), early=True))
    assert free == [False, True, False, True]


def test_a_call_that_fails_in_the_background_costs_its_scores(engine):
    found = []
    for away in (None, "elsewhere"):
        remote = Remote()
        remote.runs_on, remote.fault = away, {3: RuntimeError("the scorer is down")}
        live = engine(rewards=[remote], batch_size=2)
        found += search(["a"], make_algorithm("best-of-n", n=12), live, Budget(nfe=96))
    assert told(found[:1]) == told(found[1:])
    assert "RuntimeError: the scorer is down" in found[1].warnings[0]
    assert found[1].warnings[1] == "2 scores failed in all"


def test_a_reward_that_fails_from_the_start_ends_the_search(engine):
    remote = Remote(broken=1.0)
    with pytest.raises(
        RewardError, match="none of the first 2 images could be scored: remote: RuntimeError"
    ):
        search(
            ["a"],
            make_algorithm("best-of-n", n=12),
            engine(rewards=[remote], batch_size=2),
            Budget(nfe=96),
        )
    assert gone()
    assert len(remote.sizes) <= 3  # what waited is not asked


@pytest.mark.parametrize("lasting", [False, True])
def test_a_lack_of_memory_in_the_background_halves_the_batch(engine, lasting):
    class Full(Remote):
        def __call__(self, images, prompts, level):
            if len(self.sizes) > 1 and (lasting or len(images) > 1):
                raise RuntimeError("CUDA error: out of memory")
            return super().__call__(images, prompts, level)

    live = engine(rewards=[Full()], batch_size=2)
    (result,) = search(["a"], make_algorithm("best-of-n", n=12), live, Budget(nfe=96))
    assert result.best.reward == max(c for c in result.particles.scores[:, -1, 0] if c == c)
    assert result.spent.cost.reward_calls == (4 if lasting else 12)
    # some in vain
    assert result.spent.cost.decodes == result.spent.finished < live.stats["decodes"]
    assert live.decode_batch_size == 1
    assert ("memory ran out" in str(result.warnings)) is lasting


@pytest.fixture
def interruptible():
    """SIGINT raises, also where whoever started the tests has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_is_not_kept_waiting_and_leaves_no_thread(engine):
    class Hanging(Remote):
        def __call__(self, images, prompts, level):
            if len(self.sizes) == 2:
                main = threading.main_thread().ident
                threading.Timer(0.1, signal.pthread_kill, (main, signal.SIGINT)).start()
                hang.wait(20)
            return super().__call__(images, prompts, level)

    hang, remote = threading.Event(), Hanging()
    live = engine(rewards=[remote], batch_size=2)
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        search(["a"], make_algorithm("best-of-n", n=12), live, Budget(nfe=96))
    assert time.monotonic() - begin < 10
    assert not live.asked
    hang.set()
    assert gone()
    assert len(remote.sizes) == 3
    (result,) = search(["a"], make_algorithm("best-of-n", n=4), live, Budget(nfe=96))
    assert result.spent.finished == 4


def test_where_no_thread_could_be_started_the_next_call_starts_one(
    monkeypatch,
):
    def full(thread):
        raise RuntimeError("can't start new thread")

    background = Background()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", full)
        with pytest.raises(RuntimeError):
            background.submit(lambda: 1)
    assert background.submit(lambda: 2).result(timeout=10) == 2


def test_two_searches_in_two_threads_ask_one_reward_by_turns(engine):
    remote, found = Remote(), dict[int, str]()

    def run(seed):
        live = engine(rewards=[remote], batch_size=2)
        found[seed] = told(
            search(PROMPTS, make_algorithm("seed-pruning"), live, Budget(nfe=80), seed=seed)
        )

    threads = [threading.Thread(target=run, args=(seed,), daemon=True) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    both = dict(found)
    for seed in (1, 2):
        run(seed)
        assert found[seed] == both[seed]


@pytest.mark.parametrize("fair", [False, True])
@pytest.mark.parametrize("turns", [2, 5, 9])
def test_requests_that_end_early_pay_for_what_ran(engine, fair, turns):
    remote = Remote()
    live = engine(rewards=[remote], batch_size=2, fair=fair)
    run, requests = Run(live), []
    for text, n in zip(PROMPTS, (9, 6, 3), strict=True):
        spec = prepared(LoopSearch(make_algorithm("best-of-n", n=n), Budget(nfe=80)), live)
        requests.append(run.add([Prompt(text)], spec, RequestClock(time.monotonic, 0.0)))
    for _ in range(turns):
        run.turn()
    run.cancel(requests[0])
    run.stop(requests[1])
    while run.busy:
        run.turn()
    spent = [report(request, live, RunUsage())[0].spent for request in requests]
    assert sum(each.nfe for each in spent) == live.denoiser.calls
    assert sum(each.cost.decodes for each in spent) == live.denoiser.decodes
    assert sum(each.cost.reward_calls for each in spent) == sum(remote.sizes)
    assert spent[1].finished
    assert spent[2].finished == 3
    assert not live.pending()
    assert not live.store
    assert gone()


def test_scores_leave_the_device_together(engine, monkeypatch):
    moved, cpu = list[Any](), Tensor.cpu

    def moving(x):
        moved.append(tuple(x.shape))
        return cpu(x)

    def reward(name, change):
        return FunctionReward(lambda images, prompts: change(images.mean((1, 2, 3))), name)

    def short(scores):
        return torch.where(scores > 0.5, torch.inf, scores).bfloat16()

    rewards = [reward("a", Tensor.float), reward("b", short), reward("c", list)]
    live = engine(rewards=rewards, batch_size=4)
    monkeypatch.setattr(Tensor, "cpu", moving)
    (result,) = search(["a"], make_algorithm("best-of-n", n=4), live, Budget(nfe=32))
    assert [shape for shape in moved if len(shape) == 1] == [(12,)]  # flags, a and b
    scores = result.particles.scores[:, -1]
    np.testing.assert_array_equal(scores[:, 0], scores[:, 2])
    np.testing.assert_allclose(
        scores[:, 1], np.where(scores[:, 0] > 0.5, np.nan, scores[:, 0]), rtol=0.01
    )
