"""A denoiser as engines use it: one engine alone, or several that fill each other's batches."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch

from ttsnap.core.prompt import Prompt
from ttsnap.engine.noise import InitialNoise
from ttsnap.engine.store import Node
from ttsnap.sampling.denoiser import Denoiser


@dataclass(eq=False)
class Peer:
    """What one engine brings to a network."""

    noise: InitialNoise
    """Of its jobs, with their prompts."""
    stats: MutableMapping[str, int]
    """Where its evaluations count."""
    start: int
    """Where its positions begin among those of the network's denoiser."""


class PendingEval(NamedTuple):
    """A node that waits for its evaluation, and the engine that it belongs to."""

    peer: Peer
    node: Node


class SharedDenoiser:
    """Encodes the prompts of its engines together, and evaluates their rows together, wherever they
    are in their grids.

    An engine without a shared one has one for itself, over its own denoiser. One that several share
    is made with a denoiser that is none of theirs: a call like theirs, for any number of steps.
    Their grids lie in it one after the other (Denoiser.merge_schedule); what else belongs to a
    grid, as kernels, looks and initial noise do, stays with the engines.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser = denoiser
        self.peers: WeakKeyDictionary[Peer, Callable[[int], Sequence[Node]]] = WeakKeyDictionary()
        """Who shares it, each with what gives at most so many of its nodes that wait for their
        evaluation. Engines hold their peers, which go with them."""

    def welcome(self, denoiser: Denoiser, *, guided: bool) -> None:
        """Get the denoiser of another engine ready to share it. guided: whether its steps follow
        gradients. ValueError for one whose engine must have a network of its own."""
        if guided or denoiser.drafts is not None or denoiser.starter is not None:
            raise ValueError(
                "engines share a network where they neither draft nor follow gradients nor keep"
                " seeds apart; let one that does have its own"
            )
        denoiser.encode([Prompt("")])  # noise is drawn in the dtype of encoded prompts

    def start_of(self, denoiser: Denoiser) -> int:
        """Where the positions of this call begin among those of the network's denoiser. ValueError
        for a call that differs from that in more than its steps."""
        return 0 if denoiser is self.denoiser else self.denoiser.merge_schedule(denoiser)

    @torch.no_grad()
    def encode(self) -> None:
        """Encode the prompts of all jobs that there are, and tell the engines where theirs are."""
        prompts = [peer.noise.prompts for peer in self.peers]
        self.denoiser.encode([prompt for one in prompts for prompt in one.living])
        row = 0
        for one in prompts:
            row = one.place(row)

    def forget_prompts(self) -> None:
        """Keep no prompt of jobs that have ended, where none is under way."""
        if not any(peer.noise.prompts.living for peer in self.peers):
            self.denoiser.forget_prompts()

    def fill_from_peers(self, host: Peer, room: int) -> list[PendingEval]:
        """At most `room` nodes of other engines, which fill up a batch of this one; whose come
        first goes round."""
        peers = list(self.peers)
        found = list[PendingEval]()
        at = peers.index(host)
        for peer in (*peers[at + 1 :], *peers[:at]):
            if len(found) < room:
                found += [PendingEval(peer, node) for node in self.peers[peer](room - len(found))]
        return found
