"""A diffusers scheduler, laid open: noise levels, x0 estimates and steps for rows that sit at
different steps.

A position p = 0, 1, ... is an evaluation of the denoiser. Most schedulers make one evaluation a
step. Heun and KDPM2 make two, the second at an intermediate point, and PNDM makes two in its first
step.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ttsnap.core.grid import Grid
from ttsnap.pipelines.latents.scheduler_kernel import FlowEuler, SchedulerKernel, begun_later
from ttsnap.sampling.interpolants import Interpolant, Linear, rows
from ttsnap.sampling.kernels import Kernel

FLOW_EULER = "FlowMatchEulerDiscreteScheduler"
# One evaluation a step, and no history.
MEMORYLESS = {
    "DDIMScheduler",
    "DDPMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "LCMScheduler",
    "TCDScheduler",
    "FlowMatchLCMScheduler",
}
# These keep earlier predictions, or the start of a step of several evaluations.
HISTORY = {
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "UniPCMultistepScheduler",
    "DEISMultistepScheduler",
    "SASolverScheduler",
    "PNDMScheduler",
    "LMSDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
}
SUPPORTED = {FLOW_EULER} | MEMORYLESS | HISTORY
# The network sees x / sqrt(sigma^2 + 1).
SCALED = {
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "LMSDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
}
STOCHASTIC = {
    "DDPMScheduler",
    "EulerAncestralDiscreteScheduler",
    "LCMScheduler",
    "FlowMatchLCMScheduler",
    "SASolverScheduler",
    "KDPM2AncestralDiscreteScheduler",
}
# A step leaves latents in the dtype of the network's output. Other schedulers keep that of the
# latents, if it is wider.
NARROWING = {
    FLOW_EULER,
    "FlowMatchLCMScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "FlowMapEulerDiscreteScheduler",
}
FLOW_MAP = "FlowMap"
"""How the names of schedulers of flow maps begin."""
TRIGFLOW = "trigflow"
"""What schedulers predict whose timesteps are angles between data and noise, as those of
Sana-Sprint."""
FLOWS = ("FlowMatch", FLOW_MAP)
"""How those begin whose networks predict velocities, or means of them."""
WHY_NOT = {
    "DPMSolverSDEScheduler": (
        "it draws its noise apart from the generator, so no seed makes a winner again"
    )
}


@dataclass(frozen=True)
class Schedule:
    """One call's schedule: P evaluations, K grid steps."""

    scheduler: Any
    timesteps: Tensor
    """(P,) as the network reads them; all of a schedule is on the CPU, wherever its scheduler
    is."""
    alpha: Tensor
    """(P,) float32, with x = alpha x0 + sigma eps in the scheduler's own scaling."""
    sigma: Tensor
    scale: Tensor | None
    """(P,) by which the network's input is divided, if it is."""
    prediction: str
    """The network's output: "epsilon", "v_prediction", "sample", "flow" or, from noise to data,
    "reverse_flow"."""
    grid: Grid
    path: Interpolant | None
    """None but for flows: other schedules have no continuous path."""
    times: Tensor | None
    """(K+1,) float64 on `path`."""
    kernel: Kernel
    narrows: bool
    """Whether a step leaves x in the dtype of the network's output, even if that is narrower."""
    measured: tuple[Tensor, Tensor] | None = None
    """(P,) and (P,): x0 estimates are the first times x plus the second times the output, whatever
    that is. None: they are what `prediction` says."""

    def beginning_at(self, step: int) -> Schedule:
        """This schedule from a grid step on."""
        p = int(self.grid.calls[step])
        evals = self.grid.evals
        return replace(
            self,
            timesteps=self.timesteps[p:],
            alpha=self.alpha[p:],
            sigma=self.sigma[p:],
            scale=None if self.scale is None else self.scale[p:],
            grid=Grid(self.grid.levels[step:], None if evals is None else evals[step:]),
            measured=(
                None if self.measured is None else (self.measured[0][p:], self.measured[1][p:])
            ),
            times=None if self.times is None else self.times[step:],
            kernel=begun_later(self.kernel, p),
        )

    def stepped(self, noise: torch.dtype, out: torch.dtype) -> torch.dtype:
        """The dtype of latents after a step, by those of initial noise and of the network's output,
        which differ under autocast."""
        return out if self.narrows else torch.promote_types(noise, out)

    def scaled(self, x: Tensor, step: Tensor) -> Tensor:
        """The network's input of x (N, ...) at positions step (N,)."""
        if self.scale is None:
            return x
        return (x.float() / rows(self.scale[step], x.float())).to(x.dtype)

    def x0(self, x: Tensor, out: Tensor, step: Tensor) -> Tensor:
        """The x0 (Tweedie) estimate of the network's output at x, in float32, or float64 for
        float64."""
        wide, out = (v if v.dtype == torch.float64 else v.float() for v in (x, out))
        alpha = rows(self.alpha[step], wide)
        sigma = rows(self.sigma[step], wide)
        if self.measured is not None:
            of_x, of_out = (rows(values[step], wide) for values in self.measured)
            return of_x * wide + of_out * out
        if self.prediction == "flow":  # out = eps - x0; alpha + sigma is 1 on the model's own path
            return (
                wide - sigma * out if self.scale is None else (wide - sigma * out) / (alpha + sigma)
            )
        if self.prediction == "reverse_flow":  # out = x0 - eps
            return wide + sigma * out
        if self.prediction == "epsilon":
            return (wide - sigma * out) / alpha
        if self.prediction == "sample":
            return out
        # v is defined for alpha^2 + sigma^2 = 1.
        norm = torch.hypot(alpha, sigma)
        return (alpha * wide / norm - sigma * out) / norm


def check_scheduler(scheduler: Any) -> None:
    """ValueError for a scheduler that search cannot use."""
    name = type(scheduler).__name__
    if name not in SUPPORTED or not type(scheduler).__module__.startswith("diffusers."):
        why = WHY_NOT.get(name, f"supported are diffusers' own {', '.join(sorted(SUPPORTED))}")
        raise ValueError(f"search cannot use {name}: {why}; set pipe.scheduler to another one")
    if name == "PNDMScheduler" and not scheduler.config.skip_prk_steps:
        raise ValueError(
            "search cannot use PNDMScheduler with skip_prk_steps=False; set it to True"
        )


def laid_open(
    scheduler: Any,
    *,
    begin: int = 0,
    count: int | None = None,
    step_arguments: Mapping[str, Any] | None = None,
) -> Schedule:
    """The schedule of a scheduler whose timesteps are set, from position `begin` on, as where an
    image is redrawn.

    count: of its positions; None: all of them, though some schedulers list where the last step
        arrives.
    step_arguments: for the scheduler's step (eta). ValueError for a scheduler that cannot begin
        there.
    """
    name = type(scheduler).__name__
    # Blocks of modular pipelines leave them on the device.
    at = torch.as_tensor(scheduler.timesteps).cpu()[begin:][:count]
    full = _full(scheduler, len(at))
    end = begin + len(at)
    alpha, sigma = (values[begin:end] for values in _coefficients(scheduler, end))
    prediction = _prediction(scheduler)
    levels = (sigma.double() / (alpha.double() + sigma.double()))[full]
    # one step, say, that `shift_terminal` would end in two places
    if not bool(levels.isfinite().all()):
        raise ValueError(
            f"{name} knows no noise level for {len(at)} steps, got {levels.tolist()}, nor does the"
            " stock call; take more steps"
        )
    ends = [*full, len(at)]
    evals = tuple(b - a for a, b in pairwise(ends))
    grid = Grid((*levels.tolist(), 0.0), None if set(evals) == {1} else evals)
    flow = prediction == "flow"
    scale = torch.sqrt(sigma**2 + 1) if name in SCALED else None
    # its intermediate points are scaled by their own noise
    if scale is not None and name.startswith("KDPM2"):
        between = torch.as_tensor(scheduler.sigmas_interpol).cpu()[begin : begin + len(at)].float()
        if "Ancestral" in name:  # it keeps that noise with the point where the step began
            between = between.roll(1)
        scale = torch.sqrt(torch.where(torch.arange(len(at)) % 2 == 1, between, sigma) ** 2 + 1)
    kernel = _kernel(scheduler, dict(step_arguments or {}), begin)
    times = torch.cat([sigma.double()[full], torch.zeros(1, dtype=torch.float64)]) if flow else None
    path = Linear() if flow else None
    return Schedule(
        scheduler, at, alpha, sigma, scale, prediction, grid, path, times, kernel, name in NARROWING
    )


def _full(scheduler: Any, positions: int) -> list[int]:
    """Positions where a step begins. At the others x is an intermediate point, whose estimate
    serves no other step."""
    if getattr(scheduler, "order", 1) == 2:
        return list(range(0, positions, 2))
    if type(scheduler).__name__ == "PNDMScheduler" and positions > 1:
        return [0, *range(2, positions)]
    return list(range(positions))


def _coefficients(scheduler: Any, positions: int) -> tuple[Tensor, Tensor]:
    """alpha and sigma (P,) float32 at every position."""
    if getattr(scheduler, "sigmas", None) is not None:
        sigma = torch.as_tensor(scheduler.sigmas).cpu()[:positions].float()
        if type(scheduler).__name__.startswith(FLOWS):
            if scheduler.config.get("invert_sigmas"):  # Mochi's and OmniGen's: shares of the image
                return sigma, 1 - sigma
            return (torch.ones_like(sigma) if _grows(scheduler) else 1 - sigma), sigma
        # the DPM-Solver kin keep x at unit variance
        if hasattr(scheduler, "_sigma_to_alpha_sigma_t"):
            alpha, scaled = scheduler._sigma_to_alpha_sigma_t(sigma)
            return torch.as_tensor(alpha).float().expand_as(sigma), torch.as_tensor(scaled).float()
        return torch.ones_like(sigma), sigma
    if scheduler.config.get("prediction_type") == TRIGFLOW:
        angles = torch.as_tensor(scheduler.timesteps).cpu().float()
        return angles.cos().clamp(min=0), scheduler.config.sigma_data * angles.sin()
    kept = scheduler.alphas_cumprod[torch.as_tensor(scheduler.timesteps).long().cpu()].float()
    return kept.sqrt(), (1 - kept).sqrt()


def _grows(scheduler: Any) -> bool:
    """Whether noise is added to an image that is not scaled down, as in Cosmos 2: its steps read
    noise in place of velocities."""
    return float(torch.as_tensor(scheduler.sigmas).max()) > 1


def _prediction(scheduler: Any) -> str:
    if type(scheduler).__name__.startswith(FLOWS):
        if scheduler.config.get("invert_sigmas"):
            return "reverse_flow"
        return "epsilon" if _grows(scheduler) else "flow"
    kind = str(scheduler.config.get("prediction_type", "epsilon"))
    known = {
        "epsilon": "epsilon",
        "v_prediction": "v_prediction",
        "sample": "sample",
        "flow_prediction": "flow",
        TRIGFLOW: "v_prediction",
    }
    if kind not in known:
        raise ValueError(
            f"search cannot use prediction_type {kind!r}; known are {', '.join(known)}"
        )
    return known[kind]


def _kernel(scheduler: Any, arguments: dict[str, Any], begin: int) -> Kernel:
    """The scheduler's own step, exactly, from position `begin` on."""
    name = type(scheduler).__name__
    config = scheduler.config
    if name == FLOW_EULER and not config.stochastic_sampling:
        return FlowEuler(scheduler.sigmas[begin:].cpu())
    takes = inspect.signature(scheduler.step).parameters
    unknown = [k for k, v in arguments.items() if k not in takes and v]
    if unknown:
        raise ValueError(f"{name} takes no {', '.join(unknown)}")
    arguments = {k: v for k, v in arguments.items() if k in takes}
    eta = arguments.get("eta", takes["eta"].default if "eta" in takes else 0.0)
    # Most flow pipelines pass no generator to the step, so that stock noise comes from torch's
    # global state, which no seed reproduces. Here it always comes from the candidate's generator.
    sde = str(config.get("algorithm_type", "")).startswith("sde") or config.get(
        "stochastic_sampling", False
    )
    draws = name in STOCHASTIC or (name not in SUPPORTED and "generator" in takes)
    kept = name not in MEMORYLESS
    known = name in SUPPORTED
    return SchedulerKernel(
        scheduler, draws or bool(sde or eta), arguments, begin, copied=kept, apart=not known
    )
