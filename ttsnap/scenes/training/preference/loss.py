"""Diffusion-DPO (arXiv 2311.12908) for a flow: the velocity takes the place of the noise."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn


class Prediction(Protocol):
    """What diffusers' transformers return."""

    @property
    def sample(self) -> Tensor: ...


class Velocity(Protocol):
    """A transformer of a flow on the straight path x = (1 - sigma) x0 + sigma noise; it predicts noise - x0."""

    def __call__(self, x: Tensor, tokens: Tensor, pooled: Tensor, time: Tensor, /) -> Prediction:
        """x (N, C, h, w), token embeddings (N, L, D), pooled ones (N, D), time 1000 sigma (N,)."""
        ...


def preference_loss(tuned: Tensor, frozen: Tensor, beta: float) -> Tensor:
    """Diffusion-DPO (arXiv 2311.12908, eq. 14): -log sigmoid(beta * lead of the preferred picture), mean over pairs.

    A picture's implicit reward is how much smaller the tuned model's squared error is than the frozen one's.

    Args:
        tuned: squared errors at shared noise and time, shape (2, B), preferred pictures first; means over elements, as
            in the authors' code (whose `beta_dpo` is twice this beta).
        frozen: those of the model without the adapter, shape (2, B).
        beta: the anchor; a larger one lets the model move less.

    Returns:
        A scalar: log 2 where the tuned model is the frozen one.
    """
    reward = frozen - tuned
    return -nn.functional.logsigmoid(beta * (reward[0] - reward[1])).mean()


def squared_errors(
    transformer: Velocity, latents: Tensor, sigma: Tensor, noise: Tensor, text: tuple[Tensor, Tensor]
) -> Tensor:
    """Mean squared velocity errors of preferred and rejected latents at the same noise and time, shape (2, B).

    Args:
        transformer: tuned, or frozen.
        latents: shape (2, B, C, h, w).
        sigma: shape (B,), in (0, 1).
        noise: shape (B, C, h, w).
        text: token embeddings (B, L, D) and pooled ones (B, D).
    """
    level = sigma.view(-1, 1, 1, 1)
    x = ((1 - level) * latents + level * noise).flatten(0, 1)
    tokens, pooled = (part.repeat(2, *[1] * (part.ndim - 1)) for part in text)
    velocity = transformer(x, tokens, pooled, 1000 * sigma.repeat(2)).sample
    errors: Tensor = (
        (velocity.to(x.dtype) - (noise - latents).flatten(0, 1)).square().mean((1, 2, 3)).unflatten(0, (2, -1))
    )
    return errors
