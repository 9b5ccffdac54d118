"""Many schedulers against stock calls of one image: the same pictures, pruned or not, in any batch.

What a stock pipeline cannot run, or cannot run from a seed, is not in the tables; the comments say
why.
"""

from __future__ import annotations

import functools
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

from ttsnap import BestOfN, SeedPruning, search
from ttsnap.core.selection import Selection
from ttsnap.pipelines import upgrade

from .test_arguments import PROMPTS, generator, relative
from .tiny import DYNAMIC_SHIFT, FAMILIES, PIXART_BETAS, STABLE_DIFFUSION_BETAS, TOLERANCE

# NumPy's, from DEIS
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers.*")

STEPS, SEED = 4, 3
SEEDS = [SEED, SEED + 1]
PRUNING = SeedPruning(4, (0.75, 0.7), steps=(1, 2))  # 4 seeds, 3 go on from step 1, 2 from step 2

# SD1.5, SDXL and PixArt hand their generator to the scheduler's step, so that all solvers start
# from a seed. PNDM runs without skip_prk_steps, too, with four evaluations in each of its first
# steps, but no checkpoint is shipped like that. DPMSolverSDE takes its noise from torchsde, not
# from the generator.
BETAS = {
    "sd15": STABLE_DIFFUSION_BETAS,
    "sdxl": STABLE_DIFFUSION_BETAS,
    "pixart_sigma": PIXART_BETAS,
}
TRAILING = {
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
}
Solvers = dict[str, tuple[Any, dict[str, Any]]]
VARIANCE_PRESERVING = {
    "pndm": (diffusers.PNDMScheduler, {"skip_prk_steps": True}),
    "ddim": (DDIMScheduler, {"clip_sample": False}),
    "ddim-eta": (DDIMScheduler, {"clip_sample": False}),
    "ddim-zero-snr": (DDIMScheduler, {"clip_sample": False, **TRAILING}),
    "ddpm": (diffusers.DDPMScheduler, {"clip_sample": False}),
    "euler": (diffusers.EulerDiscreteScheduler, {}),
    "euler-ancestral": (diffusers.EulerAncestralDiscreteScheduler, {}),
    "dpm++2m-karras": (DPMSolverMultistepScheduler, {"use_karras_sigmas": True}),
    "sde-dpm++2m": (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
    "dpm-single": (diffusers.DPMSolverSinglestepScheduler, {"lower_order_final": True}),
    "unipc": (diffusers.UniPCMultistepScheduler, {}),
    "deis": (diffusers.DEISMultistepScheduler, {}),
    "sa": (diffusers.SASolverScheduler, {}),
    "lms": (diffusers.LMSDiscreteScheduler, {}),
    "heun": (diffusers.HeunDiscreteScheduler, {}),
    "kdpm2": (diffusers.KDPM2DiscreteScheduler, {}),
    "kdpm2-ancestral": (diffusers.KDPM2AncestralDiscreteScheduler, {}),
    "lcm": (diffusers.LCMScheduler, {}),
    "tcd": (diffusers.TCDScheduler, {}),
}
FLOWING = {
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "flow_shift": 3.0,
}
SHIFTED = {"shift": 3.0}
FLOW = {
    "euler": (FlowMatchEulerDiscreteScheduler, SHIFTED),
    "euler-dynamic": (FlowMatchEulerDiscreteScheduler, DYNAMIC_SHIFT),
    "euler-linear": (
        FlowMatchEulerDiscreteScheduler,
        {**DYNAMIC_SHIFT, "time_shift_type": "linear"},
    ),
    "euler-terminal": (FlowMatchEulerDiscreteScheduler, {**SHIFTED, "shift_terminal": 0.02}),
    "euler-karras": (FlowMatchEulerDiscreteScheduler, {**SHIFTED, "use_karras_sigmas": True}),
    "euler-exponential": (
        FlowMatchEulerDiscreteScheduler,
        {**SHIFTED, "use_exponential_sigmas": True},
    ),
    "euler-beta": (FlowMatchEulerDiscreteScheduler, {**SHIFTED, "use_beta_sigmas": True}),
    "euler-stochastic": (FlowMatchEulerDiscreteScheduler, {**SHIFTED, "stochastic_sampling": True}),
    "heun": (diffusers.FlowMatchHeunDiscreteScheduler, SHIFTED),
    "lcm": (diffusers.FlowMatchLCMScheduler, SHIFTED),
    "unipc": (diffusers.UniPCMultistepScheduler, FLOWING),
    "dpm++2m": (DPMSolverMultistepScheduler, FLOWING),
    "dpm++3m": (DPMSolverMultistepScheduler, {**FLOWING, "solver_order": 3}),
    "sde-dpm++2m": (DPMSolverMultistepScheduler, {**FLOWING, "algorithm_type": "sde-dpmsolver++"}),
    "dpm-single": (diffusers.DPMSolverSinglestepScheduler, {**FLOWING, "lower_order_final": True}),
    "deis": (diffusers.DEISMultistepScheduler, FLOWING),
    "sa": (diffusers.SASolverScheduler, FLOWING),
}
FLOW |= {
    f"{name}-dynamic": (FLOW[name][0], {**FLOW[name][1], "use_dynamic_shifting": True})
    for name in ("unipc", "dpm++2m", "dpm-single", "deis")
}
# What the fast tests run besides the default, and what the slow ones do. Families differ in the
# first, so that every scheduler is among them. The first one is pruned, too, and has a history
# wherever the family's pipeline takes any such scheduler. Those with betas take all that preserve
# variance. Of the flow pipelines only Sana hands its generator to the step. In the others what
# draws noise (FlowMatchLCM, stochastic FlowMatchEuler, SDE-DPM-Solver++, SASolver) takes it from
# torch's global state: no seed makes it again.
SCHEDULERS = {
    "sd15": ("dpm++2m-karras ddim ddim-eta euler-ancestral lms kdpm2", ""),
    "sdxl": ("heun ddim-zero-snr unipc sde-dpm++2m lcm tcd", ""),
    "pixart_sigma": ("pndm ddpm dpm-single deis sa kdpm2-ancestral", ""),
    # Takes all that is deterministic, since it passes neither sigmas nor mu, the latter but to
    # dynamic shifting.
    "sd3": (
        "heun dpm++2m dpm-single deis",
        "euler euler-dynamic euler-karras unipc unipc-dynamic dpm++3m",
    ),
    # Flux and Klein pass mu to every scheduler. DPM-Solver and DEIS assert dynamic shifting then,
    # SASolver and FlowMatchHeun take none. They leave sigmas to those with use_flow_sigmas.
    "flux": (
        "dpm++2m-dynamic euler-linear dpm-single-dynamic",
        "euler euler-dynamic euler-karras unipc unipc-dynamic deis-dynamic",
    ),
    "flux2_klein": (
        "unipc-dynamic euler deis-dynamic",
        "euler-dynamic euler-linear euler-karras unipc dpm++2m-dynamic dpm-single-dynamic",
    ),
    # the same pipeline but for one input
    "flux_schnell": ("unipc", "euler-dynamic dpm++2m-dynamic"),
    # It passes no mu, which FlowMatchEuler and UniPC ask for under dynamic shifting.
    "sana": (
        "sa euler-stochastic lcm dpm++3m sde-dpm++2m",
        "euler euler-karras heun unipc dpm-single deis",
    ),
    # Qwen and Lumina2 pass sigmas to every scheduler: of the solvers only UniPC takes them.
    # FlowMatchHeun takes none.
    "qwen_image": (
        "unipc euler-dynamic euler-exponential",
        "euler euler-linear euler-terminal euler-karras unipc-dynamic",
    ),
    "lumina2": (
        "unipc-dynamic euler-terminal",
        "euler euler-dynamic euler-linear euler-karras euler-exponential unipc",
    ),
    # It passes a list of sigmas, which UniPC takes and then calculates with as an array: TypeError.
    "z_image": (
        "euler-dynamic euler-karras euler-beta",
        "euler-linear euler-terminal euler-exponential",
    ),
}


def cases(most, *more):
    """All families under all schedulers; slow but for the default and the first `most` of the fast
    ones; and more."""
    found = [pytest.param(each, id=str(each)) for each in more]
    for family, (fast, slow) in SCHEDULERS.items():
        names = ["default", *fast.split()]
        others = (
            slow.split()
            if family not in BETAS
            else [each for each in VARIANCE_PRESERVING if each not in names]
        )
        for number, name in enumerate([*names, *others]):
            marks = [pytest.mark.slow] if number > min(most, len(fast.split())) else []
            found.append(pytest.param((family, name), id=f"{family}-{name}", marks=marks))
    return pytest.mark.parametrize("case", found, indirect=True, scope="module")


def reward(images, prompts):
    """Redder on the left: orders seeds in a way that no other part of the test depends on."""
    half = images.shape[-1] // 2
    return images[:, 0, :, :half].mean((1, 2)) - images[:, 0, :, half:].mean((1, 2))


@functools.cache
def stock_and_twin(family):
    """Made once, since its FLOPs are counted once per twin; the cases set its scheduler."""
    stock = FAMILIES[family].build()
    return stock, upgrade(stock)


class Case:
    """A family under one scheduler, as stock pipeline and as search twin. Only the last one made is
    in force."""

    def __init__(self, family, name, **change):
        self.family = family
        # DEIS calculates with sigma / alpha, some thousands where a flow begins, and so magnifies
        # the last digits.
        magnifies = name.startswith("deis") and family not in BETAS
        self.tolerance = 10 * TOLERANCE if magnifies else TOLERANCE
        self.call: dict[str, Any] = {
            **FAMILIES[family].call,
            "num_inference_steps": STEPS,
            **change,
        }
        if name == "ddim-eta":
            self.call["eta"] = 0.5
        kind, options = (VARIANCE_PRESERVING if family in BETAS else FLOW).get(
            name, (FAMILIES[family].scheduler, {})
        )
        betas = BETAS.get(family, {}) if name != "default" else {}
        self.stock, self.twin = stock_and_twin(family)
        self.stock.scheduler, self.twin.scheduler = (kind(**betas, **options) for _ in range(2))

    def by_stock(self, prompt, seed):
        """The image of a seed by the stock call alone."""
        made = self.stock(
            prompt=prompt, generator=generator(seed), output_type="pt", **self.call
        ).images[0]
        return made

    def most_apart(self, images):
        """How far any image, by (prompt, seed), is from the stock call's."""
        assert images
        return max(
            relative(image, self.by_stock(PROMPTS[prompt], seed))
            for (prompt, seed), image in images.items()
        )

    def by_search(self, algorithm, *, keep, batch_size):
        """Results, and finished images by (prompt, seed), on the way through a search."""
        engine = self.twin.engine(reward, batch_size=batch_size, **self.call)
        last = {}

        def listen(event):
            if event.kind == "score" and event.step == engine.grid.steps:
                last[event.job, event.uids[0]] = event

        results = search(
            PROMPTS, algorithm, engine, seed=SEED, selection=Selection(keep=keep), on_event=listen
        )
        return results, {
            (job, int(results[job].particles.seed[uid])): e.image for (job, uid), e in last.items()
        }

    def batch(self):
        """Two seeds of each prompt, by a search in one batch."""
        _, images = self.by_search(BestOfN(2), keep=2, batch_size=4)
        assert sorted(images) == [(prompt, seed) for prompt in (0, 1) for seed in SEEDS]
        return images


@pytest.fixture(scope="module")
def case(request):
    family, name, *changes = request.param
    return Case(family, name, **{key: value for change in changes for key, value in change.items()})


@cases(6)
def test_a_batch_of_seeds_is_the_stock_calls_images(case):
    assert case.most_apart(case.batch()) <= case.tolerance


# Guidance of these depends on the step.
BY_STEP = [
    ("z_image", "default", {"cfg_truncation": 0.3, "cfg_normalization": 0.5}),
    (
        "lumina2",
        "default",
        {"cfg_trunc_ratio": 0.25, "cfg_normalization": False, "negative_prompt": "snow"},
    ),
]


@cases(1, *BY_STEP)
def test_the_stock_pipeline_makes_pruned_winners_again_from_their_seeds_however_batched(
    case,
):
    # in one batch that all rows share
    results, images = case.by_search(PRUNING, keep=2, batch_size=16)
    _, mixed = case.by_search(PRUNING, keep=2, batch_size=5)
    assert sorted(images) == sorted(mixed)
    assert len(images) == 2 * len(PROMPTS)
    for number, result in enumerate(results):
        assert torch.equal(result.best.image, images[number, result.best.seed])
    assert case.most_apart(images) <= case.tolerance
    assert case.most_apart(mixed) <= case.tolerance


ROUNDING = 0.025
"""How far bfloat16 products of a batch may be from those of a row alone: one or two last digits
(.008), and six in Lumina 2, which pads texts of other lengths."""
AUTOCAST = [
    ("sd15", "default"),
    ("flux2_klein", "default"),
    ("sana", "default"),
    ("sd3", "unipc"),
    ("sdxl", "ddim-zero-snr"),
    *(
        pytest.param((name, "default"), marks=pytest.mark.slow)
        for name in ("sdxl", "sd3", "flux", "pixart_sigma")
    ),
    *(
        pytest.param((name, "default"), marks=pytest.mark.slow)
        for name in ("qwen_image", "lumina2", "z_image")
    ),
]


@pytest.mark.parametrize(
    "case", AUTOCAST, ids=lambda case: "-".join(case), indirect=True, scope="module"
)
def test_under_autocast_a_batch_is_the_stock_calls_images(case):
    """Weights and noise in float32, some of what is calculated in bfloat16: some schedulers go on
    in that, some not."""
    with torch.autocast("cpu", torch.bfloat16):
        _, alone = case.by_search(BestOfN(2), keep=2, batch_size=1)
        assert case.most_apart(alone) == 0
        assert case.most_apart(case.batch()) <= ROUNDING


@pytest.mark.parametrize(
    "case", [("flux2_klein", "default")], ids="-".join, indirect=True, scope="module"
)
def test_under_autocast_noise_in_the_batch_changes_no_other_row(case):
    """Noise is wider than latents that were stepped, and so is a batch of both."""
    denoiser = case.twin.denoiser(**case.call)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        denoiser.encode(PROMPTS[:1])
        first = denoiser.init_latents([generator(SEED)])
        later = first.to(denoiser.predict(first, torch.tensor([0]), torch.tensor([0])).out.dtype)
        alone = denoiser.predict(later, torch.tensor([2]), torch.tensor([0])).out
        both = denoiser.predict(
            torch.cat([first, later]), torch.tensor([0, 2]), torch.tensor([0, 0])
        ).out
    assert later.dtype == torch.bfloat16
    assert relative(both[1:], alone) < 1e-3
