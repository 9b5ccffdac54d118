"""The gradient of rewards with respect to latents: back through rewards, decoder and perhaps the
denoiser."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from ttsnap.core.cost import Cost, Rates
from ttsnap.core.memory import lacks_memory
from ttsnap.rewards.reward_model import RewardError, RewardModel, place_of, said
from ttsnap.rewards.scoring import Shown
from ttsnap.sampling.denoiser import Denoiser
from ttsnap.sampling.interpolants import rows
from ttsnap.sampling.kernels import Prediction
from ttsnap.sampling.rng import seeded

logger = logging.getLogger(__name__)


class WithGradient(NamedTuple):
    """An evaluation, and the gradient of rewards at its x."""

    prediction: Prediction
    """Of x, without a graph."""
    gradient: Tensor
    """(N, ...) of the weighted rewards with respect to x, in float32 or float64."""


class Differentiator:
    """Rewards made ready for gradients, or refused with the reason, before anything is computed
    with the model.

    weights: of the rewards; None: all alike. through: "denoiser" or "x0", as in
    guided_steps.RewardGuidance. shown: what rewards see. `tried` is what trying the rewards took: a
    call of each.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        rewards: Sequence[RewardModel],
        through: str = "denoiser",
        weights: Sequence[float] | None = None,
        shown: Shown = Shown(),
    ) -> None:
        self.denoiser = denoiser
        self.through = through
        self.shown = shown
        self.weights = (
            [1 / len(rewards)] * len(rewards) if weights is None else [float(w) for w in weights]
        )
        if len(self.weights) != len(rewards):
            raise ValueError(f"{len(self.weights)} weights for {len(rewards)} rewards in guidance")
        self.rewards = [(w, reward) for w, reward in zip(self.weights, rewards, strict=True) if w]
        if not self.rewards:
            raise ValueError("guidance needs a reward with a weight other than 0")
        for _, reward in self.rewards:
            check_reward(reward)
        self.calls = sum(shown.calls(reward) for _, reward in self.rewards)
        """Of rewards, for one gradient."""
        self._found = False
        self.tried = Cost(reward_calls=len(self.rewards))
        self.weights_of_denoiser = denoiser.differentiable(through)

    def __call__(
        self,
        x: Tensor,
        k: Tensor,
        cond: Tensor,
        prompts: Sequence[str],
        known: Prediction | None = None,
    ) -> WithGradient:
        """x (N, ...) at steps k (N,), prompts by row `cond` (N,) of the encoded ones and in words.

        known: the prediction of x where it was made before; a gradient through the denoiser makes
            it again.
        """
        level = torch.tensor([self.denoiser.grid.levels[i] for i in k.tolist()], device=x.device)
        with torch.enable_grad():
            if self.through == "denoiser":
                leaf = x.detach().requires_grad_()
                prediction = self.denoiser.predict(leaf, k, cond)
                x0 = prediction.x0
            else:
                with torch.no_grad():
                    prediction = self.denoiser.predict(x, k, cond) if known is None else known
                leaf = x0 = prediction.x0.detach().requires_grad_()
            gradient = self.gradient(lambda: self.value(x0, cond, prompts, level), leaf)
        if self.through == "x0":
            gradient = self.slope(k, gradient) * gradient
        return WithGradient(
            prediction.detached(), gradient if gradient.dtype == torch.float64 else gradient.float()
        )

    def gradient(self, value: Callable[[], Tensor], leaf: Tensor) -> Tensor:
        """Of value() with respect to leaf; 0 where a reward fails, so that this costs a gradient
        and not the search.

        A reward is the user's code: it may do anything. Only running out of memory is raised (fewer
        rows may fit), and RewardError where the first gradient of all fails: with 0 in the place of
        all of them nothing would be guided.
        """
        names = ", ".join(reward.name for _, reward in self.rewards)
        try:
            (gradient,) = torch.autograd.grad(value(), leaf)
            self._found = True
            return gradient
        except Exception as error:
            if lacks_memory(error):
                raise
            if not self._found:
                raise RewardError(
                    f"the first gradient failed: {said(names, error)}{place_of(error)}"
                ) from error
            logger.warning("no gradient of %s: %s", names, error)
            return torch.zeros_like(leaf)

    def cost(self, rows: int, evaluations: int, nfe: int) -> Cost:
        """Of the gradients of so many rows, each back through `evaluations` of the denoiser; nfe:
        all made forward."""
        return Cost(nfe, rows, rows * self.calls, gradients=rows, backwards=rows * evaluations)

    def rates(self, forward: Rates) -> Rates:
        """With the price of backward passes in FLOPs: about two forward passes, and one more where
        the network keeps checkpoints only (`enable_gradient_checkpointing` of diffusers'
        models)."""
        return replace(
            forward, gradients=2 * self._once(forward), backwards=self._passes * forward.nfe
        )

    def _once(self, forward: Rates) -> float:
        """What a gradient's decode and reward calls take forward, which a Cost counts as such."""
        return forward.decodes + self.calls * forward.reward_calls

    @property
    def _passes(self) -> int:
        """Forward passes of the denoiser that its backward pass takes as long as."""
        return 3 if self.denoiser.gradient_checkpointing else 2

    def seconds(self, forward: Rates) -> tuple[Rates, Cost]:
        """With the price of backward passes in seconds, timed on one row, and what timing them
        took."""
        x = self.denoiser.init_latents([seeded(0)])
        zero = torch.zeros(1, dtype=torch.long)
        example = self.rewards[0][1].example
        through = self.through == "denoiser"
        begin = time.perf_counter()
        self(x, zero, zero, [example])
        whole = time.perf_counter() - begin
        back = self._passes * forward.nfe if through else 0.0
        rest = max(whole - forward.nfe - back, 0.5 * whole) - self._once(forward)
        return replace(forward, gradients=max(rest, 0.0), backwards=back), self.cost(
            1, int(through), 1
        )

    def slope(self, k: Tensor, like: Tensor) -> Tensor:
        """(N, 1, ...) d E[x0 | x_t] / d x_t at steps k (N,) for standard normal data: alpha /
        (alpha^2 + sigma^2)."""
        t = self.denoiser.times[k]
        a = self.denoiser.path.alpha(t)
        s = self.denoiser.path.sigma(t)
        return rows(a / (a**2 + s**2), like)

    def value(self, x0: Tensor, cond: Tensor, prompts: Sequence[str], level: Tensor) -> Tensor:
        """The weighted rewards of the images of x0 (N, ...), summed over rows, with a graph.

        cond, prompts: as in a call.
        """
        images = self.denoiser.decode_rows(x0, cond)
        scores = [
            w * differentiable(reward, images, prompts, level, self.shown).sum()
            for w, reward in self.rewards
        ]
        return torch.stack([score.double() for score in scores]).sum()


def differentiable(
    reward: RewardModel, images: Tensor, prompts: Sequence[str], level: Tensor, shown: Shown
) -> Tensor:
    """Scores (N,) of images or videos with a graph, by the reward's own `differentiable`."""
    # A reward may write into what it gets.
    scores = shown.differentiable(reward, images.clone(), list(prompts), level)
    if not isinstance(scores, Tensor) or not scores.requires_grad:
        raise ValueError(
            f"reward {reward.name!r} has no gradient: its scores do not depend on the images by "
            "operations of torch; guide by another one, or search without guidance"
        )
    return scores


def check_reward(reward: RewardModel) -> None:
    """ValueError for a reward whose gradient cannot be had: tried on a gray image, which costs one
    call of it.

    One that asks a model behind an API is refused untried: a gradient has no score with which
    unused tokens could be refunded.
    """
    if reward.tokens:
        raise ValueError(
            f"reward {reward.name!r} asks a language model behind an API: gradients are not taken"
            " of it; give it the weight 0 beside a reward that has one, or search without guidance"
        )
    if reward.estimates != "pixels":
        raise ValueError(
            f"reward {reward.name!r} reads {reward.estimates}; gradients are taken of rewards of"
            " pixels"
        )
    if reward.needs:
        raise ValueError(
            f"reward {reward.name!r} needs {' and '.join(sorted(reward.needs))}; gradients are"
            " taken of rewards of images and prompts alone"
        )
    image = reward.trial_image().requires_grad_()
    try:
        with torch.enable_grad():
            scores = differentiable(reward, image, [reward.example], torch.zeros(1), Shown())
            (gradient,) = torch.autograd.grad(scores.double().sum(), image)
    except ValueError:
        raise
    except Exception as error:  # a reward is the user's code
        raise ValueError(f"reward {reward.name!r} has no gradient: {error}") from error
    if not bool(gradient.isfinite().all()):
        raise ValueError(f"the gradient of reward {reward.name!r} is nan or inf on a gray image")


def saved_bytes(
    differentiator: Differentiator, x: Tensor, k: Tensor, cond: Tensor, prompts: Sequence[str]
) -> int:
    """Bytes that autograd keeps for the backward pass of these rows: what a gradient takes beyond
    an evaluation."""
    seen: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in _parameters(differentiator)}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        differentiator(x, k, cond, prompts)
    return sum(seen.values())


def _parameters(differentiator: Differentiator) -> list[Tensor]:
    networks = [
        reward.network
        for _, reward in differentiator.rewards
        if isinstance(reward.network, torch.nn.Module)
    ]
    own = [p for network in networks for p in network.parameters()]
    return [*differentiator.weights_of_denoiser, *own]
