"""Drafts of a denoiser: the same call with the drafter's network, at times that may differ from the
sampler's."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from weakref import proxy

import torch
from torch import Tensor

from ttsnap.options.sampler import Finish
from ttsnap.pipelines.denoiser import PipelineDenoiser
from ttsnap.pipelines.drafting.drafters import Drafter, DraftSpec, make_drafter
from ttsnap.pipelines.latents.convert import own_path, timestep_unit
from ttsnap.pipelines.latents.schedule import Schedule
from ttsnap.sampling.denoiser import Capability
from ttsnap.sampling.drafts import begins_as_noise, call_times, guess, unchecked
from ttsnap.sampling.interpolants import level, rows
from ttsnap.sampling.starts import FromDrafts

logger = logging.getLogger(__name__)


def use_drafter(denoiser: PipelineDenoiser, spec: DraftSpec) -> Drafting:
    """Set the drafter of a denoiser (drafters.make_drafter). ValueError where it cannot draft."""
    denoiser.must(Capability.DRAFT)
    # Its denoiser is held weakly, so that one that is dropped goes at once, and its networks with
    # it.
    drafts = Drafting(proxy(denoiser), make_drafter(denoiser.pipe, denoiser.network, spec))
    drafts.twin()  # refuses guidance that this call cannot make
    denoiser.drafts = drafts
    return drafts


def finish_drafts(denoiser: PipelineDenoiser, level: float, image_nfe: int) -> None:
    """Let particles begin from their drafts, at the grid step whose noise level is nearest to
    `level`; at step 0 they begin as noise. image_nfe: evaluations of an image of the call from
    noise.

    That is image-to-image, with the draft for the image and the seed's own noise: x = alpha guess +
    sigma noise.
    """
    step = denoiser.grid.nearest(level)
    drafts = denoiser.drafts
    if (why := begins_as_noise(denoiser.grid, Finish(level))) is not None:
        logger.warning("%s", why)
    if not step or not isinstance(drafts, Drafting):
        return
    drafts = denoiser.drafts = replace(drafts, whole=denoiser.schedule)
    denoiser.begin_later(step)
    denoiser.starter = FromDrafts(
        drafts.of_noise, drafts.noised, drafts.calls, drafts.noise_level, image_nfe
    )


@dataclass(frozen=True)
class Drafting:
    """Guesses finished images of a denoiser's call by a drafter
    (ttsnap.sampling.denoiser.Drafts)."""

    denoiser: PipelineDenoiser
    drafter: Drafter
    whole: Schedule | None = None
    """Of the call from noise, where drafts of that noise are finished; None where they are not."""

    @property
    def calls(self) -> int:
        return self.drafter.calls

    @property
    def passes(self) -> int:
        return self.twin().passes_per_nfe

    @torch.no_grad()
    def guess(self, x: Tensor, step: Tensor, cond: Tensor, calls: int) -> Tensor:
        return self.guessed(
            self.denoiser.schedule, x, torch.from_numpy(self.denoiser.grid.calls)[step], cond, calls
        )

    def guessed(
        self, schedule: Schedule, x: Tensor, position: Tensor, cond: Tensor, calls: int
    ) -> Tensor:
        """The guess from x (N, ...) at positions (N,) of this schedule."""
        twin = self.twin()
        path = own_path(schedule)
        twin.schedule = schedule  # to which positions belong
        alpha = schedule.alpha[position].double()
        sigma = schedule.sigma[position].double()
        # Onto the path that the network was trained on, at equal signal-to-noise ratio. Most models
        # are there already.
        t = path.inverse_ratio(alpha / sigma)
        scale = torch.hypot(alpha, sigma) / torch.hypot(path.alpha(t), path.sigma(t))
        wide = x if x.dtype == torch.float64 else x.float()

        def estimate(at: Tensor, time: Tensor) -> Tensor:
            return estimated(twin, at, time, position, cond, x.dtype)

        return guess(
            path, estimate, wide / rows(scale, wide), t, calls, self.drafter.settings.first_time
        )

    def of_noise(self, noise: Tensor, cond: Tensor) -> Tensor:
        """The drafts by which particles begin."""
        assert self.whole is not None
        zero = torch.zeros(len(noise), dtype=torch.long)
        return self.guessed(self.whole, noise, zero, cond, self.calls)

    @property
    def noise_level(self) -> float:
        """That the last call of such a draft is told."""
        assert self.whole is not None
        return self.level_told(self.whole, 0, self.calls)

    def noised(self, guess: Tensor, noise: Tensor, cond: Tensor) -> Tensor:
        """Such drafts (N, ...) put back to the level of step 0."""
        assert self.whole is not None
        here = self.denoiser.schedule
        wide = noise if noise.dtype == torch.float64 else noise.float()
        unit = wide / float(getattr(self.whole.scheduler, "init_noise_sigma", 1.0))
        return (float(here.alpha[0]) * guess + float(here.sigma[0]) * unit).to(noise.dtype)

    def level(self, step: int, calls: int) -> float:
        return self.level_told(self.denoiser.schedule, int(self.denoiser.grid.calls[step]), calls)

    def level_told(self, schedule: Schedule, position: int, calls: int) -> float:
        """The noise level that the last call of a guess is told from a position of this
        schedule."""
        path = own_path(schedule)
        t = path.inverse_ratio(
            schedule.alpha[position].double() / schedule.sigma[position].double()
        )
        return float(level(path, call_times(t, calls, self.drafter.settings.first_time)[-1][1]))

    def flops(self) -> float:
        return self.twin().draft_flops()

    def doubt(self, model: str) -> str | None:
        """A warning where the drafter was not checked for this model (by its name), number of steps
        and guidance."""
        steps = self.denoiser.start.image_nfe or self.denoiser.grid.steps
        return unchecked(self.drafter.settings, model, steps, self.denoiser.scale)

    def twin(self) -> PipelineDenoiser:
        """A copy of the present denoiser, with its encoded prompts, which evaluates by the
        drafter."""
        how = self.drafter
        return self.denoiser.by_drafter(how.net, how.settings.guidance, arrives=how.arrives)


def estimated(
    twin: PipelineDenoiser,
    x: Tensor,
    time: Tensor,
    position: Tensor,
    cond: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """x0 estimates (N, ...) at points x (N, ...) of the model's own path, by the drafter of a twin,
    whose network is told times (N,).

    position (N,): in the twin's schedule, where trajectories left it. dtype: that of x for the
    network.
    """
    schedule = twin.schedule
    path = own_path(schedule)
    timestep = (time * timestep_unit(schedule, path)).float().to(x.device, non_blocking=True)
    out = twin.drafted(x.to(dtype), timestep, position, cond)
    there = replace(schedule, alpha=path.alpha(time), sigma=path.sigma(time), scale=None)
    return there.x0(x, out, torch.arange(len(x)))
