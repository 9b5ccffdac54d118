"""The initial noise of particles, and their way from it to step 0."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ttsnap.core.cost import Cost
from ttsnap.core.memory import NotEnoughMemoryError, lacks_memory
from ttsnap.engine.prompts import EncodedPrompts
from ttsnap.engine.store import Mixed, Node
from ttsnap.sampling import rng
from ttsnap.sampling.denoiser import Capability, Denoiser
from ttsnap.sampling.kernels import Kernel, KernelState


class _AtStart(NamedTuple):
    """A particle at step 0."""

    latent: Tensor
    state: KernelState
    guess: Tensor | None

    def put(self, node: Node) -> None:
        """Let a node begin there."""
        node.latent, node.kernel_state, node.guess = self


class InitialNoise:
    """Initial noise of the particles of one engine, whose jobs have these prompts, and how they
    come from it to step 0.

    No latent is kept for it: noise is drawn again from the seeds and keys that made it.
    """

    def __init__(self, denoiser: Denoiser, kernel: Kernel, prompts: EncodedPrompts) -> None:
        self.denoiser = denoiser
        self.kernel = kernel
        self.prompts = prompts
        self.device: torch.device | None = None
        """Where latents are; None before there are any."""
        self.starter = denoiser.starter
        self.start = denoiser.start
        self._ready: dict[tuple[int, int], dict[int, _AtStart]] = {}
        """Where seeds that did not begin yet will: their groups were evaluated. By job and first
        seed of the group; by place in it."""

    @property
    def ahead(self) -> int:
        """Evaluations by which particles began, from which on the noise of steps is numbered."""
        return self.start.alone.nfe

    # --- beginning, where that is more than to draw noise -----------------------------------------

    def begin(self, nodes: Sequence[Node]) -> tuple[Cost, int]:
        """Let the first of these particles begin that must be evaluated for it, with all that begin
        in the same call, and those of the others whose groups were evaluated.

        Returns what that took, and in how many calls of the denoiser.
        """
        new = [node for node in nodes if not self._is_ready(node)]
        cost = Cost()
        if new:
            together = self._together(new)
            for node, begun in zip(together, self._evaluated(together), strict=True):
                if node in new:
                    begun.put(node)
                    node.batches = (len(together),)
                else:
                    self._ready.setdefault(_group(node), {})[node.place] = begun
            paying = together if self.start.size == 1 else together[:1]
            start = self.start
            cost = Cost().plus(*(start.alone if node.mixed_in else start.cost for node in paying))
        for node in filter(self._is_ready, nodes):
            self._ready[_group(node)].pop(node.place).put(node)
        self.device = nodes[0].x.device
        return cost, self.ahead if new else 0

    def may_begin(self, node: Node) -> bool:
        """Whether a particle has begun, or its group was evaluated, so that it takes nothing more
        to begin."""
        return node.latent is not None or self._is_ready(node)

    def forget(self, job: int | None = None) -> None:
        """What is kept for particles of a job, or of all, that did not begin."""
        kept = {} if job is None else self._ready
        self._ready = {key: ready for key, ready in kept.items() if key[0] != job}

    def _is_ready(self, node: Node) -> bool:
        return not node.mixed_in and _group(node) in self._ready

    def _together(self, new: Sequence[Node]) -> list[Node]:
        """Whom the first of these particles is evaluated with: all of them, where each begins by
        itself; else its group, in a call of its own. One from mixed noise is in none."""
        first = new[0]
        if self.start.size == 1:
            return list(new)
        if first.mixed_in:
            return [first]
        job, seed = _group(first)
        return [
            Node(job, (seed + place) % 2**64, 0, place=place) for place in range(self.start.size)
        ]

    def _evaluated(self, nodes: Sequence[Node]) -> list[_AtStart]:
        """Where these begin."""
        assert self.starter is not None
        noise, generators = self._drawn(nodes)
        keys = [node.key for node in nodes]
        try:
            begun = self.starter.begin(noise, self.prompts.rows(nodes), keys, generators)
        except Exception as error:
            if self.start.size == 1 or not lacks_memory(error):
                raise
            raise NotEnoughMemoryError(
                f"the {len(nodes)} seeds of a group are one call of the network, for which there is"
                " too little memory; take smaller groups, as variety repel:4"
            ) from None
        guesses = [None] * len(nodes) if begun.guesses is None else list(begun.guesses)
        states = begun.states
        if states is None:
            each = zip(noise, keys, generators, guesses, strict=True)
            states = [self.kernel.init(*one) for one in each]
        return list(map(_AtStart, begun.latents, states, guesses))

    # --- noise ------------------------------------------------------------------------------------

    def draw(self, nodes: Sequence[Node]) -> None:
        """Give those of these nodes that have no latent yet the noise of their seeds: the denoiser
        is to see them."""
        new = [node for node in nodes if node.latent is None]
        if not new:
            return
        noise, generators = self._drawn(new)
        begun = self.denoiser.begin(noise, self.prompts.rows(new))
        for node, latent, drawn, generator in zip(new, begun, noise, generators, strict=True):
            node.latent, node.kernel_state = (
                latent,
                self.kernel.init(drawn, node.key, generator),
            )
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
        if self.starter is not None:
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
            x = torch.stack([node.x for node in nodes])
            at = torch.tensor([node.position for node in nodes])
            for node, latent in zip(
                nodes, self.denoiser.apply_mask(x, at, self.prompts.rows(nodes)), strict=True
            ):
                node.latent = latent
        return nodes

    def _drawn(self, nodes: Sequence[Node]) -> tuple[Tensor, list[torch.Generator]]:
        """The initial noise (N, ...) of these, and the generators that drew last."""
        generators = [rng.seeded(node.seed) for node in nodes]
        noise = self.denoiser.init_latents(generators)
        for i, node in enumerate(nodes):
            if node.mixed_in:
                noise[i], generators[i] = self.drawn(node)
        return noise, generators

    def _fresh(self, generator: torch.Generator) -> Tensor:
        return self.denoiser.init_latents([generator])[0]


def mixed(x: Tensor, share: float, other: Tensor) -> Tensor:
    """share * x + sqrt(1 - share^2) * other: standard normal noise again, where both are."""
    return share * x + math.sqrt(1 - share * share) * other


def _group(node: Node) -> tuple[int, int]:
    """The job and the first seed of a fresh seed's group."""
    return node.job, (node.seed - node.place) % 2**64
