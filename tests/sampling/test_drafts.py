"""What a draft.json may say, and where the calls of a guess are made: closed forms in float64."""

from __future__ import annotations

import json

import pytest
import torch

from ttsnap.sampling import drafts
from ttsnap.sampling.drafts import (
    HOT_SETTINGS,
    Checked,
    DraftSettings,
    TrainedFor,
    guess,
    read_draft,
    unchecked,
)
from ttsnap.sampling.interpolants import rows
from ttsnap.sampling.paths import INTERPOLANTS

CHECKED = {
    "model": "a/b",
    "steps": 20,
    "guidance_scale": 4,
    "figures": {"spearman": 0.43},
}
TRAINED = {"model": "a/b", "steps": 20, "guidance_scale": 4.0, "path": "linear"}
WHOLE = {
    "format": 1,
    "first_time": 0.87,
    "guidance": None,
    "trained_for": TRAINED,
    "checked": [CHECKED],
}


def test_calls_are_spread_evenly_down_to_the_end_and_only_the_first_is_told_another_time():
    start = torch.tensor([1.0, 0.6], dtype=torch.float64)
    plan = drafts.call_times(start, 3, 0.5)
    torch.testing.assert_close(
        torch.stack([t for t, _ in plan]), start * torch.tensor([[3.0], [2.0], [1.0]]) / 3
    )
    torch.testing.assert_close(
        torch.stack([told for _, told in plan]), start * torch.tensor([[1.5], [2.0], [1.0]]) / 3
    )
    for calls in (0, -1, 17):
        with pytest.raises(ValueError, match=f"got {calls}"):
            drafts.call_times(start, calls, 1.0)


@pytest.mark.parametrize("path", INTERPOLANTS.values(), ids=INTERPOLANTS)
def test_two_calls_of_a_linear_network_are_its_closed_form(path):
    def share(t):  # of x, that the network takes for x0
        return 0.3 + 0.5 * t

    def network(x, told):
        return rows(share(told), x) * x

    x = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.9, 0.4], dtype=torch.float64)
    first, half = share(0.87 * t), t / 2
    noise = (1 - path.alpha(t) * first) / path.sigma(t)  # of x, that is taken for noise
    second = share(half) * (path.alpha(half) * first + path.sigma(half) * noise)
    torch.testing.assert_close(
        guess(path, network, x, t, 1, 0.87), rows(first, x) * x, rtol=1e-13, atol=1e-13
    )
    torch.testing.assert_close(
        guess(path, network, x, t, 2, 0.87), rows(second, x) * x, rtol=1e-13, atol=1e-13
    )


def test_settings_are_read_as_they_were_written(tmp_path):
    assert read_draft(tmp_path) == DraftSettings()  # a LoRA from elsewhere has none
    (tmp_path / "draft.json").write_text(json.dumps(WHOLE))
    settings = read_draft(tmp_path)
    trained, checked = (
        TrainedFor("a/b", 20, 4.0, "linear"),
        Checked("a/b", 20, 4.0, {"spearman": 0.43}),
    )
    assert settings == DraftSettings(first_time=0.87, trained_for=trained, checked=(checked,))
    drafts.write_draft(tmp_path, settings)
    assert read_draft(tmp_path) == settings


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 2}, "format 2"),
        ({"format": None}, "format .*got None"),
        ({"first_time": 0.0}, "first_time .*got 0"),
        ({"guidance": -1.0}, "guidance"),
        ({"weights": "elsewhere/model"}, "weights"),
        ({"trained_for": {"steps": 0}}, "steps"),
        ({"trained_for": {"model": "m" * 301}}, "300 characters"),
        ({"checked": [{"model": "m"}]}, r"checked\[0\]\..* is missing"),
        ({"checked": [{**CHECKED, "figures": {"rank": "high"}}]}, r"figures\.rank"),
        ({"checked": [{**CHECKED, "figures": [0.4]}]}, "figures"),
        ({"checked": [CHECKED] * 1001}, "1,000 checks"),
        (
            {"checked": [{**CHECKED, "figures": {str(k): 0 for k in range(101)}}]},
            "at most 100 items",
        ),
    ],
)
def test_files_of_strangers_are_refused_in_a_sentence_that_names_them(tmp_path, change, said):
    (tmp_path / "draft.json").write_text(json.dumps({**WHOLE, **change}))
    with pytest.raises(ValueError, match=said) as refusal:
        read_draft(tmp_path)
    assert str(tmp_path / "draft.json") in str(refusal.value)
    assert str(refusal.value).isprintable()


def test_a_draft_is_unchecked_but_for_the_very_model_steps_and_guidance():
    checked = DraftSettings(checked=(Checked("a/b", 20, 4.0),))
    assert unchecked(checked, "a/b", 20, 4.0) is None
    for here in (("c", 20, 4.0), ("a/b", 28, 4.0), ("a/b", 20, 3.5)):
        assert "for a/b at 20 steps and guidance 4" in str(unchecked(checked, *here))
    assert "not checked for a/b at 20 steps" in str(unchecked(HOT_SETTINGS, "a/b", 20, 4.0))
