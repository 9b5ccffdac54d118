"""A denoiser as engines use it: one engine alone, or several that fill each other's batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ttsnap.core.grid import Grid
from ttsnap.core.prompt import Prompt
from ttsnap.engine.groups import LANE, Groups
from ttsnap.engine.store import Mixed, Node
from ttsnap.sampling import rng
from ttsnap.sampling.denoiser import Capability, Denoiser, begin_calls, drafts_of
from ttsnap.sampling.kernels import Kernel


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
        self.denoiser, self.encode = denoiser, encode
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

    def resume(self, prompts: Mapping[int, Prompt], following: int) -> None:
        """Jobs of these numbers and prompts, and no others; the next one has number `following`."""
        self._prompts, self._next = dict(prompts), following
        if prompts:
            self.encode()

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


class InitialNoise:
    """Initial noise of the particles of one engine, whose jobs have these prompts.

    No latent is kept for it: noise is drawn again from the seeds and keys that made it.
    """

    def __init__(self, denoiser: Denoiser, kernel: Kernel, prompts: EncodedPrompts) -> None:
        self.denoiser, self.kernel, self.prompts = denoiser, kernel, prompts
        self.device: torch.device | None = None
        """Where latents are; None before there are any."""
        self.begin_calls = begin_calls(denoiser)
        self.groups = None if denoiser.groups is None else Groups(denoiser.groups)

    @property
    def lane(self) -> int:
        """That of rows whose particles did not begin; 0 where they begin as noise."""
        return self.begin_calls if self.groups is None else LANE

    @property
    def ahead(self) -> int:
        """Evaluations by which particles began, from which on the noise of steps is numbered."""
        return 0 if self.groups is None else self.groups.start.nfe

    def may_begin(self, node: Node) -> bool:
        """Whether a particle has begun, or its group was evaluated, so that it takes nothing more
        to begin."""
        return node.latent is not None or (self.groups is not None and self.groups.has(node))

    def grouped(self, nodes: Sequence[Node]) -> tuple[int, int]:
        """Let a group begin, and with it those of these particles that can (Groups.begin)."""
        assert self.groups is not None
        taken = self.groups.begin(nodes, self.drawn, self.prompts.rows)
        self.device = nodes[0].x.device
        return taken

    def forget(self, job: int | None = None) -> None:
        """What is kept for particles of a job, or of all, that did not begin."""
        if self.groups is not None:
            self.groups.forget(job)

    def draw(self, nodes: Sequence[Node]) -> None:
        """Give those of these nodes that have no latent yet the noise of their seeds: the denoiser
        is to see them."""
        new = [node for node in nodes if node.latent is None]
        if not new:
            return
        generators = [rng.seeded(node.seed) for node in new]
        noise = self.denoiser.init_latents(generators)
        begun = self.denoiser.begin(noise, self.prompts.rows(new))
        for node, latent, drawn, generator in zip(new, begun, noise, generators, strict=True):
            node.latent, node.kernel_state = (
                latent,
                self.kernel.init(drawn, (node.seed, 0), generator),
            )
        self.device = begun.device

    def drafted(self, nodes: Sequence[Node]) -> None:
        """Let these particles begin from their drafts."""
        generators = [rng.seeded(node.seed) for node in nodes]
        noise = self.denoiser.init_latents(generators)
        for i, node in enumerate(nodes):
            if node.mixed_in:
                noise[i], generators[i] = self.drawn(node)
        start = drafts_of(self.denoiser).start
        assert start is not None
        guesses, begun = start.begin(noise, self.prompts.rows(nodes))
        for node, guess, latent, drawn, generator in zip(
            nodes, guesses, begun, noise, generators, strict=True
        ):
            node.guess, node.latent = guess, latent
            node.kernel_state = self.kernel.init(drawn, node.key, generator, guess)
        self.device = begun.device

    def of(self, node: Node) -> Tensor:
        """The initial noise (...) that this node came from."""
        return self.drawn(node)[0]

    def drawn(self, node: Node) -> tuple[Tensor, torch.Generator]:
        """The same, and the generator that drew last."""
        x = self._fresh(generator := rng.seeded(node.seed))
        for share, rest in node.mixed_in:
            if not isinstance(rest, Tensor):
                rest = self._fresh(generator := rng.generator(rest))
            x = mixed(x, share, rest)
        return x, generator

    def near(self, node: Node, share: float, key: rng.Key) -> Node:
        """A new particle from `share` times the noise that this one came from; the rest is drawn
        from `key` (seed, branch, step)."""
        made = Node(node.job, node.seed, 0, mixed_in=(*node.mixed_in, Mixed(share, key)))
        if self.lane:
            return made
        made.latent, generator = self.drawn(made)
        made.kernel_state = self.kernel.init(made.latent, made.key, generator)
        return self.begun(made)

    def begun(self, node: Node) -> Node:
        """A particle whose latent is its initial noise, with the latent that it starts from in
        place of that."""
        node.latent = self.denoiser.begin(node.x[None], self.prompts.rows([node]))[0]
        return node

    def masked(self, nodes: list[Node]) -> list[Node]:
        """These nodes, which have just come to where they are, with what the call keeps from being
        changed."""
        if Capability.MASK in self.denoiser.can:
            x, at = (
                torch.stack([node.x for node in nodes]),
                torch.tensor([node.position for node in nodes]),
            )
            for node, latent in zip(
                nodes, self.denoiser.apply_mask(x, at, self.prompts.rows(nodes)), strict=True
            ):
                node.latent = latent
        return nodes

    def _fresh(self, generator: torch.Generator) -> Tensor:
        return self.denoiser.init_latents([generator])[0]


def mixed(x: Tensor, share: float, other: Tensor) -> Tensor:
    """share * x + sqrt(1 - share^2) * other: standard normal noise again, where both are."""
    return share * x + math.sqrt(1 - share * share) * other


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
        self._starts: dict[Grid, int] = {denoiser.grid: 0}

    def welcome(self, denoiser: Denoiser, *, guided: bool) -> None:
        """Get the denoiser of another engine ready to share it. guided: whether its steps follow
        gradients. ValueError for one whose engine must have a network of its own."""
        if guided or denoiser.drafts is not None or denoiser.groups is not None:
            raise ValueError(
                "engines share a network where they neither draft nor follow gradients nor keep"
                " seeds apart; let one that does have its own"
            )
        denoiser.encode([Prompt("")])  # noise is drawn in the dtype of encoded prompts

    def start_of(self, denoiser: Denoiser) -> int:
        """Where the positions of this call begin among those of the network's denoiser. ValueError
        for a call that differs from that in more than its steps."""
        if denoiser.grid not in self._starts:
            self._starts[denoiser.grid] = self.denoiser.merge_schedule(denoiser)
        return self._starts[denoiser.grid]

    @torch.no_grad()
    def encode(self) -> None:
        """Encode the prompts of all jobs that there are, and tell the engines where theirs are."""
        prompts = [peer.noise.prompts for peer in self.peers]
        self.denoiser.encode([prompt for one in prompts for prompt in one.living])
        row = 0
        for one in prompts:
            row = one.place(row)

    def fill_from_peers(self, host: Peer, room: int) -> list[PendingEval]:
        """At most `room` nodes of other engines, which fill up a batch of this one; whose come
        first goes round."""
        peers, found = list(self.peers), list[PendingEval]()
        at = peers.index(host)
        for peer in (*peers[at + 1 :], *peers[:at]):
            if len(found) < room:
                found += [PendingEval(peer, node) for node in self.peers[peer](room - len(found))]
        return found
