"""A search pipeline as type checkers and editors see it: its call, and what comes back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, Protocol, TypedDict, TypeVar, Unpack

from ttsnap.core.prompt import Prompt
from ttsnap.core.results import Event, Result
from ttsnap.loop.budget import Budget
from ttsnap.options.option import Spec
from ttsnap.request.request import AlgorithmSpec

Stock = TypeVar("Stock", covariant=True)
"""The class of the stock pipeline."""
_Whole = int | None
_Number = float | None
_Texts = str | list[str] | None
_Sizes = tuple[int, int] | None

CallArguments = TypedDict(  # noqa: UP013
    "CallArguments",
    {
        "height": _Whole,
        "width": _Whole,
        "num_frames": _Whole,
        "frame_rate": _Number,
        "num_inference_steps": _Whole,
        "num_images_per_prompt": _Whole,
        "num_videos_per_prompt": _Whole,
        "generator": Any,
        "output_type": str,
        "return_dict": bool,
        "prompt_2": _Texts,
        "prompt_3": _Texts,
        "system_prompt": _Texts,
        "negative_prompt": _Texts,
        "negative_prompt_2": _Texts,
        "negative_prompt_3": _Texts,
        "complex_human_instruction": _Texts,
        "clean_caption": bool | None,
        "max_sequence_length": _Whole,
        "clip_skip": _Whole,
        "text_encoder_out_layers": Any,
        "image": Any,
        "mask_image": Any,
        "control_image": Any,
        "last_image": Any,
        "strength": _Number,
        "guidance_scale": _Number,
        "guidance_scale_2": _Number,
        "true_cfg_scale": _Number,
        "guidance_rescale": _Number,
        "eta": _Number,
        "mu": _Number,
        "sigmas": Any,
        "timesteps": Any,
        "cfg_trunc_ratio": _Number,
        "cfg_truncation": _Number,
        "cfg_normalization": bool | float | None,
        "use_resolution_binning": bool | None,
        "original_size": _Sizes,
        "target_size": _Sizes,
        "crops_coords_top_left": _Sizes,
        "negative_original_size": _Sizes,
        "negative_target_size": _Sizes,
        "negative_crops_coords_top_left": _Sizes,
        "attention_kwargs": Any,
        "joint_attention_kwargs": Any,
        "cross_attention_kwargs": Any,
        "controlnet_conditioning_scale": Any,
        "control_guidance_start": Any,
        "control_guidance_end": Any,
        "guess_mode": bool,
        "prompt_embeds": Any,
        "prompt_embeds_mask": Any,
        "prompt_attention_mask": Any,
        "pooled_prompt_embeds": Any,
        "negative_prompt_embeds": Any,
        "negative_prompt_embeds_mask": Any,
        "negative_prompt_attention_mask": Any,
        "negative_pooled_prompt_embeds": Any,
        "latents": Any,
        "audio_latents": Any,
        "image_embeds": Any,
        "ip_adapter_image": Any,
        "ip_adapter_image_embeds": Any,
        "negative_ip_adapter_image": Any,
        "negative_ip_adapter_image_embeds": Any,
        "masked_image_latents": Any,
        "padding_mask_crop": Any,
        "callback": Any,
        "callback_steps": Any,
        "callback_on_step_end": Any,
        "callback_on_step_end_tensor_inputs": Any,
        "denoising_start": Any,
        "denoising_end": Any,
        "aesthetic_score": Any,
        "negative_aesthetic_score": Any,
        "skip_guidance_layers": Any,
        "skip_layer_guidance_scale": Any,
        "skip_layer_guidance_start": Any,
        "skip_layer_guidance_stop": Any,
        "caption_upsample_temperature": Any,
        "max_area": Any,
        "decode_timestep": Any,
        "decode_noise_scale": Any,
        "noise_scale": Any,
        "min_seconds": Any,
        "max_seconds": Any,
        "motion_speed": Any,
        "stg_scale": Any,
        "spatio_temporal_guidance_blocks": Any,
        "modality_scale": Any,
        "audio_guidance_scale": Any,
        "audio_guidance_rescale": Any,
        "audio_stg_scale": Any,
        "audio_modality_scale": Any,
        "use_cross_timestep": Any,
        "enable_prompt_enhancement": Any,
        "prompt_enhancement_kwargs": Any,
        "prompt_enhancement_seed": Any,
        "prompt_max_new_tokens": Any,
        "image_crf": Any,
    },
    total=False,
)

"""Arguments of stock calls; each pipeline refuses those that it does not take."""


class SearchOutput(Protocol):
    """The stock output of a pipeline and, of a call with `search=`, what was found."""

    search: list[Result]
    """One for each prompt."""
    images: Any
    frames: Any
    """Of videos, in place of images."""
    audio: Any
    nsfw_content_detected: Any

    def __getitem__(self, key: Any) -> Any: ...

    def __iter__(self) -> Iterator[Any]: ...


class SearchPipeline(Protocol[Stock]):
    """A pipeline that `load` or `upgrade` gives back; ttsnap.pipelines.arguments explains the
    search arguments."""

    def __call__(
        self,
        prompt: str | Prompt | Sequence[str | Prompt] | None = None,
        *,
        search: AlgorithmSpec | None = None,
        reward: Spec = None,
        check: Sequence[str] = (),
        tie: Spec = None,
        reward_prompts: str | Sequence[str] | None = None,
        budget: str | Budget | None = None,
        effort: str | float | None = None,
        shared: bool = False,
        seed: int | None = None,
        on_event: Callable[[Event], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
        utility: Spec = "mean",
        require: Spec = None,
        until: Spec = None,
        report: Spec = None,
        diverse: bool = False,
        diversity: float | None = None,
        likeness: Spec = None,
        kernel: Spec = "pipeline",
        path: Spec = None,
        times: Spec = "pipeline",
        guide: Spec = None,
        draft: Spec = "auto",
        finish: Spec = "auto",
        variety: Spec = None,
        batch_size: int | None = None,
        decode_batch_size: int | None = None,
        gradient_batch_size: int | None = None,
        frames: int = 4,
        devices: int | Literal["all", "auto"] = 1,
        ray_address: str | None = None,
        **stock: Unpack[CallArguments],
    ) -> SearchOutput: ...

    @classmethod
    def stock_class(cls) -> type[Stock]: ...

    def __getattr__(self, name: str) -> Any:
        """All that the stock pipeline has."""

    def __setattr__(self, name: str, value: Any) -> None: ...
