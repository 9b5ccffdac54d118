"""Schedules against closed forms, solvers that evaluate twice a step, and other paths under a
pretrained model."""

from __future__ import annotations

import copy
import functools
import random

import diffusers
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from tests.scripted import Played
from ttsnap import BestOfN, SeedPruning, search
from ttsnap.core.moves import advance, fresh
from ttsnap.core.needs import Need
from ttsnap.core.selection import Selection
from ttsnap.engine.live import LiveEngine
from ttsnap.options.engine import EngineOptions
from ttsnap.pipelines import upgrade
from ttsnap.pipelines.latents.convert import convert
from ttsnap.pipelines.latents.schedule import (
    HISTORY,
    SUPPORTED,
    check_scheduler,
    laid_open,
)
from ttsnap.pipelines.latents.scheduler_kernel import SchedulerKernel
from ttsnap.rewards.reward_model import FunctionReward
from ttsnap.sampling.interpolants import rows
from ttsnap.sampling.kernels import Prediction
from ttsnap.sampling.mixture import MixtureDenoiser
from ttsnap.sampling.paths import INTERPOLANTS
from ttsnap.sampling.rng import seeded

from ..cover import each_once  # noqa: TID252
from .tiny import FAMILIES, shared
from .tiny import STABLE_DIFFUSION_BETAS as VP

SOLVERS = ["FlowMatchHeunDiscreteScheduler", "DPMSolverMultistepScheduler", "FlowMatchLCMScheduler"]
OPTIONS = {
    "PNDMScheduler": {"skip_prk_steps": True},
    "DDIMScheduler": {"clip_sample": False},
    "DDPMScheduler": {"clip_sample": False},
}
TWO_STAGES = ("Heun", "KDPM2", "PNDM")


def opened(scheduler, steps):
    """The schedule of a copy that is set to these steps, as by a stock call."""
    check_scheduler(scheduler)
    own = copy.deepcopy(scheduler)
    with np.errstate(invalid="ignore"):
        own.set_timesteps(steps, device="cpu")
    if hasattr(own, "set_begin_index"):
        own.set_begin_index(0)
    return laid_open(own)


def scheduler(name, **more):
    return copy.deepcopy(as_made(name, **more))


@functools.cache  # KDPM2's take a third of a second
def as_made(name, **more):
    base = {} if name.startswith("FlowMatch") else VP
    return getattr(diffusers, name)(**{**base, **OPTIONS.get(name, {}), **more})


@pytest.mark.parametrize("name", sorted(SUPPORTED))
def test_two_stage_steps_count_twice_and_the_scheduler_itself_stays_as_it_is(name):
    own = scheduler(name)
    own.set_timesteps(3)
    before, schedule = own.timesteps.clone(), opened(own, 6)
    grid = schedule.grid
    assert torch.equal(own.timesteps, before)
    twice = (2, 1, 1, 1, 1, 1) if name == "PNDMScheduler" else (2, 2, 2, 2, 2, 1)
    assert (grid.steps, grid.evals) == (
        6,
        twice if any(word in name for word in TWO_STAGES) else None,
    )
    assert grid.nfe == len(schedule.timesteps) == len(schedule.alpha) == len(schedule.sigma)


def test_a_call_whose_noise_levels_are_no_numbers_is_refused():
    """One step ends at `shift_terminal` and begins at pure noise."""
    own = scheduler("FlowMatchEulerDiscreteScheduler", shift_terminal=0.1)
    assert opened(own, 2).grid.levels == pytest.approx((1.0, 0.1, 0.0))
    with pytest.raises(ValueError, match=r"1 steps.*nan.*more steps"):
        opened(own, 1)


@pytest.mark.parametrize("name", sorted(SUPPORTED))
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_x0_is_recovered_from_what_the_network_puts_out(name, kind):
    kind = "flow" if name.startswith("FlowMatch") else kind
    more = {} if kind == "flow" else {"prediction_type": kind}
    # there is nothing but noise at the first step
    if (name, kind) == ("DDIMScheduler", "v_prediction"):
        more |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    try:
        schedule = opened(scheduler(name, **more), 6)
    except (ValueError, NotImplementedError) as error:
        pytest.skip(str(error))
    for made, begin in ((schedule, 0), (convert(schedule, "cosine", "uniform"), 1)):
        x0, eps = torch.randn(2, len(made.alpha), 3, generator=seeded(0))
        alpha, sigma = rows(made.alpha, x0), rows(made.sigma, x0)
        v = (alpha * eps - sigma * x0) / torch.hypot(alpha, sigma)
        out = {"epsilon": eps, "sample": x0, "flow": eps - x0, "v_prediction": v}[kind]
        found = made.x0(alpha * x0 + sigma * eps, out, torch.arange(len(x0)))
        torch.testing.assert_close(found[begin:], x0[begin:], atol=2e-4, rtol=1e-3)


class Elsewhere(torch.Tensor):
    """On a device that CPUs share no calculation with."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is torch.Tensor.cpu:
            return args[0].as_subclass(torch.Tensor)
        given = [t for arg in args for t in (arg if isinstance(arg, list | tuple) else [arg])]
        if any(type(t) is torch.Tensor and t.ndim for t in given):
            raise RuntimeError(f"{func.__name__}: all tensors are to be on the same device")
        return super().__torch_function__(func, types, args, kwargs or {})


@pytest.mark.parametrize("name", sorted(SUPPORTED))
def test_a_scheduler_set_on_another_device_is_laid_open_on_the_cpu(name):
    """As by blocks of modular pipelines. Schedulers but those of flows bring sigmas back
    themselves."""
    own = scheduler(name)
    own.set_timesteps(4)
    expected = laid_open(copy.deepcopy(own))
    for value in ("timesteps", "sigmas", "sigmas_interpol"):
        if getattr(own, value, None) is not None:
            setattr(own, value, getattr(own, value).as_subclass(Elsewhere))
    found = laid_open(own)
    for value in ("timesteps", "alpha", "sigma", "scale", "times"):
        ours, theirs = getattr(found, value), getattr(expected, value)
        assert type(ours) is type(theirs)
        assert ours is None or torch.equal(ours, theirs)
    assert found.grid == expected.grid
    assert type(getattr(found.kernel, "sigmas", found.sigma)) is torch.Tensor


@pytest.mark.parametrize(
    ("name", "more", "said"),
    [
        ("IPNDMScheduler", {}, "IPNDMScheduler"),
        ("PNDMScheduler", {"skip_prk_steps": False}, "skip_prk_steps"),
        ("EulerDiscreteScheduler", {"prediction_type": "original"}, "'original'"),
    ],
)
def test_what_search_cannot_use_is_refused(name, more, said):
    own = getattr(diffusers, name)(**more)
    with pytest.raises(ValueError, match=said):
        opened(own, 5)


class Solved(MixtureDenoiser):
    """A Gaussian mixture under a diffusers scheduler for flows. Counts calls."""

    def __init__(self, name, steps, **options):
        means, weights = torch.randn(4, 3, generator=seeded(0)), torch.tensor([0.1, 0.2, 0.3, 0.4])
        super().__init__(means, torch.full((4,), 0.3), weights, steps=steps)
        flow = (
            {}
            if name.startswith("FlowMatch")
            else {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
        )
        self.schedule = opened(getattr(diffusers, name)(**flow, **options), steps)
        self.grid, self.kernel, self.calls = self.schedule.grid, self.schedule.kernel, 0

    def predict(self, x, step, cond):
        self.calls += len(x)
        t = self.schedule.sigma[step].double()
        x0 = self.posterior_mean(x.double(), t)
        return Prediction((x.double() - x0) / rows(t, x.double()), x0)


def engine(denoiser, batch):
    bright = FunctionReward(lambda images, prompts: images.double().mean((1, 2, 3)), "bright")
    return LiveEngine(denoiser, [bright], EngineOptions(batch))


@given(
    name=st.sampled_from(SOLVERS),
    pruning=st.builds(
        lambda n, check: SeedPruning(n, (0.5,), steps=(check,)),
        st.integers(1, 9),
        st.integers(0, 3),
    ),
    budget=st.integers(8, 70),
    batch=st.integers(1, 7),
    stop_after=st.none() | st.integers(0, 12),
)
@settings(max_examples=20, deadline=None)
def test_ledger_equals_counter_and_is_kept_whatever_the_solver(
    name, pruning, budget, batch, stop_after
):
    denoiser, ticks = Solved(name, 4), []
    results = search(
        ["a", "b"],
        pruning,
        engine(denoiser, batch),
        f"{budget}nfe",
        on_event=lambda event: ticks.append(event) if event.kind == "tick" else None,
        should_stop=lambda: stop_after is not None and len(ticks) > stop_after,
    )
    assert sum(r.spent.nfe for r in results) == denoiser.calls
    assert all(r.spent.nfe <= budget for r in results)
    assert all(r.images for r in results) or stop_after is not None


@pytest.mark.parametrize(
    "name", ["FlowMatchLCMScheduler", "DPMSolverMultistepScheduler", "SASolverScheduler"]
)
def test_branches_come_apart_and_the_first_goes_on_as_if_alone(name):
    noisy = {"algorithm_type": "sde-dpmsolver++"} if name.startswith("DPM") else {}
    (expected,) = search(["a"], BestOfN(1), engine(Solved(name, 5, **noisy), 1), seed=3)
    # One candidate to step 2, four children of it to the end.
    twins = Played(
        (lambda p: fresh(1, 2, score=False), lambda p: advance(p, [0] * 4, 5)),
        frozenset({Need.BRANCH}),
    )
    found = []
    for batch in (1, 3, 8):
        live = engine(denoiser := Solved(name, 5, **noisy), batch)
        assert Need.BRANCH in live.offers
        (result,) = search(["a"], twins, live, seed=3, selection=Selection(keep=4))
        found.append({c.uid: c.reward for c in result.images})
        assert denoiser.calls == result.spent.nfe == 2 + 1 + 4 * 2
        assert found[-1] == pytest.approx(found[0], abs=1e-6)
    assert len(set(found[0].values())) == 4
    assert found[0][0] == pytest.approx(expected.best.reward, abs=1e-6)


class Operators(TorchDispatchMode):
    """Counts what runs."""

    count = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.count += 1
        return operator(*args, **(kwargs or {}))


def one_by_one(kernel, noise, outs):
    """Where each row is after each position, alone."""
    found = []
    for i, row in enumerate(noise.split(1)):
        states, found = [kernel.init(row[0], (i, 0), seeded(i))], [*found, [row]]
        for p, out in enumerate(outs[:, i : i + 1]):
            row, states = kernel.step(
                row, Prediction(out, out), torch.tensor([p]), [(i, 0, p)], states
            )
            found[i].append(row)
    return found


@pytest.mark.parametrize("name", sorted(HISTORY))
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_rows_of_equal_history_step_together_to_the_bit(name, kind):
    schedule, draw = opened(scheduler(name), 5), random.Random(0)
    kernel = schedule.kernel
    noise = torch.randn(5, 4, 5, 7, generator=seeded(0)).to(kind)
    outs = torch.randn(len(schedule.timesteps), *noise.shape, generator=seeded(1)).to(kind)
    alone = one_by_one(kernel, noise, outs)
    x, at = dict(enumerate(noise)), dict.fromkeys(range(len(noise)), 0)
    states = {i: kernel.init(x[i], (i, 0), seeded(i)) for i in x}
    while left := [i for i in x if at[i] < len(outs)]:
        some = draw.sample(left, draw.randint(1, len(left)))
        out, k = torch.stack([outs[at[i], i] for i in some]), torch.tensor([at[i] for i in some])
        here, before = torch.stack([x[i] for i in some]), [states[i] for i in some]
        moved, after = kernel.step(
            here, Prediction(out, out), k, [(i, 0, at[i]) for i in some], before
        )
        for i, row, state in zip(some, moved, after, strict=True):
            x[i], states[i], at[i] = row, state, at[i] + 1
            assert torch.equal(row, alone[i][at[i]][0])


@pytest.mark.parametrize("name", ["UniPCMultistepScheduler", "DPMSolverMultistepScheduler"])
def test_a_step_of_eight_rows_takes_few_more_operators_than_the_stock_step(name):
    schedule = opened(scheduler(name), 6)
    kernel, stock = schedule.kernel, copy.deepcopy(schedule.scheduler)
    x = torch.randn(8, 4, 5, 7, generator=seeded(0))
    states = [kernel.init(row, (i, 0), seeded(i)) for i, row in enumerate(x)]
    for p, n in enumerate((8, 8, 4, 4)):  # half of them are pruned
        keys, out = [(i, 0, p) for i in range(n)], x[:n]
        with (ours := Operators()):
            _, states = kernel.step(out, Prediction(out, out), torch.full([n], p), keys, states[:n])
        with (theirs := Operators()):
            stock.step(x, stock.timesteps[p], x)
        assert ours.count <= 1.5 * theirs.count


def test_only_a_flow_goes_back_to_noisier_steps():
    own = {
        name: upgrade(shared(name)).engine("brightness", **FAMILIES[name].call).offers
        for name in ("sd3", "sdxl")
    }
    assert {name: Need.RENOISE in offers for name, offers in own.items()} == {
        "sd3": True,
        "sdxl": False,
    }


@pytest.mark.parametrize("name", sorted(SUPPORTED))
def test_the_dtype_of_stepped_latents_is_foreseen(name):
    """Under autocast noise is wide and what the network puts out is narrow."""
    schedule = opened(scheduler(name), 4)
    for noise in (torch.float32, torch.bfloat16):
        own, x = copy.deepcopy(schedule.scheduler), torch.ones(1, 4, 2, 2, dtype=noise)
        for position in range(len(schedule.timesteps)):
            out = torch.full(x.shape, 0.1, dtype=torch.bfloat16)
            x = SchedulerKernel(own, True, {})._step(own, x, out, position, [torch.Generator()])
            assert x.dtype == schedule.stepped(noise, torch.bfloat16)
    # the kernels of ttsnap keep the dtype of the noise
    assert not convert(schedule, "cosine").narrows


@pytest.mark.parametrize(("path", "name"), each_once(list(INTERPOLANTS), ["sd3", "sd15", "sdxl"]))
@torch.no_grad()
def test_converted_prediction_is_that_of_the_models_own_path(name, path):
    """At equal signal-to-noise ratio, x differs by a scale only, and the estimate not at all."""
    own, other = (
        upgrade(shared(name)).denoiser(**FAMILIES[name].call, num_inference_steps=6)
        for _ in range(2)
    )
    for denoiser, on in ((own, None), (other, path)):
        denoiser.convert(on)
        denoiser.encode(["a cat"])
    # VP does not reach pure noise: there it begins a little later.
    assert own.grid.levels[1:] == pytest.approx(other.grid.levels[1:], abs=1e-6)
    x0, eps = (other.init_latents([seeded(s)]).expand(6, *[-1] * 3) for s in (0, 1))
    found = []
    for denoiser in (own, other):
        t = denoiser.times[:-1].float()
        x = rows(denoiser.path.alpha(t), x0) * x0 + rows(denoiser.path.sigma(t), x0) * eps
        found.append(denoiser.predict(x, torch.arange(6), torch.zeros(6, dtype=torch.long)).x0)
    error = (found[0] - found[1])[1:].abs().max() / found[0].abs().max()
    assert error < 2e-3


def images(twin, call, **how):
    (result,) = search(
        ["a cat"],
        BestOfN(4),
        twin.engine("brightness", batch_size=4, **call, **how),
        selection=Selection(keep=4),
    )
    by_seed = {c.seed: c.image for c in result.images}
    return torch.stack([by_seed[s] for s in range(4)])


def test_own_path_ode_is_the_scheduler_itself():
    """Euler for flows, DDIM for eps-models: the ode kernel on the model's own path and times makes
    the same images."""
    ddim = diffusers.DDIMScheduler(**VP, clip_sample=False, set_alpha_to_one=True)
    for name, own in (
        ("sd3", diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)),
        ("sd15", ddim),
    ):
        twin, call = (
            upgrade(FAMILIES[name].build(own)),
            {**FAMILIES[name].call, "num_inference_steps": 8},
        )
        torch.testing.assert_close(
            images(twin, call, kernel="ode"), images(twin, call), atol=2e-4, rtol=0
        )


def test_rbf_times_stay_near_the_noise():
    """reference: RBF's 10 steps on VP, in FLUX's own times."""
    noisier = convert(opened(diffusers.FlowMatchEulerDiscreteScheduler(shift=12.0), 30), "vp").times
    # points noisier than the path are spread
    assert (noisier[0], bool((noisier.diff() < 0).all())) == (1, True)
    found = convert(opened(diffusers.FlowMatchEulerDiscreteScheduler(), 10), "vp", "sqrt")
    known = [0.993, 0.993, 0.992, 0.990, 0.986, 0.978, 0.962, 0.929, 0.859, 0.709]
    assert (found.timesteps / 1000).tolist() == pytest.approx(known, abs=6e-4)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"kernel": "ode", "path": "straight"}, "path 'straight'"),
        ({"kernel": "ode", "times": "late"}, "times 'late'"),
        ({"kernel": "ode", "times": torch.tensor([1.0, 0.5])}, "end with 0"),
        ({"kernel": "walk"}, "kernel 'walk'"),
        ({"path": "vp"}, "own kernel"),
    ],
)
def test_what_does_not_fit_is_refused(how, message):
    with pytest.raises(ValueError, match=message):
        upgrade(shared("sd3")).engine(
            "brightness", **FAMILIES["sd3"].call, num_inference_steps=4, **how
        )
