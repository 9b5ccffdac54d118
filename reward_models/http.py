"""A reward in another process or on another machine: the client, and what goes over the wire.

POST URL with JSON {"prompts": [N], "levels": [N], "images": [N PNGs, base64]}; the reply is {"scores": [N]}, null where
a score failed, or {"error": TEXT} with a status of 400 or more. GET URL replies {"name": NAME, "max_images": N}. Any
server that speaks this will do; serve.py is a small one.
"""

from __future__ import annotations

import base64
import http.client
import io
import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from ttsnap.reward_models.preprocess import check_images, to_levels


class HttpReward:
    """Scores by a server at `url` (http:// or https://).

    timeout: seconds to wait for each batch; batch_size: most images per request (fewer where the server asks for it).
    Raises ValueError where no reward server answers at the start; later failures raise RuntimeError, which costs a
    search the scores of that batch, not the search.
    """

    def __init__(self, url: str, *, name: str | None = None, timeout: float = 120.0, batch_size: int = 16) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"a reward's address starts with http:// or https://, got {url!r}")
        if timeout <= 0 or batch_size < 1:
            raise ValueError(f"timeout must be positive and batch_size at least 1, got {timeout} and {batch_size}")
        self.url, self.timeout = url, timeout
        try:
            about = self._ask(None)
            self.name = name or str(about["name"])
            self.batch_size = min(batch_size, int(about.get("max_images", batch_size)))
        except (RuntimeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"no reward server at {url}: {error}; start one with ttsnap serve-reward") from error

    def __call__(self, images: Tensor, prompts: Sequence[str], level: Any = None) -> Tensor:
        """images (N, 3, H, W) in [0, 1], N prompts, level (N,) -> (N,) float32 on the CPU, nan where a score failed."""
        check_images(images)
        levels = [0.0] * len(images) if level is None else [float(x) for x in level]
        scores: list[float] = []
        for i in range(0, len(images), self.batch_size):
            rows = slice(i, i + self.batch_size)
            body: dict[str, Any] = {
                "prompts": list(prompts[rows]),
                "levels": levels[rows],
                "images": [encode_image(image) for image in images[rows]],
            }
            reply = self._ask(body).get("scores")
            if not isinstance(reply, list) or len(reply) != len(body["images"]):
                raise RuntimeError(f"{self.url} must reply {len(body['images'])} scores, got {reply!s:.80}")
            scores += [float("nan") if score is None else float(score) for score in reply]
        return torch.tensor(scores, dtype=torch.float32)

    def _ask(self, body: dict[str, Any] | None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as reply:
                answer = json.loads(reply.read())
        except urllib.error.HTTPError as error:
            text = error.read(10_000).decode(errors="replace")
            raise RuntimeError(f"{self.url} refused with status {error.code}: {_reason(text)}") from error
        except (OSError, http.client.HTTPException) as error:
            raise RuntimeError(f"{self.url} did not answer within {self.timeout:g} s or at all: {error}") from error
        except ValueError as error:
            raise RuntimeError(f"{self.url} did not answer with JSON: {error}") from error
        if not isinstance(answer, dict):
            raise RuntimeError(f"{self.url} must answer with a JSON object, got {answer!s:.80}")
        return answer


def _reason(text: str) -> str:
    try:
        return str(json.loads(text)["error"])
    except (ValueError, KeyError, TypeError):
        return text[:200]


def encode_image(image: Tensor) -> str:
    """(3, H, W) in [0, 1] -> PNG in base64."""
    buffer = io.BytesIO()
    array = to_levels(image).byte().permute(1, 2, 0).cpu().numpy()
    Image.fromarray(array).save(buffer, format="PNG", compress_level=1)
    return base64.b64encode(buffer.getvalue()).decode()
