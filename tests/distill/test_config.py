"""Configurations: checked, and the same after a round trip."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from ttsnap.distill.config import DistillConfig
from ttsnap.files.plain_yaml import load_settings, save_settings
from ttsnap.files.settings import build, to_json
from ttsnap.options.option import determining

GOOD: dict[str, Any] = {"recordings": ["r"], "reward": "brightness"}


def test_round_trip_and_what_determines(tmp_path: Path) -> None:
    student = {"kind": "dora", "options": {"a": 1}}
    config = build(DistillConfig, {**GOOD, "levels": [1.0, 0.5], "student": student, "loss": {"name": "pairwise"}})
    save_settings(config, tmp_path / "c.yaml")
    assert load_settings(DistillConfig, tmp_path / "c.yaml") == config
    moved = build(DistillConfig, {**to_json(config), "recordings": ["elsewhere"], "workers": 2})
    assert determining(moved) == determining(config)
    assert determining(build(DistillConfig, {**to_json(config), "seed": 1})) != determining(config)
    (tmp_path / "c.yaml").write_text("recordings: [r]\nreward: brightness\nlr: 1e-4\nvalidation: 0\n")
    config = load_settings(DistillConfig, tmp_path / "c.yaml")
    assert (config.lr, config.validation) == (1e-4, 0.0)  # YAML reads the first as a text


@pytest.mark.parametrize(("changes", "message"), [
    ({"reward": ""}, "reward is missing"),
    ({"recordings": []}, "no data"),
    ({"order": "random"}, "unknown order 'random'"),
    ({"loss": {"name": "l1"}}, "unknown loss.name 'l1'"),
    ({"loss": {"temperature": 0}}, "loss.temperature must be above 0, got 0"),
    ({"student": {"kind": "head"}}, "unknown student.kind 'head'"),
    ({"student": {"space": "latents"}}, "reads pixels, not latents"),
    ({"student": {"per_level": True}}, "student.per_level"),
    ({"order": "uniform", "lr": [1.0, 0.5]}, "order uniform"),
    ({"student": {"rank": 0}}, "student.rank must be at least 1, got 0"),
    ({"earlier": 1.5}, "earlier must be at most 1, got 1.5"),
    ({"validation": 1}, "validation must be below 1, got 1"),
    ({"steps": []}, "at least one, got []"),
    ({"steps": [1, 1]}, "got [1, 1]"),
    ({"steps": [1], "levels": [0.5]}, "steps or levels"),
    ({"groups": 3, "accumulation": 2}, "groups (3) must be a multiple of accumulation (2)"),
    ({"group_size": 1}, "group_size must be 2"),
    ({"trackers": ["mlflow"]}, "unknown trackers[0] 'mlflow'"),
], ids=str)  # fmt: skip
def test_bad_values_are_refused_with_the_value(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        build(DistillConfig, {**GOOD, **changes})
