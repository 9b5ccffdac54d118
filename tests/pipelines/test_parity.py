"""Every family under many schedulers against stock diffusers: the same pictures, pruned or not, in any batch.

What a stock pipeline cannot run, or cannot run from a seed, is not in the tables; the comments say why.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    FlowMatchLCMScheduler,
    HeunDiscreteScheduler,
    KDPM2AncestralDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LCMScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    SASolverScheduler,
    TCDScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from ttsnap import BestOfN, Event, SeedPruning, search
from ttsnap.core.protocols import Algorithm
from ttsnap.core.results import Result
from ttsnap.pipelines import FAMILIES as SUPPORTED
from ttsnap.pipelines import upgrade

from .tiny import DYNAMIC_SHIFT, FAMILIES, PIXART_BETAS, STABLE_DIFFUSION_BETAS

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers.*")  # NumPy's, from DEIS

STEPS = 4
SEED = 3
PROMPTS = ["a cat", "two dogs in snow"]
PRUNING = SeedPruning(6, (0.5, 0.7), steps=(1, 2))  # 6 seeds, 3 go on from step 1, 2 from step 2
# Of two prompts with two images each, these give the second image the other prompt's mask.
MIXED_MASKS = {"sana", "qwen_image", "lumina2"}


class Variant(NamedTuple):
    """A scheduler (None: the family's own), what the call is given with it, and how far batches may differ."""

    scheduler: Callable[[], Any] | None
    call: dict[str, Any] = {}  # noqa: RUF012
    tolerance: float = 1e-4


DEFAULT = Variant(None)


def variance_preserving(betas: dict[str, Any]) -> dict[str, Variant]:
    """SD1.5, SDXL and PixArt hand their generator to the scheduler's step, so that all solvers start from a seed.

    PNDM runs without skip_prk_steps, too, with four evaluations in each of its first steps, but no checkpoint is
    shipped like that. DPMSolverSDE takes its noise from torchsde, not from the generator.
    """

    def make(scheduler: Any, **options: Any) -> Callable[[], Any]:
        return functools.partial(scheduler, **betas, **options)

    dpm = functools.partial(make, DPMSolverMultistepScheduler)
    ddim = make(DDIMScheduler, clip_sample=False)
    zero_snr = {
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
        "clip_sample": False,
    }
    return {
        "default": DEFAULT,
        "pndm": Variant(make(PNDMScheduler, skip_prk_steps=True)),
        "ddim": Variant(ddim),
        "ddim-eta": Variant(ddim, {"eta": 0.5}),
        "ddim-zero-snr": Variant(make(DDIMScheduler, **zero_snr)),
        "ddpm": Variant(make(DDPMScheduler, clip_sample=False)),
        "euler": Variant(make(EulerDiscreteScheduler)),
        "euler-ancestral": Variant(make(EulerAncestralDiscreteScheduler)),
        "dpm++2m-karras": Variant(dpm(use_karras_sigmas=True)),
        "sde-dpm++2m": Variant(dpm(algorithm_type="sde-dpmsolver++")),
        "dpm-single": Variant(make(DPMSolverSinglestepScheduler, lower_order_final=True)),
        "unipc": Variant(make(UniPCMultistepScheduler)),
        "deis": Variant(make(DEISMultistepScheduler)),
        "sa": Variant(make(SASolverScheduler)),
        "lms": Variant(make(LMSDiscreteScheduler)),
        "heun": Variant(make(HeunDiscreteScheduler)),
        "kdpm2": Variant(make(KDPM2DiscreteScheduler)),
        "kdpm2-ancestral": Variant(make(KDPM2AncestralDiscreteScheduler)),
        "lcm": Variant(make(LCMScheduler)),
        "tcd": Variant(make(TCDScheduler)),
    }


def flow(*names: str) -> dict[str, Variant]:
    """The default and these of FLOW."""
    return {"default": DEFAULT, **{name: FLOW[name] for name in names}}


def flow_euler(**options: Any) -> Variant:
    return Variant(functools.partial(FlowMatchEulerDiscreteScheduler, **options))


def flow_solver(scheduler: Any, **options: Any) -> Variant:
    fixed = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    return Variant(functools.partial(scheduler, **fixed, **options))


FLOW: dict[str, Variant] = {
    "euler": flow_euler(shift=3.0),
    "euler-dynamic": flow_euler(**DYNAMIC_SHIFT),
    "euler-linear": flow_euler(**DYNAMIC_SHIFT, time_shift_type="linear"),
    "euler-terminal": flow_euler(shift=3.0, shift_terminal=0.02),
    "euler-karras": flow_euler(shift=3.0, use_karras_sigmas=True),
    "euler-exponential": flow_euler(shift=3.0, use_exponential_sigmas=True),
    "euler-beta": flow_euler(shift=3.0, use_beta_sigmas=True),
    "euler-stochastic": flow_euler(shift=3.0, stochastic_sampling=True),
    "heun": Variant(functools.partial(FlowMatchHeunDiscreteScheduler, shift=3.0)),
    "lcm": Variant(functools.partial(FlowMatchLCMScheduler, shift=3.0)),
    "unipc": flow_solver(UniPCMultistepScheduler),
    "unipc-dynamic": flow_solver(UniPCMultistepScheduler, use_dynamic_shifting=True),
    "dpm++2m": flow_solver(DPMSolverMultistepScheduler),
    "dpm++2m-dynamic": flow_solver(DPMSolverMultistepScheduler, use_dynamic_shifting=True),
    "dpm++3m": flow_solver(DPMSolverMultistepScheduler, solver_order=3),
    "sde-dpm++2m": flow_solver(DPMSolverMultistepScheduler, algorithm_type="sde-dpmsolver++"),
    "dpm-single": flow_solver(DPMSolverSinglestepScheduler, lower_order_final=True),
    "dpm-single-dynamic": flow_solver(DPMSolverSinglestepScheduler, lower_order_final=True, use_dynamic_shifting=True),
    # It calculates with sigma / alpha, some thousands where a flow begins, and so magnifies the last digits.
    "deis": flow_solver(DEISMultistepScheduler)._replace(tolerance=1e-3),
    "deis-dynamic": flow_solver(DEISMultistepScheduler, use_dynamic_shifting=True)._replace(tolerance=1e-3),
    "sa": flow_solver(SASolverScheduler),
}

# Flux and Klein pass mu to every scheduler. DPM-Solver and DEIS assert dynamic shifting then, SASolver and
# FlowMatchHeun take none. They leave sigmas to those with use_flow_sigmas.
FLUX = flow(
    "euler", "euler-dynamic", "euler-linear", "euler-karras", "unipc", "unipc-dynamic", "dpm++2m-dynamic",
    "dpm-single-dynamic", "deis-dynamic",
)  # fmt: skip
# Qwen and Lumina2 pass sigmas to every scheduler: of the solvers only UniPC takes them. FlowMatchHeun takes none.
SIGMAS = flow(
    "euler", "euler-dynamic", "euler-linear", "euler-terminal", "euler-karras", "euler-exponential", "unipc",
    "unipc-dynamic",
)  # fmt: skip

# Of the flow pipelines only Sana hands its generator to the step. In the others what draws noise (FlowMatchLCM,
# stochastic FlowMatchEuler, SDE-DPM-Solver++, SASolver) takes it from torch's global state: no seed makes it again.
SCHEDULERS: dict[str, dict[str, Variant]] = {
    "sd15": variance_preserving(STABLE_DIFFUSION_BETAS),
    "sdxl": variance_preserving(STABLE_DIFFUSION_BETAS),
    "pixart_sigma": variance_preserving(PIXART_BETAS),
    # Takes all that is deterministic, since it passes neither sigmas nor mu, the latter but to dynamic shifting.
    "sd3": flow(
        "euler", "euler-dynamic", "euler-karras", "heun", "unipc", "unipc-dynamic", "dpm++2m", "dpm++3m", "dpm-single",
        "deis",
    ),
    "flux": FLUX,
    "flux_schnell": flow("euler-dynamic", "unipc", "dpm++2m-dynamic"),  # the same pipeline but for one input
    "flux2_klein": FLUX,
    # It passes no mu, which FlowMatchEuler and UniPC ask for under dynamic shifting.
    "sana": flow(
        "euler", "euler-karras", "euler-stochastic", "heun", "lcm", "unipc", "dpm++3m", "sde-dpm++2m", "dpm-single",
        "deis", "sa",
    ),
    "qwen_image": SIGMAS,
    "lumina2": SIGMAS,
    # It passes a list of sigmas, which UniPC takes and then calculates with as an array: TypeError.
    "z_image": flow(
        "euler-dynamic", "euler-linear", "euler-terminal", "euler-karras", "euler-exponential", "euler-beta",
    ),
}  # fmt: skip
# What the fast tests run besides the default. Families differ in it, so that every scheduler is among them. The first
# one is pruned, too, and has a history wherever the family's pipeline takes any such scheduler.
FAST: dict[str, tuple[str, ...]] = {
    "sd15": ("dpm++2m-karras", "ddim", "ddim-eta", "euler-ancestral", "lms", "kdpm2"),
    "sdxl": ("heun", "ddim-zero-snr", "unipc", "sde-dpm++2m", "lcm", "tcd"),
    "pixart_sigma": ("pndm", "ddpm", "dpm-single", "deis", "sa", "kdpm2-ancestral"),
    "sd3": ("heun", "dpm++2m", "dpm-single", "deis"),
    "flux": ("dpm++2m-dynamic", "euler-linear", "dpm-single-dynamic"),
    "flux_schnell": ("unipc",),
    "flux2_klein": ("unipc-dynamic", "euler", "deis-dynamic"),
    "sana": ("sa", "euler-stochastic", "lcm", "dpm++3m", "sde-dpm++2m"),
    "qwen_image": ("unipc", "euler-dynamic", "euler-exponential"),
    "lumina2": ("unipc-dynamic", "euler-terminal"),
    "z_image": ("euler-dynamic", "euler-karras", "euler-beta"),
}  # fmt: skip


def cases(most: int) -> pytest.MarkDecorator:
    """All families under all schedulers; slow but for the default and the first `most` of FAST."""
    found = []
    for family, variants in SCHEDULERS.items():
        for name in variants:
            fast = name == "default" or name in FAST[family][:most]
            marks = [] if fast else [pytest.mark.slow]
            found.append(pytest.param((family, name), marks=marks, id=f"{family}-{name}"))
    return pytest.mark.parametrize("case", found, indirect=True, scope="module")


def reward(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Redder on the left: orders seeds in a way that no other part of the test depends on."""
    half = images.shape[-1] // 2
    return images[:, 0, :, :half].mean((1, 2)) - images[:, 0, :, half:].mean((1, 2))


@dataclass
class Found:
    """Finished images and latents by (prompt, seed), on the way through a search."""

    results: list[Result]
    images: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    latents: dict[tuple[int, int], Tensor] = field(default_factory=dict)


@functools.cache
def stock_and_twin(family: str) -> tuple[Any, Any]:
    """Made once, since its FLOPs are counted once per twin; the cases set its scheduler."""
    stock = FAMILIES[family].build()
    return stock, upgrade(stock) if type(stock).__name__ in SUPPORTED else None


class Case:
    """A family under one scheduler, as stock pipeline and as search twin. Only the last one made is in force."""

    def __init__(self, family: str, variant: Variant) -> None:
        self.family, self.tolerance = family, variant.tolerance
        self.call: dict[str, Any] = {**FAMILIES[family].call, **variant.call, "num_inference_steps": STEPS}
        self.stock, self.twin = stock_and_twin(family)
        if self.twin is None:
            pytest.skip(f"no search twin of {type(self.stock).__name__} yet")
        make = variant.scheduler or (lambda: FAMILIES[family].build().scheduler)
        self.stock.scheduler, self.twin.scheduler = make(), make()

    def by_stock(self, seeds: Sequence[int], *, prompts: Sequence[str] = PROMPTS) -> Tensor:
        """Images of these seeds for every prompt by one call of the stock pipeline: all of the first, then the rest.

        Prompts are encoded once each, as in a search: the last digits of an encoding depend on how many there are.
        """
        call, each = dict(self.call), len(seeds)
        generators = [torch.Generator().manual_seed(seed) for _ in prompts for seed in seeds]
        if self.family in MIXED_MASKS:
            prompts, each = [prompt for prompt in prompts for _ in seeds], 1
        if "negative_prompt" in call:
            call["negative_prompt"] = [call["negative_prompt"]] * len(prompts)
        call |= {"num_images_per_prompt": each, "generator": generators, "output_type": "pt"}
        made: Tensor = self.stock(prompt=list(prompts), **call).images
        return made

    def by_search(self, algorithm: Algorithm, *, keep: int, batch_size: int) -> Found:
        engine = self.twin.engine(reward, keep=("latents",), batch_size=batch_size, **self.call)
        last: dict[tuple[int, int], Event] = {}

        def listen(event: Event) -> None:
            if event.kind == "score" and event.step == engine.grid.steps:
                last[event.job, event.uids[0]] = event

        found = Found(search(PROMPTS, algorithm, engine, seed=SEED, keep=keep, on_event=listen))
        for (job, uid), event in last.items():
            row = job, int(found.results[job].particles.seed[uid])
            found.images[row], found.latents[row] = event.image, event.kept["latent"]
        return found

    @functools.cached_property
    def pruned(self) -> Found:
        """In one batch that all rows share."""
        return self.by_search(PRUNING, keep=2, batch_size=16)


@pytest.fixture(scope="module")
def case(request: pytest.FixtureRequest) -> Case:
    family, name = request.param
    return Case(family, SCHEDULERS[family][name])


def relative(ours: Tensor, expected: Tensor) -> float:
    """The largest error as a share of the largest value; nan where there is one."""
    assert ours.shape == expected.shape
    return float((ours.float() - expected.float()).abs().max() / expected.float().abs().max())


@cases(6)
def test_a_batch_of_seeds_is_the_stock_batch(case: Case) -> None:
    seeds = [SEED, SEED + 1]
    rows = [(prompt, seed) for prompt in range(len(PROMPTS)) for seed in seeds]
    found = case.by_search(BestOfN(2), keep=2, batch_size=4)
    assert sorted(found.images) == rows
    # The network sees the same batch, so nothing at all may differ but what encoding each prompt twice does.
    tolerance = 1e-5 if case.family in MIXED_MASKS else 0.0
    images = torch.stack([found.images[row] for row in rows])
    assert relative(images, case.by_stock(seeds)) <= tolerance


@cases(0)
def test_the_stock_pipeline_makes_the_winner_again_from_its_seed(case: Case) -> None:
    for prompt, result in zip(PROMPTS, case.pruned.results, strict=True):
        again = case.by_stock([result.best.seed], prompts=[prompt])[0]
        assert relative(result.best.image, again) < case.tolerance


@cases(1)
def test_pruning_and_mixed_steps_change_no_image(case: Case) -> None:
    everything = case.by_search(BestOfN(6), keep=6, batch_size=12)
    mixed = case.by_search(PRUNING, keep=2, batch_size=5)
    for pruned in (case.pruned, mixed):
        assert len(pruned.images) == 2 * len(PROMPTS)
        for row, image in pruned.images.items():
            assert relative(image, everything.images[row]) < case.tolerance
            assert relative(pruned.latents[row], everything.latents[row]) < case.tolerance
    # The same seeds survive however the rows were batched.
    assert sorted(mixed.images) == sorted(case.pruned.images)


AUTOCAST = [
    ("sd15", "default"), ("flux2_klein", "default"), ("sana", "default"), ("sd3", "unipc"), ("sdxl", "ddim-zero-snr"),
    *(pytest.param((name, "default"), marks=pytest.mark.slow) for name in ("sdxl", "sd3", "flux", "pixart_sigma")),
    *(pytest.param((name, "default"), marks=pytest.mark.slow) for name in ("qwen_image", "lumina2", "z_image")),
]  # fmt: skip


@pytest.mark.parametrize("case", AUTOCAST, ids=lambda case: "-".join(case), indirect=True, scope="module")
def test_under_autocast_a_batch_is_the_stock_batch(case: Case) -> None:
    """Weights and noise in float32, some of what is calculated in bfloat16: some schedulers go on in that, some not."""
    seeds = [SEED, SEED + 1]
    rows = [(prompt, seed) for prompt in range(len(PROMPTS)) for seed in seeds]
    tolerance = 0.008 if case.family in MIXED_MASKS else 0.0  # two of the last digits that bfloat16 has
    with torch.autocast("cpu", torch.bfloat16):
        found = case.by_search(BestOfN(2), keep=2, batch_size=4)
        images = case.by_stock(seeds)
    assert relative(torch.stack([found.images[row] for row in rows]), images) <= tolerance


@pytest.mark.parametrize("case", [("flux2_klein", "default")], ids="-".join, indirect=True, scope="module")
def test_under_autocast_noise_in_the_batch_changes_no_other_row(case: Case) -> None:
    """Noise is wider than latents that were stepped, and so is a batch of both."""
    denoiser = case.twin.denoiser(**case.call)
    noise = torch.Generator().manual_seed(SEED)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        denoiser.encode(PROMPTS[:1])
        first = denoiser.init_latents([noise])
        later = first.to(denoiser.predict(first, torch.tensor([0]), torch.tensor([0])).out.dtype)
        alone = denoiser.predict(later, torch.tensor([2]), torch.tensor([0])).out
        both = denoiser.predict(torch.cat([first, later]), torch.tensor([0, 2]), torch.tensor([0, 0])).out
    assert later.dtype == torch.bfloat16
    assert relative(both[1:], alone) < 1e-3


def test_every_scheduler_is_among_the_fast_cases() -> None:
    slow = {(family, name) for family, variants in SCHEDULERS.items() for name in variants if name not in FAST[family]}
    assert {name for _, name in slow} <= {"default"} | {name for fast in FAST.values() for name in fast}
    assert all(name in SCHEDULERS[family] for family, fast in FAST.items() for name in fast)
