"""What a step trains on, its loss in closed form, and that interruptions change nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler, HeunDiscreteScheduler
from torch import Tensor

from ttsnap.distill.data import FrameAt
from ttsnap.distill.draft.student import DraftStudent, check_sampler, start_from
from ttsnap.distill.draft.train import DraftLesson, draw, loss, second_calls
from ttsnap.distill.processes import ALONE, Member
from ttsnap.distill.training import Training, read_metrics
from ttsnap.pipelines import upgrade
from ttsnap.sampling.interpolants import VP, Linear

from ...pipelines.tiny import STABLE_DIFFUSION_BETAS, sd15, shared  # noqa: TID252
from ..kills import calls  # noqa: TID252
from .small import PROMPTS, call_of, config_of, frames_of, pipe_of, recorded


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


# a flow, and one whose states are x0 + sigma eps
@pytest.mark.parametrize("name", ["sd3", "sdxl"])
def test_trajectories_begin_and_end_as_those_of_the_stock_pipeline(name, tmp_path):
    frames = frames_of(recorded(tmp_path, name))
    end = FrameAt(1, 1, frames.last)
    student = DraftStudent(pipe_of(name), call_of(name), first_time=0.87, rank=2)
    student.encode([PROMPTS[1]])
    assert frames.seed(end) == 10, "no two prompts share a seed"
    x = student.noise([10])
    drawn = torch.randn(x.shape, generator=torch.Generator().manual_seed(10))
    torch.testing.assert_close(x, drawn, rtol=1e-2, atol=1e-2)
    call = {**call_of(name), "output_type": "latent"}
    alike = shared(name)(PROMPTS[1], generator=torch.Generator().manual_seed(10), **call).images
    torch.testing.assert_close(frames.load([end], "latents"), alike.float(), rtol=4e-3, atol=4e-3)


def test_every_trajectory_comes_once_before_any_comes_again():
    config = config_of("r", batch=20)
    seen = np.concatenate([draw(step, 50, config) for step in range(5)])
    assert sorted(seen[:50]) == sorted(seen[50:]) == list(range(50))
    assert seen[:50].tolist() != seen[50:].tolist()


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    return recorded(tmp_path_factory.mktemp("data") / "r")


@pytest.fixture(scope="module")
def data(recording):
    return frames_of(recording)


def student_of(config):
    torch.manual_seed(config.seed)
    return DraftStudent(pipe_of(), call_of(), first_time=0.87, rank=config.rank)


def lesson_of(student, data, config, member=ALONE):
    return DraftLesson(student, data, ([0, 1, 2], [3, 4]), config, member)


def train(student, data, config, out, member=ALONE):
    Training(lesson_of(student, data, config, member), config, out, member).run()


def gradient(data, parts=1, member=ALONE):
    """Of the first step; and its loss."""
    config = config_of("r", accumulation=parts, second=0.5, batch=8, clip=0.0)
    student, found = student_of(config), list[Tensor]()
    lesson = lesson_of(student, data, config, member)
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

    config = config_of("r", batch=6, updates=1)
    for rank, written in ((1, set[str]()), (0, {"checkpoints", "metrics.jsonl"})):
        out = tmp_path / str(rank)
        out.mkdir()
        train(student_of(config), data, config, out, Waiting(rank, 2))
        assert {path.name for path in out.iterdir()} == written
    with pytest.raises(ValueError, match=r"batch \(6\) .* \(1 x 4\)"):
        train(student_of(config), data, config, tmp_path, Waiting(0, 4))


def test_training_that_was_stopped_ends_with_the_same_bits(data, tmp_path):
    config = config_of("r")

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
    config = config_of("r", updates=8, batch=6, ema=0.0, warmup=2, lr=0.02)
    student = student_of(config)
    lesson = lesson_of(student, data, config)
    before = lesson.validate(lesson.trained)
    train(student, data, config, tmp_path)
    after = lesson.validate(lesson.trained)
    assert after["calls 1"] < 0.5 * before["calls 1"]


def test_what_cannot_be_trained_is_refused(data, tmp_path):
    config = config_of("r", lr=1e30, warmup=0, clip=0.0)
    with pytest.raises(ValueError, match=r"(nan|inf) at step .* lower lr"):
        train(student_of(config), data, config, tmp_path)
    with pytest.raises(ValueError, match=r"start: cannot read"):
        start_from(student_of(config), tmp_path)
    for wrong, said in (
        ({"first_time": 0.0}, "first_time must be greater than 0"),
        ({"precision": "fp8"}, r"precision must be"),
        ({"recordings": []}, "no data"),
    ):
        with pytest.raises(ValueError, match=said):
            config_of("r", **wrong)


@pytest.mark.parametrize(
    ("scheduler", "said"),
    [
        (EulerAncestralDiscreteScheduler, "draws noise at every step"),
        (HeunDiscreteScheduler, "takes several evaluations in a step"),
    ],
)
def test_samplers_that_do_not_fit_are_refused(scheduler, said):
    pipe = upgrade(sd15(scheduler(**STABLE_DIFFUSION_BETAS)))
    with pytest.raises(ValueError, match=said):
        check_sampler(pipe.denoiser(**call_of("sd15")))
