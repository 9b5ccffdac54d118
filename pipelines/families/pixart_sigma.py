"""PixArt-Sigma (diffusers' PixArtSigmaPipeline): a transformer with masked T5 text and sizes in
bins."""

from __future__ import annotations

from types import SimpleNamespace
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
from ttsnap.pipelines.guidance import Paired
from ttsnap.pipelines.latents.encoder_inputs import EncoderInputs, tokens
from ttsnap.pipelines.latents.layouts import Binned, without_variance
from ttsnap.pipelines.latents.schedule import call_schedule
from ttsnap.pipelines.mixin import SearchMixin

BINS = {
    256: ASPECT_RATIO_2048_BIN,
    128: ASPECT_RATIO_1024_BIN,
    64: ASPECT_RATIO_512_BIN,
    32: ASPECT_RATIO_256_BIN,
}


class PixArtSigmaDenoiser(PipelineDenoiser):
    """One call of a PixArtSigmaPipeline."""

    bins: ClassVar[dict[int, Any]] = BINS
    halves = True
    encodes_apart = True
    honours = (
        "negative_prompt num_inference_steps timesteps sigmas guidance_scale height width eta"
        " prompt_embeds prompt_attention_mask negative_prompt_embeds negative_prompt_attention_mask"
        " clean_caption use_resolution_binning max_sequence_length"
    )

    def read_call(self, call: SimpleNamespace) -> None:
        wanted = self.native_size(call.height, call.width)
        self.layout = Binned.of(
            *wanted, self.pipe, self.bins if call.use_resolution_binning else None
        )
        self.text_length = tokens(call.prompt_embeds) or call.max_sequence_length
        options = {"clean_caption": call.clean_caption, "max_sequence_length": self.text_length}
        texts = {**vars(call), "negative_prompt": call.negative_prompt or ""}
        self.inputs = EncoderInputs.of(texts, **options)
        # The stock default, "", counts as given there, which would refuse all negative embeddings.
        self.check_inputs(
            call,
            self.layout.height,
            self.layout.width,
            negative_prompt=call.negative_prompt or None,
        )
        guidance = Paired(call.guidance_scale, call.guidance_scale > 1)
        self.set_up(call_schedule(self.pipe.scheduler, call), guidance)

    def native_size(self, height: int | None, width: int | None) -> tuple[int, int]:
        native = self.net.config.sample_size * self.pipe.vae_scale_factor
        return height or native, width or native

    def call(self, x: Tensor, t: Tensor, *texts: Any) -> Tensor:
        text, mask = texts
        out = self.forward(
            x,
            encoder_hidden_states=text,
            encoder_attention_mask=mask.to(x.device),
            timestep=t,
            added_cond_kwargs=self.size_conditions(x),
        )
        return without_variance(out, x, self.net)

    def size_conditions(self, latents: Tensor) -> dict[str, Tensor | None]:
        """What the network reads of the size of pictures. Those of Sigma read nothing."""
        return {"resolution": None, "aspect_ratio": None}


class SearchPixArtSigmaPipeline(SearchMixin, PixArtSigmaPipeline):
    """PixArtSigmaPipeline whose call also takes `search=`, `reward=`, `budget=` and friends."""

    denoiser_class = PixArtSigmaDenoiser
