"""The JSON that a PNG of ttsnap carries, checked as something that anyone may have written.

Replaying an image calls the pipeline with it, so that only plain arguments of the models' own calls pass, each of its
type and within bounds. What a search takes besides (rewards, reports, callbacks: some name Python to import, or servers
to ask) is refused by name, and so is everything else that is not listed here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from ttsnap.files.settings import Bounds, Natural, Rule, Size, Word, check
from ttsnap.options.call import CALL, Text
from ttsnap.options.option import options_of
from ttsnap.options.sampler import SamplerOptions

Place = Annotated[
    str,
    Rule("text of at most 1000 printable characters", lambda v: len(v) <= 1000 and v.isprintable() and v.strip() != ""),
]
Score = Annotated[float, Bounds(-1e300, 1e300)] | None
Scores = Annotated[dict[str, Score], Size(100)]
Object = dict[str, Any]
Digest = Annotated[str, Rule("a digest", re.compile("[0-9a-f]{64}").fullmatch)]
Shown = Literal["control_image", "image", "last_image", "mask_image"]
"""Arguments of the models' own calls that are pictures."""
Dtype = Literal["float32", "bfloat16", "float16"]
DTYPES = get_args(Dtype)
_SAMPLER = {option.name: Place if option.loads else option.written for option in options_of(SamplerOptions)}
NEEDED: dict[str, Any] = {
    "prompt": Text,
    "seed": Annotated[int, Bounds(0, 2**64 - 1)],
    "model": Place,
    "call": Object,
    "kernel": _SAMPLER.pop("kernel"),
    "ttsnap": Word,
    "sampler": Word,
    "search": Object,
}
OPTIONAL: dict[str, Any] = {
    "lora": Place,
    "task": Word,
    "dtype": Dtype,
    "pictures": Annotated[dict[Shown, Digest | Annotated[list[Digest], Size(16, 1)]], Size(4, 1)],
    **_SAMPLER,
    "branched": bool,
    "fps": Annotated[float, Bounds(0.001, 240)],
}
SEARCH: dict[str, Any] = {
    "algorithm": Annotated[str, Size(1000)],
    "options": Object,
    "budget": Word,
    "reward": Score,
    **dict.fromkeys(("scores", "metrics"), Scores),
    **dict.fromkeys(("rank", "nfe", "seeds"), Natural),
}


REMOVED = {
    "antithetic": "antithetic initial noises",
    "orthogonal": "orthogonal initial noises",
    "spectral-evolution": "evolution in the low frequencies of the noise",
}
"""What earlier versions could write, and what it was; none found better images (docs/measured.md)."""


def removed(name: object) -> str:
    """Why a file that names this cannot be followed; empty where nothing of that name was removed."""
    what = REMOVED.get(name) if isinstance(name, str) else None
    return f"{what} ({name}) found no better images, and ttsnap no longer has them" if what else ""


def checked(payload: object, where: object) -> dict[str, Any]:
    """The payload, once everything in it is known and fits. ValueError that names what does not.

    Optional keys that hold null are left out, so that one that is there holds a value; so is what was removed since, at
    the default that it had.
    """
    fields = dict(payload) if isinstance(payload, dict) else {}
    if (noises := fields.pop("noises", "independent")) not in ("independent", None):  # an option of earlier versions
        why = removed(noises) or f"no version of ttsnap had noises {noises!r:.60}"
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
    """Arguments of a model's own call from a file, as they are. ValueError that names what is none or does not fit."""
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
