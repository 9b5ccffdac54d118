"""Trajectories end where the stock pipeline ends, and survive interruptions and damage."""

from __future__ import annotations

import itertools
import os
import signal

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
from ..kills import calls  # noqa: TID252
from .small import PROMPTS, STEPS, bytes_in, config_of, denoiser_of, settings_of


def make(folder, name="sd3", member=ALONE, **section):
    config = config_of(name, trajectories=section)
    return trajectories.make(
        denoiser_of(config), PROMPTS, config.trajectories, settings_of(config), folder, member
    )


# Euler of a flow, Euler, and one with a history
@pytest.mark.parametrize("name", ["sd3", "sdxl", "pixart_sigma"])
def test_a_trajectory_is_that_of_the_stock_pipeline(name, tmp_path):
    tensors = load_file(make(tmp_path, name, count=2)[0])
    states = []

    def keep(pipe, step, t, values):
        states.append(values["latents"])
        return values

    call = {**FAMILIES[name].call, "num_inference_steps": STEPS, "output_type": "latent"}
    old = {"callback": lambda step, t, latents: states.append(latents)}
    told = old if name == "pixart_sigma" else {"callback_on_step_end": keep}
    shared(name)(PROMPTS.texts[1], generator=torch.Generator().manual_seed(8), **told, **call)
    assert tensors["states"].shape[1] == 3
    for k in (1, 2):
        torch.testing.assert_close(
            tensors["states"][1, k].float(), states[k - 1][0].float(), rtol=2e-3, atol=2e-3
        )
    torch.testing.assert_close(
        tensors["ends"][1].float(), states[-1][0].float(), rtol=4e-3, atol=4e-3
    )


def test_steps_are_jumped_over_along_the_straight_line(tmp_path):
    jumped = load_file(make(tmp_path, skipped=[3, 4])[0])["ends"][0].float()
    denoiser = denoiser_of(config_of())
    denoiser.encode([PROMPTS.texts[0]])
    x, zero = (
        denoiser.init_latents([torch.Generator().manual_seed(7)]),
        torch.zeros(1, dtype=torch.long),
    )
    for step in range(3):
        found = denoiser.predict(x, zero + step, zero)
        x = denoiser.kernel.step(x, found, zero + step, [(7, 0, step)], [None])[0]
    # the last step went to the very end
    torch.testing.assert_close(jumped, found.x0[0], rtol=2e-3, atol=2e-3)


# which has a history
@pytest.mark.parametrize(("name", "every", "ends"), [("sd3", 4, 3), ("pixart_sigma", 2, 1)])
def test_signals_wait_for_a_checkpoint_from_which_a_shard_is_resumed(
    name, every, ends, tmp_path, ctrl_c, monkeypatch
):
    polls, ask = itertools.count(1), Unbroken.__call__

    def signalled(self):
        if next(polls) % every == 0:
            os.kill(os.getpid(), signal.SIGINT)
        return ask(self)

    section = {"count": 6, "shard": 6, "batch": 2}
    with calls(trajectories, "predict") as whole:
        make(tmp_path / "whole", name, **section)
    monkeypatch.setattr(Unbroken, "__call__", signalled)
    with calls(trajectories, "predict") as parts:
        for _ in range(ends):
            with pytest.raises(KeyboardInterrupt):
                make(tmp_path / "parts", name, **section)
        make(tmp_path / "parts", name, **section)
    assert len(parts) == len(whole), "no evaluation is made twice"
    assert bytes_in(tmp_path / "parts") == bytes_in(tmp_path / "whole")


def test_a_run_that_is_killed_loses_half_a_minute_of_a_shard(tmp_path, monkeypatch):
    clock, section = itertools.count(0, 11), {"count": 4, "shard": 4, "batch": 2}
    monkeypatch.setattr("ttsnap.distill.draft.trajectories.time.monotonic", lambda: next(clock))
    with calls(trajectories, "predict", fails=9) as made:
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path / "parts", **section)
        make(tmp_path / "parts", **section)
    assert len(made) == 9 + 2 * STEPS - 6, (
        "a checkpoint is written after every third evaluation of 11 s"
    )
    monkeypatch.undo()
    make(tmp_path / "whole", **section)
    assert bytes_in(tmp_path / "parts") == bytes_in(tmp_path / "whole")


def test_processes_divide_the_files_and_another_number_of_them_goes_on(tmp_path, monkeypatch):
    make(tmp_path / "one", count=10)
    monkeypatch.setattr(Member, "wait", lambda self: None)
    there = []
    for rank, count in ((1, 2), (2, 3), (0, 3), (1, 3)):  # the first of two processes never ran
        make(tmp_path / "several", member=Member(rank, count), count=10)
        there.append(len(bytes_in(tmp_path / "several")))
    assert there == [2, 3, 4, 5]  # shards 1 and 3; 2; 0; 4, as 1 is there
    assert bytes_in(tmp_path / "several") == bytes_in(tmp_path / "one")


def test_more_can_be_asked_for_later_but_not_with_other_settings(tmp_path):
    (before,) = make(tmp_path, count=2)
    stamp = before.stat().st_mtime_ns
    after = make(tmp_path, count=3)
    assert after[0] == before
    assert before.stat().st_mtime_ns == stamp
    names = ["trajectories-0000000-0000001.safetensors", "trajectories-0000002-0000003.safetensors"]
    assert [path.name for path in after] == names
    with pytest.raises(ValueError, match=r"other settings"):
        make(tmp_path, states=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_damaged_files_are_refused_in_a_sentence(tmp_path):
    (path,) = make(tmp_path, count=2)
    settings = settings_of(config_of(trajectories={"count": 2}))
    good = path.read_bytes()
    shard = trajectories.read_shard(path, settings)
    assert (shard.prompts, shard.first_seed) == (("a red circle", "two dogs"), 7)

    def refused(said):
        with pytest.raises(ValueError, match=said):
            trajectories.read_shard(path, settings)

    path.write_bytes(good[:-20])
    refused(r"cannot be read as safetensors")
    path.write_bytes(good[:-2] + bytes([good[-2] ^ 1, good[-1]]))
    refused(r"not those that were written\. A file that is removed is made again")
    save_file({"states": shard.states, "ends": shard.ends}, path)
    refused("is damaged")
    with pytest.raises(ValueError, match=r"seed 7 .*not finite"):
        trajectories.write_shard(
            path, Trajectories(shard.prompts, 7, shard.states / 0, shard.ends), settings
        )
    trajectories.write_shard(
        path, Trajectories(shard.prompts, 7, shard.states.float(), shard.ends), settings
    )
    refused("got float32")
    trajectories.write_shard(
        path, Trajectories(shard.prompts[:1], 7, shard.states, shard.ends), settings
    )
    refused("of 1 prompts")


@pytest.mark.parametrize(
    ("name", "scheduler", "section", "said"),
    [
        ("sd15", EulerAncestralDiscreteScheduler, {}, "draws noise at every step"),
        ("sd15", HeunDiscreteScheduler, {}, "takes several evaluations in a step"),
        ("sd3", None, {"states": 9}, "states is 9, but there are 5 steps"),
        ("sd3", None, {"skipped": [3, 5]}, "skipped must be below 5"),
        ("sdxl", None, {"skipped": [3]}, "goes otherwise"),
    ],
)
def test_samplers_and_settings_that_do_not_fit_are_refused(name, scheduler, section, said):
    config = config_of(name, trajectories=section)
    pipe = upgrade(sd15(scheduler(**STABLE_DIFFUSION_BETAS)) if scheduler else shared(name))
    with pytest.raises(ValueError, match=said):
        trajectories.check_trajectories(
            pipe.denoiser(**dict(config.call or {})), config.trajectories
        )


def test_prompts_are_the_same_whenever_they_are_asked_for_and_never_held_out():
    captions = SceneCaptions(3)
    drawn = captions.draw(1, 40)
    assert drawn == SceneCaptions(3).draw(1, 40) != captions.draw(0, 40)
    assert not any(is_held_out(text) for text in drawn)
    assert all(parse(text).kind in HARD_KINDS for i, text in enumerate(drawn) if i % 4 != 3)
    listed = Listed(["a", "b", "c"])
    assert [*listed.draw(0, 2), *listed.draw(1, 2)] == ["a", "b", "c", "a"]
    assert listed.identity != Listed(["a", "b", "d"]).identity
