"""A search as it is asked for at a door that strangers reach, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from ttsnap.core.prompt import Prompt
from ttsnap.core.protocols import Algorithm
from ttsnap.files.pictured import opened
from ttsnap.loop.budget import Budget
from ttsnap.options.option import values
from ttsnap.request.spec import EngineSpec

AlgorithmSpec: TypeAlias = str | Mapping[str, object] | Algorithm
"""What make_algorithm takes. From a stranger, only what `ttsnap.request.searches.search_of` let pass."""


@dataclass(frozen=True)
class OfferedSearch:
    """An algorithm, with its options. label: equal for equal ones."""

    label: str
    spec: AlgorithmSpec = field(compare=False)


@dataclass(frozen=True)
class SearchRequest:
    """Everything in it is checked but the prompt, which the model may still refuse."""

    prompt: Prompt
    model: str
    """By the name that its users know."""
    engine: EngineSpec
    """What searches of other prompts may share. Its rewards go by the names that are offered."""
    search: OfferedSearch
    budget: Budget
    seed: int
    keep: int = 1
    """Images to return."""
    report: tuple[str, ...] = ()
    """Rewards that only score the returned images."""
    notes: tuple[str, ...] = ()
    """What is told of a search that runs otherwise than it was asked for."""

    @property
    def call(self) -> dict[str, Any]:
        """Arguments of the pipeline's call, the prompt's own among them."""
        own = {} if self.prompt.negative is None else {"negative_prompt": self.prompt.negative}
        return {**self.engine.call, **own, **self.prompt.inputs}

    @property
    def arguments(self) -> dict[str, Any]:
        """The call of a search pipeline that runs it."""
        search = {
            "prompt": [self.prompt.text],
            "search": self.search.spec,
            "reward": list(self.engine.rewards),
            "report": list(self.report) or None,
            "budget": self.budget,
            "seed": self.seed,
            "num_images_per_prompt": self.keep,
        }
        return {**search, **values(self.engine.sampler), **opened(self.call)}

    def worded(self, text: str) -> SearchRequest:
        """The same with another text, as that in the model's own words."""
        return replace(self, prompt=replace(self.prompt, text=text))
