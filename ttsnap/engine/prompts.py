"""The prompts of an engine's jobs, encoded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ttsnap.core.prompt import Prompt
from ttsnap.engine.store import Node
from ttsnap.sampling.denoiser import Denoiser


class OfJob(Protocol):
    """What belongs to a job, as a row of a move and a particle's latent do."""

    @property
    def job(self) -> int:
        """Its number."""


class EncodedPrompts:
    """Of the jobs of one engine, which come and go while it runs.

    A text encoder may pad its prompts to the longest one, so that what it gives for them belongs
    together: when jobs come, the denoiser encodes the prompts of all that there are. One whose
    encoder pads to a fixed length keeps those that it has. encode: has the denoiser encode the
    prompts of all engines on the same network, and calls `place` (SharedDenoiser.encode).
    """

    def __init__(self, denoiser: Denoiser, encode: Callable[[], None]) -> None:
        self.denoiser = denoiser
        self.encode = encode
        self.clear()

    def clear(self) -> None:
        """Forget all jobs; the next one has number 0."""
        self._next = 0
        self._prompts: dict[int, Prompt] = {}
        self._rows: dict[int, int] = {}

    @property
    def living(self) -> list[Prompt]:
        """The prompts of the jobs that there are."""
        return list(self._prompts.values())

    def admit(self, prompts: Sequence[Prompt]) -> None:
        """A job for each of these prompts, numbered on from the last one; none where they cannot be
        encoded."""
        before = self._prompts
        self._prompts = before | {self._next + i: prompt for i, prompt in enumerate(prompts)}
        try:
            self.encode()
        except Exception:
            self._prompts = before
            raise
        self._next += len(prompts)

    def retract(self, following: int) -> None:
        """Forget the jobs from this number on, which is that of the next one."""
        self._prompts = {job: prompt for job, prompt in self._prompts.items() if job < following}
        self._next = following

    def place(self, first: int) -> int:
        """They are encoded, in rows from `first` on; returns the row after the last."""
        self._rows = {job: row for row, job in enumerate(self._prompts, first)}
        return first + len(self._prompts)

    def release(self, job: int) -> None:
        """Forget a job, of which nothing is under way. Its encoded prompt goes when the next jobs
        come."""
        self._prompts.pop(job, None)

    def texts(self, items: Iterable[OfJob]) -> list[str]:
        """What rewards read of these rows or latents (N,)."""
        return [self._prompts[item.job].read for item in items]

    def rows(self, nodes: Sequence[Node]) -> Tensor:
        """Under which of the encoded conditions these latents are denoised (`cond` of Denoiser):
        (N,), long, on the CPU."""
        prompts = torch.tensor([self._rows[node.job] for node in nodes])
        return self.denoiser.conditions(prompts, [node.seed for node in nodes])
