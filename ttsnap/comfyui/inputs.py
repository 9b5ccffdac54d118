"""What the inputs of nodes mean, and what their outputs say, without ComfyUI. A workflow may be a
stranger's: it names what is offered. Files, addresses and code are named by the operator alone, in
a file beside the pack."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

import numpy as np
import torch
from annotated_types import Interval, MaxLen
from torch import Tensor

from ttsnap.core.checklist import is_list
from ttsnap.core.names import unknown
from ttsnap.core.prompt import Prompt
from ttsnap.core.protocols import Scores
from ttsnap.core.results import Candidate, Result
from ttsnap.files.reading import parse_object, read_object
from ttsnap.files.settings import Word, check, short
from ttsnap.loop.budget import Budget
from ttsnap.options.engine import EngineOptions
from ttsnap.options.model import ModelOptions
from ttsnap.options.sampler import SamplerOptions
from ttsnap.options.selection import SelectionOptions
from ttsnap.pipelines.comfyui.latents import GuiderDrafter
from ttsnap.request.limits import kernel_for, search_of
from ttsnap.request.request import EngineSpec, ModelDefaults, Prepared, SearchRequest, prepare
from ttsnap.results.rank import scores_by
from ttsnap.results.report import numbers, report
from ttsnap.reward_models.checklist import Checklist
from ttsnap.reward_models.registry import REWARDS, check_names, parts
from ttsnap.rewards.reward_model import RewardModel
from ttsnap.rewards.scoring import Shown

NOT_OFFERED = {"noise-aware", "editreward", "editscore"}
"""Rewards that need a folder, or the picture that was edited."""
REWARD_NAMES = sorted(
    REWARDS.keys() - NOT_OFFERED, key=lambda name: (name.startswith("scenes"), name)
)
"""Rewards by name. Those of the embedded model's world come last."""
KERNELS = {f"ttsnap: {name}": name for name in ("ode", "sde", "ddim", "ancestral", "renoise")}
"""ttsnap's own kernels, by their names in the list of samplers."""
NODE_BUDGET = Budget(images=8.0)
"""Where no node Budget is connected."""


class Weighted(NamedTuple):
    """One reward of a chain."""

    reward: RewardModel
    weight: float


LINKED = {"TTSNAP_REWARD": tuple, "TTSNAP_BUDGET": Budget, "TTSNAP_DRAFTER": GuiderDrafter}
"""What links of the pack's own types carry: chains of Weighted, and two more."""


def rewards_of(file: Path) -> dict[str, str]:
    """Specs of rewards by the names that a workflow may give: OFFERED, and those of the operator's
    file, if there is one: a JSON object of names and specs. ValueError for a damaged file, a name
    that is taken, and an unknown spec."""
    own: dict[str, str] = check(
        str(file), read_object(file) if file.exists() else {}, dict[Word, str]
    )
    if taken := REWARDS.keys() & own:
        raise ValueError(
            f"{file}: there is a reward {min(taken)!r} already; offer yours by another name"
        )
    check_names([*own.values()])
    return {name: name for name in REWARD_NAMES} | own


def checked(declared: Sequence[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """What a node was given, held to the inputs that it declares: ComfyUI lets links, and some
    JSON, carry anything.

    Optional ones without a value are left out. ValueError names the input.
    """
    there = [one for one in declared if not one.optional or values.get(one.id) is not None]
    return {one.id: _checked(one, values.get(one.id)) for one in there}


def _checked(declared: Any, value: Any) -> Any:
    # "*" itself says that it is not unlike any other
    name = declared.id
    kind = str(declared.io_type)
    if kind == "COMBO" and not (isinstance(value, str) and value in declared.options):
        raise ValueError(unknown(name, value, declared.options))
    if kind == "STRING":
        return check(name, value, Annotated[str, MaxLen(100_000)])
    if kind == "BOOLEAN":
        return check(name, value, bool)
    if kind in ("INT", "FLOAT"):
        number: type = int if kind == "INT" else float
        return check(name, value, Annotated[number, Interval(ge=declared.min, le=declared.max)])
    if kind != "COMBO" and (_is_data(value) or not isinstance(value, LINKED.get(kind, object))):
        raise ValueError(
            f"{name} takes what another node made, and no text or number; got {short(value)}"
        )
    return value


def _is_data(value: object) -> bool:
    """Whether a workflow can write a value by itself: texts, numbers, and lists and mappings of
    these."""
    if isinstance(value, list | tuple | Mapping):
        return all(map(_is_data, value.values() if isinstance(value, Mapping) else value))
    return value is None or isinstance(value, str | bytes | Real)


class NodeReward(RewardModel):
    """The first number that a node of ComfyUI gives for an image. Its texts get the prompt."""

    def __init__(self, name: str, kind: Any, also: Any = None) -> None:
        """kind: its class; None where there is none of that name. also: for the input that has no
        default."""
        if kind is None:
            raise ValueError(
                f"ComfyUI has no node {name[:100]!r}; give its title in the menu, or its class"
            )
        takes: dict[str, Any] = kind.INPUT_TYPES().get("required", {})
        self.name = name
        self.kind = kind
        self.given = {key: _default(*declared) for key, declared in takes.items()}
        self.images, self.texts = (
            [key for key in takes if takes[key][0] == what] for what in ("IMAGE", "STRING")
        )
        self.slots = [
            slot for slot, what in enumerate(kind.RETURN_TYPES) if what in ("FLOAT", "INT")
        ]
        lacks = [
            key
            for key, value in self.given.items()
            if value is None and key not in (*self.images, *self.texts)
        ]
        if len(self.images) != 1 or not self.slots or len(lacks) > (also is not None):
            raise ValueError(
                f"{name} takes {', '.join(takes)} and gives"
                f" {', '.join(map(str, kind.RETURN_TYPES))}; a reward takes one image, gives a"
                " number, and lacks nothing else but `also`"
            )
        self.given |= dict.fromkeys(lacks, also)

    def __call__(
        self, images: Tensor, prompts: Sequence[str], level: Tensor | None = None
    ) -> Scores:
        return [self._score(image, prompt) for image, prompt in zip(images, prompts, strict=True)]

    def _score(self, image: Tensor, prompt: str) -> float:
        arguments = {
            **self.given,
            **dict.fromkeys(self.texts, prompt),
            self.images[0]: image.movedim(0, -1)[None].cpu(),
        }
        output = getattr(self.kind(), self.kind.FUNCTION)(**arguments)
        value = (
            output["result"] if isinstance(output, dict) else getattr(output, "result", output)
        )[self.slots[0]]
        return float(value[0] if isinstance(value, list | tuple) else value)


def _default(what: Any, options: Any = None) -> Any:
    """The default of an input as ComfyUI declares it; None where there is none."""
    choices = what if isinstance(what, list | tuple) else (options or {}).get("options")
    return (options or {}).get("default", choices[0] if choices else None)


def checklist(items: str, by: Sequence[Weighted]) -> Weighted:
    """A checklist of these lines, or of what a prompt names, that one reward answers. ValueError
    for several, and for an item that cannot be read."""
    if len(by) != 1:
        raise ValueError(f"one reward answers a checklist, got a chain of {len(by)}")
    lines = [line.strip() for line in items.splitlines() if line.strip()]
    return Weighted(Checklist(lines or None, by[0].reward), 1.0)


class Wanted(NamedTuple):
    """The inputs of a node that say what is searched for."""

    prompt: str
    reward: tuple[Weighted, ...]
    """The utility is their weighted sum; beside a checklist they break ties."""
    sampler_name: str
    algorithm: str
    seed: int
    keep: int
    budget: Budget | None = None
    options: str = ""
    """Of the algorithm, a JSON object or nothing."""
    batch_size: int = 0
    """0 for what fits."""
    diverse: bool = False

    def search(self) -> Prepared:
        """The search that is asked for. ValueError for options that the algorithm does not have,
        and for a sampler of ComfyUI where it needs one that draws noise or has a path."""
        name = self.algorithm
        options = parse_object(self.options, "options") if self.options.strip() else {}
        algorithm = search_of({**options, "name": name} if options else name, {}, most=10_000)
        kernel = KERNELS.get(self.sampler_name, "pipeline")
        needed = kernel_for(algorithm)
        if self.sampler_name not in KERNELS and needed != "pipeline":
            raise ValueError(
                f"{name} branches candidates, or takes them back, which the sampler"
                f" {self.sampler_name} cannot do; choose the sampler 'ttsnap: {needed}'"
            )
        specs = tuple(each.reward for each in self.reward)
        batches = EngineOptions(batch_size=self.batch_size or None)
        engine = EngineSpec(ModelOptions("ComfyUI"), specs, SamplerOptions(kernel=kernel), batches)
        weights = [each.weight for each in self.reward]
        listed = any(map(is_list, specs))
        if listed and set(weights) != {1.0}:
            raise ValueError(
                f"beside a checklist rewards break ties and are not weighed, got weights {weights};"
                " set each to 1"
            )
        request = SearchRequest(
            (Prompt(self.prompt),),
            engine,
            algorithm,
            self.budget or NODE_BUDGET,
            self.seed,
            self.keep,
            selection=SelectionOptions("mean" if listed else weights, diverse=self.diverse),
        )
        return prepare(request, ModelDefaults(parts=partial(parts, packaged=False)))


Inputs = TypeVar("Inputs")


def picked(kind: type[Inputs], values: Mapping[str, Any]) -> Inputs:
    """Those of the inputs that are fields of a class."""
    names = inspect.signature(kind).parameters
    return kind(**{name: values[name] for name in names if name in values})


def frames(images: Sequence[Candidate]) -> Tensor:
    """Images (K, H, W, 3), best first, or the frames of videos in a row, as ComfyUI decodes
    them."""
    return torch.cat(
        [image.pixels.movedim(-3, -1).reshape(-1, *image.pixels.shape[-2:], 3) for image in images]
    )


def reported(result: Result, search: str, again: str | None) -> str:
    """What a search found and spent, in lines. again: how stock nodes make an image of a SEED, if
    they do."""
    lines = [search, *report(result)]
    if result.images and again and result.particles.parent[result.best.uid] < 0:
        lines.append(again.replace("SEED", str(result.best.seed)))
    return "\n".join(lines)


STOCK = "KSampler with seed SEED and otherwise the same inputs makes image 1 again"
"""How a stock node makes an image from the noise of a SEED."""


def of_draft(drafter: GuiderDrafter, steps: int, begin: int) -> str | None:
    """How stock nodes make an image from the draft of a SEED, at step `begin` of so many; None
    where they do not."""
    if not begin or (drafter.calls, drafter.first_time) != (1, 1.0):
        return None
    return (
        f"KSampler (Advanced) with noise_seed SEED, {steps} steps, start_at_step {begin} and"
        " otherwise the same inputs makes image 1 again, from the latent that KSampler makes with"
        " the drafter's model and cfg, seed SEED, 1 step, euler, simple"
    )


def values_of(images: Tensor, prompt: str, rewards: Sequence[Weighted]) -> tuple[list[float], str]:
    """The weighted sums of images (N, H, W, 3), and lines that say all scores. ValueError where a
    reward fails."""
    pictures = images[..., :3].movedim(-1, -3).float()
    texts = [prompt] * len(images)
    columns = []
    for reward, _ in rewards:
        reward.check([prompt])
        column, error = scores_by(
            reward, Shown(), pictures.clone(), texts, torch.zeros(len(images))
        )
        if error is not None:
            raise ValueError(f"the images have no scores: {error}")
        columns.append(column)
    table = np.stack(columns, 1)
    names = [reward.name for reward, _ in rewards]
    values = (table @ [weight for _, weight in rewards]).tolist()
    lines = [
        f"{i}: {numbers({'reward': value, **dict(zip(names, row, strict=True))})}"
        for i, (value, row) in enumerate(zip(values, table, strict=True))
    ]
    return values, "\n".join(lines)
