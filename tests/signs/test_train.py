"""What trains the model that writes: its pictures, its tokens, and a miniature run."""

from collections import Counter
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from diffusers import DiffusionPipeline
from train_worlds.base import Data, Probe
from train_worlds.commands import main
from train_worlds.generator import GeneratorRecipe, TextSize, TransformerSize
from train_worlds.lettering import FONTS, HEIGHT, WIDTH, layout, random_words, render
from train_worlds.model import tokenize
from train_worlds.signs import Recipe, build_tokenizer
from train_worlds.vae import VaeRecipe, VaeSize

from ttsnap.files.settings import to_json
from ttsnap.signs.grammar import LETTERS, RGB, UNSEEN_PAIRS, WORDS, Sign, pairs

MINI = replace(
    Recipe(),
    save_every=4,
    defaults=replace(Recipe().defaults, num_inference_steps=2),
    probe=Probe(every=4, per_kind=1, final_per_kind=1),
    data=Data(images=32),
    vae=VaeRecipe(model=VaeSize(4, (8, 8, 8), layers=1, groups=4), batch=4, steps=2),
    generator=GeneratorRecipe(
        text=TextSize(16, layers=2, heads=2), text_2=TextSize(8, layers=1, heads=1),
        transformer=TransformerSize(2, heads=2, head_dim=8, patch=2), batch=4, steps=4, warmup=2, decay_steps=2,
        reading_block=0, bf16=False, compile=False,
    ),
)  # fmt: skip


def test_training_words_are_none_of_the_held_out_and_have_no_held_out_pair() -> None:
    words = random_words(2000, np.random.default_rng(0))
    assert not set(words) & set(WORDS)
    assert not set().union(*map(pairs, words)) & UNSEEN_PAIRS
    assert set(Counter(map(len, words))) == {3, 4, 5, 6, 7, 8}
    assert set("".join(words)) == set(LETTERS)
    assert words == random_words(2000, np.random.default_rng(0))


@pytest.mark.parametrize("name", FONTS)
def test_every_word_fits_on_its_sign_in_order(name: str) -> None:
    for word, seed in product(("III", "MMM", "WQWQWQWQ", "ILIJILIJ"), range(5)):
        height, base, boxes = layout(word, name, np.random.default_rng(seed))
        assert 6 < height < min(22, base - 2)
        assert base < HEIGHT - 2
        edges = [1, *(edge for left, width in boxes for edge in (left, left + width)), WIDTH - 1]
        assert edges == sorted(edges)
        assert edges[0] < edges[1] < edges[-2] < edges[-1]


def test_a_picture_has_the_colours_and_the_letters_of_its_sign() -> None:
    signs = [Sign("HELLO", "red", "white"), Sign("OIL", "yellow", "black")]
    images, maps = render(signs, np.random.default_rng(1))
    assert images.shape == (2, 3, HEIGHT, WIDTH)
    for image, labels, sign in zip(images, maps, signs, strict=True):
        assert tuple(image[:, 0, 0]) == RGB[sign.ground]
        ink = np.array(RGB[str(sign.ink)])[:, None, None]
        assert np.abs(image - ink).sum(0).min() < 40
        seen = [LETTERS[c - 1] for c in labels.max(0) if c]
        assert "".join(dict.fromkeys(seen)) == "".join(dict.fromkeys(sign.word))
        assert set(np.unique(labels)) == {0, *(1 + LETTERS.index(letter) for letter in sign.word)}


def test_each_letter_is_a_token_and_stands_at_its_place() -> None:
    tokenizer = build_tokenizer()
    ids = tokenize(tokenizer, ['a red sign that says "HELLO"', 'a blue sign that says "CHARCOAL" in white', ""])
    assert ids.shape == (3, 19)
    words = [tokenizer.convert_ids_to_tokens(row.tolist()) for row in ids]
    assert words[0][6:13] == ['"', *"HELLO", '"']
    assert words[1][1:19] == ["a", "blue", "sign", "that", "says", '"', *"CHARCOAL", '"', "in", "white", words[2][1]]
    assert set(words[2][1:]) == {tokenizer.eos_token}
    assert len(tokenizer) == 5 + 6 + 26 + 1 + 2


def test_one_command_runs_the_recipe(tmp_path: Path) -> None:
    recipe = to_json(MINI)
    (tmp_path / "mini.yaml").write_text(yaml.safe_dump(recipe))
    command = ["signs", "--recipe", str(tmp_path / "mini.yaml"), "--out", str(tmp_path / "out")]
    main(command)
    pipe: Any = DiffusionPipeline.from_pretrained(tmp_path / "out" / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    call = {"height": HEIGHT, "width": WIDTH, "num_inference_steps": 2}
    assert pipe('a red sign that says "HELLO"', **call).images[0].size == (WIDTH, HEIGHT)
    assert {p.name for p in (tmp_path / "out").iterdir()} >= {"samples_000004.png", "samples_final.png", "accuracy.md"}
