"""PixArt-Sigma (diffusers' PixArtSigmaPipeline): a transformer with masked T5 text and sizes in bins."""

from __future__ import annotations

from typing import Any, ClassVar

from diffusers import PixArtSigmaPipeline
from diffusers.pipelines.pixart_alpha.pipeline_pixart_alpha import (
    ASPECT_RATIO_256_BIN,
    ASPECT_RATIO_512_BIN,
    ASPECT_RATIO_1024_BIN,
)
from diffusers.pipelines.pixart_alpha.pipeline_pixart_sigma import ASPECT_RATIO_2048_BIN
from torch import Tensor
from ttsnap.pipelines.denoiser import PipelineDenoiser
from ttsnap.pipelines.guidance.passes import Paired
from ttsnap.pipelines.latents.encoder_inputs import EncoderInputs
from ttsnap.pipelines.latents.layouts import Binned, without_variance
from ttsnap.pipelines.latents.schedule import scaled_schedule
from ttsnap.pipelines.mixin import SearchMixin

BINS = {256: ASPECT_RATIO_2048_BIN, 128: ASPECT_RATIO_1024_BIN, 64: ASPECT_RATIO_512_BIN, 32: ASPECT_RATIO_256_BIN}


class PixArtSigmaDenoiser(PipelineDenoiser):
    """One call of a PixArtSigmaPipeline, open to search. Arguments are those of its `__call__`.

    Raises ValueError for schedulers that search cannot use and for input that the pipeline refuses.
    """

    bins: ClassVar[dict[int, Any]] = BINS
    halves = True
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
        native = self.net.config.sample_size * self.pipe.vae_scale_factor
        bins = self.bins if use_resolution_binning else None
        self.layout = Binned.of(height or native, width or native, self.pipe, bins)
        embeds = {
            "prompt_embeds": prompt_embeds,
            "prompt_attention_mask": prompt_attention_mask,
            "negative_prompt_embeds": negative_prompt_embeds,
            "negative_prompt_attention_mask": negative_prompt_attention_mask,
        }
        self.text_length = max_sequence_length if prompt_embeds is None else prompt_embeds.shape[1]
        options = {"clean_caption": clean_caption, "max_sequence_length": self.text_length}
        self.inputs = EncoderInputs({"negative_prompt": negative_prompt or ""}, embeds, options)
        size = (self.layout.height, self.layout.width)
        self.pipe.check_inputs(self.inputs.checked, *size, negative_prompt or None, 1, **embeds)
        schedule = scaled_schedule(self.pipe.scheduler, num_inference_steps, timesteps, sigmas, eta)
        self.set_up(schedule, Paired(guidance_scale, guidance_scale > 1))

    def call(self, x: Tensor, t: Tensor, *texts: Any) -> Tensor:
        text, mask = texts
        out = self.net(
            x,
            encoder_hidden_states=text,
            encoder_attention_mask=mask.to(x.device),
            timestep=t,
            added_cond_kwargs=self.size_told(x),
            return_dict=False,
        )[0]
        return without_variance(out, x, self.net)

    def size_told(self, latents: Tensor) -> dict[str, Tensor | None]:
        """What networks are told of the size of pictures: those of Sigma nothing, as in the stock call."""
        return {"resolution": None, "aspect_ratio": None}


class SearchPixArtSigmaPipeline(SearchMixin, PixArtSigmaPipeline):
    """PixArtSigmaPipeline whose call also takes `search=`, `reward=`, `budget=` and friends."""

    denoiser_class = PixArtSigmaDenoiser
