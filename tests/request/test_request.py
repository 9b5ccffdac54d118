"""A search with all that its model decides: rewards, what images must meet, and denoising steps."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import numpy as np
import pytest

from ttsnap import SeedPruning
from ttsnap.core.prompt import Prompt
from ttsnap.core.requirement import Requirement
from ttsnap.files.settings import FieldError
from ttsnap.loop.budget import Budget
from ttsnap.options.model import ModelOptions
from ttsnap.options.sampler import SamplerOptions
from ttsnap.options.selection import SelectionOptions
from ttsnap.request.limits import SearchLimits
from ttsnap.request.offer import SearchFields, ServingCatalog, notes_of, request_of
from ttsnap.request.request import EngineSpec, ModelDefaults, SearchRequest, prepare
from ttsnap.results.media import png_info
from ttsnap.results.record import read_record

CALL, LIMITS = {"num_inference_steps": 20, "guidance_scale": 4.0}, SearchLimits()
TUNED = {"tuned": SeedPruning(denoising_steps=6)}
OFFER = ServingCatalog("embedded", ("scenes",), lambda _: ModelDefaults(CALL), TUNED)


def prepared(
    *rewards,
    search="best-of-n",
    require=(),
    utility="mean",
    **how,
):
    engine, selection = (
        EngineSpec(ModelOptions(), rewards, **how),
        SelectionOptions(utility, require),
    )
    request = SearchRequest((Prompt("a"),), engine, search, Budget(nfe=100), selection=selection)
    return prepare(request, ModelDefaults(CALL, reward="scenes"))


def wanted(**fields):
    """As strangers ask."""
    return request_of(SearchFields.of({"prompt": "a red circle", **fields}), OFFER, LIMITS)


# --- requirements: which rewards an engine has, and which of them a search is for -----------------


def test_what_is_only_required_comes_behind_the_rewards():
    search = prepared("scenes", "clip", require=("ocr:line>0.9", "clip>20", "safe", "safe<2"))
    assert search.engine.rewards == ("scenes", "clip", "ocr:line", "safe")
    assert search.rewards == ("scenes", "clip")
    gate = search.selection.gate
    assert gate is not None
    assert (gate.columns, gate.counted, gate.scores_more) == ((2, 1, 3, 3), 2, True)
    alone = prepared(require=("ocr",))  # it waits for the reward that the model recommends
    assert (alone.engine.rewards, alone.rewards) == (("scenes", "ocr"), ("scenes",))
    assert alone.request.engine.rewards == (), "what is asked for stays as it is"


def test_a_prepared_search_is_final():
    search = prepared("scenes")
    for name in ("request", "prompts", "engine", "given", "loop"):
        with pytest.raises(FrozenInstanceError):
            setattr(search, name, None)
    assert prepare(search.request, ModelDefaults(CALL)) == search


def test_what_does_not_fit_together_is_refused_before_anything_runs():
    for weights in ([1.0], [1.0, 2.0, 3.0]):
        with pytest.raises(ValueError, match=f"{len(weights)} weights"):
            prepared("scenes", "brightness", require=("ocr",), utility=weights)
    guided = [
        {"sampler": SamplerOptions(guide="0.1")},
        {"search": "noise-ascent"},
    ]
    for how in guided:
        assert prepared("scenes", require=("scenes>0.1",), **how)
        with pytest.raises(ValueError, match="gradients follow all"):
            prepared("scenes", require=("ocr",), **how)


@pytest.mark.usefixtures("shallow_model")
def test_the_call_of_a_pipeline(tmp_path):
    from ttsnap.pipelines import load

    def middle(images, prompts):
        return images.mean((1, 2, 3))

    pipe = load()
    pipe.set_progress_bar_config(disable=True)
    how = {
        "search": "best-of-n",
        "budget": "80nfe",
        "seed": 3,
        "num_inference_steps": 8,
        "draft": None,
    }
    how |= {"reward": "brightness", "num_images_per_prompt": 10}
    every = pipe("a red circle", **how)
    rewards = [candidate.reward for candidate in every.search[0].images]
    means = [float(middle(candidate.image[None], [])) for candidate in every.search[0].images]
    bound = float(np.median(means))
    with pytest.warns(UserWarning, match="10 asked"):
        some = pipe(
            "a red circle",
            **how,
            require=[f"brightness<{rewards[0]}", Requirement(middle, ">", bound)],
        )
    passed = [i for i, value in enumerate(means) if value > bound and i]
    (result,) = some.search
    assert [c.reward for c in result.images] == [rewards[i] for i in passed]
    assert list(result.best.scores) == ["brightness", "middle"]
    assert len(some.images) == len(passed)
    kept = {look[0] for look in result.thumbnails}
    assert kept.isdisjoint(np.flatnonzero(result.particles.refused).tolist())
    some.images[0].save(tmp_path / "a.png", pnginfo=png_info(some.images[0]))
    told = read_record(tmp_path / "a.png").to_json()["search"]
    assert told["require"] == [f"brightness<{rewards[0]:.12g}", f"middle>{bound:.12g}"]
    with pytest.warns(UserWarning, match="fewer images"):
        none = pipe("a red circle", **how, require="brightness>1")
    assert none.images == []
    assert "no image meets" in none.search[0].warnings[-1]
    for alone, wrong in (({}, "brightness>1"), (how, "brightness>dark")):
        with pytest.raises(ValueError, match="require given without" if not alone else wrong):
            pipe("a red circle", **alone, require=wrong)


# --- denoising steps: those that a schedule was fitted to, where nobody says others ---------------


@pytest.mark.parametrize(
    ("fields", "steps", "doubt"),
    [
        ({}, 20, None),
        ({"search": "tuned"}, 6, None),
        ({"search": "tuned", "steps": 6}, 6, None),
        (
            {"search": "tuned", "steps": 9},
            9,
            "tuned for 6 denoising steps, and this search takes 9",
        ),
        ({"search": {"name": "seed-pruning", "denoising_steps": 5}}, 5, None),
    ],
)
def test_the_users_then_the_schedules_then_the_models(fields, steps, doubt):
    request = prepare(wanted(**fields), OFFER.defaults("embedded"))
    assert request.call == {**CALL, "num_inference_steps": steps}
    notes = notes_of(request, LIMITS)
    assert len(notes) == (doubt is not None)
    assert (doubt or "") in "".join(notes)


def test_strangers_get_no_more_steps_by_a_schedule():
    assert wanted(search={"name": "seed-pruning", "denoising_steps": LIMITS.steps})
    with pytest.raises(FieldError, match=f"got {LIMITS.steps + 1}"):
        wanted(search={"name": "seed-pruning", "denoising_steps": LIMITS.steps + 1})


def test_the_order_of_options_makes_no_other_search():
    one, other = ({"name": "best-of-n", "n": 2}, {"n": 2, "name": "best-of-n"})
    assert wanted(search=one).label == wanted(search=other).label


def test_arguments_that_say_the_steps_need_no_number():
    request = prepared("scenes", search=SeedPruning(denoising_steps=6), call={"sigmas": [1.0, 0.5]})
    assert request.engine.call == {"sigmas": [1.0, 0.5], "guidance_scale": 4.0}
