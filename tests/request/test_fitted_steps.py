"""Denoising steps that a schedule was fitted to: taken where nobody says others, which is told."""

from __future__ import annotations

from typing import Any

import pytest

from ttsnap import SeedPruning
from ttsnap.core.prompt import Prompt
from ttsnap.files.settings import FieldError
from ttsnap.loop.budget import Budget
from ttsnap.options.model import ModelOptions
from ttsnap.request.limits import SearchLimits
from ttsnap.request.offer import SearchFields, ServingCatalog, notes_of, request_of
from ttsnap.request.request import EngineSpec, ModelDefaults, Prepared, SearchRequest, prepare

OFFER = ServingCatalog(
    "embedded", ("scenes",), lambda model: ModelDefaults({"num_inference_steps": 20, "guidance_scale": 4.0}),
    {"tuned": SeedPruning(denoising_steps=6)},
)  # fmt: skip


def asked(**fields: Any) -> Prepared:
    asked = request_of(SearchFields.of({"prompt": "a red circle", **fields}), OFFER, SearchLimits())
    return prepare(asked, OFFER.defaults("embedded"))


@pytest.mark.parametrize(
    ("fields", "steps", "doubt"),
    [
        ({}, 20, None),
        ({"search": "tuned"}, 6, None),
        ({"search": "tuned", "steps": 6}, 6, None),
        ({"search": "tuned", "steps": 9}, 9, "tuned for 6 denoising steps, and this search takes 9"),
        ({"search": {"name": "seed-pruning", "denoising_steps": 5}}, 5, None),
    ],
)
def test_the_users_then_the_schedules_then_the_models(fields: dict[str, Any], steps: int, doubt: str | None) -> None:
    request = asked(**fields)
    assert request.call == {"num_inference_steps": steps, "guidance_scale": 4.0}
    notes = notes_of(request, SearchLimits())
    assert len(notes) == (doubt is not None)
    assert doubt is None or doubt in notes[0]


def test_strangers_get_no_more_steps_by_a_schedule() -> None:
    with pytest.raises(FieldError, match=f"at most {SearchLimits().steps} steps"):
        asked(search={"name": "seed-pruning", "denoising_steps": SearchLimits().steps + 1})


def test_arguments_that_say_the_steps_need_no_number() -> None:
    engine = EngineSpec(ModelOptions(), ("scenes",), call={"sigmas": [1.0, 0.5]})
    request = SearchRequest((Prompt("x"),), engine, SeedPruning(denoising_steps=6), Budget(nfe=9))
    assert prepare(request, ModelDefaults({"num_inference_steps": 20})).engine.call == engine.call
