"""The complete interface of a reward, and the one place that asks what a user's reward has of it."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from functools import cached_property
from typing import TYPE_CHECKING, Self, TypeVar

from ttsnap.core.protocols import Reward, Scores

if TYPE_CHECKING:  # those who only plan searches import this room, too, and have no need of torch
    import torch
    from torch import Tensor, nn

T = TypeVar("T")
_NOTHING = object()
SPACES = ("pixels", "latents")
"""What a reward may read of an unfinished x0 estimate: its image, or itself."""
NEEDS = ("source", "video")
"""What a reward may need beside images and prompts: the image that a prompt edits, or videos whole."""


class RewardModel(ABC):
    """A reward with all that engines, recorders, servers and commands may ask of one, and a default for the most.

    Subclass it, give `name`, define `__call__`, and redefine what you know better. A reward need not be one: of a
    function, or of any object with `name` and `__call__` (core.Reward), make_reward makes one.
    """

    name: str
    """The label in results; rewards of one search have different ones."""
    needs: frozenset[str] = frozenset()
    """Of NEEDS, what it cannot score without. With "source" it is called as reward(images, prompts, level, source=...),
    where source (N, 3, h, w) float in [0, 1] holds the image that each row's prompt edits. With "video" its images are
    videos (N, T, 3, H, W); other rewards see single frames of a video (scoring.Shown)."""
    estimates: str = "pixels"
    """What it reads of an unfinished x0 estimate, one of SPACES. Other than pixels, no estimate is decoded for it."""
    example: str = "a photo"
    """A prompt that it can read, for trial calls."""
    network: nn.Module | None = None
    """The network that it consists of, whose weights are no part of the memory that a gradient takes."""
    base: Reward | None = None
    """The reward whose score of the finished image this one predicts from an estimate, if there is such a one."""

    heavy: bool = False
    """Whether it has a network that is worth a device of its own, where a user has some for rewards
    (`--reward-actors`)."""
    remote: bool = False
    """Whether it is asked in another process, so that an engine makes its images and leaves its scores open."""
    tokens: int = 0
    """The most that scoring one image takes of a language model behind an API, where it asks one: a budget in tokens is
    charged this much, and gets back what was not taken."""
    tokens_taken: Sequence[int] = ()
    """What each image of the last call took of these tokens; nothing where that asked no model."""

    @abstractmethod
    def __call__(self, images: Tensor, prompts: Sequence[str], level: Tensor | None = None) -> Scores:
        """images (N, 3, H, W) float in [0, 1], N prompts, level (N,) noise level of each estimate, or None for
        finished images -> N scores.

        As in core.Reward: ordinary rewards ignore `level`, and a NaN counts as a failed call on that image.
        """

    def score_estimates(self, x: Tensor, prompts: Sequence[str], level: Tensor | None = None) -> Scores:
        """As a call, of unfinished estimates in the space `estimates`: x (N, C, h, w) latents."""
        raise NotImplementedError(f"reward {self.name!r} reads {self.estimates}: it needs a method score_estimates")

    def differentiable(self, images: Tensor, prompts: Sequence[str], level: Tensor | None = None) -> Scores:
        """As a call, (N,) with a graph back to the images, for guidance; a plain call where that has one."""
        return self(images, prompts, level)

    def check(self, prompts: Sequence[str]) -> None:  # noqa: B027 (nothing to check is a fine default)
        """ValueError for prompts that it cannot score, before anything is computed."""

    @cached_property
    def flops(self) -> float:
        """FLOPs of a call on one image, so that a budget in FLOPs counts them."""
        return 0.0

    @property
    def scores_estimates_apart(self) -> bool:
        """Whether other code scores estimates than finished images, so that one may be broken and the other not."""
        return self.estimates != "pixels"

    def without_alpha(self, images: Tensor) -> Tensor:
        """(N, 4, H, W) in [0, 1] -> (N, 3, h, w), to call this with; the alpha channel is dropped by default."""
        return images[:, :3]

    def trial_image(self) -> Tensor:
        """A gray image (1, 3, h, w), for trial calls, where this reward wants its images."""
        return _gray("cpu")

    def called(self, name: str) -> Self:
        """The same reward by another name, with the same weights."""
        other = copy(self)
        other.name = name
        return other


class FunctionReward(RewardModel):
    """A user's function or object (`given`) with the complete interface: what it has takes the place of the defaults.

    Called as given(images, prompts, level), without the level where the signature has no place for it, and with
    `source=` where its `needs`, any collection of names, say so. name: by default its own.
    """

    device: torch.device | str = "cpu"
    """Where it wants images of trial calls."""
    _OPTIONAL = ("estimates", "example", "device", "network", "base", "heavy",
                 "score_estimates", "differentiable", "check", "without_alpha")  # fmt: skip

    def __init__(self, given: Callable[..., Scores], name: str | None = None) -> None:
        own = {name: stated(given, name, _NOTHING) for name in ("name", *self._OPTIONAL)}
        called = stated(given, "__name__", type(given).__name__)
        vars(self).update({"name": called} | {key: value for key, value in own.items() if value is not _NOTHING})
        self.name, self.given, self.needs = name or self.name, given, needs_of(given)
        try:
            inspect.signature(given).bind(None, None, None, **dict.fromkeys(self.needs & {"source"}))
            self._takes_level = True
        except (TypeError, ValueError):  # takes fewer, or is a builtin without a signature
            self._takes_level = False

    def __call__(
        self, images: Tensor, prompts: Sequence[str], level: Tensor | None = None, **source: Tensor | None
    ) -> Scores:
        return self.given(images, prompts, *[level] * self._takes_level, **source)

    @cached_property
    def flops(self) -> float:
        return float(stated(self.given, "flops", 0.0))  # read late: counting them may take a call

    def trial_image(self) -> Tensor:
        return _gray(self.device)


def adapted(given: object) -> RewardModel:
    """The complete interface of an object that a user gives. ValueError where it is no reward, or says of itself what
    cannot be."""
    if not callable(given):
        raise ValueError(f"a reward is a name, a function (images, prompts) -> scores, or a Reward; got {given!r}")
    made = given if isinstance(given, RewardModel) else FunctionReward(given)
    if made.estimates not in SPACES:
        wrong = f"reward {made.name!r} reads estimates as {made.estimates!r}"
        raise ValueError(f"{wrong}; known are {', '.join(SPACES[:-1])} and {SPACES[-1]}")
    if unknown := sorted(made.needs - set(NEEDS)):
        raise ValueError(f"reward {made.name!r} needs {unknown}; what a reward may need is {' and '.join(NEEDS)}")
    return made


def needs_of(given: object) -> frozenset[str]:
    """What a user's reward or function says that it needs, by its attribute `needs`."""
    needs: str | Iterable[str] = stated(given, "needs", ())
    return frozenset([needs] if isinstance(needs, str) else needs)


def stated(given: object, name: str, default: T) -> T:
    """What a user's reward, function or class states of itself by an attribute, which it need not have: its value, else
    this default, of whose type it is."""
    value: T = getattr(given, name, default)
    return value


def _gray(device: torch.device | str, size: int = 64) -> Tensor:
    import torch

    return torch.full((1, 3, size, size), 0.4, device=device)
