"""The files of a search: images with their record (record.py), a contact sheet, a trace; the folders
that they go to, and a sheet that is painted while a search runs."""

from __future__ import annotations

import contextlib
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from ttsnap.core.outcome import SHOWN
from ttsnap.core.results import Event, Result
from ttsnap.core.selection import Selection
from ttsnap.files.run_folder import held, probe, require_writable
from ttsnap.files.writing import LOCK, write_json
from ttsnap.options.call import VideoOptions
from ttsnap.results.course import Course, Look
from ttsnap.results.media import Pixels, frames_of, save_png, save_video, still
from ttsnap.results.record import SearchRecord, jsonable
from ttsnap.results.sheet import CELL, contact_sheet, painted

if TYPE_CHECKING:
    from torch import Tensor


SMALL_SIDE = 128
TIMES = 8
"""Where images have fewer pixels a side than SMALL, the best gets a copy TIMES as large."""
ENLARGED = f"best-{TIMES}x.png"


@dataclass
class Recorder:
    """A listener of a search (`on_event`) that keeps a thumbnail of every scored estimate."""

    thumbnails: dict[int, dict[Look, Image.Image]] = field(default_factory=dict)
    """By the number of the prompt."""

    def __call__(self, event: Event) -> None:
        if event.kind == "score" and event.picture is not None:
            seen = self.thumbnails.setdefault(event.job, {})
            seen[event.uids[0], event.step] = thumbnail(still(event.picture.small()))

    def sheet(self, result: Result, job: int = 0) -> Image.Image:
        """The contact sheet of the result of prompt number `job`."""
        return contact_sheet(result, self.thumbnails.get(job, {}))


@dataclass
class FinishedLatents:
    """A listener that keeps the latents of finished images, on the CPU; an engine hands them on
    where it is told to (`EngineOptions.keep`)."""

    end: int
    """The grid's last step."""
    _found: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    def __call__(self, event: Event) -> None:
        if event.kind == "score" and event.step == self.end:
            self._found.update({(event.job, uid): event.kept["latent"].cpu() for uid in event.uids})

    def of(self, results: Sequence[Result]) -> list[Tensor]:
        """(C, ...) of each image, prompt by prompt, best first."""
        return [
            self._found[job, image.uid]
            for job, result in enumerate(results)
            for image in result.images
        ]


def thumbnail(picture: Image.Image) -> Image.Image:
    """A copy whose longer side is CELL pixels, as in a contact sheet."""
    small = max(picture.size) < CELL
    scale = CELL / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS)


def save_made(path: Path, image: Pixels, record: SearchRecord) -> None:
    """Write an image as a PNG, or a video by the path's ending, with its record; whole or not at
    all."""
    frames = frames_of(image if image.ndim > 3 else image[None])
    record.label(frames[0])
    if image.ndim == 3:
        save_png(path, frames[0])
    else:
        save_video(path, frames, record.image.fps or VideoOptions().fps)


def write_results(
    out: Path, results: Sequence[Result], record: SearchRecord, videos: VideoOptions | None = None
) -> list[list[Path]]:
    """Write every prompt's kept images or videos, its contact sheet, and one trace.json. Returns
    the images' paths by prompt.

    record: of the search. videos: their format and speed.
    """
    videos = videos or VideoOptions()
    out.mkdir(parents=True, exist_ok=True)
    written = []
    entries = []
    for index, result in enumerate(results):
        stem = _stem(results, index)
        paths = []
        for rank, candidate in enumerate(result.images):
            moving = candidate.pixels.ndim > 3
            ending, fps = (videos.video_format, videos.fps) if moving else ("png", None)
            paths.append(out / f"{stem}{rank + 1:02d}-seed{candidate.seed}.{ending}")
            save_made(paths[-1], candidate.pixels, record.of(result, rank, index, fps))
        if result.images:
            save_png(sheet_path(out, results, index), contact_sheet(result, result.thumbnails), ())
        written.append(paths)
        entries.append(_entry(result, paths))
    settings = record.to_json()
    trace = {"settings": settings, "levels": list(results[0].levels), "results": entries}
    write_json(out / "trace.json", jsonable(trace))
    return written


def _entry(result: Result, paths: Sequence[Path]) -> dict[str, object]:
    """A result in a trace."""
    named = zip(paths, result.images, strict=True)
    return {
        "prompt": result.prompt,
        "spent": result.spent.to_json(),
        "images": [{"file": path.name, "uid": c.uid, **c.to_json()} for path, c in named],
        **({"answers": result.answers} if result.asked else {}),
        "warnings": list(result.warnings),
        "moves": list(result.trace),
    }


def sheet_path(out: Path, results: Sequence[Result], index: int) -> Path:
    """The path of the contact sheet of a result that has images, as `write_results` has it."""
    return out / f"{_stem(results, index)}sheet.png"


def _stem(results: Sequence[Result], index: int) -> str:
    return f"{index:03d}-{slug(results[index].prompt)}-" if len(results) > 1 else ""


def enlarged_path(out: Path, results: Sequence[Result], index: int) -> Path:
    """The path of the enlarged copy of a result's best image."""
    return out / f"{_stem(results, index)}{ENLARGED}"


def is_extra(path: Path) -> bool:
    """Whether a file is, by its name, a contact sheet or an enlarged copy, which carry no record."""
    return path.name.endswith(("sheet.png", ENLARGED))


def write_enlarged(path: Path, image: Pixels) -> bool:
    """Write a copy TIMES as large of a small image, or of a video's frames, without metadata; False
    for others."""
    if max(image.shape[-2:]) >= SMALL_SIDE:
        return False
    picture = still(image, columns=SHOWN)
    save_png(
        path,
        picture.resize((picture.width * TIMES, picture.height * TIMES), Image.Resampling.NEAREST),
        (),
    )
    return True


def check_free(out: Path, overwrite: bool) -> None:
    """ValueError where `out` is no folder, holds files already (unless `overwrite`), or cannot be
    written to."""
    if not overwrite and out.is_dir() and any(path.name != LOCK for path in out.iterdir()):
        raise ValueError(
            f"{out} holds files already; choose another --out, or pass --overwrite to replace them"
        )
    require_writable(out)


@contextlib.contextmanager
def reserved(out: str | Path | None, name: str, overwrite: bool) -> Iterator[Path]:
    """A folder to write to, made and locked: `out`, or the next free outputs/NNNN-name.

    name: of its contents, as a prompt. A folder that is empty at the end is removed, with those
    that were made around it. ValueError at once for a folder that holds files (unless `overwrite`),
    is locked, or cannot be written to.
    """
    with contextlib.ExitStack() as until_end:
        with refusing("outputs" if out is None else out):
            if out is None:
                folder = _next(name, until_end)
            else:
                folder = Path(out)
                until_end.enter_context(held(folder, partial(check_free, folder, overwrite)))
        yield folder


@contextlib.contextmanager
def refusing(where: str | Path) -> Iterator[None]:
    """What the system says of writing to a folder, as a ValueError."""
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"cannot write to {where}: {error.strerror or error}; choose another --out"
        ) from error


def new_file(path: str | Path, overwrite: bool) -> Path:
    """The path of a file that can be written. ValueError where it exists, or its folder does
    not."""
    out = Path(path)
    if out.is_dir():
        raise ValueError(f"{out} is a folder; give a file")
    if out.exists() and not overwrite:
        raise ValueError(f"{out} exists; choose another --out, or pass --overwrite")
    if not out.parent.is_dir():
        raise ValueError(f"no folder {out.parent} to write {out.name} to")
    with refusing(out.parent):
        probe(out.parent)
    return out


def slug(text: str, most: int = 40) -> str:
    """The beginning of a prompt as a safe file name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower())[:most].strip("-") or "prompt"


def _next(name: str, until_end: contextlib.ExitStack) -> Path:
    """The next free outputs/NNNN-name, which the process that locks it first has until the end."""
    root = Path("outputs")
    require_writable(root)
    while True:
        names = [path.name for path in root.iterdir()] if root.exists() else []
        taken = [int(match[1]) for match in map(re.compile(r"(\d+)-").match, names) if match]
        folder = root / f"{max(taken, default=0) + 1:04d}-{slug(name)}"
        with contextlib.suppress(ValueError):  # another process was faster
            until_end.enter_context(held(folder, partial(check_free, folder, overwrite=False)))
            return folder


LEAST_REST = 0.4
REST = 40
"""Seconds between two sheets, and how many times as long as painting one takes."""


@dataclass
class LiveSheet:
    """Paints the events of one search."""

    levels: Sequence[float]
    """(K+1,) noise levels of the steps."""
    selection: Selection
    """What makes one number of a candidate's scores."""
    asked: Mapping[str, int] = field(default_factory=dict)
    """As of Course."""
    clock: Callable[[], float] = time.monotonic
    next: float = -math.inf
    """When the next sheet is due."""
    changed: bool = False
    """Whether there is something new since the last one."""

    def __post_init__(self) -> None:
        self.course = Course(self.levels, self.selection, self.asked)
        self.recorder = Recorder()

    def take(self, event: Event) -> Image.Image | None:
        """Apply an event: a new sheet, where one is due."""
        self.course.listen(event)
        self.recorder(event)
        thumbnails = next(iter(self.recorder.thumbnails.values()), {})
        self.changed |= event.kind in ("score", "drop", "end")
        begin = self.clock()
        due = event.kind == "end" or begin >= self.next
        if not (self.changed and thumbnails and due):
            return None
        sheet = painted(self.course, thumbnails, live=True)
        self.changed, end = False, self.clock()
        self.next = end + max(LEAST_REST, REST * (end - begin))
        return sheet
