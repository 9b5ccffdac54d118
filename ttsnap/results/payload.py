"""The JSON that a PNG of ttsnap carries, checked as something that anyone may have written.

Replaying an image calls the pipeline with it, so that only plain arguments of the models' own calls pass, each of its
type and within bounds. What a search takes besides (rewards, reports, callbacks: some name Python to import, or servers
to ask) is refused by name, and so is everything else that is not listed here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ttsnap.options.call import CALL
from ttsnap.options.kinds import FLAG, NULL, WORD, Kind, either, kind_of, number, several, text, whole
from ttsnap.options.option import options_of
from ttsnap.options.sampler import SamplerOptions

_PLACE = Kind(
    "text of at most 1000 printable characters",
    lambda v: isinstance(v, str) and len(v) <= 1000 and v.isprintable() and v.strip() != "",
)
_SCORE = either(number(-1e300, 1e300), NULL, "a number")
_SCORES = Kind(
    "an object of numbers", lambda v: isinstance(v, dict) and len(v) <= 100 and all(map(_SCORE.fits, v.values()))
)
_COUNT = whole(0, 2**63, "a whole number from 0 on")
_DIGEST = Kind("a digest", lambda v: isinstance(v, str) and re.fullmatch("[0-9a-f]{64}", v) is not None)
_DIGESTS = either(_DIGEST, several(_DIGEST, "", 16, 1), "a digest, or a short list of such")
_SHOWN = {"image", "mask_image", "control_image", "last_image"}
"""Arguments of the models' own calls that are pictures."""
_PICTURES = Kind(
    f"digests of pictures by {', '.join(sorted(_SHOWN))}",
    lambda v: isinstance(v, dict) and bool(v) and set(v) <= _SHOWN and all(map(_DIGESTS.fits, v.values())),
)
DTYPES = ("float32", "bfloat16", "float16")
_DTYPE = Kind("one of " + ", ".join(DTYPES), lambda v: v in DTYPES)
_OBJECT = Kind("an object", lambda v: isinstance(v, dict))
_SAMPLER = {option.name: _PLACE if option.loads else kind_of(option) for option in options_of(SamplerOptions)}
NEEDED: dict[str, Kind] = {
    "prompt": text(),
    "seed": whole(0, 2**64 - 1, "a whole number from 0 to 2^64 - 1"),
    "model": _PLACE,
    "call": _OBJECT,
    "kernel": _SAMPLER.pop("kernel"),
    "ttsnap": WORD,
    "sampler": WORD,
    "search": _OBJECT,
}
OPTIONAL: dict[str, Kind] = {
    "lora": _PLACE,
    "task": WORD,
    "dtype": _DTYPE,
    "pictures": _PICTURES,
    **_SAMPLER,
    "branched": FLAG,
    "fps": number(0.001, 240),
}
SEARCH: dict[str, Kind] = {
    "algorithm": text(1000),
    "options": _OBJECT,
    "budget": WORD,
    "reward": _SCORE,
    **dict.fromkeys(("scores", "metrics"), _SCORES),
    **dict.fromkeys(("rank", "nfe", "seeds"), _COUNT),
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
    _check(call, {name: argument.kind for name, argument in CALL.items()}, "call.", where)
    return dict(call)


def _check(found: Mapping[str, object], known: Mapping[str, Kind], prefix: str, where: object) -> None:
    unknown = [f"{prefix}{name[:60]}" for name in sorted(set(found) - set(known))]
    if unknown:
        names = ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        raise ValueError(
            f"{where} asks for {names}, which no file may set: a PNG may hold plain settings of a model's own call "
            "only (or this ttsnap is older than the file)"
        )
    for name, value in found.items():
        kind = known[name]
        if not kind.fits(value) and (value is not None or name in NEEDED):
            shown = repr(value)
            shown = shown if len(shown) <= 60 else shown[:60] + "..."
            raise ValueError(f"{prefix}{name} in the ttsnap metadata of {where} must be {kind.words}, got {shown}")
