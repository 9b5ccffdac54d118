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
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from annotated_types import Interval, Len, MaxLen
from PIL import Image

from ttsnap.core.results import Result
from ttsnap.files import reading as files
from ttsnap.files.pictures import texts_in
from ttsnap.files.settings import Json, Natural, NotNegative, Rule, Word, check, hints_of
from ttsnap.options.call import CALL, NOT_TAKEN, OTHER, Text
from ttsnap.options.every import DECLARED
from ttsnap.options.option import MOST_NAMES, Place, Spec, options_of
from ttsnap.options.sampler import SamplerOptions
from ttsnap.version import __version__

if TYPE_CHECKING:
    pass

Score = Annotated[float, Interval(ge=-1e300, le=1e300)] | None
Scores = Annotated[Mapping[str, Score], MaxLen(100)]
Object = dict[str, Any]
Digest = Annotated[str, Rule("a digest", re.compile("[0-9a-f]{64}").fullmatch)]
NAME, MOST_ARGUMENTS = re.compile("[a-z][a-z0-9_]{0,59}"), 100
Name = Annotated[str, Rule("the name of an argument", NAME.fullmatch)]
"""Of an argument of a model's own call."""
Dtype = Literal["float32", "bfloat16", "float16"]


def key(name: str, default: Any = MISSING) -> Any:
    """A field of a record that metadata has under this key, if it has one; "search.NAME" is inside
    "search"."""
    return field(default=default, metadata={"key": name})


@dataclass(frozen=True)
class FoundImage:
    """One image of a search. What files of earlier versions lack is None."""

    prompt: Text = key("prompt")
    seed: Annotated[int, Interval(ge=0, le=2**64 - 1)] = key("seed")
    reward: Score = key("search.reward")
    """None where it failed, as of other scores."""
    branched: bool | None = key("branched", None)
    """Whether it has a parent, so that its seed alone does not make it again."""
    place: Annotated[int, Interval(ge=0, lt=1024)] | None = key("search.place", None)
    """Of its seed, from 0, in a group of seeds that began together (variety repel), of which the
    first is seed - place; None of one that began alone. A replay begins all before it, too, so that
    a stranger's file may not say any."""
    rank: Natural | None = key("search.rank", None)
    """From 1, the best."""
    scores: Scores | None = key("search.scores", None)
    metrics: Scores | None = key("search.metrics", None)
    """By rewards that only report."""
    nfe: NotNegative | None = key("search.nfe", None)
    """Of the whole search, as are the seeds."""
    seeds: Natural | None = key("search.seeds", None)
    batches: Annotated[list[Annotated[int, Interval(ge=1, lt=1024)]], Len(1, 4096)] | None = key(
        "search.batches", None
    )
    """Rows of each call of the network that made it. A replay fills its calls to as many; the
    bounds are for a file that may be a stranger's."""
    fps: Annotated[float, Interval(ge=0.001, le=240)] | None = key("fps", None)
    """Of a video."""
    drawn: Annotated[int, Interval(ge=2, le=16)] | None = key("drawn", None)
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

    model: Place = key("model")
    scheduler: Word = key("sampler")
    """The name of its class."""
    call: Object = key("call")
    """Plain arguments of the model's own call."""
    sampler: SamplerOptions = key("")
    """Each option has a key of its own."""
    algorithm: Annotated[str, MaxLen(1000)] = key("search.algorithm")
    options: Object | None = key("search.options")
    """Of the algorithm."""
    budget: Word = key("search.budget")
    ttsnap: Word = key("ttsnap", __version__)
    lora: Place | Annotated[list[Place], Len(1, MOST_NAMES)] | None = key("lora", None)
    task: Word | None = key("task", None)
    dtype: Dtype | None = key("dtype", None)
    pictures: (
        Annotated[Mapping[Name, Digest | Annotated[list[Digest], Len(1, 16)]], Len(1, 16)] | None
    ) = key("pictures", None)
    """Digests of the pictures that it was made of, by argument of the call."""
    noted: Mapping[str, Any] = field(default_factory=dict)
    """The values of other options that are `noted`, by name."""
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
            list(image.batches) or None,
            fps,
        )
        return replace(
            self,
            call=call,
            pictures=(pictures and pictures[index]) or None,
            found=found,
            by_hand=result.by_hand or None,
        )

    def to_json(self) -> dict[str, Json]:
        """As traces, and metadata of images, have it. What an image has not is left out."""
        values = {key: vars(self)[name] for key, name in _KEYS.items()}
        values |= self.sampler.told()
        rare = {f"search.{name}": value for name, value in self.noted.items()}
        values |= _there({**rare, "search.by_hand": self.by_hand})
        if self.found is None:
            flat = {key.removeprefix("search."): value for key, value in values.items()}
            own = {"utility": self.utility, "seed": self.seed, "reward": self.rewards}
            return _json({**flat, **own})
        values |= {key: vars(self.found)[name] for key, name in _IMAGE_KEYS.items()}
        there = _there(values) | {"search.reward": self.found.reward}
        inside = {key for key in there if key.startswith("search.")}
        told = {key: value for key, value in there.items() if key not in inside}
        search = {key.removeprefix("search."): there[key] for key in inside}
        return _json({**told, "search": search})

    @classmethod
    def from_json(cls, told: object, where: object) -> SearchRecord:
        """That of an image, of metadata that anyone may have written. ValueError that names what
        does not fit.

        Options that were removed since are left out at their old defaults, and so are optional keys
        that hold null.
        """
        fields = _as_now(told, where)
        if missing := sorted(_NEEDED - set(fields)):
            raise ValueError(f"the ttsnap metadata of {where} lacks {missing}")
        hints = {key: hint for key, hint in _HINTS.items() if not key.startswith("search.")}
        found = _checked(fields, {**hints, "search": Object}, "", where)
        inside = {f"search.{name}": value for name, value in found.pop("search").items()}
        found |= _checked(inside, _HINTS, "", where)
        if missing := sorted(_NEEDED_INSIDE - set(found)):
            names = [key.removeprefix("search.") for key in missing]
            raise ValueError(f"the ttsnap metadata of {where} lacks {names} in search")
        checked_call(found["call"], where, others=True)
        return cls(
            **{"options": None, **_taken(found, _KEYS)},
            sampler=SamplerOptions(**{"draft": None, **_taken(found, _SAMPLER)}),
            noted=_taken(found, _NOTED),
            by_hand=found.get("search.by_hand"),
            found=FoundImage(**_taken(found, _IMAGE_KEYS)),
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


def _keys(kind: type[Any]) -> dict[str, str]:
    """The names of the fields that metadata has, by its keys."""
    return {f.metadata["key"]: f.name for f in fields(kind) if f.metadata.get("key")}


_KEYS, _IMAGE_KEYS = _keys(SearchRecord), _keys(FoundImage)
_SAMPLER = {option.name: option.name for option in options_of(SamplerOptions)}
_NOTED = {f"search.{option.name}": option.name for option in DECLARED.values() if option.noted}
"""Names by keys, as of the fields of a record."""
_HINTS: dict[str, Any] = {
    **{key: hints_of(SearchRecord)[name] for key, name in _KEYS.items()},
    **{key: hints_of(FoundImage)[name] for key, name in _IMAGE_KEYS.items()},
    **{key: DECLARED[name].told for key, name in (_SAMPLER | _NOTED).items()},
    "search.by_hand": Object,
}
"""The type of every value by its key."""
_NEEDED = {"prompt", "seed", "model", "call", "kernel", "ttsnap", "sampler", "search"}
_NEEDED_INSIDE = {"search.algorithm", "search.budget", "search.reward"}


def _taken(found: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """The values that are there, by the names of these keys."""
    return {name: found[key] for key, name in names.items() if key in found}


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


def _as_now(told: object, where: object) -> dict[str, Any]:
    """Metadata of earlier versions with the keys of now. ValueError for what only they knew."""
    now = dict(told) if isinstance(told, dict) else {}
    # it chose among seeds, and changed no image
    now.pop("estimate_guidance", None)
    if (noises := now.pop("noises", "independent")) not in ("independent", None):
        why = removed(noises) or f"no version of ttsnap had noises {noises!r:.60}"
        raise ValueError(f"{where} cannot be made again: {why}")
    kept_apart = str(now.get("variety")).partition(":")[0]
    for name in (now.get("path"), *str(now.get("kernel")).split(":")[1:2], kept_apart):
        if why := removed(name):
            raise ValueError(f"{where} cannot be made again: {why}")
    return now


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
        refused = {*CALL, *NOT_TAKEN, *DECLARED}
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
        if value is not None or name == "search.reward":
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
