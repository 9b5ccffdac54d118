"""The stock call of a pipeline, for one prompt: what frames are begun of.

It says what the call is given, and how its frames go: which parts they do without, where latents
are put in, what their schedulers say. Frames of one call differ in their latents alone.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import is_autocast_available

from ttsnap.pipelines.arguments import call_parameters
from ttsnap.pipelines.calls.dummies import Dummies
from ttsnap.pipelines.calls.fields import Fields
from ttsnap.pipelines.calls.kept import Kept
from ttsnap.pipelines.calls.parts import ENCODE, Parts, modules_of
from ttsnap.pipelines.calls.places import LatentsPlace
from ttsnap.pipelines.calls.questions import PartCall
from ttsnap.pipelines.calls.told import Told
from ttsnap.pipelines.calls.widening import Widening

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
    autocast: bool
    """Whether its encoders compute under autocast."""
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
            found = replace(self, arguments=arguments, width=width, encodings=Kept())
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
        since their hooks look at more than results. Autocast is as where this call was opened: that
        around an evaluation alone is for the network.
        """
        kind = self.device.type
        known = is_autocast_available(kind)  # not on the meta device
        with torch.autocast(kind, enabled=self.autocast) if known else nullcontext():
            if call.begun or call.part in self.hooked:
                return make(*call.args, **call.kwargs)
            with torch.no_grad():
                return self.kept.of((call.part, call.method), call.args, call.kwargs, make)
