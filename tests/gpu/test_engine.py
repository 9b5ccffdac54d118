"""Memory that is planned and that runs out, and recordings that are cut off, on a device."""

from __future__ import annotations

import pytest
import torch

from ttsnap import BestOfN, search
from ttsnap.core.selection import Selection
from ttsnap.options.record import RecordOptions
from ttsnap.pipelines import upgrade
from ttsnap.profiling.memory import gauge_of
from ttsnap.recordings.record import record

from ..pipelines.tiny import FAMILIES  # noqa: TID252

ONLY_GPU = pytest.mark.parametrize(
    "device", [pytest.param("accelerator", marks=pytest.mark.gpu)], indirect=True
)
MIB = 2**20
ROW = 64 * MIB
"""What one row of a hungry denoiser's batch takes beside what it needs."""


def bright(images, prompts):
    return images.float().mean((1, 2, 3))


def hungry(device, **options):
    """An engine whose denoiser takes ROW bytes of the device for every row while it runs."""
    pipe = upgrade(FAMILIES["sd3"].build().to(device))
    engine = pipe.engine(bright, **options, **FAMILIES["sd3"].call, num_inference_steps=2)
    predict = engine.denoiser.predict

    def held(x, *rest):
        held = torch.empty(len(x) * ROW, dtype=torch.uint8, device=x.device)
        found = predict(x, *rest)
        del held
        return found

    engine.denoiser.predict = held  # type: ignore[method-assign]
    return engine


@pytest.fixture
def card(device):
    if gauge_of(device) is None:
        pytest.skip("ttsnap measures the memory of CUDA and ROCm devices only")
    return device


@ONLY_GPU
def test_planned_batches_fit_into_what_is_free(card):
    """All of the card's memory but two GiB is taken while the test runs."""
    torch.accelerator.empty_cache()
    gauge = gauge_of(card)
    taken = torch.empty(max(0, gauge.free() - 2048 * MIB), dtype=torch.uint8, device=card)
    try:
        most, engine = gauge.free() / ROW, hungry(card)
        (result,) = search(["a cat"], BestOfN(64), engine)
    finally:
        del taken
        torch.accelerator.empty_cache()
    assert 0.5 * most <= engine.batch_size <= most < 64
    assert (engine.stats["out_of_memory"], result.spent.calibration.nfe, result.spent.finished) == (
        0,
        4,
        64,
    )


@ONLY_GPU
def test_a_batch_that_does_not_fit_is_halved_and_nothing_is_lost(card):
    (expected,) = search(
        ["a cat"], BestOfN(16), hungry(card, batch_size=2), selection=Selection(keep=16)
    )
    engine = hungry(card, batch_size=16)
    torch.accelerator.empty_cache()
    total = torch.cuda.get_device_properties(card).total_memory
    torch.cuda.set_per_process_memory_fraction(
        (torch.cuda.memory_reserved(card) + 6.5 * ROW) / total, card
    )
    try:
        (result,) = search(["a cat"], BestOfN(16), engine, selection=Selection(keep=16))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, card)
    assert 1 <= engine.batch_size < 8
    assert engine.stats["out_of_memory"] >= 2
    assert result.spent.nfe == expected.spent.nfe
    rewards = [{c.seed: c.reward for c in found.images} for found in (result, expected)]
    assert rewards[0] == pytest.approx(rewards[1], abs=5e-3)


def test_a_recording_that_was_cut_off_ends_with_the_same_bytes(tmp_path, device):
    pipe, call = (
        upgrade(FAMILIES["sd3"].build().to(device)),
        {**FAMILIES["sd3"].call, "num_inference_steps": 3},
    )

    def run(folder, after):
        """By brightness, until it has seen so many images; then the process is interrupted."""
        left = [after]

        def dies(images, prompts):
            left[0] -= len(images)
            if left[0] < 0:
                raise KeyboardInterrupt
            return bright(images, prompts)

        engine = pipe.engine(dies, batch_size=4, **call)
        record(engine, ["a cat", "two dogs"], folder, RecordOptions(3, block=(1, 2), images=True))

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run(whole, 10**6)
    with pytest.raises(KeyboardInterrupt):
        run(cut, 10)
    run(cut, 10**6)
    files = {
        path.relative_to(whole): path.read_bytes() for path in whole.rglob("*") if path.is_file()
    }
    assert {
        path.relative_to(cut): path.read_bytes() for path in cut.rglob("*") if path.is_file()
    } == files
