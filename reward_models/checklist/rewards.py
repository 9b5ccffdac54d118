"""A checklist as rewards: one with a column for each item, which answers all at once.

    pipe(prompt, reward=Checklist(["two dogs", "the left dog is red", "text: OPEN"]))
    pipe(prompt, reward="checklist by judge:yes:model=qwen3-vl")

So answers stay apart like any scores: in recordings, traces, metadata and replays each has its
name. `core.utility.product` makes one number of them.

An item that cannot be answered costs that answer: it is nan, the others stay, and the image is
ranked last, as with any reward that fails. Whether it has all is not known then.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ttsnap.core.arrays import FloatArray, IntArray
from ttsnap.core.checklist import YES, ItemReward, ListReward
from ttsnap.core.memory import lacks_memory
from ttsnap.core.protocols import Reward
from ttsnap.core.utility import product
from ttsnap.reward_models.checklist.questions import MOST, TEXT, Item, questions
from ttsnap.reward_models.checklist.worlds import ScenesAnswers, SignsAnswers
from ttsnap.reward_models.ocr import OCR, similarity
from ttsnap.reward_models.preprocess import check_images
from ttsnap.reward_models.registry import make_reward
from ttsnap.rewards.reward_model import RewardModel, adapted
from ttsnap.rewards.scoring import as_float64
from ttsnap.scenes import IMAGE_SIZE

logger = logging.getLogger(__name__)
KNOWN = 1000
"""Prompts whose questions are remembered."""
SCENES = "scenes"
SIGNS = "signs"
"""Who answers about pictures of the packaged models."""
_MIDDLE = 25.0
_WIDTH = 1.5
"""CLIPScores (about 20 to 35 on real pairs) as answers: which one is half, and how fast they
turn. Nothing was fitted: CLIP is the last resort."""
Answers: TypeAlias = Callable[[str], tuple[Item, ...]]
"""The items of a prompt."""


class AnsweredBatch(NamedTuple):
    """What was found of a batch of images."""

    answers: FloatArray
    """(N, items) of each image, nan where one failed, 1 where nothing was asked."""
    tokens: IntArray
    """(N,) that the answers took."""
    errors: dict[int, Exception]
    """Of items, by place."""


class Checklist(RewardModel, ListReward):
    """Questions about images, and who answers them. As one reward, it is the product of its
    answers.

    items: what is to be there, each a line ("two dogs", "text: OPEN", "count: 3 apples"), or a
    function (images, prompts) -> answers in [0, 1]; None for those of each prompt. by: who answers
    lines, a reward with scores in [0, 1], as VQAScore or a judge (CLIPScores are squeezed into
    that); None for a packaged model's own pictures. written: makes the items of a prompt, by
    default the grammar of `questions.py`.

    ValueError for an empty list, an item that cannot be read, or two that are the same.
    """

    name = "checklist"
    example = "a red circle"

    def __init__(
        self,
        items: Sequence[str | Callable[..., Any]] | None = None,
        by: str | Reward | Callable[..., Any] | None = None,
        written: Answers = questions,
    ) -> None:
        self.fixed = None if items is None else [_read(item) for item in items]
        self.by = None if by is None else make_reward(by)
        self.written = written
        self.known = dict[str, tuple[Item | RewardModel, ...]]()
        if self.fixed is not None:
            names = [named(item) for item in self.fixed]
            if not names or len(set(names)) < len(names):
                raise ValueError(f"a checklist needs items, each once, got {names}")
        self._ocr: OCR | None = None
        self._worlds: dict[str, RewardModel] = {}

    def parts(self, prompts: Sequence[str]) -> tuple[ItemAnswers, ...]:
        """A reward for each item of a list, or for as many as the longest list of these prompts
        has. An engine joins them into one."""
        return tuple(map(self.item, range(self.length(prompts))))

    def item(self, place: int) -> ItemAnswers:
        """The reward for one item."""
        name = f"{self.name} {place + 1}" if self.fixed is None else named(self.fixed[place])
        return ItemAnswers(self, (place,), (name,))

    @property
    def every(self) -> ItemAnswers:
        """All items that a prompt may have."""
        count = len(self.fixed or range(MOST))
        return ItemAnswers(self, range(count), [self.name] * count)

    @property
    def runs_on(self) -> Any:  # type: ignore[override]
        return None if self.by is None else self.by.runs_on

    @property
    def tokens(self) -> int:  # type: ignore[override]
        return self.every.tokens

    @cached_property
    def flops(self) -> float:
        """FLOPs of as many items as a prompt may have."""
        return self.every.flops

    def trial_image(self) -> Tensor:
        who = self.by
        return torch.full((1, 3, *2 * [IMAGE_SIZE]), 0.4) if who is None else who.trial_image()

    def length(self, prompts: Sequence[str]) -> int:
        """The number of items of the longest list; the most where a model writes them, which is
        not asked for this."""
        if self.fixed is not None or self.written is not questions:
            return len(self.fixed or range(MOST))
        return max(len(self.items(prompt)) for prompt in prompts)

    def asks_of_models(self, prompts: Sequence[str]) -> bool:
        """Whether something is asked that neither an OCR nor an item of its own answers."""
        return any(
            isinstance(item, Item) and item.kind != TEXT
            for prompt in prompts
            for item in self.items(prompt)
        )

    def items(self, prompt: str) -> tuple[Item | RewardModel, ...]:
        """What is asked of images of this prompt."""
        if self.fixed is not None:
            return tuple(self.fixed)
        found = self.known.get(prompt) or tuple(self.written(prompt))
        if len(self.known) >= KNOWN:
            self.known.clear()
        self.known[prompt] = found
        return found

    def check(self, prompts: Sequence[str]) -> None:
        """ValueError for a question that cannot be answered."""
        for prompt in filter(None, prompts):
            for item in self.items(prompt):
                if isinstance(item, Item) and item.kind != TEXT and self.by is not None:
                    self.by.check([self._words(item)])

    def who(self, place: int) -> RewardModel | None:
        """Who answers an item; of items that the prompt makes, whoever is named."""
        item = None if self.fixed is None else self.fixed[place]
        if isinstance(item, RewardModel):
            return item
        return OCR() if item is not None and item.kind == TEXT else self.by

    def __call__(
        self, images: Tensor, prompts: Sequence[str], level: Tensor | None = None
    ) -> FloatArray:
        """images (N, 3, H, W) in [0, 1], N prompts -> (N,) float64."""
        self.tokens_taken = ()
        every = self.every
        answers = every(images, prompts).reshape(len(prompts), -1)
        self.tokens_taken = every.tokens_taken
        return product(answers)

    def answer(
        self, images: Tensor, prompts: Sequence[str], places: Sequence[int]
    ) -> AnsweredBatch:
        """The answers about images (N, 3, H, W) in [0, 1] at these places, and at those that they
        need."""
        check_images(images, prompts)
        lists = [self.items(prompt) for prompt in prompts]
        every = {(row, i) for row, items in enumerate(lists) for i in places if i < len(items)}
        while more := {need for pair in every for need in _needed(lists, *pair)} - every:
            every |= more
        width = 1 + max((*places, *(i for _, i in every)))
        answers = np.ones((len(prompts), width))
        found = AnsweredBatch(answers, np.zeros(len(prompts), int), {})
        for pair in every:
            found.answers[pair] = np.nan
        left = set(every)
        joins = self.by is not None and self.by.joins
        while left:  # first what needs nothing, then what that lets be asked
            ready = {pair for pair in left if joins or not left & _needed(lists, *pair)}
            if not ready:
                raise ValueError(f"items need each other in a circle: {_circle(lists, left)}")
            absent = {pair for pair in ready if _absent(found.answers, lists, *pair)}
            for pair in absent:
                found.answers[pair] = 0.0
            left -= ready
            for who, pairs in self._by_whom(images, lists, sorted(ready - absent)).items():
                self._ask(who, images, prompts, lists, pairs, found)
        for pair in sorted(every) if joins else ():
            if _absent(found.answers, lists, *pair):
                found.answers[pair] = 0.0
        return found

    def _by_whom(
        self,
        images: Tensor,
        lists: Sequence[Sequence[Item | RewardModel]],
        pairs: Sequence[tuple[int, int]],
    ) -> dict[RewardModel, list[tuple[int, int]]]:
        """These questions by who answers them, each of whom is called once."""
        found: dict[RewardModel, list[tuple[int, int]]] = {}
        for row, i in pairs:
            item = lists[row][i]
            who = item if isinstance(item, RewardModel) else self._reader(item, images)
            found.setdefault(who, []).append((row, i))
        return found

    def _reader(self, item: Item, images: Tensor) -> RewardModel:
        """Who answers an item."""
        if item.kind == TEXT:
            if self._ocr is None:
                line = images.shape[-2] == IMAGE_SIZE  # the world that writes, one line high
                self._ocr = OCR("line" if line else "picture")
            return self._ocr
        if self.by is not None:
            return self.by
        if images.shape[-2] != IMAGE_SIZE:
            raise ValueError(
                f"nobody is named to answer {str(item)!r}: write 'checklist by vqascore' or another"
                " reward with scores in [0, 1], in Python Checklist(items, by=reward)"
            )
        name = SCENES if images.shape[-1] == IMAGE_SIZE else SIGNS
        kinds = {SCENES: ScenesAnswers, SIGNS: SignsAnswers}
        return self._worlds.setdefault(name, kinds[name]())

    def _words(self, item: Item) -> str:
        """An item as whoever answers it is asked: a world's rules read it as it is written."""
        world = self.by is None or isinstance(self.by, ScenesAnswers | SignsAnswers)
        return str(item) if world else item.asked

    def _ask(
        self,
        who: RewardModel,
        images: Tensor,
        prompts: Sequence[str],
        lists: Sequence[Sequence[Item | RewardModel]],
        pairs: Sequence[tuple[int, int]],
        found: AnsweredBatch,
    ) -> None:
        """One call for all these questions, image after image; its answers go into `found`."""
        rows = [row for row, _ in pairs]
        places = tuple(zip(*pairs, strict=True))
        items = [lists[row][i] for row, i in pairs]
        try:
            if isinstance(who, OCR):
                answers = _read_texts(who, images, rows, items)
            else:
                words: dict[int, list[str]] = {}
                for row, item in zip(rows, items, strict=True):
                    asked = self._words(item) if isinstance(item, Item) else prompts[row]
                    words.setdefault(row, []).append(asked)
                those = images if len(words) == len(images) else images[list(words)]
                answers = as_float64(who.score_each(those, list(words.values())))
                if len(who.tokens_taken) == len(rows):
                    np.add.at(found.tokens, rows, who.tokens_taken)
            found.answers[places] = _squeezed(who.name, answers)
        except Exception as error:  # of a user's code: it costs these answers, and no others
            if lacks_memory(error):
                raise
            logger.debug("%s failed", who.name, exc_info=True)
            found.errors.update(dict.fromkeys([i for _, i in pairs], error))


class ItemAnswers(RewardModel, ItemReward):
    """The answers to items of a checklist, in [0, 1], a column each.

    places: of the items among those of the prompt; an image of a prompt with fewer has all that is
    asked there: 1. Of items that one question about an image asks, the first pays for all.
    """

    example = Checklist.example

    def __init__(self, given: Checklist, places: Sequence[int], names: Sequence[str]) -> None:
        self.given = given
        self.places = tuple(places)
        self.name, *self._others = names

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name, *self._others)

    def joined(self, other: RewardModel) -> RewardModel | None:
        if not isinstance(other, ItemAnswers) or other.given is not self.given:
            return None
        return ItemAnswers(self.given, self.places + other.places, self.names + other.names)

    @property
    def runs_on(self) -> Any:  # type: ignore[override]
        return self.given.runs_on

    def _priced(self) -> Iterator[tuple[RewardModel, bool]]:
        """Who answers each item, and whether a question about others has asked for it already."""
        known: list[RewardModel] = []
        for who in filter(None, map(self.given.who, self.places)):
            yield who, who.joins and who in known
            known.append(who)

    @property
    def tokens(self) -> int:  # type: ignore[override]
        return sum(who.tokens for who, paid in self._priced() if not paid)

    @cached_property
    def flops(self) -> float:
        return sum(who.flops_more if paid else who.flops for who, paid in self._priced())

    def trial_image(self) -> Tensor:
        return self.given.trial_image()

    def check(self, prompts: Sequence[str]) -> None:
        self.given.check(prompts)

    def asks(self, prompt: str) -> str | None:
        """What the first one asks of images of this prompt, in words; None for nothing."""
        items = self.given.items(prompt)
        return named(items[self.places[0]]) if self.places[0] < len(items) else None

    def __call__(
        self, images: Tensor, prompts: Sequence[str], level: Tensor | None = None
    ) -> FloatArray:
        """images (N, 3, H, W) in [0, 1], N prompts -> (N,), or with R names (N, R), float64."""
        self.tokens_taken = ()
        found = self.given.answer(images, prompts, self.places)
        self.tokens_taken = found.tokens.tolist()
        at = zip(self.places, self.names, strict=True)
        self.failures = {name: found.errors[i] for i, name in at if i in found.errors}
        answers = found.answers[:, self.places]
        if self.failures and np.isnan(answers).all():
            raise next(iter(self.failures.values()))
        return answers if len(self.names) > 1 else answers[:, 0]


def named(item: Item | RewardModel) -> str:
    """An item in words."""
    return item.name if isinstance(item, RewardModel) else str(item)


def _read(item: str | Callable[..., Any]) -> Item | RewardModel:
    return Item.parse(item) if isinstance(item, str) else adapted(item)


def _needed(
    lists: Sequence[Sequence[Item | RewardModel]], row: int, i: int
) -> set[tuple[int, int]]:
    item = lists[row][i]
    return {(row, need) for need in item.needs} if isinstance(item, Item) else set()


def _circle(
    lists: Sequence[Sequence[Item | RewardModel]], left: Iterable[tuple[int, int]]
) -> list[str]:
    return sorted({named(lists[row][i]) for row, i in left})


def _absent(
    answers: FloatArray, lists: Sequence[Sequence[Item | RewardModel]], row: int, i: int
) -> bool:
    """Whether something that an item needs is not there, so that it is not asked."""
    return any(answers[row, need] < YES for _, need in _needed(lists, row, i))


def _read_texts(
    ocr: OCR, images: Tensor, rows: Sequence[int], items: Sequence[Item | RewardModel]
) -> FloatArray:
    """4^-edits for the edits between each text and what is read: the answer is yes where none is
    needed. Every image is read once."""
    once = sorted(set(rows))
    read = dict(zip(once, ocr.read(images[once]), strict=True))
    whole = ocr.reads == "line"
    answers = []
    for row, item in zip(rows, items, strict=True):
        words = [word for line in read[row] for word in line.text.split()]
        assert isinstance(item, Item)
        letters = len("".join(item.words.split()))
        edits = round(letters * (1 - similarity([item.words], words, whole=whole)))
        answers.append(4.0**-edits)
    return np.array(answers)


def _squeezed(name: str, scores: FloatArray) -> FloatArray:
    """Scores as answers in [0, 1]."""
    if name in ("clip", "open_clip"):
        return np.asarray(1 / (1 + np.exp(-(scores - _MIDDLE) / _WIDTH)))
    if name.startswith("judge:rubric"):
        return scores / 10
    if (scores < -1e-6).any() or (scores > 1 + 1e-6).any():
        raise ValueError(
            f"{name} gives scores beyond 0 and 1, as {scores[(scores < 0) | (scores > 1)][0]:.4g};"
            " an item is answered by a probability, as of vqascore or judge:yes"
        )
    return scores.clip(0, 1)
