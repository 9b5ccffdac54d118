"""A reward in another process or on another machine: the client, and the protocol.

POST URL with JSON {"prompts": [N], "levels": [N], "images": [N PNGs, base64]}; the reply is
{"scores": [N]}, null where a score failed, or {"error": TEXT} with a status of 400 or more. GET URL
replies {"name": NAME, "max_images": N}. serve.py is one such server. The environment's
TTSNAP_REWARD_KEY authorizes requests: NAME:PASSWORD as Basic, anything else as Bearer.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import random
import ssl
import sys
import threading
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from functools import lru_cache
from typing import TypeVar

import httpx
import torch
from PIL import Image
from torch import Tensor

from ttsnap.files.reading import parse_json, parse_object, printable, reason
from ttsnap.files.settings import Json
from ttsnap.reward_models.preprocess import check_images, to_pictures
from ttsnap.reward_models.registry import refuse_credentials, without_queries
from ttsnap.rewards.reward_model import ELSEWHERE, RewardModel

T = TypeVar("T")
PAUSES = (0.25, 1.0)
"""Seconds before each retry, give or take a half, where a connection fails or a server is full."""
REPLY_BYTES = 2**20
SCORE_BYTES = 64
"""Most bytes of a reply without its scores, and of each score."""
FLOAT32_MAX = torch.finfo(torch.float32).max
HEADERS = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
KEY = "TTSNAP_REWARD_KEY"
"""The environment's variable with the key of reward servers. Where it is set, no message quotes a
server: a reply may repeat the key."""


class HttpReward(RewardModel):
    """Scores by a server at `url` (http:// or https://).

    timeout: seconds for each batch, from connecting to the last byte of the reply, retries
    included; batch_size: most images per request, or fewer by the server's max_images. ValueError
    where no reward server answers at the start. Later failures raise RuntimeError, and a search
    loses the scores of that batch. Redirects are not followed.
    """

    runs_on = ELSEWHERE

    def __init__(
        self, url: str, *, name: str | None = None, timeout: float = 120.0, batch_size: int = 16
    ) -> None:
        refuse_credentials(url)
        try:
            where = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise ValueError(f"{without_queries(url)!r} is no address: {error}") from None
        read_key(KEY)  # refused at the start, if at all
        if (
            where.scheme not in ("http", "https")
            or not where.host
            or not 0 < (where.port or 80) < 2**16
        ):
            got = without_queries(url)
            raise ValueError(
                f"a reward's address starts with http:// or https:// and a host, got {got!r}"
            )
        if not timeout > 0 or batch_size < 1:
            raise ValueError(
                f"timeout must be positive and batch_size at least 1, got {timeout} and"
                f" {batch_size}"
            )
        self.url = url
        self.timeout = timeout
        self.shown = str(where.copy_with(query=None, fragment=None))
        try:
            about = self._ask(None, 0)
        except RuntimeError as error:
            raise ValueError(
                f"no reward server at {self.shown}: {error}; start one with ttsnap serve-reward"
            ) from error
        label = about.get("name")
        most = about.get("max_images", batch_size)
        if not isinstance(label, str) or not 0 < len(label) <= 200 or not label.isprintable():
            wrong = f"must give a printable text of at most 200 characters as name{_got(label)}"
            raise ValueError(f"the server at {self.shown} {wrong}")
        if type(most) is not int or most < 1:
            wrong = f"must give a whole number, at least 1, as max_images{_got(most)}"
            raise ValueError(f"the server at {self.shown} {wrong}")
        self.name = name or label
        self.batch_size = min(batch_size, most)

    def __call__(
        self, images: Tensor, prompts: Sequence[str], level: Tensor | None = None
    ) -> Tensor:
        """images (N, 3, H, W) in [0, 1], N prompts, level (N,) -> (N,) float32 on the CPU, nan
        where a score failed."""
        check_images(images)
        levels = [0.0] * len(images) if level is None else [float(x) for x in level]
        scores: list[Tensor] = []
        for i in range(0, len(images), self.batch_size):
            rows = slice(i, i + self.batch_size)
            pictures = encode_images(images[rows])
            body: dict[str, Json] = {
                "prompts": list(prompts[rows]),
                "levels": levels[rows],
                "images": pictures,
            }
            reply = self._ask(body, len(pictures)).get("scores")
            scores.append(self._read(reply, len(pictures)))
        return torch.cat(scores) if scores else torch.zeros(0)

    def _read(self, reply: Json, n: int) -> Tensor:
        """(n,) float32 of the scores in a reply. RuntimeError unless they are n finite numbers or
        nulls."""
        if not isinstance(reply, list) or len(reply) != n:
            raise RuntimeError(f"{self.shown} must reply {n} scores{_got(reply)}")
        for score in reply:
            if score is not None and (type(score) not in (int, float) or abs(score) > FLOAT32_MAX):
                raise RuntimeError(
                    f"{self.shown} must reply finite numbers or null as scores{_got(score)}"
                )
        return torch.tensor(
            [float("nan") if score is None else score for score in reply], dtype=torch.float32
        )

    def _ask(self, body: Mapping[str, Json] | None, scores: int) -> dict[str, Json]:
        """The JSON object of the server's reply. RuntimeError says what came instead."""
        data = None if body is None else json.dumps(body, ensure_ascii=False).encode()
        status, text = finished(self._exchange(data, REPLY_BYTES + SCORE_BYTES * scores))
        if status != 200:
            raise RuntimeError(f"{self.shown} refused with status {status}{_sentence(text)}")
        try:
            answer = parse_json(text, "the reply")
        except ValueError as error:
            raise RuntimeError(f"{self.shown} did not answer with JSON{_told(error)}") from None
        if not isinstance(answer, dict):
            raise RuntimeError(f"{self.shown} must answer with a JSON object{_got(answer)}")
        return answer

    async def _exchange(self, data: bytes | None, most: int) -> tuple[int, bytes]:
        """Status and body of the reply to one request, with retries within `timeout` seconds."""
        trouble = ""
        try:
            async with asyncio.timeout(self.timeout):
                with read_proxies():
                    client = httpx.AsyncClient(timeout=None, verify=_tls(), auth=_authorized)
                async with client:
                    for pause in PAUSES:
                        try:
                            status, text = await self._attempt(client, data, most)
                            if status != 503:
                                return status, text
                            trouble = f"; before that, it refused with status 503{_sentence(text)}"
                        except (httpx.NetworkError, httpx.RemoteProtocolError) as error:
                            trouble = f"; before that, the connection failed{_told(error)}"
                        await asyncio.sleep(pause * random.uniform(0.5, 1.5))
                    return await self._attempt(client, data, most)
        except TimeoutError:
            raise RuntimeError(
                f"{self.shown} did not answer within {self.timeout:g} s{trouble}"
            ) from None
        except httpx.ConnectError as error:
            raise RuntimeError(f"cannot connect to {self.shown}: {reason(error)}") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            broke = f"the connection to {self.shown} broke before its reply was whole"
            raise RuntimeError(f"{broke}{_told(error)}") from None

    async def _attempt(
        self, client: httpx.AsyncClient, data: bytes | None, most: int
    ) -> tuple[int, bytes]:
        method = "GET" if data is None else "POST"
        try:
            return await read_reply(
                client.stream(method, self.url, content=data, headers=HEADERS), most
            )
        except ValueError as error:
            raise RuntimeError(f"{self.shown} {error}") from None


async def read_reply(
    asked: AbstractAsyncContextManager[httpx.Response], most: int
) -> tuple[int, bytes]:
    """Status and body of a reply, as it was sent. ValueError for more bytes than `most`."""
    text = bytearray()
    async with asked as reply:
        async for part in reply.aiter_raw():
            text += part
            if len(text) > most:
                raise ValueError(f"replied more than {most:,} bytes")
    return reply.status_code, bytes(text)


def read_key(variable: str) -> str:
    """The key in a variable of the environment, stripped; "" without one.

    ValueError for a key that no HTTP header can hold, without the key, which a library's error
    would show.
    """
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ValueError(
            f"{variable} holds white space or characters that no key has; set it again, from its"
            " source"
        )
    return key


@contextmanager
def read_proxies() -> Iterator[None]:
    """A context in which a client is made, which reads the environment's proxies.

    ValueError without the proxy's password, part of which a library's error may show.
    """
    try:
        yield
    except OSError:  # of certificates, which hold no secret
        raise
    except Exception:
        # Of httpx and whatever the openai package has in its place; which ones, they do not say.
        named = "HTTP_PROXY, HTTPS_PROXY, ALL_PROXY or NO_PROXY"
        raise ValueError(
            f"{named} holds no address that can be read, as http://HOST:PORT; characters such as /"
            " and @ in a name or a password are written %2F and %40"
        ) from None


def _authorized(request: httpx.Request) -> httpx.Request:
    if key := read_key(KEY):
        basic = "Basic " + base64.b64encode(key.encode()).decode()
        request.headers["Authorization"] = basic if ":" in key else f"Bearer {key}"
    return request


def _told(error: Exception) -> str:
    """An exception's reason, or its type alone where it may quote a server that has the key."""
    return f": {type(error).__name__ if read_key(KEY) else reason(error)}"


def _got(value: Json) -> str:
    """A value of a reply for a message; nothing where the server has the key."""
    return "" if read_key(KEY) else f", got {value!r:.80}"


def _sentence(text: bytes) -> str:
    """The printable sentence of an error reply; nothing where the server has the key."""
    if read_key(KEY):
        return ""
    try:
        said = str(parse_object(text, "it")["error"])
    except (ValueError, KeyError, TypeError):
        said = text.decode(errors="replace")
    return f": {printable(said[:300])}"


def finished(work: Coroutine[None, None, T]) -> T:
    """The result of a coroutine on the event loop of all clients. Ctrl-C cancels it."""
    future = asyncio.run_coroutine_threadsafe(work, _loop())
    try:
        return future.result()
    finally:
        future.cancel()


@lru_cache(maxsize=1)
def _loop() -> asyncio.AbstractEventLoop:
    """The event loop of all clients, in a thread of its own.

    There a deadline interrupts any wait, even for a reply that comes byte by byte, and clients work
    beside another loop, as in a notebook.
    """
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="reward clients", daemon=True).start()
    return loop


if sys.platform != "win32":
    # A forked process has the loop, but not its thread.
    os.register_at_fork(after_in_child=_loop.cache_clear)


@lru_cache(maxsize=1)
def _tls() -> ssl.SSLContext:
    """The TLS context, made once: making one takes longer than a small request."""
    return httpx.create_ssl_context()


def encode_images(images: Tensor) -> list[str]:
    """(N, 3, H, W) in [0, 1] -> PNGs in base64. The images leave their device together."""
    return [_encoded(picture) for picture in to_pictures(images)]


def _encoded(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", compress_level=1)
    return base64.b64encode(buffer.getvalue()).decode()
