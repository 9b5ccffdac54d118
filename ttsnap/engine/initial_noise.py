"""Initial noise of particles: drawn from seeds, and made again where another particle starts from it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ttsnap.engine.prompts import EncodedPrompts
from ttsnap.engine.store import Mixed, Node
from ttsnap.sampling import rng
from ttsnap.sampling.denoiser import Can, Denoiser
from ttsnap.sampling.kernels import Kernel


class InitialNoise:
    """Of one engine, whose jobs have these prompts. No latent is kept for it: noise is drawn again from the seeds and
    keys that made it."""

    def __init__(self, denoiser: Denoiser, kernel: Kernel, prompts: EncodedPrompts) -> None:
        self.denoiser, self.kernel, self.prompts = denoiser, kernel, prompts

    def draw(self, nodes: Sequence[Node]) -> None:
        """Give these nodes, which have no latent yet, the noise of their seeds."""
        if not nodes:
            return
        generators = [rng.seeded(node.seed) for node in nodes]
        begun = self.denoiser.begin(self.denoiser.init_latents(generators), self.prompts.rows(nodes))
        for node, latent, generator in zip(nodes, begun, generators, strict=True):
            node.latent, node.kernel_state = latent, self.kernel.init((node.seed, 0), generator)

    def of(self, node: Node) -> Tensor:
        """The initial noise (...) that this node came from."""
        x = self._fresh(rng.seeded(node.seed))
        for share, rest in node.mixed_in:
            x = mixed(x, share, rest if isinstance(rest, Tensor) else self._fresh(rng.generator(rest)))
        return x

    def near(self, node: Node, share: float, key: rng.Key) -> Node:
        """A new particle from `share` times the noise that this one came from; the rest is drawn from `key` (seed,
        branch, step)."""
        generator = rng.generator(key)
        x = mixed(self.of(node), share, self._fresh(generator))
        state = self.kernel.init(key[:-1], generator)
        return self.begun(Node(node.job, node.seed, 0, x, state, (*node.mixed_in, Mixed(share, key))))

    def begun(self, node: Node) -> Node:
        """A particle whose latent is its initial noise, with the latent that it starts from in place of that."""
        node.latent = self.denoiser.begin(node.x[None], self.prompts.rows([node]))[0]
        return node

    def masked(self, nodes: list[Node]) -> list[Node]:
        """These nodes, which have just come to where they are, with what the call keeps from being changed."""
        if Can.MASK in self.denoiser.can:
            x, at = torch.stack([node.x for node in nodes]), torch.tensor([node.position for node in nodes])
            for node, latent in zip(nodes, self.denoiser.apply_mask(x, at, self.prompts.rows(nodes)), strict=True):
                node.latent = latent
        return nodes

    def _fresh(self, generator: torch.Generator) -> Tensor:
        return self.denoiser.init_latents([generator])[0]


def mixed(x: Tensor, share: float, other: Tensor) -> Tensor:
    """share * x + sqrt(1 - share^2) * other: standard normal noise again, where both are."""
    return share * x + math.sqrt(1 - share * share) * other
