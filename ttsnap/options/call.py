"""Arguments of the pipelines' own calls that a file may give; pictures to start from; video files.

Which of them a pipeline takes, its stock call says (ttsnap.pipelines.opening.check_call).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Interval, Len, MaxLen

from ttsnap.files.pictured import SUFFIXES, Picture
from ttsnap.files.settings import Fraction, Settings, Share
from ttsnap.options.model import TEXT
from ttsnap.options.option import Offered, Option, changed, option, options_of

MOST_STEPS = 1000
MOST_SIDE = 4096
MOST_FRAMES = 1000
Scale = Annotated[float, Interval(ge=-1000, le=1000)]
Steps = Annotated[int, Interval(ge=1, le=MOST_STEPS)]
Strength = Share
Side = Annotated[int, Interval(ge=8, le=MOST_SIDE)]
Text = Annotated[str, MaxLen(10_000)]
Texts = Text | Annotated[list[Text], MaxLen(64)]
Pair = tuple[Annotated[int, Interval(ge=0, le=2**16)], Annotated[int, Interval(ge=0, le=2**16)]]
Points = Annotated[list[Annotated[float, Interval(ge=0, le=1e5)]], MaxLen(1000)]
Layers = Annotated[list[Annotated[int, Interval(ge=0, le=1000)]], MaxLen(64)]
Attention = Annotated[dict[Literal["scale"], Scale], Len(1, 1)]


@dataclass(frozen=True)
class CallOptions(Settings):
    """Arguments of the call, those with a flag first, in the order of tables. None means the
    model's own default."""

    negative_prompt: Texts | None = option(
        None,
        "what not to show, for all prompts",
        written=str | None,
        metavar="TEXT",
        loads="text",
        common=True,
        offered=Offered(str | None, "what not to show"),
    )
    num_inference_steps: Steps | None = option(
        None,
        "denoising steps",
        flag="steps",
        metavar="N",
        unset="the model's own",
        common=True,
        offered=Offered(name="steps"),
    )
    guidance_scale: Scale | None = option(
        None,
        "classifier-free guidance",
        flag="guidance",
        metavar="SCALE",
        unset="the model's own",
        common=True,
        offered=Offered(),
    )
    height: Side | None = option(None, "of the image", metavar="PIXELS", unset="the model's own")
    width: Side | None = option(None, "of the image", metavar="PIXELS", unset="the model's own")
    num_frames: Annotated[int, Interval(ge=1, le=MOST_FRAMES)] | None = option(None, "of a video")
    frame_rate: Annotated[float, Interval(gt=0, le=240)] | None = option(
        None, "frames a second of a video, for models that read it (LTX)"
    )
    guidance_scale_2: Scale | None = option(None, "guidance of the second network (Wan 2.2)")
    true_cfg_scale: Scale | None = option(
        None,
        "guidance by a negative prompt, beside a distilled one",
        offered=Offered(text="guidance_scale, but for models that have both"),
    )
    guidance_rescale: Scale | None = option(
        None, "how far guided predictions keep the contrast of unguided ones"
    )
    eta: Scale | None = option(None, "noise of DDIM's steps")
    mu: Scale | None = option(None, "shift of the noise levels")
    cfg_trunc_ratio: Scale | None = option(None, "share of the steps that are guided (Lumina)")
    cfg_truncation: Scale | None = option(
        None, "time from which steps are guided no more (Z-Image)"
    )
    cfg_normalization: bool | Scale | None = option(None, "limit of the guided prediction's norm")
    prompt_2: Texts | None = option(None, "text for the second encoder")
    prompt_3: Texts | None = option(None, "text for the third encoder")
    system_prompt: Texts | None = option(None, "text before the prompt")
    complex_human_instruction: Texts | None = option(
        None, "lines before the prompt, by which it is enhanced (Sana)"
    )
    negative_prompt_2: Texts | None = option(None, "what not to show, for the second encoder")
    negative_prompt_3: Texts | None = option(None, "what not to show, for the third encoder")
    clean_caption: bool | None = option(None, "take markup out of prompts")
    use_resolution_binning: bool | None = option(
        None, "generate at the nearest trained size, and resize"
    )
    original_size: Pair | None = option(None, "SDXL's size conditioning")
    crops_coords_top_left: Pair | None = option(None, "SDXL's crop conditioning")
    target_size: Pair | None = option(None, "SDXL's target size conditioning")
    negative_original_size: Pair | None = option(None, "the same of the unguided pass")
    negative_crops_coords_top_left: Pair | None = option(None, "the same of the unguided pass")
    negative_target_size: Pair | None = option(None, "the same of the unguided pass")
    sigmas: Points | None = option(None, "noise levels of the steps")
    timesteps: Points | None = option(None, "times of the steps")
    clip_skip: Annotated[int, Interval(ge=0, le=100)] | None = option(
        None, "layers of CLIP to leave out at its end"
    )
    strength: Strength | None = option(None, "how much of the picture is redrawn")
    max_sequence_length: Annotated[int, Interval(ge=1, le=4096)] | None = option(
        None, "most tokens of a prompt"
    )
    text_encoder_out_layers: Layers | None = option(
        None, "layers of the text encoder that are read (FLUX.2)"
    )
    joint_attention_kwargs: Attention | None = option(
        None, "of the attention processor: the scale of a LoRA"
    )
    attention_kwargs: Attention | None = option(
        None, "of the attention processor: the scale of a LoRA"
    )
    cross_attention_kwargs: Attention | None = option(
        None, "of the attention processor: the scale of a LoRA"
    )


CALL: dict[str, Option] = {option.name: option for option in options_of(CallOptions)}
WRITTEN = {name: argument for name, argument in CALL.items() if argument.metavar is not None}
"""The arguments with a flag; others are given with --call."""
NOT_TAKEN = {
    "self",
    "prompt",
    "generator",
    "seed",
    "batch_size",
    "output_type",
    "return_dict",
    "latents",
    "audio_latents",
    "num_images_per_prompt",
    "num_videos_per_prompt",
    "callback",
    "callback_steps",
    "callback_on_step_end",
    "callback_on_step_end_tensor_inputs",
    "denoising_end",
}
"""Arguments of stock calls that a search does not take: seeds make latents, and listeners hear of
steps."""
_Plain = (
    bool
    | Annotated[int, Interval(ge=-(2**16), le=2**16)]
    | Annotated[float, Interval(ge=-1e5, le=1e5)]
    | Text
)
_Row = Annotated[list[_Plain], MaxLen(1000)]
OTHER = _Plain | Annotated[list[_Plain | _Row], MaxLen(1000)]
"""The type of arguments that are not listed, in a file: numbers, texts, and lists of these or of
rows of them."""


def pictured_call(call: Mapping[str, object]) -> dict[str, object]:
    """Arguments of --call, with the pictures of files whose names arguments hold that are not
    listed.

    ValueError for a file that is no picture.
    """
    return {name: value if name in CALL else _pictured(name, value) for name, value in call.items()}


def _pictured(name: str, value: object) -> object:
    if isinstance(value, list) and value:
        each = [_pictured(name, one) for one in value]
        return each if all(isinstance(one, Picture) for one in each) else value
    if isinstance(value, str) and Path(value).suffix.lower() in SUFFIXES:
        return Picture.read(Path(value).expanduser(), mask="mask" in name)
    return value


@dataclass(frozen=True)
class PictureOptions(Settings):
    """The pictures of all prompts, as files, and how much of them is redrawn.

    Raises ValueError for a strength out of (0, 1].
    """

    image: str | None = option(
        None,
        "the picture to change, or the first frame, for all prompts",
        metavar="FILE",
        common=True,
    )
    mask_image: str | None = option(None, "white where it is painted anew", metavar="FILE")
    control_image: str | None = option(None, "what a ControlNet is shown", metavar="FILE")
    strength: Fraction | None = option(
        None, "how much of the picture is redrawn, from 0 to 1", metavar="SHARE"
    )

    def read(self, task: str) -> dict[str, Picture]:
        """The pictures by argument of the pipeline's call. ValueError where the task takes none, or
        a file is none."""
        named = {
            "image": self.image,
            "mask_image": self.mask_image,
            "control_image": self.control_image,
        }
        files = {name: path for name, path in named.items() if path is not None}
        pictures = {
            name: Picture.read(path, mask=name == "mask_image") for name, path in files.items()
        }
        if (options := changed(self)) and task == TEXT:
            names = ", ".join(f"--{name.replace('_', '-')}" for name in options)
            raise ValueError(
                f"{names}: say by --task what is done with it, as --task image-to-image"
            )
        return pictures


@dataclass(frozen=True)
class VideoOptions(Settings):
    """The files of a search that makes videos."""

    fps: Annotated[float, Interval(gt=0, le=240)] = option(
        16.0, "frames of a video that are shown in a second", metavar="N"
    )
    video_format: Literal["webp", "png", "mp4"] = option(
        "webp",
        "how videos are written: webp (animated, small), png (animated, without loss), mp4 (takes"
        " PyAV)",
        metavar="FORMAT",
    )
