"""A prompt with all that belongs to it alone, from the doors to the denoiser."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Prompt:
    """One prompt of a search.

    Prompts that differ in all of this share batches. Equal calls with other prompts are for one
    engine.
    """

    text: str
    """What the model reads."""
    reward_text: str | None = None
    """What rewards read, where that is another text."""
    negative: str | None = None
    """The negative prompt; None: that of the call. Some pipelines have no second pass of guidance
    without one."""
    inputs: Mapping[str, object] = field(default_factory=dict, hash=False)
    """Arguments of the pipeline's call that are given for this prompt alone, by name: pictures, a
    mask."""

    @classmethod
    def of(cls, prompt: str | Prompt) -> Prompt:
        """A prompt as users give it."""
        return prompt if isinstance(prompt, Prompt) else cls(str(prompt))

    @property
    def read(self) -> str:
        """What rewards read. A search draws by this text and its seed."""
        return self.text if self.reward_text is None else self.reward_text


PRIVATE = "private"
"""The attribute of a log record with texts that a service's log leaves out."""


def private(*prompts: Prompt) -> dict[str, list[str]]:
    """For `extra` of a log record whose error may quote these prompts."""
    texts = {
        text
        for prompt in prompts
        for text in (prompt.text, prompt.reward_text, prompt.negative)
        if text
    }
    return {PRIVATE: sorted(texts, key=len, reverse=True)}
