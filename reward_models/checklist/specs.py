"""Checklists and their items by name (core/checklist.py has the words)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from ttsnap.core.checklist import CHECK, NOBODY, item_of, read_list
from ttsnap.reward_models.checklist.questions import MOST, Item, questions
from ttsnap.reward_models.checklist.rewards import Answers, Checklist, ItemAnswers
from ttsnap.reward_models.checklist.worlds import check_item
from ttsnap.reward_models.registry import answered_by, make_reward
from ttsnap.rewards.reward_model import RewardModel

if TYPE_CHECKING:
    from ttsnap.reward_models.judge.options import JudgeOptions


def parts(spec: Any, prompts: Sequence[str], packaged: bool) -> tuple[Any, ...]:
    """The items that a search carries in place of a list; an item is its only one.

    packaged: whether the model is, so that its own world's rules answer. ValueError where nobody is
    named who answers, and for an item that cannot be read."""
    if not isinstance(spec, str):
        given = spec.given if isinstance(spec, ItemAnswers) else spec
        asked = given.asks_of_models(prompts)
        named = given.by is not None
        found: tuple[Any, ...] = (spec,) if isinstance(spec, ItemAnswers) else given.parts(prompts)
    elif spec.startswith(CHECK):
        item = _item(spec)
        named = bool(answered_by(spec))
        asked = item.kind != "text"
        found = (spec,)
    else:
        place, written, by = read_list(spec)
        asked = True
        named = bool(by)
        most = MOST if written else max(len(questions(prompt)) for prompt in prompts)
        found = tuple(item_of(spec, i) for i in range(most)) if place is None else (spec,)
    if asked and not named and not packaged:
        raise ValueError(
            "nobody is named who answers a checklist about this model's images; write --reward"
            " 'checklist by vqascore', 'checklist by judge:yes:model=NAME' or another reward with"
            " scores in [0, 1], in Python Checklist(items, by=...)"
        )
    if asked and not named and isinstance(spec, str) and spec.startswith(CHECK):
        check_item(str(_item(spec)))
    return found


def made(specs: Sequence[Any], **where: Any) -> list[tuple[RewardModel, ...]]:
    """The rewards of each list or item. Items share their list. A list without items of its own,
    whose length depends on the prompt, is one reward: the product."""
    lists: dict[tuple[str, str], Checklist] = {}
    texts: dict[str, list[str]] = {}
    for spec in specs:
        if isinstance(spec, str) and spec.startswith(CHECK):
            texts.setdefault(answered_by(spec), []).append(str(_item(spec)))
    checks = {by: Checklist(lines, _who(by, where)) for by, lines in texts.items()}
    found: list[tuple[RewardModel, ...]] = []
    for spec in specs:
        if isinstance(spec, ItemAnswers):
            found.append((spec,))
        elif isinstance(spec, Checklist):
            found.append((spec,) if spec.fixed is None else spec.parts(()))
        elif spec.startswith(CHECK):
            by = answered_by(spec)
            found.append((checks[by].item(texts[by].index(str(_item(spec)))),))
        else:
            at, written, by = read_list(spec)
            key = (by, written)
            if key not in lists:  # who answers is loaded once
                lists[key] = Checklist(None, _who(by, where), _writer(written))
            found.append((lists[key] if at is None else lists[key].item(at),))
    return found


def asks(spec: Any, prompt: str) -> str | None:
    """What an item asks of images of this prompt, in words; None for nothing."""
    if isinstance(spec, ItemAnswers):
        return spec.asks(prompt)
    if spec.startswith(CHECK):
        return str(_item(spec))
    place, written, _ = read_list(spec)
    items = _writer(written)(prompt)
    return str(items[place]) if place is not None and place < len(items) else None


def _item(spec: str) -> Item:
    by = answered_by(spec)
    return Item.parse(spec.removeprefix(CHECK).removesuffix(f" by {by or NOBODY}"))


def _who(by: str, where: dict[str, Any]) -> RewardModel | None:
    return make_reward(by, **where) if by else None


def _writer(options: str) -> Answers:
    """Who makes the questions of a prompt: a model behind an API, where one is named."""
    if not options:
        return questions
    from ttsnap.reward_models.judge.options import JudgeOptions

    return _shared_writer(JudgeOptions.parse(options).filled())


@functools.cache
def _shared_writer(options: JudgeOptions) -> Answers:
    """One for a process: who says afterwards what was asked must know the same items."""
    from ttsnap.reward_models.checklist.writer import Writer  # which needs the openai package

    return cast(Answers, Writer(options))
