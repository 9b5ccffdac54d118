"""What the rung "denoising" of `ttsnap check` finds of schedulers that fit a network, and of those
that do not.

    python benchmarks/wrong_schedulers.py              # the embedded model; minutes on a CPU
    python benchmarks/wrong_schedulers.py --steps 20

The embedded model is a flow. `Diffusion` makes of it a network that was trained for Stable
Diffusion's noise schedule and tells the noise, or v: the same estimates at the same ratio of signal
to noise. Each row is a scheduler over such a network; the columns are shares of noise at two
levels, and whether it fits.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from families import PIXART as LINEAR
from families import STABLE_DIFFUSION as TRAINED
from torch import Tensor

from ttsnap.check.denoising import denoising
from ttsnap.check.ladder import Rung, Setup
from ttsnap.core.prompt import Prompt
from ttsnap.files.writing import markdown
from ttsnap.options.engine import EngineOptions
from ttsnap.options.sampler import SamplerOptions
from ttsnap.pipelines import defaults, load
from ttsnap.request.request import EngineSpec
from ttsnap.reward_models.registry import make_rewards
from ttsnap.scenes import sample_prompts

SAME_ENDS = {**TRAINED, "beta_schedule": "linear"}
COSINE = {"beta_schedule": "squaredcos_cap_v2"}
V = {"prediction_type": "v_prediction"}


class Diffusion(torch.nn.Module):
    """A flow as a network of a diffusion model: told a timestep, it tells the noise or v at the
    same ratio of signal to noise."""

    def __init__(self, flow: Any, kind: str) -> None:
        super().__init__()
        self.flow, self.config, self.kind = flow, flow.config, kind
        self.dtype, self.device = flow.dtype, flow.device
        self.kept = DDIMScheduler(**TRAINED).alphas_cumprod

    def forward(self, hidden_states: Tensor, timestep: Tensor, **more: Any) -> tuple[Tensor]:
        """The output (N, ...) for x (N, ...) at timesteps (N,)."""
        kept = self.kept[timestep.long()].view(-1, 1, 1, 1)
        alpha, sigma = kept.sqrt(), (1 - kept).sqrt()
        x, level = hidden_states / (alpha + sigma), sigma / (alpha + sigma)
        velocity = self.flow(x, timestep=1000 * level.flatten(), **more)[0]
        noise = x + (1 - level) * velocity
        return (
            noise if self.kind == "epsilon" else alpha * noise - sigma * (x - level * velocity),
        )


def ddim(**config: Any) -> Any:
    return DDIMScheduler(**config, clip_sample=False)


CASES: dict[str, tuple[str | None, Any, bool]] = {
    "flow, shift 1": (None, FlowMatchEulerDiscreteScheduler(), True),
    "flow, shift 10": (None, FlowMatchEulerDiscreteScheduler(shift=10.0), True),
    "noise": ("epsilon", ddim(**TRAINED), True),
    "noise, DPM-Solver++": ("epsilon", DPMSolverMultistepScheduler(**TRAINED), True),
    "v": ("v_prediction", ddim(**TRAINED, **V), True),
    "noise taken for v": ("epsilon", ddim(**TRAINED, **V), False),
    "v taken for noise": ("v_prediction", ddim(**TRAINED), False),
    "a flow taken for noise": (None, ddim(**TRAINED), False),
    "noise, diffusers' default betas": ("epsilon", ddim(**LINEAR), False),
    "v, diffusers' default betas": ("v_prediction", ddim(**LINEAR, **V), False),
    "v, cosine betas": ("v_prediction", ddim(**COSINE, **V), False),
    "noise, betas linear in place of scaled_linear": ("epsilon", ddim(**SAME_ENDS), False),
}
"""What the network tells (None: the flow itself), the scheduler, and whether it fits."""


def measured(pipe: Any, kind: str | None, scheduler: Any, steps: int) -> Rung:
    """What the rung finds of the embedded model's pipeline with such a network, and this
    scheduler."""
    flow, own = pipe.transformer, pipe.scheduler
    pipe.transformer, pipe.scheduler = flow if kind is None else Diffusion(flow, kind), scheduler
    call = {**defaults("embedded"), "num_inference_steps": steps}
    spec = EngineSpec(
        None, make_rewards("brightness"), SamplerOptions(), EngineOptions(batch_size=8), call
    )
    prompts = tuple(map(Prompt, sample_prompts(8, 3)))
    try:
        with tempfile.TemporaryDirectory() as folder:
            return denoising(Setup(pipe, spec, prompts, Path(folder)))
    finally:
        pipe.transformer, pipe.scheduler = flow, own


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=10)
    a = parser.parse_args()
    torch.set_num_threads(1)
    pipe = load("embedded", dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    rows = []
    for title, (kind, scheduler, fits) in CASES.items():
        rung = measured(pipe, kind, scheduler, a.steps)
        found = {True: "fits", False: "does not", None: "unknown"}[rung.holds]
        figures = [f"{figure.value:.3g}" for figure in rung.figures.values()]
        figures += [""] * (6 - len(figures))  # where one step is nearest to both levels
        rows.append([title, *figures, "fits" if fits else "does not", found])
        print(title, *figures, found, flush=True)
    heads = [
        f"{what} at {level}" for level in ("0.6", "0.4") for what in ("removed %", "found", "meant")
    ]
    print(markdown(["network and scheduler", *heads, "truth", "found"], rows))


if __name__ == "__main__":
    main()
