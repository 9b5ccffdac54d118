"""The whole pipeline on a synthetic recording with a known answer."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from ttsnap.distill import report, run
from ttsnap.distill.config import DistillConfig
from ttsnap.distill.evaluate import Evaluation
from ttsnap.distill.run import base_below, distill, exported
from ttsnap.distill.training import Loop
from ttsnap.files.plain_yaml import load_settings
from ttsnap.files.settings import build

from .kills import ended, killed
from .world import TinyStudent, settings, write_recording

NAN = float("nan")


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recording(tmp_path_factory.mktemp("world") / "r")


def test_ranks_of_noisy_estimates_rise_well_above_the_base(recording: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    config = build(DistillConfig, settings(recording))
    found = distill(config, out)
    noisiest = found.rows[-1]
    assert (noisiest["level"], found.names, found.held_out) == (1.0, ("brightness", "tiny"), True)
    print(json.dumps(found.to_json(), indent=1))
    for row in found.rows[1:]:
        assert row["tiny"]["spearman"] > row["brightness"]["spearman"] + 0.15, row
        assert row["tiny"]["spearman"] > 0.85
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 161))
    assert [lines[i]["level"] for i in (0, 40, 80, 120, 159)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert Evaluation.read(out / "evaluation.json").to_json() == found.to_json()
    assert load_settings(DistillConfig, out / "config.yaml") == config
    assert (out / "spearman.png").read_bytes()[:4] == b"\x89PNG"
    # What was exported is what was evaluated, not the last weights.
    student = TinyStudent.load(out / "reward")
    assert sorted(p.name for p in (out / "checkpoints").iterdir()) == ["00000160"]
    from safetensors.torch import load_file

    state = load_file(out / "checkpoints" / "00000160" / "model.safetensors")
    for name, p in student.trainable().items():
        assert torch.equal(p, state[f"average.{name.replace('.', '/')}"])
        assert not torch.equal(p, state[f"parameter.{name.replace('.', '/')}"])


@pytest.mark.parametrize(
    ("base", "student", "level"),
    [
        ([0.9, 0.8, 0.2], [0.8, 0.8, 0.5], 0.4),
        ([0.9, 0.8, 0.2], [0.95, 0.7, 0.1], 0.0),
        ([0.9] * 3, [0.1] * 3, 1.0),  # at noisier levels than were measured, too
        ([0.2, -0.8, NAN], [NAN, NAN, 0.1], 0.4),  # a collapsed student ranks nothing
        ([0.2, NAN, NAN], [NAN, NAN, NAN], 1.0),
    ],
)
def test_the_base_keeps_the_levels_that_it_ranks_as_well(base: list[float], student: list[float], level: float) -> None:
    assert base_below(ranked(base, student)) == level


def ranked(base: list[float], student: list[float], held_out: bool = True) -> Evaluation:
    """An evaluation with these rank correlations at the noise levels .2, .4 and .8."""
    rows = [
        {"step": k, "level": v, "base": {"spearman": b}, "na": {"spearman": s}, "sigma": 0.1}
        for k, v, b, s in zip((8, 6, 2), (0.2, 0.4, 0.8), base, student, strict=True)
    ]
    return Evaluation(("base", "na"), 4, 4, held_out, rows=tuple(rows))


def test_what_is_exported_is_told_from_what_was_trained() -> None:
    raw = ranked([0.9, 0.8, 0.2], [0.7, 0.6, 0.5])
    found = exported(raw, base_below(raw))
    assert [row["na"]["spearman"] for row in found.rows] == [0.9, 0.8, 0.5]
    assert [row.get("unused") for row in found.rows] == [
        {"spearman": 0.7, "sigma": 0.1}, {"spearman": 0.6, "sigma": 0.1}, None
    ]  # fmt: skip
    assert found.rows[2] == raw.rows[2]
    assert "above noise 0.400" in (said := report.usage(found))
    assert "(Spearman at 0.400: 0.800, against 0.600 " in said
    nowhere = ranked([0.9, 0.8, 0.2], [0.7, 0.6, NAN])
    assert "at no noise level" in (said := report.usage(exported(nowhere, base_below(nowhere))))
    assert "(Spearman at 0.800: 0.200, against - " in said
    assert report.usage(exported(raw, 0.0)) == "na uses what was trained at every noise level"
    blind = exported(ranked([0.9] * 3, [0.1] * 3, held_out=False), 0.0)
    assert "at every noise level, as no prompt was held out" in report.usage(blind)
    assert report.usage(raw) == ""


@pytest.fixture(scope="module")
def quick(recording: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[DistillConfig, dict[str, Any]]:
    """A run of eight steps, and what it leaves undisturbed."""
    changes = {"steps_per_level": 2, "checkpoint_every": 0, "warmup": 1, "group_size": 2}
    config = build(DistillConfig, settings(recording, **changes))
    out = tmp_path_factory.mktemp("quick") / "out"
    distill(config, out)
    return config, left_by(out)


def left_by(out: Path) -> dict[str, Any]:
    """Every file of a run: its bytes, of the metrics all but the seconds. Of checkpoints the last two, as one that is
    older may be left where there was no time to remove it."""
    old = sorted((out / "checkpoints").iterdir())[:-2]
    paths = [p for p in out.rglob("*") if p.is_file() and p.name != "spearman.png" and p.parent not in old]
    files = {str(p.relative_to(out)): p.read_bytes() for p in paths}
    lines = [json.loads(line) for line in files.pop("metrics.jsonl").splitlines()]
    return {**files, "metrics": [{**line, "seconds": 0} for line in lines]}


@pytest.mark.parametrize("seed", range(3))
def test_killed_again_and_again_a_run_ends_as_an_undisturbed_one(quick: Any, tmp_path: Path, seed: int) -> None:
    config, expected = quick
    assert ended(lambda: distill(config, tmp_path / "out"), tmp_path, seed) >= 2
    assert left_by(tmp_path / "out") == expected


@pytest.mark.slow
def test_killed_at_any_moment_a_run_ends_as_an_undisturbed_one(quick: Any, tmp_path: Path) -> None:
    config, expected = quick
    for moment in itertools.count(1):
        out = tmp_path / str(moment)
        if not killed(lambda out=out: distill(config, out), out, moment):  # type: ignore[misc]
            break
        distill(config, out)
        assert left_by(out) == expected
    assert moment > 40


def test_a_second_run_in_the_folder_is_refused_and_the_first_goes_on(
    recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = build(DistillConfig, settings(recording, steps_per_level=5, checkpoint_every=0))
    distill(config, tmp_path / "alone")
    save, calls = Loop.save, []

    def meanwhile(self: Loop, folder: Path) -> None:
        save(self, folder)
        calls.append(folder)
        if len(calls) == 2:  # while the first one's checkpoint lies there half made
            with pytest.raises(ValueError, match=rf"another process is writing to .*out \(process {os.getpid()} on "):
                distill(config, tmp_path / "out")

    monkeypatch.setattr(Loop, "save", meanwhile)
    distill(config, tmp_path / "out")
    monkeypatch.undo()
    assert len(calls) == 20
    names = [p.relative_to(tmp_path / "alone") for p in (tmp_path / "alone").rglob("*") if p.is_file()]
    assert sorted(names) == sorted(
        p.relative_to(tmp_path / "out") for p in (tmp_path / "out").rglob("*") if p.is_file()
    )
    for name in names:
        if name.suffix in (".safetensors", ".bin") or name.name == "evaluation.json":
            assert (tmp_path / "alone" / name).read_bytes() == (tmp_path / "out" / name).read_bytes(), name


def test_two_starts_at_once_do_not_mix_their_settings(
    recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one runs when this one has just found the folder free."""
    mine, others = (build(DistillConfig, settings(recording, steps_per_level=n)) for n in (2, 1))
    check, begun = run.check_out, []

    def slow(config: DistillConfig, out: Path) -> None:
        check(config, out)
        if not begun:
            begun.append(True)
            distill(others, out)

    monkeypatch.setattr(run, "check_out", slow)
    with pytest.raises(ValueError, match=r"holds a run with other settings: steps_per_level is 1, not 2"):
        distill(mine, tmp_path / "out")
    assert load_settings(DistillConfig, tmp_path / "out" / "config.yaml") == others
