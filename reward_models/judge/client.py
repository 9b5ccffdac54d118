"""The client of a judge: questions to an OpenAI-compatible server in parallel, and a cache of
scores."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from ttsnap.extras import install
from ttsnap.files.reading import read_object
from ttsnap.files.settings import Json
from ttsnap.files.writing import write_json
from ttsnap.reward_models.http import finished, read_key, read_proxies
from ttsnap.reward_models.judge.options import BASE_URL, KEY, MODEL, OPENAI, JudgeOptions
from ttsnap.reward_models.judge.questions import Question, parse_answer, read_reply, read_usage

try:
    import openai
except ImportError as missing:
    raise ValueError(f"a judge needs the openai package ({missing}): {install('judge')}") from None

logger = logging.getLogger(__name__)
REPLY_BYTES = 2**20
ENTRY_BYTES = 1000
"""Most bytes of a reply, and of an entry of the cache."""
MEANT = {
    401: f": the key is not accepted; check {KEY}",
    403: f": the key may not ask this model; check {KEY} and {MODEL}",
    404: f": there is no such model or address; check {MODEL} and {BASE_URL}",
    429: (
        ": too many questions, or no credit left; lower concurrency, raise retries, or look at your"
        " account"
    ),
}
"""What a status means for a judge. No message quotes a server: it may repeat the key that it was
sent."""


class Judgement(NamedTuple):
    """The answer to one question. scores: one for each thing that it asks, nan where it failed;
    tokens: that it took; error: why it failed."""

    scores: tuple[float, ...]
    tokens: int
    error: str | None = None


@dataclass
class Usage:
    """What a judge took so far."""

    answered: int = 0
    """Replies."""
    known: int = 0
    """Scores from the cache."""
    failed: int = 0
    """Questions without a score."""
    question_tokens: int = 0
    answer_tokens: int = 0
    money: float = 0.0
    """By the prices of the options, in their currency."""


class Client:
    """A client of the server and the model that the options name, or the environment
    (`JudgeOptions.filled`)."""

    def __init__(self, options: JudgeOptions) -> None:
        self.options = options.filled()
        folder = self.options.cache_folder
        self.cache = Cache(folder, options.cache_entries) if folder is not None else None
        self.usage = Usage()
        # OpenAI's own server wants the newer name, which many others do not know.
        ours = urlsplit(self.options.base_url).hostname == urlsplit(OPENAI).hostname
        self._most = "max_completion_tokens" if ours else "max_tokens"

    def ask(self, questions: Sequence[Question]) -> list[Judgement]:
        """A verdict for each question; equal ones are asked once, and the second pays nothing."""
        o = self.options
        tokens = self._most, o.answer_tokens
        bodies = [question.body(o.model, o.detail, o.temperature, tokens) for question in questions]
        keys = [key_of(body, o.base_url) for body in bodies]
        found: dict[str, Judgement] = {}
        for key, question in zip(keys, questions, strict=True):
            scores = (
                self.cache.get(key, question.answer.low, question.answer.high)
                if self.cache
                else None
            )
            if scores is not None:
                found[key] = Judgement(scores, 0)
        self.usage.known += sum(key in found for key in keys)
        new: dict[str, int] = {}
        for at, key in enumerate(keys):
            if key not in found:
                new.setdefault(key, at)
        verdicts = (
            finished(self._all([(questions[at], bodies[at]) for at in new.values()])) if new else []
        )
        for key, verdict in zip(new, verdicts, strict=True):
            found[key] = verdict
            if self.cache and verdict.error is None:
                self.cache.put(key, verdict.scores)
        return [
            found[key] if new.get(key, at) == at else found[key]._replace(tokens=0)
            for at, key in enumerate(keys)
        ]

    async def _all(self, questions: Sequence[tuple[Question, dict[str, Json]]]) -> list[Judgement]:
        o = self.options
        turns = asyncio.Semaphore(o.concurrency)
        with read_proxies():
            # images go to the user's server only
            http = openai.DefaultAsyncHttpxClient(
                follow_redirects=False, event_hooks={"response": [_close_error]}
            )
        key = read_key(KEY) or "none"  # the package wants one, servers of one's own mostly do not
        async with openai.AsyncOpenAI(
            api_key=key,
            base_url=o.base_url,
            timeout=o.timeout,
            max_retries=o.retries,
            http_client=http,
            default_headers={"Accept-Encoding": "identity"},  # what is compressed has no bound
        ) as client:

            async def one(question: Question, body: dict[str, Json]) -> Judgement:
                async with turns:
                    return await self._one(client, question, body)

            return await asyncio.gather(*(one(question, body) for question, body in questions))

    async def _one(
        self, client: openai.AsyncOpenAI, question: Question, body: dict[str, Json]
    ) -> Judgement:
        """One question, and further attempts where the openai package makes some."""
        text = b""
        try:
            async with asyncio.timeout(self.options.timeout):
                text = await _reply(client, body)
        except TimeoutError:
            return self._failed(f"gave no answer within {self.options.timeout:g} s", 0)
        except openai.APIStatusError as error:
            return self._failed(
                f"refused with status {error.status_code}{MEANT.get(error.status_code, '')}", 0
            )
        except (
            Exception
        ) as error:  # whatever the package or the connection raises costs this score only
            # By its type alone: its words may quote the server, or a header.
            what = type(error.__cause__ or error).__name__
            return self._failed(
                f"could not be asked ({what}); is there a server at {self.options.base_url}?", 0
            )
        tokens = most = self.options.image_tokens * max(1, len(question.images))
        if len(text) > REPLY_BYTES:
            return self._failed(f"replied more than {REPLY_BYTES:,} bytes", 0)
        try:
            reply = parse_answer(text, "the reply")
            counted = read_usage(reply)
            self.usage.answered += 1
            if counted is not None:
                tokens, (question_tokens, answer_tokens) = sum(counted), counted
                self.usage.question_tokens += question_tokens
                self.usage.answer_tokens += answer_tokens
                money = (
                    question_tokens * self.options.price_in + answer_tokens * self.options.price_out
                )
                self.usage.money += money / 1e6
            if tokens > most:
                logger.warning(
                    "%s took %d tokens for a question, above image_tokens=%d an image; raise it",
                    self.options.model,
                    tokens,
                    self.options.image_tokens,
                )
            return Judgement(read_reply(reply, question.answer), tokens)
        except ValueError as error:
            return self._failed(f"gave an answer that cannot be used: {error}", tokens)

    def _failed(self, why: str, tokens: int) -> Judgement:
        """A verdict without a score."""
        self.usage.failed += 1
        return Judgement((float("nan"),), tokens, f"{self.options.model} {why}")


async def _close_error(reply: Any) -> None:
    """Close an error reply unread: the package would read all of it, and nothing quotes it."""
    if not reply.is_success:
        await reply.aclose()


async def _reply(client: openai.AsyncOpenAI, body: dict[str, Json]) -> bytes:
    """The bytes of a successful reply, one more than REPLY_BYTES at least where there are too
    many."""
    text = bytearray()
    asking = client.chat.completions.with_streaming_response
    async with asking.create(model="", messages=[], extra_body=body) as reply:
        async for part in reply.http_response.aiter_raw():
            text += part
            if len(text) > REPLY_BYTES:
                break
    return bytes(text)


def key_of(body: Mapping[str, Json], server: str) -> str:
    """The SHA-256 of a request and its server: images, text, model and template."""
    return hashlib.sha256(json.dumps([server, body], sort_keys=True).encode()).hexdigest()


class Cache:
    """At most `most` scores in a folder, a small file for each; the oldest are removed first.

    Several processes may share a folder. Entries that cannot be read or written are ignored: a
    cache must not cost a score.
    """

    def __init__(self, folder: Path, most: int) -> None:
        self.folder = folder
        self.most = most
        self._files: int | None = None

    def get(self, key: str, low: float, high: float) -> tuple[float, ...] | None:
        """The scores under a key, if there are some between `low` and `high`."""
        with contextlib.suppress(ValueError, OSError):
            held = read_object(self._path(key), most=ENTRY_BYTES).get("score")
            scores = [
                float(score)
                for score in (held if isinstance(held, list) else [held])
                if isinstance(score, int | float) and not isinstance(score, bool)
            ]
            if len(scores) == (len(held) if isinstance(held, list) else 1) and scores:
                return tuple(scores) if all(low <= score <= high for score in scores) else None
        return None

    def put(self, key: str, scores: tuple[float, ...]) -> None:
        """Remember finite scores."""
        assert all(map(math.isfinite, scores))
        path = self._path(key)
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, {"score": scores[0] if len(scores) == 1 else [*scores]})
            self._files = len(self._entries()) if self._files is None else self._files + 1
            if self._files > self.most:
                self._shorten()

    def _shorten(self) -> None:
        """Remove the oldest entries, and a tenth more, so that the next entries need no removal."""
        entries = sorted(self._entries(), key=_written)
        kept = self.most - self.most // 10
        for path in entries[: len(entries) - kept]:
            with contextlib.suppress(OSError):
                path.unlink()
        self._files = min(len(entries), kept)

    def _entries(self) -> list[Path]:
        """The entries alone: a folder may hold other files, and links to other places."""
        folders = [folder for folder in self.folder.glob(2 * "[0-9a-f]") if not folder.is_symlink()]
        paths = [
            path
            for folder in folders
            for path in folder.glob(f"{folder.name}{62 * '[0-9a-f]'}.json")
        ]
        return [path for path in paths if path.is_symlink() or path.is_file()]

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"


def _written(path: Path) -> float:
    """When a file was written; 0 where another process has removed it since."""
    with contextlib.suppress(OSError):
        return path.lstat().st_mtime
    return 0.0
