"""Ten models on a device in two precisions: stock's images, gradients, guidance, attention,
compilation, previews."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from diffusers import AutoencoderTiny

from ttsnap import BestOfN, SeedPruning, search
from ttsnap.algorithms.smc.smc import SMC
from ttsnap.core.selection import Selection
from ttsnap.pipelines import upgrade
from ttsnap.pipelines.arguments import first_seed
from ttsnap.pipelines.drafting.drafting import use_drafter
from ttsnap.pipelines.memory.acceleration import compile_denoiser, use_attention
from ttsnap.sampling.rng import seeded

from ..pipelines.modular import tiny as modular  # noqa: TID252
from ..pipelines.tiny import FAMILIES, save_lora  # noqa: TID252

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
CLOSE = {"fp32": 1e-3, "bf16": 0.1}
"""How far images of other batch sizes may be apart in the mean, as a share of their mean: kernels
differ by batch."""
ON_CPU = [("flux", "bf16", "cpu"), ("sd3", "bf16", "cpu")]
"""What the fast suite adds to tests/pipelines/test_parity.py, which compares all of them in
fp32."""
SEED = 3


ACCELERATED = [
    pytest.param(name, precision, "accelerator", marks=pytest.mark.gpu)
    for name in FAMILIES
    for precision in PRECISIONS
]
ONLY_GPU = pytest.mark.parametrize(
    "device", [pytest.param("accelerator", marks=pytest.mark.gpu)], indirect=True
)


def made(name, device, precision="fp32", **how):
    """A search pipeline on the device, and the arguments of its call."""
    return upgrade(FAMILIES[name].build().to(device, PRECISIONS[precision])), {
        **FAMILIES[name].call,
        **how,
    }


def redder_left(images, prompts):
    half = images.shape[-1] // 2
    return images[:, 0, :, :half].float().mean((1, 2)) - images[:, 0, :, half:].float().mean((1, 2))


def apart(ours, expected):
    """The mean difference as a share of the mean value; nan where either has one."""
    ours, expected = ours.cpu().float(), expected.cpu().float()
    assert ours.shape == expected.shape
    return float((ours - expected).abs().mean() / expected.abs().mean())


@pytest.mark.parametrize(
    ("name", "precision", "device"), [*ACCELERATED, *ON_CPU], indirect=["device"]
)
def test_a_search_makes_the_images_of_the_stock_pipeline(name, precision, device):
    close, stock = CLOSE[precision], FAMILIES[name].build().to(device, PRECISIONS[precision])
    call = {**FAMILIES[name].call, "num_inference_steps": 4}
    twin, shared = (
        upgrade(stock),
        {"prompt": "a cat", "num_images_per_prompt": 3, "output_type": "pt", **call},
    )
    generators = [torch.Generator().manual_seed(SEED + i) for i in range(3)]
    expected = stock(generator=generators, **shared).images
    found = twin(search=BestOfN(3), reward=redder_left, seed=SEED, batch_size=3, **shared).search[0]
    images = {candidate.seed: candidate.image for candidate in found.images}
    ours = torch.stack([images[SEED + i] for i in range(3)])
    assert apart(ours, expected) <= (close / 10 if device.type != "cpu" else 1e-6)
    # Pruned, rows share batches of other sizes. The winner is the image of its seed all the same.
    pruning = SeedPruning(6, (0.5,), steps=(1,))
    best = twin(
        search=pruning,
        reward=redder_left,
        seed=SEED,
        batch_size=4,
        **{**shared, "num_images_per_prompt": 1},
    )
    winner = best.search[0].best
    again = stock(
        generator=torch.Generator().manual_seed(winner.seed),
        **{**shared, "num_images_per_prompt": 1},
    )
    assert apart(winner.image, again.images[0]) < close


@pytest.mark.parametrize("name", ["sd3 image2image", "flux kontext", "ltx"])
def test_blocks_make_the_images_of_the_stock_pipeline(name, device):
    """They set schedulers of flows on the device, those of other models on the CPU."""
    stock = copy.deepcopy(modular.stock(name)).to(device)
    expected = modular.image_of(name, SEED, "a cat", stock)
    call = {
        **modular.CASES[name].call,
        "search": BestOfN(2),
        "reward": redder_left,
        "seed": SEED,
        "batch_size": 2,
    }
    found = upgrade(stock)(
        prompt="a cat", output_type="pt", num_images_per_prompt=2, **call
    ).search[0]
    ours = next(candidate.image for candidate in found.images if candidate.seed == SEED)
    assert apart(ours, expected) < CLOSE["fp32"]


@pytest.mark.parametrize(("name", "precision"), [("sdxl", "fp32"), ("flux", "bf16")])
def test_a_draft_by_a_lora_leaves_the_models_own_evaluations_alone(
    name, precision, device, tmp_path
):
    stock = FAMILIES[name].build()
    folder = save_lora(stock, tmp_path)
    call = {**FAMILIES[name].call, "num_inference_steps": 4}
    base = upgrade(stock.to(device, PRECISIONS[precision])).denoiser(**call)
    base.encode(["a cat"])
    x, step, at = (
        base.init_latents([seeded(0), seeded(1)]),
        torch.tensor([0, 2]),
        torch.zeros(2, dtype=torch.long),
    )
    with torch.no_grad():
        before = base.predict(x, step, at).out
        use_drafter(base, "hot")
        hot = base.drafts.guess(x, step, at, 2)
        use_drafter(base, str(folder))
        guess = base.drafts.guess(x, step, at, 2)
        assert torch.equal(base.predict(x, step, at).out, before)
    assert (guess.shape, guess.device.type, bool(guess.isfinite().all())) == (
        x.shape,
        device.type,
        True,
    )
    assert apart(guess, hot) > 1e-3
    # merged: a call is one pass
    assert base.costs().draft == base.costs().nfe / base.passes_per_nfe


@pytest.mark.parametrize(("name", "through"), [("sd3", "x0"), ("flux", "denoiser")])
def test_gradients_and_log_ratios_are_those_of_the_cpu(name, through, device):
    """At most noise levels steps are plain here, so that sums of the device meet zeros of the
    CPU."""
    stock, call = FAMILIES[name].build(), {**FAMILIES[name].call, "num_inference_steps": 6}
    ratios = []
    for place, rows in ((device, 3), (torch.device("cpu"), 4)):
        pipe = upgrade(copy.deepcopy(stock).to(place))
        guide = f"tilted:0.3:{through}:0.9-0.5"
        engine = pipe.engine(redder_left, kernel="sde", guide=guide, batch_size=rows, **call)
        (result,) = search(["a cat"], SMC(n=4, ess=0.0), engine, selection=Selection(keep=4))
        assert result.spent.cost.gradients > 0
        ratios.append(torch.tensor(result.particles.log_ratio))
    assert ratios[0].isfinite().all()
    assert ratios[0].abs().max() > 1e-3
    torch.testing.assert_close(ratios[0], ratios[1], atol=0.05, rtol=0.02)


@ONLY_GPU  # of a CPU tests/pipelines/test_attention.py tells
@pytest.mark.parametrize(
    "backend",
    ["_native_math", "_native_efficient", "_native_flash", "_native_cudnn", "flash", "xformers"],
)
def test_attention_backends_make_the_same_images_or_say_why_not(backend, device):
    pipe, call = made(
        "flux", device, "bf16", prompt="a cat", num_inference_steps=2, output_type="pt"
    )
    call |= {"search": BestOfN(2), "reward": redder_left, "batch_size": 2, "seed": SEED}
    before = pipe(**call).images
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            used = use_attention(pipe, backend)
        assert used == backend or any("stays with PyTorch's SDPA" in str(w.message) for w in said)
        assert apart(pipe(**call).images, before) < CLOSE["bf16"]
    finally:
        use_attention(pipe)  # diffusers keeps the backend for the whole process


@ONLY_GPU
def test_a_compiled_network_makes_the_same_images(device):
    """By PyTorch's own compiler. tests/pipelines/test_compilation.py runs captured graphs on a
    CPU."""
    pipe, call = made("flux", device, prompt="a cat", num_inference_steps=3, output_type="pt")
    call |= {
        "search": SeedPruning(4, (0.5,), steps=(1,)),
        "reward": redder_left,
        "batch_size": 4,
        "seed": SEED,
    }
    torch._dynamo.reset()
    try:
        before = pipe(**call).images
        compile_denoiser(pipe)
        assert apart(pipe(**call).images, before) < 1e-3
    finally:
        torch._dynamo.reset()


def test_a_preview_vae_decodes_estimates_where_the_pipeline_is(device):
    pipe, call = made("sd3", device, "bf16", num_inference_steps=4)
    widths = dict.fromkeys(("encoder_block_out_channels", "decoder_block_out_channels"), (8, 8))
    depths = dict.fromkeys(("num_encoder_blocks", "num_decoder_blocks"), (1, 1))
    small = AutoencoderTiny(latent_channels=pipe.vae.config.latent_channels, **widths, **depths)
    pipe.preview_vae = small.eval().to(device, torch.bfloat16)
    seen = set[str]()

    def reward(images, prompts):
        seen.add(images.device.type)
        return redder_left(images, prompts)

    out = pipe(
        "a cat", search=SeedPruning(4, (0.5,), steps=(1,)), reward=reward, batch_size=4, **call
    )
    assert (out.search[0].spent.cost.previews, out.search[0].spent.cost.decodes, seen) == (
        4,
        2,
        {device.type},
    )


def test_a_generator_on_the_device_gives_its_own_seed_once(device):
    """Its state, by which it is seen to be unused, has another form on each device."""
    mine, equal = (torch.Generator(device).manual_seed(7) for _ in range(2))
    first, second = first_seed(mine), first_seed(mine)
    assert first == 7 != second
    assert [first_seed(equal), first_seed(equal)] == [first, second]
