"""The stock call of a pipeline: its arguments, that of one prompt, what frames are begun of, and what
differs from seed to seed.

It says what the call is given, and how its frames go: how many images they have, which parts they do
without, where latents are put in, what their schedulers say. Frames of one call differ in their
latents alone."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from ttsnap.core.prompt import Prompt
from ttsnap.files.pictured import opened
from ttsnap.pipelines.arguments import call_parameters, embeddings_in
from ttsnap.pipelines.calls import modular
from ttsnap.pipelines.calls.dummies import Dummies
from ttsnap.pipelines.calls.parts import ENCODE, Parts, locked, modules_of, tokenizers_of
from ttsnap.pipelines.calls.pictures import PICTURES
from ttsnap.pipelines.calls.stops import LatentsPlace, PartCall
from ttsnap.pipelines.calls.values import Fields, Kept

# --- What the schedulers of frames say where it is not their own: other timesteps, other noise
# levels
# A call that was converted to another path steps at times of that path. A draft is told of less noise
# than there is, and that its step arrives at the end.


class Told(NamedTuple):
    """What a scheduler says."""

    times: Tensor
    """(P,) timesteps."""
    sigmas: Tensor | None = None
    """(P + 1,) noise levels; None: its own."""

    @classmethod
    def of(cls, scheduler: Any) -> Told:
        """What a scheduler says, whose timesteps are set."""
        times = torch.as_tensor(scheduler.timesteps).cpu()
        sigmas = getattr(scheduler, "sigmas", None)
        known = sigmas is not None and len(sigmas) > len(times)
        wide = times if times.is_floating_point() else times.float()
        return cls(wide, torch.as_tensor(sigmas).cpu() if known else None)

    def at(self, position: int, timestep: float) -> Told:
        """Another timestep at a position."""
        times = self.times.clone()
        times[position] = timestep
        return self._replace(times=times)

    def arriving(self, position: int) -> Told:
        """Nothing after a position, so that the step from it arrives at the end."""
        after = torch.arange(len(self.times) + 1) > position
        times = self.times.masked_fill(after[:-1], 0)
        if self.sigmas is None:
            return Told(times)
        return Told(times, self.sigmas.masked_fill(after[: len(self.sigmas)], 0))


# --- How a stock call is told to make several images of one prompt --------------------------------
# Widening("num_images_per_prompt").of({"prompt": "a fox"}, 3)
# # {"prompt": "a fox", "num_images_per_prompt": 3}
# Widening().of({"prompt": "a fox"}, 3)
# # {"prompt": ["a fox", "a fox", "a fox"]}

COUNTS = ("num_images_per_prompt", "num_videos_per_prompt")
"""Arguments that say how many."""


class Widening(NamedTuple):
    """One way."""

    number: str | None = None
    """The argument that says how many; None: prompts and pictures are lists."""
    rowed: Mapping[str, frozenset[Any]] = {}
    """Which arguments of each part's calls have a row for each image (joining.Path)."""

    def of(self, arguments: Mapping[str, Any], n: int) -> dict[str, Any]:
        """The arguments of n images."""
        if self.number is not None:
            return {**arguments, self.number: n}
        return {name: _repeated(name, value, n) for name, value in arguments.items()}


def ways(arguments: Collection[str]) -> list[Widening]:
    """What a call with these arguments may know."""
    return [*(Widening(name) for name in COUNTS if name in arguments), Widening()]


def _repeated(name: str, value: Any, n: int) -> Any:
    """An argument of one image, for n."""
    if value is None or not ("prompt" in name or name in PICTURES):
        return value
    if isinstance(value, Tensor):
        return torch.cat([value] * n)
    if isinstance(value, list):
        return value * n
    return [value] * n


# --- The stock call of a pipeline, for one prompt: what frames are begun of -----------------------
# It says what the call is given, and how its frames go: which parts they do without, where latents
# are put in, what their schedulers say. Frames of one call differ in their latents alone.

WIDTHS = 2
"""Of how many widths what methods encoded is kept, which has a copy of it for each image."""


@dataclass(frozen=True)
class StockCall:
    """The stock call of a pipeline, for one prompt."""

    pipe: Any
    """A pipeline object of this call alone."""
    function: Callable[..., Any]
    """The stock `__call__`."""
    arguments: Mapping[str, Any]
    device: torch.device
    """Where it computes."""
    tokenizers: Mapping[str, Any]
    """By name. All frames share them: `encode_prompt` may set one, and is called once."""
    places: Sequence[LatentsPlace] | None = None
    """Where the first latents of each field come from. None in a rehearsal, which finds it."""
    fields: Fields | None = None
    """What a round steps, asked as one. None in a rehearsal, where each step asks by itself."""
    told: Told | None = None
    """What its schedulers say; None: what is their own."""
    scaled: Callable[[Tensor, int], Tensor] | None = None
    """The network's input of latents at an index; None: what the scheduler makes of them."""
    networks: frozenset[str] = frozenset()
    """The parts that denoise, which a frame that is led to a later step does without."""
    asleep: frozenset[str] = frozenset()
    """The parts that a frame does without at its end."""
    hooked: frozenset[str] = frozenset()
    """The parts in which the call puts hooks."""
    dummies: Dummies = field(default_factory=Dummies)
    """What networks and others answer where a frame does without them."""
    kept: Kept = field(default_factory=Kept)
    """What encoders made for its frames."""
    encodings: Kept = field(default_factory=Kept)
    """What methods of the pipeline made of that, for frames of this width."""
    beside: StockCall | None = None
    """One of the same prompt, with which it shares what is kept; it may have other steps."""
    widening: Widening | None = None
    """How it makes several images; None: it makes one."""
    width: int = 1
    """How many it makes."""
    _wide: dict[int, StockCall] = field(default_factory=dict, init=False)
    """The same for other widths, those of the last frames."""

    @functools.cached_property
    def parts(self) -> Parts:
        """Those of the pipeline."""
        return dict(self.pipe.components)

    @functools.cached_property
    def modules(self) -> dict[str, nn.Module]:
        """The parts that ask, by name."""
        return modules_of(self.parts)

    @property
    def takes(self) -> Mapping[str, inspect.Parameter]:
        """The arguments that the call takes."""
        return call_parameters(type(self.pipe).stock_class())

    def widened(self, width: int) -> StockCall:
        """The same call of so many images."""
        if width == self.width:
            return self
        assert self.widening is not None
        found = self._wide.pop(width, None)
        if found is None:
            arguments = self.widening.of(self.arguments, width)
            kept = Kept() if self.beside is None else self.beside.widened(width).encodings
            found = replace(self, arguments=arguments, width=width, encodings=kept)
        self._wide[width] = found
        for old in list(self._wide)[:-WIDTHS]:
            del self._wide[old]
        return found

    def rowed(self, part: str) -> frozenset[Any] | None:
        """Which arguments of a part have rows, where frames have several images."""
        return None if self.widening is None else self.widening.rowed.get(part)

    def real(self, call: PartCall, parts: Parts) -> nn.Module:
        """The part that answers a call. parts: in the place of the pipeline's.

        A preview VAE decodes alone: pictures are encoded by the pipeline's own.
        """
        own = self.modules[call.part]
        found: nn.Module = own if call.method == ENCODE else parts.get(call.part, own)
        return found

    def encoded(self, call: PartCall, make: Callable[..., Any]) -> Any:
        """What `make` makes of a call of a part that does not denoise.

        It is kept where it is made before the first step. Of parts that the call hooks it is not,
        since their hooks look at more than results.
        """
        if call.begun or call.part in self.hooked:
            return make(*call.args, **call.kwargs)
        with torch.no_grad():
            return self.kept.of((call.part, call.method), call.args, call.kwargs, make)


# --- The stock call of a pipeline with the arguments that all images share: a StockCall a prompt --

SCALES = ("true_cfg_scale", "guidance_scale")
"""The arguments of stock calls with a guidance scale, that of two passes first."""
TYPICAL = Prompt("a red circle and a blue square")
"""Of a rehearsal."""


@dataclass(frozen=True)
class GivenCall:
    """A pipeline object of a call alone, and the arguments of that call."""

    pipe: Any
    arguments: Mapping[str, Any]

    @classmethod
    def of(cls, pipe: Any, call: Mapping[str, Any]) -> Self:
        """Of these arguments. Those that set guiders of a modular pipeline set those of `pipe`."""
        given = opened(call)
        vars(pipe).update(modular.set_by(pipe, given))
        if modular.is_modular(pipe.stock_class()):
            takes = {each.name for each in modular.inputs_of(pipe)}
            given = {name: value for name, value in given.items() if name in takes}
        return cls(pipe, given)

    def returning(self, form: str) -> Self:
        """The same, which returns what it makes in this form: pt, np, pil."""
        return replace(self, arguments={**self.arguments, "output_type": form})

    def for_prompt(self, prompt: Prompt) -> StockCall:
        """The call of one prompt."""
        own = opened(prompt.inputs)
        if prompt.negative is not None:
            if "negative_prompt" not in self.pipe.stock_arguments():
                name = self.pipe.stock_class().__name__
                raise ValueError(
                    f"{name} reads no negative prompts; leave out {prompt.negative[:60]!r}"
                )
            own |= {"negative_prompt": prompt.negative}
        takes = self.pipe.stock_arguments()
        if "prompt" in takes:
            embedded = embeddings_in({**self.arguments, **own})
            own |= {"prompt": None if embedded else prompt.text}
        if "negative_prompt" in takes and embeddings_in({**self.arguments, **own}, "negative_"):
            own.setdefault("negative_prompt", self.arguments.get("negative_prompt"))
        pipe = self.pipe
        tokenizers = tokenizers_of(self.pipe.components)
        device = pipe._execution_device
        return StockCall(
            pipe,
            pipe.stock_call(),
            {**self.arguments, **own},
            device,
            {name: locked(part) for name, part in tokenizers.items()},
        )

    @property
    def edits(self) -> bool:
        """Whether it changes a picture."""
        return "image" in self.arguments

    @functools.cached_property
    def redraws(self) -> bool:
        """Whether first latents are a noised picture, which each prompt may have of its own."""
        pictured = any(self.arguments.get(name) is not None for name in PICTURES)
        return pictured and "strength" in self.pipe.stock_arguments()

    def scale_name(self, call: StockCall, *, embeds: bool) -> str | None:
        """The argument that guides by two passes or, where the network reads a scale, that one."""
        names = [name for name in SCALES if name in call.takes]
        if not names:
            return None
        return names[-1] if embeds else names[0]

    def scale(self, call: StockCall, *, embeds: bool) -> float:
        """The guidance scale, 1 where there is none."""
        name = self.scale_name(call, embeds=embeds)
        if name is None:
            return 1.0
        value = self.arguments.get(name, call.takes[name].default)
        return float(value) if isinstance(value, int | float) else 1.0


# --- What rows of a search are of: an encoded prompt or, where a seed changes more than noise, both
# conditions = Conditions([fox, hens])    # the stock calls of two prompts
# conditions[1]                           # of the second, for any seed
# conditions.number(1, seed=7)            # 2, from now on the second with what seed 7 draws


class Condition(NamedTuple):
    """What a frame is begun for: frames of one condition differ in their latents alone."""

    stock: StockCall
    seed: int
    """By which it draws what else it draws; 0 where that changes nothing."""

    def key(self, index: int) -> tuple[int, int, int]:
        """Under which its frames wait that stand at this index."""
        return id(self.stock), self.seed, index


class Conditions:
    """Those of the prompts of a search, by their numbers: first the prompts, then what seeds add.

    by_seed: whether more than first latents differs from seed to seed.
    """

    def __init__(self, calls: Sequence[StockCall] = (), *, by_seed: bool = False) -> None:
        self._all = [Condition(call, 0) for call in calls]
        self._by_seed = by_seed
        self._numbers: dict[tuple[int, int], int] = {}

    def __getitem__(self, number: int) -> Condition:
        return self._all[number]

    def number(self, prompt: int, seed: int) -> int:
        """That of a prompt and a seed."""
        pair = prompt, seed
        if pair not in self._numbers:
            self._numbers[pair] = len(self._all)
            self._all.append(self._all[prompt]._replace(seed=seed))
        return self._numbers[pair]

    def followed(self, number: int) -> Condition:
        """What frames are begun for that follow rows of a condition from their latents on."""
        found = self._all[number]
        return found if self._by_seed else found._replace(seed=0)
