"""Lumina Image 2.0 (diffusers' Lumina2Pipeline): encode, initial latents, predict, decode."""

from __future__ import annotations

from typing import Any, Self

from diffusers import Lumina2Pipeline
from torch import Tensor
from ttsnap.pipelines.denoiser import PipelineDenoiser
from ttsnap.pipelines.guidance.passes import TwoCalls, as_long, classifier_free
from ttsnap.pipelines.latents.encoder_inputs import EncoderInputs
from ttsnap.pipelines.latents.layouts import Plain
from ttsnap.pipelines.latents.rows import texts, unscaled
from ttsnap.pipelines.latents.schedule import falling, make_schedule, token_shift
from ttsnap.pipelines.mixin import SearchMixin


class Lumina2Denoiser(PipelineDenoiser):
    """One call of a Lumina2Pipeline, open to search. Arguments are those of its `__call__`.

    Steps beyond `cfg_trunc_ratio` take one pass instead of two; prices count two for all.
    Raises ValueError for schedulers that search cannot use and for sizes that the pipeline refuses.
    """

    blocks = "layers"
    halves = True

    def __init__(
        self,
        pipe: Lumina2Pipeline,
        *,
        width: int | None = None,
        height: int | None = None,
        num_inference_steps: int = 30,
        guidance_scale: float = 4.0,
        negative_prompt: str | list[str] | None = None,
        sigmas: list[float] | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        prompt_attention_mask: Tensor | None = None,
        negative_prompt_attention_mask: Tensor | None = None,
        attention_kwargs: dict[str, object] | None = None,
        system_prompt: str | None = None,
        cfg_trunc_ratio: float = 1.0,
        cfg_normalization: bool = True,
        max_sequence_length: int = 256,
    ) -> None:
        super().__init__(pipe)
        self.layout = Plain(*self.native_size(height, width))
        embeds = {
            "prompt_embeds": prompt_embeds,
            "negative_prompt_embeds": negative_prompt_embeds,
            "prompt_attention_mask": prompt_attention_mask,
            "negative_prompt_attention_mask": negative_prompt_attention_mask,
        }
        options = {"system_prompt": system_prompt, "max_sequence_length": max_sequence_length}
        self.inputs = EncoderInputs({"negative_prompt": negative_prompt}, embeds, options)
        self.pipe.check_inputs(
            self.inputs.checked,
            self.layout.height,
            self.layout.width,
            negative_prompt,
            max_sequence_length=max_sequence_length,
            **embeds,
        )
        self._attention_kwargs = attention_kwargs
        seen = [None if m is None else int(m[0].sum()) for m in (prompt_attention_mask, negative_prompt_attention_mask)]
        self.text_length = (max_sequence_length, system_prompt, *(texts(negative_prompt, 1) or ()), *seen)
        # The pipeline takes its channels for its tokens.
        mu = token_shift(self.pipe.scheduler, self.layout.channels(self.net))
        given = falling(num_inference_steps) if sigmas is None else sigmas
        schedule = make_schedule(self.pipe.scheduler, num_inference_steps, sigmas=given, mu=mu)
        steps = len(schedule.timesteps)
        at = tuple(guidance_scale > 1 and (k + 1) / steps <= cfg_trunc_ratio for k in range(steps))
        combine = as_long if cfg_normalization else classifier_free
        self.set_up(schedule, TwoCalls(guidance_scale, any(at), combine, at))

    def meta_twin(self) -> Self:
        # The network reads the lengths of texts off their masks, which need values until then.
        twin = super().meta_twin()
        twin.texts = self.texts.each(lambda side: [side[0].to("meta"), side[1]])
        for block in twin.net.context_refiner:
            block.register_forward_pre_hook(lambda _, arguments: tuple(a.to("meta") for a in arguments))
        return twin

    def time(self, t: Tensor, x: Tensor, step: Tensor) -> Tensor:
        time: Tensor = 1 - t / self.pipe.scheduler.config.num_train_timesteps
        return time

    def call(self, x: Tensor, t: Tensor, *texts: Any) -> Tensor:
        text, mask = texts
        out: Tensor = self.net(
            hidden_states=x,
            timestep=t,
            encoder_hidden_states=text,
            encoder_attention_mask=mask,
            return_dict=False,
            attention_kwargs=self._attention_kwargs,
        )[0]
        return -out

    def pixels(self, vae: Any, x0: Tensor) -> Tensor:
        return self.postprocess(self.decoded(vae, unscaled(vae, self.settled(x0, vae)).to(vae.dtype)))


class SearchLumina2Pipeline(SearchMixin, Lumina2Pipeline):
    """Lumina2Pipeline whose call also takes `search=`, `reward=`, `budget=` and friends."""

    denoiser_class = Lumina2Denoiser
