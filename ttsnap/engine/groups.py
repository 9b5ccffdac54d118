"""Seeds that begin in groups: which were evaluated, and what they have for particles that begin
later."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from ttsnap.core.memory import NotEnoughMemoryError, lacks_memory
from ttsnap.engine.store import Node
from ttsnap.sampling.denoiser import GroupStart
from ttsnap.sampling.kernels import KernelState

LANE = -1
"""That of rows whose particles begin with their groups."""
Begun = tuple[Tensor, KernelState]
Drawn = Callable[[Node], tuple[Tensor, torch.Generator]]
"""The initial noise of a node, and the generator that drew it."""


class Groups:
    """Of the jobs of one engine. A group is evaluated whole, when the first of its seeds is to
    begin."""

    def __init__(self, start: GroupStart) -> None:
        self.start = start
        self._ready: dict[tuple[int, int], dict[int, Begun]] = {}  # by job and first seed; by place

    def forget(self, job: int | None = None) -> None:
        """The groups of a job, or all."""
        self._ready = (
            {}
            if job is None
            else {key: ready for key, ready in self._ready.items() if key[0] != job}
        )

    def has(self, node: Node) -> bool:
        """Whether the group of a fresh seed was evaluated."""
        return not node.mixed_in and _group(node) in self._ready

    def begin(
        self, nodes: Sequence[Node], drawn: Drawn, cond: Callable[[Sequence[Node]], Tensor]
    ) -> tuple[int, int]:
        """Evaluate the group of the first of these particles whose group was not, and let all begin
        that can; returns the evaluations, and how many of them were coupled. A particle from mixed
        noise begins alone. cond: as in Denoiser.

        One group at a time: it is one call of the network, whatever else waits.
        """
        new = next((node for node in nodes if not self.has(node)), None)
        group = [] if new is None else [new] if new.mixed_in else self._members(new)
        for node, begun in zip(
            group, self._evaluated(group, drawn, cond) if group else (), strict=True
        ):
            if node.mixed_in:
                node.latent, node.kernel_state = begun
            else:
                self._ready.setdefault(_group(node), {})[node.place] = begun
        for node in filter(self.has, nodes):
            node.latent, node.kernel_state = self._ready[_group(node)].pop(node.place)
        evaluations = self.start.nfe * len(group)
        return evaluations, 0 if new is None or new.mixed_in else evaluations

    def _members(self, node: Node) -> list[Node]:
        """The group of a fresh seed."""
        job, first = _group(node)
        return [
            Node(job, (first + place) % 2**64, 0, place=place) for place in range(self.start.size)
        ]

    def _evaluated(
        self, group: Sequence[Node], drawn: Drawn, cond: Callable[[Sequence[Node]], Tensor]
    ) -> Iterable[Begun]:
        """The latents at step 0 of these, which are coupled, and what the kernel keeps for each."""
        noise, generators = zip(*map(drawn, group), strict=True)
        keys = [node.key for node in group]
        try:
            latents, states = self.start.begin(
                torch.stack(noise), cond(group), keys, list(generators)
            )
        except Exception as error:
            if not lacks_memory(error):
                raise
            raise NotEnoughMemoryError(
                f"the {len(group)} seeds of a group are one call of the network, for which there is"
                " too little memory; take smaller groups, as variety repel:4"
            ) from None
        return zip(latents, states, strict=True)


def _group(node: Node) -> tuple[int, int]:
    """The job and the first seed of a fresh seed's group."""
    return node.job, (node.seed - node.place) % 2**64
