"""Distillation on a synthetic recording with a known answer: gone on with after any interruption to
the same bits, and refusals that say what to do."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ttsnap.distill import checkpoints, run
from ttsnap.distill.config import DistillConfig
from ttsnap.distill.curriculum import held_out, stages
from ttsnap.distill.data import Frames
from ttsnap.distill.evaluate import Evaluation
from ttsnap.distill.run import distill
from ttsnap.distill.train import Batches, Curriculum
from ttsnap.distill.training import Training, Weights
from ttsnap.files.plain_yaml import as_yaml, load_settings
from ttsnap.files.run_folder import RunFolder
from ttsnap.files.settings import build
from ttsnap.files.unbroken import Unbroken
from ttsnap.files.writing import sha256

from ..bombs import Runs  # noqa: TID252
from . import kills
from .kills import calls, ended, killed
from .world import WORLD, TinyStudent, settings, write_recording

LAST = Path("checkpoints/00000160")
UNLIKE = {"loss": {"plain": 0.2}}


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    return write_recording(tmp_path_factory.mktemp("world") / "r", latents=True)


def make(recording, **changes):
    return build(DistillConfig, settings(recording, **changes))


def student(kind, **more):
    return {"student": {"kind": f"{WORLD}:{kind}", **more}}


@pytest.fixture(scope="module")
def undisturbed(recording, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    distill(make(recording, **UNLIKE, checkpoint_every=0), out)
    return out


@pytest.fixture(scope="module")
def quick(recording, tmp_path_factory):
    """A run of eight steps, and what it leaves undisturbed."""
    config = make(recording, steps_per_level=2, checkpoint_every=0, warmup=1, group_size=2)
    kills.undisturbed(partial(distill, config, out := tmp_path_factory.mktemp("quick") / "out"))
    return config, left_by(out)


def metrics(out):
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def left_by(out):
    """Every file of a run: its bytes, of the metrics all but the seconds. Of checkpoints the last,
    as others may be left where there was no time to remove them."""
    unlike = (
        *sorted((out / "checkpoints").iterdir())[:-1],
        out / "spearman.png",
        out / "config.yaml",
    )
    paths = [
        p
        for p in out.rglob("*")
        if p.is_file() and not {p, p.parent} & {*unlike, out / "metrics.jsonl"}
    ]
    return {**{str(p.relative_to(out)): p.read_bytes() for p in paths}, "metrics": metrics(out)}


def test_ranks_of_noisy_estimates_rise_well_above_the_base(recording, undisturbed, monkeypatch):
    config = make(recording, **UNLIKE, workers=1)
    monkeypatch.setattr(run, "Training", None)
    found = distill(config, undisturbed)  # which is finished
    assert (found.rows[-1]["level"], found.names, found.held_out) == (
        1.0,
        ("brightness", "tiny"),
        True,
    )
    for row in found.rows[1:]:
        assert row["tiny"]["spearman"] > row["brightness"]["spearman"] + 0.15, row
        assert row["tiny"]["spearman"] > 0.85
    lines = metrics(undisturbed)
    assert [line["step"] for line in lines] == list(range(1, 161))
    assert [lines[i]["level"] for i in (0, 40, 80, 120, 159)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert Evaluation.read(undisturbed / "evaluation.json").to_json() == found.to_json()
    assert load_settings(DistillConfig, undisturbed / "config.yaml") == config
    assert (undisturbed / "spearman.png").read_bytes()[:4] == b"\x89PNG"
    # What was exported is what was evaluated, not the last weights.
    state = load_file(undisturbed / LAST / "model.safetensors")
    for name, p in TinyStudent.load(undisturbed / "reward").trainable().items():
        assert torch.equal(p, state[f"average.{name.replace('.', '/')}"])
        assert not torch.equal(p, state[f"parameter.{name.replace('.', '/')}"])


@pytest.mark.parametrize("seed", range(2))
def test_killed_again_and_again_a_run_ends_as_an_undisturbed_one(quick, tmp_path, seed):
    config, expected = quick
    assert ended(partial(distill, config, tmp_path / "out"), tmp_path, seed) >= 2
    assert left_by(tmp_path / "out") == expected


@pytest.mark.slow
def test_killed_at_any_moment_a_run_ends_as_an_undisturbed_one(quick, tmp_path):
    config, expected = quick
    for moment in itertools.count(1):
        out = tmp_path / str(moment)
        if not killed(partial(distill, config, out), out, moment):
            break
        distill(config, out)
        assert left_by(out) == expected
    assert moment > 40


def test_a_second_run_in_the_folder_is_refused_and_the_first_goes_on(quick, tmp_path):
    (config, expected), out = quick, tmp_path / "out"

    def another():
        with pytest.raises(ValueError, match=rf"out \(process {os.getpid()} on "):
            distill(config, out)

    with calls(
        Training, "save", meanwhile=another
    ):  # the first one's checkpoint lies there half made
        distill(config, out)
    assert left_by(out) == expected


def test_two_starts_at_once_do_not_mix_their_settings(recording, tmp_path):
    """The other one runs when this one has just found the folder free."""
    mine, others = (make(recording, steps_per_level=n) for n in (2, 1))
    with (
        calls(RunFolder, "check", meanwhile=lambda: distill(others, tmp_path / "out")),
        pytest.raises(ValueError, match="steps_per_level is 1, not 2"),
    ):
        distill(mine, tmp_path / "out")
    assert load_settings(DistillConfig, tmp_path / "out" / "config.yaml") == others


def test_signals_wait_until_all_is_saved(
    recording,
    undisturbed,
    tmp_path,
    ctrl_c,
    monkeypatch,
):
    """In targets and training, which are gone on with where they were, and in the evaluation, which
    is made anew."""
    asked, polls, ends, ask = Counter[str](), 0, Counter[str](), Unbroken.__call__

    def signalled(self):
        nonlocal polls
        polls += 1
        asked[where := sys._getframe(1).f_code.co_name] += 1
        if polls % 9 == 0 and ends["score_entries"] < 12:  # at last an evaluation is left in peace
            ends[where] += 1
            os.kill(os.getpid(), signal.SIGINT)
        return ask(self)

    monkeypatch.setattr(Unbroken, "__call__", signalled)
    config = make(recording, **UNLIKE, batch_size=4)
    for _ in range(100):
        with contextlib.suppress(KeyboardInterrupt):
            distill(config, tmp_path / "out")
            break
        lines = (
            len(metrics(tmp_path / "out")) if (tmp_path / "out" / "metrics.jsonl").exists() else 0
        )
        assert checkpoints.steps_done(tmp_path / "out" / "checkpoints") == lines
    assert left_by(tmp_path / "out") == left_by(undisturbed)
    assert asked["run"] == 160, "no step is made twice"
    assert ends["run"] > 10
    assert ends["score_entries"] > 3


def test_checkpoints_are_written_by_the_clock(recording, tmp_path, monkeypatch):
    clock = itertools.count(0, 7)
    monkeypatch.setattr("ttsnap.distill.training.time.monotonic", lambda: next(clock))
    with calls(checkpoints, "save") as saved:
        distill(make(recording, steps_per_level=5, checkpoint_every=30), tmp_path / "out")
    assert [step for _, step, *_ in saved] == [5, 10, 15, 20], "30 s are five steps of 7 s"


def test_readers_in_other_processes_change_nothing(recording, quick, tmp_path):
    distill(
        make(recording, steps_per_level=2, warmup=1, group_size=2, workers=1, cache=0),
        tmp_path / "out",
    )
    assert left_by(tmp_path / "out") == quick[1]


def test_other_settings_are_refused_and_nothing_is_changed(recording, undisturbed, tmp_path):
    before = {p: p.read_bytes() for p in undisturbed.rglob("*") if p.is_file()}
    for changes, message in (
        ({**UNLIKE, "seed": 1}, "seed is 0, not 1"),
        ({}, r"loss\.plain is 0\.2, not 0\.1"),
        ({**UNLIKE, "lr": 0.02}, r"lr is 0\.01, not 0\.02"),
    ):
        with pytest.raises(ValueError, match=message):
            distill(make(recording, **changes), undisturbed)
    assert {p: p.read_bytes() for p in undisturbed.rglob("*") if p.is_file()} == before
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"\(mine\.txt\)"):
        distill(make(recording), tmp_path)
    # A run that failed before it began may be mended.
    with pytest.raises(ValueError, match="magic"):
        distill(make(recording, reward="magic"), tmp_path / "mended")
    assert distill(make(recording, steps_per_level=1), tmp_path / "mended").names == (
        "brightness",
        "tiny",
    )
    # A checkpoint carried over from another run.
    out = tmp_path / "out"
    shutil.copytree(undisturbed / "checkpoints", out / "checkpoints")
    (out / "config.yaml").write_text(as_yaml(make(recording)))
    with pytest.raises(ValueError, match=r"00000160 .*config\.loss\.plain is"):
        distill(make(recording), out)


def test_damaged_checkpoints_fall_back(quick, tmp_path, caplog):
    (config, expected), out = quick, tmp_path / "out"
    with calls(Weights, "follow", fails=7), pytest.raises(KeyboardInterrupt):
        distill(config, out)
    assert [p.name for p in sorted((out / "checkpoints").iterdir())] == ["00000005", "00000006"]
    path = out / "checkpoints" / "00000006" / "optimizer.bin"
    path.write_bytes(path.read_bytes()[:-100])
    distill(config, out)
    assert "00000006 is damaged (its files are not those that were written)" in caplog.text
    assert left_by(out) == expected


def test_all_checkpoints_damaged_starts_again(tmp_path, caplog):
    for step in (10, 20, 30):
        checkpoints.save(tmp_path, step, lambda folder: (folder / "a").write_text("some"), {"k": 1})
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["00000020", "00000030"]
    assert checkpoints.latest(tmp_path, {"k": 1}) == (30, tmp_path / "00000030")
    (tmp_path / "00000030" / "state.json").unlink()
    (tmp_path / "00000020" / "a").write_text("same")
    assert checkpoints.latest(tmp_path, {"k": 1}) is None
    assert caplog.text.count("is damaged") == 2
    assert checkpoints.latest(tmp_path / "nowhere", {}) is None
    (tmp_path / "00000030" / "state.json").write_text('{"step": 30, "files": {}, "about": {}}')
    assert checkpoints.latest(tmp_path, {}) is None


def test_a_checkpoint_runs_nothing(recording, tmp_path):
    distill(config := make(recording, steps_per_level=1), out := tmp_path / "out")
    (out / "evaluation.json").unlink()
    about = json.loads((path := out / "checkpoints" / "00000004" / "state.json").read_text())
    torch.save(Runs(tmp_path / "ran"), path.with_name("optimizer.bin"))
    path.write_text(
        json.dumps({**about, "files": {"optimizer.bin": sha256(path.with_name("optimizer.bin"))}})
    )
    with pytest.raises(ValueError, match=r"cannot resume from .*00000004"):
        distill(config, out)
    assert not (tmp_path / "ran").exists()


def test_targets_are_kept_and_a_nan_is_named(recording, tmp_path):
    config, out = make(recording, reward=f"{WORLD}:Broken", batch_size=4), tmp_path / "out"
    for _ in range(2):
        with pytest.raises(ValueError, match=r":Broken' .*'prompt 2', seed 8, step 4"):
            distill(config, out)
    kept = (out / "targets.safetensors").stat().st_size
    assert kept > 4 * 8 * 4
    with pytest.raises(ValueError, match="do not vary"):
        distill(make(recording, reward=f"{WORLD}:Constant"), tmp_path / "constant")
    other = write_recording(tmp_path / "other", prompts=12, seeds=8, offset=40)
    with pytest.raises(ValueError, match=r"targets\.safetensors .*data is"):
        distill(make(other, reward=f"{WORLD}:Broken", batch_size=4), out)
    assert (out / "targets.safetensors").stat().st_size == kept


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"group_size": 9}, "group_size is 9, but a prompt has 8 seeds"),
        ({"steps": [1, 7]}, r"step 7 was not recorded; these were: \[0, 1, 2, 3\]"),
        ({"student": {"kind": "nowhere.py:Student"}}, "no such file: nowhere.py"),
        (student("Nothing"), "cannot load student .*Nothing"),
        (student("TinyStudent", options={"depth": 3}), "takes no depth; it takes base, "),
        (
            student("Diverging") | {"loss": {"centred": False}},
            "the loss is inf at step 1: lower lr",
        ),
        ({"reward": "magic"}, "unknown reward 'magic'"),
        ({"validation": 0.99}, "leaves none"),
    ],
    ids=str,
)
def test_bad_input_is_refused(recording, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        distill(make(recording, **changes), tmp_path / "out")


def test_parts_and_processes_share_a_step_between_them(recording):
    frames = Frames([recording])
    whole, parts = make(recording), make(recording, accumulation=2)
    targets = [np.random.default_rng(p).normal(size=n) for p, n in enumerate(frames.seeds)]
    kept, _ = held_out(frames.prompts, whole.validation, whole.seed)
    plan = Curriculum(
        stages(frames.steps, whole.order, whole.steps_per_level), tuple(kept), targets, 1.0
    )
    for step in (0, 70, 159):
        everything = Batches(frames, plan, whole).groups(step)
        assert len(everything) == 4
        shares = [
            Batches(frames, plan, parts, rank, 2).groups(2 * step + part)
            for rank in (0, 1)
            for part in (0, 1)
        ]
        assert [len(share) for share in shares] == [1, 1, 1, 1]
        assert sorted((g for share in shares for g in share), key=str) == sorted(
            everything, key=str
        )
    x, prompts, level, target = Batches(frames, plan, whole)[70]
    group = Batches(frames, plan, whole).groups(70)[1]
    assert (x.shape, target.shape) == ((16, 3, 6, 6), (4, 4))
    assert prompts[4:8] == [frames.prompts[group.prompt]] * 4
    assert level[4:8].tolist() == [frames.levels[group.step]] * 4
    np.testing.assert_allclose(target[1], plan.targets[group.prompt][list(group.seeds)], rtol=1e-6)


def test_students_hear_of_stages_also_after_a_restart(recording, tmp_path):
    levels, own = [0.25, 0.5, 0.75, 1.0], {"kind": f"{TinyStudent.__module__}:TinyStudent"}
    config = make(recording, steps_per_level=2, checkpoint_every=0, student=own)
    with calls(Weights, "follow", fails=6), pytest.raises(KeyboardInterrupt):
        distill(config, tmp_path / "out")
    for out in ("out", "whole"):
        with calls(TinyStudent, "begin_stage") as told:
            distill(config, tmp_path / out)
        assert [level for _, level in told] == levels


@pytest.mark.parametrize(
    "changes",
    [
        {"order": "uniform"},
        {"order": "noisy-to-clean", "schedule": "linear", "ema": 0},
        {"loss": {"name": "pairwise", "temperature": 0.5}, "accumulation": 2},
        {"loss": {"centred": False, "plain": 0.0}, **student("TinyStudent", space="latents")},
    ],
    ids=str,
)
def test_every_order_and_loss_learns(recording, tmp_path, changes):
    found = distill(make(recording, **changes), tmp_path / "out")
    for row in found.rows[1:]:
        assert row["tiny"]["spearman"] > row["brightness"]["spearman"] + 0.1, row
