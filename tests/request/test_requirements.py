"""A request with requirements: which rewards its engine has, and which of them the search is for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ttsnap.core.prompt import Prompt
from ttsnap.core.requirement import Requirement
from ttsnap.loop.budget import Budget
from ttsnap.options.model import ModelOptions
from ttsnap.options.sampler import SamplerOptions
from ttsnap.request.request import EngineSpec, ModelDefaults, Prepared, SearchRequest, prepare
from ttsnap.results.record import read_record


def asked(*rewards: str, require: tuple[Any, ...] = (), search: str = "best-of-n", **more: Any) -> Prepared:
    how = {name: more.pop(name) for name in ("sampler",) if name in more}
    engine = EngineSpec(ModelOptions(), rewards, **how)
    request = SearchRequest((Prompt("a"),), engine, search, Budget(nfe=100), require=require, **more)
    return prepare(request, ModelDefaults(reward="scenes"))


def test_what_is_only_required_comes_behind_the_rewards() -> None:
    search = asked("scenes", "clip", require=("ocr:line>0.9", "clip>20", "safe", "safe<2"))
    assert search.engine.rewards == ("scenes", "clip", "ocr:line", "safe")
    assert search.rewards == ("scenes", "clip")
    gate = search.gate
    assert gate is not None
    assert (gate.columns, gate.counted, gate.scores_more) == ((2, 1, 3, 3), 2, True)
    again = replace(search, engine=replace(search.engine, rewards=("A", "B", "C", "D")))  # as where they are loaded
    assert (again.gate, again.rewards) == (gate, ("A", "B"))


def test_it_waits_for_the_reward_that_the_model_recommends() -> None:
    search = asked(require=("ocr",))
    assert (search.engine.rewards, search.rewards) == (("scenes", "ocr"), ("scenes",))
    assert search.request.engine.rewards == (), "what is asked for stays as it is"


def test_another_number_of_weights_than_of_rewards_is_refused_before_anything_runs() -> None:
    request = asked("scenes", "brightness", require=("ocr",), utility=[1.0, 2.0]).request
    for weights in ([1.0], [1.0, 2.0, 3.0]):
        with pytest.raises(ValueError, match=f"{len(weights)} weights for 2 rewards; give one weight per reward"):
            prepare(replace(request, utility=weights), ModelDefaults())


def test_gradients_do_not_follow_what_is_only_required() -> None:
    message = (
        "gradients follow all rewards of an engine, also those that are only required; require what is searched for"
    )
    with pytest.raises(ValueError, match=message):
        asked("scenes", require=("ocr",), sampler=SamplerOptions(guide="0.1"))
    with pytest.raises(ValueError, match=message):
        asked("scenes", require=("ocr",), search="noise-ascent")
    asked("scenes", require=("scenes>0.1",), search="noise-ascent")


@pytest.mark.usefixtures("shallow_model", "any_flops")
def test_the_call_of_a_pipeline(tmp_path: Path) -> None:
    from ttsnap.pipelines import load
    from ttsnap.results.media import png_info

    def middle(images: Any, prompts: Any) -> Any:
        return images.mean((1, 2, 3))

    pipe = load()
    pipe.set_progress_bar_config(disable=True)
    how: dict[str, Any] = {"search": "best-of-n", "budget": "80nfe", "seed": 3, "num_inference_steps": 8, "draft": None}
    how |= {"reward": "brightness", "num_images_per_prompt": 10}
    every = pipe("a red circle", **how)
    rewards = [candidate.reward for candidate in every.search[0].images]
    means = [float(middle(candidate.image[None], [])) for candidate in every.search[0].images]
    bound = float(np.median(means))
    with pytest.warns(UserWarning, match="10 asked"):
        some = pipe("a red circle", **how, require=[f"brightness<{rewards[0]}", Requirement(middle, ">", bound)])
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
    assert none.search[0].warnings[-1].startswith("no image meets what is required")
    with pytest.raises(ValueError, match="require given without"):
        pipe("a red circle", require="brightness>1")
    with pytest.raises(ValueError, match="requirement 'brightness>dark'"):
        pipe("a red circle", **how, require="brightness>dark")
