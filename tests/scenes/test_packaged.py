"""The packaged models of both worlds: stock folders, what they draw, their drafts and previews,
their rewards."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderTiny,
    DiffusionPipeline,
    StableDiffusion3Pipeline,
)
from safetensors import safe_open
from train_worlds import base, turbo
from train_worlds import signs as sign_base
from train_worlds.evaluate import generate, prompts_of_kind
from train_worlds.model import build_tokenizer, build_transformer
from train_worlds.near_captions import CHANGES, hard_negatives
from train_worlds.recipes import Call
from train_worlds.zero_tokens import ZeroTokenAttention

from ttsnap import Budget, scenes, search, signs
from ttsnap.algorithms.seed_pruning import SeedPruning
from ttsnap.cli import main as ttsnap
from ttsnap.distill.config import DraftConfig
from ttsnap.engine.live import LiveEngine
from ttsnap.files.plain_yaml import load_settings
from ttsnap.files.settings import to_json
from ttsnap.options.engine import EngineOptions
from ttsnap.pipelines import defaults, load
from ttsnap.pipelines.drafting.drafting import use_drafter
from ttsnap.pipelines.record import model_name
from ttsnap.reward_models.registry import make_reward
from ttsnap.sampling.drafts import TrainedFor, read_draft
from ttsnap.sampling.rng import seeded
from ttsnap.scenes import HARD_KINDS, check, parse, render, sample_prompts, weights_path

WORLDS = {
    "embedded": (scenes, 16e6, base.Recipe(), build_tokenizer(), 1.5e6, sample_prompts(1, 3)[0]),
    "signs": (
        signs,
        8e6,
        sign_base.Recipe(),
        sign_base.build_tokenizer(),
        1e6,
        signs.sample_prompts(1, 3)[0],
    ),
}
"""Module, most bytes, recipe and tokenizer of the model; most bytes of its draft; a prompt."""


def stock(path, **parts):
    pipe = DiffusionPipeline.from_pretrained(path, **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pipe():
    return stock(weights_path())


@pytest.mark.parametrize("world", WORLDS)
def test_folders_are_stock_and_small_and_recommend_the_call_of_their_recipe(world):
    module, most, recipe, tokenizer, _, _ = WORLDS[world]
    made = stock(module.weights_path())
    assert type(made) is StableDiffusion3Pipeline
    parts = [part for part in made.components.values() if isinstance(part, torch.nn.Module)]
    assert {p.dtype for part in parts for p in part.parameters()} == {torch.float32}
    files = [path for path in module.weights_path().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < most
    assert {path.suffix for path in files} == {".json", ".md", ".safetensors"}
    assert not any("_name_or_path" in path.read_text() for path in files if path.suffix == ".json")
    assert made.tokenizer.get_vocab() == tokenizer.get_vocab()
    assert to_json(recipe.defaults) == defaults(world)


def test_stock_calls_draw_single_objects(pipe):
    prompts = prompts_of_kind("single", 6, seed=5)
    soft, strict = check(
        generate(pipe, prompts, Call(**defaults()), seed=11), [parse(p) for p in prompts]
    )
    assert strict.mean() >= 0.9
    assert soft.mean() > 0.9
    assert pipe("a red circle", generator=torch.Generator().manual_seed(0)).images[0].size == (
        32,
        32,
    )


def test_neither_a_missing_t5_nor_the_word_one_changes_a_picture(pipe):
    bare = stock(weights_path(), text_encoder_3=None, tokenizer_3=None)
    for n in (1, 40):
        whole, without = (generate(p, ["a red cross"], Call(3, 3.0, n)) for p in (pipe, bare))
        np.testing.assert_array_equal(whole, without)
    np.testing.assert_array_equal(whole, generate(pipe, ["one red cross"], Call(3, 3.0, 40)))


@pytest.mark.parametrize("repeats", [1, 256])
def test_one_biased_zero_token_equals_many(repeats):
    torch.manual_seed(0)
    size = {"latent_size": 4, "latent_channels": 3, "layers": 3, "heads": 2, "head_dim": 8}
    net = build_transformer(**size, text_dim=12).double()
    x, text = torch.randn(2, 3, 4, 4).double(), torch.randn(2, 6, 12).double()
    rest = {
        "pooled_projections": torch.randn(2, 12).double(),
        "timestep": torch.tensor([300.0, 900.0]),
    }
    with torch.no_grad():
        many = net(x, torch.cat([text, torch.zeros(2, repeats, 12).double()], 1), **rest).sample
        attention = ZeroTokenAttention(net, 2)
        attention.bias = attention.bias.double()
        attention.set_repeats(torch.full((2,), float(repeats)).double())
        one = net(x, torch.cat([text, torch.zeros(2, 1, 12).double()], 1), **rest).sample
    # diffusers computes the time embedding in float32 at most, hence not 1e-12
    torch.testing.assert_close(one, many, rtol=0, atol=1e-7)


def test_the_few_step_model_draws_without_guidance():
    call = turbo.Recipe().defaults
    assert defaults("scenes-turbo") == to_json(call)
    assert (call.guidance_scale, 4 <= call.num_inference_steps <= 10) == (1, True)
    images = generate(stock(scenes.turbo_path()), ["a red circle"] * 4, call)
    assert check(images, [parse("a red circle")] * 4)[1].sum() >= 3
    fast = load("scenes-turbo")
    assert model_name(fast) == "scenes-turbo"
    sigma = fast.denoiser(**defaults("scenes-turbo")).schedule.sigma
    assert sigma[sigma > 0].min() == pytest.approx(1 / call.num_inference_steps)
    with pytest.raises(ValueError, match="elephant"):
        fast.check_prompt("an elephant")


def test_prompts_of_signs_have_any_form(tmp_path, capsys):
    for extra in ({}, {"search": "best-of-n", "reward": "brightness", "budget": "20nfe"}):
        with pytest.raises(ValueError, match="'a red circle'"):
            load("signs")("a red circle", **extra)
    more = [
        "--model",
        "signs",
        "--reward",
        "brightness",
        "--budget",
        "2images",
        "--steps",
        "2",
        "--out",
        str(tmp_path),
    ]
    assert ttsnap(["generate", "a Red sign that says 'harbor'", *more]) == 0
    assert 'a red sign that says "HARBOR"' in capsys.readouterr().out
    assert list(tmp_path.rglob("*.png"))


# --- their drafts ---------------------------------------------------------------------------------


@pytest.mark.parametrize("world", WORLDS)
def test_a_draft_is_small_and_says_what_it_is_for(world):
    module, _, _, _, most, _ = WORLDS[world]
    folder = module.draft_path()
    assert sum(path.stat().st_size for path in folder.iterdir()) < most
    settings, config = (
        read_draft(folder),
        load_settings(DraftConfig, folder.parent / "draft_recipe.yaml"),
    )
    assert (settings.first_time, settings.trained_for) == (0.87, TrainedFor(world, 20, 4.0))
    (checked,) = [
        c for c in settings.checked if (c.model, c.steps, c.guidance_scale) == (world, 20, 4.0)
    ]
    assert checked.pays
    assert checked.figures["prompts"] >= 24
    assert "What it is not for" in (folder / "README.md").read_text()
    with safe_open(folder / "pytorch_lora_weights.safetensors", "pt") as file:
        names = list(file.keys())
        assert {file.get_tensor(name).dtype for name in names} == {torch.float8_e4m3fn}
        about = json.loads(file.metadata()["lora_adapter_metadata"])
    told = {f"transformer.{key}" for key in ("r", "lora_alpha", "target_modules")}
    assert about.keys() == told, "other versions of peft refuse settings that they do not know"
    assert all(name.startswith("transformer.transformer_blocks.") for name in names)
    assert (config.model, config.rank) == (world, about["transformer.r"])


@torch.no_grad()
@pytest.mark.parametrize("world", WORLDS)
def test_guesses_are_nearer_to_the_ends_than_x0_estimates_are(world):
    denoiser, n = load(world).denoiser(**defaults(world)), 5
    use_drafter(denoiser, "embedded:2")
    assert (denoiser.drafts.calls, denoiser.drafts.doubt(world)) == (2, None)
    denoiser.encode([WORLDS[world][-1]])
    x, cond = denoiser.init_latents([seeded(i) for i in range(n)]), torch.zeros(n, dtype=torch.long)
    found = [denoiser.drafts.guess(x, cond, cond, calls) for calls in (1, 2)] + [
        denoiser.predict(x, cond, cond).x0
    ]
    for step in range(denoiser.grid.steps):
        k = torch.full((n,), step)
        x = denoiser.kernel.step(x, denoiser.predict(x, k, cond), k, [(0, 0, 0)] * n, [None] * n)[0]
    first, second, blurred = (float((one - x).pow(2).mean()) for one in found)
    assert max(first, second) < 0.6 * blurred
    assert world == "signs" or second < first


def test_the_ledger_of_a_search_that_decodes_estimates_by_a_preview_vae(
    monkeypatch,
):
    pipe, reward = load(), make_reward("scenes-learned")
    torch.manual_seed(0)
    # of the size that was measured (docs/journal/preview_vae.md)
    pipe.preview_vae = AutoencoderTiny(
        latent_channels=8,
        encoder_block_out_channels=(4, 4, 4),
        num_encoder_blocks=(0, 0, 0),
        decoder_block_out_channels=(16, 16, 16),
        num_decoder_blocks=(2, 1, 0),
        scaling_factor=1.0,
        shift_factor=0.0,
    ).eval()
    denoiser = pipe.denoiser(**{**defaults(), "num_inference_steps": 6})
    engine = LiveEngine(denoiser, [reward], EngineOptions(4, preview=True))
    flops = engine.price.flops
    assert engine.price.estimates == "preview"
    assert flops.previews < flops.decodes / 10
    rows = []
    decode = pipe.preview_vae.decode
    monkeypatch.setattr(
        pipe.preview_vae, "decode", lambda z, **more: rows.append(len(z)) or decode(z, **more)
    )
    budget = Budget(flops=4 * (6 * flops.nfe + flops.decodes + flops.reward_calls))
    results = search(
        sample_prompts(2, 4), SeedPruning(n=5, keep=(0.6, 0.6), steps=(1, 3)), engine, budget
    )
    spent = [result.spent for result in results]
    assert [s.cost.previews for s in spent] == [5 + 3, 5 + 3]
    assert [s.cost.decodes for s in spent] == [2, 2]
    assert engine.stats["previews"] == 2 * (5 + 3)
    assert sum(rows) == engine.stats["previews"] + 2  # to try whether rows join
    for s in spent:
        assert (
            s.flops_by["decode"]
            == flops.decodes * s.cost.decodes + flops.previews * s.cost.previews
        )
        assert s.flops <= (budget.flops or 0)
    for result in results:  # the finished image is the real VAE's, and chosen by its score
        again = float(reward(result.best.image[None], [result.prompt], None)[0])
        assert again == pytest.approx(result.best.reward, abs=1e-4)


# --- its rewards ----------------------------------------------------------------------------------


def test_the_packaged_reward_tells_hard_negatives_apart():
    specs = [parse(text) for kind in HARD_KINDS for text in prompts_of_kind(kind, 60, 1)]
    found = hard_negatives(
        make_reward("scenes-learned"), render(specs, np.random.default_rng(4)), specs
    )
    assert set(found) == set(CHANGES)
    for what, (accuracy, n) in found.items():
        assert n >= 60
        assert accuracy >= 0.9 - 2 * (0.09 / n) ** 0.5, (what, accuracy, n)
