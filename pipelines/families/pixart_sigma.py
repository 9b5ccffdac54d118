"""PixArt-Sigma (diffusers' PixArtSigmaPipeline): a transformer with masked T5 text and sizes in bins."""

from __future__ import annotations

from collections.abc import Sequence

from diffusers import PixArtSigmaPipeline
from diffusers.pipelines.pixart_alpha.pipeline_pixart_alpha import (
    ASPECT_RATIO_256_BIN,
    ASPECT_RATIO_512_BIN,
    ASPECT_RATIO_1024_BIN,
)
from diffusers.pipelines.pixart_alpha.pipeline_pixart_sigma import ASPECT_RATIO_2048_BIN
from torch import Tensor
from ttsnap.pipelines.latents.binned import BinnedDenoiser
from ttsnap.pipelines.latents.encoder_inputs import EncoderInputs
from ttsnap.pipelines.mixin import SearchMixin

from ttsnap.core.prompt import Prompt

BINS = {256: ASPECT_RATIO_2048_BIN, 128: ASPECT_RATIO_1024_BIN, 64: ASPECT_RATIO_512_BIN, 32: ASPECT_RATIO_256_BIN}


class PixArtSigmaDenoiser(BinnedDenoiser):
    """One call of a PixArtSigmaPipeline, open to search. Arguments are those of its `__call__`.

    Raises ValueError for schedulers that search cannot use and for input that the pipeline refuses.
    """

    bins = BINS
    encodes_apart = True

    def __init__(
        self,
        pipe: PixArtSigmaPipeline,
        *,
        negative_prompt: str | list[str] | None = "",
        num_inference_steps: int = 20,
        timesteps: list[int] | None = None,
        sigmas: list[float] | None = None,
        guidance_scale: float = 4.5,
        height: int | None = None,
        width: int | None = None,
        eta: float = 0.0,
        prompt_embeds: Tensor | None = None,
        prompt_attention_mask: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        negative_prompt_attention_mask: Tensor | None = None,
        clean_caption: bool = True,
        use_resolution_binning: bool = True,
        max_sequence_length: int = 300,
    ) -> None:
        super().__init__(pipe)
        self.cfg_scale = guidance_scale
        native = self.net.config.sample_size * self.pipe.vae_scale_factor
        self.choose_size(height or native, width or native, binned=use_resolution_binning)
        embeds = {
            "prompt_embeds": prompt_embeds,
            "prompt_attention_mask": prompt_attention_mask,
            "negative_prompt_embeds": negative_prompt_embeds,
            "negative_prompt_attention_mask": negative_prompt_attention_mask,
        }
        self.text_length = max_sequence_length if prompt_embeds is None else prompt_embeds.shape[1]
        options = {"clean_caption": clean_caption, "max_sequence_length": self.text_length}
        self._given = EncoderInputs({"negative_prompt": negative_prompt or ""}, embeds, options)
        self.pipe.check_inputs(self._given.checked, self.height, self.width, negative_prompt or None, 1, **embeds)
        self.follow(num_inference_steps, timesteps, sigmas, eta, guided=guidance_scale > 1)

    def encode_prompts(self, prompts: Sequence[Prompt]) -> None:
        self._text, mask, self._negative, negative_mask = self.encoded(prompts)
        self._mask = mask.to(self.device)
        self._negative_mask = negative_mask.to(self.device) if self.guided else negative_mask

    def call(self, x: Tensor, t: Tensor, at: Tensor) -> Tensor:
        out = self.net(
            x,
            encoder_hidden_states=self.pairs(self._negative, self._text, at),
            encoder_attention_mask=self.pairs(self._negative_mask, self._mask, at),
            timestep=t,
            # Alpha's micro-conditions, which Sigma has not; stock passes the same.
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            return_dict=False,
        )[0]
        return self.mean(out, x)


class SearchPixArtSigmaPipeline(SearchMixin, PixArtSigmaPipeline):
    """PixArtSigmaPipeline whose call also takes `search=`, `reward=`, `budget=` and friends."""

    denoiser_class = PixArtSigmaDenoiser
