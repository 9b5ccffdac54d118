"""The models that come with ttsnap: where each lies, and the language of its prompts.

A packaged model draws a small world. The world is a module that reads and writes prompts, and says which of them
training never saw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from ttsnap import scenes, signs
from ttsnap.options.model import EMBEDDED, SIGNS, TURBO
from ttsnap.scenes import showcase


class World(Protocol):
    """What a packaged model draws, as a module."""

    @property
    def HARD_KINDS(self) -> tuple[str, ...]:  # noqa: N802
        """Kinds of prompt that few seeds get right."""

    def parse(self, text: str) -> Any:
        """What a prompt asks for. ValueError for words or a form that the model does not know."""

    def caption(self, spec: Any) -> str:
        """The one form of a prompt that the model was trained on."""

    def sample_prompts(self, n: int, seed: int, kinds: Sequence[str] = ...) -> list[str]:
        """`n` prompts that training never saw, balanced over `kinds`."""


@dataclass(frozen=True)
class Packaged:
    """A packaged model.

    Args:
        folder: its diffusers folder.
        world: what it draws.
        rewards: that read its pictures, besides those that read any.
        examples: prompts to begin with.
        report: the reward that is reported beside the model's own.
    """

    folder: Path
    world: World
    rewards: tuple[str, ...]
    examples: tuple[str, ...]
    report: str | None = None

    def canonical(self, text: str) -> str:
        """A prompt in the form that the model was trained on. ValueError for one that it cannot read."""
        return self.world.caption(self.world.parse(text))


_MANY_STEPS = Packaged(
    scenes.weights_path(),
    scenes,
    rewards=("scenes", "scenes-learned", "scenes-noise-aware"),
    examples=(showcase.PROMPT, "a green cross above a red square", "two red circles and a blue square"),
    report="scenes-strict",
)
MODELS = {
    EMBEDDED: _MANY_STEPS,
    TURBO: replace(_MANY_STEPS, folder=scenes.turbo_path()),
    SIGNS: Packaged(
        signs.weights_path(),
        signs,
        rewards=("ocr:line",),
        examples=(
            'a red sign that says "MUSIC"',
            'a blue sign that says "HARBOR" in white',
            'a yellow sign that says "COFFEE"',
        ),
    ),
}
