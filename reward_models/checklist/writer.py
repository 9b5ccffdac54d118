"""The questions of a prompt, written by a model behind an OpenAI-compatible API: one call a prompt,
kept in the cache of judges. What it answers is untrusted data: checked, never quoted.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ttsnap.files.reading import read_object
from ttsnap.files.settings import Json
from ttsnap.files.writing import write_json
from ttsnap.reward_models.checklist.questions import MOST, Item, questions
from ttsnap.reward_models.judge.client import Client
from ttsnap.reward_models.judge.options import JudgeOptions
from ttsnap.reward_models.judge.questions import Question, parse_answer

logger = logging.getLogger(__name__)
KNOWN = 1000
"""Prompts whose items are remembered."""
LETTERS = 200
"""Of a question at most."""
ASK = (
    "An image is to show the prompt below. List what must be seen in it, at most {most} statements,"
    " each of which a look at the image finds true or false: first which things are there and how"
    ' many ("exactly two dogs"), then their colours and other attributes, then their relations.'
    ' Write a text that is to be read in the image as "text: WORDS". Give with each statement the'
    " numbers, from 0, of the earlier ones without which it makes no sense.\nThe prompt: {prompt}"
)
_ITEM: dict[str, Json] = {
    "type": "object",
    "properties": {
        "statement": {"type": "string"},
        "needs": {"type": "array", "items": {"type": "integer"}},
    },
    "required": ["statement", "needs"],
    "additionalProperties": False,
}
_SCHEMA: dict[str, Json] = {
    "type": "object",
    "properties": {"statements": {"type": "array", "items": _ITEM}},
    "required": ["statements"],
    "additionalProperties": False,
}


class Statements:
    """An answer with statements, which `read` leaves in `found`; its score is their number."""

    low = 1.0
    high = float(MOST)

    def __init__(self) -> None:
        self.found: tuple[Item, ...] = ()

    def fields(self, most_tokens: int) -> tuple[int, dict[str, Json]]:
        """As of `judge.questions.Either`."""
        held: dict[str, Json] = {"name": "statements", "strict": True, "schema": _SCHEMA}
        return most_tokens, {"response_format": {"type": "json_schema", "json_schema": held}}

    def read(self, choice: Mapping[str, Json]) -> tuple[float, ...]:
        """The number of statements in an entry of the reply's `choices`. ValueError says what is
        wrong with it."""
        message = choice.get("message")
        text = message.get("content") if isinstance(message, dict) else None
        if not isinstance(text, str):
            raise ValueError("its content must be a text")
        self.found = read_items(parse_answer(text, "its content"))
        return (float(len(self.found)),)


def read_items(held: Mapping[str, Json]) -> tuple[Item, ...]:
    """The items in {"statements": [{"statement": ..., "needs": [...]}]}, at most MOST. ValueError,
    without quoting them, for what is none."""
    listed = held.get("statements")
    if not isinstance(listed, list) or not listed:
        raise ValueError("it must hold a list of statements")
    found: list[Item] = []
    for place, one in enumerate(listed[:MOST]):
        text, needs = (one.get("statement"), one.get("needs")) if isinstance(one, dict) else (0, 0)
        if not isinstance(text, str) or len(text) > LETTERS or not isinstance(needs, list):
            raise ValueError(f"a statement has at most {LETTERS} letters, and a list of needs")
        if any(type(need) is not int or not 0 <= need < place for need in needs):
            raise ValueError("statements need earlier ones only")
        try:
            item = Item.parse(text)
        except ValueError:
            raise ValueError("it holds a statement that cannot be asked") from None
        found.append(replace(item, needs=tuple(int(str(need)) for need in needs)))
    return tuple(found)


class Writer:
    """Prompt -> items, by the model that these options name, as of a judge; by the grammar where it
    fails, which the log says."""

    def __init__(self, options: JudgeOptions) -> None:
        """ValueError where no model is named."""
        self.client = Client(replace(options, cache="none"))
        folder = options.cache_folder
        self.folder = None if folder is None else folder / "checklists"
        self._lock = threading.Lock()
        self._known = functools.lru_cache(KNOWN)(self._written)

    def __call__(self, prompt: str) -> tuple[Item, ...]:
        with self._lock:  # so that no prompt is asked for twice at once
            return self._known(prompt)

    def _written(self, prompt: str) -> tuple[Item, ...]:
        path = self._path(prompt)
        if path is not None:
            with contextlib.suppress(ValueError, OSError):
                return read_items(read_object(path))
        answer = Statements()
        question = Question((), ASK.format(most=MOST, prompt=prompt), answer)  # type: ignore[arg-type]
        (verdict,) = self.client.ask([question])
        if verdict.error is not None:
            logger.warning("%s; the grammar makes the checklist of this prompt", verdict.error)
            return questions(prompt)
        if path is not None:
            with contextlib.suppress(OSError):
                path.parent.mkdir(parents=True, exist_ok=True)
                write_json(path, _plain(answer.found))
        return answer.found

    def _path(self, prompt: str) -> Path | None:
        """Where the items of a prompt are kept."""
        if self.folder is None:
            return None
        options = self.client.options
        key = json.dumps([options.base_url, options.model, ASK, prompt])
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()}.json"


def _plain(items: tuple[Item, ...]) -> dict[str, Json]:
    return {"statements": [{"statement": str(item), "needs": list(item.needs)} for item in items]}
