"""Replies: images, videos and usage in OpenAI's shapes, and ours in addition."""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from PIL import Image

from ttsnap.core.results import Result
from ttsnap.files.settings import Json
from ttsnap.request.offer import ServingCatalog
from ttsnap.results.media import QUALITY, frames_of, png_info, save_video, still, to_uint8
from ttsnap.results.record import SearchRecord
from ttsnap.service.requests import Generation, Video
from ttsnap.service.tickets import Done, Partial

if TYPE_CHECKING:
    from torch import Tensor


def file_of(pixels: Tensor, wanted: Generation, record: SearchRecord | None = None) -> bytes:
    """(3, H, W) in [0, 1] -> a file of the requested format. A PNG carries the record."""
    picture, file = Image.fromarray(to_uint8(pixels)), io.BytesIO()
    if wanted.output_format == "png":
        if record is not None:
            record.label(picture)
        picture.save(file, format="PNG", pnginfo=png_info(picture))
    else:
        picture.save(file, format=wanted.output_format.upper(), quality=wanted.output_compression)
    return file.getvalue()


def files_of(done: Done, wanted: Generation | Video, offer: ServingCatalog) -> list[bytes]:
    """A file for each kept image or video, best first, which carries what made it where its format
    can."""
    files = []
    for rank, candidate in enumerate(done.result.images):
        record = done.record.of(done.result, rank)
        if isinstance(wanted, Generation):
            files.append(file_of(candidate.pixels, wanted, record))
            continue
        frames = frames_of(candidate.pixels)
        record.label(frames[0])
        with TemporaryDirectory() as folder:
            path = Path(folder) / f"video.{wanted.output_format}"
            save_video(path, frames, wanted.rate(offer))
            files.append(path.read_bytes())
    return files


def thumbnail_of(pixels: Tensor) -> bytes:
    """(3, H, W), or a video (T, 3, H, W), in [0, 1] -> a WebP picture, of a video its middle
    frame."""
    frame, file = pixels if pixels.ndim == 3 else pixels[len(pixels) // 2], io.BytesIO()
    still(frame).save(file, format="WEBP", quality=QUALITY)
    return file.getvalue()


def usage_of(result: Result) -> dict[str, Json]:
    """The ledger. Tokens, which OpenAI's clients read, are 0: nothing here is counted in them."""
    spent = result.spent
    return {
        "input_tokens": 0,
        "output_tokens": 0,
        "total_tokens": 0,
        "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
        **spent.counts(),
        "budget": spent.budget,
        "seconds": spent.seconds,
        "seeds": spent.seeds,
        "finished": spent.finished,
    }


def response_fields(done: Done) -> dict[str, Any]:
    """What a search found, but for its images: of each its scores, which are null where they are no
    numbers; and how many of the finished images have each item of a checklist."""
    data = [candidate.to_json() for candidate in done.result.images]
    height, width = done.result.images[0].pixels.shape[-2:]
    return {
        "size": f"{width}x{height}",
        "data": data,
        "usage": usage_of(done.result),
        "warnings": list(done.warnings),
        **({"answers": done.result.answers} if done.result.asked else {}),
    }


def reply_of(
    told: Mapping[str, Any], files: Sequence[bytes], wanted: Generation
) -> dict[str, Json]:
    """The whole reply to a request for images without a stream: what was told of its search, with
    the images."""
    data = [
        {**_image(file, wanted), **each} for file, each in zip(files, told["data"], strict=True)
    ]
    return {"created": int(time.time()), **_shape(told["size"], wanted), **told, "data": data}


def partial_event(partial: Partial, wanted: Generation) -> bytes:
    """The event of a partial image."""
    height, width = partial.image.shape[-2:]
    image = {**_image(file_of(partial.image, wanted), wanted), "partial_image_index": partial.index}
    return _event_of("partial_image", f"{width}x{height}", wanted, image)


def completed_events(done: Done, wanted: Generation, offer: ServingCatalog) -> list[bytes]:
    """An event for each kept image, best first."""
    told = response_fields(done)
    more: dict[str, Any] = {
        name: told[name] for name in ("usage", "warnings", "answers") if name in told
    }
    images = zip(files_of(done, wanted, offer), told["data"], strict=True)
    return [
        _event_of(
            "completed",
            told["size"],
            wanted,
            {**_image(file, wanted), **each, "rank": rank, **more},
        )
        for rank, (file, each) in enumerate(images, 1)
    ]


def event(name: str, data: dict[str, Json]) -> bytes:
    """A server-sent event."""
    return f"event: {name}\ndata: {json.dumps({'type': name, **data})}\n\n".encode()


def _event_of(name: str, size: str, wanted: Generation, image: dict[str, Json]) -> bytes:
    return event(
        f"{wanted.kind}.{name}", {"created_at": int(time.time()), **_shape(size, wanted), **image}
    )


def _shape(size: str, wanted: Generation) -> dict[str, Json]:
    return {
        "background": "opaque",
        "output_format": wanted.output_format,
        "quality": wanted.effort,
        "size": size,
    }


def _image(file: bytes, wanted: Generation) -> dict[str, Json]:
    data = base64.b64encode(file).decode()
    if wanted.response_format == "url" and not wanted.stream:  # OpenAI's events have no addresses
        return {"url": f"data:image/{wanted.output_format};base64,{data}"}
    return {"b64_json": data}
