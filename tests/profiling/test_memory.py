"""Batch sizes from measured memory, halving when it runs out, and what videos take, worked out
without a GPU."""

from __future__ import annotations

import importlib
import itertools
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import nn

from tests.counted import Brightness, Counted
from tests.engine.test_drafts import MIXTURE, Drafting
from tests.scripted import Played
from ttsnap import BestOfN, SeedPruning, search
from ttsnap.core.cost import Cost
from ttsnap.core.looks import Draft
from ttsnap.core.memory import NotEnoughMemoryError, lacks_memory
from ttsnap.core.moves import fresh
from ttsnap.core.needs import NOTHING
from ttsnap.core.selection import Selection
from ttsnap.engine.batch_sizes import buckets
from ttsnap.engine.live import LiveEngine
from ttsnap.options.engine import EngineOptions
from ttsnap.profiling.memory import Gauge, fit_rows
from ttsnap.profiling.on_paper import peak
from ttsnap.rewards.reward_model import FunctionReward


class FakeGauge(Gauge):
    """A device of `total` bytes; what a run holds is set by hand."""

    def __init__(self, total, taken=0):
        self.total, self.now, self.most = total, taken, taken

    def reset(self):
        self.most = self.now
        return self.now

    def peak(self):
        return self.most

    def free(self):
        return self.total - self.now

    def hold(self, more):
        self.most = max(self.most, self.now + more)
        if self.most > self.total:
            raise torch.OutOfMemoryError("out of memory")


@pytest.mark.parametrize("weights", [0, 300])
def test_planned_batch_fits_and_nearly_fills(weights):
    gauge, brought = FakeGauge(10_000, taken=500), False

    def run(n):
        nonlocal brought
        if not brought:  # as an offload hook brings the network in by the first call
            gauge.now, brought = gauge.now + weights, True
        gauge.hold(200 + 100 * n)

    found, rows = fit_rows(run, gauge, 1000)
    assert rows == 4
    run(found)
    assert gauge.most <= 500 + 0.85 * 9_500 < gauge.most + 200
    assert fit_rows(run, gauge, 7)[0] == 7
    assert fit_rows(run, gauge, 1) == (1, 1)
    assert fit_rows(run, gauge, 7, 4) == (7, 5)
    small = FakeGauge(1_000)
    assert fit_rows(lambda n: small.hold(400 * n), small, 64) == (2, 4)
    with pytest.raises(torch.OutOfMemoryError):
        fit_rows(lambda n: small.hold(4000 * n), small, 64)


def outcome(engine, prompts=("a", "b")):
    results = search(
        prompts, SeedPruning(7, (0.5,), steps=(2,)), engine, selection=Selection(keep=3)
    )
    return [[(c.seed, round(c.reward, 6)) for c in r.images] for r in results], sum(
        r.spent.nfe for r in results
    )


def test_out_of_memory_halves_the_batch_and_loses_nothing(engine, monkeypatch):
    expected, live = outcome(engine(batch_size=8)), engine(batch_size=8)

    def cramp(name, most):
        call = getattr(live.denoiser, name)
        full = Mock(side_effect=torch.OutOfMemoryError)
        monkeypatch.setattr(
            live.denoiser, name, lambda x, *rest: (call if len(x) <= most else full)(x, *rest)
        )

    cramp("predict", 3)
    cramp("decode", 1)
    assert outcome(live) == expected
    assert (live.batch_size, live.decode_batch_size, live.stats["out_of_memory"]) == (2, 1, 5)
    assert live.denoiser.calls == live.nfe == expected[1]


LACKS = {
    "cuda": lambda: torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 23.64 GiB of which 1.20 GiB is"
        " free."
    ),
    "launch": lambda: RuntimeError(
        "CUDA error: out of memory\nCUDA kernel errors might be reported later"
    ),
    "cublas": lambda: RuntimeError(
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
    ),
    "cudnn": lambda: RuntimeError(
        "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if ..."
    ),
    "cpu": lambda: RuntimeError(
        "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate "
        "memory: you tried to allocate 68719476736 bytes."
    ),
}
SAID = {
    "GET was unable to find an engine to execute this computation": True,
    "FIND was unable to find an engine to execute this computation": True,
    "Invalid buffer size: 74.51 GiB": True,
    "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`": True,
    # after an error of a kernel, which no smaller batch mends
    "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasSgemm( handle, opa, opb)`": False,
    "Native API failed. Native API returns: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)": True,
    'NVML_SUCCESS == r INTERNAL ASSERT FAILED at "CUDACachingAllocator.cpp":1154': True,
    "CUDA error: device-side assert triggered": False,
}


@pytest.mark.parametrize("said", SAID)
def test_a_lack_of_memory_is_known_by_what_devices_say(said):
    assert lacks_memory(RuntimeError(said)) == SAID[said]


PLACES = ("predict", "decode", "init_latents", "reward", "guess")
PRUNED = SeedPruning(6, (0.5,), steps=(2,))


class Cramped:
    """Raises where it gets more than `most` rows, from its call `after` on."""

    def __init__(self, call, error, most, after=0):
        self.call, self.error, self.most, self.after, self.made = call, error, most, after, 0

    def __call__(self, x, *rest):
        self.made += 1
        if self.made > self.after and len(x) > self.most:
            raise self.error()
        return self.call(x, *rest)


def cramped(place, *how, batch=4):
    """An engine, with a drafter where that is cramped."""
    reward = Brightness()
    judge = FunctionReward(Cramped(reward, *how) if place == "reward" else reward, "brightness")
    kind = Drafting if place == "guess" else Counted
    live = LiveEngine(kind(*MIXTURE, steps=8), [judge], EngineOptions(batch, batch))
    if place == "guess":
        live.denoiser.drafts.guess = Cramped(live.denoiser.drafts.guess, *how)  # type: ignore[union-attr, misc]
    elif place != "reward":
        setattr(live.denoiser, place, Cramped(getattr(live.denoiser, place), *how))
    return live


def cramped_search(live, place):
    shared = {"draft_share": 0.5} if place == "guess" else {}
    return search(["a"], replace(PRUNED, **shared), live, selection=Selection(keep=3), seed=5)[0]


@pytest.mark.parametrize("kind", LACKS)
@pytest.mark.parametrize("place", PLACES)
def test_any_lack_of_memory_halves_a_batch_and_changes_nothing_else(place, kind):
    free = cramped_search(cramped(place, LACKS[kind], 9), place)
    live = cramped(place, LACKS[kind], 1)
    found = cramped_search(live, place)
    assert live.stats["out_of_memory"]
    assert [(c.seed, c.reward) for c in found.images] == [(c.seed, c.reward) for c in free.images]
    assert (found.spent.cost, found.warnings) == (free.spent.cost, free.warnings)
    assert live.ran == found.spent.cost


@pytest.mark.parametrize("place", PLACES)
def test_one_row_too_many_ends_a_search_with_what_is_finished(place):
    with pytest.raises(NotEnoughMemoryError, match=r"2.00 GiB needed, 1.20 GiB free"):
        cramped_search(cramped(place, LACKS["cuda"], 0), place)
    live = cramped(place, LACKS["cublas"], 0, 11 if place == "predict" else 1, batch=1)
    drafts = Played((lambda p: fresh(2, 8), lambda p: fresh(3, 0, look=Draft())), NOTHING)
    algorithm = drafts if place == "guess" else BestOfN(6)
    results = search(["a", "b"], algorithm, live, selection=Selection(keep=3))
    first, second = results
    assert 0 < len(first.images) < 3
    assert all(
        np.isfinite(candidate.reward) and candidate.image is not None for candidate in first.images
    )
    assert "CUBLAS_STATUS_ALLOC_FAILED" in " ".join(first.warnings)
    assert (second.images, first.spent.ended) == ((), "out of memory")
    assert live.ran == first.spent.cost + second.spent.cost
    assert live.denoiser.calls == live.stats["nfe"]  # type: ignore[attr-defined]


def test_images_that_wait_to_be_scored_are_scored_before_a_search_ends():
    live = cramped("predict", LACKS["cpu"], 0, 20, batch=1)
    live._sizes._sizes = (1, 9)  # two have arrived by then, and wait for others
    (result,) = search(["a"], BestOfN(6), live, selection=Selection(keep=6))
    assert (len(result.images), result.spent.nfe, live.denoiser.decodes) == (2, 20, 2)
    live = cramped("decode", LACKS["cpu"], 0, 1)
    live._sizes._sizes = (4, 2)  # the first two of four
    (result,) = search(["a"], BestOfN(4), live, selection=Selection(keep=6))
    assert (len(result.images), result.spent.nfe, result.spent.cost.decodes) == (2, 32, 2)


def test_padding_asks_for_few_batch_sizes_and_counts_real_rows(engine, monkeypatch):
    expected = outcome(engine(batch_size=9), ("a",))
    live = engine(batch_size=9, padded=True)
    seen, predict = set(), live.denoiser.predict
    monkeypatch.setattr(
        live.denoiser, "predict", lambda x, *rest: (seen.add(len(x)), predict(x, *rest))[1]
    )
    assert outcome(live, ("a",)) == expected
    assert seen <= set(buckets(9))
    assert live.nfe == expected[1] < live.denoiser.calls


def test_batch_sizes_are_planned_where_memory_can_be_measured(engine, monkeypatch):
    assert engine(batch_size=None).batch_size == 16
    asked = []

    def planned(run, gauge, most, several=3):
        run(2)
        asked.append(most)
        return (5, 2) if len(asked) == 1 else (3, 2)

    monkeypatch.setattr("ttsnap.engine.batch_sizes.gauge_of", lambda device: FakeGauge(1))
    monkeypatch.setattr("ttsnap.engine.batch_sizes.fit_rows", planned)
    live = engine(rewards=[Brightness("a"), Brightness("b")], batch_size=None)
    (result,) = search(["a"], BestOfN(4), live)
    assert (live.batch_size, live.decode_batch_size) == (5, 3)
    assert asked == [64, 5]
    assert result.spent.calibration == Cost(2, 2, 4)
    assert live.denoiser.calls == result.spent.nfe + 2


def test_a_compiled_network_is_called_with_powers_of_two_alone(engine, monkeypatch, caplog):
    gauge, seen = FakeGauge(1_000), set[int]()
    monkeypatch.setattr("ttsnap.engine.batch_sizes.gauge_of", lambda device: gauge)
    live = engine(batch_size=None, decode_batch_size=2, padded=True)
    predict = live.denoiser.predict

    def held(x, *rest):
        seen.add(len(x))
        gauge.hold(65 * len(x))
        return predict(x, *rest)

    monkeypatch.setattr(live.denoiser, "predict", held)
    search(["a"], SeedPruning(21, (0.5,), steps=(2,)), live)
    assert (live.batch_size, seen) == (8, {1, 4, 8})  # 13 would fit
    assert [record.message for record in caplog.records if "compiling" in record.message][
        -1
    ].endswith("2")


def test_offloaded_networks_change_places_rarely(engine, monkeypatch):
    """Model offload: decodes wait until the denoiser has nothing left to do: here, for both
    prompts."""

    def phases(offloaded):
        live, order = engine(batch_size=8, decode_batch_size=3), list[str]()
        live.denoiser.offloaded = offloaded
        predict, decode = live.denoiser.predict, live.denoiser.decode
        monkeypatch.setattr(
            live.denoiser, "predict", lambda *x: (order.append("net"), predict(*x))[1]
        )
        monkeypatch.setattr(
            live.denoiser, "decode", lambda *x: (order.append("vae"), decode(*x))[1]
        )
        outcome(live)
        return [name for name, _ in itertools.groupby(order)]

    assert phases(offloaded=True) == ["net", "vae"] * 2
    assert len(phases(offloaded=False)) > 4


def test_latents_that_are_not_finite_cost_their_particle_only(engine, monkeypatch):
    live = engine(batch_size=4)
    decode = live.denoiser.decode
    broken = torch.tensor([float("nan"), 0, 0, 0]).view(4, 1, 1, 1)  # the first of a batch
    monkeypatch.setattr(live.denoiser, "decode", lambda x0: decode(x0) + broken[: len(x0)])
    (result,) = search(["a"], BestOfN(6), live, selection=Selection(keep=6))
    assert sum(c.reward == c.reward for c in result.images) == 4
    assert any("nan or inf" in warning and "bfloat16" in warning for warning in result.warnings)


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_the_peak_on_paper_is_what_lives_at_a_time(device, monkeypatch):
    """x is given (4 KiB); 8 channels take 8 KiB, their ReLU 8 more, and 4 channels 4 once the first
    are gone."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    paper, kib = importlib.import_module("videos_on_paper"), 1024
    with torch.device(device):
        x, inplace = torch.zeros(1, 4, 16, 16), nn.ReLU(inplace=True)
        wide, narrow = nn.Conv2d(4, 8, 1, bias=False), nn.Conv2d(8, 4, 1, bias=False)
        assert peak(lambda: narrow(nn.functional.relu(wide(x))), device) == 16 * kib
        assert peak(lambda: narrow(inplace(wide(x))), device) == 12 * kib
        assert peak(lambda: x.view(4, 256).T[1:], device) == 0
        assert peak(lambda: [x + 1 for _ in range(3)], device) == 12 * kib
        assert peak(lambda: sum(float(0 * len(x + 1)) for _ in range(3)), device) == 4 * kib
    big = paper.Paper("big", 10 * paper.GIB, 0, paper.GIB, 3 * paper.GIB, paper.GIB, None, 0)
    # rows and decodes in 0.85 x 24 - 10 GiB
    assert " 10 / 3 / 10 |" in paper.table([big], gpus=(24,))
