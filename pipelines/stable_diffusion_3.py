"""Stable Diffusion 3 and 3.5 (diffusers' StableDiffusion3Pipeline): encode, initial latents, predict, decode."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import calculate_shift, retrieve_timesteps
from torch import Tensor
from ttsnap.pipelines.mixin import SearchMixin

from ttsnap.flops import count_flops, on_meta
from ttsnap.interpolants import Linear
from ttsnap.samplers import FlowEuler, Prediction
from ttsnap.types import Grid


@contextmanager
def captured(transformer: Any, block: int | None) -> Iterator[list[Tensor]]:
    """A list that receives the picture's hidden states (B, tokens, D) after `block`, in one call; None: nothing."""
    states: list[Tensor] = []
    hook = None
    if block is not None:
        module = getattr(transformer, "_orig_mod", transformer).transformer_blocks[block]
        hook = module.register_forward_hook(lambda _, __, out: states.append(out[1]))
    try:
        yield states
    finally:
        if hook is not None:
            hook.remove()


class StableDiffusion3Denoiser:
    """One call of a StableDiffusion3Pipeline, open to search. Arguments are those of its `__call__`.

    Raises ValueError for a scheduler other than FlowMatchEuler and for sizes that the pipeline refuses.
    """

    def __init__(
        self,
        pipe: StableDiffusion3Pipeline,
        *,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 28,
        sigmas: list[float] | None = None,
        guidance_scale: float = 7.0,
        prompt_2: str | None = None,
        prompt_3: str | None = None,
        negative_prompt: str | None = None,
        negative_prompt_2: str | None = None,
        negative_prompt_3: str | None = None,
        joint_attention_kwargs: dict[str, Any] | None = None,
        clip_skip: int | None = None,
        max_sequence_length: int = 256,
        mu: float | None = None,
    ) -> None:
        self.pipe = cast(Any, pipe)  # diffusers sets the parts of a pipeline where no type checker sees them.
        if type(self.pipe.scheduler) is not FlowMatchEulerDiscreteScheduler:
            raise ValueError(
                f"search over SD3 supports FlowMatchEulerDiscreteScheduler, got {type(self.pipe.scheduler).__name__}; "
                "set pipe.scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config)"
            )
        if num_inference_steps < 1:
            raise ValueError(f"num_inference_steps must be at least 1, got {num_inference_steps}")
        self.guidance_scale = guidance_scale
        self.height = height or self.pipe.default_sample_size * self.pipe.vae_scale_factor
        self.width = width or self.pipe.default_sample_size * self.pipe.vae_scale_factor
        self.pipe.check_inputs(
            "",
            None,
            None,
            self.height,
            self.width,
            max_sequence_length=max_sequence_length,
            callback_on_step_end_tensor_inputs=[],
        )
        self.guided = guidance_scale > 1
        self.passes_per_nfe = 2 if self.guided else 1
        self._texts = (prompt_2, prompt_3, negative_prompt, negative_prompt_2, negative_prompt_3)
        self._joint_attention_kwargs, self._clip_skip = joint_attention_kwargs, clip_skip
        self._max_sequence_length = max_sequence_length
        scheduler: Any = copy.deepcopy(self.pipe.scheduler)
        extra: dict[str, Any] = {}
        if scheduler.config.use_dynamic_shifting:
            extra["mu"] = self._shift(scheduler) if mu is None else mu
        self._timesteps, _ = retrieve_timesteps(scheduler, num_inference_steps, "cpu", sigmas=sigmas, **extra)
        self.path = Linear()
        self.times = scheduler.sigmas.double()
        self.grid = Grid(tuple(self.times.tolist()))
        self._block: int | None = None
        self.kernel = FlowEuler(scheduler.sigmas, bool(scheduler.config.stochastic_sampling))

    def _shift(self, scheduler: Any) -> float:
        patch, scale, c = self.pipe.transformer.config.patch_size, self.pipe.vae_scale_factor, scheduler.config
        tokens = (self.height // scale // patch) * (self.width // scale // patch)
        limits = (c.get("base_image_seq_len", 256), c.get("max_image_seq_len", 4096))
        return float(calculate_shift(tokens, *limits, c.get("base_shift", 0.5), c.get("max_shift", 1.16)))

    def encode(self, prompts: Sequence[str]) -> None:
        n = len(prompts)
        texts = [None if text is None else [text] * n for text in self._texts]
        prompt_2, prompt_3, negative, negative_2, negative_3 = texts
        scale = (self._joint_attention_kwargs or {}).get("scale")
        self._text, self._negative, self._pooled, self._negative_pooled = self.pipe.encode_prompt(
            prompt=list(prompts),
            prompt_2=prompt_2,
            prompt_3=prompt_3,
            negative_prompt=negative,
            negative_prompt_2=negative_2,
            negative_prompt_3=negative_3,
            do_classifier_free_guidance=self.guided,
            device=self.pipe._execution_device,
            clip_skip=self._clip_skip,
            lora_scale=scale,
            max_sequence_length=self._max_sequence_length,
        )

    def init_latents(self, seeds: Sequence[int]) -> Tensor:
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        latents: Tensor = self.pipe.prepare_latents(
            len(generators),
            self.pipe.transformer.config.in_channels,
            self.height,
            self.width,
            self._text.dtype,
            self.pipe._execution_device,
            generators,
        )
        return latents

    def capture(self, block: int) -> None:
        """Let `predict` hand out the picture's hidden states after this transformer block; ValueError without one."""
        blocks = len(self.pipe.transformer.transformer_blocks)
        if not 0 <= block < blocks:
            raise ValueError(f"this transformer has blocks 0 to {blocks - 1}, got {block}")
        self._block = block

    def predict(self, x: Tensor, step: Tensor, cond: Tensor) -> Prediction:
        t, at = self._timesteps[step].to(x.device), cond.to(x.device)
        text, pooled, latents = self._text[at], self._pooled[at], x
        if self.guided:
            text, pooled = torch.cat([self._negative[at], text]), torch.cat([self._negative_pooled[at], pooled])
            latents, t = torch.cat([x, x]), torch.cat([t, t])
        with captured(self.pipe.transformer, self._block) as states:
            out = self.pipe.transformer(
                hidden_states=latents,
                timestep=t,
                encoder_hidden_states=text,
                pooled_projections=pooled,
                joint_attention_kwargs=self._joint_attention_kwargs,
                return_dict=False,
            )[0]
        if self.guided:
            unconditional, conditional = out.chunk(2)
            out = unconditional + self.guidance_scale * (conditional - unconditional)
        sigma = self.kernel.sigmas[step].to(x.device).view(-1, 1, 1, 1)
        features = None
        if states:
            patch = self.pipe.transformer.config.patch_size
            size = (x.shape[-2] // patch, x.shape[-1] // patch)
            features = states[0][-len(x) :].transpose(1, 2).unflatten(2, size).contiguous()  # the conditional half
        return Prediction(out, x.float() - sigma * out.float(), features)

    def decode(self, x0: Tensor) -> Tensor:
        vae = self.pipe.vae
        latents = (x0.to(self._text.dtype) / vae.config.scaling_factor) + vae.config.shift_factor
        image = vae.decode(latents, return_dict=False)[0]
        images: Tensor = self.pipe.image_processor.postprocess(image, output_type="pt").float()
        return images

    def flops(self) -> tuple[float, float]:
        """Counted once per pipeline and size, since it takes as long as a few small calls."""
        key = (id(self.pipe.transformer), self.height, self.width, self._max_sequence_length, self.guided)
        memo = vars(self.pipe).setdefault("_flops_by_size", {})
        if key not in memo:
            memo[key] = self._count_flops()
        found: tuple[float, float] = memo[key]
        return found

    def _count_flops(self) -> tuple[float, float]:
        pipe, twin = self.pipe, copy.copy(self)
        c = pipe.transformer.config
        tokens, scale = pipe.tokenizer_max_length + self._max_sequence_length, pipe.vae_scale_factor
        with torch.device("meta"):
            twin._text = twin._negative = torch.zeros(1, tokens, c.joint_attention_dim)
            twin._pooled = twin._negative_pooled = torch.zeros(1, c.pooled_projection_dim)
            x = torch.zeros(1, c.in_channels, self.height // scale, self.width // scale)
        twin.pipe = SimpleNamespace(
            transformer=on_meta(pipe.transformer), vae=on_meta(pipe.vae), image_processor=pipe.image_processor
        )
        zero = torch.zeros(1, dtype=torch.long)
        return count_flops(lambda: twin.predict(x, zero, zero)), count_flops(lambda: twin.decode(x))


class SearchStableDiffusion3Pipeline(SearchMixin, StableDiffusion3Pipeline):
    """StableDiffusion3Pipeline whose call also takes `search=`, `reward=`, `budget=` and friends."""

    denoiser_class = StableDiffusion3Denoiser
