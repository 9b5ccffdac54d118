"""Checklists among rewards, as users write them; reward_models/checklist asks and answers.

checklist                     the questions of each prompt
checklist by vqascore         the same, answered by this reward
check:two dogs by vqascore    one question, the same for all prompts
checklist#2 by vqascore       the second question of each prompt: an item as searches carry it
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, TypeAlias

Spec: TypeAlias = Any
"""A reward as a user gives it."""
CHECK = "check:"
LIST = "checklist"
NOBODY = "nobody"
"""Who answers an item whose words have a "by" of their own, where nobody is named: these words may
be a stranger's, and name no reward."""
YES = 0.5
"""From which probability on an answer is yes, as of a requirement without a number."""
_LIST = re.compile(r"checklist(#[1-9]\d*)?(:[^#]*?)?( by .+)?", re.DOTALL)


class ListReward:
    """A whole list as an object: what a search carries in its place are its `parts`."""


class ItemReward:
    """An item of a list as an object."""


def is_list(spec: Spec) -> bool:
    """Whether it is a whole list, whose items a search carries in its place."""
    found = _LIST.fullmatch(spec) if isinstance(spec, str) else None
    return isinstance(spec, ListReward) or (found is not None and found[1] is None)


def is_item(spec: Spec) -> bool:
    """Whether it is an item of a list."""
    if not isinstance(spec, str):
        return isinstance(spec, ItemReward)
    found = _LIST.fullmatch(spec)
    return spec.startswith(CHECK) or (found is not None and found[1] is not None)


def of_list(spec: Spec) -> bool:
    """Whether it is a list or an item of one."""
    return is_list(spec) or is_item(spec)


def read_list(spec: str) -> tuple[int | None, str, str]:
    """The place from 0 of an item, None for the whole list; who writes the questions, and who
    answers them, "" for the default. ValueError for what cannot be read."""
    found = _LIST.fullmatch(spec)
    if found is None:
        raise ValueError(
            f"cannot read {spec!r:.80}; write checklist, 'checklist by vqascore', or"
            " 'checklist:model=NAME by vqascore' where a model writes the questions"
        )
    place, written, by = (part or "" for part in found.groups())
    return int(place[1:]) - 1 if place else None, written[1:], by.removeprefix(" by ").strip()


def item_of(spec: str, place: int) -> str:
    """The item at a place, from 0, of a whole list."""
    return spec.replace(LIST, f"{LIST}#{place + 1}", 1)


def rewards_of(reward: Any, check: Sequence[str] = (), tie: Spec = None) -> tuple[Spec, ...]:
    """The rewards that a search is asked for. check: items in place of those of a `checklist`,
    which says who answers them. tie: what decides between images with the same answers.

    ValueError for a tie without a checklist."""
    many = tuple(reward) if isinstance(reward, list | tuple) else (reward,)
    given = tuple(one for one in many if one is not None)
    lists = [one for one in given if isinstance(one, str) and is_list(one)]
    if check:
        by = read_list(lists[0])[2] if lists else ""
        items = [f"{CHECK}{text} by {by or NOBODY}" for text in check]
        given = (*items, *(one for one in given if one not in lists))
    if tie is None:
        return given
    if not any(map(of_list, given)):
        raise ValueError(
            f"tie {tie} decides between images that a checklist finds alike, and there is none:"
            " give --check or --reward checklist"
        )
    return (*given, tie)
