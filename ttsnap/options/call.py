"""Arguments of the pipelines' own calls that a file may give, for all families: the bounds of each, and its words.

Which of them one family takes is its denoiser's matter (ttsnap.pipelines.opening.check_call).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ttsnap.options.kinds import FLAG, MOST_LIST, Kind, either, number, several, text, whole
from ttsnap.options.option import Option

MOST_STEPS, MOST_SIDE = 1000, 4096


@dataclass(frozen=True)
class CallArgument:
    """kind: what a file may give; null, which stands for a model's own default, passes for all.

    title: what tables for people call it. text, written, flag, metavar, loads, common: as in Option, where the command
    line has an option for it beside --call.
    """

    kind: Kind
    title: str = ""
    text: str = ""
    written: Any = None
    flag: str = ""
    metavar: str | None = None
    unset: str = ""
    loads: str = ""
    common: bool = False

    def option(self, name: str) -> Option:
        """As an option of the command line, which is None where it is left to the model."""
        return Option(
            name,
            None,
            self.text,
            unset=self.unset,
            written=self.written,
            flag=self.flag or name,
            metavar=self.metavar,
            loads=self.loads,
            common=self.common,
        )


def _side(title: str) -> CallArgument:
    return CallArgument(
        whole(8, MOST_SIDE), title, "of the image", int | None, metavar="PIXELS", unset="the model's own"
    )


_GUIDANCE = number()
_TEXT = either(text(), several(text(), "", 64), f"{text().words}, or a short list of such")
_PAIR = several(whole(0, 2**16), "two whole numbers up to 65536", 2, 2)
_POINTS = several(number(0, 1e5), f"a list of at most {MOST_LIST} numbers from 0 to 100000")
_ATTENTION = Kind(
    'an object with nothing but a "scale"',
    lambda v: isinstance(v, dict) and set(v) == {"scale"} and number().fits(v["scale"]),
)
CALL: dict[str, CallArgument] = {
    "negative_prompt": CallArgument(
        _TEXT,
        "Negative prompt",
        "what not to show, for all prompts",
        str | None,
        metavar="TEXT",
        loads="text",
        common=True,
    ),
    "num_inference_steps": CallArgument(
        whole(1, MOST_STEPS),
        "Denoising steps",
        "denoising steps",
        int | None,
        "steps",
        "N",
        "the model's own",
        common=True,
    ),
    "guidance_scale": CallArgument(
        _GUIDANCE,
        "Guidance",
        "classifier-free guidance",
        float | None,
        "guidance",
        "SCALE",
        "the model's own",
        common=True,
    ),
    "height": _side("Height"),
    "width": _side("Width"),
    **dict.fromkeys(("true_cfg_scale", "guidance_rescale", "eta", "mu"), CallArgument(_GUIDANCE)),
    **dict.fromkeys(("cfg_trunc_ratio", "cfg_truncation"), CallArgument(_GUIDANCE)),
    "cfg_normalization": CallArgument(either(FLAG, number(), "true, false or a number")),
    **dict.fromkeys(("prompt_2", "prompt_3", "system_prompt", "complex_human_instruction"), CallArgument(_TEXT)),
    **dict.fromkeys(("negative_prompt_2", "negative_prompt_3"), CallArgument(_TEXT)),
    **dict.fromkeys(("clean_caption", "use_resolution_binning"), CallArgument(FLAG)),
    **dict.fromkeys(("original_size", "crops_coords_top_left", "target_size"), CallArgument(_PAIR)),
    **dict.fromkeys(
        ("negative_original_size", "negative_crops_coords_top_left", "negative_target_size"), CallArgument(_PAIR)
    ),
    **dict.fromkeys(("sigmas", "timesteps"), CallArgument(_POINTS)),
    "clip_skip": CallArgument(whole(0, 100)),
    "strength": CallArgument(number(0, 1)),
    "max_sequence_length": CallArgument(whole(1, 4096)),
    "text_encoder_out_layers": CallArgument(several(whole(0, 1000), "a short list of whole numbers", 64)),
    **dict.fromkeys(("joint_attention_kwargs", "attention_kwargs", "cross_attention_kwargs"), CallArgument(_ATTENTION)),
}
"""The arguments by name, those with an option of their own first, in the order of tables."""
WRITTEN = {name: argument.option(name) for name, argument in CALL.items() if argument.written is not None}
"""Options of the command line for some of them."""
