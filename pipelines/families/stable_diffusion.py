"""Stable Diffusion 1 and 2 (diffusers' StableDiffusionPipeline)."""

from __future__ import annotations

from collections.abc import Sequence

from diffusers import StableDiffusionPipeline
from torch import Tensor
from ttsnap.pipelines.families.unet import UNetDenoiser
from ttsnap.pipelines.latents.rows import tokens
from ttsnap.pipelines.mixin import SearchMixin

from ttsnap.core.prompt import Prompt


class StableDiffusionDenoiser(UNetDenoiser):
    """One call of a StableDiffusionPipeline, open to search. Arguments are those of its `__call__`.

    Raises ValueError for schedulers that search cannot use and for input that the pipeline refuses.
    """

    encodes_apart = True

    def __init__(
        self,
        pipe: StableDiffusionPipeline,
        *,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        timesteps: list[int] | None = None,
        sigmas: list[float] | None = None,
        guidance_scale: float = 7.5,
        negative_prompt: str | list[str] | None = None,
        eta: float = 0.0,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        cross_attention_kwargs: dict[str, object] | None = None,
        guidance_rescale: float = 0.0,
        clip_skip: int | None = None,
    ) -> None:
        super().__init__(pipe)
        if not height or not width:
            size = self.pipe.unet.config.sample_size
            sides = (size, size) if isinstance(size, int) else size
            height, width = (side * self.pipe.vae_scale_factor for side in sides)
        self.height, self.width = height, width
        embeds = {"prompt_embeds": prompt_embeds, "negative_prompt_embeds": negative_prompt_embeds}
        self.settle(guidance_scale, guidance_rescale, clip_skip, cross_attention_kwargs)
        self._given = self.given({"negative_prompt": negative_prompt}, embeds)
        self.pipe.check_inputs(self._given.checked, height, width, None, negative_prompt, **embeds)
        self.text_length = tokens(prompt_embeds)
        guided = self.pipe.do_classifier_free_guidance
        self.follow(num_inference_steps, timesteps, sigmas, eta, guided=guided)

    def encode_prompts(self, prompts: Sequence[Prompt]) -> None:
        self._text, self._negative = self.encoded(prompts)


class SearchStableDiffusionPipeline(SearchMixin, StableDiffusionPipeline):
    """StableDiffusionPipeline whose call also takes `search=`, `reward=`, `budget=` and friends."""

    denoiser_class = StableDiffusionDenoiser
