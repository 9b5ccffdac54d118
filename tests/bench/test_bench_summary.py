"""The numbers of a benchmark against what they are by hand."""

from __future__ import annotations

import math
import re

import pytest

from ttsnap.bench.arms import read_arms
from ttsnap.bench.folder import Found
from ttsnap.bench.prompts import PromptRecord
from ttsnap.bench.report import category_tables, main_tables
from ttsnap.bench.summary import summarize
from ttsnap.files.writing import markdown
from ttsnap.options.sampler import SamplerOptions

ARMS = read_arms(["best-of-n", "svdd"], SamplerOptions())
PROMPTS = [PromptRecord(7 + i, {"prompt": f"p{i}", "tag": "ab"[i % 2]}) for i in range(3)]


def found(arm, index, repeat, score, other=0.5):
    spent = {
        "nfe": 10 * (repeat + 1),
        "decodes": 2,
        "reward_calls": 3,
        "flops": 2e12,
        "seconds": 1.5,
        "previews": 0,
    }
    return Found(arm, repeat, index, 1, 0, score, {"r": score}, {"m": other}, spent)


def lines():
    scores = [[1.0, 3.0], [4.0, 4.0], [0.0, 2.0]]
    images = [found("best-of-n", 7 + i, r, scores[i][r]) for i in range(3) for r in (0, 1)]
    images += [found("svdd", 7 + i, 0, [3.0, 8.0, None][i]) for i in range(3)]
    return summarize(ARMS, PROMPTS, images, False)


def test_means_errors_and_differences_prompt_by_prompt():
    first, second = lines()
    mean = first.scores["r"]
    # By prompt 2, 4, 1: mean 7/3, and the standard deviation of three numbers over the root of 3.
    assert (mean.mean, mean.prompts) == (pytest.approx(7 / 3), 3)
    assert mean.error == pytest.approx(
        math.sqrt(((2 - 7 / 3) ** 2 + (4 - 7 / 3) ** 2 + (1 - 7 / 3) ** 2) / 2 / 3)
    )
    # A score that failed leaves its prompt out: differences 1 and 4.
    gain = second.differences["r"]
    assert (gain.mean, gain.error, gain.prompts) == (2.5, pytest.approx(1.5), 2)
    assert (first.failed, second.failed) == (0, 1)
    assert second.scores["m"].mean == 0.5
    assert first.costs == {
        "NFE": 15.0,
        "decodes": 2.0,
        "reward calls": 3.0,
        "TFLOPs": 2.0,
        "seconds": 1.5,
    }
    assert first.by_category["r"]["a"].mean == 1.5
    alone = first.by_category["r"]["b"]
    assert (alone.mean, alone.prompts) == (4.0, 1)
    assert math.isnan(alone.error)
    assert alone.to_json() == {"mean": 4.0, "error": None, "prompts": 1}


def test_tables_say_what_is_there():
    text = main_tables(lines(), "of three prompts")
    assert "| best-of-n | 2.3333 ± 0.8819 | 0.5000 ± 0.0000 | 15.0 |" in text
    assert "difference to best-of-n, prompt by prompt:" in text
    assert "svdd: 1 scores failed" in text
    assert re.search(r"\| b +\| +1 \| +4.0000 \| +8.0000 \|", category_tables(lines()))
    image = Found("svdd", 0, 7, 1, 0, 3.0, {"r": 1.0, "q": 5.0}, {}, {})
    combined = summarize(ARMS, PROMPTS, [image], True)[1].scores
    assert (list(combined), combined["reward"].mean) == (["reward", "r", "q"], 3.0)
    assert list(summarize(ARMS, PROMPTS, [image], False)[1].scores) == ["r", "q"]
    nothing = summarize(ARMS[:1], PROMPTS[:1], [], False)
    assert category_tables(nothing) == ""
    assert markdown(["a", "b|c"], [["d", "1"]]) == "| a | b\\|c |\n| - | ---: |\n| d |    1 |"
