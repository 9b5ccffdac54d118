"""How well looks rank seeds: known answers, and what `ttsnap record --check-draft` says and notes
of them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from ttsnap import Grid
from ttsnap.cli.record import check_draft
from ttsnap.core import Price, Rates
from ttsnap.core.looks import EstimatorAt
from ttsnap.recordings.replay import Recording
from ttsnap.sampling import drafts
from ttsnap.sampling.drafts import (
    DraftSettings,
    TrainedFor,
    read_draft,
    read_hot,
    unchecked,
    write_draft,
)
from ttsnap.simulation.looks import drafts_against_estimates, ranked

GRID = Grid((1.0, 0.75, 0.5, 0.25, 0.0))


def made(good=1.0, folder="drafter", guidance=4.0):
    """Estimates that tell nothing at step 0 and all at step 3; drafts that tell the final score, or
    its opposite."""
    rng = np.random.default_rng(0)
    final = rng.normal(size=(6, 12, 1))
    noise = rng.normal(size=(6, 12, 4, 1))
    share = np.array([0, 0.3, 0.6, 1.0])[:, None]
    scores = np.concatenate(
        [share * final[:, :, None] + (1 - share) * noise, final[:, :, None]], axis=2
    )
    looks = {
        EstimatorAt("draft:1", 0): good * final,
        EstimatorAt("draft:2", 1): good * final + 1e-9 * noise[:, :, 0],
    }
    price = Price(Rates(nfe=2.0, draft_calls=1.0), passes_per_nfe=2, passes_per_draft=1)
    info = {"model": "tiny", "draft": f"{folder}:1", "draft_guidance": guidance}
    names = tuple("abcdef")
    return Recording(names, scores, GRID, ("r",), price=price, info=info, looks=looks)


def test_looks_are_ranked_at_their_cost():
    looks = ranked(made())
    cost = {
        "draft:1@0": 0.5,
        "estimate@0": 1,
        "draft:2@1": 2,
        "estimate@1": 2,
        "estimate@2": 3,
        "estimate@3": 4,
    }
    assert [(str(r.seen), r.nfe) for r in looks] == list(cost.items())
    assert looks[0].mean == looks[-1].mean == 1
    assert looks[0].error == 0
    assert abs(looks[1].mean) < 0.3


def test_a_draft_is_compared_with_what_costs_as_much():
    first, second = drafts_against_estimates(ranked(made()))
    # none is as cheap
    assert (str(first.rival.seen), first.equals, first.pays) == ("estimate@0", 4, True)
    assert (str(second.rival.seen), second.pays) == ("estimate@1", True)
    # Estimates that say the same of all seeds, as scores of 0 and 1 may at first, are no rivals
    # where there are others.
    flat = made()
    flat.scores[:, :, 0] = 0
    _, second = drafts_against_estimates(ranked(flat))
    assert (str(second.rival.seen), second.pays) == ("estimate@1", True)
    worse, _ = drafts_against_estimates(ranked(made(-1)))
    assert worse.gain < 0
    assert not worse.pays


@pytest.mark.parametrize(("good", "said"), [(1.0, "it pays to draft"), (-1.0, "not surely better")])
def test_a_check_says_and_notes_it(good, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("drafter").mkdir()
    write_draft("drafter", DraftSettings(first_time=0.9, trained_for=TrainedFor("tiny")))
    out = check_draft(made(good), Path("rec.json"))
    assert said in out
    row = next(line for line in out.splitlines() if "draft, 1 call " in line)
    assert "1.000 +- 0.000" in row or good < 0
    settings = read_draft("drafter")
    assert settings.first_time == 0.9
    (check,) = settings.checked
    assert (check.model, check.steps, check.guidance_scale) == ("tiny", 4, 4)
    assert check.figures["spearman of draft:1@0"] == good
    doubt = unchecked(settings, "tiny", 4, 4.0)
    assert doubt is None if good > 0 else "no better than x0 estimates" in str(doubt)
    assert "was not checked for tiny at 8 steps" in str(unchecked(settings, "tiny", 8, 4.0))
    check_draft(made(good), Path("rec.json"))  # what stood there for the same call is replaced
    assert len(read_draft("drafter").checked) == 1
    drafts.note_check("drafter", drafts.Checked("tiny", 8, 4.0))
    assert len(read_draft("drafter").checked) == 2


def test_what_cannot_be_noted_is_told_and_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for where in ("hub/draft", "mine/settings.safetensors", "embedded"):
        assert "not noted: " in check_draft(made(folder=where), Path("rec.json"))
    assert not [*tmp_path.iterdir()]
    Path("drafter").mkdir()
    Path("drafter/draft.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(ValueError, match="drafter"):
        check_draft(made(), Path("rec.json"))
    assert json.loads(Path("drafter/draft.json").read_text()) == {"format": 99}
    with pytest.raises(ValueError, match="--draft"):
        check_draft(dataclasses.replace(made(), looks={}), Path("r.json"))


def test_what_is_found_of_the_untrained_drafter_is_noted_in_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "--draft hot.json" in check_draft(made(folder="hot"), Path("hot.json"))
    settings = read_hot("hot.json")
    assert settings.first_time == drafts.HOT_SETTINGS.first_time
    assert unchecked(settings, "tiny", 4, 4.0) is None
    # A recording that was made with the file is noted there.
    check_draft(made(-1, folder="hot.json"), Path("again.json"))
    assert "no better than x0 estimates" in str(unchecked(read_hot("hot.json"), "tiny", 4, 4.0))
    assert [path.name for path in tmp_path.iterdir()] == ["hot.json"]
    Path("drafter").mkdir()
    write_draft("drafter", DraftSettings(trained_for=TrainedFor("tiny")))
    with pytest.raises(ValueError, match="trained weights"):
        read_hot("drafter/draft.json")
