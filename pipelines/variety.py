"""Seeds of a pipeline that are kept apart: in groups, coupled by Repel (ttsnap.sampling.repel)."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from math import floor
from typing import Any
from weakref import proxy

from torch import Tensor

from ttsnap.options.option import Spec
from ttsnap.options.variety import Repel
from ttsnap.pipelines.denoiser import PipelineDenoiser
from ttsnap.pipelines.memory.flops import counted_coupled
from ttsnap.pipelines.pipeline_copy import shared_copy
from ttsnap.sampling import rng
from ttsnap.sampling.denoiser import Capability
from ttsnap.sampling.kernels import Prediction, make_kernel
from ttsnap.sampling.repel import coupled
from ttsnap.sampling.starts import Coupled


def couple_seeds(denoiser: PipelineDenoiser, how: Repel, kernel: Spec) -> None:
    """Let particles begin where groups of them have taken the call's steps of noise levels from
    `how.level` on.

    kernel: by name, for all steps. ValueError for a model, a kernel or a schedule that does not
        allow for it.
    """
    denoiser.must(Capability.COUPLE)
    if not isinstance(kernel, str):
        raise ValueError(
            f"variety repel steps by a kernel of its name, and {type(kernel).__name__} is an"
            " object; name one, as kernel='ode'"
        )
    grid = denoiser.grid
    steps = sum(level >= how.level - 1e-6 for level in grid.levels)
    if not 0 < steps < grid.steps:
        raise ValueError(
            f"variety repel couples the steps of noise levels from {how.level:g} on, which are"
            f" {steps} of {grid.steps} here, and leaves at least one free; set the level, as in"
            f" repel:{how.size}:{floor(100 * grid.levels[0]) / 100:g}"
        )
    # other searches call the network itself meanwhile, which the copy is not
    net, here = shared_copy(denoiser.net), proxy(denoiser)
    whole, guidance = denoiser.schedule, denoiser.guidance

    def coupling(twin: Any, key: rng.Key = (0, 0)) -> AbstractContextManager[None]:
        return coupled(twin.net, how, twin.image_tokens, key)

    def predict(x: Tensor, step: Tensor, cond: Tensor, key: rng.Key | None) -> Prediction:
        twin = here.by(net, schedule=whole, guidance=guidance)
        within = nullcontext() if key is None else coupling(twin, key)
        with within:
            prediction: Prediction = twin.predict(x, step, cond)
        return prediction

    starter = Coupled(
        predict,
        make_kernel(kernel, denoiser),
        size=how.size,
        steps=steps,
        nfe=int(grid.calls[steps]),
        image_nfe=grid.nfe,
        flops_beside=lambda: counted_coupled(here, how.size, partial(here.by, net), coupling),
    )
    denoiser.begin_later(steps)
    denoiser.starter = starter
