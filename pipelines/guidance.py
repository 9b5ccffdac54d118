"""Classifier-free guidance: how one output is made of passes with the prompt and with the negative
prompt.

A guidance is a value that a denoiser holds. It is called with one pass of the network, a `Call`,
and the encoded prompts of both passes. Families differ in how the two passes go into calls
(`Paired`, `TwoCalls`, `Joined`). They also differ in how outputs are combined, and in the steps
that are guided.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self, TypeAlias

import torch
from torch import Tensor

Call: TypeAlias = Callable[..., Tensor]
"""(x (M, ...), t (M,), *texts of M rows) -> the network's output (M, ...)."""
Combine: TypeAlias = Callable[[Tensor, Tensor, float], Tensor]
"""(unconditional, conditional, scale) -> the guided output; all (N, ...)."""
Fields: TypeAlias = Sequence[Any]
"""Encoded prompts as the network reads them, each field with a row for every prompt (`take`)."""
Rows: TypeAlias = slice | list[int]
Outputs: TypeAlias = tuple[Tensor, Tensor]


SCALES = ("true_cfg_scale", "guidance_scale")
"""The arguments of stock calls with a guidance scale, that of two passes first."""


class Texts(NamedTuple):
    """The encoded prompts."""

    positive: Fields
    negative: Fields | None = None
    """Those of the negative prompts; None without guidance."""

    def each(self, change: Callable[[Fields], Fields]) -> Texts:
        """The same change of both."""
        return Texts(
            change(self.positive), None if self.negative is None else change(self.negative)
        )


def classifier_free(unconditional: Tensor, conditional: Tensor, scale: float) -> Tensor:
    """unconditional + scale * (conditional - unconditional)."""
    return unconditional + scale * (conditional - unconditional)


def as_long(unconditional: Tensor, conditional: Tensor, scale: float) -> Tensor:
    """`classifier_free`, scaled to the norm of the conditional output along the last dimension."""
    guided = classifier_free(unconditional, conditional, scale)
    norm, too_large = (torch.norm(out, dim=-1, keepdim=True) for out in (conditional, guided))
    rescaled: Tensor = guided * (norm / too_large)
    return rescaled


@dataclass(frozen=True)
class Guidance(ABC):
    """How an evaluation is guided, and how far."""

    scale: float = 1.0
    guided: bool = False
    """Whether there is a second pass."""
    combine: Combine = classifier_free
    """Of the outputs of both passes."""
    at: tuple[bool, ...] | None = None
    """Whether each position of the schedule is guided; None: all are. Prices count two passes for
    all."""

    @property
    def passes(self) -> int:
        """Forward passes of one evaluation."""
        return 2 if self.guided else 1

    def followed_by(self, other: Guidance) -> Self:
        """This guidance, for its own positions and then those of another call. ValueError where the
        two differ."""
        if (self.guided, self.scale) != (other.guided, other.scale):
            raise ValueError("calls share a network where they agree in size and guidance")
        return (
            self if self.at is None or other.at is None else replace(self, at=(*self.at, *other.at))
        )

    def __call__(
        self, call: Call, x: Tensor, t: Tensor, step: Tensor, texts: Texts, cond: Tensor
    ) -> Tensor:
        """The guided output for x (N, ...) at timesteps t (N,), positions step (N,) and rows cond
        (N,) of the texts."""
        rows = None if self.at is None else [i for i, k in enumerate(step.tolist()) if self.at[k]]
        positive = taken(texts.positive, cond)
        if not self.guided or texts.negative is None or rows == []:
            return call(x, t, *positive)
        if rows is None:
            conditional, unconditional = self.both(
                call, x, t, positive, taken(texts.negative, cond), slice(None)
            )
            return self.combine(unconditional, conditional, self.scale)
        out, unconditional = self.both(
            call, x, t, positive, taken(texts.negative, cond[rows]), rows
        )
        guided = self.combine(unconditional, out[rows], self.scale)
        return out.index_copy(0, torch.tensor(rows, device=out.device), guided)

    @abstractmethod
    def both(
        self, call: Call, x: Tensor, t: Tensor, positive: Fields, negative: Fields, rows: Rows
    ) -> Outputs:
        """The outputs with the prompts, for all rows, and with the negative prompts, for `rows`
        alone.

        positive: the encoded prompts of all rows; negative: the encoded negative prompts of `rows`.
        """


class Paired(Guidance):
    """One call of twice the rows: those with the negative prompt first, as in diffusers."""

    def both(
        self, call: Call, x: Tensor, t: Tensor, positive: Fields, negative: Fields, rows: Rows
    ) -> Outputs:
        out = call(torch.cat([x[rows], x]), torch.cat([t[rows], t]), *chained(negative, positive))
        n = len(x[rows])
        return out[n:], out[:n]


class TwoCalls(Guidance):
    """A call with the prompts, then one with the negative prompts."""

    def both(
        self, call: Call, x: Tensor, t: Tensor, positive: Fields, negative: Fields, rows: Rows
    ) -> Outputs:
        return call(x, t, *positive), call(x[rows], t[rows], *negative)


@dataclass(frozen=True)
class InCall(Guidance):
    """Guidance that a stock call, or the blocks of its loop, make by themselves."""

    count: int = 1
    """Passes, which are more than two where the network is perturbed as well."""

    @property
    def passes(self) -> int:
        return self.count

    def both(
        self, call: Call, x: Tensor, t: Tensor, positive: Fields, negative: Fields, rows: Rows
    ) -> Outputs:
        raise NotImplementedError


class Joined(Guidance):
    """One call: all rows with the prompts, then those whose step is guided, with the negative
    prompts."""

    def both(
        self, call: Call, x: Tensor, t: Tensor, positive: Fields, negative: Fields, rows: Rows
    ) -> Outputs:
        out = call(torch.cat([x, x[rows]]), torch.cat([t, t[rows]]), *chained(positive, negative))
        return out[: len(x)], out[len(x) :]


def take(encoded: Any, at: Tensor) -> Any:
    """Rows `at` (N,) of encoded prompts: of a tensor (P, ...), or of a list with one tensor a
    prompt; None stays."""
    if encoded is None:
        return None
    if isinstance(encoded, list):
        return [encoded[i] for i in at.tolist()]
    return encoded[at.to(encoded.device, non_blocking=True)]


def taken(fields: Fields, at: Tensor) -> list[Any]:
    """Rows `at` (N,) of each of these fields."""
    return [take(field, at) for field in fields]


def on(fields: Fields, device: torch.device) -> list[Any]:
    """These fields on a device."""
    each = [
        [row.to(device) for row in field] if isinstance(field, list) else field for field in fields
    ]
    return [field.to(device) if isinstance(field, Tensor) else field for field in each]


def bytes_of(fields: Fields) -> int:
    """What these fields take of memory."""
    return sum(row.nbytes for field in fields if field is not None for row in field)


def chained(first: Fields, second: Fields) -> list[Any]:
    """The rows of these fields, tensors or lists, then those of the others, as one batch."""
    return [
        a + b if isinstance(a, list) else None if a is None else torch.cat([a, b])
        for a, b in zip(first, second, strict=True)
    ]
