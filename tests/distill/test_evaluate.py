"""Measures against known answers, and where a student is used."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ttsnap.distill import report
from ttsnap.distill.data import Frames
from ttsnap.distill.evaluate import Evaluation, evaluate, measure
from ttsnap.distill.run import base_below, exported

from .world import Brightness, estimate, write_recording

NAN = float("nan")


def test_measures_of_known_predictions():
    final = np.random.default_rng(0).normal(size=(5, 16))
    perfect = measure(final, final)
    ranks = (
        "spearman",
        "kendall",
        "top_accuracy",
        "top_regret",
        "slope",
        "intercept",
        "r2",
        "rmse",
    )
    assert [perfect[key] for key in ranks] == pytest.approx([1, 1, 1, 0, 1, 0, 1, 0], abs=1e-12)
    shrunk = measure(0.5 * final + 3, final)  # right order, other scale
    assert [shrunk[key] for key in ranks[:7]] == pytest.approx([1, 1, 1, 0, 2, -6, 0.75], abs=1e-9)
    backwards = measure(-final, final)
    assert (backwards["spearman"], backwards["r2"]) == pytest.approx((-1, -3))
    # a prompt's mean does not matter within it
    offset = measure(final + np.arange(5)[:, None], final)
    assert (offset["spearman"], offset["r2"]) == pytest.approx((1, 1))
    assert offset["rmse"] == pytest.approx(math.sqrt(np.mean(np.arange(5) ** 2)))
    constant = measure(np.zeros((5, 16)), final)
    assert math.isnan(constant["spearman"])
    assert math.isnan(constant["slope"])
    assert constant["r2"] == pytest.approx(0, abs=1e-12)


def test_rewards_on_recorded_estimates(tmp_path):
    frames = Frames([write_recording(tmp_path / "r", prompts=4, seeds=6)])
    answers = {}
    for p, s, k in np.ndindex(4, 6, 4):
        image = torch.from_numpy(np.round(estimate(p, s, k) * 255).astype(np.uint8)).float() / 255
        answers[image.numpy().tobytes()] = estimate(p, s, 4).mean()
    finals = [np.array([estimate(p, s, 4).mean() for s in range(6)]) for p in (1, 3)]

    def knows(images, prompts, level):
        assert level.shape == (len(images),)
        return torch.tensor([answers[i.numpy().tobytes()] for i in images])

    found = evaluate(
        {"brightness": Brightness(), "knows": knows}, finals, frames, [1, 3], [0, 2], batch_size=5
    )
    assert [row["level"] for row in found.rows] == [0.5, 1.0]
    for row in found.rows:
        assert row["knows"]["spearman"] == pytest.approx(1)
        assert row["knows"]["rmse"] == pytest.approx(0, abs=1e-6)
        assert row["brightness"]["spearman"] < 0.99
    text = report.table(found)
    head = "noise step reward Spearman Kendall best kept regret R2 slope RMSE"
    assert text.splitlines()[0].replace("|", " ").split() == head.split()
    assert "2 held-out prompts x 6 seeds" in text
    report.plot(found, tmp_path / "p.png")
    assert (tmp_path / "p.png").stat().st_size > 1000
    for reward, prompts, said in (
        (
            lambda x, *_: torch.full((len(x),), NAN),
            [1, 3],
            r"'r' gave nan for prompt 'prompt 1', seed 5, step 2",
        ),
        (lambda *_: torch.zeros(1), [1, 3], r"scores of shape \(1,\) for 12 images"),
        (None, [], "no prompts"),
    ):
        with pytest.raises(ValueError, match=said):
            evaluate({"r": reward}, finals, frames, prompts, [2])


def ranked(base, student, held_out=True):
    """An evaluation with these rank correlations at the noise levels .2, .4 and .8."""
    rows = [
        {"step": k, "level": v, "base": {"spearman": b}, "na": {"spearman": s}}
        for k, v, b, s in zip((8, 6, 2), (0.2, 0.4, 0.8), base, student, strict=True)
    ]
    return Evaluation(("base", "na"), 4, 4, held_out, rows=tuple(rows))


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
def test_the_base_keeps_the_levels_that_it_ranks_as_well(base, student, level):
    assert base_below(ranked(base, student)) == level


def test_what_is_exported_is_told_from_what_was_trained():
    raw = ranked([0.9, 0.8, 0.2], [0.7, 0.6, 0.5])
    found = exported(raw, base_below(raw))
    assert [row["na"]["spearman"] for row in found.rows] == [0.9, 0.8, 0.5]
    unused = [row.get("unused") for row in found.rows]
    assert unused == [{"spearman": 0.7}, {"spearman": 0.6}, None]
    assert found.rows[2] == raw.rows[2]
    nowhere = ranked([0.9, 0.8, 0.2], [0.7, 0.6, NAN])
    assert nowhere.to_json()["levels"][2]["na"]["spearman"] is None
    blind = ranked([0.9] * 3, [0.1] * 3, held_out=False)
    for evaluation, *said in (
        (found, "above noise 0.400", "(Spearman at 0.400: 0.800, against 0.600 "),
        (
            exported(nowhere, base_below(nowhere)),
            "at no noise level",
            "(Spearman at 0.800: 0.200, against - ",
        ),
        (exported(raw, 0.0), "na uses what was trained at every noise level"),
        (exported(blind, 0.0), "at every noise level, as no prompt was held out"),
    ):
        assert all(text in report.usage(evaluation) for text in said)
