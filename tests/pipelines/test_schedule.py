"""Schedules against closed forms, and the counting of solvers that evaluate twice a step."""

from __future__ import annotations

import copy
from typing import Any

import diffusers
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.scripted import Played
from ttsnap import BestOfN, SeedPruning, search
from ttsnap.core.moves import advance, fresh
from ttsnap.core.needs import Need
from ttsnap.engine.live import LiveEngine
from ttsnap.options.engine import EngineOptions
from ttsnap.pipelines.latents.convert import convert
from ttsnap.pipelines.latents.schedule import SUPPORTED, make_schedule
from ttsnap.pipelines.latents.scheduler_kernel import SchedulerKernel
from ttsnap.rewards.reward_model import FunctionReward
from ttsnap.sampling.interpolants import rows
from ttsnap.sampling.kernels import Prediction
from ttsnap.sampling.mixture import MixtureDenoiser
from ttsnap.sampling.rng import seeded

VP: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SOLVERS = ["FlowMatchHeunDiscreteScheduler", "DPMSolverMultistepScheduler", "FlowMatchLCMScheduler"]
OPTIONS: dict[str, dict[str, Any]] = {
    "PNDMScheduler": {"skip_prk_steps": True},
    "DDIMScheduler": {"clip_sample": False},
    "DDPMScheduler": {"clip_sample": False},
}
TWO_STAGES = ("Heun", "KDPM2")


def bright() -> Any:
    return FunctionReward(lambda images, prompts: images.double().mean((1, 2, 3)), "bright")


def scheduler(name: str, **more: Any) -> Any:
    base = {} if name.startswith("FlowMatch") else VP
    return getattr(diffusers, name)(**{**base, **OPTIONS.get(name, {}), **more})


@pytest.mark.parametrize("name", sorted(SUPPORTED))
def test_levels_fall_and_two_stage_steps_count_twice(name: str) -> None:
    schedule = make_schedule(scheduler(name), 6)
    grid = schedule.grid
    assert grid.steps == 6
    if name == "PNDMScheduler":
        assert grid.evals == (2, 1, 1, 1, 1, 1)
    elif any(word in name for word in TWO_STAGES):
        assert grid.evals == (2, 2, 2, 2, 2, 1)
    else:
        assert grid.evals is None
    assert grid.nfe == len(schedule.timesteps) == len(schedule.alpha) == len(schedule.sigma)


@pytest.mark.parametrize("name", sorted(SUPPORTED))
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_x0_is_recovered_from_what_the_network_puts_out(name: str, kind: str) -> None:
    if name.startswith("FlowMatch"):
        kind = "flow"
    try:
        schedule = make_schedule(scheduler(name, **({} if kind == "flow" else {"prediction_type": kind})), 6)
    except (ValueError, NotImplementedError) as error:
        pytest.skip(str(error))
    x0, eps = torch.randn(2, len(schedule.timesteps), 3, generator=seeded(0))
    step = torch.arange(len(x0))
    alpha, sigma = rows(schedule.alpha[step], x0), rows(schedule.sigma[step], x0)
    norm = torch.hypot(alpha, sigma)
    out = {
        "epsilon": eps,
        "sample": x0,
        "flow": eps - x0,
        "v_prediction": (alpha * eps - sigma * x0) / norm,
    }[kind]
    torch.testing.assert_close(schedule.x0(alpha * x0 + sigma * eps, out, step), x0, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("IPNDMScheduler", {}, "cannot use IPNDMScheduler"),
        ("PNDMScheduler", {"skip_prk_steps": False}, "skip_prk_steps"),
        ("EulerDiscreteScheduler", {"prediction_type": "original"}, "prediction_type"),
    ],
)
def test_what_search_cannot_use_is_refused(name: str, more: dict[str, Any], message: str) -> None:
    made = getattr(diffusers, name)() if name == "IPNDMScheduler" else scheduler(name, **more)
    with pytest.raises(ValueError, match=message):
        make_schedule(made, 5)


def test_the_scheduler_itself_stays_as_it_is() -> None:
    own = scheduler("DPMSolverMultistepScheduler")
    own.set_timesteps(3)
    before = own.timesteps.clone()
    make_schedule(own, 9)
    assert torch.equal(own.timesteps, before)


class Solved(MixtureDenoiser):
    """A Gaussian mixture under a diffusers scheduler for flows. Counts calls."""

    def __init__(self, name: str, steps: int) -> None:
        generator = seeded(0)
        means, weights = torch.randn(4, 3, generator=generator), torch.tensor([0.1, 0.2, 0.3, 0.4])
        super().__init__(means, torch.full((4,), 0.3), weights, steps=steps)
        options = (
            {} if name.startswith("FlowMatch") else {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
        )
        self.schedule = make_schedule(getattr(diffusers, name)(**options), steps)
        self.grid, self.kernel, self.calls = self.schedule.grid, self.schedule.kernel, 0

    def predict(self, x: Any, step: Any, cond: Any) -> Prediction:
        self.calls += len(x)
        t = self.schedule.sigma[step].double()
        x0 = self.posterior_mean(x.double(), t)
        return Prediction((x.double() - x0) / rows(t, x.double()), x0)


@given(
    name=st.sampled_from(SOLVERS),
    seeds=st.integers(1, 9),
    check=st.integers(0, 3),
    budget=st.integers(8, 70),
    batch=st.integers(1, 7),
    stop_after=st.none() | st.integers(0, 12),
)
@settings(max_examples=30, deadline=None)
def test_ledger_equals_counter_and_is_kept_whatever_the_solver(
    name: str, seeds: int, check: int, budget: int, batch: int, stop_after: int | None
) -> None:
    denoiser, ticks = Solved(name, 4), []
    engine = LiveEngine(denoiser, [bright()], EngineOptions(batch))
    results = search(
        ["a", "b"],
        SeedPruning(seeds, (0.5,), steps=(check,)),
        engine,
        f"{budget}nfe",
        on_event=lambda event: ticks.append(event) if event.kind == "tick" else None,
        should_stop=lambda: stop_after is not None and len(ticks) > stop_after,
    )
    assert sum(r.spent.nfe for r in results) == denoiser.calls
    assert all(r.spent.nfe <= budget for r in results)
    assert all(r.images for r in results) or stop_after is not None


class NoisySolved(Solved):
    def __init__(self, name: str, steps: int) -> None:
        super().__init__(name, steps)
        options = {"algorithm_type": "sde-dpmsolver++"} if name.startswith("DPM") else {}
        flow = {} if name.startswith("FlowMatch") else {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
        self.schedule = make_schedule(getattr(diffusers, name)(**flow, **options), steps)
        self.grid, self.kernel = self.schedule.grid, self.schedule.kernel


@pytest.mark.parametrize("name", ["FlowMatchLCMScheduler", "DPMSolverMultistepScheduler", "SASolverScheduler"])
def test_branches_come_apart_and_the_first_goes_on_as_if_alone(name: str) -> None:
    alone = LiveEngine(NoisySolved(name, 5), [bright()], EngineOptions(1))
    (expected,) = search(["a"], BestOfN(1), alone, seed=3)
    # One candidate to step 2, four children of it to the end.
    twins = Played((lambda p: fresh(1, 2, score=False), lambda p: advance(p, [0] * 4, 5)), frozenset({Need.BRANCH}))
    found = []
    for batch in (1, 3, 8):
        denoiser = NoisySolved(name, 5)
        engine = LiveEngine(denoiser, [bright()], EngineOptions(batch))
        assert Need.BRANCH in engine.offers
        (result,) = search(["a"], twins, engine, seed=3, keep=4)
        found.append({c.uid: c.reward for c in result.images})
        assert denoiser.calls == result.spent.nfe == 2 + 1 + 4 * 2
    assert found[1] == pytest.approx(found[0], abs=1e-6)
    assert found[2] == pytest.approx(found[0], abs=1e-6)
    assert len(set(found[0].values())) == 4
    assert found[0][0] == pytest.approx(expected.best.reward, abs=1e-6)


def test_heun_is_more_exact_than_euler() -> None:
    """A known answer: with many steps both reach the flow's end point; at equal steps the second order is closer."""

    def end(name: str, steps: int) -> torch.Tensor:
        denoiser = Solved(name, steps)
        engine = LiveEngine(denoiser, [bright()], EngineOptions(8, keep=("latents",)))
        found: dict[int, Any] = {}
        search(
            ["a"],
            BestOfN(8),
            engine,
            on_event=lambda e: found.update({e.uids[0]: e.kept["latent"]}) if e.kept else None,
        )
        return torch.stack([found[i] for i in range(8)]).double()

    exact = end("FlowMatchHeunDiscreteScheduler", 200)
    error = {name: (end(name, 12) - exact).abs().mean() for name in
             ("FlowMatchHeunDiscreteScheduler", "FlowMatchEulerDiscreteScheduler")}  # fmt: skip
    assert error["FlowMatchHeunDiscreteScheduler"] < 0.3 * error["FlowMatchEulerDiscreteScheduler"]


@pytest.mark.parametrize("name", sorted(SUPPORTED))
def test_the_dtype_of_stepped_latents_is_foreseen(name: str) -> None:
    """Under autocast noise is wide and what the network puts out is narrow."""
    schedule = make_schedule(scheduler(name), 4)
    for noise in (torch.float32, torch.bfloat16):
        own, x = copy.deepcopy(schedule.scheduler), torch.ones(1, 4, 2, 2, dtype=noise)
        for position in range(len(schedule.timesteps)):
            out = torch.full(x.shape, 0.1, dtype=torch.bfloat16)
            x = SchedulerKernel(own, True, {})._step(own, x, out, position, [torch.Generator()])
            assert x.dtype == schedule.stepped(noise, torch.bfloat16)
    assert not convert(schedule, "cosine").narrows  # the kernels of ttsnap keep the dtype of the noise
