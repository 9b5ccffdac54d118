"""The packaged model that writes: a stock folder, its prompts, and searches whose images are plain diffusers' own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusion3Pipeline
from train_worlds.signs import Recipe, build_tokenizer

from tests.guesses import guesses
from ttsnap.cli import main
from ttsnap.distill.draft.config import DraftConfig
from ttsnap.files.plain_yaml import load_settings
from ttsnap.files.settings import to_json
from ttsnap.pipelines import defaults, load, recommended
from ttsnap.pipelines.drafting.drafting import use_drafter
from ttsnap.sampling.drafts import TrainedFor, read_draft
from ttsnap.signs import draft_path, sample_prompts, weights_path

PROMPT = 'a red sign that says "HARBOR" in white'


@pytest.fixture(scope="module")
def stock() -> Any:
    pipe = DiffusionPipeline.from_pretrained(weights_path())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_it_is_a_stock_pipeline_of_at_most_eight_megabytes(stock: Any) -> None:
    assert type(stock) is StableDiffusion3Pipeline
    parts = (stock.transformer, stock.vae, stock.text_encoder, stock.text_encoder_2)
    assert {p.dtype for p in parts} == {torch.float32}
    files = [path for path in weights_path().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 8e6
    assert not any("_name_or_path" in path.read_text() for path in files if path.suffix == ".json")
    assert stock.tokenizer.get_vocab() == build_tokenizer().get_vocab()


def test_it_recommends_the_call_of_its_recipe_and_the_reader() -> None:
    assert to_json(Recipe().defaults) == defaults("signs")
    assert recommended("signs").reward == "ocr:line"


def test_its_draft_is_its_own_and_small() -> None:
    assert sum(path.stat().st_size for path in draft_path().iterdir()) < 2_000_000
    assert read_draft(draft_path()).trained_for == TrainedFor("signs", 20, 4.0)
    assert load_settings(DraftConfig, draft_path().parent / "draft_recipe.yaml").model == "signs"
    denoiser = load("signs").denoiser(**defaults("signs"))
    use_drafter(denoiser, "embedded:2")
    assert (denoiser.drafts.calls, denoiser.drafts.doubt("signs")) == (2, None)
    first, _, estimate, end = guesses(denoiser, PROMPT, 4)
    assert (first - end).pow(2).mean() < 0.6 * (estimate - end).pow(2).mean()


def test_prompts_have_any_form_and_those_of_another_world_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for extra in ({}, {"search": "best-of-n", "reward": "brightness", "budget": "20nfe"}):
        with pytest.raises(ValueError, match="cannot read 'a red circle'"):
            load("signs")("a red circle", **extra)
    more = ["--model", "signs", "--reward", "brightness", "--budget", "2images", "--steps", "2", "--out", str(tmp_path)]
    assert main(["generate", "a Red sign that says 'harbor'", *more]) == 0
    assert 'a red sign that says "HARBOR"' in capsys.readouterr().out
    assert list(tmp_path.rglob("*.png"))


def test_words_are_neither_hopeless_nor_solved() -> None:
    ocr = pytest.importorskip("ttsnap.reward_models.ocr")
    pytest.importorskip("rapidocr")
    prompts = sample_prompts(16, 8)
    pipe = load("signs")
    pipe.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in range(16)]
    images = pipe(prompts, generator=generators, output_type="pt", **defaults("signs")).images
    scores = ocr.OCR("line")(images.float(), prompts)
    assert 0.25 < (scores == 1).float().mean() < 0.9
    assert scores.mean() > 0.6
