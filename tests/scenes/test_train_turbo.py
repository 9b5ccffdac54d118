"""The few-step model: its training in miniature, the arithmetic of its targets, and the folder that is shipped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from train_worlds.commands import main
from train_worlds.evaluate import generate
from train_worlds.evaluate import load as stock
from train_worlds.generator import Generator, GeneratorRecipe, TextSize, TransformerSize, build_pipeline
from train_worlds.model import build_tokenizer, build_vae
from train_worlds.recipes import Call
from train_worlds.turbo import (
    Pairs,
    PairsRecipe,
    Recipe,
    Teacher,
    TurboTrainer,
    errors,
    make,
    on_the_way,
    straight_velocity,
)

from ttsnap.files.settings import to_json
from ttsnap.pipelines import defaults, load
from ttsnap.pipelines.record import model_name
from ttsnap.scenes import check, parse, turbo_path

MINI = Recipe(
    seed=3, teacher=Call(4, 3.0, 1), defaults=Call(2, 1.0, 1),
    pairs=PairsRecipe(from_noise=8, from_renders=4, starts=(1, 2), skipped=(2,), shard=4, batch=2), batch=4, steps=4,
    warmup=2, decay_steps=2, ema=0.9, held=2, save_every=2, look_every=2, final_per_kind=0, bf16=False, compile=False,
)  # fmt: skip


@pytest.fixture(scope="module")
def tiny() -> Any:
    """A stock pipeline of random weights."""
    torch.manual_seed(0)
    small = TransformerSize(1, heads=2, head_dim=8)
    recipe = GeneratorRecipe(text=TextSize(16, layers=2, heads=2), text_2=TextSize(8, 1, 1), transformer=small)
    tokenizer = build_tokenizer()
    model = Generator(recipe, tokenizer, 4, 8)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    vae = build_vae(image_size=32, latent_channels=4, channels=(8, 8, 8), layers=1, groups=4)
    return build_pipeline(model.eval(), vae.eval(), tokenizer, 1.0)


@pytest.fixture(scope="module")
def data(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    return make(tiny, MINI, tmp_path_factory.mktemp("pairs"))


def test_the_target_leads_from_anywhere_on_the_line_to_the_end() -> None:
    start, end = torch.tensor([[[[4.0]]], [[[1.0]]]]), torch.tensor([[[[2.0]]], [[[3.0]]]])
    level, share = torch.tensor([1.0, 0.5]), torch.tensor([0.25, 1.0])
    x, velocity = on_the_way(start, end, share), straight_velocity(start, end, level)
    assert x.flatten().tolist() == [2.5, 1.0]
    assert velocity.flatten().tolist() == [2.0, -4.0]
    assert torch.equal(x - (level * share).view(-1, 1, 1, 1) * velocity, end)


def test_the_teacher_ends_where_a_constant_velocity_leads(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = Teacher(tiny, MINI)
    levels: list[float] = []

    def velocity(x: torch.Tensor, sigma: float, *text: torch.Tensor) -> torch.Tensor:
        levels.append(sigma)
        return torch.full_like(x, 2.0)

    monkeypatch.setattr(teacher, "velocity", velocity)
    x = torch.ones(1, 4, 8, 8)
    torch.testing.assert_close(teacher.ends(x, 1, ["a red circle"]), x - 2 * teacher.sigmas[1])
    assert levels == [teacher.sigmas[1], teacher.sigmas[3]]  # step 2 is skipped


def test_the_teacher_is_the_stock_call(tiny: Any) -> None:
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    prompts = ["a red circle", "two blue crosses"]
    stock = tiny(prompts, latents=noise, output_type="latent", **to_json(MINI.teacher)).images
    whole = replace(MINI, pairs=replace(MINI.pairs, skipped=()))
    torch.testing.assert_close(Teacher(tiny, whole).ends(noise, 0, prompts), stock, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_it_learns_where_the_teacher_ends(tiny: Any, data: Pairs) -> None:
    trainer = TurboTrainer(tiny, data, replace(MINI, steps=40, decay_steps=10, adam_lr=5e-3))
    before = errors(tiny, tiny.transformer, data, (1, 2), bf16=False)
    trainer.run("turbo")
    after = errors(tiny, trainer.ema, data, (1, 2), bf16=False)
    assert all(after[n] < 0.9 * before[n] for n in (1, 2))


@pytest.mark.slow
def test_one_command_runs_the_recipe(tmp_path: Path) -> None:
    recipe = replace(MINI, steps=2, pairs=replace(MINI.pairs, from_noise=4, shard=2))
    (tmp_path / "mini.yaml").write_text(yaml.safe_dump(to_json(recipe)))
    command = ["turbo", "--recipe", str(tmp_path / "mini.yaml"), "--out", str(tmp_path / "out")]
    main(command)
    folder = tmp_path / "out" / "pipeline"
    assert load(folder).scheduler.config.shift_terminal == 0.5
    assert defaults(folder) == to_json(MINI.defaults)
    words = json.loads((folder / "tokenizer" / "tokenizer.json").read_text())
    assert words["padding"] is None  # as new, not as the training left it
    before = (folder / "transformer" / "diffusion_pytorch_model.safetensors").read_bytes()
    main(command)  # nothing left to train
    assert (folder / "transformer" / "diffusion_pytorch_model.safetensors").read_bytes() == before


def test_the_packaged_model_draws_without_guidance_in_a_few_calls() -> None:
    call = Recipe().defaults
    assert defaults("scenes-turbo") == to_json(call)
    assert call.guidance_scale == 1
    assert 4 <= call.num_inference_steps <= 10
    prompt = "a red circle"
    images = generate(stock(turbo_path()), [prompt] * 4, call)
    assert check(images, [parse(prompt)] * 4)[1].sum() >= 3


def test_the_packaged_model_goes_by_its_name() -> None:
    pipe = load("scenes-turbo")
    assert model_name(pipe) == "scenes-turbo"
    sigma = pipe.denoiser(**defaults("scenes-turbo")).schedule.sigma
    assert sigma[sigma > 0].min() == pytest.approx(1 / Recipe().defaults.num_inference_steps)
    with pytest.raises(ValueError, match="elephant"):
        pipe.check_prompt("an elephant")
