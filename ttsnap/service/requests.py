"""What a client may send, and what it means: everything that comes from outside is checked here.

The fields are those of OpenAI's `POST /v1/images/generations`, with ours beside them. A client names rewards and
searches that the operator offers, and no file, model or address.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

from ttsnap.algorithms import make_algorithm
from ttsnap.core.protocols import Algorithm
from ttsnap.files.reading import parse_json
from ttsnap.files.settings import check
from ttsnap.loop.budget import Budget
from ttsnap.options.call import CALL
from ttsnap.options.sampler import SamplerOptions
from ttsnap.service.algorithms import Search, kernel_for, search_of
from ttsnap.service.errors import RequestError
from ttsnap.service.fields import validated
from ttsnap.service.limits import Limits, line_of

if TYPE_CHECKING:
    from ttsnap.pipelines.drafting.own_draft import OwnDraft

Format: TypeAlias = Literal["png", "jpeg", "webp"]
Quality: TypeAlias = Literal["low", "medium", "high", "auto", "standard", "hd"]
EFFORT: dict[Quality, str] = {"auto": "medium", "standard": "medium", "hd": "high"}
"""The effort of qualities that go by another name."""
Word = Annotated[str, Field(max_length=100)]


class Generation(BaseModel):
    """The body of a request. What OpenAI's API has and this service cannot honour is refused by name."""

    model_config = ConfigDict(extra="forbid", strict=True)
    kind: ClassVar[str] = "image_generation"
    """What events of a stream are about."""

    prompt: str = Field(description="what to show")
    model: Word | None = Field(None, description="the name of the model that is served")
    n: int = Field(1, ge=1, description="images to keep of those that the search finishes, best first")
    size: str = Field("auto", pattern=r"^(auto|[0-9]{1,5}x[0-9]{1,5})$", description="WIDTHxHEIGHT, or auto")
    quality: Quality = Field(
        "auto", description="the effort: compute of 5, 20 or 80 images; auto and standard are medium, hd is high"
    )
    response_format: Literal["b64_json", "url"] = Field("b64_json", description="images in base64, or as data: URLs")
    output_format: Format = "png"
    output_compression: int = Field(100, ge=0, le=100, description="of jpeg and webp: 100 is the best quality")
    background: Literal["auto", "opaque"] = "auto"
    moderation: Literal["auto", "low"] = Field("auto", description="taken and not used")
    stream: bool = Field(False, description="send events while the search runs")
    partial_images: int = Field(0, ge=0, le=3, description="how often a stream shows the best estimate so far")
    search: Word | dict[str, Any] = Field(
        "seed-pruning", description='an algorithm of `ttsnap algorithms`, as NAME or {"name": NAME, OPTION: VALUE, ...}'
    )
    draft: bool | None = Field(
        None, description="look at drafts of the drafter that is offered; by default where it is known to help"
    )
    reward: Word | list[Word] | None = Field(None, description="names of rewards that are offered, the first if none")
    report: Word | list[Word] | None = Field(None, description="rewards that only score the returned images")
    budget: Annotated[str, Field(max_length=60)] | int | None = Field(None, description="400nfe, 20images, 10s, ...")
    seed: int | None = Field(None, ge=0, lt=2**63, description="candidate i starts from seed + i; else a random one")
    steps: int | None = Field(None, ge=1)
    guidance_scale: float | None = None
    true_cfg_scale: float | None = Field(None, description="guidance_scale, but for models that have both")
    negative_prompt: str | None = None
    kernel: Word | None = Field(None, description="how steps are made: pipeline, ode, sde, ...")
    _unused: list[str] = PrivateAttr(default_factory=list)

    @property
    def effort(self) -> str:
        """low, medium or high."""
        return EFFORT.get(self.quality, self.quality)

    def without(self, unused: list[str]) -> Self:
        """The same, which remembers the names of what was sent and is not used."""
        self._unused = unused
        return self

    @property
    def unused(self) -> list[str]:
        """What was sent and changes nothing here, by name."""
        return self._unused + ["moderation"] * (self.moderation == "low")


@dataclass(frozen=True)
class Offer:
    """What the operator offers: the model's name, the arguments of its call, the rewards by name, searches of files by
    name, and a drafter, if any. own: what requests take that say nothing of drafts, where their rewards are all
    `draftable` and it is known to help. edits: whether the model can change pictures; true_cfg: whether its call has a
    true_cfg_scale beside another guidance."""

    model: str
    call: Mapping[str, object]
    rewards: tuple[str, ...]
    searches: Mapping[str, Algorithm] = field(default_factory=dict)
    draft: str | None = None
    own: OwnDraft | None = None
    draftable: Collection[str] = ()
    edits: bool = False
    true_cfg: bool = False


@dataclass(frozen=True)
class Configuration:
    """What an engine is made for: requests that agree in it share batches. call: arguments of the pipeline's call."""

    call: tuple[tuple[str, object], ...]
    sampler: SamplerOptions
    rewards: tuple[str, ...]


@dataclass(frozen=True)
class Asked:
    """A request as it runs. seconds: after which it ends with its best image; partial_images: to send meanwhile; notes:
    what the client is told of it."""

    prompt: str
    configuration: Configuration
    search: Search
    budget: Budget
    seconds: float
    seed: int
    keep: int
    report: tuple[str, ...] = ()
    partial_images: int = 0
    notes: tuple[str, ...] = ()


def parse(body: bytes) -> Generation:
    """What a body holds. RequestError that names the parameter."""
    try:
        fields = parse_json(body, "the request")
    except ValueError as error:
        raise RequestError(400, str(error), code="invalid_json") from None
    if not isinstance(fields, dict):
        raise RequestError(400, f"the request must be a JSON object, got {str(fields)[:60]}", code="invalid_json")
    made, unused = validated(Generation, fields)
    return made.without(unused)


def asked_of(wanted: Generation, offer: Offer, limits: Limits, more: Mapping[str, object] | None = None) -> Asked:
    """What runs. more: further arguments of the pipeline's call. RequestError for what is not offered here, or more
    than the limits allow."""
    if wanted.model not in (None, offer.model):
        raise RequestError(404, f"no model {wanted.model!r} here; there is {offer.model!r}", "model", "model_not_found")
    try:
        search = search_of(wanted.search, offer.searches, limits.nfe)
    except ValueError as error:
        raise _refused("search", str(error)) from None
    if wanted.n > limits.images:
        raise _refused("n", f"at most {limits.images} images are returned, got n = {wanted.n}")
    if wanted.partial_images and not wanted.stream:
        raise _refused("partial_images", "partial images come in a stream only; set stream to true")
    call = {**_call(wanted, offer, limits), **(more or {})}
    steps = call.get("num_inference_steps")
    budget = _budget(wanted, steps if isinstance(steps, int) else limits.steps, limits)
    rewards = _rewards(wanted.reward, offer, limits, "reward")
    arguments = tuple((name, tuple(v) if isinstance(v, list) else v) for name, v in sorted(call.items()))
    return Asked(
        _line(wanted.prompt, "prompt", limits),
        Configuration(arguments, _sampler(wanted, search, offer, call, rewards), rewards),
        search,
        replace(budget, seconds=None),
        min(budget.seconds or limits.seconds, limits.seconds),
        secrets.randbelow(2**31) if wanted.seed is None else wanted.seed,
        wanted.n,
        _rewards(wanted.report, offer, limits, "report") if wanted.report else (),
        wanted.partial_images,
        _notes(wanted, budget, steps if isinstance(steps, int) else 1, limits),
    )


def _notes(wanted: Generation, budget: Budget, steps: int, limits: Limits) -> tuple[str, ...]:
    """What a client is told of a request that runs otherwise than it was asked for."""
    notes = [f"not used here: {', '.join(unused)}"] if (unused := wanted.unused) else []
    if budget.images is not None and budget.images * steps > limits.nfe:
        notes.append(f"a request has at most {limits.nfe} evaluations here, which are {limits.nfe / steps:.3g} of the "
                     f"{budget.images:g} images' worth that was asked for")  # fmt: skip
    if budget.seconds is not None and budget.seconds > limits.seconds:
        notes.append(f"a search ends after {limits.seconds:g} s here, not after {budget.seconds:g} s")
    return tuple(notes)


def plain(offer: Offer, limits: Limits) -> Asked:
    """A request that says nothing but its prompt."""
    return asked_of(Generation.model_validate({"prompt": "-"}), offer, limits)


def _call(wanted: Generation, offer: Offer, limits: Limits) -> dict[str, object]:
    """Arguments of the pipeline's call: the model's recommended ones, overridden by what was asked for."""
    call = dict(offer.call)
    given = {
        "num_inference_steps": ("steps", wanted.steps),
        "guidance_scale": ("guidance_scale", wanted.guidance_scale),
        **_true_cfg(wanted, offer),
        "negative_prompt": ("negative_prompt", wanted.negative_prompt),
    }
    for name, (param, value) in given.items():
        if value is not None:
            try:
                check(param, value, CALL[name].hint)
            except ValueError as error:
                raise _refused(param, str(error)) from None
            call[name] = value
    if wanted.steps is not None and wanted.steps > limits.steps:
        raise _refused("steps", f"at most {limits.steps} steps are made here, got {wanted.steps}")
    if wanted.negative_prompt:
        call["negative_prompt"] = _line(wanted.negative_prompt, "negative_prompt", limits)
    if wanted.size != "auto":
        width, height = map(int, wanted.size.split("x"))
        if not (min(width, height) >= 16 and max(width, height) <= limits.side):
            raise _refused("size", f"sides of 16 to {limits.side} pixels are made here, got {wanted.size}")
        call |= {"width": width, "height": height}
    return call


def _true_cfg(wanted: Generation, offer: Offer) -> dict[str, tuple[str, float | None]]:
    """The argument that true_cfg_scale sets, and its value; nothing where it was not given."""
    if wanted.true_cfg_scale is None:
        return {}
    if not offer.true_cfg and wanted.guidance_scale is not None:
        raise _refused("true_cfg_scale", "give guidance_scale or true_cfg_scale, not both: they are one for this model")
    return {"true_cfg_scale" if offer.true_cfg else "guidance_scale": ("true_cfg_scale", wanted.true_cfg_scale)}


def _budget(wanted: Generation, steps: int, limits: Limits) -> Budget:
    """What the search may spend, always capped in evaluations or images: by the usual effort beside a budget in units
    that evaluations need not use up, as tokens and gradients, and else by the limit."""
    if wanted.budget is not None and wanted.quality != "auto":
        raise _refused("budget", "give a budget or a quality, not both")
    if wanted.budget is None:
        return Budget.of_effort(wanted.effort)
    try:
        budget = Budget.parse(wanted.budget)
    except ValueError as error:
        raise _refused("budget", str(error)) from None
    asked = [cap for cap in (budget.nfe, budget.images and budget.images * steps) if cap is not None]
    if asked and min(asked) > limits.nfe:
        most = f"at most {limits.nfe} evaluations are spent on a request here"
        raise _refused("budget", f"{most}, got {str(wanted.budget)!r}: {min(asked):g} at {steps} steps")
    if not asked and budget.seconds is None and budget.flops is None:
        return replace(budget, images=Budget.of_effort("medium").images)
    return budget if asked else replace(budget, nfe=limits.nfe)


def _rewards(names: str | list[str] | None, offer: Offer, limits: Limits, param: str) -> tuple[str, ...]:
    wanted = [names] if isinstance(names, str) else offer.rewards[:1] if names is None else names
    if not 0 < len(wanted) <= limits.rewards:
        raise _refused(param, f"name 1 to {limits.rewards} rewards, got {len(wanted)}")
    for name in wanted:
        if name not in offer.rewards:
            raise _refused(param, f"no reward {name!r} here; choose of {', '.join(offer.rewards)}")
    return tuple(dict.fromkeys(wanted))


def _sampler(
    wanted: Generation, search: Search, offer: Offer, call: Mapping[str, object], rewards: tuple[str, ...]
) -> SamplerOptions:
    """By default one that draws noise, where the search needs that; with the drafter, where one is wanted or helps."""
    if wanted.draft and offer.draft is None:
        raise _refused("draft", "no drafter is offered here; leave draft out")
    algorithm = make_algorithm(search.spec)
    sampler = SamplerOptions(wanted.kernel or kernel_for(algorithm), draft=offer.draft if wanted.draft else None)
    left_open = wanted.draft is None and offer.own is not None and set(rewards) <= set(offer.draftable)
    if left_open and offer.own is not None and offer.own.suits(algorithm, sampler, (), call):
        return replace(sampler, draft=offer.own.name)
    return sampler


def _line(text: str, param: str, limits: Limits) -> str:
    try:
        line = line_of(text, param, limits.prompt)
    except ValueError as error:
        raise _refused(param, str(error)) from None
    if not line:
        raise _refused(param, f"{param} must be text of 1 to {limits.prompt} characters, got none")
    return line


def _refused(param: str, message: str) -> RequestError:
    return RequestError(400, message, param, "invalid_value")
