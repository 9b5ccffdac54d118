"""How images were found: one record, in metadata, traces and replies. Metadata is read as a file of
a stranger.

An image carries it twice: as A1111 infotext (key "parameters", read by most tools) and as JSON (key
"ttsnap", read by `ttsnap replay`). Replay calls the pipeline with the JSON. Only plain arguments of
the models' own calls pass, each of its type and within bounds. Everything else is refused by name:
rewards, reports and callbacks of a search may name Python to import, or servers to call.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Interval, Len, MaxLen
from PIL import Image

from ttsnap.core.results import Result
from ttsnap.files import reading as files
from ttsnap.files.pictures import texts_in
from ttsnap.files.settings import Json, Natural, NotNegative, Rule, Word, check, hints_of
from ttsnap.options.call import CALL, NOT_TAKEN, OTHER, Text
from ttsnap.options.engine import BatchOptions, DeviceOptions
from ttsnap.options.option import Spec, options_of
from ttsnap.options.sampler import SamplerOptions
from ttsnap.options.search import SearchOptions
from ttsnap.options.selection import SelectionOptions
from ttsnap.version import __version__

Place = Annotated[
    str,
    Rule(
        "text of at most 1000 printable characters",
        lambda v: len(v) <= 1000 and v.isprintable() and v.strip() != "",
    ),
]
Score = Annotated[float, Interval(ge=-1e300, le=1e300)] | None
Scores = Annotated[Mapping[str, Score], MaxLen(100)]
Object = dict[str, Any]
Digest = Annotated[str, Rule("a digest", re.compile("[0-9a-f]{64}").fullmatch)]
NAME, MOST_ARGUMENTS = re.compile("[a-z][a-z0-9_]{0,59}"), 100
Name = Annotated[str, Rule("the name of an argument", NAME.fullmatch)]
"""Of an argument of a model's own call."""
Dtype = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class FoundImage:
    """One image of a search. What files of earlier versions lack is None."""

    prompt: Text
    seed: Annotated[int, Interval(ge=0, le=2**64 - 1)]
    reward: Score
    """None where it failed, as of other scores."""
    branched: bool | None = None
    """Whether it has a parent, so that its seed alone does not make it again."""
    place: Annotated[int, Interval(ge=0, lt=1024)] | None = None
    """Of its seed, from 0, in a group of seeds that began together (variety repel), of which the
    first is seed - place; None of one that began alone. A replay begins all before it, too, so that
    a stranger's file may not say any."""
    rank: Natural | None = None
    """From 1, the best."""
    scores: Scores | None = None
    metrics: Scores | None = None
    """By rewards that only report."""
    nfe: NotNegative | None = None
    """Of the whole search, as are the seeds."""
    seeds: Natural | None = None
    fps: Annotated[float, Interval(ge=0.001, le=240)] | None = None
    """Of a video."""

    @property
    def first_seed(self) -> int:
        """That of the group that it began with, or its own."""
        return (self.seed - (self.place or 0)) % 2**64


@dataclass(frozen=True)
class SearchRecord:
    """All that is known of how images were found: those of a search (its trace), or one of them
    (its metadata).

    `call` and `pictures` have lists with an entry for each prompt of a search. Of an image they
    hold its own.
    """

    model: Place
    scheduler: Word
    """The name of its class."""
    call: Object
    """Plain arguments of the model's own call."""
    sampler: SamplerOptions
    algorithm: Annotated[str, MaxLen(1000)]
    options: Object | None
    """Of the algorithm."""
    budget: Word
    ttsnap: Word = __version__
    lora: Place | Annotated[list[Place], Len(1, 16)] | None = None
    task: Word | None = None
    dtype: Dtype | None = None
    pictures: (
        Annotated[Mapping[Name, Digest | Annotated[list[Digest], Len(1, 16)]], Len(1, 16)] | None
    ) = None
    """Digests of the pictures that it was made of, by argument of the call."""
    require: Annotated[list[Place], MaxLen(16)] | None = None
    diversity: NotNegative | None = None
    likeness: Word | None = None
    shared: bool | None = None
    found: FoundImage | None = None
    """None of a search as a whole."""
    seed: int | None = None
    """The first one of the search. This and what follows is in traces alone."""
    rewards: Sequence[str] = ()
    utility: Spec = None
    by_hand: Mapping[str, Any] | None = None
    """The wishes of whoever led the search."""

    def of(
        self, result: Result, rank: int = 0, index: int = 0, fps: float | None = None
    ) -> SearchRecord:
        """That of the image at this rank, from 0, of the result of prompt number `index`."""
        image, spent = result.images[rank], result.spent
        pictures: Any = self.pictures or {}
        call = {
            name: value[index] if isinstance(value, list | tuple) and "prompt" in name else value
            for name, value in self.call.items()
        }
        branched = bool(result.particles.parent[image.uid] >= 0)
        place, groups = None, self.sampler.repel
        if groups is not None and not branched:
            place = int((result.particles.parent[: image.uid] < 0).sum()) % groups.size
        found = FoundImage(
            result.prompt,
            image.seed,
            image.reward,
            branched,
            place,
            rank + 1,
            image.scores,
            image.metrics,
            spent.nfe,
            spent.seeds,
            fps,
        )
        return replace(
            self, call=call, pictures=(pictures and pictures[index]) or None, found=found
        )

    def to_json(self) -> dict[str, Json]:
        """As traces, and metadata of images, have it. What an image has not is left out."""
        own = {_NAMES.get(name, name): vars(self)[name] for name in _OWN} | self.sampler.told()
        rare = _there(
            {
                name: vars(self)[name]
                for name in ("require", "diversity", "likeness", "shared", "by_hand")
            }
        )
        search = {
            "algorithm": self.algorithm,
            "options": self.options,
            "budget": self.budget,
            **rare,
        }
        if self.found is None:
            return _json(
                {
                    **own,
                    **search,
                    "utility": self.utility,
                    "seed": self.seed,
                    "reward": self.rewards,
                }
            )
        image = {
            name: value for name, value in _there(vars(self.found)).items() if name not in _TOP
        }
        own |= {name: vars(self.found)[name] for name in _TOP}
        return _json(
            {**_there(own), "search": {**_there(search), **image, "reward": self.found.reward}}
        )

    @classmethod
    def from_json(cls, told: object, where: object) -> SearchRecord:
        """That of an image, of metadata that anyone may have written. ValueError that names what
        does not fit.

        Options that were removed since are left out at their old defaults, and so are optional keys
        that hold null.
        """
        fields = dict(told) if isinstance(told, dict) else {}
        # an option of old versions, which chose among seeds and changed no image
        fields.pop("estimate_guidance", None)
        # an option of old versions
        if (noises := fields.pop("noises", "independent")) not in ("independent", None):
            why = removed(noises) or f"no version of ttsnap had noises {noises!r:.60}"
            raise ValueError(f"{where} cannot be made again: {why}")
        kept_apart = str(fields.get("variety")).partition(":")[0]
        for name in (fields.get("path"), *str(fields.get("kernel")).split(":")[1:2], kept_apart):
            if why := removed(name):
                raise ValueError(f"{where} cannot be made again: {why}")
        if missing := sorted(_NEEDED - set(fields)):
            raise ValueError(f"the ttsnap metadata of {where} lacks {missing}")
        top = _checked(fields, _HINTS, "", where)
        search = _checked(top.pop("search"), _SEARCH, "search.", where)
        if missing := sorted({"algorithm", "budget", "reward"} - set(search)):
            raise ValueError(f"the ttsnap metadata of {where} lacks {missing} in search")
        checked_call(top["call"], where, others=True)
        image = {name: top.pop(name) for name in _TOP if name in top}
        image |= {name: search.pop(name) for name in hints_of(FoundImage) if name in search}
        sampler = {name: top.pop(name) for name in _SAMPLER if name in top}
        own = {"scheduler": top.pop("sampler"), "options": None, **top, **search}
        return cls(
            **own, sampler=SamplerOptions(**{"draft": None, **sampler}), found=FoundImage(**image)
        )

    def infotext(self, size: tuple[int, int]) -> str:
        """An image's, of this width and height, in the form that A1111, Forge, SD.Next and others
        read back."""
        call, image = self.call, self.image
        lines = [image.prompt.replace("\n", " ")]
        if call.get("negative_prompt"):
            lines.append(f"Negative prompt: {call['negative_prompt']}")
        fields = {
            "Steps": call.get("num_inference_steps"),
            "Sampler": self.scheduler,
            "CFG scale": call.get("guidance_scale"),
            "Seed": image.seed,
            "Size": f"{size[0]}x{size[1]}",
            "Model": self.model,
            "ttsnap LoRA": ", ".join(self.lora) if isinstance(self.lora, list) else self.lora,
            "ttsnap draft": self.sampler.told()["draft"],
            "ttsnap variety": self.sampler.told()["variety"],
            "ttsnap group": None if image.place is None else f"from seed {image.first_seed} on",
            "ttsnap algorithm": self.algorithm,
            "ttsnap budget": self.budget,
            "ttsnap reward": None if plain(image.reward) is None else f"{image.reward:.6g}",
            "Version": f"ttsnap {self.ttsnap}",
        }
        quoted = {
            k: f'"{v}"' if re.search(r"[,:]", str(v)) else v
            for k, v in fields.items()
            if v is not None
        }
        lines.append(", ".join(f"{k}: {v}" for k, v in quoted.items()))
        return "\n".join(lines)

    @property
    def image(self) -> FoundImage:
        """The image, where it is of one."""
        assert self.found is not None
        return self.found

    def label(self, picture: Image.Image) -> None:
        """Put the infotext and the JSON into the image's `info`, under the keys of a PNG."""
        picture.info |= {
            "parameters": self.infotext(picture.size),
            "ttsnap": json.dumps(self.to_json()),
        }


_TOP = ("prompt", "seed", "branched", "fps")
"""What metadata has of an image beside the search; all else of it is inside."""
_OWN = ("ttsnap", "model", "lora", "task", "dtype", "pictures", "scheduler", "call")
_NAMES = {"scheduler": "sampler"}
_SAMPLER = {
    option.name: Place if option.loads else option.written for option in options_of(SamplerOptions)
}
_ALL = hints_of(SearchRecord) | hints_of(FoundImage)
_HINTS = (
    {_NAMES.get(name, name): _ALL[name] for name in (*_OWN, *_TOP)} | _SAMPLER | {"search": Object}
)
_SEARCH = {
    name: _ALL[name]
    for name in (
        "algorithm",
        "options",
        "budget",
        "require",
        "diversity",
        "likeness",
        "shared",
        *(name for name in hints_of(FoundImage) if name not in _TOP),
    )
}
_SEARCH_ARGUMENTS = {
    option.name
    for kind in (SearchOptions, SelectionOptions, SamplerOptions, BatchOptions, DeviceOptions)
    for option in options_of(kind)
}
_NEEDED = {"prompt", "seed", "model", "call", "kernel", "ttsnap", "sampler", "search"}


def _there(told: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in told.items() if value is not None}


REMOVED = {
    "antithetic": "antithetic initial noises",
    "orthogonal": "orthogonal initial noises",
    "spectral-evolution": "evolution in the low frequencies of the noise",
    "polynomial": "polynomial paths",
    "cads": "prompts that each seed reads under noise",
    **dict.fromkeys(("sin", "sin2", "exp", "clipping", "tan"), "rare amounts of noise"),
}
"""Names in files of earlier versions, and what they meant (docs/journal)."""
LAST = {"cads": "0.2.0.dev0 of November 2026"}
"""The last versions that knew them, where not 0.1.0."""


def removed(name: object) -> str:
    """Why a file that names this cannot be followed; empty for what was not removed."""
    what = REMOVED.get(name) if isinstance(name, str) else None
    if not what:
        return ""
    return f"ttsnap {LAST.get(str(name), '0.1.0')} was the last version with {what} ({name})"


def checked_call(call: object, where: object, *, others: bool = False) -> dict[str, Any]:
    """The arguments of a model's own call from a file. ValueError that names what is none or does
    not fit.

    others: also those that are not listed, as data: whether the model's call takes them is for
    whoever calls it. Their texts name no file of this machine, and no address.
    """
    if not isinstance(call, dict):
        raise ValueError(f"{where} must hold an object of arguments, got {str(call)[:60]}")
    hints = {name: argument.hint for name, argument in CALL.items()}
    if others and len(call) <= MOST_ARGUMENTS:
        refused = {*CALL, *NOT_TAKEN, *_SEARCH_ARGUMENTS}
        more = {n: value for n, value in call.items() if n not in refused and NAME.fullmatch(n)}
        hints |= dict.fromkeys(more, OTHER)
        for name, value in more.items():
            if named := [text for text in _texts(value) if _leads_away(text)]:
                raise ValueError(
                    f"{where} has {named[0][:60]!r} for call.{name}: a file of this machine, or an "
                    "address, which no file may name"
                )
    _checked(call, hints, "call.", where)
    return dict(call)


def _texts(value: object) -> list[str]:
    if isinstance(value, list):
        return [text for one in value for text in _texts(one)]
    return [value] if isinstance(value, str) else []


def _leads_away(text: str) -> bool:
    return "://" in text or os.path.exists(os.path.expanduser(text))


def _checked(
    found: Mapping[str, object], known: Mapping[str, Any], prefix: str, where: object
) -> dict[str, Any]:
    """The values that there are, of their types; null only where it may be, and means something."""
    unknown = [f"{prefix}{name[:60]}" for name in sorted(set(found) - set(known))]
    if unknown:
        names = ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        raise ValueError(
            f"{where} asks for {names}, which no file may set: a PNG may hold plain settings of a"
            " model's own call only (or this ttsnap is older than the file)"
        )
    checked: dict[str, Any] = {}
    for name, value in found.items():
        if value is not None or f"{prefix}{name}" in _NEEDED:
            try:
                check(f"{prefix}{name}", value, known[name])
            except ValueError as error:
                raise ValueError(f"the ttsnap metadata of {where}: {error}") from None
        if value is not None or name == "reward":
            checked[name] = value
    return checked


def read_record(path: Path) -> SearchRecord:
    """That of a file, as of `parse_record`. ValueError also where it cannot be read."""
    return parse_record(files.read_bytes(path, files.PICTURE_BYTES, "image"), path)


def parse_record(data: bytes, path: Path) -> SearchRecord:
    """That of an image or a video that anyone may have written. ValueError that says what is
    wrong."""
    text = texts_in(data, path, ("PNG", "WEBP")).get("ttsnap")
    if text is None:
        raise ValueError(
            f"{path} carries no ttsnap metadata; only files written by ttsnap can be replayed"
        )
    return SearchRecord.from_json(files.parse_json(text, f"the ttsnap metadata of {path}"), path)


def _json(told: Mapping[str, Any]) -> dict[str, Json]:
    return {name: plain(value) for name, value in told.items()}


def plain(value: object) -> Json:
    """JSON-ready: nan becomes null, paths and such become text."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value if isinstance(value, str | int | bool | None) else str(value)
