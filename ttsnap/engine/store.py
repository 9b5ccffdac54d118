"""Where the particles of a LiveEngine are: latents with what was computed from them, kept between
moves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ttsnap.core.grid import Grid
from ttsnap.sampling import rng
from ttsnap.sampling.kernels import KernelState, Prediction


class Mixed(NamedTuple):
    """A change of an initial noise."""

    share: float
    """Of the old noise that was kept."""
    rest: rng.Key | Tensor
    """Key of fresh noise that makes up the rest, or a direction to turn in."""


@dataclass(slots=True, eq=False)
class Node:
    """A latent on its way from noise to an image. Children of a particle share its node until they
    move on from it."""

    job: int
    """Number of the prompt."""
    seed: int
    """Of the initial noise. That is drawn only when the network is to see it, so that waiting seeds
    take no memory."""
    position: int
    """Evaluations of the denoiser that have brought the latent here: the grid step, where each step
    takes one (Grid.calls)."""
    latent: Tensor | None = None
    """None until the noise is drawn or, where it does not begin as noise, until it began."""
    guess: Tensor | None = None
    """The draft that the latent was begun from; None after the first step, and for one that begins
    as noise."""
    kernel_state: KernelState = None
    """What the kernel keeps for this particle."""
    place: int = 0
    """Of a fresh seed, among those that begin together; gone after the first step."""
    draft_calls: int = 0
    """Calls of the drafter that are to guess from here, in place of an evaluation."""
    mixed_in: tuple[Mixed, ...] = ()
    """Changes of the initial noise since it was drawn from `seed`, in order."""
    prediction: Prediction | None = None
    """The evaluation of the denoiser here, None until it is made."""
    gradient: Tensor | None = None
    """What a stepper that takes gradients computed here (stepper.py), None until it did. Under
    guidance: that of the rewards with respect to this latent. Of a finished particle that others
    ascend from: the direction in which to turn its initial noise."""
    log_ratio: Tensor | float = 0.0
    """Of the path to here: log of how much likelier plain steps were to take it than the guided
    ones that did."""
    step_noise: rng.Source | None = None
    """Where the noise came from, if one step has made this particle from another one; None after
    any other step."""
    batches: tuple[int, ...] = ()
    """Rows of each call of the network that brought it here, the evaluation included."""
    latents_before: tuple[Tensor, ...] = ()
    """The last latents before this one, newest last, as many as a gradient of the finished image
    goes back through."""

    @property
    def key(self) -> rng.Key:
        """(seed, branch) of a particle as it starts."""
        mixes = [rest for _, rest in self.mixed_in if not isinstance(rest, Tensor)]
        return mixes[-1][:-1] if mixes else (self.seed, 0)

    @property
    def x(self) -> Tensor:
        """The latent; RuntimeError where its noise was not drawn yet."""
        if self.latent is None:
            raise RuntimeError(f"the noise of seed {self.seed} was not drawn yet")
        return self.latent

    @property
    def x0(self) -> Tensor:
        """What is scored: the x0 estimate, where there is one, else the latent."""
        return self.x if self.prediction is None else self.prediction.x0

    def step(self, grid: Grid) -> tuple[int, bool]:
        """The grid step where it is, and whether an evaluation from there is already paid.

        Between the two stages of a solver's step, that is the step's start with the first
        evaluation paid.
        """
        step = int(np.searchsorted(grid.calls, self.position, side="right")) - 1
        return step, self.prediction is not None or self.position > grid.calls[step]

    def keep_prediction(self, batch: Prediction, row: int) -> None:
        """Keep one row of a batch's prediction."""
        self.prediction = Prediction(batch.out[row], batch.x0[row])
        if batch.x is not None:
            self.latent = batch.x[row]

    def after_step(self, latent: Tensor, kernel_state: KernelState) -> Node:
        """Where the step that follows one evaluation has brought this particle."""
        return Node(
            self.job,
            self.seed,
            self.position + 1,
            latent,
            kernel_state=kernel_state,
            mixed_in=self.mixed_in,
            batches=self.batches,
        )

    def unpaid(self) -> Node:
        """The same latent, with an evaluation of its own."""
        own = self.latent, self.guess, self.kernel_state, self.place
        node = Node(self.job, self.seed, self.position, *own, mixed_in=self.mixed_in)
        node.step_noise = self.step_noise
        node.log_ratio = self.log_ratio
        node.batches = self.batches
        return node


def stacked(nodes: Sequence[Node]) -> tuple[Tensor, Prediction, Tensor]:
    """x (N, ...), predictions and positions (N,) of nodes that have been evaluated."""
    predictions = [node.prediction for node in nodes if node.prediction is not None]
    out = torch.stack([p.out for p in predictions])
    x0 = torch.stack([p.x0 for p in predictions])
    return (
        torch.stack([node.x for node in nodes]),
        Prediction(out, x0),
        torch.tensor([node.position for node in nodes]),
    )


class Particle(NamedTuple):
    """A particle at rest."""

    node: Node
    """Where it is."""
    key: rng.Key
    """(seed, branch) of its noise from here on."""


class Store(dict[tuple[int, int], Particle]):
    """The particles that wait for a move, by (job, uid). Those under way or dropped are not
    here."""

    def remove(self, job: int, uids: Iterable[int]) -> None:
        """Forget these particles, where they are here."""
        for uid in uids:
            self.pop((job, uid), None)
