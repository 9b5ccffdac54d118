"""What a call gives its text encoders beside the prompts: further texts, embeddings, options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ttsnap.pipelines.rows import first, texts


@dataclass(frozen=True)
class Given:
    """Arguments of a pipeline's `encode_prompt`, by name.

    texts: one for all prompts or a list with one a prompt; a "prompt" among them stands in place of the prompts (the
    negative one, where a family encodes it by a call of its own). embeds: tensors, or lists with a tensor a prompt,
    "prompt_embeds" first of all; None where there are none. options: passed as they are.
    """

    texts: Mapping[str, str | list[str] | None]
    embeds: Mapping[str, Any]
    options: Mapping[str, Any]

    @property
    def checked(self) -> str | None:
        """What stands for the prompts where a pipeline checks its inputs: embeddings take no prompt beside them."""
        return None if self.embeds["prompt_embeds"] is not None else ""

    @property
    def alike(self) -> bool:
        """Whether all prompts get the same beside themselves."""
        lists = any(isinstance(value, list) for value in self.texts.values())
        return not lists and all(value is None for value in self.embeds.values())

    def arguments(self, prompts: Sequence[str]) -> dict[str, Any]:
        """For these prompts, or for all embeddings in their place. ValueError where a text or embedding is missing."""
        given = self.embeds["prompt_embeds"]
        n = len(prompts) if given is None else len(given)
        return {
            "prompt": list(prompts) if given is None else None,
            **{name: texts(value, n) for name, value in self.texts.items()},
            **{name: first(value, n) for name, value in self.embeds.items()},
            **self.options,
        }
