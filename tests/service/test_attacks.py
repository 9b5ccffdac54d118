"""What hostile clients send, on sockets of 127.0.0.1: each is refused within bounds, while others are served."""

from __future__ import annotations

import io
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import httpx
import pytest
from PIL import Image, ImageFile
from ttsnap.pipelines import defaults

from tests.service.test_edits import PROMPT, editor, png
from ttsnap.files.pictured import Picture
from ttsnap.rewards.registry import make_rewards
from ttsnap.service.engines import OneDevice
from ttsnap.service.limits import Limits
from ttsnap.service.requests import Offer
from ttsnap.service.server import GenerationServer

__all__ = ["editor"]  # a fixture
HUGE = 8191


@pytest.fixture(scope="module")
def attacked(editor: Any) -> Iterator[GenerationServer]:
    offer = Offer("embedded", {**defaults(), "num_inference_steps": 4}, ("brightness",), edits=True)
    engines = OneDevice(editor, {"brightness": make_rewards("brightness")[0]})
    with GenerationServer(engines, offer, Limits(drain=0.1), None, ("127.0.0.1", 0)) as server:
        yield server


@cache
def huge_png(mode: int = 2, channels: int = 3, more: bytes = b"") -> bytes:
    """A PNG of HUGE x HUGE black pixels, which takes a thousandth of them; more: chunks before the pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer, line = zlib.compressobj(), bytes(1 + channels * HUGE)
    packed = b"".join([packer.compress(line) for _ in range(HUGE)]) + packer.flush()
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", HUGE, HUGE, 8, mode, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + more + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def animated_png() -> bytes:
    """A thousand frames, by the header."""
    head = struct.pack(">II", 1000, 0)
    return huge_png(0, 1, struct.pack(">I", 8) + b"acTL" + head + struct.pack(">I", zlib.crc32(b"acTL" + head)))


def saved(kind: str, mode: str = "RGB", **options: Any) -> bytearray:
    file = io.BytesIO()
    Image.new(mode, (32, 32)).save(file, format=kind, **options)
    return bytearray(file.getvalue())


def huge_jpeg() -> bytes:
    data = saved("JPEG")
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", HUGE, HUGE)
    return bytes(data)


def huge_webp() -> bytes:
    data = saved("WEBP")
    at = data.index(b"\x9d\x01\x2a") + 3
    data[at : at + 4] = struct.pack("<HH", HUGE, HUGE)
    return bytes(data)


def animated_webp() -> bytes:
    data = saved("WEBP", "RGBA", save_all=True, append_images=[Image.new("RGBA", (32, 32), (i, 0, 0)) for i in (1, 2)])
    at = data.index(b"VP8X") + 12
    data[at : at + 6] = (HUGE - 1).to_bytes(3, "little") * 2
    return bytes(data)


BOMBS: dict[str, Callable[[], bytes]] = {
    "png": huge_png,
    "animated png": animated_png,
    "jpeg": huge_jpeg,
    "webp": huge_webp,
    "animated webp": animated_webp,
    "gif": lambda: bytes(saved("GIF", save_all=True, append_images=[Image.new("RGB", (32, 32), "red")] * 9)),
}


@pytest.mark.parametrize("kind", BOMBS)
@pytest.mark.parametrize("param", ["image", "mask"])
def test_a_picture_that_is_a_bomb_is_refused_undecoded(
    attacked: GenerationServer, monkeypatch: pytest.MonkeyPatch, kind: str, param: str
) -> None:
    bomb = BOMBS[kind]()
    assert len(bomb) < 300_000
    decoded: list[Any] = []
    load = ImageFile.ImageFile.load

    def watched(picture: ImageFile.ImageFile) -> Any:
        decoded.append(picture.size)
        return load(picture)

    monkeypatch.setattr(ImageFile.ImageFile, "load", watched)
    files = {"image": ("a", png(Image.new("RGB", (32, 32))))} | {param: ("a", bomb)}
    reply = httpx.post(f"{attacked.url}/v1/images/edits", data={"prompt": PROMPT}, files=files)
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == param
    assert max((side for size in decoded for side in size), default=0) <= 32


def test_pictures_are_decoded_beside_the_event_loop(
    attacked: GenerationServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go = threading.Event(), threading.Event()

    def slow(picture: Picture, where: object = "") -> Image.Image:
        begun.set()
        assert go.wait(20)
        raise ValueError("it is damaged")

    monkeypatch.setattr(Picture, "opened", slow)
    url, files = f"{attacked.url}/v1/images/edits", {"image": ("a", png(Image.new("RGB", (32, 32))))}
    with ThreadPoolExecutor(1) as pool:
        reply = pool.submit(httpx.post, url, data={"prompt": PROMPT}, files=files, timeout=30)
        assert begun.wait(20)
        assert httpx.get(f"{attacked.url}/health", timeout=5).status_code == 200
        go.set()
        assert reply.result().json()["error"]["message"] == "it is damaged"
