"""The complete interface of a reward, and the one place that reads what a user's reward has of
it."""

from __future__ import annotations

import inspect
import sysconfig
import threading
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Self, TypeVar
from weakref import WeakValueDictionary

from ttsnap.core.protocols import Reward, Scores

if TYPE_CHECKING:  # planning a search imports this module, and needs no torch
    import torch
    from torch import Tensor, nn

T = TypeVar("T")
_NOTHING = object()
SPACES = ("pixels", "latents")
"""What a reward may read of an unfinished x0 estimate: its image, or its latent."""
NEEDS = ("source", "video")
"""What a reward may need besides images and prompts: the image that was edited, or whole videos."""
ELSEWHERE = "elsewhere"
"""Where a reward runs that waits for another machine or process."""
_TURNS: WeakValueDictionary[int, threading.RLock] = WeakValueDictionary()
_TURNS_LOCK = threading.Lock()
_CORE = Path(__file__).parent
"""The folder of the code that calls rewards, which is never a reward's own."""
_INSTALLED = tuple(
    sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")
)


class RewardError(RuntimeError):
    """A reward failed on all of its first images, so that a search would waste its budget.

    The message names the reward, its error, and the line of its code; `__cause__` is its exception,
    if it raised one.
    """


class RewardModel(ABC):
    """A reward as engines, recorders, servers and commands use it, with defaults for most members.

    Subclasses have a `name` and define `__call__`. make_reward makes one of any function, and of
    any object with `name` and `__call__` (core.Reward).
    """

    name: str
    """The label in results, unique in a search."""
    needs: frozenset[str] = frozenset()
    """Of NEEDS. With "source" a call is reward(images, prompts, level, source=...), where source
    (N, 3, h, w) float in [0, 1] holds the image that each row edited. With "video" images are
    videos (N, T, 3, H, W); other rewards see single frames of a video (scoring.Shown)."""
    estimates: str = "pixels"
    """What is read of an unfinished x0 estimate, one of SPACES. Estimates are decoded for pixels
    only."""
    example: str = "a photo"
    """A valid prompt, for trial calls."""
    network: nn.Module | None = None
    """Its network, if any: weights do not count as memory of a gradient."""
    runs_on: torch.device | str | None = None
    """The device that its calls keep busy, or ELSEWHERE; None for that of the images. Where it is
    not the denoiser's, searches denoise other rows meanwhile: calls then come from another thread,
    one at a time."""
    embed_images: Callable[[Tensor], Tensor] | None = None
    """Features (N, D) of images (N, 3, H, W), by which a search compares images; None for a reward
    without."""
    base: Reward | None = None
    """The reward whose final score this one predicts from an estimate, if any."""

    tokens: int = 0
    """Most tokens of a language model behind an API for one image. A budget in tokens is charged
    this much, and refunded what was not taken."""
    joins: bool = False
    """Whether several prompts for an image cost about as much as one (`score_each`)."""
    tokens_taken: Sequence[int] = ()
    """Tokens that each image of the last call took; empty without a model behind an API."""
    failures: Mapping[str, Exception] = MappingProxyType({})
    """Why columns of the last call have no score, by their names."""

    @abstractmethod
    def __call__(
        self, images: Tensor, prompts: Sequence[str], level: Tensor | None = None
    ) -> Scores:
        """images (N, 3, H, W) float in [0, 1], N prompts -> N scores, higher is better; nan where
        an image has none. With R names (N, R), a column each.

        level (N,): of each estimate's noise, None for finished images. Ordinary rewards ignore it.
        """

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its scores of an image, of which each is charged as a call."""
        return (self.name,)

    def joined(self, other: RewardModel) -> RewardModel | None:
        """One reward with the columns of this one and then of the other, where one call has both;
        None where it does not."""
        return None

    def score_each(self, images: Tensor, prompts: Sequence[Sequence[str]]) -> Scores:
        """As a call, with several prompts for each of N images: the scores of the first image's,
        then those of the second's, ..."""
        rows = [row for row, texts in enumerate(prompts) for _ in texts]
        whole = rows == list(range(len(images)))  # a prompt of each needs no copy
        flat = [text for texts in prompts for text in texts]
        return self(images if whole else images[rows], flat)

    def score_estimates(
        self, x: Tensor, prompts: Sequence[str], level: Tensor | None = None
    ) -> Scores:
        """As a call, on estimates in the space `estimates`: x (N, C, h, w) latents."""
        raise NotImplementedError(
            f"reward {self.name!r} reads {self.estimates}: it needs a method score_estimates"
        )

    def differentiable(
        self, images: Tensor, prompts: Sequence[str], level: Tensor | None = None
    ) -> Scores:
        """As a call, (N,) with a graph back to the images, for guidance."""
        return self(images, prompts, level)

    def check(self, prompts: Sequence[str]) -> None:  # noqa: B027 (nothing to check is a fine default)
        """ValueError for prompts that cannot be scored, before anything is computed."""

    @cached_property
    def flops(self) -> float:
        """FLOPs of a call on one image, of all its columns, for budgets in FLOPs."""
        return 0.0

    @cached_property
    def flops_more(self) -> float:
        """FLOPs of each further prompt for the same image (`score_each`)."""
        return self.flops

    @cached_property
    def base_flops(self) -> float:
        """FLOPs that a finished image takes beyond `flops`, where a dearer base scores it."""
        return 0.0

    def leaves_free(self, device: torch.device, *, early: bool) -> bool:
        """Whether calls leave this device free. early: those that see estimates, too."""
        there, here = (f"{place}:0".split(":")[:2] for place in (self.runs_on, device))
        return self.runs_on is not None and there != here

    @property
    def scores_estimates_apart(self) -> bool:
        """Whether estimates and finished images are scored by different code, of which one alone
        may be broken."""
        return self.estimates != "pixels"

    def without_alpha(self, images: Tensor) -> Tensor:
        """(N, 4, H, W) in [0, 1] -> (N, 3, h, w) for a call; by default without the alpha
        channel."""
        return images[:, :3]

    def trial_image(self) -> Tensor:
        """A gray image (1, 3, h, w) for trial calls, on the device of this reward's images."""
        return _gray("cpu")

    def called(self, name: str) -> Self:
        """The same reward by another name, with the same weights."""
        other = copy(self)
        other.name = name
        return other


class FunctionReward(RewardModel):
    """A user's function or object (`given`) with the complete interface; its own attributes replace
    the defaults.

    The call is given(images, prompts, level), without the level where the signature has no place
    for it, and with `source=` where the collection `given.needs` says so. name: by default that of
    `given`.
    """

    device: torch.device | str = "cpu"
    """Of the trial image."""
    _OPTIONAL = (
        "estimates",
        "example",
        "device",
        "network",
        "base",
        "runs_on",
        "embed_images",
        "score_estimates",
        "differentiable",
        "check",
        "without_alpha",
    )

    def __init__(self, given: Callable[..., Scores], name: str | None = None) -> None:
        for attribute in self._OPTIONAL:
            own = stated(given, attribute, _NOTHING)
            if own is not _NOTHING:
                vars(self)[attribute] = own
        called = stated(given, "__name__", type(given).__name__)
        self.name = name or stated(given, "name", called)
        self.given = given
        self.needs = needs_of(given)
        source = dict.fromkeys(self.needs & {"source"})
        try:
            inspect.signature(given).bind(None, None, None, **source)
            self._takes_level = True
        except (TypeError, ValueError):  # takes fewer, or is a builtin without a signature
            self._takes_level = False

    def __call__(
        self,
        images: Tensor,
        prompts: Sequence[str],
        level: Tensor | None = None,
        **source: Tensor | None,
    ) -> Scores:
        return self.given(images, prompts, *[level] * self._takes_level, **source)

    @cached_property
    def flops(self) -> float:
        return float(stated(self.given, "flops", 0.0))  # read late: counting them may take a call

    def trial_image(self) -> Tensor:
        return _gray(self.device)


def adapted(given: object) -> RewardModel:
    """A user's object as a RewardModel. ValueError where it is no reward, or its `estimates` or
    `needs` are unknown."""
    if not callable(given):
        raise ValueError(
            "a reward is a name, a function (images, prompts) -> scores, or a Reward; got"
            f" {given!r}"
        )
    made = given if isinstance(given, RewardModel) else FunctionReward(given)
    if made.estimates not in SPACES:
        wrong = f"reward {made.name!r} reads estimates as {made.estimates!r}"
        raise ValueError(f"{wrong}; known are {', '.join(SPACES[:-1])} and {SPACES[-1]}")
    if unknown := sorted(made.needs - set(NEEDS)):
        raise ValueError(
            f"reward {made.name!r} needs {unknown}; what a reward may need is {' and '.join(NEEDS)}"
        )
    return made


def needs_of(given: object) -> frozenset[str]:
    """The attribute `needs` of a user's reward or function: a name or a collection of names."""
    needs: str | Iterable[str] = stated(given, "needs", ())
    return frozenset([needs] if isinstance(needs, str) else needs)


def stated(given: object, name: str, default: T) -> T:
    """An optional attribute of a user's reward, function or class, of the default's type."""
    value: T = getattr(given, name, default)
    return value


def turn_of(reward: RewardModel) -> threading.RLock:
    """The lock of whoever asks this reward in the background, or beside that. It belongs to what a
    user gave, which several rewards may wrap; who keeps the lock keeps the reward as well."""
    with _TURNS_LOCK:
        return _TURNS.setdefault(id(stated(reward, "given", reward)), threading.RLock())


def said(name: str, error: Exception) -> str:
    """A reward's exception in words."""
    return f"{name}: {type(error).__name__}: {error}"


def place_of(error: Exception) -> str:
    """The origin of an exception in the reward's code, as " (FILE:LINE, in FUNCTION)"; nothing
    where none of it ran.

    The origin is the last line outside installed packages, which the reward may have called, or
    else the last line.
    """
    lines = [
        line
        for line in traceback.extract_tb(error.__traceback__)
        if Path(line.filename).parent != _CORE
    ]
    own = [line for line in lines if not line.filename.startswith(_INSTALLED)] or lines
    return f" ({own[-1].filename}:{own[-1].lineno}, in {own[-1].name})" if own else ""


def _gray(device: torch.device | str, size: int = 64) -> Tensor:
    import torch

    return torch.full((1, 3, size, size), 0.4, device=device)
