"""What a search leaves on disk: images that know how they were made, a contact sheet, a trace.

Metadata comes twice: as A1111 infotext (key "parameters", read by most tools) and as JSON (key "ttsnap", read by
`ttsnap replay`). Videos carry the same (videos.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from ttsnap.core.outcome import SHOWN
from ttsnap.core.results import Event, Result
from ttsnap.files import reading as files
from ttsnap.files.pictures import texts_in
from ttsnap.files.settings import Json
from ttsnap.files.writing import write_json, write_whole
from ttsnap.options.option import options_of
from ttsnap.options.pictures import VideoOptions
from ttsnap.options.sampler import SamplerOptions
from ttsnap.results.folders import slug
from ttsnap.results.payload import checked
from ttsnap.results.pixels import Pixels, frames_of, still, to_uint8
from ttsnap.results.sheet import CELL, LOOKS, contact_sheet
from ttsnap.results.videos import KEYS, save_video

SMALL, TIMES = 128, 8
"""Of images of fewer pixels a side the best gets a copy so many times as large."""
ENLARGED = f"best-{TIMES}x.png"
SAMPLER = tuple(option.name for option in options_of(SamplerOptions))
MAKING = tuple(option.name for option in options_of(SamplerOptions) if not option.loads)
"""Those that make an image from its seed. What else is loaded (a drafter) only helps to choose the seed."""


Thumbnails = dict[int, dict[tuple[int, int], Image.Image]]
"""Small pictures of scored estimates, by the number of the prompt, then by candidate (uid) and step."""


@dataclass
class Recorder:
    """Listens to a search and keeps a thumbnail of every scored estimate. `rewards` combine as in the search."""

    thumbnails: Thumbnails = field(default_factory=dict)

    def __call__(self, event: Event) -> None:
        if event.kind == "score" and event.picture is not None:
            self.thumbnails.setdefault(event.job, {})[event.uids[0], event.step] = thumbnail(
                still(event.picture.small())
            )

    def sheet(self, result: Result, job: int = 0) -> Image.Image:
        """The contact sheet of a search that this listened to, of its prompt number `job`."""
        return contact_sheet(result, self.thumbnails.get(job, {}))


def thumbnail(picture: Image.Image) -> Image.Image:
    """A copy with as many pixels on its longer side as a contact sheet has room for."""
    small = max(picture.size) < CELL
    scale = CELL / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS)


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
        "ttsnap LoRA": payload.get("lora"),
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
    """The settings of the prompt at this place, as `payload_of` takes them, of those of all prompts."""
    pictures = settings.get("pictures")
    call = {
        name: value[index] if isinstance(value, list | tuple) and "prompt" in name else value
        for name, value in settings["call"].items()
    }
    return {**settings, "call": call, "pictures": pictures[index] or None if pictures else None}


def payload_of(result: Result, rank: int, settings: Mapping[str, object]) -> dict[str, Json]:
    """What the image at this place, from 0, of a result says about itself, JSON-ready; settings as in write_results,
    with the pictures of its prompt alone (`for_prompt`)."""
    candidate = result.images[rank]
    payload = {
        **{k: settings[k] for k in ("ttsnap", "model", "sampler", "call")},
        **{k: settings[k] for k in ("lora", "task", "dtype", "pictures", *SAMPLER) if settings.get(k) is not None},
        "prompt": result.prompt,
        "seed": candidate.seed,
        "branched": bool(result.particles.parent[candidate.uid] >= 0),
        "search": {
            **{k: settings[k] for k in ("algorithm", "options", "budget")},
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
    """Put the infotext and the payload into a picture's `info`, under the keys that PNGs carry them by."""
    picture.info |= {"parameters": infotext(payload, picture.size), "ttsnap": json.dumps(payload)}


def png_info(picture: Image.Image) -> PngImagePlugin.PngInfo:
    """What a search put into a picture's `info`, to be written with it: picture.save(path, pnginfo=png_info(picture)).

    PIL leaves `info` out of what it writes. Without such entries, as after edits that made a new picture, it is empty.
    """
    info = PngImagePlugin.PngInfo()
    for key in KEYS:
        if key in picture.info:
            info.add_itxt(key, picture.info[key])
    return info


def save_image(path: Path, image: Pixels, payload: Mapping[str, Json]) -> None:
    """Write a PNG with its metadata, whole or not at all."""
    picture = Image.fromarray(to_uint8(image))
    label(picture, payload)
    write_whole(path, lambda file: picture.save(file, format="PNG", pnginfo=png_info(picture)))


def save_made(path: Path, made: Pixels, payload: Mapping[str, Json]) -> None:
    """Write an image as a PNG, or a video by the path's ending (videos.py), with its metadata, whole or not at all."""
    if made.ndim == 3:
        save_image(path, made, payload)
        return
    frames, fps = frames_of(made), payload.get("fps")
    label(frames[0], payload)
    save_video(path, frames, float(fps) if isinstance(fps, int | float) else VideoOptions().fps)


def _save_sheet(path: Path, sheet: Image.Image) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_itxt(LOOKS, sheet.info[LOOKS])
    write_whole(path, lambda file: sheet.save(file, format="PNG", pnginfo=info))


def read_payload(path: Path) -> dict[str, Any]:
    """The "ttsnap" metadata of a file, as of `parse_payload`. ValueError also where it cannot be read."""
    return parse_payload(files.read_bytes(path, files.PICTURE_BYTES, "image"), path)


def parse_payload(data: bytes, path: Path) -> dict[str, Any]:
    """The "ttsnap" metadata of an image or a video that anyone may have written (payload.py). ValueError that says what
    is wrong."""
    text = texts_in(data, path, ("PNG", "WEBP")).get("ttsnap")
    if text is None:
        raise ValueError(f"{path} carries no ttsnap metadata; only files written by ttsnap can be replayed")
    return checked(files.parse_json(text, f"the ttsnap metadata of {path}"), path)


def write_results(
    out: Path,
    results: Sequence[Result],
    recorder: Recorder,
    settings: Mapping[str, object],
    videos: VideoOptions | None = None,
) -> list[list[Path]]:
    """Write every prompt's kept images or videos, its contact sheet, and one trace.json; the images' paths by prompt.

    settings: model, sampler, call, algorithm, options, budget, reward, ttsnap (the version), those of SamplerOptions as
    texts, lora where there is one, and where prompts are about pictures `task` and `pictures`, for each prompt the
    digests of its own. videos: in which format, and how fast; the defaults where it is None.
    """
    videos = videos or VideoOptions()
    out.mkdir(parents=True, exist_ok=True)
    written, entries = [], []
    for index, result in enumerate(results):
        stem = _stem(results, index)
        paths = []
        for rank, candidate in enumerate(result.images):
            moving = candidate.pixels.ndim > 3
            ending, more = (videos.video_format, {"fps": videos.fps}) if moving else ("png", {})
            paths.append(out / f"{stem}{rank + 1:02d}-seed{candidate.seed}.{ending}")
            save_made(paths[-1], candidate.pixels, {**payload_of(result, rank, for_prompt(settings, index)), **more})
        if result.images:
            _save_sheet(sheet_path(out, results, index), recorder.sheet(result, index))
        written.append(paths)
        entries.append(
            {
                "prompt": result.prompt,
                "spent": result.spent.to_json(),
                "images": [
                    {
                        "file": p.name,
                        "seed": c.seed,
                        "uid": c.uid,
                        "reward": c.reward,
                        "scores": c.scores,
                        "metrics": c.metrics,
                    }
                    for p, c in zip(paths, result.images, strict=True)
                ],
                "warnings": list(result.warnings),
                "moves": list(result.trace),
            }
        )
    trace = plain({"settings": dict(settings), "levels": list(results[0].levels), "results": entries})
    write_json(out / "trace.json", trace)
    return written


def sheet_path(out: Path, results: Sequence[Result], index: int) -> Path:
    """Where `write_results` puts the contact sheet of a result, where it has images."""
    return out / f"{_stem(results, index)}sheet.png"


def _stem(results: Sequence[Result], index: int) -> str:
    return f"{index:03d}-{slug(results[index].prompt)}-" if len(results) > 1 else ""


def enlarged_path(out: Path, results: Sequence[Result], index: int) -> Path:
    """Where `write_enlarged` puts the copy of a result's best image."""
    return out / f"{_stem(results, index)}{ENLARGED}"


def write_enlarged(path: Path, image: Pixels) -> bool:
    """Write a copy of a small image, or of a video's frames, for the eye, TIMES as large, without metadata; False for
    other images."""
    if max(image.shape[-2:]) >= SMALL:
        return False
    picture = still(image, columns=SHOWN)
    large = picture.resize((picture.width * TIMES, picture.height * TIMES), Image.Resampling.NEAREST)
    write_whole(path, lambda file: large.save(file, format="PNG"))
    return True


def plain(value: object) -> Json:
    """JSON-ready: nan becomes null, paths and such become text."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value if isinstance(value, str | int | bool | None) else str(value)
