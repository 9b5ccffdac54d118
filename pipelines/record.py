"""What is known of a search call before it finds anything: plain values that name everything
else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from diffusers.loaders.lora_base import LoraBaseMixin
from diffusers.utils.constants import USE_PEFT_BACKEND

from ttsnap.algorithms import name_of, spec_of, takes
from ttsnap.core.prompt import Prompt
from ttsnap.core.protocols import Algorithm
from ttsnap.files.pictured import digests
from ttsnap.options.model import ModelOptions
from ttsnap.pipelines.packaged import MODELS
from ttsnap.request.request import EngineSpec, Prepared
from ttsnap.results.record import SearchRecord

PLAIN = (bool, int, float, str)


def record_of(
    pipe: Any,
    search: Prepared,
    engine: EngineSpec,
    prompts: Sequence[Prompt],
    rewards: Sequence[str],
) -> SearchRecord:
    """That of a search for these prompts by this pipeline. engine: its own, as far as is told.
    rewards: the names of its rewards.

    Algorithms go by their names and options, as `make_algorithm` takes them. Arguments of the call
    and options that are not plain are left out.
    """
    call = dict(search.given)
    request = search.request
    inputs = {**call, **prompts[0].inputs}
    embeddings = [name for name, value in inputs.items() if "embeds" in name and value is not None]
    pictures: Any = [digests({**call, **prompt.inputs}) for prompt in prompts]
    if any(prompt.negative is not None for prompt in prompts):
        given = call.get("negative_prompt")
        usual = given if isinstance(given, list | tuple) else [given] * len(pictures)
        negative = [
            one if p.negative is None else p.negative for one, p in zip(usual, prompts, strict=True)
        ]
        call["negative_prompt"] = negative if len(set(negative)) > 1 else negative[0]
    named: Any
    named, options = _algorithm(request.search)
    options |= request.options
    loras: Any = [
        *([engine.model.lora] if engine.model.lora else adapters(pipe)),
        *map(str, engine.loras),
    ]
    dtype: Any = str(pipe.dtype).removeprefix("torch.")
    return SearchRecord(
        model=engine.model.model,
        lora=loras if len(loras) > 1 else next(iter(loras), None),
        task=pipe.task_of(search.given),
        scheduler=type(pipe.scheduler).__name__,
        call={name: value for name, value in call.items() if _is_plain(value)},
        sampler=engine.sampler,
        algorithm=named,
        options={name: value for name, value in options.items() if _is_plain(value)},
        budget=str(request.budget),
        dtype=dtype,
        pictures=pictures if any(pictures) else None,
        embeddings=embeddings or None,
        noted=_noted(search, rewards),
        seed=search.seed,
        rewards=rewards[: len(search.rewards)],
        utility=request.selection.told(search.rewards),
    )


def _noted(search: Prepared, rewards: Sequence[str]) -> dict[str, Any]:
    """The options that records note, as the search has them."""
    measure = search.engine.batch.features
    given = {
        "require": search.selection.named(rewards).words,
        "diversity": None if measure is None else search.selection.diversity,
        "likeness": None if measure is None else getattr(measure, "__name__", str(measure)),
        "shared": search.loop.shared or None,
    }
    return {name: value for name, value in given.items() if value is not None}


def model_of(pipe: Any) -> ModelOptions:
    """What a pipeline was opened by, or how it would be."""
    return pipe.model_options or ModelOptions(model_name(pipe))


def model_name(pipe: Any) -> str:
    """By what a pipeline was loaded: the name of a packaged model, a folder or a hub id; its class
    where it was not."""
    where = str(pipe.name_or_path or pipe.stock_class().__name__)
    return {str(ours.folder): name for name, ours in MODELS.items()}.get(where, where)


def _algorithm(asked: str | Algorithm | Mapping[str, object]) -> tuple[object, dict[str, object]]:
    """Name and options. An object goes by the name under which people know it, if that takes its
    options."""
    if isinstance(asked, str):
        return asked, {}
    given = {
        name: _spelled(value)
        for name, value in (asked if isinstance(asked, Mapping) else vars(asked)).items()
    }
    if isinstance(asked, Mapping):
        return given.pop("name", ""), given
    name = name_of(asked)
    return name if takes(name, given) else spec_of(asked)["name"], given


def _spelled(value: object) -> object:
    """An option, with the algorithms in it by name and options."""
    value = spec_of(value) if isinstance(value, Algorithm) else value
    return (
        {key: _spelled(inside) for key, inside in value.items()}
        if isinstance(value, Mapping)
        else value
    )


def _is_plain(value: object) -> bool:
    if isinstance(value, Mapping):  # an algorithm, some of whose options are left open
        return all(inside is None or _is_plain(inside) for inside in value.values())
    return isinstance(value, PLAIN) or (
        isinstance(value, list | tuple) and all(map(_is_plain, value))
    )


def adapters(pipe: Any) -> list[str]:
    """The names of adapters in force: without them the image cannot be made again. Without peft
    there are none."""
    return (
        pipe.get_active_adapters() if USE_PEFT_BACKEND and isinstance(pipe, LoraBaseMixin) else []
    )
