"""What a draft.json may say, and where the calls of a guess are made: closed forms in float64."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ttsnap.sampling.drafts import (
    HOT_SETTINGS,
    Checked,
    DraftSettings,
    TrainedFor,
    call_times,
    guess,
    read_draft,
    unchecked,
    write_draft,
)
from ttsnap.sampling.interpolants import Interpolant, Linear, rows
from ttsnap.sampling.paths import INTERPOLANTS

WHOLE: dict[str, Any] = {
    "format": 1,
    "first_time": 0.87,
    "guidance": None,
    "trained_for": {"model": "someone/model", "steps": 20, "guidance_scale": 4.0, "path": "linear"},
    "checked": [{"model": "someone/model", "steps": 20, "guidance_scale": 4, "figures": {"spearman": 0.43}}],
}


def test_calls_are_spread_evenly_down_to_the_end_and_only_the_first_is_told_another_time() -> None:
    start = torch.tensor([1.0, 0.6], dtype=torch.float64)
    plan = [(t.tolist(), told.tolist()) for t, told in call_times(start, 3, 0.5)]
    assert plan == [
        ([1.0, 0.6], [0.5, 0.3]),
        (pytest.approx([2 / 3, 0.4]), pytest.approx([2 / 3, 0.4])),
        (pytest.approx([1 / 3, 0.2]), pytest.approx([1 / 3, 0.2])),
    ]
    for calls in (0, -1, 17):
        with pytest.raises(ValueError, match=f"from 1 to 16 calls, got {calls}"):
            call_times(start, calls, 1.0)


@pytest.mark.parametrize("path", INTERPOLANTS.values(), ids=INTERPOLANTS)
def test_two_calls_of_a_linear_network_are_its_closed_form(path: Interpolant) -> None:
    def share(t: Tensor) -> Tensor:  # of x, that the network takes for x0
        return 0.3 + 0.5 * t

    def network(x: Tensor, told: Tensor) -> Tensor:
        return rows(share(told), x) * x

    x = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.9, 0.4], dtype=torch.float64)
    first, half = share(0.87 * t), t / 2
    noise = (1 - path.alpha(t) * first) / path.sigma(t)  # of x, that is taken for noise
    second = share(half) * (path.alpha(half) * first + path.sigma(half) * noise)
    torch.testing.assert_close(guess(path, network, x, t, 1, 0.87), rows(first, x) * x, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(guess(path, network, x, t, 2, 0.87), rows(second, x) * x, rtol=1e-13, atol=1e-13)


def test_a_network_that_knows_the_end_is_believed_however_often_it_is_asked() -> None:
    end = torch.randn(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    told: list[list[float]] = []

    def network(x: Tensor, t: Tensor) -> Tensor:
        told.append(t.tolist())
        return end

    noise, start = torch.ones_like(end), torch.ones(2, dtype=torch.float64)
    assert torch.equal(guess(Linear(), network, noise, start, 4, HOT_SETTINGS.first_time), end)
    assert [row[0] for row in told] == [0.87, 0.75, 0.5, 0.25]


def test_settings_are_read_as_they_were_written(tmp_path: Path) -> None:
    assert read_draft(tmp_path) == DraftSettings()  # a LoRA from elsewhere has none
    (tmp_path / "draft.json").write_text(json.dumps(WHOLE))
    settings = read_draft(tmp_path)
    assert settings == DraftSettings(
        first_time=0.87,
        trained_for=TrainedFor("someone/model", 20, 4.0, "linear"),
        checked=(Checked("someone/model", 20, 4.0, {"spearman": 0.43}),),
    )
    (tmp_path / "again").mkdir()
    write_draft(tmp_path / "again", settings)
    assert read_draft(tmp_path / "again") == settings


@pytest.mark.parametrize(("change", "said"), [
    ({"format": 2}, "it is of format 2; this version of ttsnap reads format 1"),
    ({"format": None}, "format must be a whole number, got None"),
    ({"first_time": 0.0}, r"first_time must be above 0, got 0"),
    ({"guidance": -1.0}, r"guidance must be at least 0"),
    ({"weights": "elsewhere/model"}, r"unknown key\(s\) weights"),
    ({"trained_for": {"steps": 0}}, "steps must be at least 1"),
    ({"trained_for": {"model": "m" * 301}}, "a text of over 300 characters"),
    ({"checked": [{"model": "m"}]}, r"missing key\(s\) checked\[0\]\.steps"),
    ({"checked": [{**WHOLE["checked"][0], "figures": {"rank": "high"}}]}, r"figures\.rank must be a number"),
    ({"checked": [{**WHOLE["checked"][0], "figures": [0.4]}]}, "figures must be"),
    ({"checked": [{**WHOLE["checked"][0], "figures": {str(k): 0 for k in range(101)}}]}, "at most 100 values"),
    ({"checked": WHOLE["checked"] * 1001}, "more than 1,000 checks"),
])  # fmt: skip
def test_files_of_strangers_are_refused_in_a_sentence_that_names_them(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    (tmp_path / "draft.json").write_text(json.dumps({**WHOLE, **change}))
    with pytest.raises(ValueError, match=said) as refusal:
        read_draft(tmp_path)
    assert str(tmp_path / "draft.json") in str(refusal.value)
    assert str(refusal.value).isprintable()


def test_a_draft_is_unchecked_but_for_the_very_model_steps_and_guidance() -> None:
    checked = DraftSettings(checked=(Checked("a/b", 20, 4.0),))
    assert unchecked(checked, "a/b", 20, 4.0) is None
    for here in (("c", 20, 4.0), ("a/b", 28, 4.0), ("a/b", 20, 3.5)):
        assert "it was for a/b at 20 steps and guidance 4" in str(unchecked(checked, *here))
    assert "not checked for a/b at 20 steps and guidance 4: how well" in str(unchecked(HOT_SETTINGS, "a/b", 20, 4.0))
