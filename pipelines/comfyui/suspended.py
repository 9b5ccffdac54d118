"""ComfyUI's own samplers, one for each candidate, which stop at every call of the model.

A sampler function is a loop that calls `model(x, sigma)`. Here it runs alone, for one candidate, in a thread of its own
that waits at every call. The engine gathers the calls of all candidates in one batch, and each thread goes on with its
row of the answer. So every sampler is exact, with its history and its noise. Threads run one at a time.
"""

from __future__ import annotations

import contextvars
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from queue import SimpleQueue
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ttsnap.pipelines.comfyui.guided import GuidedCall, Options

HOOKS = "sampler_post_cfg_function"
"""Where model_options list the functions that see both passes of an evaluation; some samplers add one."""
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
        self._guider, self._answer = guider, answer

    def __call__(self, x: Tensor, sigma: Tensor, model_options: Options = {}, seed: int | None = None) -> Tensor:  # noqa: B006
        return self._answer(ModelCall(x, sigma, model_options))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._guider, name)


class Ended(BaseException):
    """A sampler's image is wanted no longer."""


class FirstCall(BaseException):
    """A sampler has made its first call of the model."""


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
        """The finished latent (1, ...) of initial noise (1, ...), with the model's answers by `answer`."""
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
        asked: list[Tensor] = []

        def answer(call: ModelCall) -> Tensor:
            asked.append(call.x)
            raise FirstCall

        try:
            return self.run(noise, seed, answer)
        except FirstCall:
            return asked[0]

    def answered(self, call: ModelCall, out: Tensor) -> Tensor:
        """The x0 estimate (1, ...) that a call gets, of `out` (1, ...) or (1, 3, ...) as StockDenoiser.predict gives
        it. Functions that the sampler has added to the options see both passes, as in ComfyUI."""
        own = call.options.get(HOOKS, [])[len(self.guided.options.get(HOOKS, [])) :]
        if not own:
            return out
        guider, seen = self.guided.guider, dict(zip(READ, out.unbind(1), strict=True))
        for hook in own:
            seen["denoised"] = hook({
                **seen, "sigma": call.sigma, "input": call.x, "model": guider.inner_model, "cond_scale": guider.cfg,
                "cond": guider.conds.get("positive"), "uncond": guider.conds.get("negative"),
                "model_options": call.options,
            })  # fmt: skip
        return seen["denoised"]


class Rehearsal(NamedTuple):
    """The calls that a sampler makes, which depend on its steps alone."""

    sigmas: Tensor
    """(P,) float32 on the CPU, the noise level of each call."""
    starts: list[int]
    """The calls whose estimates a step begins with."""
    hooked: bool
    """Whether the sampler reads both passes of an evaluation."""


def rehearse(stock: StockSampler) -> Rehearsal:
    """Run a sampler without the model, on a corner of the latent, to see when it calls that.

    ValueError for a sampler that draws noise from torch's global generator, and for one that chooses its noise levels
    by what the model answers.
    """
    stock = replace(stock, guided=stock.guided.corner())
    calls, starts = _rehearsed(stock)
    (drawn, _), (moved, _) = _rehearsed(stock, state=2), _rehearsed(stock, most=1.0)
    levels = [call.level for call in calls]
    if levels != [call.level for call in moved]:
        raise ValueError("this sampler chooses its steps by the image (dpm_adaptive), so that candidates have no "
                         "common steps; choose another one")  # fmt: skip
    if any(not torch.equal(a.x, b.x) for a, b in zip(calls, drawn, strict=True)):
        raise ValueError("this sampler draws noise that no seed makes again, from torch's global generator; set its "
                         "s_churn to 0, or choose another one")  # fmt: skip
    hooks = len(stock.guided.options.get(HOOKS, []))
    hooked = any(len(call.options.get(HOOKS, [])) > hooks for call in calls)
    return Rehearsal(torch.tensor(levels), starts, hooked)


def _rehearsed(stock: StockSampler, most: float = 0.0, state: int = 1) -> tuple[list[ModelCall], list[int]]:
    """The calls of a sampler, and those whose estimates its steps report, on estimates that rise from 0 to `most`.

    state: the seed of torch's global generator on the CPU. Those of other devices are not reset: two runs of a sampler
        that draws from one differ even so.
    """
    calls: list[ModelCall] = []
    starts: list[int] = []

    def answer(call: ModelCall) -> Tensor:
        calls.append(call._replace(x=call.x.clone()))
        made = torch.linspace(0, most, call.x.numel(), dtype=call.x.dtype, device=call.x.device).view_as(call.x)
        return stock.answered(call, torch.stack([made] * len(READ), 1)) if call.options.get(HOOKS) else made

    def report(*_: object) -> None:
        begun = len(calls) - 1
        if not starts or calls[starts[-1]].level > calls[begun].level:
            starts.append(begun)

    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(state)
        stock.run(torch.zeros_like(stock.guided.latent), 0, answer, report)
    return calls, [0, *(start for start in starts if start)]


class SuspendedSampler:
    """A sampler under way for one candidate. It ends with the last reference to it, and its thread with it."""

    def __init__(self, stock: StockSampler, noise: Tensor, seed: int) -> None:
        self._stock, self._noise, self._seed = stock, noise, seed
        self._answers: SimpleQueue[Tensor | None] = SimpleQueue()
        self._calls: SimpleQueue[ModelCall | Tensor | BaseException] = SimpleQueue()
        self._waiting: ModelCall | None = None
        """The call that its thread waits for; None before the thread is started."""
        self.end: Callable[[], object] = lambda: None

    def go_on(self, out: Tensor, sigma: float) -> Tensor:
        """Answer the present call, at this noise level, by `out` (...): the input (...) of the next one, or the
        finished latent."""
        if self._waiting is None:
            thread = threading.Thread(
                target=contextvars.copy_context().run,
                args=(_run, self._stock, self._noise, self._seed, self._calls, self._answers),
                daemon=True,
            )
            self.end = weakref.finalize(self, _end, thread, self._answers)
            thread.start()
            self._next()
        call = self._waiting
        if call is None or call.level != sigma:
            raise ValueError("this sampler calls the model at other noise levels for one seed than for another, so "
                             "that candidates have no common steps; choose another one")  # fmt: skip
        self._answers.put(self._stock.answered(call, out[None]))
        return self._next()[0]

    def _next(self) -> Tensor:
        """What the thread comes with next: the input (1, ...) of a call, or the finished latent."""
        come = self._calls.get()
        if isinstance(come, BaseException):
            raise come
        self._waiting = come if isinstance(come, ModelCall) else None
        return come.x if isinstance(come, ModelCall) else come


def _run(
    stock: StockSampler, noise: Tensor, seed: int, calls: SimpleQueue[Any], answers: SimpleQueue[Tensor | None]
) -> None:
    """The work of a candidate's thread."""

    def answer(call: ModelCall) -> Tensor:
        calls.put(call)
        if (given := answers.get()) is None:
            raise Ended
        return given

    try:
        with torch.inference_mode():  # a new thread does not inherit it
            calls.put(stock.run(noise[None], seed, answer))
    except Ended:
        pass
    except BaseException as error:
        calls.put(error)


def _end(thread: threading.Thread, answers: SimpleQueue[Tensor | None]) -> None:
    """Unwind a candidate's sampler, and wait for its thread."""
    answers.put(None)
    if thread is not threading.current_thread():
        thread.join()
