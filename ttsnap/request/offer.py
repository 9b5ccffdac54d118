"""What an operator offers to strangers, and the searches that they ask for, checked.

The service and the demo give the fields that their users filled in, by the names of the service's
API; what comes back holds nothing that is not offered and nothing beyond the limits.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, replace
from typing import Annotated, Any

from annotated_types import Interval, MaxLen

from ttsnap.algorithms import make_algorithm
from ttsnap.core.names import FieldError
from ttsnap.core.prompt import Prompt
from ttsnap.core.protocols import Algorithm
from ttsnap.core.requirement import Requirement
from ttsnap.files.settings import Count, Word, build, short
from ttsnap.loop.budget import Budget
from ttsnap.options.call import CALL, Scale, Steps
from ttsnap.options.model import ModelOptions
from ttsnap.options.option import option
from ttsnap.options.sampler import AUTO, SamplerOptions
from ttsnap.options.selection import SelectionOptions
from ttsnap.request.allowlist import kernel_for, search_of
from ttsnap.request.limits import SearchLimits
from ttsnap.request.request import (
    AlgorithmSpec,
    EngineSpec,
    Lora,
    ModelDefaults,
    Prepared,
    SearchRequest,
    fitted_steps,
)

Name = Annotated[str, MaxLen(100)]


@dataclass(frozen=True)
class SearchFields:
    """What strangers write in the same words at every door; None: nothing."""

    prompt: str = option(MISSING, "what to show")
    model: Word | None = option(None, "the name of the model that is served")
    n: Count = option(1, "images to keep of those that the search finishes, best first")
    diverse: bool = option(
        False, "keep images that are good and unlike each other, not just the best ones"
    )
    search: Name | dict[str, Any] = option(
        "seed-pruning",
        'an algorithm of `ttsnap algorithms`, as NAME or {"name": NAME, OPTION: VALUE, ...}',
    )
    draft: bool | None = option(
        None, "look at drafts of the drafter that is offered; by default where it is known to help"
    )
    reward: Name | list[Name] | None = option(
        None, "names of rewards that are offered, the first if none"
    )
    report: Name | list[Name] | None = option(None, "rewards that only score the returned images")
    require: Name | list[Name] | None = option(
        None,
        "what an image must meet to be returned, by rewards that are offered: REWARD>=NUMBER, or"
        " several",
    )
    budget: Annotated[str, MaxLen(60)] | int | float | None = option(
        None, "400nfe, 20images, 10s, ..."
    )
    seed: Annotated[int, Interval(ge=0, lt=2**63)] | None = option(
        None, "candidate i starts from seed + i; else a random one"
    )
    steps: Steps | None = option(None, CALL["num_inference_steps"].text)
    guidance_scale: Scale | None = option(None, CALL["guidance_scale"].text)
    true_cfg_scale: Scale | None = option(None, "guidance_scale, but for models that have both")
    negative_prompt: str | None = option(None, "what not to show")
    kernel: Name | None = option(None, "how steps are made: pipeline, ode, sde, ...")
    lora: Name | dict[str, Any] | list[Any] | None = option(
        None,
        'a LoRA that is offered, as NAME or {"name": NAME, "scale": NUMBER}; or a list of several',
    )

    @classmethod
    def of(cls, given: Mapping[str, object]) -> SearchFields:
        """From plain values by name. FieldError for a name that is none, and for a value of another
        type."""
        return build(cls, {name: value for name, value in given.items() if value is not None})


@dataclass(frozen=True)
class ServingCatalog:
    """What strangers choose from."""

    model: str
    """The name that they use."""
    rewards: tuple[str, ...]
    """By the names that they use; the first where none is named."""
    defaults: Callable[[str], ModelDefaults]
    """What a model decides where nothing is given."""
    searches: Mapping[str, Algorithm] = field(default_factory=dict)
    """Those of the operator's files, beside the algorithms of the catalogue."""
    loras: Callable[[], Mapping[str, Lora]] = dict
    """LoRAs by the names that they use, as there are now."""
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


def request_of(
    given: SearchFields,
    offer: ServingCatalog,
    limits: SearchLimits,
    effort: str | None = None,
    **more: Any,
) -> SearchRequest:
    """The search that is asked for. FieldError for what is not offered, and for more than the
    limits allow.

    effort: in place of a budget. more: arguments of the model's own call, pictures among them; None
        for nothing.
    """
    model = given.model.strip() if given.model and offer.any_model else offer.model
    if not model.isprintable():
        raise FieldError("model", f"a model is a hub id or a folder, got {short(model)}")
    search = search_of(given.search, offer.searches, limits.nfe)
    if given.n > limits.images:
        raise FieldError("n", f"at most {limits.images} images are returned, got {given.n}")
    rewards = limits.rewards_of(
        offer.rewards[:1] if given.reward is None else given.reward, offer.rewards, "reward"
    )
    pictures = {
        name: more.pop(name) for name in ("image", "mask_image") if more.get(name) is not None
    }
    call, negative = _call(given, offer, limits, more), given.negative_prompt
    loras = () if given.lora is None else limits.loras_of(given.lora, offer.loras())
    known = offer.defaults(model)
    own = fitted_steps(make_algorithm(search)) if given.steps is None else given.steps
    if own is not None and own > limits.steps:
        raise FieldError("steps", f"at most {limits.steps} steps are made here, got {own}")
    steps = own or known.call.get("num_inference_steps", limits.steps)
    text = limits.line(given.prompt, "prompt")
    try:
        known.canonical(text)  # what the model cannot read is refused at once
    except ValueError as error:
        raise FieldError("prompt", str(error)) from None
    prompt = Prompt(
        text,
        negative=None if negative is None else limits.line(negative, "negative_prompt", empty=True),
        inputs=pictures,
    )
    return SearchRequest(
        (prompt,),
        EngineSpec(
            ModelOptions(model),
            rewards,
            _sampler(given, search, model, offer, loras),
            call=call,
            loras=loras,
        ),
        search,
        _budget(given, effort, steps, limits),
        secrets.randbelow(2**31) if given.seed is None else given.seed,
        given.n,
        selection=SelectionOptions(
            report=limits.rewards_of(given.report, offer.rewards, "report") if given.report else (),
            diverse=given.diverse,
            require=_requirements(given.require, offer, limits) if given.require else (),
        ),
    )


def _requirements(
    given: str | list[str], offer: ServingCatalog, limits: SearchLimits
) -> tuple[Requirement, ...]:
    """Requirements on rewards that are offered. FieldError for others, and for what cannot be
    read."""
    try:
        read = [Requirement.parse(text) for text in ([given] if isinstance(given, str) else given)]
    except ValueError as error:
        raise FieldError("require", str(error)) from None
    limits.rewards_of([one.reward for one in read], offer.rewards, "require")
    return tuple(read)


def _call(
    given: SearchFields, offer: ServingCatalog, limits: SearchLimits, more: Mapping[str, Any]
) -> dict[str, Any]:
    """Arguments of the pipeline's call."""
    if given.true_cfg_scale is not None and given.guidance_scale is not None and not offer.true_cfg:
        both = "give guidance_scale or true_cfg_scale, not both: they are one for this model"
        raise FieldError("true_cfg_scale", both)
    if (frames := more.get("num_frames")) is not None and frames > limits.frames:
        raise FieldError(
            "num_frames", f"videos have at most {limits.frames} frames here, got {frames}"
        )
    own = {"num_inference_steps": given.steps, "guidance_scale": given.guidance_scale, **more}
    if given.true_cfg_scale is not None:
        own["true_cfg_scale" if offer.true_cfg else "guidance_scale"] = given.true_cfg_scale
    if "width" in more:
        limits.check_size(more["width"], more["height"])
    return {name: value for name, value in own.items() if value is not None}


def _budget(given: SearchFields, effort: str | None, steps: int, limits: SearchLimits) -> Budget:
    if given.budget is None:
        return Budget.of_effort(effort or "medium")
    if effort is not None:
        raise FieldError("budget", "give a budget or a quality, not both")
    return limits.budget_of(given.budget, steps)


def _sampler(
    given: SearchFields,
    search: AlgorithmSpec,
    model: str,
    offer: ServingCatalog,
    loras: tuple[Lora, ...],
) -> SamplerOptions:
    """By default one that draws noise, where the search needs that; drafts were measured without a
    LoRA."""
    sampler = SamplerOptions(given.kernel or kernel_for(search), draft=None)
    if not given.draft:
        own = given.draft is None and offer.defaults(model).drafted is not None and not loras
        return replace(sampler, draft=AUTO) if own else sampler
    if offer.drafts_first:
        return replace(sampler, draft=AUTO)
    if offer.draft is None or model != offer.model:
        raise FieldError("draft", "no drafter is offered here for this model; leave draft out")
    drafted = replace(sampler, draft=offer.draft)
    return drafted.from_noise() if loras else drafted


def notes_of(request: Prepared, limits: SearchLimits) -> list[str]:
    """What is told of a search that runs otherwise than it was asked for."""
    notes = [] if request.doubt is None else [request.doubt]
    budget, steps = request.budget, request.engine.call.get("num_inference_steps", 1)
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
