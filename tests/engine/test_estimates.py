"""Rewards that read estimates as latents: no decode is charged or made for those."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.shallow import shallow
from ttsnap import Budget, SeedPruning, make_algorithm, search
from ttsnap.core.cost import Rates
from ttsnap.core.results import Event
from ttsnap.engine import batch_sizes
from ttsnap.loop.search import fit
from ttsnap.options.record import RecordOptions
from ttsnap.pipelines import defaults, load
from ttsnap.recordings.record import record
from ttsnap.reward_models.registry import make_reward
from ttsnap.reward_models.staged import Staged
from ttsnap.rewards.reward_model import RewardModel

CALL = {**defaults(), "num_inference_steps": 6}
PROMPTS = ["a red circle and a blue square", "three green crosses"]


class Peek:
    """Scores estimates by what it is given, finished images by their brightness, and remembers the shapes."""

    name = "peek"
    flops = 10.0

    def __init__(self, estimates: str = "latents") -> None:
        self.estimates = estimates
        self.shapes: list[tuple[int, ...]] = []
        self.calls = 0

    def score_estimates(self, x: Tensor, prompts: Sequence[str], level: Any) -> Tensor:
        assert len(x) == len(prompts) == len(level)
        assert bool((torch.as_tensor(level) > 0).all())
        self.shapes.append(tuple(x.shape[1:]))
        return x.float().mean((1, 2, 3))

    def __call__(self, images: Tensor, prompts: Sequence[str], level: Any) -> Tensor:
        self.calls += len(images)
        assert bool((torch.as_tensor(level) <= 0).all())
        return images.float().mean((1, 2, 3))


@pytest.fixture(scope="module")
def pipe() -> Any:
    with shallow():
        return load()


def test_no_decode_is_charged_or_made_for_estimates(pipe: Any) -> None:
    reward = Peek()
    engine = pipe.engine(reward, batch_size=8, **CALL)
    events: list[Event] = []
    algorithm = make_algorithm("seed-pruning")
    results = search(PROMPTS, algorithm, engine, Budget(nfe=40), seed=3, on_event=events.append)
    finished = sum(r.spent.finished for r in results)
    assert set(reward.shapes) == {(8, 8, 8)}
    assert engine.stats["decodes"] == finished == reward.calls == sum(r.spent.cost.decodes for r in results)
    assert sum(r.spent.cost.reward_calls for r in results) == engine.stats["reward_calls"] > finished
    assert sum(r.spent.nfe for r in results) == engine.stats["nfe"]
    scored = [e for e in events if e.kind == "score"]
    assert all((e.image is None) == (e.step < 6) for e in scored)


def test_beside_a_reward_of_pixels_estimates_are_decoded(pipe: Any) -> None:
    engine = pipe.engine([Peek(), lambda images, prompts: images.mean((1, 2, 3))], batch_size=8, **CALL)
    results = search(PROMPTS, make_algorithm("seed-pruning"), engine, Budget(nfe=40), seed=3)
    assert sum(r.spent.cost.decodes for r in results) * 2 == sum(r.spent.cost.reward_calls for r in results)
    assert engine.stats["decodes"] == sum(r.spent.cost.decodes for r in results)


def test_latents_are_the_estimates_that_would_be_decoded(pipe: Any) -> None:
    """The same search once with pixels and once with latents: decoding the latents gives the pixels."""
    seen: dict[str, list[Any]] = {"image": [], "latent": []}

    def listen(event: Event) -> None:
        if event.kind == "score" and event.step == 3:
            seen["image"].append(event.image)
            seen["latent"].append(event.kept["latent"])

    engine = pipe.engine("scenes", batch_size=8, keep=["latents"], **CALL)
    search(PROMPTS[:1], make_algorithm("best-of-n", n=2), engine, Budget(nfe=20), seed=3)
    from ttsnap.algorithms.keep_all import KeepAll

    search(PROMPTS[:1], KeepAll(2, (3, 6)), engine, seed=3, on_event=listen)
    assert len(seen["image"]) == 2
    decoded = engine.denoiser.decode(torch.stack(seen["latent"]))
    torch.testing.assert_close(decoded, torch.stack(seen["image"]), atol=1e-5, rtol=0)


def test_unknown_spaces_are_refused(pipe: Any) -> None:
    with pytest.raises(ValueError, match="known are pixels"):
        pipe.engine(Peek("features"), **CALL)
    with pytest.raises(ValueError, match="one of latents"):
        pipe.engine("scenes", keep=["features"], **CALL)


def test_recordings_keep_latents_beside_the_images(pipe: Any, tmp_path: Path) -> None:
    import io
    import tarfile

    from ttsnap.recordings.folder import load_recording, read_images

    engine = pipe.engine("scenes", batch_size=8, keep=["latents"], **CALL)
    options = RecordOptions(2, images=True, latents=True, steps=[1, 3, 6])
    record(engine, PROMPTS, tmp_path / "rec", options)
    tars = sorted((tmp_path / "rec" / "images").glob("*.tar"))
    names, shapes = [], {}
    for path in tars:
        with tarfile.open(path) as tar:
            for entry in tar:
                names.append(entry.name)
                if entry.name.endswith(".npy"):
                    file = tar.extractfile(entry)
                    assert file is not None
                    array = np.load(io.BytesIO(file.read()), allow_pickle=False)
                    assert array.dtype == np.float16
                    shapes[entry.name.partition(".")[2]] = array.shape
    assert shapes == {"latent.npy": (8, 8, 8)}
    # 2 prompts x 2 seeds x 3 steps, each with image and latent
    assert len(names) == 4 * 3 * 2
    assert len(list(read_images(tmp_path / "rec"))) == 4 * 3
    assert load_recording(tmp_path / "rec").seeds == 2
    with pytest.raises(ValueError, match="extras"):
        record(engine, PROMPTS, tmp_path / "rec", RecordOptions(2, images=True, steps=[1, 3, 6]))
    with pytest.raises(ValueError, match="with images"):
        record(engine, PROMPTS, tmp_path / "other", RecordOptions(2, latents=True))


@pytest.mark.parametrize("early", ["brightness", Peek()], ids=["pixels", "latents"])
def test_one_reward_prunes_and_another_decides(pipe: Any, early: Any) -> None:
    staged = Staged(make_reward(early), make_reward("scenes"))
    engine = pipe.engine(staged, batch_size=8, **CALL)
    result = search(PROMPTS[:1], make_algorithm("seed-pruning"), engine, Budget(nfe=40), seed=3)[0]
    image = result.best.image[None]
    assert result.best.reward == pytest.approx(float(make_reward("scenes")(image, PROMPTS[:1], None)[0]), abs=1e-6)
    assert not result.warnings
    assert result.spent.cost.decodes == (
        result.spent.cost.reward_calls if early == "brightness" else result.spent.finished
    )


class Weighed(RewardModel):
    """The mean of an image, at a price in FLOPs and by a clock. Its first call takes long, as to load weights."""

    name = "weighed"

    def __init__(self, flops: float, clock: list[float], seconds: float = 1.0) -> None:
        self.flops, self._clock = flops, clock
        self._seconds = [seconds, 100.0]

    def __call__(self, images: Tensor, prompts: Sequence[str], level: Any = None) -> Tensor:
        self._clock[0] += self._seconds.pop() if len(self._seconds) > 1 else self._seconds[0]
        return images.float().mean((1, 2, 3))


@pytest.mark.parametrize("early", [1e6, 1e9], ids=["cheap", "dear"])
def test_a_finished_image_is_priced_as_the_last_choice_and_a_look_as_the_pruning(pipe: Any, early: float) -> None:
    engine = pipe.engine(Staged(Weighed(early, [0.0]), Weighed(1e8, [0.0])), batch_size=8, **CALL)
    result = search(PROMPTS[:1], make_algorithm("seed-pruning"), engine, Budget(nfe=40), seed=3)[0]
    cost, flops, finished = result.spent.cost, engine.price.flops, result.spent.finished
    assert cost.reward_calls > finished
    assert flops.reward_calls * cost.reward_calls + flops.base_calls * cost.base_calls == pytest.approx(
        early * (cost.reward_calls - finished) + max(early, 1e8) * finished
    )


def test_what_a_reward_takes_once_is_not_in_its_seconds(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    def perf_counter() -> float:
        clock[0] += 1e-3
        return clock[0]

    monkeypatch.setattr(batch_sizes, "time", SimpleNamespace(perf_counter=perf_counter))
    engine = pipe.engine(Staged(Weighed(1.0, clock), Weighed(2.0, clock, 3.0)), batch_size=8, **CALL)
    spent = engine.calibrate()
    assert (spent.reward_calls, spent.base_calls) == (4, 2)
    seconds = engine.price.seconds
    assert (seconds.reward_calls, seconds.base_calls) == pytest.approx((1.0, 2.0), abs=0.01)


def test_price_says_whether_estimates_are_decoded(pipe: Any) -> None:
    assert pipe.engine("scenes", **CALL).price.estimates == "decode"
    assert pipe.engine(Peek(), **CALL).price.estimates == "nothing"


def test_checks_without_a_decode_leave_more_to_seeds(pipe: Any) -> None:
    sizes = []
    for reward in ("scenes", Peek()):
        engine = pipe.engine(reward, **CALL)
        engine._price = replace(engine.price, flops=Rates(nfe=1.0, decodes=10.0))
        sizes.append(fit(SeedPruning(keep=(0.2,), steps=(2,)), engine, Budget(flops=400.0)).n)
    assert sizes[1] > 1.5 * sizes[0]
