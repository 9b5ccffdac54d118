"""Trajectories end where the stock pipeline ends, and survive interruptions and damage."""

from __future__ import annotations

import itertools
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler, HeunDiscreteScheduler
from safetensors.torch import load_file, save_file

from ttsnap.distill.draft import trajectories
from ttsnap.distill.draft.prompts import Listed, SceneCaptions
from ttsnap.distill.draft.trajectories import Trajectories
from ttsnap.distill.processes import ALONE, Member
from ttsnap.files.unbroken import Unbroken
from ttsnap.pipelines import upgrade
from ttsnap.scenes import HARD_KINDS, is_held_out, parse

from ...pipelines.tiny import FAMILIES, STABLE_DIFFUSION_BETAS, sd15, shared  # noqa: TID252
from .small import PROMPTS, STEPS, bytes_in, config_of, pipe_of


def make(folder: Path, name: str = "sd3", member: Member = ALONE, **section: Any) -> list[Path]:
    config = config_of(name, trajectories=section)
    call = dict(config.call or {})
    settings = trajectories.settings_of(config.trajectories, name, call, PROMPTS, torch.float32)
    return trajectories.make(pipe_of(name).denoiser(**call), PROMPTS, config.trajectories, settings, folder, member)


@pytest.mark.parametrize("name", ["sd3", "sdxl", "pixart_sigma"])  # Euler of a flow, Euler, and one with a history
def test_a_trajectory_is_that_of_the_stock_pipeline(name: str, tmp_path: Path) -> None:
    tensors = load_file(make(tmp_path, name, count=2)[0])
    states: list[torch.Tensor] = []

    def keep(pipe: Any, step: int, t: Any, values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        states.append(values["latents"])
        return values

    call = {**FAMILIES[name].call, "num_inference_steps": STEPS, "output_type": "latent"}
    told = {"callback": lambda step, t, latents: states.append(latents)} if name == "pixart_sigma" else {
        "callback_on_step_end": keep
    }  # fmt: skip
    shared(name)(PROMPTS.texts[1], generator=torch.Generator().manual_seed(8), **told, **call)
    assert tensors["states"].shape[1] == 3
    for k in (1, 2):
        torch.testing.assert_close(tensors["states"][1, k].float(), states[k - 1][0].float(), rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(tensors["ends"][1].float(), states[-1][0].float(), rtol=4e-3, atol=4e-3)


def test_steps_are_jumped_over_along_the_straight_line(tmp_path: Path) -> None:
    config = config_of("sd3")
    call = dict(config.call or {})
    jumped = load_file(make(tmp_path, skipped=[3, 4])[0])["ends"][0].float()
    denoiser = pipe_of("sd3").denoiser(**call)
    denoiser.encode([PROMPTS.texts[0]])
    x, zero = denoiser.init_latents([torch.Generator().manual_seed(7)]), torch.zeros(1, dtype=torch.long)
    for step in range(3):
        found = denoiser.predict(x, zero + step, zero)
        x = denoiser.kernel.step(x, found, zero + step, [(7, 0, step)], [None])[0]
    torch.testing.assert_close(jumped, found.x0[0], rtol=2e-3, atol=2e-3)  # the last step went to the very end


@pytest.mark.parametrize(("name", "every", "ends"), [("sd3", 4, 3), ("pixart_sigma", 2, 1)])  # which has a history
def test_signals_wait_for_a_checkpoint_from_which_a_shard_is_gone_on_with(
    name: str, every: int, ends: int, tmp_path: Path, ctrl_c: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, polls, predict, ask = 0, 0, trajectories.predict, Unbroken.__call__

    def counted(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        return predict(*args)

    def signalled(self: Unbroken) -> bool:
        nonlocal polls
        polls += 1
        if polls % every == 0:
            os.kill(os.getpid(), signal.SIGINT)
        return ask(self)

    monkeypatch.setattr(trajectories, "predict", counted)
    section = {"count": 6, "shard": 6, "batch": 2}
    make(tmp_path / "whole", name, **section)
    whole, calls = calls, 0
    monkeypatch.setattr(Unbroken, "__call__", signalled)
    for _ in range(ends):
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path / "parts", name, **section)
    make(tmp_path / "parts", name, **section)
    assert calls == whole, "no evaluation is made twice"
    assert bytes_in(tmp_path / "parts") == bytes_in(tmp_path / "whole")


def test_a_run_that_is_killed_loses_half_a_minute_of_a_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, calls, predict = itertools.count(0, 11), 0, trajectories.predict

    def killed(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 9:
            raise KeyboardInterrupt
        return predict(*args)

    monkeypatch.setattr(trajectories, "predict", killed)
    monkeypatch.setattr("ttsnap.distill.draft.trajectories.time.monotonic", lambda: next(clock))
    section = {"count": 4, "shard": 4, "batch": 2}
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "parts", **section)
    make(tmp_path / "parts", **section)
    assert calls == 9 + 2 * STEPS - 6, "a checkpoint is written after every third evaluation of 11 s"
    monkeypatch.undo()
    make(tmp_path / "whole", **section)
    assert bytes_in(tmp_path / "parts") == bytes_in(tmp_path / "whole")


def test_processes_divide_the_files_and_another_number_of_them_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "one", count=10)
    monkeypatch.setattr(Member, "wait", lambda self: None)
    there = []
    for rank, count in ((1, 2), (2, 3), (0, 3), (1, 3)):  # the first of two processes never ran
        make(tmp_path / "several", member=Member(rank, count), count=10)
        there.append(len(bytes_in(tmp_path / "several")))
    assert there == [2, 3, 4, 5]  # shards 1 and 3; 2; 0; 4, as 1 is there
    assert bytes_in(tmp_path / "several") == bytes_in(tmp_path / "one")


def test_more_can_be_asked_for_later(tmp_path: Path) -> None:
    before = make(tmp_path, count=2)
    stamps = [path.stat().st_mtime_ns for path in before]
    assert make(tmp_path, count=3)[:1] == before
    assert [path.stat().st_mtime_ns for path in before] == stamps
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "trajectories-0000000-0000001.safetensors",
        "trajectories-0000002-0000003.safetensors",
    ]


def test_files_of_other_settings_are_refused_before_anything_is_made(tmp_path: Path) -> None:
    make(tmp_path, count=2)
    with pytest.raises(ValueError, match=r"made with other settings .* choose another folder"):
        make(tmp_path, states=2)
    assert len(list(tmp_path.iterdir())) == 1


def test_damaged_files_are_refused_in_a_sentence(tmp_path: Path) -> None:
    (path,) = make(tmp_path, count=2)
    config = config_of("sd3", trajectories={"count": 2})
    settings = trajectories.settings_of(config.trajectories, "sd3", dict(config.call or {}), PROMPTS, torch.float32)
    good = path.read_bytes()
    shard = trajectories.read_shard(path, settings)
    assert shard.prompts == ("a red circle", "two dogs")
    assert shard.first_seed == 7

    path.write_bytes(good[:-20])
    with pytest.raises(ValueError, match=r"cannot read .*safetensors"):
        trajectories.read_shard(path, settings)
    path.write_bytes(good[:-2] + bytes([good[-2] ^ 1, good[-1]]))
    with pytest.raises(ValueError, match=r"not those that were written\. A file that is removed is made again"):
        trajectories.read_shard(path, settings)
    save_file({"states": shard.states, "ends": shard.ends}, path)
    with pytest.raises(ValueError, match="is damaged"):
        trajectories.read_shard(path, settings)
    with pytest.raises(ValueError, match="from seed 7 on have numbers that are not finite in float16; give the model"):
        trajectories.write_shard(path, Trajectories(shard.prompts, 7, shard.states / 0, shard.ends), settings)
    bad = Trajectories(shard.prompts, 7, shard.states.float(), shard.ends)
    trajectories.write_shard(path, bad, settings)
    with pytest.raises(ValueError, match="states must be finite float16 numbers, got float32"):
        trajectories.read_shard(path, settings)
    trajectories.write_shard(path, Trajectories(shard.prompts[:1], 7, shard.states, shard.ends), settings)
    with pytest.raises(ValueError, match="of 1 prompts"):
        trajectories.read_shard(path, settings)


@pytest.mark.parametrize(("scheduler", "said"), [
    (EulerAncestralDiscreteScheduler(**STABLE_DIFFUSION_BETAS), "draws noise at every step"),
    (HeunDiscreteScheduler(**STABLE_DIFFUSION_BETAS), "takes several evaluations in a step"),
])  # fmt: skip
def test_samplers_whose_end_noise_does_not_decide_are_refused(scheduler: Any, said: str) -> None:
    config = config_of("sd15")
    denoiser = upgrade(sd15(scheduler)).denoiser(**dict(config.call or {}))
    with pytest.raises(ValueError, match=said):
        trajectories.check_trajectories(denoiser, config.trajectories)


@pytest.mark.parametrize(("name", "section", "said"), [
    ("sd3", {"states": 9}, "states is 9, but there are 5 steps"),
    ("sd3", {"skipped": [3, 5]}, "skipped must be below 5"),
    ("sdxl", {"skipped": [3]}, "goes otherwise: leave it out"),
])  # fmt: skip
def test_settings_that_do_not_fit_the_sampler_are_refused(name: str, section: dict[str, Any], said: str) -> None:
    config = config_of(name, trajectories=section)
    denoiser = pipe_of(name).denoiser(**dict(config.call or {}))
    with pytest.raises(ValueError, match=said):
        trajectories.check_trajectories(denoiser, config.trajectories)


def test_prompts_are_the_same_whenever_they_are_asked_for_and_never_held_out() -> None:
    captions = SceneCaptions(3)
    drawn = captions.draw(1, 40)
    assert drawn == SceneCaptions(3).draw(1, 40) != captions.draw(0, 40)
    assert not any(is_held_out(text) for text in drawn)
    hard = [parse(text).kind in HARD_KINDS for i, text in enumerate(drawn) if i % 4 != 3]
    assert all(hard)
    listed = Listed(["a", "b", "c"])
    assert [*listed.draw(0, 2), *listed.draw(1, 2)] == ["a", "b", "c", "a"]
    assert listed.identity != Listed(["a", "b", "d"]).identity
