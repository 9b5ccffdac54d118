"""Other paths under a pretrained model: equal x0 at equal noise, equal images in the limit of many steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler

from ttsnap import BestOfN, search
from ttsnap.pipelines import upgrade
from ttsnap.pipelines.latents.convert import convert
from ttsnap.pipelines.latents.schedule import make_schedule
from ttsnap.sampling.interpolants import rows
from ttsnap.sampling.paths import INTERPOLANTS
from ttsnap.sampling.rng import seeded

from ..cover import each_once  # noqa: TID252
from .tiny import FAMILIES

PATHS = list(INTERPOLANTS)
VP: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


EPS, V = EulerDiscreteScheduler(**VP), DDIMScheduler(**VP, prediction_type="v_prediction")


def dark(images: Any, prompts: Any) -> Any:
    return -images.mean((1, 2, 3))


@pytest.mark.parametrize(("path", "name"), each_once(PATHS, ["sd3", "sd15", "sdxl"]))
def test_converted_prediction_is_that_of_the_models_own_path(name: str, path: str) -> None:
    """At equal signal-to-noise ratio, x differs by a scale only, and the estimate not at all."""
    twin = upgrade(FAMILIES[name].build())
    own, other = (twin.denoiser(**FAMILIES[name].call, num_inference_steps=6) for _ in range(2))
    own.convert()
    other.convert(path)
    # VP does not reach pure noise: there it begins a little later.
    assert own.grid.levels[1:] == pytest.approx(other.grid.levels[1:], abs=1e-6)
    with torch.no_grad():
        for denoiser in (own, other):
            denoiser.encode(["a cat"])
        x0, eps = (other.init_latents([seeded(s)]).expand(6, *[-1] * 3) for s in (0, 1))
        k, cond = torch.arange(6), torch.zeros(6, dtype=torch.long)
        found = []
        for denoiser in (own, other):
            t = denoiser.times[:-1].float()
            x = rows(denoiser.path.alpha(t), x0) * x0 + rows(denoiser.path.sigma(t), x0) * eps
            found.append(denoiser.predict(x, k, cond).x0)
    error = (found[0] - found[1])[1:].abs().max() / found[0].abs().max()
    assert error < 2e-3


def images(twin: Any, call: dict[str, Any], **how: Any) -> torch.Tensor:
    engine = twin.engine(dark, batch_size=4, **call, **how)
    (result,) = search(["a cat"], BestOfN(4), engine, keep=4)
    by_seed = {c.seed: c.image for c in result.images}
    return torch.stack([by_seed[s] for s in range(4)])


def test_own_path_ode_is_the_scheduler_itself() -> None:
    """Euler for flows, DDIM for eps-models: the ode kernel on the model's own path and times makes the same images."""
    for name, scheduler in (("sd3", FlowMatchEulerDiscreteScheduler(shift=3.0)),
                            ("sd15", DDIMScheduler(**VP, clip_sample=False, set_alpha_to_one=True))):  # fmt: skip
        twin, call = upgrade(FAMILIES[name].build(scheduler)), {**FAMILIES[name].call, "num_inference_steps": 8}
        torch.testing.assert_close(images(twin, call, kernel="ode"), images(twin, call), atol=2e-4, rtol=0)


@pytest.mark.parametrize("scheduler", [EPS, V])
def test_eps_and_v_models_convert(scheduler: Any) -> None:
    schedule = make_schedule(scheduler, 5)
    for path in PATHS:
        found = convert(schedule, path, "uniform")
        assert found.grid.steps == 5
        assert float(found.scheduler.init_noise_sigma) == 1.0
        x0, eps = torch.randn(2, 5, 3, generator=seeded(0))
        a, s = rows(found.alpha, x0), rows(found.sigma, x0)
        norm = torch.hypot(a, s)
        out = {"epsilon": eps, "v_prediction": (a * eps - s * x0) / norm}[found.prediction]
        step = torch.arange(5)
        torch.testing.assert_close(found.x0(a * x0 + s * eps, out, step)[1:], x0[1:], atol=1e-4, rtol=1e-3)


def test_points_noisier_than_the_path_are_spread() -> None:
    schedule = make_schedule(FlowMatchEulerDiscreteScheduler(shift=12.0), 30)
    times = convert(schedule, "vp").times
    assert times is not None
    assert times[0] == 1
    assert bool((times.diff() < 0).all())


def test_rbf_times_stay_near_the_noise() -> None:
    """reference: RBF's 10 steps on VP, in FLUX's own times."""
    schedule = make_schedule(FlowMatchEulerDiscreteScheduler(), 10)
    found = convert(schedule, "vp", "sqrt")
    known = [0.993, 0.993, 0.992, 0.990, 0.986, 0.978, 0.962, 0.929, 0.859, 0.709]
    assert (found.timesteps / 1000).tolist() == pytest.approx(known, abs=6e-4)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"kernel": "ode", "path": "straight"}, "unknown path"),
        ({"kernel": "ode", "times": "late"}, "unknown times"),
        ({"kernel": "ode", "times": torch.tensor([1.0, 0.5])}, "end with 0"),
        ({"kernel": "walk"}, "unknown kernel"),
        ({"path": "vp"}, "own kernel keeps to its path"),
    ],
)
def test_what_does_not_fit_is_refused(how: dict[str, Any], message: str) -> None:
    twin = upgrade(FAMILIES["sd3"].build())
    with pytest.raises(ValueError, match=message):
        twin.engine(dark, **FAMILIES["sd3"].call, num_inference_steps=4, **how)
