"""What text encoders read besides the prompts, and the encoded prompts that are kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import pad

from ttsnap.core.prompt import Prompt

NEGATIVE = ("negative_prompt", "prompt")
"""The names of negative prompts among the texts: "prompt" in a call that encodes them alone."""


@dataclass(frozen=True)
class EncoderInputs:
    """Arguments of a pipeline's `encode_prompt`, by name."""

    texts: Mapping[str, str | list[str] | None]
    """One for all prompts, or a list with one for each. A "prompt" among them replaces the
    prompts."""
    embeds: Mapping[str, Any]
    """Tensors, or lists with a tensor for each prompt, or None. "prompt_embeds" is always there."""
    options: Mapping[str, Any]
    """Passed unchanged."""

    @classmethod
    def of(cls, call: Mapping[str, Any], **options: Any) -> Self:
        """The texts and embeddings among the arguments of a stock call, by their names."""
        named = {
            name: value for name, value in call.items() if "prompt" in name and name not in options
        }
        embeds = {
            name: value for name, value in named.items() if name.endswith(("_embeds", "_mask"))
        }
        # Stock calls take an empty text for a second or third encoder as none.
        texts = {
            n: v or None if n[-1].isdigit() else v for n, v in named.items() if n not in embeds
        }
        return cls(texts, embeds, options)

    @classmethod
    def both(cls, call: Mapping[str, Any], **options: Any) -> tuple[Self, Self]:
        """The positive and the negative inputs, for pipelines that encode them by two calls."""
        positive = {name: value for name, value in call.items() if not name.startswith("negative_")}
        negative = {
            name.removeprefix("negative_"): call[name] for name in call if name not in positive
        }
        return cls.of(positive, **options), cls.of(negative, **options)

    @property
    def checked(self) -> str | None:
        """The prompt with which a pipeline checks its inputs: none beside embeddings."""
        return None if self.embeds["prompt_embeds"] is not None else ""

    @property
    def alike(self) -> bool:
        """Whether all prompts have the same texts, and no embeddings."""
        lists = any(isinstance(value, list) for value in self.texts.values())
        return not lists and all(value is None for value in self.embeds.values())

    def arguments(self, prompts: Sequence[Prompt], n: int | None = None) -> dict[str, Any]:
        """The arguments for these prompts, or for embeddings in their place. n: how many texts
        without embeddings. ValueError where a text or embedding is missing, and for prompts with
        pictures."""
        given = self.embeds["prompt_embeds"]
        n = (n or len(prompts)) if given is None else len(given)
        if own := sorted({name for prompt in prompts for name in prompt.inputs}):
            raise ValueError(
                f"prompts have {', '.join(own)} of their own, and this pipeline makes images from"
                " texts alone; leave the pictures out, or load it for a task that takes them"
            )
        return {
            "prompt": [prompt.text for prompt in prompts] if given is None else None,
            **{name: self._texts(name, value, prompts, n) for name, value in self.texts.items()},
            **{name: first(value, n) for name, value in self.embeds.items()},
            **self.options,
        }

    def _texts(
        self, name: str, value: str | list[str] | None, prompts: Sequence[Prompt], n: int
    ) -> list[str] | None:
        """A text for each of n prompts: its own negative prompt, where it has one, or that of the
        call."""
        given = texts(value, n)
        own = [prompt.negative for prompt in prompts] if name in NEGATIVE else []
        if all(text is None for text in own):
            return given
        if given is None or len(own) != n:
            raise ValueError(
                "prompts have negative ones of their own, and this call is for none; give"
                " negative_prompt"
            )
        return [usual if text is None else text for usual, text in zip(given, own, strict=True)]


Parts: TypeAlias = "Sequence[Tensor | None]"
"""What a pipeline's encode_prompt returns for P prompts: tensors (P, ...), or None where it makes
none."""


class Encodings:
    """The encoded prompts of one denoiser, in a family with `encodes_apart`."""

    def __init__(self) -> None:
        self._rows: dict[Prompt, tuple[Tensor | None, ...]] = {}

    def __call__(
        self, prompts: Sequence[Prompt], encode: Callable[[Sequence[Prompt]], Parts]
    ) -> Parts:
        """What encode(prompts) returns. Only prompts that the last call did not have are encoded;
        others are forgotten.

        Where none is known, all are encoded in one call, as in the stock call.
        """
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._rows]
        if len(new) == len(set(prompts)):
            parts = encode(prompts)
            self._rows = _by_prompt(prompts, parts)
            return parts
        known = self._rows | (_by_prompt(new, encode(new)) if new else {})
        self._rows = {prompt: known[prompt] for prompt in prompts}
        return [
            _stacked(column) for column in zip(*(known[prompt] for prompt in prompts), strict=True)
        ]


def joined(parts: Sequence[Any], shared: int = 0) -> list[Any]:
    """What was encoded for some prompts at a time, as for all at once: encoders that pad to the
    longest pad by zeros.

    shared: how many fields, which are the last, are the same for all prompts.
    """
    if len(parts) == 1:
        return list(parts[0])
    fields = list(zip(*parts, strict=True))
    own = fields[: len(fields) - shared]
    return [*(_field(each, fields[0]) for each in own), *(each[0] for each in fields[len(own) :])]


def _field(parts: Sequence[Any], texts: Sequence[Any]) -> Any:
    """One field of all prompts. A mask that is None is one of no padding. texts: the field that is
    never None."""
    if isinstance(parts[0], list):
        return [row for part in parts for row in part]
    if all(part is None for part in parts) and len({text.shape[1] for text in texts}) == 1:
        return None
    pairs = zip(parts, texts, strict=True)
    there = [
        text.new_ones(text.shape[:2], dtype=torch.long) if part is None else part
        for part, text in pairs
    ]
    most = max(part.shape[1] for part in there)
    return torch.cat(
        [pad(part, [0, 0] * (part.ndim - 2) + [0, most - part.shape[1]]) for part in there]
    )


def _by_prompt(prompts: Sequence[Prompt], parts: Parts) -> dict[Prompt, tuple[Tensor | None, ...]]:
    """The rows of each prompt, copied, since those of others may be forgotten sooner."""
    rows = (
        tuple(None if part is None else part[i].clone() for part in parts)
        for i in range(len(prompts))
    )
    return dict(zip(prompts, rows, strict=True))


def _stacked(rows: Sequence[Tensor | None]) -> Tensor | None:
    there = [row for row in rows if row is not None]
    return torch.stack(there) if there else None


def texts(value: str | Sequence[str] | None, n: int) -> list[str] | None:
    """One text for each of n prompts, from one for all or the first n of a list. ValueError for a
    shorter list."""
    if value is None:
        return None
    if not isinstance(value, str) and len(value) < n:
        raise ValueError(f"{len(value)} texts for {n} prompts: {value!r}")
    return [value] * n if isinstance(value, str) else list(value)[:n]


def first(embeds: Any, n: int) -> Any:
    """The embeddings, a tensor or a list of tensors, of the first n prompts, as FLOPs are counted
    with one. ValueError for fewer."""
    if embeds is not None and len(embeds) < n:
        raise ValueError(f"embeddings of {len(embeds)} prompts for {n} prompts")
    return None if embeds is None else embeds[:n]


def tokens(embeds: Any) -> int | None:
    """The tokens of embeddings: a tensor (P, L, D), or a list of (L, D), of which the first
    counts."""
    if embeds is None or not len(embeds):
        return None
    return int(embeds.shape[1]) if isinstance(embeds, Tensor) else len(embeds[0])
