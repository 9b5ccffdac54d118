"""Uploads of a finished search: its folder as a zip, or single files of it.

Files are told apart by content, never by name, and read into memory only: nothing is unpacked to disk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ttsnap.algorithms import ALGORITHMS
from ttsnap.demo.html import FULL, LARGE, shrunk_uri
from ttsnap.demo.traces import Trace, TracedSearch, parse_trace
from ttsnap.files import reading as files
from ttsnap.files.pictures import texts_in
from ttsnap.options.call import CALL
from ttsnap.results import payload
from ttsnap.results.sheet import LOOKS

MOST_FILES, MOST_ENTRIES, MOST_UNPACKED, MOST_PIXELS = 64, 256, 64 * 2**20, 2**24
MOST_LOOKS, MOST_SIDE, MOST_ASPECT = 1000, 256, 4.0
PNG, ZIP = b"\x89PNG", b"PK"
TITLES = {name: argument.title for name, argument in CALL.items() if argument.title}
KERNELS = {"pipeline": "the model's own sampler", "sde": "adds noise at every step (sde)"}
BRANCHED = "a branch: the seed alone does not make it again, the search does"
IGNORED = {"max_sequence_length"}


@dataclass(frozen=True)
class UploadedPicture:
    """A PNG."""

    name: str
    uri: str
    """Its pixels as a data URI."""
    settings: Mapping[str, Any] | None
    """Its payload, checked; None for a contact sheet or a foreign picture."""
    looks: Mapping[tuple[int, int], str] = field(default_factory=dict)
    """The pictures on a contact sheet as data URIs, by candidate and step."""
    aspect: float = 1.0
    """Its width for each height, or that of the pictures on a contact sheet; of long ones MOST_ASPECT."""


@dataclass(frozen=True)
class Folder:
    """The files of an upload."""

    trace: Trace | None
    pictures: Mapping[str, UploadedPicture]
    """By file name."""

    def kept(self, search: TracedSearch) -> dict[int, UploadedPicture]:
        """The uploaded pictures of the images that a search returned, by uid, best first."""
        return {uid: self.pictures[name] for uid, name in search.images.items() if name in self.pictures}

    def sheet(self, which: int) -> UploadedPicture | None:
        """The contact sheet of the prompt of this number, where it was uploaded."""
        many = self.trace is not None and len(self.trace.results) > 1
        sheets = [p for p in self.pictures.values() if p.settings is None and p.name.endswith("sheet.png")]
        return next((p for p in sheets if not many or p.name.startswith(f"{which:03d}-")), None)

    @property
    def images(self) -> list[UploadedPicture]:
        """Images of ttsnap."""
        return [p for p in self.pictures.values() if p.settings is not None]

    @property
    def aspect(self) -> float:
        """That of the first image, or else of the pictures on the first contact sheet."""
        return next((picture.aspect for picture in [*self.images, *self.pictures.values()]), 1.0)


def read_folder(uploads: Sequence[tuple[str, Path]], most_bytes: int) -> Folder:
    """Read uploads, each a name and a path. ValueError says what is wrong with one, or that nothing is there.

    most_bytes: of one upload. A zip holds at most MOST_UNPACKED bytes, a picture MOST_PIXELS pixels.
    """
    if len(uploads) > MOST_FILES:
        raise ValueError(f"{len(uploads)} files at once; at most {MOST_FILES} are read here")
    content: dict[str, bytes] = {}
    for name, path in uploads:
        if (size := path.stat().st_size) > most_bytes:
            raise ValueError(f"{name} has {size:,} bytes; at most {most_bytes:,} are read here")
        data = files.read_bytes(path, most_bytes, "file")
        if data.startswith(ZIP):
            content |= files.read_zip(data, name, _wanted, most=MOST_UNPACKED, entries=MOST_ENTRIES)
        else:
            content[name] = data
    pictures = {name: _picture(name, data) for name, data in list(content.items())[:MOST_FILES] if data.startswith(PNG)}
    traces = [data for data in content.values() if not data.startswith(PNG)]
    if len(traces) > 1:
        raise ValueError(f"{len(traces)} traces at once; upload one search's files")
    if not traces and not any(picture.settings is not None for picture in pictures.values()):
        raise ValueError("there is neither a trace.json nor an image of ttsnap in it")
    return Folder(parse_trace(traces[0]) if traces else None, pictures)


def picture_settings(data: bytes, name: str) -> dict[str, Any]:
    """The payload of a PNG of ttsnap, checked. ValueError where it has none, or other settings than allowed."""
    text = texts_in(data, name).get("ttsnap")
    if text is None:
        raise ValueError(f"{name} carries no settings of ttsnap; only PNGs that ttsnap wrote do")
    return payload.checked(files.parse_json(text, f"the ttsnap metadata of {name}"), name)


def _picture(name: str, data: bytes) -> UploadedPicture:
    texts = texts_in(data, name)
    settings = picture_settings(data, name) if "ttsnap" in texts else None
    pixels = files.picture_pixels(data, name, most=MOST_PIXELS)
    looks, (high, wide) = _looks(texts[LOOKS], pixels, name) if LOOKS in texts else ({}, pixels.shape[:2])
    aspect = min(MOST_ASPECT, max(1 / MOST_ASPECT, wide / high))
    return UploadedPicture(name, shrunk_uri(pixels, LARGE if settings else FULL), settings, looks, aspect)


def _looks(text: str, pixels: NDArray[np.uint8], name: str) -> tuple[dict[tuple[int, int], str], tuple[int, int]]:
    """The pictures on a contact sheet, as data URIs, and their height and width. ValueError for a text that does not
    fit the sheet."""
    data = files.parse_json(text, f"the text of {name}")
    side, rows = (data.get("side"), data.get("looks")) if isinstance(data, dict) else (None, None)
    wrong = ValueError(f"{name} says where its pictures are, but not as ttsnap writes it")
    sides: list[Any] = side if isinstance(side, list) and len(side) == 2 else [side, side]
    if any(type(each) is not int or not 1 <= each <= MOST_SIDE for each in sides):
        raise wrong
    if not isinstance(rows, list) or len(rows) > MOST_LOOKS:
        raise wrong
    wide, high = sides
    pictures: dict[tuple[int, int], str] = {}
    for row in rows:
        if not isinstance(row, list) or len(row) != 4 or any(type(value) is not int or value < 0 for value in row):
            raise wrong
        uid, step, x, y = row
        if y + high > pixels.shape[0] or x + wide > pixels.shape[1]:
            raise wrong
        pictures[uid, step] = shrunk_uri(pixels[y : y + high, x : x + wide], max(sides))
    return pictures, (high, wide)


def _wanted(name: str) -> bool:
    return name == "trace.json" or name.endswith(".png")


def render_settings(payload: Mapping[str, Any]) -> str:
    """A table of a picture's settings, from its checked payload. All text is escaped."""
    call, search = payload["call"], payload["search"]
    known = ALGORITHMS.get(str(search["algorithm"]))
    rows: list[tuple[str, Any]] = [("Prompt", payload["prompt"])]
    rows += [(title, call[name]) for name, title in TITLES.items() if call.get(name) not in (None, "")]
    rows += [("Seed", payload["seed"]), ("Made as", BRANCHED if payload.get("branched") else None)]
    rows += [("Algorithm", known.title if known else search["algorithm"])]
    rows += [(f"Option {name}", value) for name, value in search.get("options", {}).items()]
    rows += [
        ("Budget", search["budget"]),
        ("Evaluations spent", search.get("nfe")),
        ("Seeds tried", search.get("seeds")),
    ]
    scores = {**search.get("scores", {}), **search.get("metrics", {})}
    rows += [(f"Score by {name}", value if value is None else f"{value:.4g}") for name, value in scores.items()]
    rows += [("Rank", search.get("rank")), ("Sampler", KERNELS.get(payload["kernel"], payload["kernel"]))]
    rows += [("Model", payload["model"]), ("LoRA", payload.get("lora"))]
    rows += [("Draft", payload.get("draft")), ("Made by", f"ttsnap {payload['ttsnap']}")]
    rest = [(name, value) for name, value in call.items() if name not in TITLES and name not in IGNORED]
    rows += [(name.replace("_", " ").capitalize(), value) for name, value in rest]
    cells = "".join(
        f"<tr><th>{escape(str(name)[:80])}</th><td>{escape(str(value)[:400])}</td></tr>"
        for name, value in rows[:80]
        if value is not None
    )
    return f'<table class="tt-settings">{cells}</table>'
