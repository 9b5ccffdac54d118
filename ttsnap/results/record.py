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
from dataclasses import dataclass, field, make_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Interval, Len, MaxLen
from PIL import Image

from ttsnap.core.results import Result
from ttsnap.files import reading as files
from ttsnap.files.pictured import texts_in
from ttsnap.files.settings import (
    Json,
    Natural,
    NotNegative,
    Rule,
    Word,
    build,
    check,
    hints_of,
    short,
)
from ttsnap.options.call import CALL, NOT_TAKEN, OTHER, Text
from ttsnap.options.every import DECLARED
from ttsnap.options.option import MOST_NAMES, Place, Spec, options_of
from ttsnap.options.sampler import SamplerOptions
from ttsnap.version import __version__

Score = Annotated[float, Interval(ge=-1e300, le=1e300)] | None
Scores = Annotated[Mapping[str, Score], MaxLen(100)]
Object = dict[str, Any]
Digest = Annotated[str, Rule("a digest", re.compile("[0-9a-f]{64}").fullmatch)]
ARGUMENT_NAME = re.compile("[a-z][a-z0-9_]{0,59}")
MOST_ARGUMENTS = 100
Name = Annotated[str, Rule("the name of an argument", ARGUMENT_NAME.fullmatch)]
"""Of an argument of a model's own call."""
Dtype = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class FoundImage:
    """One image of a search. What is not known is None."""

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
    batches: Annotated[list[Annotated[int, Interval(ge=1, lt=1024)]], Len(1, 4096)] | None = None
    """Rows of each call of the network that made it. A replay fills its calls to as many; the
    bounds are for a file that may be a stranger's."""
    fps: Annotated[float, Interval(ge=0.001, le=240)] | None = None
    """Of a video."""
    drawn: Annotated[int, Interval(ge=2, le=16)] | None = None
    """How many times larger than what was scored a file of an earlier version is."""

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
    """Each option has a key of its own."""
    algorithm: Annotated[str, MaxLen(1000)]
    options: Object | None
    """Of the algorithm."""
    budget: Word
    ttsnap: Word = __version__
    lora: Place | Annotated[list[Place], Len(1, MOST_NAMES)] | None = None
    task: Word | None = None
    dtype: Dtype | None = None
    pictures: (
        Annotated[Mapping[Name, Digest | Annotated[list[Digest], Len(1, 16)]], Len(1, 16)] | None
    ) = None
    """Digests of the pictures that it was made of, by argument of the call."""
    embeddings: Annotated[list[Name], Len(1, 16)] | None = None
    """Arguments of the call that were embeddings, which no file holds."""
    noted: Mapping[str, Any] = field(default_factory=dict)
    """The values of further options, by name."""
    found: FoundImage | None = None
    """None of a search as a whole."""
    seed: int | None = None
    """The first one of the search. This and what follows is in traces alone."""
    rewards: Sequence[str] = ()
    utility: Spec = None
    by_hand: Mapping[str, Any] | None = None
    """What a person dropped and finished in the search of an image (`Result.by_hand`)."""

    def of(
        self, result: Result, rank: int = 0, index: int = 0, fps: float | None = None
    ) -> SearchRecord:
        """That of the image at this rank, from 0, of the result of prompt number `index`."""
        image = result.images[rank]
        spent = result.spent
        pictures: Any = self.pictures or {}
        call = {
            name: value[index] if isinstance(value, list | tuple) and "prompt" in name else value
            for name, value in self.call.items()
        }
        branched = bool(result.particles.parent[image.uid] >= 0)
        place = None
        groups = self.sampler.repel
        if groups is not None and not branched:
            place = int((result.particles.parent[: image.uid] < 0).sum()) % groups.size
        image_part = FoundImage(
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
            list(image.batches) or None,
            fps,
        )
        return replace(
            self,
            call=call,
            pictures=(pictures and pictures[index]) or None,
            found=image_part,
            by_hand=result.by_hand or None,
        )

    def require_seed_alone(self) -> None:
        """ValueError for an image that its seed alone does not make."""
        if self.embeddings:
            raise ValueError(
                f"was made from {' and '.join(self.embeddings)}, which no file holds; call the"
                " pipeline in Python with the same embeddings"
            )
        if not self.image.branched and not self.sampler.guide:
            return
        how = "came from a branch of its seed"
        if not self.image.branched:
            how = f"was guided by {self.sampler.guide!r}"
        again = "run `ttsnap generate` with the settings in its trace.json"
        if self.by_hand:
            again = "a person led its search, and no settings lead it again"
        elif self.noted.get("shared"):
            again = "its search shared a budget; only all of its prompts together find it again"
        raise ValueError(f"{how}, so the seed alone does not make it again; {again}")

    def to_json(self) -> dict[str, Json]:
        """As traces, and metadata of images, have it. What an image has not is left out."""
        flat: dict[str, Any] = {name: vars(self)[name] for name in _RECORD}
        flat |= {"sampler": self.scheduler, **self.sampler.told(), **self.noted}
        if self.by_hand is not None:
            flat["by_hand"] = self.by_hand
        if self.found is None:
            own = {"utility": self.utility, "seed": self.seed, "reward": self.rewards}
            return _json({**flat, **own})
        flat |= vars(self.found)
        there = {name: value for name, value in flat.items() if value is not None}
        there["reward"] = self.found.reward
        search = {name: there.pop(name) for name in list(there) if name not in _OUTSIDE}
        return _json({**there, "search": search})

    @classmethod
    def from_json(cls, data: object, where: object) -> SearchRecord:
        """That of an image, of metadata that anyone may have written. ValueError that names what
        does not fit. Optional keys that hold null are as if they were not there."""
        search = data.get("search") if isinstance(data, dict) else None
        if not isinstance(data, dict) or not isinstance(search, dict):
            raise ValueError(f"the ttsnap metadata of {where} lacks search, or what is in it")
        flat = {name: value for name, value in data.items() if name != "search"} | search
        there = {name: value for name, value in flat.items() if value is not None}
        try:
            fields = vars(build(_METADATA, there))
            sampler = {name: fields[name] for name in _SAMPLER if name in there}
            record = cls(
                **{name: fields[name] for name in _RECORD},
                scheduler=fields["sampler"],
                sampler=SamplerOptions(**{"draft": None, **sampler}),
                noted={name: fields[name] for name in _NOTED if name in there},
                by_hand=fields["by_hand"],
                found=FoundImage(**{name: fields[name] for name in _IMAGE}),
            )
        except ValueError as error:
            raise ValueError(f"the ttsnap metadata of {where}: {error}") from None
        checked_call(record.call, where, others=True)
        return record

    def infotext(self, size: tuple[int, int]) -> str:
        """An image's, of this width and height, in the form that A1111, Forge, SD.Next and others
        read back."""
        call = self.call
        image = self.image
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
            "ttsnap reward": None if jsonable(image.reward) is None else f"{image.reward:.6g}",
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


_IMAGE = tuple(hints_of(FoundImage))
_RECORD = (
    *("model", "call", "algorithm", "options", "budget"),
    *("ttsnap", "lora", "task", "dtype", "pictures", "embeddings"),
)
"""What the metadata of an image has of a record and of its image, under the same names."""
_SAMPLER = [option.name for option in options_of(SamplerOptions)]
_NOTED = ("shared", "require", "diversity", "likeness")
_HINTS: dict[str, Any] = {
    **{name: hints_of(SearchRecord)[name] for name in _RECORD},
    **hints_of(FoundImage),
    "sampler": Word,
    "by_hand": Object,
    **{name: DECLARED[name].told for name in (*_SAMPLER, *_NOTED)},
}
_NEEDED = (
    *("prompt", "seed", "model", "call", "kernel", "ttsnap", "sampler", "algorithm", "budget"),
)
_METADATA = make_dataclass(
    "Metadata",
    [
        (name, hint) if name in _NEEDED else (name, hint, field(default=None))
        for name, hint in _HINTS.items()
    ],
    kw_only=True,
)
"""The metadata of an image, as if all keys stood beside each other."""
_OUTSIDE = {
    *("prompt", "seed", "branched", "fps", "drawn", "model", "sampler", "call", "ttsnap", "lora"),
    *("task", "dtype", "pictures", "embeddings"),
    *_SAMPLER,
}
"""Its keys that are not in "search"."""


def checked_call(call: object, where: object, *, others: bool = False) -> dict[str, Any]:
    """The arguments of a model's own call from a file. ValueError that names what is none or does
    not fit.

    others: also those that are not listed, as data: whether the model's call takes them is for
    whoever calls it. Their texts name no file of this machine, and no address.
    """
    if not isinstance(call, dict) or len(call) > MOST_ARGUMENTS:
        raise ValueError(f"{where} must hold an object of arguments, got {short(call)}")
    for name, value in call.items():
        listed = name in CALL
        if not listed and (
            not others or name in {*NOT_TAKEN, *DECLARED} or not ARGUMENT_NAME.fullmatch(name)
        ):
            raise ValueError(
                f"{where} asks for call.{name[:60]}, which no file may set: plain arguments of a"
                " model's own call only"
            )
        if away := [] if listed else [text for text in _texts(value) if _leads_away(text)]:
            raise ValueError(
                f"{where} has {away[0][:60]!r} for call.{name}: a file of this machine, or an "
                "address, which no file may name"
            )
        if value is not None:
            try:
                check(f"call.{name}", value, CALL[name].hint if listed else OTHER)
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from None
    return dict(call)


def _texts(value: object) -> list[str]:
    if isinstance(value, list):
        return [text for one in value for text in _texts(one)]
    return [value] if isinstance(value, str) else []


def _leads_away(text: str) -> bool:
    return "://" in text or os.path.exists(os.path.expanduser(text))


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


def _json(values: Mapping[str, Any]) -> dict[str, Json]:
    return {name: jsonable(value) for name, value in values.items()}


def jsonable(value: object) -> Json:
    """JSON-ready: nan becomes null, paths and such become text."""
    if isinstance(value, Mapping):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(v) for v in value]
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value if isinstance(value, str | int | bool | None) else str(value)
