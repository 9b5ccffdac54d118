"""Schedulers that a stock call hands what they made a step before, as ones that keep it themselves.

CogVideoX's DPM solver is of two steps and has no history: its call gives each step the last x0
estimate.
"""

from __future__ import annotations

import copy
import functools
import inspect
from typing import Any

from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from torch import Generator, Tensor

GIVEN = ("old_pred_original_sample", "timestep_back")
"""The arguments of a step with what a step made before it, and at which timestep."""


def remembering(scheduler: Any) -> Any:
    """A scheduler over the same inside that keeps GIVEN; itself where its step takes none of it.

    It has made no step.
    """
    if not set(GIVEN) <= inspect.signature(scheduler.step).parameters.keys():
        return scheduler
    own = copy.copy(scheduler)
    if GIVEN[0] not in vars(own):
        kind: Any = type(scheduler)
        own.__class__ = _kind(kind)
    vars(own).update(dict.fromkeys(GIVEN))
    return own


@functools.cache
def _kind(kind: Any) -> Any:
    """The class of schedulers of this one that keep GIVEN."""

    @functools.wraps(kind.step)  # by whose signature stock calls give arguments
    def step(
        self: Any,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        eta: float = 0.0,
        generator: Generator | None = None,
        return_dict: bool = True,
    ) -> Any:
        before = {name: vars(self)[name] for name in GIVEN}
        given = {
            "timestep": timestep,
            "sample": sample,
            "eta": eta,
            "generator": generator,
            **before,
        }
        moved, estimate = kind.step(self, model_output, return_dict=False, **given)
        vars(self).update(zip(GIVEN, (estimate, timestep), strict=True))
        if not return_dict:
            return moved, estimate
        return DDIMSchedulerOutput(prev_sample=moved, pred_original_sample=estimate)

    return type(kind.__name__, (kind,), {"__module__": kind.__module__, "step": step})
