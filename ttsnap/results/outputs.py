"""The files of a search: images with their record (record.py), a contact sheet, a trace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from ttsnap.core.outcome import SHOWN
from ttsnap.core.results import Event, Result
from ttsnap.files.writing import write_json
from ttsnap.options.call import VideoOptions
from ttsnap.results.course import Look
from ttsnap.results.folders import slug
from ttsnap.results.media import Pixels, frames_of, save_png, save_video, still
from ttsnap.results.record import SearchRecord, jsonable
from ttsnap.results.sheet import CELL, contact_sheet

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
