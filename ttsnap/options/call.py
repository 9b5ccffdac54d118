"""Arguments of the pipelines' own calls that a file may give, for all families.

Which of them one family takes is its denoiser's matter (ttsnap.pipelines.opening.check_call).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from ttsnap.files.settings import Bounds, Settings, Size
from ttsnap.options.option import Option, option, options_of

MOST_STEPS, MOST_SIDE = 1000, 4096
Scale = Annotated[float, Bounds(-1000, 1000)]
Steps = Annotated[int, Bounds(1, MOST_STEPS)]
Strength = Annotated[float, Bounds(0, 1)]
Side = Annotated[int, Bounds(8, MOST_SIDE)]
Text = Annotated[str, Size(10_000)]
Texts = Text | Annotated[list[Text], Size(64)]
Pair = tuple[Annotated[int, Bounds(0, 2**16)], Annotated[int, Bounds(0, 2**16)]]
Points = Annotated[list[Annotated[float, Bounds(0, 1e5)]], Size(1000)]
Layers = Annotated[list[Annotated[int, Bounds(0, 1000)]], Size(64)]
Attention = Annotated[dict[Literal["scale"], Scale], Size(1, 1)]


@dataclass(frozen=True)
class CallOptions(Settings):
    """Each argument by its name, those with a flag of their own first, in the order of tables. None stands for the
    model's own default."""

    negative_prompt: Texts | None = option(
        None,
        "what not to show, for all prompts",
        title="Negative prompt",
        written=str | None,
        metavar="TEXT",
        loads="text",
        common=True,
    )
    num_inference_steps: Steps | None = option(
        None,
        "denoising steps",
        title="Denoising steps",
        flag="steps",
        metavar="N",
        unset="the model's own",
        common=True,
    )
    guidance_scale: Scale | None = option(
        None,
        "classifier-free guidance",
        title="Guidance",
        flag="guidance",
        metavar="SCALE",
        unset="the model's own",
        common=True,
    )
    height: Side | None = option(None, "of the image", title="Height", metavar="PIXELS", unset="the model's own")
    width: Side | None = option(None, "of the image", title="Width", metavar="PIXELS", unset="the model's own")
    true_cfg_scale: Scale | None = option(None, "guidance by a negative prompt, beside a distilled one")
    guidance_rescale: Scale | None = option(None, "how far guided predictions keep the contrast of unguided ones")
    eta: Scale | None = option(None, "noise of DDIM's steps")
    mu: Scale | None = option(None, "shift of the noise levels")
    cfg_trunc_ratio: Scale | None = option(None, "share of the steps that are guided (Lumina)")
    cfg_truncation: Scale | None = option(None, "time from which steps are guided no more (Z-Image)")
    cfg_normalization: bool | Scale | None = option(None, "limit of the guided prediction's norm")
    prompt_2: Texts | None = option(None, "text for the second encoder")
    prompt_3: Texts | None = option(None, "text for the third encoder")
    system_prompt: Texts | None = option(None, "text before the prompt")
    complex_human_instruction: Texts | None = option(None, "lines before the prompt, by which it is enhanced (Sana)")
    negative_prompt_2: Texts | None = option(None, "what not to show, for the second encoder")
    negative_prompt_3: Texts | None = option(None, "what not to show, for the third encoder")
    clean_caption: bool | None = option(None, "take markup out of prompts")
    use_resolution_binning: bool | None = option(None, "generate at the nearest trained size, and resize")
    original_size: Pair | None = option(None, "SDXL's size conditioning")
    crops_coords_top_left: Pair | None = option(None, "SDXL's crop conditioning")
    target_size: Pair | None = option(None, "SDXL's target size conditioning")
    negative_original_size: Pair | None = option(None, "the same of the unguided pass")
    negative_crops_coords_top_left: Pair | None = option(None, "the same of the unguided pass")
    negative_target_size: Pair | None = option(None, "the same of the unguided pass")
    sigmas: Points | None = option(None, "noise levels of the steps")
    timesteps: Points | None = option(None, "times of the steps")
    clip_skip: Annotated[int, Bounds(0, 100)] | None = option(None, "layers of CLIP to leave out at its end")
    strength: Strength | None = option(None, "how much of the picture is redrawn")
    max_sequence_length: Annotated[int, Bounds(1, 4096)] | None = option(None, "most tokens of a prompt")
    text_encoder_out_layers: Layers | None = option(None, "layers of the text encoder that are read (FLUX.2)")
    joint_attention_kwargs: Attention | None = option(None, "of the attention processor: the scale of a LoRA")
    attention_kwargs: Attention | None = option(None, "of the attention processor: the scale of a LoRA")
    cross_attention_kwargs: Attention | None = option(None, "of the attention processor: the scale of a LoRA")


CALL: dict[str, Option] = {option.name: option for option in options_of(CallOptions)}
WRITTEN = {name: argument for name, argument in CALL.items() if argument.metavar is not None}
"""Those with a flag of their own; others are given with --call."""
