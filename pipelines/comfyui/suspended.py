"""ComfyUI's own samplers, one for each candidate, which stop at every call of the model.

A sampler function is a loop that calls `model(x, sigma)`. Here it runs alone, for one candidate,
suspended at every call (pipelines/suspended.py). The engine gathers the calls of all candidates in
one batch, and each goes on with its row of the answer. So every sampler is exact, with its history
and its noise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ttsnap.pipelines.comfyui.guided import GuidedCall, Options
from ttsnap.pipelines.suspended import Ask, Returned, Suspended

HOOKS = "sampler_post_cfg_function"
"""Where model_options list the functions that see both passes of an evaluation; some samplers add
one."""
READ = ("denoised", "uncond_denoised", "cond_denoised")
"""What these functions get of an evaluation, besides its input."""


class ModelCall(NamedTuple):
    """A sampler's call of the model: x (1, ...) at sigma (1,), and the options that it passes."""

    x: Tensor
    sigma: Tensor
    options: Options

    @property
    def level(self) -> float:
        """Its noise level."""
        return float(self.sigma)


class StandIn:
    """The guider, as a sampler sees it, whose calls are answered by somebody else."""

    def __init__(self, guider: Any, answer: Callable[[ModelCall], Tensor]) -> None:
        self._guider = guider
        self._answer = answer

    def __call__(
        self,
        x: Tensor,
        sigma: Tensor,
        model_options: Options = {},  # noqa: B006
        seed: int | None = None,
    ) -> Tensor:
        return self._answer(ModelCall(x, sigma, model_options))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._guider, name)


@dataclass(frozen=True)
class StockSampler:
    """A SAMPLER of ComfyUI, as the stock KSampler would run it on this call."""

    sampler: Any
    guided: GuidedCall

    def run(
        self,
        noise: Tensor,
        seed: int,
        answer: Callable[[ModelCall], Tensor],
        on_step: Callable[..., None] | None = None,
    ) -> Tensor:
        """The finished latent (1, ...) of initial noise (1, ...), with the model's answers by
        `answer`."""
        call = self.guided
        made: Tensor = self.sampler.sample(
            StandIn(call.guider, answer),
            call.sigmas.clone(),  # some samplers write into it
            {"model_options": call.options, "seed": seed},
            on_step,
            noise.clone(),
            call.latent,
            call.mask,
            disable_pbar=True,
        )
        return made

    def redrawing(self, latent: Tensor) -> StockSampler:
        """The same sampler, which redraws this latent (...)."""
        return replace(self, guided=replace(self.guided, latent=latent[None]))

    def first_input(self, noise: Tensor, seed: int) -> Tensor:
        """What the sampler calls the model with first: (1, ...)."""
        begun = Suspended(partial(_sampled, self, noise[0], seed))
        asked: Tensor = begun.question.x
        begun.close()
        return asked

    def answered(self, call: ModelCall, out: Tensor) -> Tensor:
        """The x0 estimate (1, ...) that a call gets, of `out` (1, ...) or (1, 3, ...) as
        StockDenoiser.predict gives it. Functions that the sampler has added to the options see both
        passes, as in ComfyUI."""
        own = call.options.get(HOOKS, [])[len(self.guided.options.get(HOOKS, [])) :]
        if not own:
            return out
        guider = self.guided.guider
        seen = dict(zip(READ, out.unbind(1), strict=True))
        for hook in own:
            seen["denoised"] = hook(
                {
                    **seen,
                    "sigma": call.sigma,
                    "input": call.x,
                    "model": guider.inner_model,
                    "cond_scale": guider.cfg,
                    "cond": guider.conds.get("positive"),
                    "uncond": guider.conds.get("negative"),
                    "model_options": call.options,
                }
            )
        return seen["denoised"]


class SamplerCalls(NamedTuple):
    """The calls that a sampler makes, which depend on its steps alone."""

    sigmas: Tensor
    """(P,) float32 on the CPU, the noise level of each call."""
    starts: list[int]
    """The calls whose estimates a step begins with."""
    hooked: bool
    """Whether the sampler reads both passes of an evaluation."""


def rehearse(stock: StockSampler) -> SamplerCalls:
    """Run a sampler without the model, on a corner of the latent, to see when it calls that.

    ValueError for a sampler that draws noise from torch's global generator, and for one that
    chooses its noise levels by what the model answers.
    """
    stock = replace(stock, guided=stock.guided.corner())
    calls, starts = _rehearsed(stock)
    (drawn, _), (moved, _) = _rehearsed(stock, state=2), _rehearsed(stock, most=1.0)
    levels = [call.level for call in calls]
    if levels != [call.level for call in moved]:
        raise ValueError(
            "this sampler chooses its steps by the image (dpm_adaptive), so that candidates have no"
            " common steps; choose another one"
        )
    if any(not torch.equal(a.x, b.x) for a, b in zip(calls, drawn, strict=True)):
        raise ValueError(
            "this sampler draws noise that no seed makes again, from torch's global generator; set"
            " its s_churn to 0, or choose another one"
        )
    hooks = len(stock.guided.options.get(HOOKS, []))
    hooked = any(len(call.options.get(HOOKS, [])) > hooks for call in calls)
    return SamplerCalls(torch.tensor(levels), starts, hooked)


def _rehearsed(
    stock: StockSampler, most: float = 0.0, state: int = 1
) -> tuple[list[ModelCall], list[int]]:
    """The calls of a sampler, and those whose estimates its steps report, on estimates that rise
    from 0 to `most`.

    state: the seed of torch's global generator on the CPU. Those of other devices are not reset:
        two runs of a sampler that draws from one differ even so.
    """
    calls: list[ModelCall] = []
    starts: list[int] = []

    def answer(call: ModelCall) -> Tensor:
        calls.append(call._replace(x=call.x.clone()))
        made = torch.linspace(
            0, most, call.x.numel(), dtype=call.x.dtype, device=call.x.device
        ).view_as(call.x)
        if call.options.get(HOOKS):
            return stock.answered(call, torch.stack([made] * len(READ), 1))
        return made

    def report(*_: object) -> None:
        begun = len(calls) - 1
        if not starts or calls[starts[-1]].level > calls[begun].level:
            starts.append(begun)

    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(state)
        stock.run(torch.zeros_like(stock.guided.latent), 0, answer, report)
    return calls, [0, *(start for start in starts if start)]


class SuspendedSampler:
    """A sampler under way for one candidate. It ends with the last reference to it, and its thread
    with it."""

    def __init__(self, stock: StockSampler, noise: Tensor, seed: int) -> None:
        self._stock = stock
        self._run = partial(_sampled, stock, noise, seed)
        self._call: Suspended | None = None
        """None before its first answer."""

    def go_on(self, out: Tensor, sigma: float) -> Tensor:
        """Answer the present call, at this noise level, by `out` (...): the input (...) of the next
        one, or the finished latent."""
        if self._call is None:
            self._call = Suspended(self._run)
        call = self._call.question
        if not isinstance(call, ModelCall) or call.level != sigma:
            raise ValueError(
                "this sampler calls the model at other noise levels for one seed than for another,"
                " so that candidates have no common steps; choose another one"
            )
        self._call.answer(self._stock.answered(call, out[None]))
        come = self._call.question
        made: Tensor = come.value if isinstance(come, Returned) else come.x
        return made[0]

    def end(self) -> None:
        """End it, and wait until its thread is gone."""
        if self._call is not None:
            self._call.close()


def _sampled(stock: StockSampler, noise: Tensor, seed: int, ask: Ask) -> Tensor:
    """What a candidate's thread does."""
    with torch.inference_mode():  # a new thread does not inherit it
        return stock.run(noise[None], seed, ask)
