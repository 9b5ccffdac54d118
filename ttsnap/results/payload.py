"""The metadata of an image: how it was made. Written by ttsnap, and read as a file that anyone may have written.

An image carries it twice: as A1111 infotext (key "parameters", read by most tools) and as JSON (key "ttsnap", read by
`ttsnap replay`). Replay calls the pipeline with the JSON. Only plain arguments of the models' own calls pass, each of
its type and within bounds. Everything else is refused by name: rewards, reports and callbacks of a search may name
Python to import, or servers to call.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Interval, Len, MaxLen
from PIL import Image

from ttsnap.core.results import Result
from ttsnap.files import reading as files
from ttsnap.files.pictures import texts_in
from ttsnap.files.settings import Json, Natural, NotNegative, Rule, Word, check
from ttsnap.options.call import CALL, Text
from ttsnap.options.option import options_of
from ttsnap.options.sampler import SamplerOptions

SAMPLER = tuple(option.name for option in options_of(SamplerOptions))
MAKING = tuple(option.name for option in options_of(SamplerOptions) if not option.loads)
"""The options that make an image from its seed. What is loaded (a drafter) only helps to choose the seed."""


Place = Annotated[
    str,
    Rule("text of at most 1000 printable characters", lambda v: len(v) <= 1000 and v.isprintable() and v.strip() != ""),
]
Score = Annotated[float, Interval(ge=-1e300, le=1e300)] | None
Scores = Annotated[dict[str, Score], MaxLen(100)]
Object = dict[str, Any]
Digest = Annotated[str, Rule("a digest", re.compile("[0-9a-f]{64}").fullmatch)]
Shown = Literal["control_image", "image", "last_image", "mask_image"]
"""Arguments of the models' own calls that are pictures."""
Dtype = Literal["float32", "bfloat16", "float16"]
_SAMPLER = {option.name: Place if option.loads else option.written for option in options_of(SamplerOptions)}
NEEDED: dict[str, Any] = {
    "prompt": Text,
    "seed": Annotated[int, Interval(ge=0, le=2**64 - 1)],
    "model": Place,
    "call": Object,
    "kernel": _SAMPLER.pop("kernel"),
    "ttsnap": Word,
    "sampler": Word,
    "search": Object,
}
OPTIONAL: dict[str, Any] = {
    "lora": Place | Annotated[list[Place], Len(1, 16)],
    "task": Word,
    "dtype": Dtype,
    "pictures": Annotated[dict[Shown, Digest | Annotated[list[Digest], Len(1, 16)]], Len(1, 4)],
    **_SAMPLER,
    "branched": bool,
    "fps": Annotated[float, Interval(ge=0.001, le=240)],
}
SEARCH: dict[str, Any] = {
    "algorithm": Annotated[str, MaxLen(1000)],
    "options": Object,
    "budget": Word,
    "require": Annotated[list[Place], MaxLen(16)],
    "reward": Score,
    **dict.fromkeys(("scores", "metrics"), Scores),
    **dict.fromkeys(("rank", "seeds"), Natural),
    **dict.fromkeys(("nfe", "diversity"), NotNegative),
    "likeness": Word,
    "shared": bool,
}


REMOVED = {
    "antithetic": "antithetic initial noises",
    "orthogonal": "orthogonal initial noises",
    "spectral-evolution": "evolution in the low frequencies of the noise",
    "polynomial": "polynomial paths",
    **dict.fromkeys(("sin", "sin2", "exp", "clipping", "tan"), "rare amounts of noise"),
}
"""Names in files of earlier versions, and what they meant (docs/measured.md)."""


def removed(name: object) -> str:
    """Why a file that names this cannot be followed; empty for what was not removed."""
    what = REMOVED.get(name) if isinstance(name, str) else None
    return f"ttsnap 0.1.0 was the last version with {what} ({name})" if what else ""


def checked(payload: object, where: object) -> dict[str, Any]:
    """The payload, once everything in it is known and fits. ValueError that names what does not.

    Optional keys that hold null are left out. So are options that were removed since, at their old defaults.
    """
    fields = dict(payload) if isinstance(payload, dict) else {}
    fields.pop("estimate_guidance", None)  # an option of earlier versions, which chose among seeds and changed no image
    if (noises := fields.pop("noises", "independent")) not in ("independent", None):  # an option of earlier versions
        why = removed(noises) or f"no version of ttsnap had noises {noises!r:.60}"
        raise ValueError(f"{where} cannot be made again: {why}")
    for name in (fields.get("path"), *str(fields.get("kernel")).split(":")[1:2]):
        if why := removed(name):
            raise ValueError(f"{where} cannot be made again: {why}")
    missing = sorted(set(NEEDED) - set(fields))
    if missing:
        raise ValueError(f"the ttsnap metadata of {where} lacks {missing}")
    _check(fields, {**NEEDED, **OPTIONAL}, "", where)
    search, needed = fields["search"], {"algorithm", "budget", "reward"}
    _check(search, SEARCH, "search.", where)
    if missing := sorted(needed - set(search)):
        raise ValueError(f"the ttsnap metadata of {where} lacks {missing} in search")
    checked_call(fields["call"], where)
    search = {name: value for name, value in search.items() if value is not None or name in needed}
    return {**{name: value for name, value in fields.items() if value is not None}, "search": search}


def checked_call(call: object, where: object) -> dict[str, Any]:
    """The arguments of a model's own call from a file. ValueError that names what is none or does not fit."""
    if not isinstance(call, dict):
        raise ValueError(f"{where} must hold an object of arguments, got {str(call)[:60]}")
    _check(call, {name: argument.hint for name, argument in CALL.items()}, "call.", where)
    return dict(call)


def _check(found: Mapping[str, object], known: Mapping[str, Any], prefix: str, where: object) -> None:
    unknown = [f"{prefix}{name[:60]}" for name in sorted(set(found) - set(known))]
    if unknown:
        names = ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        raise ValueError(
            f"{where} asks for {names}, which no file may set: a PNG may hold plain settings of a model's own call "
            "only (or this ttsnap is older than the file)"
        )
    for name, value in found.items():
        if value is not None or name in NEEDED:
            try:
                check(f"{prefix}{name}", value, known[name])
            except ValueError as error:
                raise ValueError(f"the ttsnap metadata of {where}: {error}") from None


def infotext(payload: Mapping[str, Json], size: tuple[int, int]) -> str:
    """The payload in the form that A1111, Forge, SD.Next and others read back."""
    call, search = payload["call"], payload["search"]
    assert isinstance(call, Mapping) and isinstance(search, Mapping)  # noqa: PT018
    reward = search["reward"]
    lines = [str(payload["prompt"]).replace("\n", " ")]
    if call.get("negative_prompt"):
        lines.append(f"Negative prompt: {call['negative_prompt']}")
    fields = {
        "Steps": call.get("num_inference_steps"),
        "Sampler": payload["sampler"],
        "CFG scale": call.get("guidance_scale"),
        "Seed": payload["seed"],
        "Size": f"{size[0]}x{size[1]}",
        "Model": payload["model"],
        "ttsnap LoRA": ", ".join(loras) if isinstance(loras := payload.get("lora"), list) else loras,
        "ttsnap draft": payload.get("draft"),
        "ttsnap algorithm": search["algorithm"],
        "ttsnap budget": search["budget"],
        "ttsnap reward": f"{reward:.6g}" if isinstance(reward, float | int) else None,
        "Version": f"ttsnap {payload['ttsnap']}",
    }
    quoted = {k: f'"{v}"' if re.search(r"[,:]", str(v)) else v for k, v in fields.items() if v is not None}
    lines.append(", ".join(f"{k}: {v}" for k, v in quoted.items()))
    return "\n".join(lines)


def for_prompt(settings: Mapping[str, Any], index: int) -> dict[str, Any]:
    """The settings of one prompt, as `payload_of` takes them, from those of all prompts."""
    pictures = settings.get("pictures")
    call = {
        name: value[index] if isinstance(value, list | tuple) and "prompt" in name else value
        for name, value in settings["call"].items()
    }
    return {**settings, "call": call, "pictures": pictures[index] or None if pictures else None}


def payload_of(result: Result, rank: int, settings: Mapping[str, object]) -> dict[str, Json]:
    """The payload, JSON-ready, of the image at this rank (from 0) of a result.

    settings: as in write_results, with the pictures of its prompt only (`for_prompt`)."""
    candidate = result.images[rank]
    payload = {
        **{k: settings[k] for k in ("ttsnap", "model", "sampler", "call")},
        **{k: settings[k] for k in ("lora", "task", "dtype", "pictures", *SAMPLER) if settings.get(k) is not None},
        "prompt": result.prompt,
        "seed": candidate.seed,
        "branched": bool(result.particles.parent[candidate.uid] >= 0),
        "search": {
            **{k: settings[k] for k in ("algorithm", "options", "budget")},
            **{k: settings[k] for k in ("require", "diversity", "likeness", "shared") if k in settings},
            "rank": rank + 1,
            "reward": candidate.reward,
            "scores": candidate.scores,
            "metrics": candidate.metrics,
            "nfe": result.spent.nfe,
            "seeds": result.spent.seeds,
        },
    }
    return {key: plain(value) for key, value in payload.items()}


def label(picture: Image.Image, payload: Mapping[str, Json]) -> None:
    """Put the infotext and the payload into a picture's `info`, under the keys of a PNG."""
    picture.info |= {"parameters": infotext(payload, picture.size), "ttsnap": json.dumps(payload)}


def read_payload(path: Path) -> dict[str, Any]:
    """The "ttsnap" metadata of a file, as of `parse_payload`. ValueError also where it cannot be read."""
    return parse_payload(files.read_bytes(path, files.PICTURE_BYTES, "image"), path)


def parse_payload(data: bytes, path: Path) -> dict[str, Any]:
    """The "ttsnap" metadata of an image or a video that anyone may have written. ValueError that says what
    is wrong."""
    text = texts_in(data, path, ("PNG", "WEBP")).get("ttsnap")
    if text is None:
        raise ValueError(f"{path} carries no ttsnap metadata; only files written by ttsnap can be replayed")
    return checked(files.parse_json(text, f"the ttsnap metadata of {path}"), path)


def plain(value: object) -> Json:
    """JSON-ready: nan becomes null, paths and such become text."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value if isinstance(value, str | int | bool | None) else str(value)
