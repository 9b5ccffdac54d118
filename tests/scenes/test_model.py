"""The packaged model, through stock diffusers."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, SD3Transformer2DModel, StableDiffusion3Pipeline
from train_worlds.commands import main
from train_worlds.evaluate import generate, prompts_of_kind
from train_worlds.model import MAX_TOKENS, build_tokenizer, build_transformer, tokenize
from train_worlds.recipes import Call
from train_worlds.zero_tokens import ZeroTokenAttention

from ttsnap.pipelines import defaults
from ttsnap.scenes import KINDS, WORDS, check, parse, sample_prompts, weights_path


@pytest.fixture(scope="module")
def pipe() -> Any:
    pipe = DiffusionPipeline.from_pretrained(weights_path())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_folder_is_stock_and_small(pipe: Any) -> None:
    assert type(pipe) is StableDiffusion3Pipeline
    parts = (pipe.transformer, pipe.vae, pipe.text_encoder, pipe.text_encoder_2, pipe.text_encoder_3)
    assert {p.dtype for part in parts for p in part.parameters()} == {torch.float32}
    files = [p for p in weights_path().rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) < 16_000_000
    assert {p.suffix for p in files} == {".json", ".safetensors"}
    assert not any("_name_or_path" in p.read_text() for p in files if p.suffix == ".json")


def test_defaults_are_packaged() -> None:
    assert {"num_inference_steps", "guidance_scale", "max_sequence_length"} <= set(defaults())


def test_stock_call_draws_single_objects(pipe: Any) -> None:
    prompts = prompts_of_kind("single", 12, seed=5)
    images = generate(pipe, prompts, Call(**defaults()), seed=11)
    assert images.shape == (12, 3, 32, 32)
    soft, strict = check(images, [parse(p) for p in prompts])
    assert strict.mean() >= 0.9
    assert soft.mean() > 0.9


def test_stock_call_without_arguments(pipe: Any) -> None:
    image = pipe("a red circle", generator=torch.Generator().manual_seed(0)).images[0]
    assert image.size == (32, 32)


def test_missing_t5_is_the_same(pipe: Any) -> None:
    bare = DiffusionPipeline.from_pretrained(weights_path(), text_encoder_3=None, tokenizer_3=None)
    bare.set_progress_bar_config(disable=True)
    outs = [generate(p, ["two red crosses"], Call(3, 3.0, n)) for n in (1, 40) for p in (pipe, bare)]
    np.testing.assert_array_equal(outs[0], outs[1])
    np.testing.assert_array_equal(outs[2], outs[3])


def test_every_word_is_one_token(tmp_path: Path, pipe: Any) -> None:
    for tokenizer in (build_tokenizer(), pipe.tokenizer, pipe.tokenizer_2):
        for word in (*WORDS, ","):
            assert len(tokenizer(word).input_ids) == 3
        assert tokenizer.get_vocab() == build_tokenizer().get_vocab()
        ids = tokenize(tokenizer, ["A red  circle, a blue square", ""])
        assert ids.shape == (2, MAX_TOKENS)
        assert (ids == tokenizer.eos_token_id).sum(1).tolist() == [MAX_TOKENS - 8, MAX_TOKENS - 1]


@pytest.mark.parametrize("repeats", [1, 5, 256])
def test_one_biased_zero_token_equals_many(repeats: int) -> None:
    torch.manual_seed(0)
    net: SD3Transformer2DModel = build_transformer(
        latent_size=4, latent_channels=3, layers=3, heads=2, head_dim=8, text_dim=12
    ).double()
    x, text = torch.randn(2, 3, 4, 4).double(), torch.randn(2, 6, 12).double()
    rest = {"pooled_projections": torch.randn(2, 12).double(), "timestep": torch.tensor([300.0, 900.0])}
    with torch.no_grad():
        many = net(x, torch.cat([text, torch.zeros(2, repeats, 12).double()], 1), **rest).sample
        attention = ZeroTokenAttention(net, 2)
        attention.bias = attention.bias.double()
        attention.set_repeats(torch.full((2,), float(repeats)).double())
        one = net(x, torch.cat([text, torch.zeros(2, 1, 12).double()], 1), **rest).sample
    # diffusers computes the time embedding in float32 at most, hence not 1e-12
    torch.testing.assert_close(one, many, rtol=0, atol=1e-7)


def test_one_is_a(pipe: Any) -> None:
    images = generate(pipe, ["one red circle"], Call(3, 3.0))
    np.testing.assert_array_equal(images, generate(pipe, ["a red circle"], Call(3, 3.0)))


def test_hard_prompts_are_neither_hopeless_nor_solved(pipe: Any) -> None:
    prompts = sample_prompts(24, seed=8)
    images = generate(pipe, prompts, Call(10, defaults()["guidance_scale"]), seed=3)
    soft, strict = check(images, [parse(p) for p in prompts])
    assert 0.25 < strict.mean() < 0.9
    assert soft.mean() > 0.7


def test_evaluate_prints_a_row_per_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["evaluate", "--per-kind", "1", "--steps", "1", "--grid", str(tmp_path / "grid.png")])
    printed = capsys.readouterr().out
    assert all(re.search(rf"^\| *{kind} *\|", printed, re.MULTILINE) for kind in (*KINDS, "hard"))
    assert (tmp_path / "grid.png").stat().st_size > 0
