"""Asks an OpenAI-compatible server, by the openai package: many questions at once, within a time, each for a score."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import urlsplit

from ttsnap.reward_models.http import finished, read_key, read_proxies
from ttsnap.reward_models.judge.cache import Cache, key_of
from ttsnap.reward_models.judge.options import BASE_URL, KEY, MODEL, OPENAI, JudgeOptions
from ttsnap.reward_models.judge.questions import Question, parse_answer, read_reply, read_usage

from ttsnap.extras import install
from ttsnap.files.settings import Json

try:
    import openai
except ImportError as missing:
    raise ValueError(f"a judge needs the openai package ({missing}): {install('judge')}") from None

logger = logging.getLogger(__name__)
REPLY_BYTES = 2**20
"""Most bytes of a reply."""
MEANT = {
    401: f": the key is not accepted; check {KEY}",
    403: f": the key may not ask this model; check {KEY} and {MODEL}",
    404: f": there is no such model or address; check {MODEL} and {BASE_URL}",
    429: ": too many questions, or no credit left; lower concurrency, raise retries, or look at your account",
}
"""What a status means for a judge. A server's own words are never shown: they may repeat the key that it was sent."""


class Verdict(NamedTuple):
    """score: nan where the question failed; tokens: that it took; error: why it failed."""

    score: float
    tokens: int
    error: str | None = None


@dataclass
class Usage:
    """What a judge took so far. answered: replies that came; known: scores from the cache; failed: without a score.
    money: by the prices of the options, in their currency."""

    answered: int = 0
    known: int = 0
    failed: int = 0
    question_tokens: int = 0
    answer_tokens: int = 0
    money: float = 0.0


class Client:
    """Asks the server and the model that options name, or the environment (`JudgeOptions.filled`)."""

    def __init__(self, options: JudgeOptions) -> None:
        self.options = options.filled()
        folder = self.options.cache_folder
        self.cache = Cache(folder, options.cache_entries) if folder is not None else None
        self.usage = Usage()
        # OpenAI's own server wants the newer name, which many others do not know.
        ours = urlsplit(self.options.base_url).hostname == urlsplit(OPENAI).hostname
        self._most = "max_completion_tokens" if ours else "max_tokens"

    def ask(self, questions: Sequence[Question]) -> list[Verdict]:
        """A verdict for each question; equal ones are asked once, and the second pays nothing."""
        bodies = [self._body(question) for question in questions]
        keys = [key_of(body, self.options.base_url) for body in bodies]
        known: dict[str, Verdict] = {}
        for key, question in zip(keys, questions, strict=True):
            score = self.cache.get(key, question.answer.low, question.answer.high) if self.cache else None
            if score is not None:
                known[key] = Verdict(score, 0)
        self.usage.known += sum(key in known for key in keys)
        new: dict[str, int] = {}
        for at, key in enumerate(keys):
            if key not in known:
                new.setdefault(key, at)
        verdicts = finished(self._all([(questions[at], bodies[at]) for at in new.values()])) if new else []
        for key, verdict in zip(new, verdicts, strict=True):
            if self.cache and verdict.error is None:
                self.cache.put(key, verdict.score)
        found = known | dict(zip(new, verdicts, strict=True))
        return [found[key] if new.get(key, at) == at else found[key]._replace(tokens=0) for at, key in enumerate(keys)]

    def _body(self, question: Question) -> dict[str, Json]:
        o = self.options
        return question.body(o.model, o.detail, o.temperature, (self._most, o.answer_tokens))

    async def _all(self, asked: Sequence[tuple[Question, dict[str, Json]]]) -> list[Verdict]:
        o = self.options
        turns = asyncio.Semaphore(o.concurrency)
        with read_proxies():
            http = openai.DefaultAsyncHttpxClient(follow_redirects=False)  # images go to the user's server only
        key = read_key(KEY) or "none"  # the package wants one, servers of one's own mostly do not
        async with openai.AsyncOpenAI(
            api_key=key, base_url=o.base_url, timeout=o.timeout, max_retries=o.retries, http_client=http
        ) as client:

            async def one(question: Question, body: dict[str, Json]) -> Verdict:
                async with turns:
                    return await self._one(client, question, body)

            return await asyncio.gather(*(one(question, body) for question, body in asked))

    async def _one(self, client: openai.AsyncOpenAI, question: Question, body: dict[str, Json]) -> Verdict:
        """One question, and further attempts where the openai package makes some."""
        text = b""
        try:
            async with asyncio.timeout(self.options.timeout):
                text = await _reply(client, body)
        except TimeoutError:
            return self._failed(f"gave no answer within {self.options.timeout:g} s", 0)
        except openai.APIStatusError as error:
            return self._failed(f"refused with status {error.status_code}{MEANT.get(error.status_code, '')}", 0)
        except Exception as error:  # whatever the package or the connection raises costs this score only
            # By its type alone: its words may quote the server, or a header.
            what = type(error.__cause__ or error).__name__
            return self._failed(f"could not be asked ({what}); is there a server at {self.options.base_url}?", 0)
        tokens = most = self.options.image_tokens * len(question.images)
        if len(text) > REPLY_BYTES:
            return self._failed(f"replied more than {REPLY_BYTES:,} bytes", 0)
        try:
            reply = parse_answer(text, "the reply")
            counted = read_usage(reply)
            self.usage.answered += 1
            if counted is not None:
                tokens = sum(counted)
                self._pay(*counted)
            if tokens > most:
                logger.warning("%s took %d tokens for a question, above image_tokens=%d an image; raise it",
                               self.options.model, tokens, self.options.image_tokens)  # fmt: skip
            return Verdict(read_reply(reply, question.answer), tokens)
        except ValueError as error:
            return self._failed(f"gave an answer that cannot be used: {error}", tokens)

    def _pay(self, question: int, answer: int) -> None:
        self.usage.question_tokens += question
        self.usage.answer_tokens += answer
        self.usage.money += (question * self.options.price_in + answer * self.options.price_out) / 1e6

    def _failed(self, why: str, tokens: int) -> Verdict:
        """A verdict without a score."""
        self.usage.failed += 1
        return Verdict(float("nan"), tokens, f"{self.options.model} {why}")


async def _reply(client: openai.AsyncOpenAI, body: dict[str, Json]) -> bytes:
    """The bytes of a successful reply, one more than REPLY_BYTES at least where there are too many."""
    text = bytearray()
    asking = client.chat.completions.with_streaming_response
    async with asking.create(model="", messages=[], extra_body=body) as reply:
        async for part in reply.iter_bytes():
            text += part
            if len(text) > REPLY_BYTES:
                break
    return bytes(text)
