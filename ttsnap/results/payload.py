"""The JSON that a PNG of ttsnap carries, checked as something that anyone may have written.

Replaying an image calls the pipeline with it, so that only plain arguments of the models' own calls pass, each of its
type and within bounds. What a search takes besides (rewards, reports, callbacks: some name Python to import, or servers
to ask) is refused by name, and so is everything else that is not listed here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

MOST_STEPS, MOST_SIDE, MOST_TEXT, MOST_LIST = 1000, 4096, 10_000, 1000
Check = Callable[[Any], bool]


def _whole(low: int, high: int) -> Check:
    return lambda v: isinstance(v, int) and not isinstance(v, bool) and low <= v <= high


def _number(low: float = -1000.0, high: float = 1000.0) -> Check:
    return lambda v: isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) and low <= v <= high


def _text(most: int = MOST_TEXT) -> Check:
    return lambda v: isinstance(v, str) and len(v) <= most


def _several(item: Check, most: int = MOST_LIST, least: int = 0) -> Check:
    return lambda v: isinstance(v, list) and least <= len(v) <= most and all(map(item, v))


def _either(*checks: Check) -> Check:
    return lambda v: any(check(v) for check in checks)


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _scale(value: Any) -> bool:
    return isinstance(value, dict) and set(value) == {"scale"} and _number()(value["scale"])


_SIDE = (f"a whole number from 8 to {MOST_SIDE}", _whole(8, MOST_SIDE))
_GUIDANCE = ("a number from -1000 to 1000", _number())
_TEXT = (f"text of at most {MOST_TEXT:,} characters, or a short list of such", _either(_text(), _several(_text(), 64)))
_FLAG = ("true or false", _flag)
_PAIR = ("two whole numbers up to 65536", _several(_whole(0, 2**16), 2, 2))
_POINTS = (f"a list of at most {MOST_LIST} numbers from 0 to 100000", _several(_number(0, 1e5)))
_LENGTH = ("a whole number from 1 to 4096", _whole(1, 4096))
_ATTENTION = ('an object with nothing but a "scale"', _scale)
CALL: dict[str, tuple[str, Check]] = {
    "num_inference_steps": (f"a whole number from 1 to {MOST_STEPS}", _whole(1, MOST_STEPS)),
    **dict.fromkeys(("height", "width"), _SIDE),
    **dict.fromkeys(("guidance_scale", "true_cfg_scale", "guidance_rescale", "eta", "mu"), _GUIDANCE),
    **dict.fromkeys(("cfg_trunc_ratio", "cfg_truncation"), _GUIDANCE),
    "cfg_normalization": ("true, false or a number", _either(_flag, _number())),
    **dict.fromkeys(("prompt_2", "prompt_3", "system_prompt", "complex_human_instruction"), _TEXT),
    **dict.fromkeys(("negative_prompt", "negative_prompt_2", "negative_prompt_3"), _TEXT),
    **dict.fromkeys(("clean_caption", "use_resolution_binning"), _FLAG),
    **dict.fromkeys(("original_size", "crops_coords_top_left", "target_size"), _PAIR),
    **dict.fromkeys(("negative_original_size", "negative_crops_coords_top_left", "negative_target_size"), _PAIR),
    **dict.fromkeys(("sigmas", "timesteps"), _POINTS),
    "clip_skip": ("a whole number from 0 to 100", _whole(0, 100)),
    "max_sequence_length": _LENGTH,
    "text_encoder_out_layers": ("a short list of whole numbers", _several(_whole(0, 1000), 64)),
    **dict.fromkeys(("joint_attention_kwargs", "attention_kwargs", "cross_attention_kwargs"), _ATTENTION),
}
"""Arguments of the stock calls that a file may give, for all families: what each must be, in words and as a check.

None, which stands for a model's own default, passes for all of them. Which of them one family takes is its denoiser's
matter (ttsnap.cli.common.check_call).
"""

_WORD = ("text of at most 200 characters", _text(200))
_PLACE = ("text of at most 1000 printable characters", lambda v: _text(1000)(v) and v.isprintable() and v.strip() != "")
_SCORES = (
    "an object of numbers",
    lambda v: isinstance(v, dict) and len(v) <= 100 and all(n is None or _number(-1e300, 1e300)(n) for n in v.values()),
)
_COUNT = ("a whole number from 0 on", _whole(0, 2**63))
NEEDED: dict[str, tuple[str, Check]] = {
    "prompt": (f"text of at most {MOST_TEXT:,} characters", _text()),
    "seed": ("a whole number from 0 to 2^64 - 1", _whole(0, 2**64 - 1)),
    "model": _PLACE,
    "call": ("an object", lambda v: isinstance(v, dict)),
    "kernel": _WORD,
    "ttsnap": _WORD,
    "sampler": _WORD,
    "search": ("an object", lambda v: isinstance(v, dict)),
}
OPTIONAL: dict[str, tuple[str, Check]] = {
    "lora": _PLACE,
    **dict.fromkeys(("path", "times", "noises", "guide"), _WORD),
    "branched": _FLAG,
}
SEARCH: dict[str, tuple[str, Check]] = {
    "algorithm": ("text of at most 1000 characters", _text(1000)),
    "options": ("an object", lambda v: isinstance(v, dict)),
    "budget": _WORD,
    "reward": ("a number", _either(_number(-1e300, 1e300), lambda v: v is None)),
    **dict.fromkeys(("scores", "metrics"), _SCORES),
    **dict.fromkeys(("rank", "nfe", "seeds"), _COUNT),
}


def checked(payload: Any, where: object) -> dict[str, Any]:
    """The payload, once everything in it is known and fits. ValueError that names what does not.

    Optional keys that hold null are left out, so that one that is there holds a value.
    """
    found = payload if isinstance(payload, dict) else {}
    missing = sorted(set(NEEDED) - set(found))
    if missing:
        raise ValueError(f"the ttsnap metadata of {where} lacks {missing}")
    _check(found, {**NEEDED, **OPTIONAL}, "", where)
    search, needed = found["search"], {"algorithm", "budget", "reward"}
    _check(search, SEARCH, "search.", where)
    if missing := sorted(needed - set(search)):
        raise ValueError(f"the ttsnap metadata of {where} lacks {missing} in search")
    checked_call(found["call"], where)
    search = {name: value for name, value in search.items() if value is not None or name in needed}
    return {**{name: value for name, value in found.items() if value is not None}, "search": search}


def checked_call(call: Any, where: object) -> dict[str, Any]:
    """Arguments of a model's own call from a file, as they are. ValueError that names what is none or does not fit."""
    if not isinstance(call, dict):
        raise ValueError(f"{where} must hold an object of arguments, got {str(call)[:60]}")
    _check(call, CALL, "call.", where)
    return dict(call)


def _check(found: Mapping[str, Any], known: Mapping[str, tuple[str, Check]], prefix: str, where: object) -> None:
    unknown = [f"{prefix}{name[:60]}" for name in sorted(set(found) - set(known))]
    if unknown:
        names = ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        raise ValueError(
            f"{where} asks for {names}, which no file may set: a PNG may hold plain settings of a model's own call "
            "only (or this ttsnap is older than the file)"
        )
    for name, value in found.items():
        words, fits = known[name]
        if not fits(value) and (value is not None or name in NEEDED):
            shown = repr(value)
            shown = shown if len(shown) <= 60 else shown[:60] + "..."
            raise ValueError(f"{prefix}{name} in the ttsnap metadata of {where} must be {words}, got {shown}")
