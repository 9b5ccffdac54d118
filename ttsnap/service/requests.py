"""What a client may send, and what it means: everything that comes from outside is checked here.

The fields are those of OpenAI's `POST /v1/images/generations`, with ours beside them. A client names rewards and
searches that the operator offers, and no file, model or address.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ttsnap.algorithms import make_algorithm
from ttsnap.core.protocols import Algorithm
from ttsnap.files.reading import parse_json
from ttsnap.loop.budget import Budget
from ttsnap.options.call import CALL
from ttsnap.options.sampler import SamplerOptions
from ttsnap.service.algorithms import Search, kernel_for, search_of
from ttsnap.service.errors import RequestError
from ttsnap.service.limits import Limits, line_of

if TYPE_CHECKING:
    from ttsnap.pipelines.own_draft import OwnDraft

Format: TypeAlias = Literal["png", "jpeg", "webp"]
Quality: TypeAlias = Literal["low", "medium", "high", "auto"]
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
    quality: Quality = Field("auto", description="the effort: compute of 5, 20 or 80 images; auto is medium")
    response_format: Literal["b64_json"] = Field("b64_json", description="images come in the reply")
    output_format: Format = "png"
    output_compression: int = Field(100, ge=0, le=100, description="of jpeg and webp: 100 is the best quality")
    background: Literal["auto", "opaque"] = "auto"
    moderation: Literal["auto"] = "auto"
    stream: bool = Field(False, description="send events while the search runs")
    partial_images: int = Field(0, ge=0, le=3, description="how often a stream shows the best estimate so far")
    user: Annotated[str, Field(max_length=256)] | None = Field(None, description="taken and not used")
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
    negative_prompt: str | None = None
    kernel: Word | None = Field(None, description="how steps are made: pipeline, ode, sde, ...")


GenerationT = TypeVar("GenerationT", bound=Generation)


@dataclass(frozen=True)
class Offer:
    """What the operator offers: the model's name, the arguments of its call, the rewards by name, searches of files by
    name, and a drafter, if any. own: what requests take that say nothing of drafts, where their rewards are all
    `draftable` and it is known to help. edits: whether the model can change pictures."""

    model: str
    call: Mapping[str, object]
    rewards: tuple[str, ...]
    searches: Mapping[str, Algorithm] = field(default_factory=dict)
    draft: str | None = None
    own: OwnDraft | None = None
    draftable: Collection[str] = ()
    edits: bool = False


@dataclass(frozen=True)
class Configuration:
    """What an engine is made for: requests that agree in it share batches. call: arguments of the pipeline's call."""

    call: tuple[tuple[str, object], ...]
    sampler: SamplerOptions
    rewards: tuple[str, ...]


@dataclass(frozen=True)
class Asked:
    """A request as it runs. seconds: after which it ends with its best image; partial_images: to send meanwhile."""

    prompt: str
    configuration: Configuration
    search: Search
    budget: Budget
    seconds: float
    seed: int
    keep: int
    report: tuple[str, ...] = ()
    partial_images: int = 0


def parse(body: bytes) -> Generation:
    """What a body holds. RequestError that names the parameter."""
    try:
        fields = parse_json(body, "the request")
    except ValueError as error:
        raise RequestError(400, str(error), code="invalid_json") from None
    if not isinstance(fields, dict):
        raise RequestError(400, f"the request must be a JSON object, got {str(fields)[:60]}", code="invalid_json")
    return validated(Generation, fields)


def validated(kind: type[GenerationT], fields: Mapping[str, Any]) -> GenerationT:
    """The fields of a request of this kind. RequestError that names the parameter."""
    try:
        return kind.model_validate({name: value for name, value in fields.items() if value is not None})
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        name = str(first["loc"][0])[:60]
        if first["type"] == "extra_forbidden":
            message = f"unknown parameter {name!r}; there are {', '.join(kind.model_fields)}"
            raise RequestError(400, message, name, "unknown_parameter") from None
        said = f"{name}: {first['msg']}, got {str(fields.get(name))[:60]!r}"
        if name == "response_format":
            said = "response_format must be 'b64_json': images come in the reply, none is stored under an address"
        raise RequestError(400, said, name, "invalid_value") from None


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
    )


def plain(offer: Offer, limits: Limits) -> Asked:
    """A request that says nothing but its prompt."""
    return asked_of(Generation.model_validate({"prompt": "-"}), offer, limits)


ARGUMENTS = {
    "size": ("width", "height"),
    "guidance_scale": ("guidance_scale",),
    "negative_prompt": ("negative_prompt",),
    "strength": ("strength",),
}
"""Arguments of a pipeline's call by the parameters that set them."""


def each_left_out(asked: Asked, usual: Asked) -> Iterator[tuple[str, Asked]]:
    """A request with one of its parameters as a plain one has it, by the parameter's name, for each of them. Without
    its steps a request has the usual budget as well, which may count them."""
    call, plain = dict(asked.configuration.call), dict(usual.configuration.call)

    def without(names: tuple[str, ...]) -> Configuration:
        own = {name: plain[name] for name in names if name in plain}
        rest = {name: value for name, value in call.items() if name not in names} | own
        return replace(asked.configuration, call=tuple(sorted(rest.items())))

    for param, names in ARGUMENTS.items():
        yield param, replace(asked, configuration=without(names))
    sampler = asked.configuration.sampler
    for param, other in (
        ("kernel", replace(sampler, kernel=kernel_for(make_algorithm(asked.search.spec)))),
        ("draft", replace(sampler, draft=None)),
    ):
        yield param, replace(asked, configuration=replace(asked.configuration, sampler=other))
    yield "search", replace(asked, search=usual.search)
    yield "budget", replace(asked, budget=usual.budget)
    yield "steps", replace(asked, configuration=without(("num_inference_steps",)), budget=usual.budget)


def _call(wanted: Generation, offer: Offer, limits: Limits) -> dict[str, object]:
    """Arguments of the pipeline's call: the model's recommended ones, overridden by what was asked for."""
    call = dict(offer.call)
    given = {
        "num_inference_steps": ("steps", wanted.steps),
        "guidance_scale": ("guidance_scale", wanted.guidance_scale),
        "negative_prompt": ("negative_prompt", wanted.negative_prompt),
    }
    for name, (param, value) in given.items():
        if value is not None:
            if not CALL[name].kind.fits(value):
                raise _refused(param, f"{param} must be {CALL[name].kind.words}, got {str(value)[:60]}")
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


def _budget(wanted: Generation, steps: int, limits: Limits) -> Budget:
    """What the search may spend, always capped in evaluations or images: by the usual effort beside a budget in units
    that evaluations need not use up, as tokens and gradients, and else by the limit."""
    if wanted.budget is not None and wanted.quality != "auto":
        raise _refused("budget", "give a budget or a quality, not both")
    if wanted.budget is None:
        return Budget.of_effort("medium" if wanted.quality == "auto" else wanted.quality)
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
