"""The models that the demo runs: one at a time is kept, and one search at a time runs on it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Models:
    """Loads models by name and keeps the last one.

    load(name) gives a search pipeline, defaults(name) the call arguments that it recommends, canonical(prompt, name)
    the prompt in the model's own words; each raises ValueError. `lock` is held by the search that runs.
    """

    load: Callable[[str], Any]
    defaults: Callable[[str], Mapping[str, Any]]
    canonical: Callable[[str, str], str]
    lock: threading.Lock = field(default_factory=threading.Lock)
    _name: str = ""
    _pipe: Any = None

    def pipeline(self, name: str) -> Any:
        """The model; call it with the lock held. The one before is let go first, so that both need not fit."""
        if self._name != name:
            self._name, self._pipe = "", None
            self._pipe = self.load(name)
            self._pipe.set_progress_bar_config(disable=True)
            self._name = name
        return self._pipe
