"""The page's form: its fields as a search request, and a search as lines that repeat it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Interval

from ttsnap.algorithms import ALGORITHMS, GROUPS
from ttsnap.algorithms.options import options_of as algorithm_options
from ttsnap.core.names import FieldError, unknown
from ttsnap.files.settings import Count, Fraction, Positive, check, short
from ttsnap.loop.budget import Budget
from ttsnap.options.call import WRITTEN
from ttsnap.options.model import EMBEDDED, TEXT, TURBO
from ttsnap.options.option import changed, option, options_of, values
from ttsnap.options.sampler import NONE, SamplerOptions
from ttsnap.pipelines.packaged import MODELS
from ttsnap.request.limits import PUBLIC_ALGORITHMS, SearchLimits, kernel_for, whole
from ttsnap.request.offer import SearchFields, ServingCatalog, request_of
from ttsnap.request.request import Prepared, SearchRequest

BASELINE = "best-of-n"
EXAMPLE_PROMPTS = (
    "a photo of a red bicycle leaning on a blue door",
    "three ceramic cups on a wooden shelf, soft morning light",
    "a fox reading a newspaper in a train, watercolour",
    "an isometric cutaway of a small bakery",
)
"""For models that read any."""
REDRAW = "image-to-image"
"""The task of a search with a picture."""
LEAST_STEPS = 2
MOST_SEED = 2**31 - 1
NOISE_HINT = "Adds noise at every step, so that branches of one candidate differ."


@dataclass(frozen=True)
class DemoLimits(SearchLimits):
    """Limits of one visitor's search. Options are flags of `ttsnap demo`."""

    nfe: Count = option(2000, "most denoiser evaluations for one search", flag="max_budget")
    seconds: Positive = option(120.0, "most seconds for one search", flag="max_seconds")
    side: Count = option(1024, "most pixels a side", flag="max_size")
    images: Count = 8
    prompt: Count = 400
    guidance: Positive = 30.0
    """The largest guidance scale."""
    upload: Count = 8 * 2**20
    """Bytes of an uploaded file."""

    def budget_of(self, text: object, steps: int) -> Budget:
        budget = super().budget_of(text, steps)
        if budget.seconds is not None and budget.seconds > self.seconds:
            raise FieldError(
                "budget",
                f"this demo allows {self.seconds:g} seconds for a search, got {short(text)}",
            )
        return budget


FIELDS = (
    *("prompt", "algorithm", "rewards", "budget", "steps", "seed", "keep", "size", "model"),
    *("negative", "guidance", "draft", "picture", "strength", "diverse"),
)
"""The fields of the form, in the order of the API's arguments. One that is missing is None."""


def read(fields: Mapping[str, Any], offer: ServingCatalog, limits: DemoLimits) -> SearchRequest:
    """The search request of the form's fields. FieldError says what is wrong with a field.

    size and guidance are the model's own where they are None; picture is the bytes of a file, or
    None.
    """
    fields = {**dict.fromkeys(FIELDS), **fields}
    algorithm = fields["algorithm"]
    guidance = fields["guidance"]
    negative = fields["negative"]
    data = fields["picture"]
    if not isinstance(algorithm, str) or algorithm not in PUBLIC_ALGORITHMS:
        raise FieldError("algorithm", unknown("algorithm", algorithm, PUBLIC_ALGORITHMS))
    if guidance is not None and guidance != "":
        guidance = check("guidance", guidance, Annotated[float, Interval(ge=0, le=limits.guidance)])
    if data is not None and not isinstance(data, bytes | bytearray | memoryview):
        raise FieldError("picture", f"picture is the bytes of a file, got {type(data).__name__}")
    picture = None if data is None else limits.picture(bytes(data), "picture")
    size = whole("image size", fields["size"] or 0, 0, limits.side)
    wanted = SearchFields.of(
        {
            "prompt": fields["prompt"],
            "model": fields["model"] if offer.any_model else None,
            "search": algorithm,
            "reward": fields["rewards"] or (),
            "budget": fields["budget"] or "",
            "steps": whole("steps", fields["steps"], LEAST_STEPS, limits.steps),
            "seed": whole("seed", fields["seed"], 0, MOST_SEED),
            "n": whole("images to keep", fields["keep"], 1, limits.images),
            "negative_prompt": None if str(negative or "").isspace() else negative or None,
            "guidance_scale": None if guidance == "" else guidance,
            "draft": fields["draft"] if picture is None and drafts(algorithm) else None,
            "diverse": fields["diverse"] or False,
        }
    )
    strength = None if picture is None else check("strength", fields["strength"] or 0, Fraction)
    sides: dict[str, Any] = {"width": size, "height": size} if size else {}
    task = TEXT if picture is None else REDRAW
    request = request_of(
        wanted, offer, limits, task=task, image=picture, strength=strength, **sides
    )
    for name in request.engine.rewards:
        if name.startswith("scenes") and request.model not in (EMBEDDED, TURBO):
            raise FieldError(
                "rewards",
                f"reward {name!r} reads the embedded model's captions only; choose another",
            )
    return request


def examples(offer: ServingCatalog) -> list[dict[str, Any]]:
    """Values of the form's fields to begin with, the first being preset: the showcases of all
    packaged models that may be used here, that of the offered one first, then further prompts for
    this one."""
    ours = MODELS.get(offer.model)
    if ours is None:
        return [{"prompt": prompt} for prompt in EXAMPLE_PROMPTS[:3]]
    others = [name for name in MODELS if name != offer.model] if offer.any_model else []
    presets = []
    for name in (offer.model, *others):
        shown = MODELS[name].showcase
        own = MODELS[name].rewards[0]
        if shown is not None and (own in offer.rewards or name == offer.model):
            draft = offer.drafts_first and offer.defaults(name).draft is not None
            preset = {"prompt": shown.prompt, "budget": shown.budget, "seed": shown.seed}
            presets.append(preset | _of_model(name, offer) | {"draft": draft})
    return presets + [
        {"prompt": prompt} | _of_model(offer.model, offer) for prompt in ours.examples
    ]


def _of_model(name: str, offer: ServingCatalog) -> dict[str, Any]:
    """Fields that go with a packaged model: itself and, where it is offered, its own reward."""
    own = MODELS[name].rewards[0]
    return {"model": name, "rewards": [own if own in offer.rewards else offer.rewards[0]]}


def title_of(request: SearchRequest) -> str:
    """The name of a search for people."""
    return ALGORITHMS[request.label].title


def baseline(request: SearchRequest) -> SearchRequest:
    """Best-of-N at the same budget, on the same seeds and sampler, without drafts."""
    return request.by(BASELINE, sampler=request.engine.undrafted.sampler)


def picture_task(request: SearchRequest) -> str | None:
    """The task of a search with a picture; None without one."""
    return REDRAW if "image" in request.prompt.inputs else None


def aspect_of(request: Prepared | SearchRequest) -> float:
    """The width of its images by their height; 1 where the call does not say."""
    width = request.engine.call.get("width")
    height = request.engine.call.get("height")
    return width / height if width and height else 1.0


def drafts(algorithm: str) -> bool:
    """Whether an algorithm uses drafts where there is a drafter."""
    return any(option.name == "draft_share" for option in algorithm_options(algorithm))


def budget_words(text: Any, steps: Any, limits: DemoLimits, strength: Any = 1) -> str:
    """A sentence on what a budget affords, or on what is wrong with it.

    strength: of a picture that is redrawn."""
    try:
        steps = whole("steps", steps, LEAST_STEPS, limits.steps)
        share = check("strength", strength or 0, Fraction)
        budget = limits.budget_of(text, steps)
    except FieldError as error:
        return str(error)
    caps = [] if budget.seconds is None else [f"{budget.seconds:g} seconds"]
    each = steps - int(steps - steps * share)  # as diffusers leaves out the first steps
    if budget.nfe is not None or budget.images is not None:
        nfe = budget.nfe if budget.images is None else int(budget.images * each)
        full = (nfe or 0) / each
        whole_images = f"{full:,.3g} whole image{'' if full == 1 else 's'}"
        caps.append(f"{nfe:,} evaluations of the model: as many as {whole_images} take")
    return f"At most {', and '.join(caps)}."


def algorithm_choices() -> list[tuple[str, str]]:
    """A label and the name of each algorithm, group by group."""
    return [
        (f"{ALGORITHMS[name].title}: {ALGORITHMS[name].summary}", name)
        for name in PUBLIC_ALGORITHMS
    ]


def group_css() -> str:
    """CSS rules for the name of each group above its first algorithm in the open list."""
    groups = [ALGORITHMS[name].group for name in PUBLIC_ALGORITHMS]
    firsts = {group: groups.index(group) for group in dict.fromkeys(groups)}
    return "".join(
        f'#algorithm li[data-index="{place}"]::before {{ content:'
        f" {json.dumps(GROUPS[group].partition(':')[0])}; }}\n"
        for group, place in firsts.items()
    )


def hint(algorithm: str) -> str:
    """A visitor's hint on an algorithm, in addition to its label."""
    entry = ALGORITHMS[algorithm]
    words = f"{entry.summary[0].upper()}{entry.summary[1:]}."
    if kernel_for(algorithm) == "sde":
        words += f" {NOISE_HINT}"
    if "noise-aware" in entry.needs:
        words += " Meant for scenes-noise-aware or another noise-aware reward."
    return words


PICTURE_FILE = "picture.png"
"""The name of the visitor's picture in these lines."""
FLAGS = {"search": "--algorithm", "num_images_per_prompt": "--keep"} | {
    option.name: option.dashed for option in (*WRITTEN.values(), *options_of(SamplerOptions))
}
"""What the command line calls arguments of a call, where that is another name."""


def python_lines(
    search: Prepared, device: str = "cpu", dtype: str = "float32", budget: Budget | None = None
) -> str:
    """Lines that run this search and save its winner. budget: in place of what was asked for."""
    request = search.request
    arguments = _arguments(search, budget, list(search.call)).items()
    words = {"prompt": repr(search.prompt.text), **{name: repr(value) for name, value in arguments}}
    head = "from ttsnap.pipelines import load\n"
    options = [] if request.model == EMBEDDED else [repr(request.model)]
    place = "" if device == "cpu" else f".to({device!r})"
    if place or dtype != "float32":
        head = f"import torch\n{head}"
        options.append(f"dtype=torch.{dtype}")
    if picture_task(request) is not None:
        head = f"from diffusers.utils import load_image\n{head}"
        options.append(f"task={picture_task(request)!r}")
        words["image"] = f"load_image({PICTURE_FILE!r})"
    lines = "".join(f"    {name}={value},\n" for name, value in words.items())
    return (
        f"{head}\npipe = load({', '.join(options)}){place}\nout = pipe(\n{lines})\n"
        'out.images[0].save("best.png")\n'
        "print(out.search[0].best.seed, out.search[0].best.reward)\n"
    )


def command_line(search: Prepared, budget: Budget | None = None) -> str:
    """The same by `ttsnap generate`."""
    request = search.request
    prompt = search.prompt.text
    arguments = _arguments(search, budget, [*WRITTEN, "strength"])
    if request.model != EMBEDDED:
        arguments["model"] = request.model
    if picture_task(request) is not None:
        arguments |= {"task": picture_task(request), "image": PICTURE_FILE}
    words = list[str]()
    for name, value in arguments.items():
        text = json.dumps(value) if isinstance(value, list) else str(value)
        words += [FLAGS.get(name, f"--{name}")]
        words += [] if value is True else [NONE if value is None else text]
    if prompt.startswith("-"):
        return shlex.join(["ttsnap", "generate", *words, "--", prompt])
    return shlex.join(["ttsnap", "generate", prompt, *words])


def _arguments(search: Prepared, budget: Budget | None, call: Sequence[str]) -> dict[str, Any]:
    """What a call of the pipeline takes beside prompt and picture; of its own arguments these."""
    request = search.request
    sampler = values(search.engine.sampler)
    names = changed(search.engine.sampler)
    # this algorithm has no drafts to leave out
    if sampler["draft"] is None and not drafts(request.label):
        names.remove("draft")
    rewards = request.engine.rewards or search.engine.rewards
    own = {name: search.call.get(name) for name in call if name != "image"}
    return {
        "search": request.label,
        "reward": rewards[0] if len(rewards) == 1 else list(rewards),
        "budget": str(budget or search.budget),
        **{name: sampler[name] for name in names},
        "seed": request.seed,
        **({"num_images_per_prompt": request.keep} if request.keep > 1 else {}),
        **({"diverse": True} if request.selection.diverse else {}),
        **{name: value for name, value in own.items() if value is not None},
    }
