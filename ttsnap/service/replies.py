"""What is sent back: images and usage in OpenAI's shapes, with ours beside them."""

from __future__ import annotations

import base64
import io
import json
import time
from typing import TYPE_CHECKING

from PIL import Image

from ttsnap.core.results import Candidate, Result
from ttsnap.files.settings import Json
from ttsnap.results import outputs
from ttsnap.results.pixels import to_uint8
from ttsnap.service.requests import Generation
from ttsnap.service.tickets import Done, Partial

if TYPE_CHECKING:
    from torch import Tensor


def encoded(pixels: Tensor, wanted: Generation, payload: dict[str, Json] | None = None) -> str:
    """(3, H, W) in [0, 1] -> a file of the format that was asked for, in base64. A PNG carries the payload."""
    picture, file = Image.fromarray(to_uint8(pixels)), io.BytesIO()
    if wanted.output_format == "png":
        if payload is not None:
            outputs.label(picture, payload)
        picture.save(file, format="PNG", pnginfo=outputs.png_info(picture))
    else:
        picture.save(file, format=wanted.output_format.upper(), quality=wanted.output_compression)
    return base64.b64encode(file.getvalue()).decode()


def usage_of(result: Result) -> dict[str, Json]:
    """The ledger. Tokens, which OpenAI's clients ask for, are 0: nothing here is counted in them."""
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
    """The whole reply to a request that is not a stream."""
    result = done.result
    data: list[Json] = [_image(done, rank, wanted, model) for rank in range(len(result.images))]
    return {
        "created": int(time.time()),
        "background": "opaque",
        "output_format": wanted.output_format,
        "quality": wanted.effort,
        "size": _size(result.images[0].pixels),
        "data": data,
        "usage": usage_of(result),
        "warnings": list(done.warnings),
    }


def partial_event(partial: Partial, wanted: Generation) -> bytes:
    """The event of a partial image."""
    return event(
        f"{wanted.kind}.partial_image",
        {
            **_common(partial.image, wanted),
            "b64_json": encoded(partial.image, wanted),
            "partial_image_index": partial.index,
        },
    )


def completed_events(done: Done, wanted: Generation, model: str) -> list[bytes]:
    """An event for each kept image, best first."""
    result = done.result
    more: dict[str, Json] = {"usage": usage_of(result), "warnings": list(done.warnings)}
    images = [(rank, candidate.pixels) for rank, candidate in enumerate(result.images)]
    return [
        event(
            f"{wanted.kind}.completed",
            {**_common(pixels, wanted), **_image(done, rank, wanted, model), "rank": rank + 1, **more},
        )
        for rank, pixels in images
    ]


def event(name: str, data: dict[str, Json]) -> bytes:
    """A server-sent event."""
    return f"event: {name}\ndata: {json.dumps({'type': name, **data})}\n\n".encode()


def _image(done: Done, rank: int, wanted: Generation, model: str) -> dict[str, Json]:
    candidate = done.result.images[rank]
    payload = outputs.payload_of(done.result, rank, {**done.settings, "model": model})
    data = encoded(candidate.pixels, wanted, payload)
    if wanted.response_format == "url" and not wanted.stream:  # OpenAI's events have no addresses
        return {"url": f"data:image/{wanted.output_format};base64,{data}", **_told(candidate)}
    return {"b64_json": data, **_told(candidate)}


def _told(candidate: Candidate) -> dict[str, Json]:
    """What the search says of an image; null for what is no number."""
    told = {"seed": candidate.seed, "reward": candidate.reward, "scores": candidate.scores}
    return {name: outputs.plain(value) for name, value in {**told, "metrics": candidate.metrics}.items()}


def _common(pixels: Tensor, wanted: Generation) -> dict[str, Json]:
    return {
        "background": "opaque",
        "created_at": int(time.time()),
        "output_format": wanted.output_format,
        "quality": wanted.effort,
        "size": _size(pixels),
    }


def _size(pixels: Tensor) -> str:
    return f"{pixels.shape[-1]}x{pixels.shape[-2]}"
