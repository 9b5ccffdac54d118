"""Configurations: checked, and the same after a round trip."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from ttsnap.distill.config import DistillConfig
from ttsnap.files.plain_yaml import load_settings, save_settings
from ttsnap.files.settings import build, to_json
from ttsnap.options.option import determining, options_of

GOOD: dict[str, Any] = {"recordings": ["r"], "reward": "brightness"}


def test_round_trip_and_what_determines(tmp_path: Path) -> None:
    config = build(
        DistillConfig,
        {**GOOD, "levels": [1.0, 0.5], "student": {"kind": "dora", "options": {"a": 1}}, "loss": {"name": "pairwise"}},
    )
    save_settings(config, tmp_path / "c.yaml")
    assert load_settings(DistillConfig, tmp_path / "c.yaml") == config
    moved = build(DistillConfig, {**to_json(config), "recordings": ["elsewhere"], "workers": 2})
    assert determining(moved) == determining(config)
    assert determining(build(DistillConfig, {**to_json(config), "seed": 1})) != determining(config)


def test_yaml_reads_1e_minus_4_as_text(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("recordings: [r]\nreward: brightness\nlr: 1e-4\nvalidation: 0\n")
    config = load_settings(DistillConfig, tmp_path / "c.yaml")
    assert (config.lr, config.validation) == (1e-4, 0.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reward": ""}, "reward is missing"),
        ({"recordings": []}, "no data"),
        ({"order": "random"}, "unknown order 'random'"),
        ({"schedule": "step"}, "unknown schedule 'step'"),
        ({"loss": {"name": "l1"}}, "unknown loss.name 'l1'"),
        ({"loss": {"temperature": 0}}, "loss.temperature must be above 0, got 0"),
        ({"student": {"kind": "adapter"}}, "unknown student.kind 'adapter'"),
        ({"student": {"kind": "head"}}, "unknown student.kind 'head'"),
        ({"student": {"space": "latents"}}, "student.kind 'lora' reads pixels, not latents"),
        ({"student": {"per_level": True}}, "student.per_level is for student.kind full"),
        ({"order": "uniform", "lr": [1.0, 0.5]}, "order uniform trains all levels at once"),
        ({"student": {"rank": 0}}, "student.rank must be at least 1, got 0"),
        ({"lr": 0}, "lr must be above 0, got 0"),
        ({"groups": True}, "groups must be a whole number, got True"),
        ({"lr": float("nan")}, "lr must be a finite number, got nan"),
        ({"earlier": 1.5}, "earlier must be at most 1, got 1.5"),
        ({"validation": 1}, "validation must be below 1, got 1"),
        ({"steps": []}, "steps must be different numbers, at least one, got []"),
        ({"steps": [1, 1]}, "steps must be different numbers, at least one, got [1, 1]"),
        ({"steps": [1], "levels": [0.5]}, "steps or levels, not both"),
        ({"groups": 3, "accumulation": 2}, "groups (3) must be a multiple of accumulation (2)"),
        ({"group_size": 1}, "group_size must be 2 or more"),
        ({"trackers": ["mlflow"]}, "unknown trackers[0] 'mlflow'"),
        ({"precision": "fp16"}, "unknown precision 'fp16'"),
        ({"span": "stage"}, "unknown span 'stage'"),
    ],
    ids=str,
)
def test_bad_values_are_refused_with_the_value(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        build(DistillConfig, {**GOOD, **changes})


def test_files_that_are_no_configuration(tmp_path: Path) -> None:
    for text, message in (("[1]", "holds no configuration"), ("a: [", "cannot read"), ("lr: 1", "reward is missing")):
        (tmp_path / "c.yaml").write_text(text)
        with pytest.raises(ValueError, match=f"c.yaml.*{message}|{message}.*c.yaml"):
            load_settings(DistillConfig, tmp_path / "c.yaml")


def test_every_option_has_a_help_text() -> None:
    assert all(option.text for option in options_of(DistillConfig))
