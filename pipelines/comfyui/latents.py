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
from ttsnap.loop.request import Listener
from ttsnap.loop.search import searched
from ttsnap.options.sampler import Finish
from ttsnap.pipelines.comfyui.drafts import GuiderDrafts
from ttsnap.pipelines.comfyui.guided import Decoder, GuidedCall, GuidedDenoiser, Previewer
from ttsnap.pipelines.comfyui.paths import PathDenoiser
from ttsnap.pipelines.comfyui.stock import StockDenoiser
from ttsnap.request.request import SearchRequest
from ttsnap.reward_models.registry import make_rewards
from ttsnap.sampling.kernels import make_kernel

MOST_ROWS = 16
"""The most rows of a batch where memory decides: more gain little speed."""


class GuiderDrafter(NamedTuple):
    """A drafter, as a user of ComfyUI gives it: another guider, whose conditioning is of the same prompt."""

    guider: Any
    calls: int = 1
    """Of one guess."""
    first_time: float = 1.0
    """What it is told at its first call, as a share of the true time; below 1 for the model as its own drafter."""
    finish: Finish | None = None
    """From where a guess is denoised in place of noise (`drafts.finishing`); None: nowhere."""


class Inside(NamedTuple):
    """A SAMPLER of ComfyUI that does some work in the middle of `guider.sample`."""

    work: Callable[[GuidedCall], Tensor]

    def sample(
        self,
        model_wrap: Any,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: object,
        noise: Tensor,
        latent_image: Tensor,
        denoise_mask: Tensor | None = None,
        disable_pbar: bool = False,
    ) -> Tensor:
        """What the work gives: finished latents (K, ...) in the network's scale."""
        mask = None if denoise_mask is None else denoise_mask[:1]
        return self.work(GuidedCall(model_wrap, sigmas, extra_args["model_options"], latent_image[:1], mask))


class FoundLatents(NamedTuple):
    """What a search found."""

    result: Result
    latents: Tensor
    """(K, C, ...) of the result's images, best first, as VAEs and other nodes take them."""


@dataclass(frozen=True)
class LatentSearch:
    """One search over a guider of ComfyUI.

    Initial noise, steps and images of a seed are those of ComfyUI's own KSampler, where the request's kernel is
    "pipeline". It is then `sampler` that steps.
    """

    request: SearchRequest
    """Of one prompt, which only rewards read. Where it has no batch size, free memory decides."""
    guider: Any
    """A CFGGuider with its conditioning and scale."""
    sampler: Any
    """A SAMPLER of ComfyUI."""
    sigmas: Tensor
    """(K+1,) falling to 0."""
    latent: Tensor
    """(1, C, ...) in the VAE's scale; zeros for an image from noise alone."""
    vae: Decoder
    mask: Tensor | None = None
    """(1, 1, H, W) 1 where the latent is painted anew."""
    drafter: GuiderDrafter | None = None
    rest: Tensor | None = None
    """(R+1,) falling to 0: the sigmas of an image from its draft; None where images are made from noise."""
    previewer: Previewer | None = None
    """What decodes unfinished estimates for rewards, in place of the VAE."""

    def __post_init__(self) -> None:
        if self.latent.is_nested:  # ComfyUI's, of several tensors
            raise ValueError("latents of videos with sound cannot be searched yet; give a latent of images or frames")
        if self.latent.shape[0] != 1:
            raise ValueError(f"a search makes candidates of one latent, got a batch of {self.latent.shape[0]}; give a "
                             "latent of batch size 1")  # fmt: skip
        if self.request.budget.flops is not None:
            raise ValueError("networks of ComfyUI are not counted in FLOPs; cap evaluations, decodes or seconds")
        if self.request.engine.sampler.guide is not None:
            raise ValueError("steps inside ComfyUI follow no gradient of rewards; leave guide out")
        if len(self.sigmas) < 2 or float(self.sigmas[-1]) != 0:
            got = f"{len(self.sigmas)} that end at {float(self.sigmas[-1]):g}" if len(self.sigmas) else "none"
            raise ValueError(f"a search finishes images, so that its sigmas must end at 0, got {got}; give a whole "
                             "schedule, and denoise more than 0")  # fmt: skip

    def run(
        self, listener: Callable[[Grid], Listener] | None = None, should_stop: Callable[[], bool] | None = None
    ) -> FoundLatents:
        """Search. ComfyUI's InterruptProcessingException where the user cancels; nothing stays under way.

        listener: gives who is told of events, for the grid. should_stop: asked once a batch; when it says True, the
        search ends with its best finished image. Only this then hears whether the user has cancelled. ValueError for
        what does not fit the model or the sampler.
        """
        found: list[Result] = []

        def work(guided: GuidedCall, drafter: GuidedCall | None = None) -> Tensor:
            with closing(self._denoiser(guided)) as denoiser:
                denoiser.residency.cancels = should_stop is None
                if drafter is not None and self.drafter is not None:
                    finishes = bool(guided.sigmas[0] < drafter.sigmas[0])
                    denoiser.drafts = GuiderDrafts(denoiser, drafter, *self.drafter[1:3], finishes)
                    if finishes:
                        whole = self._denoiser(replace(guided, sigmas=drafter.sigmas))
                        denoiser.grid = replace(denoiser.grid, image_nfe=whole.grid.nfe)
                result, latents = self._searched(denoiser, listener, should_stop)
            found.append(result)
            return latents

        def drafting(drafter: GuidedCall | None = None) -> Tensor:
            sigmas = self.sigmas if self.rest is None else self.rest
            inner.append(self._within(self.guider, sigmas, lambda guided: work(guided, drafter)))
            return self.latent

        inner: list[Tensor] = []
        if self.drafter is None:
            drafting()
        else:
            self._within(self.drafter.guider, self.sigmas, drafting)
        return FoundLatents(found[0], inner[0])

    @property
    def rows(self) -> int:
        """The largest batch, which ComfyUI makes room for."""
        return self.request.engine.batch.batch_size or rows_that_fit(self.guider.model_patcher, self.latent)

    def _within(self, guider: Any, sigmas: Tensor, work: Callable[[GuidedCall], Tensor]) -> Tensor:
        """The work, done in the middle of `guider.sample`; its latents in the VAE's scale, where nodes keep them."""
        from comfy.model_management import intermediate_device

        latent = self.latent.expand(self.rows, *self.latent.shape[1:])
        made: Tensor = guider.sample(
            torch.zeros_like(latent),
            latent,
            Inside(work),
            sigmas,
            denoise_mask=self.mask,
            disable_pbar=True,
            seed=self.request.seed,
        )
        return made.to(intermediate_device())

    def _denoiser(self, guided: GuidedCall) -> GuidedDenoiser:
        how = self.request.engine.sampler
        if how.kernel != "pipeline":
            return PathDenoiser(guided, how, self.vae, self.previewer)
        return StockDenoiser(guided, self.sampler, self.vae, self.previewer)

    def _searched(
        self,
        denoiser: GuidedDenoiser,
        listener: Callable[[Grid], Listener] | None,
        should_stop: Callable[[], bool] | None,
    ) -> tuple[Result, Tensor]:
        """The result, and the latents of its images in the network's scale."""
        request, batch = self.request, self.request.engine.batch
        rows = batch.batch_size or self.rows
        engine = LiveEngine(
            denoiser,
            make_rewards(request.engine.rewards, device=denoiser.device),
            replace(batch, batch_size=rows, decode_batch_size=batch.decode_batch_size or rows, keep=("latents",),
                    preview=self.previewer is not None),
            kernel=make_kernel(request.engine.sampler.kernel, denoiser),
        )  # fmt: skip
        finished: dict[int, Tensor] = {}
        told = None if listener is None else listener(engine.grid)

        def listen(event: Event) -> None:
            if event.kind == "score" and event.step == engine.grid.steps:
                finished.update(dict.fromkeys(event.uids, event.kept["latent"]))
            if told is not None:
                told(event)

        (result,) = searched(request.prompts, request.spec, engine, listen, should_stop)
        latents = [finished[image.uid] for image in result.images]
        return result, torch.stack(latents) if latents else denoiser.guided.latent[:0]


def rows_that_fit(patcher: Any, latent: Tensor) -> int:
    """The rows of a batch, from 1 to MOST_ROWS, for which ComfyUI expects memory beside the model's weights.

    ComfyUI makes the two passes of guidance in one call where 1.5 times their memory is free.
    """
    from comfy import model_management

    weights = max(0, patcher.model_size() - patcher.loaded_size())
    free = model_management.get_free_memory(patcher.load_device) - weights
    one = 1.5 * patcher.model.memory_required([2, *latent.shape[1:]])
    return int(min(max(free / one, 1), MOST_ROWS))
