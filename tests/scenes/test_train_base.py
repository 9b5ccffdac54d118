"""The recipe in miniature: a stopped and resumed run equals an undisturbed one, and one command runs it all."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import DiffusionPipeline
from train_worlds.base import Data, Probe, Recipe
from train_worlds.commands import main
from train_worlds.evaluate import generate
from train_worlds.generator import (
    Examples,
    GeneratorRecipe,
    GeneratorTrainer,
    TextSize,
    TransformerSize,
    encode_text,
)
from train_worlds.model import build_tokenizer, tokenize
from train_worlds.recipes import Call, NoiseLevels, read
from train_worlds.vae import VaeRecipe, VaeSize

from ttsnap.files.settings import build, to_json
from ttsnap.pipelines import defaults

MINI = Recipe(
    seed=3,
    save_every=2,
    defaults=Call(2, 2.0, 1),
    probe=Probe(every=4, per_kind=1, final_per_kind=1),
    data=Data(images=64),
    vae=VaeRecipe(model=VaeSize(4, (8, 8, 8), layers=1, groups=4), lr=1e-3, batch=8, steps=3),
    generator=GeneratorRecipe(
        text=TextSize(16, layers=2, heads=2), text_2=TextSize(8, layers=1, heads=1),
        transformer=TransformerSize(2, heads=2, head_dim=8), batch=8, steps=6, warmup=2, decay_steps=3, muon_lr=1e-3,
        ema=0.9, sigma=NoiseLevels(0.5, 1.0, 0.2), caption_dropout=0.3, zero_tokens=(1, 256), reading_block=0,
        bf16=False, compile=False,
    ),
)  # fmt: skip


def _trainer() -> GeneratorTrainer:
    dice = torch.Generator().manual_seed(0)
    tokenizer = build_tokenizer()
    return GeneratorTrainer(
        MINI.generator,
        tokenizer,
        Examples(
            torch.randn(16, 4, 8, 8, generator=dice).half(),
            torch.randint(0, 25, (16, 8, 8), generator=dice, dtype=torch.uint8),
            tokenize(tokenizer, ["a red circle", "two blue crosses"] * 8).to(torch.uint8),
            tokenize(tokenizer, [""])[0],
            25,
        ),
        seed=1,
        device=torch.device("cpu"),
    )


@pytest.mark.slow
def test_one_command_runs_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "mini.yaml").write_text(yaml.safe_dump(to_json(MINI)))
    command = ["base", "--recipe", str(tmp_path / "mini.yaml"), "--out", str(tmp_path / "out")]
    main(command)
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "out" / "pipeline")
    assert generate(pipe, ["a red circle"], Call(2, 2.0)).shape == (1, 3, 32, 32)
    made = {p.name for p in (tmp_path / "out").iterdir()}
    assert {"samples_000004.png", "samples_final.png", "accuracy.md", "generator.pt"} <= made
    main(command)  # nothing left to train
    assert build(Recipe, json.loads((tmp_path / "out" / "config.json").read_text())) == MINI


def test_the_packaged_model_recommends_the_call_of_its_recipe() -> None:
    assert to_json(Recipe().defaults) == defaults()


def test_a_recipe_file_says_what_differs(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("generator: {steps: 100, text: {width: 64, layers: 2, heads: 2}}")
    found = read(Recipe, file, seed=5)
    generator = replace(GeneratorRecipe(), steps=100, text=TextSize(64, 2, 2))
    assert found == replace(Recipe(), seed=5, generator=generator)
    file.write_text("generator: {warmup: 0}")
    with pytest.raises(ValueError, match=r"generator\.warmup must be at least 1, got 0"):
        read(Recipe, file, None)
    file.write_text("generator: {sigma: {mean: wide}}")
    with pytest.raises(ValueError, match=r"generator\.sigma\.mean must be a number, got 'wide'"):
        read(Recipe, file, None)


def test_training_forward_is_the_stock_forward() -> None:
    model = _trainer().ema
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.1)
    x, sigma = torch.randn(3, 4, 8, 8), torch.rand(3)
    ids = tokenize(build_tokenizer(), ["a red circle", "two blue crosses", ""])
    with torch.no_grad():
        text, pooled = encode_text((model.text, model.text_2), ids)
        ours, _ = model(x, sigma, ids, tap=0)
        stock = model.transformer(x, text, pooled, sigma * 1000).sample
    torch.testing.assert_close(ours, stock)
    assert text.shape[1] == ids.shape[1] + 1
    assert not text[:, -1].any()
