"""Questions to a judge, and scores in its answers. An answer is untrusted data: checked, and never
quoted in a message, since a server may repeat the key that it was sent, whole, in parts or encoded.

The question of "yes" is VQAScore's (Lin et al., arXiv 2404.01291, `QUESTION` in vqa.py). VQAScore
is P("Yes") over the whole vocabulary. An API shows the likeliest tokens only, so the score here is
P(Yes) / (P(Yes) + P(No)), over all ways to write them. The rubric, the question about two images
and that about several statements are ttsnap's own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ttsnap.files.reading import parse_object
from ttsnap.files.settings import Json

TOP = 20
"""Likeliest first tokens of an answer with their log-probabilities: the most that common servers
give."""
ROUNDED = 1e-3
"""A log-probability exceeds 0 by this at most: servers round."""
MOST = 10
"""The best mark of a rubric; the worst is 0."""
CRITERIA = {
    "objects": "everything that the prompt names is there, and nothing that it excludes",
    "attributes": (
        "colours, materials, sizes and styles are those of the prompt, each on the right object"
    ),
    "counts": "there are as many of each object as the prompt says",
    "relations": "positions, actions and relations are those of the prompt",
    "quality": "the image is free of artefacts, broken shapes and unreadable text",
}
"""The criteria of the rubric, and how each is explained to the judge."""
RUBRIC = (
    "Judge how well this image fits the prompt below. Give a whole number from 0 (not at all) to"
    " {most} (perfectly) for each of these criteria, and be strict:\n{criteria}\nThe prompt:"
    " {prompt}"
)
PAIR = (
    'Which of these two images shows "{prompt}" better? Please answer with a single letter: A for'
    " the first image, B for the second."
)

EACH = (
    "Does this figure show each of these?\n{listed}\nPlease answer with {number} words, each yes or"
    " no, in this order, separated by spaces, and write nothing else."
)


@dataclass(frozen=True)
class Either:
    """The probability of one word against another as the first token: p(first) / (p(first) +
    p(second)), in float64."""

    first: str = "yes"
    second: str = "no"
    low = 0.0
    high = 1.0

    def fields(self, most_tokens: int) -> tuple[int, dict[str, Json]]:
        """Most tokens of the answer, given those allowed for words, and further fields of the
        request."""
        return 1, {"logprobs": True, "top_logprobs": TOP}

    def read(self, choice: Mapping[str, Json]) -> tuple[float, ...]:
        """The scores in an entry of the reply's `choices`. ValueError says what is wrong with the
        entry."""
        return (self.at(_said(choice)[0]),)

    def at(self, place: Mapping[str, Json]) -> float:
        """The score at one place of an answer's tokens. ValueError says what is wrong with it."""
        likely = place.get("top_logprobs")
        if not isinstance(likely, list) or not likely:
            raise ValueError(_NO_LOGPROBS)
        p = {self.first: 0.0, self.second: 0.0}
        for entry in likely:
            token, logprob = _token(entry)
            word = token.strip().lower()
            if word in p:
                p[word] += math.exp(logprob)
        both = p[self.first] + p[self.second]
        if not both > 0:
            raise ValueError(
                f"neither {self.first} nor {self.second} is among its likeliest first tokens"
            )
        return p[self.first] / both


@dataclass(frozen=True)
class EitherEach:
    """As many of them, one after the other in one answer."""

    number: int
    either: Either = Either()
    low = 0.0
    high = 1.0

    def fields(self, most_tokens: int) -> tuple[int, dict[str, Json]]:
        return 4 * self.number, self.either.fields(most_tokens)[1]

    def read(self, choice: Mapping[str, Json]) -> tuple[float, ...]:
        words = self.either.first, self.either.second
        places = [
            place
            for place in _said(choice)
            if str(place.get("token")).strip(" \n\t,.;").lower() in words
        ]
        if len(places) != self.number:
            raise ValueError(
                f"it must hold {self.number} answers of {' or '.join(words)}, got {len(places)}"
            )
        return tuple(self.either.at(place) for place in places)


@dataclass(frozen=True)
class Marks:
    """The mean of marks from 0 to MOST for each criterion, in a JSON object by a schema."""

    criteria: tuple[str, ...]
    low = 0.0
    high = float(MOST)

    def fields(self, most_tokens: int) -> tuple[int, dict[str, Json]]:
        mark: dict[str, Json] = {"type": "integer", "enum": list(range(MOST + 1))}
        schema: dict[str, Json] = {
            "type": "object",
            "properties": dict.fromkeys(self.criteria, mark),
            "required": list(self.criteria),
            "additionalProperties": False,
        }
        held: dict[str, Json] = {"name": "marks", "strict": True, "schema": schema}
        return most_tokens, {"response_format": {"type": "json_schema", "json_schema": held}}

    def read(self, choice: Mapping[str, Json]) -> tuple[float, ...]:
        message = _mapping(choice, "message")
        text = message.get("content")
        if isinstance(refusal := message.get("refusal"), str) and refusal:
            raise ValueError("the model refused to judge this image and prompt")
        if not isinstance(text, str):
            raise ValueError("its content must be a text")
        if choice.get("finish_reason") == "length":
            raise ValueError("it was cut off; raise answer_tokens")
        marks = parse_answer(text, "its content")
        if set(marks) != set(self.criteria):
            raise ValueError(f"it must hold marks for {', '.join(self.criteria)}, and nothing else")
        found: list[int] = []
        for name, mark in marks.items():
            if type(mark) is not int or not 0 <= mark <= MOST:
                raise ValueError(f"the mark for {name} must be a whole number from 0 to {MOST}")
            found.append(mark)
        return (sum(found) / len(found),)


Answer = Either | EitherEach | Marks
"""A kind of answer: the fields of the request that ask for it, its scores, and the range of
these."""


@dataclass(frozen=True)
class Question:
    """One question about images: PNGs in base64, in this order, before the text."""

    images: tuple[str, ...]
    text: str
    answer: Answer

    def body(
        self, model: str, detail: str, temperature: float, tokens: tuple[str, int]
    ) -> dict[str, Json]:
        """The request's body. tokens: the API's name for the most tokens of an answer, and that
        number for words."""
        name, most = tokens
        most, more = self.answer.fields(most)
        shown: list[Json] = [
            {
                "type": "image_url",
                "image_url": {"url": f"data:image/png;base64,{image}", "detail": detail},
            }
            for image in self.images
        ]
        message: Json = {"role": "user", "content": [*shown, {"type": "text", "text": self.text}]}
        return {
            "model": model,
            "messages": [message],
            "temperature": temperature,
            name: most,
            **more,
        }


def rubric(prompt: str, criteria: Mapping[str, str]) -> str:
    """The text that asks for marks of one image."""
    listed = "\n".join(f"- {name}: {meaning}" for name, meaning in criteria.items())
    return RUBRIC.format(most=MOST, criteria=listed, prompt=prompt)


def parse_answer(text: str | bytes, what: str) -> dict[str, Json]:
    """The JSON object in an answer; `what` names it. ValueError where it holds none that can be
    read."""
    try:
        return parse_object(text, what)
    except ValueError:  # whose words quote it
        raise ValueError(
            f"{what} must be a JSON object, whole and without a key that stands twice"
        ) from None


def read_reply(reply: Mapping[str, Json], answer: Answer) -> tuple[float, ...]:
    """The scores in the reply to a request. ValueError says what is wrong with it."""
    choices = reply.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict):
        raise ValueError("it must hold a list of choices")
    return answer.read(choice)


def read_usage(reply: Mapping[str, Json]) -> tuple[int, int] | None:
    """Tokens of the question and of the answer by the server's count; None where the reply has
    none."""
    usage = reply.get("usage")
    counts = (
        [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
        if isinstance(usage, dict)
        else []
    )
    whole = [count for count in counts if type(count) is int and 0 <= count < 10**9]
    return (whole[0], whole[1]) if len(whole) == 2 else None


def _mapping(holder: Mapping[str, Json], name: str) -> Mapping[str, Json]:
    value = holder.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError(f"its {name} must be an object")
    return value


_NO_LOGPROBS = "there are no logprobs in it; where a server does not tell them, ask by a rubric"


def _said(choice: Mapping[str, Json]) -> list[Mapping[str, Json]]:
    """The tokens of an answer with what else was likely at each, at least one."""
    content = _mapping(choice, "logprobs").get("content")
    found = content if isinstance(content, list) else []
    places = [place for place in found if isinstance(place, dict)]
    if not places or len(places) < len(found):
        raise ValueError(_NO_LOGPROBS)
    return [*places]


def _token(entry: Json) -> tuple[str, float]:
    """A token and its log-probability."""
    if isinstance(entry, dict):
        token = entry.get("token")
        logprob = entry.get("logprob")
        known = isinstance(token, str) and not isinstance(logprob, bool)
        if known and isinstance(logprob, int | float) and logprob <= ROUNDED:
            return str(token), float(logprob)
    raise ValueError("a log-probability must be a token with a number of at most 0")
