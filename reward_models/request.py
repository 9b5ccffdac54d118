"""A request to the reward server: parsed within limits, decoded in batches, and scored. serve.py is the server."""

from __future__ import annotations

import base64
import logging
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from ttsnap.reward_models.connections import BATCH_PIXELS, Limits, Pieces, RefusedError

from ttsnap.core.protocols import Reward
from ttsnap.files.reading import parse_json, picture_pixels
from ttsnap.files.settings import Json
from ttsnap.rewards.scoring import score_in_parts

logger = logging.getLogger(__name__)
Item = TypeVar("Item")
PROMPT_LENGTH = 20_000
"""Most characters of a prompt."""
TEXT_BYTES = 12 * PROMPT_LENGTH
"""Most bytes of a prompt in JSON, which may write a character as two escapes."""
BESIDE = 1024, 256
"""Most bytes of a request apart from texts and images: of any request, and more for each image of the limit."""
STRINGS = 8, 4
"""Most texts (keys included) and images of a request: of any request, and more for each image of the limit."""
PNG = re.compile(rb'"(iVBORw0KGgo[A-Za-z0-9+/=\\]*+)"')
KNOWN = ("prompts", "levels", "images")


@dataclass(frozen=True)
class Request:
    """N prompts, levels, and PNGs in base64 with their sizes (width, height)."""

    prompts: list[str]
    levels: list[float]
    images: list[bytes]
    sizes: list[tuple[int, int]]


def parse(body: bytes, limits: Limits) -> Request:
    """The request in a body, with images still encoded. RefusedError for malformed ones and ones beyond the limits."""
    beside, most = (base + each * limits.max_images for base, each in (BESIDE, STRINGS))
    rest, images = Pieces(PNG, "a PNG in base64", most, TEXT_BYTES, beside).parted(body)
    try:
        given = parse_json(rest.decode(), "the body")
    except ValueError as error:
        raise RefusedError(400, f"cannot read the request: {error}") from None
    if not isinstance(given, dict):
        raise RefusedError(400, "cannot read the request: it must be a JSON object with prompts and images")
    if unknown := [name for name in given if name not in KNOWN]:
        raise RefusedError(400, f"unknown key {unknown[0]!r:.80}; known are {', '.join(KNOWN)}")
    prompts, named = (_listed(given, name, str, "texts") for name in ("prompts", "images"))
    levels = _listed({"levels": [0.0] * len(named), **given}, "levels", (int, float), "numbers")
    if not len(prompts) == len(named) == len(levels):
        lengths = f"{len(prompts)}, {len(levels)} and {len(named)}"
        raise RefusedError(400, f"prompts, levels and images must be lists of one length, got {lengths}")
    if len(named) > limits.max_images:
        raise RefusedError(413, f"{len(named)} images in one request; at most {limits.max_images}")
    if named != list(images):
        raise RefusedError(400, "an image is not a PNG in base64")
    if any(len(prompt) > PROMPT_LENGTH for prompt in prompts):
        raise RefusedError(413, f"a prompt of {max(map(len, prompts))} characters; at most {PROMPT_LENGTH}")
    sizes = [png_size(text) for text in images.values()]
    most, total = max((w * h for w, h in sizes), default=0), sum(w * h for w, h in sizes)
    if most > BATCH_PIXELS or total > limits.max_pixels:
        limit = f"at most {BATCH_PIXELS:,} in one and {limits.max_pixels:,} in a request"
        raise RefusedError(413, f"an image of {most:,} pixels, and {total:,} in all; {limit}")
    return Request(prompts, [float(level) for level in levels], [*images.values()], sizes)


def _listed(given: Mapping[str, Json], name: str, kind: type[Item] | tuple[type[Item], ...], of: str) -> list[Item]:
    """The list under `name` in a request. RefusedError unless all items are of this kind; bool is no number."""
    values = given.get(name)
    known = values if isinstance(values, list) else []
    items = [value for value in known if isinstance(value, kind) and not isinstance(value, bool)]
    if not isinstance(values, list) or len(items) < len(values):
        raise RefusedError(400, f"cannot read the request: {name!r} must be a list of {of}")
    return items


def png_size(text: bytes) -> tuple[int, int]:
    """Width and height in the header of a PNG in base64. RefusedError for anything else."""
    try:
        head = base64.b64decode(text[:32], validate=True)
        magic, kind, width, height = struct.unpack(">8s4x4sII", head)
    except (ValueError, struct.error):
        magic = kind = b""
    if magic != b"\x89PNG\r\n\x1a\n" or kind != b"IHDR" or not width * height:
        raise RefusedError(400, "an image is not a PNG in base64")
    return width, height


def batches(sizes: Sequence[tuple[int, int]]) -> Iterator[list[int]]:
    """Rows of equal size, at most BATCH_PIXELS in each batch."""
    by_size: dict[tuple[int, int], list[int]] = {}
    for row, size in enumerate(sizes):
        by_size.setdefault(size, []).append(row)
    for (width, height), rows in by_size.items():
        n = max(1, BATCH_PIXELS // (width * height))
        yield from (rows[i : i + n] for i in range(0, len(rows), n))


def score(reward: Reward, request: Request, device: torch.device | str = "cpu") -> list[float | None]:
    """Scores of the images, on this device; None where one failed.

    RefusedError for damaged images, or where the reward fails.
    """
    scores = np.full(len(request.images), np.nan)
    for rows in batches(request.sizes):
        width, height = request.sizes[rows[0]]
        images = torch.empty(len(rows), 3, height, width)
        for image, row in zip(images, rows, strict=True):
            image.copy_(_decode(request.images[row], width, height))
        levels = torch.tensor([request.levels[row] for row in rows])
        images, prompts = images.to(device).div_(255), [request.prompts[row] for row in rows]
        scores[rows], reason = score_in_parts(reward, images, prompts, levels.to(device), reward.name)
        if reason is not None:  # it may hold addresses and paths of this machine
            logger.warning("%s", reason)
            raise RefusedError(500, "the reward failed; the server's log says why")
    return [None if np.isnan(value) else float(value) for value in scores]


def _decode(text: bytes, width: int, height: int) -> Tensor:
    """(3, height, width) uint8. RefusedError for another size: a PNG may hold a second header."""
    try:
        pixels = picture_pixels(base64.b64decode(text, validate=True), "it", most=width * height)
        if pixels.shape != (height, width, 3):
            raise ValueError("it has two sizes")
    except ValueError as error:
        raise RefusedError(400, f"an image is not a PNG in base64: {error}") from None
    return torch.from_numpy(pixels).permute(2, 0, 1)
