"""A denoiser as engines use it: one engine alone, or several that fill each other's batches."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence
from typing import NamedTuple

import torch

from ttsnap.core.grid import Grid
from ttsnap.engine.initial_noise import InitialNoise
from ttsnap.engine.store import Node
from ttsnap.sampling.denoiser import Denoiser


class Peer:
    """What one engine brings to a network: the initial noise and prompts of its jobs, and where its evaluations count.

    start: where its positions begin among those of the network's denoiser.
    """

    def __init__(self, noise: InitialNoise, stats: MutableMapping[str, int], start: int) -> None:
        self.noise, self.prompts, self.stats, self.start = noise, noise.prompts, stats, start
        self.device: torch.device | None = None
        """Where its latents are; None before there are any."""

    def draw(self, nodes: Sequence[Node]) -> None:
        """Initial noise of those of these nodes that have no latent yet: the denoiser is to see them now."""
        new = [node for node in nodes if node.latent is None]
        self.noise.draw(new)
        if new:
            self.device = new[0].x.device


class PendingEval(NamedTuple):
    """A node that waits for its evaluation, and the engine's part that it belongs to."""

    peer: Peer
    node: Node


class SharedDenoiser:
    """Encodes the prompts of its engines together, and evaluates their rows together, wherever they are in their grids.

    An engine that is told of none has one for itself, over its own denoiser. One that several share is made with a
    denoiser that is none of theirs: a call like theirs, for any number of steps. Their grids lie in it one after the
    other (Denoiser.merge_schedule); what else belongs to a grid, as kernels, looks and initial noise do, stays with the
    engines.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser = denoiser
        self.peers: dict[Peer, Callable[[int], Sequence[Node]]] = {}
        """Who shares it, each with what gives at most so many of its nodes that wait for their evaluation."""
        self._starts: dict[Grid, int] = {denoiser.grid: 0}

    def start_of(self, denoiser: Denoiser) -> int:
        """Where the positions of this call begin among those of the network's denoiser. ValueError for a call that
        differs from that in more than its steps."""
        if denoiser.grid not in self._starts:
            self._starts[denoiser.grid] = self.denoiser.merge_schedule(denoiser)
        return self._starts[denoiser.grid]

    def encode(self) -> None:
        """Encode the prompts of all jobs that there are, and tell the engines where theirs are."""
        prompts = [peer.prompts for peer in self.peers]
        self.denoiser.encode([prompt for one in prompts for prompt in one.living])
        row = 0
        for one in prompts:
            row = one.place(row)

    def fill_from_peers(self, host: Peer, room: int) -> list[PendingEval]:
        """At most `room` nodes of other engines, which fill up a batch of this one; whose come first goes round."""
        peers, found = list(self.peers), list[PendingEval]()
        at = peers.index(host)
        for peer in (*peers[at + 1 :], *peers[:at]):
            if len(found) < room:
                found += [PendingEval(peer, node) for node in self.peers[peer](room - len(found))]
        return found
