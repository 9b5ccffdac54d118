"""Images made again, each from its record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace as changed
from typing import Any

from torch import Tensor

from ttsnap.algorithms.best_of_n import OneOfGroup
from ttsnap.core.prompt import Prompt
from ttsnap.loop.budget import Budget
from ttsnap.options.engine import EngineOptions
from ttsnap.options.model import TEXT, ModelOptions
from ttsnap.pipelines.opening import check_call
from ttsnap.pipelines.run import run
from ttsnap.request.request import EngineSpec, ModelDefaults, SearchRequest, prepare
from ttsnap.results.record import SearchRecord


def replay(
    pipe: Any,
    record: SearchRecord,
    pictures: Mapping[str, Any] | None = None,
    *,
    draft: Any = None,
) -> Tensor:
    """The pixels of a recorded image, made again by a search pipeline of its model: (3, H, W), or
    frames (T, 3, H, W), in [0, 1].

    pictures: what it was made of, by argument of the call. draft: the drafter whose draft was
    finished. Each call of the network gets as many rows as the record notes, as last digits depend
    on it. ValueError where its seed alone does not make it, or the pipeline is none of its model.
    """
    record.require_seed_alone()
    image = record.image
    call = {**record.call, **(pictures or {})}
    check_call(pipe, call, record.task or TEXT)
    batches = tuple(image.batches or [1])
    most = max(batches)
    engine = EngineSpec(
        ModelOptions(record.model),
        (no_reward,),
        changed(record.sampler, draft=draft),
        EngineOptions(batch_size=most),
        call,
    )
    again = OneOfGroup(image.place or 0, batches)
    request = SearchRequest(
        (Prompt(image.prompt),), engine, again, Budget(), image.first_seed, most
    )
    # The record says all; what the model recommends may have changed since.
    search = prepare(request, ModelDefaults(split=pipe.split_prompt_inputs))
    images = run(search, pipe).results[0].images
    return next(each for each in images if each.seed == image.seed).pixels


def no_reward(images: Any, prompts: Any) -> list[float]:
    """The same score for all."""
    return [0.0] * len(prompts)
