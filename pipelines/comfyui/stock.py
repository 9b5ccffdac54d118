"""ComfyUI's own samplers as kernels: each candidate runs the stock sampler function alone, in a thread of its own.

A sampler function is a loop that calls `model(x, sigma)`. Its thread stops at every call, the engine gathers the calls
of all candidates in one batch, and the thread goes on with its row of the answer. So every sampler is exact, with its
history and its noise, and a candidate's image is that of the stock KSampler at its seed. Threads run one at a time.
"""

from __future__ import annotations

import contextvars
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from ttsnap.pipelines.comfyui.guided import Decoder, GuidedCall, GuidedDenoiser, Options, Previewer

from ttsnap.core.grid import Grid
from ttsnap.sampling import rng
from ttsnap.sampling.kernels import Prediction

HOOKS = "sampler_post_cfg_function"
"""Where model_options list the functions that see both passes of an evaluation; some samplers add one."""
READ = ("denoised", "uncond_denoised", "cond_denoised")
"""What these functions get of an evaluation, besides its input."""
NEVER = {"dpm_adaptive": "it chooses its steps by the image, so that candidates have no common steps"}
"""Samplers that a search cannot run, and why."""


class ModelCall(NamedTuple):
    """A sampler's call of the model: x (1, ...) at sigma (1,), and the options that it passes."""

    x: Tensor
    sigma: Tensor
    options: Options


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
    """(P,) float32, the noise level of each call, on the CPU."""
    starts: list[int]
    """The calls whose estimates a step begins with."""
    hooked: bool
    """Whether the sampler reads both passes of an evaluation."""


def rehearse(stock: StockSampler) -> Rehearsal:
    """Run a sampler once, on answers of zeros, to see when it calls the model.

    ValueError for a sampler that draws noise from torch's global generator.
    """
    runs = [_rehearsed(stock, state) for state in (1, 2)]
    if any(not torch.equal(a.x, b.x) for (a, b) in zip(runs[0][0], runs[1][0], strict=True)):
        raise ValueError("this sampler draws noise that no seed makes again, from torch's global generator; set its "
                         "s_churn to 0, or choose another one")  # fmt: skip
    calls, starts = runs[0]
    sigmas = torch.stack([call.sigma.flatten()[0] for call in calls]).float().cpu()
    hooks = len(stock.guided.options.get(HOOKS, []))
    return Rehearsal(sigmas, starts, any(len(call.options.get(HOOKS, [])) > hooks for call in calls))


def _rehearsed(stock: StockSampler, state: int) -> tuple[list[ModelCall], list[int]]:
    """The calls of a sampler from a state of the global generator, and those whose estimates its steps report."""
    calls: list[ModelCall] = []
    starts: list[int] = []

    def answer(call: ModelCall) -> Tensor:
        calls.append(call._replace(x=call.x.clone()))
        nothing = torch.zeros_like(call.x)
        return stock.answered(call, torch.stack([nothing] * len(READ), 1)) if call.options.get(HOOKS) else nothing

    def report(*_: object) -> None:
        begun = len(calls) - 1
        if not starts or calls[starts[-1]].sigma.flatten()[0] > calls[begun].sigma.flatten()[0]:
            starts.append(begun)

    device = stock.guided.latent.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(state)
        stock.run(torch.randn(stock.guided.latent.shape).to(device), 0, answer, report)
    return calls, [0, *(start for start in starts if start)]


class Candidate:
    """A sampler under way for one candidate. It ends with the last reference to it, and its thread with it."""

    def __init__(self, stock: StockSampler, noise: Tensor, seed: int) -> None:
        self._stock, self._noise, self._seed = stock, noise, seed
        self._answers: SimpleQueue[Tensor | None] = SimpleQueue()
        self._calls: SimpleQueue[ModelCall | Tensor | BaseException] = SimpleQueue()
        self._waiting: ModelCall | None = None
        """The call that its thread waits for; None before the thread is started."""
        self.end: Callable[[], object] = lambda: None

    def go_on(self, out: Tensor, sigma: Tensor) -> Tensor:
        """Answer the present call, at this noise level (), by `out` (...): the input (...) of the next one, or the
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
        if call is None or float(call.sigma.flatten()[0]) != float(sigma):
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


@dataclass
class StockKernel:
    """Steps by a stock sampler. A candidate's state is its `Candidate`, which has no children: no step draws by key."""

    stock: StockSampler
    sigmas: Tensor
    """(P,) the noise level of each call."""
    begun: weakref.WeakSet[Candidate] = field(default_factory=weakref.WeakSet)
    """The candidates that there are."""
    stochastic: ClassVar[bool] = False
    keeps_history: ClassVar[bool] = True

    def init(self, noise: Tensor, key: rng.Key, generator: torch.Generator) -> Candidate:
        candidate = Candidate(self.stock, noise, key[0])
        self.begun.add(candidate)
        return candidate

    def step(
        self, x: Tensor, prediction: Prediction, k: Tensor, keys: Sequence[rng.Source], state: Sequence[Candidate]
    ) -> tuple[Tensor, Sequence[Candidate]]:
        moved = [
            candidate.go_on(out, sigma)
            for candidate, out, sigma in zip(state, prediction.out, self.sigmas[k], strict=True)
        ]
        return torch.stack(moved), state


class StockDenoiser(GuidedDenoiser):
    """A guider under a stock sampler. x at a position is the input of that call of the model."""

    def __init__(self, guided: GuidedCall, sampler: Any, vae: Decoder, previewer: Previewer | None = None) -> None:
        self.stock = StockSampler(sampler, guided)
        self.rehearsal = rehearse(self.stock)
        super().__init__(guided, vae, previewer, hooked=self.rehearsal.hooked)
        self.sigmas = self.rehearsal.sigmas
        starts = self.rehearsal.starts
        at = self.sigmas.double()[starts]
        levels = at if guided.flow else at / (1 + at)
        evals = tuple(b - a for a, b in zip(starts, [*starts[1:], len(self.sigmas)], strict=True))
        self.grid = Grid((*levels.tolist(), 0.0), None if set(evals) == {1} else evals)
        self.kernel = StockKernel(self.stock, self.sigmas)

    def begin(self, noise: Tensor, cond: Tensor) -> Tensor:
        seeds = [self._seeds[number] for number in cond.tolist()]
        return torch.cat([self.stock.first_input(one[None], seed) for one, seed in zip(noise, seeds, strict=True)])

    def in_model(self, x: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        return x, self.sigmas[torch.from_numpy(self.grid.calls)[step]]

    def predict(self, x: Tensor, step: Tensor, cond: Tensor) -> Prediction:
        out = self.by_level(self._call, x, self.sigmas[step])
        return Prediction(out, self.kept(out[:, READ.index("denoised")] if self.rehearsal.hooked else out))

    def _call(self, x: Tensor, sigma: Tensor, here: Tensor) -> Tensor:
        """What a call answers: x0 estimates (n, ...) or, for samplers that read both passes, (n, 3, ...) as READ."""
        guided = self.guided
        if not self.rehearsal.hooked:
            made: Tensor = guided.guider(x, sigma, model_options=guided.options, seed=None)
            return made
        from comfy.model_patcher import set_model_options_post_cfg_function

        seen: list[Tensor] = []

        def read(values: dict[str, Tensor]) -> Tensor:
            seen.append(torch.stack([values[name] for name in READ], 1))
            return values["denoised"]

        options = set_model_options_post_cfg_function(dict(guided.options), read, disable_cfg1_optimization=True)
        guided.guider(x, sigma, model_options=options, seed=None)
        return seen[0]

    def close(self) -> None:
        for candidate in list(self.kernel.begun):
            candidate.end()
