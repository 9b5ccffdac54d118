"""Training: gone on with after any interruption to the same bits, and refusals that say what to do."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from ttsnap.distill import checkpoints
from ttsnap.distill.config import TRACKERS, DistillConfig
from ttsnap.distill.curriculum import held_out, stages
from ttsnap.distill.data import Frames
from ttsnap.distill.run import distill
from ttsnap.distill.train import Batches, Curriculum
from ttsnap.distill.training import Weights
from ttsnap.files.plain_yaml import save_settings
from ttsnap.files.settings import build
from ttsnap.files.unbroken import Unbroken
from ttsnap.files.writing import sha256
from ttsnap.recordings.folder import packed
from ttsnap.recordings.kept import KeptNumbers

from .world import WORLD, settings, write_recording

LAST = Path("checkpoints/00000160/model.safetensors")


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recording(tmp_path_factory.mktemp("world") / "r")


@pytest.fixture(scope="module")
def with_latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recording(tmp_path_factory.mktemp("world") / "r", latents=True)


def make(recording: Path, **changes: Any) -> DistillConfig:
    return build(DistillConfig, settings(recording, **changes))


@pytest.fixture(scope="module")
def undisturbed(recording: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    distill(make(recording, loss={"name": "mse-uncertain"}, checkpoint_every=0), out)
    return out


def metrics(out: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def assert_same(out: Path, other: Path, last: Path = LAST) -> None:
    a, b = load_file(out / last), load_file(other / last)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert metrics(out) == metrics(other)
    assert (out / "evaluation.json").read_bytes() == (other / "evaluation.json").read_bytes()


def test_signals_wait_until_all_is_saved(
    recording: Path, undisturbed: Path, tmp_path: Path, ctrl_c: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In targets, training and evaluation: each is gone on with where it was."""
    asked, polls, ends, ask = Counter[str](), 0, Counter[str](), Unbroken.__call__

    def signalled(self: Unbroken) -> bool:
        nonlocal polls
        polls += 1
        asked[where := sys._getframe(1).f_code.co_name] += 1
        if polls % 9 == 0:
            ends[where] += 1
            os.kill(os.getpid(), signal.SIGINT)
        return ask(self)

    monkeypatch.setattr(Unbroken, "__call__", signalled)
    config = make(recording, loss={"name": "mse-uncertain"}, batch_size=4)
    for _ in range(100):
        with contextlib.suppress(KeyboardInterrupt):
            distill(config, tmp_path / "out")
            break
        lines = len(metrics(tmp_path / "out")) if (tmp_path / "out" / "metrics.jsonl").exists() else 0
        assert checkpoints.steps_done(tmp_path / "out" / "checkpoints") == lines
    assert_same(tmp_path / "out", undisturbed)
    assert asked["run"] == 160, "no step is made twice"
    assert ends["run"] > 10
    assert ends["score_entries"] > 3


def test_checkpoints_are_written_by_the_clock(recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, save, saved = itertools.count(0, 7), checkpoints.save, [0]
    monkeypatch.setattr("ttsnap.distill.training.time.monotonic", lambda: next(clock))

    def noted(folder: Path, step: int, *rest: Any) -> Path:
        saved.append(step)
        return save(folder, step, *rest)

    monkeypatch.setattr(checkpoints, "save", noted)
    distill(make(recording, steps_per_level=10, checkpoint_every=30), tmp_path / "out")
    assert saved == [*range(0, 40, 5), 40], "30 s are five steps of 7 s"


def test_the_uncertainty_is_learned_and_reported(undisturbed: Path) -> None:
    rows = json.loads((undisturbed / "evaluation.json").read_text())["levels"]
    for row in rows:
        assert 0.2 * row["tiny"]["rmse"] < row["sigma"] < 8 * row["tiny"]["rmse"], row
    assert not torch.equal(load_file(undisturbed / LAST)["average.uncertainty/log_variance"], torch.zeros(11))


def test_readers_in_other_processes_change_nothing(recording: Path, undisturbed: Path, tmp_path: Path) -> None:
    distill(make(recording, loss={"name": "mse-uncertain"}, workers=1, cache=0), tmp_path / "out")
    assert_same(tmp_path / "out", undisturbed)


def test_finished_runs_are_returned_at_once(
    recording: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ttsnap.distill.run.train", None)
    found = distill(make(recording, loss={"name": "mse-uncertain"}, workers=1), undisturbed)
    assert found.to_json() == json.loads((undisturbed / "evaluation.json").read_text())


def test_other_settings_are_refused_and_nothing_is_changed(recording: Path, undisturbed: Path, tmp_path: Path) -> None:
    before = {p: p.read_bytes() for p in undisturbed.rglob("*") if p.is_file()}
    for changes, message in (
        ({"seed": 1}, "seed is 0, not 1"),
        ({"loss": {"name": "mse"}}, r'loss\.name is "mse-uncertain", not "mse"'),
        ({"loss": {"name": "mse-uncertain"}, "lr": 0.02}, r"lr is 0\.01, not 0\.02"),
    ):
        with pytest.raises(ValueError, match=f"holds a run with other settings: .*{message}.*choose another folder"):
            distill(make(recording, **{"loss": {"name": "mse-uncertain"}, **changes}), undisturbed)
    assert {p: p.read_bytes() for p in undisturbed.rglob("*") if p.is_file()} == before
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds other files \(mine\.txt\)"):
        distill(make(recording), tmp_path)
    # A run that failed before it began may be mended.
    out = tmp_path / "mended"
    with pytest.raises(ValueError, match="unknown reward 'magic'"):
        distill(make(recording, reward="magic"), out)
    assert distill(make(recording, steps_per_level=1), out).names == ("brightness", "tiny")
    # A checkpoint carried over from another run.
    out = tmp_path / "out"
    (out / "checkpoints").mkdir(parents=True)
    save_settings(make(recording), out / "config.yaml")
    (undisturbed / "checkpoints" / "00000159").rename(out / "checkpoints" / "00000159")
    try:
        with pytest.raises(ValueError, match=r"00000159 is of a run with other settings: config\.loss\.name is"):
            distill(make(recording), out)
    finally:
        (out / "checkpoints" / "00000159").rename(undisturbed / "checkpoints" / "00000159")


def test_truncated_and_damaged_checkpoints_fall_back(
    recording: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make(recording, steps=[2, 3], checkpoint_every=0)
    distill(config, tmp_path / "whole")
    out, average = tmp_path / "out", Weights.follow
    calls = 0

    def interrupted(*args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 60:
            raise KeyboardInterrupt
        average(*args)

    monkeypatch.setattr(Weights, "follow", interrupted)
    with pytest.raises(KeyboardInterrupt):
        distill(config, out)
    monkeypatch.undo()
    assert [p.name for p in sorted((out / "checkpoints").iterdir())] == ["00000058", "00000059"]
    path = out / "checkpoints" / "00000059" / "optimizer.bin"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    distill(config, out)
    assert "00000059 is damaged (its files are not those that were written)" in caplog.text
    assert_same(out, tmp_path / "whole", Path("checkpoints/00000080/model.safetensors"))


def test_all_checkpoints_damaged_starts_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for step in (10, 20, 30):
        checkpoints.save(tmp_path, step, lambda folder: (folder / "a").write_text("some"), {"k": 1})
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["00000020", "00000030"]
    assert checkpoints.latest(tmp_path, {"k": 1}) == (30, tmp_path / "00000030")
    (tmp_path / "00000030" / "state.json").unlink()
    (tmp_path / "00000020" / "a").write_text("same")
    assert checkpoints.latest(tmp_path, {"k": 1}) is None
    assert caplog.text.count("is damaged") == 2
    assert checkpoints.latest(tmp_path / "nowhere", {}) is None
    (tmp_path / "00000030" / "state.json").write_text('{"step": 30, "sha256": "0", "about": {}}')
    with pytest.raises(ValueError, match=r"00000030 is of ttsnap 0\.1; end the run with that version"):
        checkpoints.latest(tmp_path, {})


class Hostile:
    """What runs where a pickle is trusted."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_checkpoint_runs_nothing(recording: Path, tmp_path: Path) -> None:
    distill(config := make(recording, steps_per_level=1), out := tmp_path / "out")
    shutil.rmtree(out / "reward")
    (out / "evaluation.json").unlink()
    about = json.loads((path := out / "checkpoints" / "00000004" / "state.json").read_text())
    torch.save(Hostile(tmp_path / "ran"), path.with_name("optimizer.bin"))
    path.write_text(json.dumps({**about, "files": {"optimizer.bin": sha256(path.with_name("optimizer.bin"))}}))
    with pytest.raises(ValueError, match=r"cannot resume from .*00000004"):
        distill(config, out)
    assert not (tmp_path / "ran").exists()


def test_targets_are_kept_and_a_nan_is_named(recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, out = make(recording, reward=f"{WORLD}:Broken", batch_size=4), tmp_path / "out"
    for _ in range(2):
        with pytest.raises(ValueError, match=r"'.*:Broken' gave nan for prompt 'prompt 2', seed 8, step 4"):
            distill(config, out)
    kept = (out / "targets.safetensors").stat().st_size
    assert kept > 4 * 8 * 4
    with pytest.raises(ValueError, match="do not vary within any prompt: nothing to learn"):
        distill(make(recording, reward=f"{WORLD}:Constant"), tmp_path / "constant")
    # Targets of other data.
    other = write_recording(tmp_path / "other", prompts=12, seeds=8, offset=40)
    with pytest.raises(ValueError, match=r"targets\.safetensors holds targets of other data: data is"):
        distill(make(other, reward=f"{WORLD}:Broken", batch_size=4), out)
    assert (out / "targets.safetensors").stat().st_size == kept


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"group_size": 9}, "group_size is 9, but a prompt has 8 seeds"),
        ({"steps": [1, 7]}, r"step 7 was not recorded; these were: \[0, 1, 2, 3\]"),
        ({"student": {"kind": "nowhere.py:Student"}}, "cannot load student .*no such file: nowhere.py"),
        ({"student": {"kind": f"{WORLD}:Nothing"}}, "cannot load student .*Nothing"),
        ({"student": {"kind": f"{WORLD}:TinyStudent", "options": {"depth": 3}}}, "takes no depth; it takes base, "),
        (
            {"student": {"kind": f"{WORLD}:Diverging"}, "loss": {"centred": False}},
            "the loss is inf at step 1: lower lr",
        ),
        ({"student": {"kind": f"{WORLD}:TinyStudent", "space": "latents"}}, "holds no latents; record .* --latents"),
        ({"reward": "magic"}, "unknown reward 'magic'"),
        ({"validation": 0.99}, "leaves none to train on"),
    ],
    ids=str,
)
def test_bad_input_is_refused(recording: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        distill(make(recording, **changes), tmp_path / "out")


def test_trackers_that_are_not_installed(recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TRACKERS, "trackio", ("no_such_module",))
    with pytest.raises(ValueError, match="the tracker trackio is not installed: pip install no_such_module"):
        distill(make(recording, trackers=["trackio"]), tmp_path / "out")


def test_trackers_get_the_settings_and_the_figures_of_every_step(
    recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Tracked(Accelerator):
        """With a tracker."""

        logged: ClassVar[list[Any]] = []

        def __init__(self, log_with: list[str], project_dir: str, **options: Any) -> None:
            super().__init__(**options)
            self.logged += [log_with, Path(project_dir)]
            self.trackers = [self]

        def init_trackers(self, name: str, config: dict[str, Any]) -> None:
            self.logged.append(config)

        def log(self, figures: dict[str, Any], step: int) -> None:
            self.logged.append((step, sorted(figures)))

        def finish(self) -> None:
            self.logged.append("finished")

    monkeypatch.setitem(TRACKERS, "trackio", ("json",))
    monkeypatch.setattr("accelerate.Accelerator", Tracked)
    out = tmp_path / "out"
    distill(make(recording, trackers=["trackio"], steps_per_level=1), out)
    names, folder, config, *steps, last = Tracked.logged
    assert (names, folder, last) == (["trackio"], out, "finished")
    assert (config["loss.name"], config["lr"], config["recordings"]) == ("mse", 0.01, str((str(recording),)))
    assert steps == [(step, ["level", "loss", "lr", "seconds"]) for step in (1, 2, 3, 4)]


def plan_of(config: DistillConfig, frames: Frames) -> Curriculum:
    targets = [np.random.default_rng(p).normal(size=n) for p, n in enumerate(frames.seeds)]
    kept, _ = held_out(frames.prompts, config.validation, config.seed)
    return Curriculum(stages(frames.steps, config.order, config.steps_per_level), tuple(kept), targets, 1.0)


def test_parts_and_processes_share_a_step_between_them(recording: Path) -> None:
    frames = Frames([recording])
    whole = make(recording)
    plan = plan_of(whole, frames)
    parts = make(recording, accumulation=2)
    for step in (0, 70, 159):
        everything = Batches(frames, plan, whole).groups(step)
        assert len(everything) == 4
        shares = [Batches(frames, plan, parts, rank, 2).groups(2 * step + part) for rank in (0, 1) for part in (0, 1)]
        assert [len(share) for share in shares] == [1, 1, 1, 1]
        assert sorted((g for share in shares for g in share), key=str) == sorted(everything, key=str)
    x, prompts, level, target = Batches(frames, plan, whole)[70]
    groups = Batches(frames, plan, whole).groups(70)
    assert x.shape == (16, 3, 6, 6)
    assert target.shape == (4, 4)
    assert prompts[4:8] == [frames.prompts[groups[1].prompt]] * 4
    assert level[4:8].tolist() == [frames.levels[groups[1].step]] * 4
    np.testing.assert_allclose(target[1], plan.targets[groups[1].prompt][list(groups[1].seeds)], rtol=1e-6)


def test_students_hear_of_stages_also_after_a_restart(recording: Path, tmp_path: Path) -> None:
    """One network per level: each starts from the one before, and only its own level trains it."""
    config = make(recording, student={"kind": f"{WORLD}:PerLevel"}, earlier=0.0, checkpoint_every=0, span="level")
    distill(config, tmp_path / "whole")
    state = load_file(tmp_path / "whole" / LAST)
    names = [name for name in state if name.startswith("parameter.0/")]
    first, last = ([state[n.replace(".0/", f".{i}/")] for n in names] for i in (0, 3))
    assert not any(torch.equal(a, b) for a, b in zip(first, last, strict=True))
    moments = torch.load((tmp_path / "whole" / LAST).with_name("optimizer.bin"), weights_only=True)["state"]
    assert {int(moment["step"]) for moment in moments.values()} == {40}
    lrs = [line["lr"] for line in metrics(tmp_path / "whole")]
    assert lrs[:40] == lrs[40:80] == lrs[120:]
    average, calls = Weights.follow, 0

    def interrupted(*args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 95:
            raise KeyboardInterrupt
        average(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Weights, "follow", interrupted)
        with pytest.raises(KeyboardInterrupt):
            distill(config, tmp_path / "out")
    distill(config, tmp_path / "out")
    assert_same(tmp_path / "out", tmp_path / "whole")


@pytest.mark.parametrize("changes", [
    {"order": "uniform", "schedule": "cosine"},
    {"order": "noisy-to-clean", "schedule": "linear", "ema": 0},
    {"loss": {"name": "pairwise", "temperature": 0.5}, "accumulation": 2},
    {"loss": {"centred": False, "plain": 0.0}, "student": {"kind": f"{WORLD}:TinyStudent", "space": "latents"}},
], ids=str)  # fmt: skip
def test_every_order_and_loss_learns(with_latents: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    found = distill(make(with_latents, **changes), tmp_path / "out")
    for row in found.rows[1:]:
        assert row["tiny"]["spearman"] > row["brightness"]["spearman"] + 0.1, row


@pytest.mark.parametrize(
    ("key", "scores"),
    [("targets", np.zeros(5)), ("targets", np.zeros((2, 2))), ("targets", np.full(2, np.nan)), ("unit", np.zeros(4))],
)
def test_damaged_targets_are_one_sentence(key: str, scores: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "targets.safetensors"
    path.write_bytes(packed(scores, key, {}))
    with pytest.raises(ValueError, match=r"targets\.safetensors is damaged: .*; remove it, and the targets"):
        KeptNumbers(path, "targets", {}, 4)
    path.write_bytes(packed(np.arange(4.0), "targets", {}))
    assert KeptNumbers(path, "targets", {}, 4).numbers.tolist() == [0, 1, 2, 3]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="; remove it, and the targets"):
        KeptNumbers(path, "targets", {}, 4)
