"""A small server for any reward (the protocol is http.py's). For trusted networks: it has no authentication.

Clients connect at the same time, each in a thread; the reward itself is called by one thread at a time.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import logging
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ttsnap.scoring import score_images
from ttsnap.types import Reward

logger = logging.getLogger(__name__)


class RefusedError(Exception):
    """A request that is answered with an error: `status`, and why."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class RewardServer(ThreadingHTTPServer):
    """Serves one reward. max_images, max_bytes, max_pixels limit a request; `idle` seconds wait for a slow client."""

    daemon_threads = True

    def __init__(
        self,
        reward: Reward,
        host: str = "127.0.0.1",
        port: int = 8765,
        *,
        max_images: int = 64,
        max_bytes: int = 256 * 2**20,
        max_pixels: int = 4096 * 4096,
        idle: float = 60.0,
    ) -> None:
        self.reward, self.idle = reward, idle
        self.max_images, self.max_bytes, self.max_pixels = max_images, max_bytes, max_pixels
        self.turn = threading.Lock()
        super().__init__((host, port), _Handler)

    def score(self, body: bytes) -> list[float | None]:
        """Scores of a request's images; RefusedError where it is not as it should be or the reward fails."""
        prompts, levels, images = self._read(body)
        by_size: dict[tuple[int, ...], list[int]] = {}
        for i, image in enumerate(images):
            by_size.setdefault(tuple(image.shape), []).append(i)
        scores = np.full(len(images), np.nan)
        for rows in by_size.values():
            batch, level = torch.stack([images[i] for i in rows]), torch.tensor([levels[i] for i in rows])
            with self.turn:
                scores[rows], reason = score_images(self.reward, batch, [prompts[i] for i in rows], level)
            if reason is not None:
                raise RefusedError(500, reason)
        return [None if np.isnan(score) else float(score) for score in scores]

    def _read(self, body: bytes) -> tuple[list[str], list[float], list[Tensor]]:
        try:
            asked = json.loads(body)
            prompts, encoded = asked["prompts"], asked["images"]
            levels = asked.get("levels", [0.0] * len(encoded))
            if not len(prompts) == len(encoded) == len(levels) or not all(isinstance(p, str) for p in prompts):
                raise ValueError("prompts, levels and images must be lists of one length, prompts of texts")
            levels = [float(x) for x in levels]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RefusedError(400, f"cannot read the request: {error}") from None
        if len(encoded) > self.max_images:
            raise RefusedError(413, f"{len(encoded)} images in one request; at most {self.max_images}")
        return prompts, levels, [self._decode(text) for text in encoded]

    def _decode(self, text: str) -> Tensor:
        try:
            with Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=["PNG"]) as picture:
                if picture.width * picture.height > self.max_pixels:
                    raise RefusedError(413, f"an image of {picture.size} pixels; at most {self.max_pixels} in all")
                array = np.array(picture.convert("RGB"))
        except (binascii.Error, TypeError, ValueError, OSError, SyntaxError, UnidentifiedImageError) as error:
            raise RefusedError(400, f"an image is not a PNG in base64: {error}") from None
        return torch.from_numpy(array).permute(2, 0, 1).float() / 255


class _Handler(BaseHTTPRequestHandler):
    server: RewardServer

    def setup(self) -> None:
        self.timeout = self.server.idle  # type: ignore[misc]
        super().setup()

    def do_GET(self) -> None:
        self._reply(200, {"name": self.server.reward.name, "max_images": self.server.max_images})

    def do_POST(self) -> None:
        try:
            length = self.headers.get("Content-Length", "")
            if not length.isdigit():
                raise RefusedError(411, "a request needs a Content-Length")
            if int(length) > self.server.max_bytes:
                raise RefusedError(413, f"a request of {length} bytes; at most {self.server.max_bytes}")
            self._reply(200, {"scores": self.server.score(self.rfile.read(int(length)))})
        except RefusedError as refused:
            self.close_connection = True
            self._reply(refused.status, {"error": str(refused)})

    def _reply(self, status: int, answer: dict[str, Any]) -> None:
        body = json.dumps(answer).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except (BrokenPipeError, ConnectionResetError):
            logger.info("client %s went away before its reply", self.client_address[0])

    def log_message(self, format: str, *args: Any) -> None:
        logger.info("%s %s", self.client_address[0], format % args)
