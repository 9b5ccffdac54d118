"""The models that the demo runs: one at a time is kept, and one search at a time runs on it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Judge = Callable[[Any], bool | None]


def nobody_knows(prompt: str, name: str) -> Judge:
    """The judge of models whose images nobody can tell right or wrong."""
    return lambda image: None


@dataclass
class Models:
    """Loads models by name and keeps the last one.

    load(name) gives a search pipeline, load(name, task=...) one for pictures, defaults(name) the call arguments that it
    recommends, canonical(prompt, name) the prompt in the model's own words; each raises ValueError. judge(prompt, name)
    gives a function that says whether an image (3, H, W) in [0, 1] is strictly right, for marks on the page; None where
    nobody can tell.
    `lock` is held by the search that runs.
    """

    load: Callable[..., Any]
    defaults: Callable[[str], Mapping[str, Any]]
    canonical: Callable[[str, str], str]
    judge: Callable[[str, str], Judge] = nobody_knows
    lock: threading.Lock = field(default_factory=threading.Lock)
    _name: tuple[str, str | None] | None = None
    _pipe: Any = None

    def pipeline(self, name: str, task: str | None = None) -> Any:
        """The model, for texts or for a task with pictures; call it with the lock held. The one before is let go first,
        so that both need not fit."""
        if self._name != (name, task):
            self._name, self._pipe = None, None
            self._pipe = self.load(name) if task is None else self.load(name, task=task)
            self._pipe.set_progress_bar_config(disable=True)
            self._name = name, task
        return self._pipe
