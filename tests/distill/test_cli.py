"""`ttsnap distill` as a new user meets it, on a recording of the embedded model."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ttsnap.cli import main
from ttsnap.distill import curriculum
from ttsnap.distill.evaluate import measure
from ttsnap.distill.training import Training, Weights
from ttsnap.recordings.folder import load_recording
from ttsnap.reward_models.noise_aware.schedule import level_of
from ttsnap.reward_models.registry import make_reward

from ..golden import tiny  # noqa: TID252
from ..said import error_of  # noqa: TID252
from .kills import calls
from .world import WORLD, settings, write_recording

PROMPTS = [
    "two red circles",
    "a green cross above a yellow triangle",
    "a blue square",
    "three yellow crosses",
]
RECIPE = f"""
record: {{prompts_file: prompts.txt, seeds: 4, steps: 4, score_steps: [0, 2], device: cpu}}
reward: scenes
student:
  kind: {WORLD}:TinyStudent
  options: {{width: 4}}
steps_per_level: 6
groups: 2
group_size: 4
lr: 1e-3
validation: 0.5
checkpoint_every: 0
device: cpu
"""


@pytest.fixture(autouse=True)
def _inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def ttsnap(line, *more):
    return main([*line.split(), *more])


def losses(out):
    lines = [json.loads(line) for line in Path(out, "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return [line["loss"] for line in lines]


def test_recorded_interrupted_resumed_exported_and_evaluated(
    capsys,
):
    Path("prompts.txt").write_text("\n".join(PROMPTS))
    Path("recipe.yaml").write_text(RECIPE)
    command = "distill --config recipe.yaml --trust --out out"
    with calls(Weights, "follow", fails=8):
        assert ttsnap(command) == 130
    assert (
        "interrupted; 7 optimiser steps are safe in out; run the same command"
        in capsys.readouterr().err
    )
    assert ttsnap(command) == 0
    out = capsys.readouterr().out
    assert "| noise | step | reward" in out.replace("  ", " ")
    assert "2 held-out prompts x 4 seeds" in out
    assert "ttsnap generate PROMPT --reward noise-aware:out/reward" in out
    assert sorted(p.name for p in Path("out").iterdir()) == [
        "checkpoints",
        "config.yaml",
        "evaluation.json",
        "metrics.jsonl",
        "recording",
        "reward",
        "spearman.png",
        "targets.safetensors",
        "verified.json",
    ]
    # The configuration that was written repeats the run, and does not record again.
    again = "distill --config out/config.yaml --record.out out/recording --out again"
    assert ttsnap(again) == 2
    assert f"out/config.yaml names student.kind '{WORLD}:TinyStudent'" in error_of(capsys)
    assert ttsnap(again, "--trust") == 0
    assert Path("again/evaluation.json").read_bytes() == Path("out/evaluation.json").read_bytes()
    assert losses("again") == losses("out")
    assert ttsnap(command, "--lr", "1") == 2
    assert "out holds a run with other settings: lr is 0.001, not 1.0" in capsys.readouterr().err
    # The base's scores of the estimates are those that were recorded.
    recording = load_recording("out/recording")
    evaluation = json.loads(Path("out/evaluation.json").read_text())
    held_out = curriculum.held_out(recording.prompts, 0.5, 0)[1]
    for row in evaluation["levels"]:
        early, final = (
            recording.scores[held_out, :, row["step"], 0],
            recording.final[held_out, :, 0],
        )
        expected = measure(early, final)
        assert row["scenes"]["rmse"] == pytest.approx(expected["rmse"], abs=0.01)  # of 8-bit images


def test_noise_aware_clip_from_training_to_evaluation(tmp_path, capsys):
    pytest.importorskip("peft")
    (tmp_path / "clip").mkdir()
    tiny.write_clip(tmp_path / "clip", json.loads(tiny.VALUES.read_text())["clip"]["shapes"])
    write_recording(tmp_path / "r", prompts=6, seeds=4)
    config = settings("r", reward="clip:clip", steps_per_level=3, group_size=2, lr=1e-3)
    for kind in ("lora", "per-level"):
        config["student"] = {"kind": kind, "rank": 2}
        Path("recipe.json").write_text(json.dumps(config))
        assert ttsnap("distill --config recipe.json --out", kind) == 2  # weights that a file names
        assert "names reward 'clip:clip'" in capsys.readouterr().err
        assert ttsnap("distill --config recipe.json --trust --out", kind) == 0
        about = json.loads(Path(kind, "reward", "adapter.json").read_text())
        assert about["kind"] == kind
        assert about["base"] == "clip:clip"
        assert about["info"]["config"]["steps_per_level"] == 3
        # Three steps teach nothing: the base scores everything, and that is what the table is of.
        assert (
            "clip-na uses what was trained at no noise level, and scores as clip does"
            in capsys.readouterr().out
        )
        assert about["base_below"] == about["info"]["evaluation"]["base_below"] == 1.0


def test_the_dogtrim_preset_trains_each_level_and_exports_what_it_trained(tmp_path, capsys):
    shapes = json.loads(tiny.VALUES.read_text())["pickscore"]["shapes"]
    (tmp_path / "clip").mkdir()
    tiny.write_clip(tmp_path / "clip", shapes)
    levels = (1.0, *(level_of(n) for n in (7, 14, 21)), 0.0)
    write_recording(Path("r"), prompts=4, seeds=4, steps=(1, 2, 3, 4), levels=levels)
    command = (
        "distill --preset dogtrim-pickscore --recordings r --reward pickscore:clip --groups 4"
        " --validation 0 "
    )
    command += (
        "--device cpu --checkpoint-every 0 --steps-per-level [1,2,3] --lr [1e-2,5e-3,2e-3] --out "
    )
    for wrong, said in (
        (
            "none --student.kind lora --student.per-level false --export e",
            "a network for each noise level",
        ),
        ("none --student.network clip --export e", "one of the two"),
        (f"none --export {__file__}", "is a file"),
    ):
        assert ttsnap(command + wrong) == 2
        assert said in error_of(capsys)
    assert ttsnap(command + "whole --export theirs") == 0
    assert "theirs has step21.pt, step14.pt, step7.pt" in capsys.readouterr().out
    lines = [json.loads(line) for line in Path("whole/metrics.jsonl").read_text().splitlines()]
    assert [line["level"] for line in lines] == pytest.approx(
        [levels[3]] + 2 * [levels[2]] + 3 * [levels[1]], abs=1e-3
    )
    fall = [1e-2, 5e-3, 5e-3 * 0.75, *(2e-3 * (1 - 0.5 * i / 3) for i in range(3))]
    assert [line["lr"] for line in lines] == pytest.approx(fall)

    with calls(Training, "step", fails=3):  # before the last level
        assert ttsnap(command + "part") == 130
    assert ttsnap(command + "part --export again") == 0
    for n in (7, 14, 21):
        mine, other = (
            torch.load(f"{folder}/step{n}.pt", weights_only=True) for folder in ("theirs", "again")
        )
        assert all(torch.equal(tensor, other[name]) for name, tensor in mine.items())

    images, prompts = (
        torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)),
        ["a cat"] * 4,
    )
    at = torch.tensor([*levels[1:]])
    ours, exported = (
        make_reward(f"noise-aware:{name} on pickscore:clip") for name in ("whole/reward", "theirs")
    )
    scores, base = ours(images, prompts, at), make_reward("pickscore:clip")(images, prompts)
    torch.testing.assert_close(exported(images, prompts, at), scores, rtol=1e-6, atol=1e-6)
    assert ((scores - base).abs() > 1e-3).tolist() == [True, True, True, False]
    # A level begins from the one before, and goes on from there alone.
    first, *later = (torch.load(f"theirs/step{n}.pt", weights_only=True) for n in (21, 14, 7))
    moved = [
        max(float((first[name] - other[name]).abs().max()) for name in first) for other in later
    ]
    assert 0 < moved[0] < moved[1]


def test_a_black_box_is_learned_by_another_rewards_network(
    capsys,
):
    pytest.importorskip("peft")
    from ttsnap.pipelines import load

    texts = ["a red circle", "two green crosses", "a blue square", "three red circles"]
    write_recording(Path("r"), seeds=4, texts=texts)
    command = (
        "distill --recordings r --reward brightness --steps-per-level 8 --group-size 4 --groups 3"
        " --lr 5e-3"
    )
    command += " --warmup 2 --validation 0.25 --device cpu --out out"
    assert ttsnap(command) == 2
    assert "student.network" in capsys.readouterr().err
    assert ttsnap(command, "--student.network", "scenes-learned", "--student.rank", "4") == 0
    told = capsys.readouterr().out
    assert "brightness-na uses what was trained" in told
    assert "--reward noise-aware:out/reward" in told
    about = json.loads(Path("out/reward/adapter.json").read_text())
    assert (about["base"], about["network"]) == ("brightness", "scenes-learned")
    assert about["scale"] != 1
    losses_of = losses("out")
    assert sum(losses_of[-8:]) < sum(losses_of[:8])

    plain, found = (
        load()(
            "two green crosses", search="seed-pruning", reward=reward, budget="30nfe", seed=3
        ).search[0]
        for reward in ("brightness", "noise-aware:out/reward")
    )
    assert found.spent.cost == plain.spent.cost
    assert found.best.image is not None
    base = make_reward("brightness")(found.best.image[None], [""])[0]
    assert found.best.reward == pytest.approx(float(base), abs=1e-6)  # of a batch of others


def test_a_full_disk_gets_a_clear_message(capsys):
    Path("c.json").write_text(
        json.dumps(settings(write_recording(Path("r"), prompts=4, seeds=4), checkpoint_every=0))
    )
    with calls(Weights, "follow", fails=30, error=OSError):
        assert ttsnap("distill --config c.json --trust --out out") == 2
    assert (
        "cannot write to out: No space left on device; what was there is safe"
        in capsys.readouterr().err
    )
    assert sorted(p.name for p in Path("out/checkpoints").iterdir()) == ["00000028", "00000029"]


OF_BRIGHTNESS = "distill --out o --reward brightness"

BAD = (
    ("distill --out o", "reward is missing"),
    (OF_BRIGHTNESS, "no data"),
    (f"{OF_BRIGHTNESS} --recordings nowhere", "no such recording: nowhere"),
    (f"{OF_BRIGHTNESS} --recordings r --order up", "--order must be .*got 'up'"),
    (f"{OF_BRIGHTNESS} --recordings r", "cannot be made noise-aware"),
    (f"{OF_BRIGHTNESS} --record.prompts_file empty.txt", "empty.txt holds no prompt"),
    (f"{OF_BRIGHTNESS} --record.seed two", "record section does not fit"),
)


def test_bad_input_gets_a_clear_message(capsys):
    write_recording(Path("r"), prompts=4, seeds=8)
    Path("empty.txt").write_text("# nothing\n")
    for argv, message in BAD:
        assert ttsnap(argv) == 2
        error = error_of(capsys)
        assert error.startswith("ttsnap: error: ")
        assert re.search(message, error, re.DOTALL), error


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_two_processes_train_as_one(precision):
    """Half of the groups each: the same losses but for rounding."""
    recording, loss = write_recording(Path("r"), prompts=8, seeds=4), {"name": "pairwise"}
    student = {"kind": f"{WORLD}:TinyStudent", "options": {"drop": 0.0}}
    changes = settings(
        recording, student=student, loss=loss, steps_per_level=10, precision=precision
    )
    Path("c.json").write_text(json.dumps(changes))
    for count, launcher in (
        ("1 process", "torch.distributed.run --standalone --nproc-per-node 1"),
        # which needs no GPU
        ("2 processes", "accelerate.commands.launch --multi_gpu --num_processes 2"),
    ):
        command = (
            f"{launcher} -m ttsnap distill --config c.json --trust --device auto --out"
            f" out{count[0]}"
        )
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
        options = {"capture_output": True, "text": True, "timeout": 250, "env": environment}
        done = subprocess.run([sys.executable, "-m", *command.split()], **options)
        assert done.returncode == 0, done.stderr
        assert [line for line in done.stdout.splitlines() if "process" in line] == [
            f"{count} on cpu"
        ]
        assert done.stdout.count("| noise |") == 1
    assert len(losses("out1")) == 40
    np.testing.assert_allclose(
        losses("out2"), losses("out1"), rtol=1e-3 if precision == "no" else 0.05, atol=0.005
    )
    one, two = (json.loads(Path(f"out{n}/evaluation.json").read_text())["levels"] for n in (1, 2))
    for a, b in zip(one, two, strict=True):
        assert a["brightness"]["spearman"] == pytest.approx(b["brightness"]["spearman"], abs=0.02)
        assert a["tiny"]["rmse"] == pytest.approx(b["tiny"]["rmse"], rel=0.05)
