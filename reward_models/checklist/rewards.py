"""A checklist as rewards: one for each item, which share a list that answers all at once.

    pipe(prompt, reward=Checklist(["two dogs", "the left dog is red", "text: OPEN"]))
    pipe(prompt, reward="checklist by judge:yes:model=qwen3-vl")

So answers stay apart like any scores: in recordings, traces, metadata and replays each has its
name. `core.utility.product` makes one number of them.

An item that cannot be answered costs that answer: it is nan, the others stay, and the image is
ranked last, as with any reward that fails. Whether it has all is not known then.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ttsnap.core.arrays import FloatArray
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
SCENES, SIGNS = "scenes", "signs"
"""Who answers about pictures of the packaged models."""
_MIDDLE, _WIDTH = 25.0, 1.5
"""CLIPScores (about 20 to 35 on real pairs) as answers: which one is half, and how fast they
turn. Nothing was fitted: CLIP is the last resort."""
Answers: TypeAlias = Callable[[str], tuple[Item, ...]]
"""The items of a prompt."""


class AnsweredBatch(NamedTuple):
    """A batch of images and what was found of it."""

    images: Tensor
    prompts: tuple[str, ...]
    answers: FloatArray
    """(N, items) of each image, nan where an answer failed and beyond the prompt's items."""
    tokens: np.ndarray[Any, np.dtype[np.int64]]
    """(N, items) that the answers took."""
    errors: dict[int, Exception]
    """Of items, by place."""


class Checklist(ListReward):
    """Questions about images, and who answers them.

    items: what is to be there, each a line ("two dogs", "text: OPEN", "count: 3 apples"), or a
    function (images, prompts) -> answers in [0, 1]; None for those of each prompt. by: who answers
    lines, a reward with scores in [0, 1], as VQAScore or a judge (CLIPScores are squeezed into
    that); None for a packaged model's own pictures. written: makes the items of a prompt, by
    default the grammar of `questions.py`.

    ValueError for an empty list, an item that cannot be read, or two that are the same.
    """

    def __init__(
        self,
        items: Sequence[str | Callable[..., Any]] | None = None,
        by: str | Reward | Callable[..., Any] | None = None,
        written: Answers = questions,
    ) -> None:
        self.given = None if items is None else [_read(item) for item in items]
        self.by = None if by is None else make_reward(by)
        self.written, self.known = written, dict[str, tuple[Item | RewardModel, ...]]()
        if self.given is not None:
            names = [named(item) for item in self.given]
            if not names or len(set(names)) < len(names):
                raise ValueError(f"a checklist needs items, each once, got {names}")
        self._ocr: OCR | None = None
        self._worlds: dict[str, RewardModel] = {}
        self._last: AnsweredBatch | None = None
        self._left = 0
        self._lock = threading.RLock()

    def parts(self, prompts: Sequence[str]) -> tuple[ItemAnswer, ...]:
        """A reward for each item of a list, or for as many as the longest list of these prompts
        has."""
        if self.given is not None:
            return tuple(ItemAnswer(self, i, named(item)) for i, item in enumerate(self.given))
        return tuple(ItemAnswer(self, i) for i in range(self.length(prompts)))

    def length(self, prompts: Sequence[str]) -> int:
        """The number of items of the longest list; the most where a model writes them, which is
        not asked for this."""
        if self.written is not questions:
            return MOST
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
        if self.given is not None:
            return tuple(self.given)
        found = self.known.get(prompt) or tuple(self.written(prompt))
        if len(self.known) >= KNOWN:
            self.known.clear()
        self.known[prompt] = found
        return found

    def check(self, prompts: Sequence[str]) -> None:
        """ValueError for a question that cannot be answered."""
        for prompt in prompts:
            for item in self.items(prompt):
                if isinstance(item, Item) and item.kind != TEXT and self.by is not None:
                    self.by.check([self._words(item)])

    def answer(self, images: Tensor, prompts: Sequence[str], readers: int = 1) -> AnsweredBatch:
        """All answers about images (N, 3, H, W) in [0, 1]. Equal batches that follow each other are
        asked once. readers: how many rewards read them, after which they are forgotten."""
        with self._lock:
            last = self._last
            if (
                last is None
                or last.prompts != tuple(prompts)
                or last.images.shape != images.shape
                or not torch.allclose(last.images, images, 0, 0, equal_nan=True)
            ):
                last = self._asked(images, prompts)
                self._last, self._left = last, readers
            self._left -= 1
            if self._left <= 0:
                self._last = None
            return last

    def _asked(self, images: Tensor, prompts: Sequence[str]) -> AnsweredBatch:
        lists = [self.items(prompt) for prompt in prompts]
        width = max(map(len, lists), default=0)
        found = AnsweredBatch(
            images,
            tuple(prompts),
            np.full((len(prompts), width), np.nan),
            np.zeros((len(prompts), width), np.int64),
            {},
        )
        every = [(row, i) for row, items in enumerate(lists) for i in range(len(items))]
        left, joins = set(every), self.by is not None and self.by.joins
        while left:  # first what needs nothing, then what that lets be asked
            ready = sorted(pair for pair in left if joins or not left & _needed(lists, *pair))
            if not ready:
                raise ValueError(f"items need each other in a circle: {_circle(lists, left)}")
            absent = [pair for pair in ready if _absent(found.answers, lists, *pair)]
            for row, i in absent:
                found.answers[row, i] = 0.0
            asked = [pair for pair in ready if pair not in set(absent)]
            left -= set(ready)
            for who, pairs in self._by_whom(images, lists, asked).items():
                self._ask(who, images, lists, pairs, found)
        for row, i in every if joins else ():
            if _absent(found.answers, lists, row, i):
                found.answers[row, i] = 0.0
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
                    asked = self._words(item) if isinstance(item, Item) else found.prompts[row]
                    words.setdefault(row, []).append(asked)
                those = images if len(words) == len(images) else images[list(words)]
                answers = as_float64(who.score_each(those, list(words.values())))
                if len(who.tokens_taken) == len(rows):
                    found.tokens[places] = who.tokens_taken
            found.answers[places] = _squeezed(who.name, answers)
        except Exception as error:  # of a user's code: it costs these answers, and no others
            if lacks_memory(error):
                raise
            logger.debug("%s failed", who.name, exc_info=True)
            found.errors.update(dict.fromkeys([i for _, i in pairs], error))


class ItemAnswer(RewardModel, ItemReward):
    """The answer to one item of a checklist, in [0, 1].

    place: of the item among those of the prompt; an image of a prompt with fewer has all that is
    asked there: 1. None for all items at once: their product.
    """

    example = "a red circle"

    def __init__(self, given: Checklist, place: int | None, name: str = "") -> None:
        self.given, self.place = given, place
        self.name = name or ("checklist" if place is None else f"checklist {place + 1}")

    @property
    def runs_on(self) -> Any:  # type: ignore[override]
        return None if self.given.by is None else self.given.by.runs_on

    @cached_property
    def who(self) -> RewardModel | None:
        """Who is asked; of an item that the prompt makes, whoever is named."""
        item = None if self.given.given is None else self.given.given[self.place or 0]
        if isinstance(item, RewardModel):
            return item
        reads = isinstance(item, Item) and item.kind == TEXT
        return OCR() if reads else self.given.by

    @cached_property
    def pays_for(self) -> list[int]:
        """The places of the items whose questions this one pays: its own. Of items that one
        question about an image asks, the first pays for all."""
        if self.place is None or self.who is None or not self.who.joins:
            return [self.place or 0]
        asked = list(range(MOST))
        if self.given.given is not None:
            every = self.given.parts(())
            asked = [i for i, item in enumerate(every) if item.who is self.who]
        return asked if self.place == asked[0] else []

    @property
    def tokens(self) -> int:  # type: ignore[override]
        if self.place is None:
            return sum(item.tokens for item in self._items())
        return self.who.tokens if self.who is not None and self.pays_for else 0

    @cached_property
    def flops(self) -> float:
        """FLOPs of one question. All items at once have as many as a prompt may make."""
        if self.place is None:
            return sum(item.flops for item in self._items())
        if self.who is None:
            return 0.0
        return self.who.flops if self.pays_for else self.who.flops_more

    def _items(self) -> tuple[ItemAnswer, ...]:
        if self.given.given is not None:
            return self.given.parts(())
        return tuple(ItemAnswer(self.given, i) for i in range(MOST))

    def trial_image(self) -> Tensor:
        who = self.given.by
        return torch.full((1, 3, *2 * [IMAGE_SIZE]), 0.4) if who is None else who.trial_image()

    def check(self, prompts: Sequence[str]) -> None:
        self.given.check([prompt for prompt in prompts if prompt])

    def asks(self, prompt: str) -> str | None:
        """What is asked of images of this prompt, in words; None for nothing."""
        items = self.given.items(prompt)
        if self.place is None or self.place >= len(items):
            return None
        return named(items[self.place])

    def __call__(
        self, images: Tensor, prompts: Sequence[str], level: Tensor | None = None
    ) -> Tensor:
        """images (N, 3, H, W) in [0, 1], N prompts -> (N,) float64 on the CPU."""
        check_images(images, prompts)
        self.tokens_taken = ()
        lengths = np.array([len(self.given.items(prompt)) for prompt in prompts], int)
        if self.place is None:
            asked = self.given.answer(images, prompts)
            self.tokens_taken = asked.tokens.sum(1).tolist()
            rows = zip(asked.answers, lengths, strict=True)
            return torch.tensor([float(product(row[:n])) for row, n in rows], dtype=torch.float64)
        has = self.place < lengths
        column = np.ones(len(prompts))
        if has.any():
            asked = self.given.answer(images, prompts, readers=int(lengths.max()))
            column[has] = asked.answers[has, self.place]
            paid = [place for place in self.pays_for if place < lengths.max()]
            self.tokens_taken = asked.tokens[:, paid].sum(1).tolist()
            if self.place in asked.errors and np.isnan(column[has]).all():
                raise asked.errors[self.place]
        return torch.from_numpy(column)


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
