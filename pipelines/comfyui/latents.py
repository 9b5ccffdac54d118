"""A search over ComfyUI's models: one `guider.sample`, inside which the loop runs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ttsnap.core.grid import Grid
from ttsnap.core.results import Event, Result
from ttsnap.engine.live import LiveEngine
from ttsnap.loop.budget import Budget
from ttsnap.loop.search import searched
from ttsnap.options.option import changed
from ttsnap.options.sampler import Finish
from ttsnap.pipelines.comfyui.drafts import GuiderDrafts
from ttsnap.pipelines.comfyui.fields import Shapes, fields_of, joined, nested, split
from ttsnap.pipelines.comfyui.guided import GuidedCall, GuidedDenoiser
from ttsnap.pipelines.comfyui.paths import PathDenoiser
from ttsnap.pipelines.comfyui.stock import StockDenoiser
from ttsnap.request.request import Prepared
from ttsnap.results.outputs import FinishedLatents
from ttsnap.results.report import with_answers
from ttsnap.reward_models.registry import make_rewards
from ttsnap.sampling.kernels import make_kernel

MOST_ROWS = 16
"""The most rows of a batch where memory decides: more gain little speed."""
Watcher = Callable[[Grid, Budget], Callable[[Event], object]]
"""Gets the search's grid and its budget as caps, and gives a listener."""


class GuiderDrafter(NamedTuple):
    """A drafter, as a user of ComfyUI gives it: another guider, whose conditioning is of the same
    prompt."""

    guider: Any
    calls: int = 1
    """Of one guess."""
    first_time: float = 1.0
    """What it is told at its first call, as a share of the true time; below 1 for the model as its
    own drafter."""
    finish: Finish | None = None
    """From where a guess is denoised in place of noise (`drafts.finishing_sigmas`); None:
    nowhere."""


class Inside(NamedTuple):
    """A SAMPLER of ComfyUI that does some work in the middle of `guider.sample`."""

    work: Callable[[GuidedCall], None]
    shapes: Shapes
    """As of GuidedCall."""

    def sample(
        self,
        guider: Any,
        sigmas: Tensor,
        args: Any,
        callback: object,
        noise: Tensor,
        latent: Tensor,
        mask: Tensor | None = None,
        disable_pbar: bool = False,
    ) -> Tensor:
        mask = None if mask is None else mask[:1]
        self.work(GuidedCall(guider, sigmas, args["model_options"], latent[:1], mask, self.shapes))
        return latent[:1]


class FoundLatents(NamedTuple):
    """What a search found."""

    result: Result
    latents: Any
    """(K, C, ...) of the result's images, best first, as VAEs and other nodes take them."""


@dataclass(frozen=True)
class LatentSearch:
    """One search over a guider of ComfyUI.

    Initial noise, steps and images of a seed are those of ComfyUI's own KSampler, where the
    request's kernel is "pipeline". It is then `sampler` that steps.
    """

    request: Prepared
    """Of one prompt, which only rewards read. Where it has no batch size, free memory decides."""
    guider: Any
    """A CFGGuider with its conditioning and scale."""
    sampler: Any
    """A SAMPLER of ComfyUI."""
    sigmas: Tensor
    """(K+1,) falling to 0."""
    latent: Any
    """(1, C, ...) in the VAE's scale; zeros for an image from noise alone. ComfyUI's NestedTensor
    where it has several fields, whose first is the video."""
    vae: Any
    """ComfyUI's: `decode` makes latents (N, C, ...) in its scale images (N, H, W, 3), or videos, in
    [0, 1]."""
    mask: Any = None
    """(1, 1, H, W) 1 where the latent is painted anew; nested as that."""
    drafter: GuiderDrafter | None = None
    rest: Tensor | None = None
    """(R+1,) falling to 0: the sigmas of an image from its draft; None where images are made from
    noise."""
    previewer: Any = None
    """What decodes unfinished estimates for rewards, in place of the VAE: ComfyUI's for its
    previews, or None."""

    def __post_init__(self) -> None:
        if self.latent.shape[0] != 1:
            raise ValueError(
                f"a search makes candidates of one latent, got a batch of {self.latent.shape[0]};"
                " give a latent of batch size 1"
            )
        if self.request.budget.flops is not None:
            raise ValueError(
                "networks of ComfyUI are not counted in FLOPs; cap evaluations, decodes or seconds"
            )
        if {"path", "times", "guide", "variety"} & {*changed(self.request.engine.sampler)}:
            raise ValueError(
                "steps inside ComfyUI keep to the model's path, follow no gradient of rewards, and"
                " couple no seeds; leave path, times, guide and variety out"
            )
        if len(self.sigmas) < 2 or float(self.sigmas[-1]) != 0:
            got = (
                f"{len(self.sigmas)} that end at {float(self.sigmas[-1]):g}"
                if len(self.sigmas)
                else "none"
            )
            raise ValueError(
                f"a search finishes images, so that its sigmas must end at 0, got {got}; give a"
                " whole schedule, and denoise more than 0"
            )

    def run(
        self, watcher: Watcher | None = None, should_stop: Callable[[], bool] | None = None
    ) -> FoundLatents:
        """Search. ComfyUI's InterruptProcessingException where the user cancels; nothing stays
        under way.

        should_stop: asked once a batch; when it says True, the search ends with its best finished
        image. Only this then hears whether the user has cancelled. ValueError for what does not fit
        the model or the sampler.
        """
        found: list[FoundLatents] = []

        def work(guided: GuidedCall, drafter: GuidedCall | None = None) -> None:
            with closing(self._denoiser(guided, drafter)) as denoiser:
                denoiser.residency.cancels = should_stop is None
                found.append(self._searched(denoiser, watcher, should_stop))

        def drafting(drafter: GuidedCall) -> None:
            sigmas = self.sigmas if self.rest is None else self.rest
            self._within(self.guider, sigmas, lambda guided: work(guided, drafter))

        if self.drafter is None:
            self._within(self.guider, self.sigmas, work)
        else:
            self._within(self.drafter.guider, self.sigmas, drafting)
        return found[0]

    @property
    def rows(self) -> int:
        """The largest batch, which ComfyUI makes room for."""
        given = self.request.engine.batch.batch_size
        latent = joined(fields_of(self.latent))
        return given or rows_that_fit(self.guider.model_patcher, latent)

    def _within(self, guider: Any, sigmas: Tensor, work: Callable[[GuidedCall], None]) -> None:
        """Do the work in the middle of `guider.sample`."""
        rows = self.rows
        fields = fields_of(self.latent)
        latent = [field.expand(rows, *field.shape[1:]) for field in fields]
        noise = [torch.zeros_like(field) for field in latent]
        inside = Inside(work, tuple(field.shape for field in fields) if len(fields) > 1 else ())
        guider.sample(
            nested(noise),
            nested(latent),
            inside,
            sigmas,
            self.mask,
            disable_pbar=True,
            seed=self.request.seed,
        )

    def _denoiser(self, guided: GuidedCall, drafter: GuidedCall | None = None) -> GuidedDenoiser:
        how = (self.vae, self.previewer)
        stock = self.request.engine.sampler.kernel == "pipeline"
        made = StockDenoiser(guided, self.sampler, *how) if stock else PathDenoiser(guided, *how)
        if drafter is not None and self.drafter is not None:
            drafts = made.drafts = GuiderDrafts(made, drafter, *self.drafter[1:3])
            if guided.sigmas[0] < drafter.sigmas[0]:
                whole = self._denoiser(replace(guided, sigmas=drafter.sigmas))
                made.starter = drafts.finished(whole.grid.nfe)
        return made

    def _searched(
        self,
        denoiser: GuidedDenoiser,
        watcher: Watcher | None,
        should_stop: Callable[[], bool] | None,
    ) -> FoundLatents:
        from comfy.model_management import intermediate_device

        request = self.request
        batch = self.request.engine.batch
        rows = self.rows
        engine = LiveEngine(
            denoiser,
            make_rewards(request.engine.rewards, device=denoiser.device),
            replace(
                batch,
                batch_size=rows,
                decode_batch_size=batch.decode_batch_size or rows,
                keep=("latents",),
                preview=self.previewer is not None,
            ),
            kernel=make_kernel(request.engine.sampler.kernel, denoiser),
        )
        kept = FinishedLatents(engine.grid.steps)
        cap = request.budget.on(engine.grid, engine.price.start)
        watchers = (watcher(engine.grid, cap),) if watcher else ()
        results = searched(request.prompts, request.loop, engine, (kept, *watchers), should_stop)
        latents = kept.of(results)
        asked = request.engine.rewards, engine.reward_names, request.prompt.read
        made = denoiser.unscaled(
            torch.stack(latents) if latents else denoiser.guided.latent[:0].cpu()
        )
        fields = split(made.to(intermediate_device()), denoiser.guided.shapes)
        return FoundLatents(with_answers(results[0], *asked), nested(fields))


def rows_that_fit(patcher: Any, latent: Tensor) -> int:
    """The rows of a batch, from 1 to MOST_ROWS, for which ComfyUI expects memory beside the model's
    weights.

    ComfyUI makes the two passes of guidance in one call where 1.5 times their memory is free.
    """
    from comfy import model_management

    weights = max(0, patcher.model_size() - patcher.loaded_size())
    free = model_management.get_free_memory(patcher.load_device) - weights
    one = 1.5 * patcher.model.memory_required([2, *latent.shape[1:]])
    return int(min(max(free / one, 1), MOST_ROWS))
