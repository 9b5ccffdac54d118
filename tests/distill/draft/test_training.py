"""What a step trains on, its loss in closed form, and that interruptions change nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ttsnap.distill.draft import train as training
from ttsnap.distill.draft import trajectories
from ttsnap.distill.draft.config import DraftConfig, TrainingConfig
from ttsnap.distill.draft.student import DraftStudent, start_from
from ttsnap.distill.draft.train import draw, loss, second_calls
from ttsnap.distill.draft.trajectories import Trajectories
from ttsnap.distill.processes import ALONE, Member
from ttsnap.distill.training import Loop, Weights
from ttsnap.sampling.interpolants import VP, Linear

from .small import PROMPTS, config_of, pipe_of


def test_the_loss_is_its_closed_form() -> None:
    generator = torch.Generator().manual_seed(0)
    guess, end = (torch.randn(3, 2, 4, dtype=torch.float64, generator=generator) for _ in range(2))
    told = torch.tensor([0.87, 0.7, 0.5], dtype=torch.float64)
    by_hand = 0.0
    for g, e, t in zip(guess.numpy(), end.numpy(), (0.87, 0.7, 0.6), strict=True):
        by_hand += float(np.mean((g - e) ** 2)) / t**2 / 3
    assert float(loss(Linear(), guess, end, told, 0.6)) == pytest.approx(by_hand, rel=1e-14)
    level = float(VP().sigma(told[2]) / (VP().sigma(told[2]) + VP().alpha(told[2])))  # of another path, by its noise
    expected = float(((guess[2] - end[2]) ** 2).mean()) / level**2
    assert float(loss(VP(), guess[2:], end[2:], told[2:], 0.1)) == pytest.approx(expected, rel=1e-12)


def test_a_second_call_is_made_halfway_to_the_first_guess_along_the_same_noise() -> None:
    x = torch.randn(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    asked: list[list[float]] = []

    def estimate(x: Tensor, told: Tensor, cond: Tensor) -> Tensor:
        asked.append(told.tolist())
        return 0.3 * x

    half = second_calls(Linear(), estimate, x, torch.zeros(2, dtype=torch.long), 1.0, 0.87)
    torch.testing.assert_close(half, 0.5 * 0.3 * x + 0.5 * x)  # at time 1, x is the noise
    assert asked == [[0.87, 0.87]]
    later = second_calls(Linear(), estimate, x, torch.zeros(2, dtype=torch.long), 0.8, 0.5)
    noise = (x - 0.2 * 0.3 * x) / 0.8
    torch.testing.assert_close(later, 0.6 * 0.3 * x + 0.4 * noise)


def test_every_trajectory_comes_once_before_any_comes_again_in_rows_of_three_kinds() -> None:
    config = TrainingConfig(batch=20, from_noise=0.45, second=0.15)
    drawn = [draw(step, 50, 5, config) for step in range(5)]
    seen = np.concatenate([rows.trajectories for rows in drawn])
    assert sorted(seen[:50]) == sorted(seen[50:]) == list(range(50))
    assert seen[:50].tolist() != seen[50:].tolist()
    for rows in drawn:
        assert rows.second == 3
        assert not rows.steps[:12].any()
        assert set(rows.steps[12:]) <= {1, 2, 3, 4}
    assert {int(k) for rows in drawn for k in rows.steps[12:]} == {1, 2, 3, 4}
    parts = [drawn[0].part(i, 2) for i in range(2)]
    assert [part.second for part in parts] == [2, 1]
    assert sorted(i for part in parts for i in part.trajectories) == sorted(drawn[0].trajectories)
    assert not draw(0, 50, 1, config).steps.any()  # only noise was kept


def test_the_learning_rate_rises_stays_and_falls() -> None:
    config = TrainingConfig(steps=100, warmup=10, decay=0.4, final_lr=0.02)
    factors = [training.factor(step, config) for step in (0, 4, 9, 60, 80, 99)]
    assert factors == pytest.approx([0.1, 0.5, 1.0, 1.0, 0.5, 0.025])


def data_of(config: DraftConfig, folder: Path, name: str = "sd3") -> Trajectories:
    call = dict(config.call or {})
    settings = trajectories.settings_of(config.trajectories, name, call, PROMPTS, torch.float32)
    denoiser = pipe_of(name).denoiser(**call)
    return Trajectories.read(trajectories.make(denoiser, PROMPTS, config.trajectories, settings, folder), settings)


def student_of(config: DraftConfig, name: str = "sd3") -> DraftStudent:
    torch.manual_seed(config.training.seed)
    return DraftStudent(pipe_of(name), dict(config.call or {}), states=3, first_time=0.87, rank=config.training.rank)


def gradient(config: DraftConfig, folder: Path, member: Member = ALONE) -> Tensor:
    """Of the first step."""
    student, found = student_of(config), list[Tensor]()
    still = torch.optim.SGD(student.parameters.values(), lr=0.0)
    still.register_step_post_hook(lambda *_: found.extend(p.grad.flatten() for p in student.parameters.values()))
    loop = Loop(Weights(student.parameters), still, Path(), {}, 1, 0.0, 0.0, 1, member, parts=config.training.parts)
    loop.step(training.losses(student, data_of(config, folder), 0, config.training, member))
    return torch.cat(found)


def test_training_in_parts_of_a_batch_gives_the_same_gradient(tmp_path: Path) -> None:
    whole, parts = (gradient(config_of(training={"parts": parts, "second": 0.5}), tmp_path) for parts in (1, 2))
    assert float(whole.norm()) > 0
    torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("parts", [1, 2])
def test_the_mean_of_the_gradients_of_two_processes_is_that_of_one(parts: int, tmp_path: Path) -> None:
    config = config_of(training={"parts": parts, "second": 0.5, "batch": 8})
    one, *both = (gradient(config, tmp_path, Member(rank, count)) for rank, count in ((0, 1), (0, 2), (1, 2)))
    assert float((both[0] - both[1]).norm()) > 0.1 * float(one.norm())
    torch.testing.assert_close((both[0] + both[1]) / 2, one, rtol=1e-4, atol=1e-6)


def test_of_several_processes_the_first_one_writes(tmp_path: Path) -> None:
    class Waiting(Member):
        def any(self, asked: bool) -> bool:
            return asked

    config = config_of(training={"batch": 6})
    data = data_of(config, tmp_path / "data")
    for rank, written in ((1, set[str]()), (0, {"checkpoints", "metrics.jsonl"})):
        out = tmp_path / str(rank)
        out.mkdir()
        training.train(student_of(config), data, config.training, {}, out, Waiting(rank, 2))
        assert {path.name for path in out.iterdir()} == written
    with pytest.raises(ValueError, match=r"batch \(6\) must be a multiple of training\.parts x processes \(1 x 4\)"):
        training.train(student_of(config), data, config.training, {}, tmp_path, Waiting(0, 4))


def test_training_that_was_stopped_ends_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, losses = config_of(), training.losses
    data = data_of(config, tmp_path)

    def trained(out: Path) -> dict[str, Tensor]:
        out.mkdir(exist_ok=True)
        training.train(student := student_of(config), data, config.training, {}, out)
        return {name: p.detach().clone() for name, p in student.parameters.items()}

    def stopped(student: Any, data: Any, step: int, *args: Any) -> Any:
        if step == 3:
            raise KeyboardInterrupt
        return losses(student, data, step, *args)

    whole = trained(tmp_path / "whole")
    monkeypatch.setattr(training, "losses", stopped)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "parts")
    monkeypatch.undo()
    torch.rand(5)  # whatever else was drawn in the meantime
    again = trained(tmp_path / "parts")
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert any(bool(p.abs().sum() > 0) for name, p in whole.items() if "lora_B" in name)


def test_training_lowers_the_error_on_what_it_was_trained_on(tmp_path: Path) -> None:
    config = config_of(training={"steps": 30, "validation": 1, "batch": 6, "ema": 0.0, "validate_every": 100})
    data = data_of(config, tmp_path)
    student = student_of(config)
    before = training.validate(student, data, config.training)
    training.train(student, data, config.training, {}, tmp_path)
    after = training.validate(student, data, config.training)
    assert after["calls 1"] < 0.8 * before["calls 1"]


def test_what_cannot_be_trained_is_refused(tmp_path: Path) -> None:
    config = config_of(training={"validation": 6})
    with pytest.raises(ValueError, match="validation is 6, but there are only 6 trajectories: hold back fewer"):
        training.train(student_of(config), data_of(config, tmp_path), config.training, {}, tmp_path)
    config = config_of(training={"lr": 1e30, "warmup": 0, "clip": 0.0})
    with pytest.raises(ValueError, match=r"the loss is (nan|inf) at step .* lower training\.lr"):
        training.train(student_of(config), data_of(config, tmp_path), config.training, {}, tmp_path)
    with pytest.raises(ValueError, match=r"training\.start: cannot read"):
        start_from(student_of(config), tmp_path)
    for wrong, said in (
        ({"batch": 5, "parts": 2}, "must be a multiple"),
        ({"from_noise": 0.9, "second": 0.2}, "must be at most 1"),
        ({"first_time": 0.0}, r"first_time must be above 0"),
        ({"precision": "fp8"}, "unknown training.precision"),
    ):
        with pytest.raises(ValueError, match=said):
            config_of(training=wrong)
    with pytest.raises(ValueError, match="skipped must be rising grid steps from 3 on"):
        config_of(trajectories={"skipped": [2]})
