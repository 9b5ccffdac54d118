"""Classifier-free guidance: how the passes of a network, with the prompt and with the negative one, make an output.

A guidance is a value that a denoiser is given. It is called with one pass of the network, a `Call`, and the encoded
prompts of both passes. `Paired` makes both in one call of twice the rows, `TwoCalls` one after the other, `Joined` in
one call to which the rows that are guided add one more each.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self, TypeAlias

import torch
from torch import Tensor
from ttsnap.pipelines.latents.rows import chained, taken

Call: TypeAlias = Callable[..., Tensor]
"""(x (M, ...), t (M,), *texts of M rows) -> the network's output (M, ...)."""
Combine: TypeAlias = Callable[[Tensor, Tensor, float], Tensor]
"""(unconditional, conditional, scale) -> the guided output; all (N, ...)."""


class Texts(NamedTuple):
    """What the text encoders made of the prompts, and of the negative ones: each as many fields as the network reads,
    each field with a row for every prompt (rows.take). negative: None where nothing is guided."""

    positive: Sequence[Any]
    negative: Sequence[Any] | None = None

    def each(self, change: Callable[[Sequence[Any]], Sequence[Any]]) -> Texts:
        """Both, changed alike."""
        return Texts(change(self.positive), None if self.negative is None else change(self.negative))


class Guided(NamedTuple):
    """out (N, ...): what the sampler follows. estimate (N, ...): the output at the guidance at which estimates are
    scored, where that is another one."""

    out: Tensor
    estimate: Tensor | None = None


def classifier_free(unconditional: Tensor, conditional: Tensor, scale: float) -> Tensor:
    """unconditional + scale * (conditional - unconditional)."""
    return unconditional + scale * (conditional - unconditional)


def as_long(unconditional: Tensor, conditional: Tensor, scale: float) -> Tensor:
    """As `classifier_free`, at the length of the conditional output along the last dimension."""
    guided = classifier_free(unconditional, conditional, scale)
    norm, too_large = (torch.norm(out, dim=-1, keepdim=True) for out in (conditional, guided))
    rescaled: Tensor = guided * (norm / too_large)
    return rescaled


@dataclass(frozen=True)
class Guidance(ABC):
    """How far and how an evaluation is guided.

    scale: of guidance. guided: whether there is a second pass. combine: of the outputs of both. at: whether each
    position of the schedule is guided; None: all are. Prices count two passes for all. estimates: the scale at which
    estimates are scored; None: the same.
    """

    scale: float = 1.0
    guided: bool = False
    combine: Combine = classifier_free
    at: tuple[bool, ...] | None = None
    estimates: float | None = None

    @property
    def passes(self) -> int:
        """Forward passes of one evaluation."""
        return 2 if self.guided else 1

    def followed_by(self, other: Guidance) -> Self:
        """This one, for the positions of another call after its own. ValueError where the two guide otherwise."""
        if (self.guided, self.scale) != (other.guided, other.scale):
            raise ValueError("calls share a network where they agree in size and guidance")
        return self if self.at is None or other.at is None else replace(self, at=(*self.at, *other.at))

    def __call__(self, call: Call, x: Tensor, t: Tensor, step: Tensor, texts: Texts, cond: Tensor) -> Guided:
        """The guided output for x (N, ...) at times t (N,), positions step (N,) and rows cond (N,) of the texts."""
        rows = None if self.at is None else [i for i, k in enumerate(step.tolist()) if self.at[k]]
        if not self.guided or texts.negative is None or rows == []:
            return Guided(call(x, t, *taken(texts.positive, cond)))
        if rows is None:
            conditional, unconditional = self.both(call, x, t, texts, cond, slice(None))
            estimate = None if self.estimates is None else self.combine(unconditional, conditional, self.estimates)
            return Guided(self.combine(unconditional, conditional, self.scale), estimate)
        out, unconditional = self.both(call, x, t, texts, cond, rows)
        guided = self.combine(unconditional, out[rows], self.scale)
        return Guided(out.index_copy(0, torch.tensor(rows, device=out.device), guided))

    @abstractmethod
    def both(
        self, call: Call, x: Tensor, t: Tensor, texts: Texts, cond: Tensor, rows: slice | list[int]
    ) -> tuple[Tensor, Tensor]:
        """The network's outputs with the prompts, of all rows, and with the negative ones, of these rows."""


class Paired(Guidance):
    """One call: the rows with the negative prompt first, then those with the prompt, as diffusers does."""

    def both(
        self, call: Call, x: Tensor, t: Tensor, texts: Texts, cond: Tensor, rows: slice | list[int]
    ) -> tuple[Tensor, Tensor]:
        fields = chained(taken(texts.negative or (), cond[rows]), taken(texts.positive, cond))
        out, n = call(torch.cat([x[rows], x]), torch.cat([t[rows], t]), *fields), len(x[rows])
        return out[n:], out[:n]


class TwoCalls(Guidance):
    """A call with the prompts, then one with the negative prompts."""

    def both(
        self, call: Call, x: Tensor, t: Tensor, texts: Texts, cond: Tensor, rows: slice | list[int]
    ) -> tuple[Tensor, Tensor]:
        conditional = call(x, t, *taken(texts.positive, cond))
        return conditional, call(x[rows], t[rows], *taken(texts.negative or (), cond[rows]))


class Joined(Guidance):
    """One call: all rows with their prompts, then again those whose step is guided, with the negative ones."""

    def both(
        self, call: Call, x: Tensor, t: Tensor, texts: Texts, cond: Tensor, rows: slice | list[int]
    ) -> tuple[Tensor, Tensor]:
        fields = chained(taken(texts.positive, cond), taken(texts.negative or (), cond[rows]))
        out = call(torch.cat([x, x[rows]]), torch.cat([t, t[rows]]), *fields)
        return out[: len(x)], out[len(x) :]
