"""What an operator offers to strangers, and the searches that they ask for, checked.

The service and the demo give the fields that their users filled in, by the names of the service's
API; what comes back holds nothing that is not offered and nothing beyond the limits.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Self, TypeVar

from annotated_types import Interval
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, create_model, model_validator
from pydantic.fields import FieldInfo

from ttsnap.algorithms import make_algorithm
from ttsnap.core.checklist import LIST
from ttsnap.core.names import FieldError, unknown
from ttsnap.core.prompt import Prompt
from ttsnap.core.protocols import Algorithm
from ttsnap.core.requirement import Requirement
from ttsnap.files.settings import Count, build, kinds_of, short
from ttsnap.loop.budget import Budget
from ttsnap.options.call import CALL
from ttsnap.options.engine import BatchOptions, EngineOptions
from ttsnap.options.every import OFFERED
from ttsnap.options.model import TEXT, ModelOptions
from ttsnap.options.option import Offered, Option, taken
from ttsnap.options.sampler import AUTO, SamplerOptions
from ttsnap.options.selection import SelectionOptions, listed
from ttsnap.request.limits import SearchLimits, kernel_for, search_of
from ttsnap.request.request import (
    AlgorithmSpec,
    EngineSpec,
    Lora,
    ModelDefaults,
    Prepared,
    SearchRequest,
    fitted_steps,
)

M = TypeVar("M", bound=BaseModel)
MOST_SCALE = 100.0
"""Of a LoRA, as in ComfyUI."""
STRICT = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
"""As `check` reads plain values."""


def field_of(name: str, option: Option) -> tuple[Any, Any]:
    """The type and the field of an option, by the name that strangers use. The option's own name
    is taken as well."""
    offered = option.offered or Offered()
    hint: Any = offered.hint or option.hint
    usual = option.default if option.start is None else option.start
    default = None if type(None) in kinds_of(hint) else usual
    names = AliasChoices(*dict.fromkeys((name, option.name)))
    text = offered.text or option.text
    return hint, Field(default, description=text, validation_alias=names)


def offering(kind: type[M]) -> type[M]:
    """The model with a field for every option that is offered."""
    fields: Any = {name: field_of(name, option) for name, option in OFFERED.items()}
    return create_model(kind.__name__, __base__=kind, __doc__=kind.__doc__, **fields)


@offering
class SearchFields(BaseModel):
    """What strangers write in the same words at every door; None: nothing."""

    model_config = STRICT
    prompt: str = Field(description="what to show", json_schema_extra={"minLength": 1})
    n: Count = Field(
        1,
        description="images to keep of those that the search finishes, best first",
    )

    @model_validator(mode="before")
    @classmethod
    def _once(cls, values: dict[str, Any]) -> dict[str, Any]:
        """FieldError for a field that is given by two of its names."""
        for each in cls.model_fields.values():
            names = [name for name in names_in(each) if name in values]
            if len(names) > 1:
                raise FieldError(names[1], f"give {' or '.join(names)}, not both")
        return values

    @classmethod
    def of(cls, values: Mapping[str, object]) -> Self:
        """From plain values by name. FieldError for a name that is none, and for a value of another
        type."""
        return build(cls, {name: value for name, value in values.items() if value is not None})

    @property
    def options(self) -> dict[str, Any]:
        """The values that are given for options, by the options' own names."""
        values = {option.name: vars(self)[name] for name, option in OFFERED.items()}
        return {name: value for name, value in values.items() if value is not None}


class LoraChoice(BaseModel):
    """A LoRA that is asked for."""

    model_config = STRICT
    name: str
    scale: Annotated[float, Interval(ge=-MOST_SCALE, le=MOST_SCALE)] | None = None
    """None: 1."""


def loras_of(value: object, offered: Mapping[str, Lora], most: int) -> tuple[Lora, ...]:
    """At most so many LoRAs: those of one choice, or of several: NAME or {"name": NAME, "scale":
    NUMBER}. In the order of their names, so that equal choices share batches; what has a scale of 0
    changes nothing, and is left out."""
    wanted = value if isinstance(value, list) else [value]
    if not offered:
        raise FieldError("lora", "no LoRAs are offered here; leave lora out")
    if len(wanted) > most:
        raise FieldError("lora", f"at most {most} LoRAs are put together here, got {len(wanted)}")
    chosen: dict[str, Lora] = {}
    for each in wanted:
        named = {"name": each} if isinstance(each, str) else each
        choice = build(LoraChoice, named, "lora")
        if choice.name not in offered:
            raise FieldError("lora", unknown("LoRA", choice.name, offered))
        if choice.name in chosen:
            raise FieldError("lora", f"the LoRA {choice.name} is given twice; give it one scale")
        chosen[choice.name] = replace(
            offered[choice.name], scale=1.0 if choice.scale is None else choice.scale
        )
    return tuple(chosen[name] for name in sorted(chosen) if chosen[name].scale)


def names_in(field: FieldInfo) -> list[str]:
    """The names that a field is taken by, where it has several."""
    also = field.validation_alias
    return list(map(str, also.choices)) if isinstance(also, AliasChoices) else []


def names_of(kind: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields of a model by every name that they are taken by."""
    named = [(names_in(field) or [name], field) for name, field in kind.model_fields.items()]
    return {name: field for names, field in named for name in names}


@dataclass(frozen=True)
class ServingCatalog:
    """What strangers choose from."""

    model: str
    """The name that they use, and that they see."""
    rewards: tuple[str, ...]
    """By the names that they use; the first where none is named."""
    defaults: Callable[[str], ModelDefaults]
    """What a model decides where nothing is given."""
    searches: Mapping[str, Algorithm] = field(default_factory=dict)
    """Those of the operator's files, beside the algorithms of the catalogue."""
    loras: Mapping[str, Lora] = field(default_factory=dict)
    """LoRAs by the names that they use."""
    aliases: Sequence[str] = ()
    """Further names of the model."""
    draft: str | None = None
    """The drafter that they may ask for. By `defaults`, the model's own is taken where nothing is
    said and it helps."""
    drafts_first: bool = False
    """Whether drafting defaults to the model's recommendation."""
    undrafted: str | None = None
    """What is told of searches that the model's own drafter would help, where the model as it is
    served has none."""
    any_model: bool = False
    """Whether another model may be named."""
    edits: bool = False
    """Whether the model can change pictures, or set one in motion."""
    one_picture: bool = False
    """Whether the model changes one picture at a time."""
    needs_picture: bool = False
    """Whether it makes nothing without one."""
    frames_every: int | None = None
    """Frames of a video beyond the first come in such numbers; None where the model makes
    images."""
    frame_rate: bool = False
    """Whether its call has a frame_rate."""
    boundary: float | None = None
    """Where the second network of two begins, as a share of the noise; None where the model has
    one."""
    true_cfg: bool = False
    """Whether its call has a true_cfg_scale beside another guidance."""
    lists: Collection[str] = ()
    """The rewards that are checklists, whose items a search carries."""

    @property
    def names(self) -> tuple[str, ...]:
        """All names of the model."""
        return (self.model, *self.aliases)

    def spec_of(self, name: str) -> str:
        """A reward as a search names it: a checklist is one that the reward of this name
        answers."""
        return f"{LIST} by {name}" if name in self.lists else name


def request_of(
    fields: SearchFields,
    offer: ServingCatalog,
    limits: SearchLimits,
    effort: str | None = None,
    task: str = TEXT,
    batch: Mapping[str, Any] | None = None,
    **more: Any,
) -> SearchRequest:
    """The search that is asked for. FieldError for what is not offered, and for more than the
    limits allow.

    effort: in place of a budget. task: as of ModelOptions. batch: of EngineOptions. more: arguments
        of the model's own call, pictures among them; None for nothing.
    """
    if fields.n > limits.images:
        raise FieldError("n", f"at most {limits.images} images are returned, got {fields.n}")
    options = {
        name: READERS[name](value, offer, limits) if name in READERS else value
        for name, value in fields.options.items()
    }
    search = options.pop("search")
    model = options.pop("model", offer.model)
    loras = options.pop("lora", ())
    negative = options.pop("negative_prompt", None)
    seed = options.pop("seed", None)
    known = offer.defaults(model)
    steps = _steps(options.get("num_inference_steps"), search, known, limits)
    draft = options.pop("draft", None)
    options = {"kernel": kernel_for(search), "draft": None, **options}
    budget = _budget(options.pop("budget", None), effort, steps, limits)
    more = {name: value for name, value in more.items() if value is not None}
    pictures: dict[str, object] = {
        name: more.pop(name) for name in ("image", "mask_image") if name in more
    }
    named = {name: options.pop(name) for name in CALL if name in options}
    engine = EngineSpec(
        ModelOptions(model, task=task),
        options.pop("reward", tuple(map(offer.spec_of, offer.rewards[:1]))),
        _drafted(taken(SamplerOptions, options), draft, model, offer, loras),
        replace(EngineOptions.of(taken(BatchOptions, options)), **(batch or {})),
        call=_call(named, more, offer, limits),
        loras=loras,
    )
    return SearchRequest(
        (Prompt(_text(fields.prompt, known, limits), negative=negative, inputs=pictures),),
        engine,
        search,
        budget,
        secrets.randbelow(2**31) if seed is None else seed,
        fields.n,
        selection=taken(SelectionOptions, options),
    )


def _model(value: str, offer: ServingCatalog, limits: SearchLimits) -> str:
    model = value.strip() if offer.any_model else offer.model
    if not model.isprintable():
        raise FieldError("model", f"a model is a hub id or a folder, got {short(model)}")
    return model or offer.model


def _requirements(
    texts: str | list[str], offer: ServingCatalog, limits: SearchLimits
) -> tuple[Requirement, ...]:
    """Requirements on rewards that are offered. FieldError for others, and for what cannot be
    read."""
    try:
        read = tuple(map(Requirement.parse, listed(texts)))
    except ValueError as error:
        raise FieldError("require", str(error)) from None
    if read:
        limits.rewards_of([one.reward for one in read], offer.rewards, "require")
    return tuple(replace(one, reward=offer.spec_of(one.reward)) for one in read)


READERS: dict[str, Callable[[Any, ServingCatalog, SearchLimits], Any]] = {
    "model": _model,
    "search": lambda value, offer, limits: search_of(value, offer.searches, limits.nfe),
    "reward": lambda value, offer, limits: tuple(
        map(offer.spec_of, limits.rewards_of(value, offer.rewards, "reward"))
    ),
    "report": lambda value, offer, limits: (
        limits.rewards_of(value, offer.rewards, "report") if value else ()
    ),
    "require": _requirements,
    "lora": lambda value, offer, limits: loras_of(value, offer.loras, limits.loras),
    "negative_prompt": lambda value, offer, limits: limits.line(
        value, "negative_prompt", empty=True
    ),
}
"""How options are read that name what is offered, or have limits, by their names. The values of
others are taken as they are."""


def _steps(
    steps: int | None, search: AlgorithmSpec, known: ModelDefaults, limits: SearchLimits
) -> int:
    """The steps of an image: those that are given, those that the search was fitted to, or the
    model's."""
    own = fitted_steps(make_algorithm(search)) if steps is None else steps
    if own is not None and own > limits.steps:
        raise FieldError("steps", f"at most {limits.steps} steps are made here, got {own}")
    return own or int(known.call.get("num_inference_steps", limits.steps))


def _text(prompt: str, known: ModelDefaults, limits: SearchLimits) -> str:
    """A prompt. What the model cannot read is refused at once."""
    text = limits.line(prompt, "prompt")
    try:
        known.canonical(text)
    except ValueError as error:
        raise FieldError("prompt", str(error)) from None
    return text


def _call(
    named: Mapping[str, Any], more: Mapping[str, Any], offer: ServingCatalog, limits: SearchLimits
) -> dict[str, Any]:
    """Arguments of the pipeline's call: options by name, and more."""
    call = {**named, **more}
    if "true_cfg_scale" in call and not offer.true_cfg:
        if "guidance_scale" in call:
            both = "give guidance_scale or true_cfg_scale, not both: they are one for this model"
            raise FieldError("true_cfg_scale", both)
        call["guidance_scale"] = call.pop("true_cfg_scale")
    if (frames := call.get("num_frames", 0)) > limits.frames:
        raise FieldError(
            "num_frames", f"videos have at most {limits.frames} frames here, got {frames}"
        )
    if "width" in call:
        limits.check_size(call["width"], call["height"])
    return call


def _budget(budget: object, effort: str | None, steps: int, limits: SearchLimits) -> Budget:
    if budget is None:
        return Budget.of_effort(effort or "medium")
    if effort is not None:
        raise FieldError("budget", "give a budget or a quality, not both")
    return limits.budget_of(budget, steps)


def _drafted(
    sampler: SamplerOptions,
    wanted: bool | None,
    model: str,
    offer: ServingCatalog,
    loras: tuple[Lora, ...],
) -> SamplerOptions:
    """With a drafter where one is wanted. Nothing said: the model's own, where it has one; drafts
    were measured without a LoRA."""
    if wanted is None:
        own = offer.defaults(model).drafted is not None and not loras
        return replace(sampler, draft=AUTO) if own else sampler
    if not wanted:
        return sampler
    if offer.drafts_first:
        return replace(sampler, draft=AUTO)
    if offer.draft is None or model != offer.model:
        raise FieldError("draft", "no drafter is offered here for this model; leave draft out")
    drafted = replace(sampler, draft=offer.draft)
    return drafted.from_noise() if loras else drafted


def notes_of(request: Prepared, limits: SearchLimits) -> list[str]:
    """What is told of a search that runs otherwise than it was asked for."""
    notes = [] if request.doubt is None else [request.doubt]
    budget = request.budget
    steps = request.engine.call.get("num_inference_steps", 1)
    if budget.images is not None and budget.images * steps > limits.nfe:
        notes.append(
            f"a request has at most {limits.nfe} evaluations here, which are"
            f" {limits.nfe / steps:.3g} of the {budget.images:g} images' worth that was asked for"
        )
    if budget.seconds is not None and budget.seconds > limits.seconds:
        notes.append(
            f"a search ends after {limits.seconds:g} s here, not after {budget.seconds:g} s"
        )
    return notes
