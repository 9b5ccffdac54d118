"""Settings of a judge, without secrets: the key stays in the environment."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from annotated_types import Interval

from ttsnap.files.settings import Count, Natural, NotNegative, Positive, Rule, Settings, build
from ttsnap.reward_models.http import read_key

MODEL = "TTSNAP_JUDGE_MODEL"
BASE_URL = "OPENAI_BASE_URL"
KEY = "OPENAI_API_KEY"
"""Variables of the environment. The last two are those of the openai package."""
OPENAI = "https://api.openai.com/v1"
"""The server where neither an option nor the environment names one."""


Printable = Annotated[
    str,
    Rule(
        "a printable text of at most 300 characters",
        lambda text: len(text) <= 300 and text.isprintable(),
    ),
]


@dataclass(frozen=True)
class JudgeOptions(Settings):
    """Which model judges, and how. ValueError for values out of bounds.

    model, base_url: "" for TTSNAP_JUDGE_MODEL and OPENAI_BASE_URL. concurrency: most questions in
    parallel. timeout: seconds for a question with its retries, without the wait for its turn.
    retries: of a question, with the pauses of the openai package, where the server is full or
    fails. detail: of images, as the API has it. temperature, answer_tokens: of answers in words (a
    rubric's); some models allow a temperature of 1 only, and those that think first need thousands
    of tokens. image_tokens: most tokens of a question for each of its images, text and answer
    included: a budget in tokens charges this much beforehand. cache: folder of known scores, "" for
    the user's own, "none" for none; cache_entries: most scores in it. price_in, price_out: per
    million tokens of questions and of answers, for `usage`. rounds: comparisons for each image of a
    tournament.
    """

    model: Printable = ""
    base_url: Printable = ""
    concurrency: Annotated[int, Interval(ge=1, le=1000)] = 8
    timeout: Positive = 60.0
    retries: Annotated[int, Interval(ge=0, le=100)] = 2
    detail: Literal["auto", "low", "high"] = "auto"
    temperature: Annotated[float, Interval(ge=0, le=2)] = 0.0
    answer_tokens: Count = 300
    image_tokens: Count = 2000
    cache: str = ""
    cache_entries: Natural = 100_000
    price_in: NotNegative = 0.0
    price_out: NotNegative = 0.0
    rounds: Positive = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.base_url:
            _check_address("base_url", self.base_url)

    @classmethod
    def parse(cls, text: str) -> JudgeOptions:
        """Read "model=NAME,concurrency=4". ValueError for what cannot be read."""
        values: dict[str, str | int | float] = {}
        for part in filter(None, text.split(",")):
            name, equals, value = (piece.strip() for piece in part.partition("="))
            if "key" in name.lower() or name.lower() == "token":
                raise ValueError(
                    f"a key is no option of a judge, as options are written to files; set {KEY}"
                    " instead"
                )
            if not equals or name in values:
                shown = "" if "@" in text else f" {text!r:.200}"  # that may be part of a password
                raise ValueError(
                    f"cannot read the judge's options{shown}; write them as model=NAME,retries=4"
                )
            values[name] = _plain(value)
        return build(cls, values, "judge.")

    def filled(self) -> JudgeOptions:
        """With the environment's model and server where these options name none.

        ValueError where no model is named, OpenAI's own server lacks a key, or the key cannot be
        one.
        """
        model = self.model or os.environ.get(MODEL, "")
        base_url = self.base_url or os.environ.get(BASE_URL, "")
        if not model:
            raise ValueError(
                f"a judge needs the name of a model: set {MODEL}, or write judge:yes:model=NAME"
            )
        if base_url:
            _check_address(BASE_URL, base_url)
        if not read_key(KEY) and not base_url:
            raise ValueError(
                f"{OPENAI} wants a key: set {KEY}, or {BASE_URL} where another server is to be"
                " asked"
            )
        return dataclasses.replace(self, model=model, base_url=base_url or OPENAI)

    @property
    def cache_folder(self) -> Path | None:
        """The folder of the cache, None without one."""
        if self.cache == "none" or not self.cache_entries:
            return None
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        return Path(self.cache) if self.cache else home / "ttsnap" / "judge"


def _check_address(name: str, url: str) -> None:
    """ValueError unless it is the http address of a server, without a name, password or key in
    it."""
    if "@" in url or "?" in url:
        raise ValueError(
            f"{name} holds a name, a password or a query, which would show in messages; set {KEY}"
            " instead"
        )
    try:
        parts = urlsplit(url)
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 80) > 0
    except ValueError:
        raise ValueError(
            f"{name} is no address that can be read; write it like http://localhost:8000/v1"
        ) from None
    if not fits:
        raise ValueError(
            f"{name} starts with http:// or https:// and a host, as {OPENAI}, got {url!r:.80}"
        )


def _plain(text: str) -> str | int | float:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
