"""What an operator offers to strangers, and the searches that they ask for, checked.

The service and the demo give the fields that their users filled in, by the names of the service's API; what comes back
holds nothing that is not offered and nothing beyond the limits.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from ttsnap.algorithms import make_algorithm
from ttsnap.core.protocols import Algorithm
from ttsnap.files.settings import short
from ttsnap.loop.budget import Budget
from ttsnap.options.call import CALL
from ttsnap.options.sampler import AUTO, SamplerOptions
from ttsnap.request.limits import FieldError, SearchLimits, fitting
from ttsnap.request.searches import OfferedSearch, kernel_for, search_of

MOST_NAME = 200
"""Characters of a model's name."""
ARGUMENTS = {"steps": "num_inference_steps", "guidance_scale": "guidance_scale", "strength": "strength"}
"""Fields that set one argument of the pipeline's call."""


class OwnDrafter(Protocol):
    """The drafter of the model's folder (ttsnap.pipelines.drafting.own_draft.OwnDraft)."""

    @property
    def name(self) -> str: ...

    def suits(self, algorithm: Algorithm, sampler: SamplerOptions, rewards: Any, call: Mapping[str, Any]) -> bool: ...


@dataclass(frozen=True)
class Offer:
    """What strangers choose from."""

    model: str
    """The name that they use."""
    rewards: tuple[str, ...]
    """By the names that they use; the first where none is named."""
    defaults: Callable[[str], Mapping[str, Any]]
    """The arguments of a model's call where nothing else is given."""
    searches: Mapping[str, Algorithm] = field(default_factory=dict)
    """Those of the operator's files, beside the algorithms of the catalogue."""
    draft: str | None = None
    """The drafter that they may ask for."""
    drafts_first: bool = False
    """Whether that is left to the model, which takes it where it is known to help."""
    own: OwnDrafter | None = None
    """The model's own drafter, which is taken where nothing is said, all rewards are `draftable` and it helps."""
    draftable: Collection[str] = ()
    any_model: bool = False
    """Whether another model may be named."""
    edits: bool = False
    """Whether the model can change pictures."""
    true_cfg: bool = False
    """Whether its call has a true_cfg_scale beside another guidance."""


@dataclass(frozen=True)
class Asked:
    """A search as it was asked for; everything in it is checked but the prompt, which the model may still refuse."""

    prompt: str
    model: str
    search: OfferedSearch
    rewards: tuple[str, ...]
    budget: Budget
    seed: int
    keep: int = 1
    call: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the pipeline's call, pictures among them."""
    sampler: SamplerOptions = field(default_factory=SamplerOptions)
    report: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """What is told of a search that runs otherwise than it was asked for."""


def asked_of(fields: Mapping[str, Any], offer: Offer, limits: SearchLimits) -> Asked:
    """The search that these fields ask for, of which those that are None are not given. FieldError for what is not
    offered, and for more than the limits allow."""
    given = {name: value for name, value in fields.items() if value is not None}
    model = _model(given.get("model"), offer)
    search = search_of(given["search"], offer.searches, limits.nfe)
    keep = given.get("n", 1)
    if keep > limits.images:
        raise FieldError("n", f"at most {limits.images} images are returned, got {keep}")
    rewards = limits.rewards_of(given.get("reward", offer.rewards[:1]), offer.rewards, "reward")
    call = _call(given, model, offer, limits)
    steps = call.get("num_inference_steps")
    budget = _budget(given, steps if isinstance(steps, int) else limits.steps, limits)
    report = given.get("report")
    return Asked(
        limits.line(fields["prompt"], "prompt"),
        model,
        search,
        rewards,
        budget,
        given["seed"] if "seed" in given else secrets.randbelow(2**31),
        keep,
        call,
        _sampler(given, search, rewards, call, model, offer),
        limits.rewards_of(report, offer.rewards, "report") if report else (),
        _notes(budget, steps if isinstance(steps, int) else 1, limits),
    )


def _model(name: object, offer: Offer) -> str:
    if not offer.any_model or name in (None, "", offer.model):
        return offer.model
    if not isinstance(name, str) or len(name) > MOST_NAME or not name.isprintable():
        raise FieldError("model", f"a model is a hub id or a folder, got {short(name)}")
    return name.strip()


def _call(given: Mapping[str, Any], model: str, offer: Offer, limits: SearchLimits) -> dict[str, Any]:
    """Arguments of the pipeline's call: the model's defaults, overridden by what was given."""
    call = dict(offer.defaults(model))
    for param, name in {**ARGUMENTS, **_true_cfg(given, offer)}.items():
        if param in given:
            call[name] = fitting(param, given[param], CALL[name].hint)
    if given.get("steps", 0) > limits.steps:
        raise FieldError("steps", f"at most {limits.steps} steps are made here, got {given['steps']}")
    if "negative_prompt" in given:
        call["negative_prompt"] = limits.line(given["negative_prompt"], "negative_prompt", empty=True)
    if "size" in given:
        width, height = given["size"]
        limits.check_size(width, height)
        call |= {"width": width, "height": height}
    return call | {name: given[name] for name in ("image", "mask_image") if name in given}


def _true_cfg(given: Mapping[str, Any], offer: Offer) -> dict[str, str]:
    """The argument that true_cfg_scale sets: that of the call, or for models with one guidance this."""
    if {"true_cfg_scale", "guidance_scale"} <= given.keys() and not offer.true_cfg:
        both = "give guidance_scale or true_cfg_scale, not both: they are one for this model"
        raise FieldError("true_cfg_scale", both)
    return {"true_cfg_scale": "true_cfg_scale" if offer.true_cfg else "guidance_scale"}


def _budget(given: Mapping[str, Any], steps: int, limits: SearchLimits) -> Budget:
    if "budget" in given and "effort" in given:
        raise FieldError("budget", "give a budget or a quality, not both")
    if "budget" in given:
        return limits.budget_of(given["budget"], steps)
    return Budget.of_effort(given.get("effort", "medium"))


def _sampler(
    given: Mapping[str, Any], search: OfferedSearch, rewards: tuple[str, ...], call: Mapping[str, Any], model: str,
    offer: Offer,
) -> SamplerOptions:  # fmt: skip
    """By default one that draws noise, where the search needs that; with the drafter, where one is wanted or helps."""
    sampler, wanted = SamplerOptions(given.get("kernel") or kernel_for(search.spec), draft=None), given.get("draft")
    if wanted is None and offer.own is not None and set(rewards) <= set(offer.draftable):
        helps = offer.own.suits(make_algorithm(search.spec), sampler, (), call)
        return replace(sampler, draft=offer.own.name if helps else None)
    if not wanted:
        return sampler
    if wanted is True and offer.drafts_first:
        return replace(sampler, draft=AUTO)
    if wanted is not True or offer.draft is None or model != offer.model:
        raise FieldError("draft", "no drafter is offered here for this model; leave draft out")
    return replace(sampler, draft=offer.draft)


def _notes(budget: Budget, steps: int, limits: SearchLimits) -> tuple[str, ...]:
    notes = []
    if budget.images is not None and budget.images * steps > limits.nfe:
        notes.append(f"a request has at most {limits.nfe} evaluations here, which are {limits.nfe / steps:.3g} of the "
                     f"{budget.images:g} images' worth that was asked for")  # fmt: skip
    if budget.seconds is not None and budget.seconds > limits.seconds:
        notes.append(f"a search ends after {limits.seconds:g} s here, not after {budget.seconds:g} s")
    return tuple(notes)
