"""Seeds of a pipeline that are kept apart: in groups, coupled by Repel (ttsnap.sampling.repel)."""

from __future__ import annotations

from math import floor

from ttsnap.options.option import Spec
from ttsnap.options.variety import Repel
from ttsnap.pipelines.denoiser import PipelineDenoiser
from ttsnap.sampling.denoiser import Capability
from ttsnap.sampling.kernels import make_kernel
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
    nfe = int(grid.calls[steps])
    predict, flops_beside = denoiser.coupled(how, nfe)
    starter = Coupled(
        predict,
        make_kernel(kernel, denoiser),
        size=how.size,
        steps=steps,
        nfe=nfe,
        image_nfe=grid.nfe,
        flops_beside=flops_beside,
    )
    denoiser.begin_later(steps)
    denoiser.starter = starter
