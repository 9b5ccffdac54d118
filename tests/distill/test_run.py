"""The whole pipeline on a synthetic recording with a known answer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from ttsnap.distill.config import DistillConfig
from ttsnap.distill.evaluate import Evaluation
from ttsnap.distill.run import base_below, distill, read_evaluation

from .world import TinyStudent, settings, write_recording


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recording(tmp_path_factory.mktemp("world") / "r")


def test_ranks_of_noisy_estimates_rise_well_above_the_base(recording: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    config = DistillConfig.from_dict(settings(recording))
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
    assert read_evaluation(out / "evaluation.json").to_json() == found.to_json()
    assert DistillConfig.load(out / "config.yaml") == config
    assert (out / "spearman.png").read_bytes()[:4] == b"\x89PNG"
    # What was exported is what was evaluated, not the last weights.
    student = TinyStudent.load(out / "reward")
    assert sorted(p.name for p in (out / "checkpoints").iterdir()) == ["00000150", "00000160"]
    from safetensors.torch import load_file

    state = load_file(out / "checkpoints" / "00000160" / "state.safetensors")
    for name, p in student.trainable().items():
        assert torch.equal(p, state[f"average/{name}"])
        assert not torch.equal(p, state[f"parameter/{name}"])


@pytest.mark.parametrize(
    ("base", "student", "level"),
    [([0.9, 0.8, 0.2], [0.8, 0.8, 0.5], 0.4), ([0.9, 0.8, 0.2], [0.95, 0.7, 0.1], 0.0), ([0.9] * 3, [0.1] * 3, 0.8)],
)
def test_the_base_keeps_the_levels_that_it_ranks_as_well(base: list[float], student: list[float], level: float) -> None:
    levels = (0.2, 0.4, 0.8)
    rows = [
        {"level": v, "base": {"spearman": b}, "na": {"spearman": s}}
        for v, b, s in zip(levels, base, student, strict=True)
    ]
    assert base_below(Evaluation(tuple(reversed(rows)), ("base", "na"), 4, 4, True)) == level
