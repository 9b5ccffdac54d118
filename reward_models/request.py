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

from ttsnap.core.protocols import Reward
from ttsnap.files.reading import parse_json, picture_pixels
from ttsnap.files.settings import Json
from ttsnap.reward_models.connections import BATCH_PIXELS, Limits, RefusedError
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
TEXT = re.compile(rb'"(?:[^"\\]|\\.){0,%d}+"' % TEXT_BYTES, re.DOTALL)
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
    rest, images = _parted(body, limits)
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
    if named != [_name(at) for at in range(len(images))]:
        raise RefusedError(400, "an image is not a PNG in base64")
    if any(len(prompt) > PROMPT_LENGTH for prompt in prompts):
        raise RefusedError(413, f"a prompt of {max(map(len, prompts))} characters; at most {PROMPT_LENGTH}")
    sizes = [png_size(text) for text in images]
    most, total = max((w * h for w, h in sizes), default=0), sum(w * h for w, h in sizes)
    if most > BATCH_PIXELS or total > limits.max_pixels:
        limit = f"at most {BATCH_PIXELS:,} in one and {limits.max_pixels:,} in a request"
        raise RefusedError(413, f"an image of {most:,} pixels, and {total:,} in all; {limit}")
    return Request(prompts, [float(level) for level in levels], images, sizes)


def _parted(body: bytes, limits: Limits) -> tuple[bytes, list[bytes]]:
    """A body with a short name in place of each image, and the images. RefusedError for too many texts or bytes.

    The rest is kilobytes, so parsing takes little memory: Python needs 35 times the bytes of nested lists.
    """
    parts, images, end, beside, strings = list[bytes](), list[bytes](), 0, 0, 0
    while (start := body.find(b'"', end)) >= 0:
        image = PNG.match(body, start)
        if (found := image or TEXT.match(body, start)) is None:
            raise RefusedError(413, f"a text that has no end, or no PNG in base64 and more than {TEXT_BYTES:,} bytes")
        parts += body[end:start], f'"{_name(len(images))}"'.encode() if image else found[0]
        images += [_unescaped(image[1])] if image else []
        beside, strings, end = beside + start - end, strings + 1, found.end()
        _check("texts and images", strings, STRINGS, limits)
        _check("bytes beside texts and images", beside, BESIDE, limits)
    _check("bytes beside texts and images", beside + len(body) - end, BESIDE, limits)
    return b"".join([*parts, body[end:]]), images


def _unescaped(image: bytes) -> bytes:
    """Base64 without JSON's escapes, by which some languages write / and +. RefusedError for other text."""
    if b"\\" not in image:
        return image
    try:
        return str(parse_json(b'"%b"' % image, "an image")).encode("ascii")
    except ValueError:
        raise RefusedError(400, "an image is not a PNG in base64") from None


def _name(at: int) -> str:
    """The name of an image while the request is parsed."""
    return f"image {at}"


def _check(what: str, count: int, most: tuple[int, int], limits: Limits) -> None:
    allowed = most[0] + most[1] * limits.max_images
    if count > allowed:
        raise RefusedError(413, f"a request of more than {allowed:,} {what}")


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
