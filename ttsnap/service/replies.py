"""Replies: images and usage in OpenAI's shapes, and ours in addition."""

from __future__ import annotations

import base64
import io
import json
import time
from typing import TYPE_CHECKING

from PIL import Image

from ttsnap.core.results import Result
from ttsnap.files.settings import Json
from ttsnap.results.media import png_info, to_uint8
from ttsnap.results.payload import label, payload_of, plain
from ttsnap.service.requests import Generation
from ttsnap.service.tickets import Done, Partial

if TYPE_CHECKING:
    from torch import Tensor


def encoded(pixels: Tensor, wanted: Generation, payload: dict[str, Json] | None = None) -> str:
    """(3, H, W) in [0, 1] -> a file of the requested format, in base64. A PNG carries the payload."""
    picture, file = Image.fromarray(to_uint8(pixels)), io.BytesIO()
    if wanted.output_format == "png":
        if payload is not None:
            label(picture, payload)
        picture.save(file, format="PNG", pnginfo=png_info(picture))
    else:
        picture.save(file, format=wanted.output_format.upper(), quality=wanted.output_compression)
    return base64.b64encode(file.getvalue()).decode()


def usage_of(result: Result) -> dict[str, Json]:
    """The ledger. Tokens, which OpenAI's clients read, are 0: nothing here is counted in them."""
    spent = result.spent
    return {
        "input_tokens": 0,
        "output_tokens": 0,
        "total_tokens": 0,
        "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
        **spent.cost.counts(),
        "budget": spent.budget,
        "seconds": spent.seconds,
        "seeds": spent.seeds,
        "finished": spent.finished,
    }


def reply_of(done: Done, wanted: Generation, model: str) -> dict[str, Json]:
    """The whole reply to a request without a stream."""
    images = done.result.images
    data: list[Json] = [_image(done, rank, wanted, model) for rank in range(len(images))]
    made = {"created": int(time.time()), **_shape(images[0].pixels, wanted)}
    return {**made, "data": data, "usage": usage_of(done.result), "warnings": list(done.warnings)}


def partial_event(partial: Partial, wanted: Generation) -> bytes:
    """The event of a partial image."""
    image: dict[str, Json] = {"b64_json": encoded(partial.image, wanted), "partial_image_index": partial.index}
    return _event_of("partial_image", partial.image, wanted, image)


def completed_events(done: Done, wanted: Generation, model: str) -> list[bytes]:
    """An event for each kept image, best first."""
    more: dict[str, Json] = {"usage": usage_of(done.result), "warnings": list(done.warnings)}
    return [
        _event_of("completed", best.pixels, wanted, {**_image(done, rank, wanted, model), "rank": rank + 1, **more})
        for rank, best in enumerate(done.result.images)
    ]


def event(name: str, data: dict[str, Json]) -> bytes:
    """A server-sent event."""
    return f"event: {name}\ndata: {json.dumps({'type': name, **data})}\n\n".encode()


def _event_of(name: str, pixels: Tensor, wanted: Generation, image: dict[str, Json]) -> bytes:
    return event(f"{wanted.kind}.{name}", {"created_at": int(time.time()), **_shape(pixels, wanted), **image})


def _shape(pixels: Tensor, wanted: Generation) -> dict[str, Json]:
    return {
        "background": "opaque",
        "output_format": wanted.output_format,
        "quality": wanted.effort,
        "size": f"{pixels.shape[-1]}x{pixels.shape[-2]}",
    }


def _image(done: Done, rank: int, wanted: Generation, model: str) -> dict[str, Json]:
    """An image with its scores, which are null where they are no numbers."""
    candidate = done.result.images[rank]
    data = encoded(candidate.pixels, wanted, payload_of(done.result, rank, {**done.settings, "model": model}))
    if wanted.response_format == "url" and not wanted.stream:  # OpenAI's events have no addresses
        image = {"url": f"data:image/{wanted.output_format};base64,{data}"}
    else:
        image = {"b64_json": data}
    return {
        **image,
        "seed": plain(candidate.seed),
        "reward": plain(candidate.reward),
        "scores": plain(candidate.scores),
        "metrics": plain(candidate.metrics),
    }
