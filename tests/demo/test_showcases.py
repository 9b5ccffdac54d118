"""Every button of the page with a prompt, on the models' whole weights, in both dtypes that a CPU
may take."""

from __future__ import annotations

import re
from functools import cache

import pytest

from ttsnap.cli import common, demo
from ttsnap.demo.form import DemoLimits, examples, read
from ttsnap.demo.live import stream
from ttsnap.demo.panels import Hand
from ttsnap.demo.worker import Models

from .conftest import FIELDS

OFFER = demo.catalog_of(demo.parser().parse_args([]))
MARK = re.compile(r'class="tt-best">.*?tt-(right|wrong)')


@cache
def models(dtype):
    return Models(
        lambda name, task=None: common.load_model(name, "cpu", dtype, task=task), demo.judge_of
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("example", examples(OFFER), ids=lambda example: example["prompt"])
def test_a_button_shows_what_it_was_chosen_for(example, dtype, tmp_path):
    if example["model"] == "signs":
        pytest.importorskip("rapidocr")
    limits = DemoLimits()
    asked = read({**FIELDS, "steps": 20, **example}, OFFER, limits)
    frames = list(stream(asked, models(dtype), limits, Hand(), tmp_path, compare=True))
    last = frames[-1]
    assert last.status == "done"
    if "seed" in example:
        assert MARK.findall(last.stage) == ["right", "wrong"], "best-of-N's comes second"
