"""Trains the transformer on the teacher's pairs; the text encoders and the autoencoder stay as they are.

Everything random in a step comes from a generator seeded with (seed, step), so a resumed run repeats the undisturbed
one exactly.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ttsnap.scenes.training.base.attention import ZeroTokenAttention, zero_token_attention
from ttsnap.scenes.training.base.updates import Updates
from ttsnap.scenes.training.parts import Pipeline, Transformer
from ttsnap.scenes.training.turbo.loss import on_the_way, velocity_loss
from ttsnap.scenes.training.turbo.pairs import Pairs, encoded
from ttsnap.scenes.training.turbo.recipe import TurboRecipe

_TEXTS = 256
"""Captions that are encoded at once."""


class TurboTrainer(Updates[Transformer, TurboRecipe]):
    """Training state that can be saved and resumed at any step.

    Args:
        pipe: the base model; its transformer is copied, and the copy is trained.
        pairs: what to learn from.
        recipe: how.
    """

    def __init__(self, pipe: Pipeline, pairs: Pairs, recipe: TurboRecipe) -> None:
        super().__init__(recipe, copy.deepcopy(pipe.transformer).train())
        self.pairs = pairs
        captions = list(dict.fromkeys(pairs.captions))
        rows = {text: i for i, text in enumerate(captions)}
        self.rows = torch.tensor([rows[text] for text in pairs.captions])
        parts = [encoded(pipe, captions[i : i + _TEXTS]) for i in range(0, len(captions), _TEXTS)]
        self.text, self.pooled = (torch.cat(column).half() for column in zip(*parts, strict=True))
        if recipe.compile:
            for block in self.net.transformer_blocks:
                block.compile(dynamic=False)

    def losses(self) -> Iterator[float]:
        """Train to the end, yielding each step's loss."""
        with zero_token_attention(self.net, self.recipe.batch) as attention:
            while self.step < self.recipe.steps:
                yield self._train_step(attention)

    def _train_step(self, attention: ZeroTokenAttention) -> float:
        recipe, batch, given = self.recipe, self.recipe.batch, self.pairs
        dice = torch.Generator().manual_seed(recipe.seed * 1_000_003 + self.step)
        chosen = torch.randint(len(given), (batch,), generator=dice)
        share = torch.rand(batch, generator=dice).clamp(min=0.02)
        share[torch.rand(batch, generator=dice) < recipe.at_start] = 1.0
        lengths = torch.tensor(recipe.zero_tokens, dtype=torch.float32)
        attention.set_repeats(lengths[torch.randint(len(lengths), (batch,), generator=dice)])
        loss = self.rows_loss(chosen, share)
        self.update(loss)
        return loss.item()

    def rows_loss(self, chosen: Tensor, share: Tensor) -> Tensor:
        """The loss of these pairs (N,), each where this share (N,) of its noise level is left."""
        start, end = self.pairs.starts[chosen].float(), self.pairs.ends[chosen].float()
        level, text = self.pairs.levels[chosen], self.rows[chosen]
        x = on_the_way(start, end, share)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.recipe.bf16):
            out = self.net(x, self.text[text].float(), self.pooled[text].float(), level * share * 1000).sample
        return velocity_loss(out.float(), start, end, level)


@torch.no_grad()
def errors(pipe: Pipeline, net: Transformer, pairs: Pairs, calls: Sequence[int], *, bf16: bool) -> dict[int, float]:
    """Mean squared error of the ends that n calls in equal steps reach from the starts of these pairs, for each n."""
    found = {}
    text, pooled = encoded(pipe, list(pairs.captions))
    for n in calls:
        x = pairs.starts.float()
        for k in range(n):
            level = pairs.levels * (1 - k / n)
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                velocity = net(x, text, pooled, level * 1000).sample.float()
            x = x - (pairs.levels / n).view(-1, 1, 1, 1) * velocity
        found[n] = (x - pairs.ends.float()).pow(2).mean().item()
    return found
