"""What a step trains on, its loss in closed form, and that interruptions change nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ttsnap.distill.draft import train as training
from ttsnap.distill.draft import trajectories
from ttsnap.distill.draft.config import TrainingConfig
from ttsnap.distill.draft.student import DraftStudent, start_from
from ttsnap.distill.draft.train import DraftLesson, draw, loss, second_calls
from ttsnap.distill.draft.trajectories import Trajectories
from ttsnap.distill.processes import ALONE, Member
from ttsnap.distill.training import Training, read_metrics
from ttsnap.sampling.interpolants import VP, Linear

from ..kills import calls  # noqa: TID252
from .small import PROMPTS, config_of, denoiser_of, pipe_of, settings_of


def test_the_loss_is_its_closed_form():
    generator = torch.Generator().manual_seed(0)
    guess, end = (torch.randn(3, 2, 4, dtype=torch.float64, generator=generator) for _ in range(2))
    told = torch.tensor([0.87, 0.7, 0.5], dtype=torch.float64)
    errors = ((guess - end) ** 2).mean((1, 2)).tolist()
    by_hand = sum(error / t**2 / 3 for error, t in zip(errors, (0.87, 0.7, 0.6), strict=True))
    assert float(loss(Linear(), guess, end, told, 0.6)) == pytest.approx(by_hand, rel=1e-14)
    # of another path, by its noise
    level = float(VP().sigma(told[2]) / (VP().sigma(told[2]) + VP().alpha(told[2])))
    assert float(loss(VP(), guess[2:], end[2:], told[2:], 0.1)) == pytest.approx(
        errors[2] / level**2, rel=1e-12
    )


def test_a_second_call_is_made_halfway_to_the_first_guess_along_the_same_noise():
    x = torch.randn(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    asked = []

    def estimate(x, told, cond):
        asked.append(told.tolist())
        return 0.3 * x

    half = second_calls(Linear(), estimate, x, torch.zeros(2, dtype=torch.long), 1.0, 0.87)
    torch.testing.assert_close(half, 0.5 * 0.3 * x + 0.5 * x)  # at time 1, x is the noise
    assert asked == [[0.87, 0.87]]
    later = second_calls(Linear(), estimate, x, torch.zeros(2, dtype=torch.long), 0.8, 0.5)
    noise = (x - 0.2 * 0.3 * x) / 0.8
    torch.testing.assert_close(later, 0.6 * 0.3 * x + 0.4 * noise)


@pytest.mark.parametrize("name", ["sd3", "sdxl"])  # a flow, and one whose states are x0 + sigma eps
def test_states_are_scaled_to_points_of_the_models_own_path(name):
    pipe, call = pipe_of(name), dict(config_of(name).call or {})
    student, schedule = (
        DraftStudent(pipe, call, states=3, first_time=0.87, rank=2),
        pipe.denoiser(**call).schedule,
    )
    x0, noise = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)).double()
    states = schedule.alpha[:3, None] * x0 + schedule.sigma[:3, None] * noise
    path, at = student.path, student.times[:, None]
    found = student.on_path(states, torch.arange(3))
    torch.testing.assert_close(
        found, path.alpha(at) * x0 + path.sigma(at) * noise, rtol=1e-5, atol=1e-5
    )


def test_every_trajectory_comes_once_before_any_comes_again_in_rows_of_three_kinds():
    config = TrainingConfig(batch=20, from_noise=0.45, second=0.15)
    drawn = [draw(step, 50, 5, config) for step in range(5)]
    seen = np.concatenate([rows.trajectories for rows in drawn])
    assert sorted(seen[:50]) == sorted(seen[50:]) == list(range(50))
    assert seen[:50].tolist() != seen[50:].tolist()
    for rows in drawn:
        assert rows.second == 3
        assert not rows.steps[:12].any()
    assert {int(k) for rows in drawn for k in rows.steps[12:]} == {1, 2, 3, 4}
    parts = [drawn[0].part(i, 2) for i in range(2)]
    assert [part.second for part in parts] == [2, 1]
    assert sorted(i for part in parts for i in part.trajectories) == sorted(drawn[0].trajectories)
    assert not draw(0, 50, 1, config).steps.any()  # only noise was kept


def test_the_learning_rate_rises_stays_and_falls():
    config = TrainingConfig(steps=100, warmup=10, decay=0.4, final_lr=0.02)
    factors = [training.factor(step, config) for step in (0, 4, 9, 60, 80, 99)]
    assert factors == pytest.approx([0.1, 0.5, 1.0, 1.0, 0.5, 0.025])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    config, folder = config_of(), tmp_path_factory.mktemp("data")
    settings = settings_of(config)
    made = trajectories.make(denoiser_of(config), PROMPTS, config.trajectories, settings, folder)
    return Trajectories.read(made, settings)


def student_of(config):
    torch.manual_seed(config.training.seed)
    return DraftStudent(
        pipe_of(), dict(config.call or {}), states=3, first_time=0.87, rank=config.training.rank
    )


def train(student, data, config, out, member=ALONE):
    lesson = DraftLesson(student, data, config.training, {}, member)
    Training(lesson, config.training, out, member).run()


def gradient(data, parts=1, member=ALONE):
    """Of the first step; and its loss."""
    config = config_of(training={"parts": parts, "second": 0.5, "batch": 8, "clip": 0.0}).training
    student, found = student_of(config_of()), list[Tensor]()
    lesson = DraftLesson(student, data, config, {}, member)
    lesson.trained = data
    run = Training(lesson, config, Path(), member)
    run.optimizer.optimizer.register_step_post_hook(
        lambda *_: found.extend(p.grad.flatten() for p in student.parameters.values())
    )
    found.append(torch.tensor([run.step(lesson.losses(0, run.weights))]))
    return torch.cat(found)


def test_parts_and_processes_give_the_same_gradient(data):
    whole = gradient(data)
    torch.testing.assert_close(gradient(data, parts=2), whole, rtol=1e-4, atol=1e-6)
    for parts in (1, 2):
        both = [gradient(data, parts, Member(rank, 2)) for rank in range(2)]
        assert float((both[0] - both[1]).norm()) > 0.1 * float(whole.norm()) > 0
        torch.testing.assert_close((both[0] + both[1]) / 2, whole, rtol=1e-4, atol=1e-6)


def test_of_several_processes_the_first_one_writes(data, tmp_path):
    class Waiting(Member):
        def any(self, asked):
            return asked

    config = config_of(training={"batch": 6, "steps": 1})
    for rank, written in ((1, set[str]()), (0, {"checkpoints", "metrics.jsonl"})):
        out = tmp_path / str(rank)
        out.mkdir()
        train(student_of(config), data, config, out, Waiting(rank, 2))
        assert {path.name for path in out.iterdir()} == written
    with pytest.raises(ValueError, match=r"batch \(6\) .* \(1 x 4\)"):
        train(student_of(config), data, config, tmp_path, Waiting(0, 4))


def test_training_that_was_stopped_ends_with_the_same_bits(data, tmp_path):
    config = config_of()

    def trained(out):
        out.mkdir(exist_ok=True)
        train(student := student_of(config), data, config, out)
        return {name: p.detach().clone() for name, p in student.parameters.items()}

    whole = trained(tmp_path / "whole")
    lines = read_metrics(tmp_path / "whole" / "metrics.jsonl")
    assert [line["step"] for line in lines if "calls 1" in line] == [2, 4]
    with calls(DraftLesson, "losses", fails=4), pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "parts")
    torch.rand(5)  # whatever else was drawn in the meantime
    again = trained(tmp_path / "parts")
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert any(bool(p.abs().sum() > 0) for name, p in whole.items() if "lora_B" in name)


def test_training_lowers_the_error_on_what_it_was_trained_on(data, tmp_path):
    config = config_of(
        training={"steps": 8, "validation": 1, "batch": 6, "ema": 0.0, "warmup": 2, "lr": 0.02}
    )
    student = student_of(config)
    before = training.validate(student, data, config.training)
    train(student, data, config, tmp_path)
    after = training.validate(student, data, config.training)
    assert after["calls 1"] < 0.5 * before["calls 1"]


def test_what_cannot_be_trained_is_refused(data, tmp_path):
    config = config_of(training={"lr": 1e30, "warmup": 0, "clip": 0.0})
    with pytest.raises(ValueError, match=r"(nan|inf) at step .* lower lr"):
        train(student_of(config), data, config, tmp_path)
    with pytest.raises(ValueError, match=r"training\.start"):
        start_from(student_of(config), tmp_path)
    sections = (
        ({"training": {"batch": 5, "parts": 2}}, "must be a multiple"),
        ({"training": {"from_noise": 0.9, "second": 0.2}}, "must be at most 1"),
        ({"training": {"first_time": 0.0}}, "first_time must be greater than 0"),
        ({"training": {"precision": "fp8"}}, r"training\.precision must be"),
        ({"trajectories": {"skipped": [2]}}, "from 3 on"),
    )
    for wrong, said in sections:
        with pytest.raises(ValueError, match=said):
            config_of(**wrong)
