"""What trains the embedded models and the learned reward, in miniature (scripts/train_worlds)."""

from __future__ import annotations

import json
import shutil
import zlib
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from diffusers import DiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file
from train_worlds import base, landscape, lettering, pack, reward, turbo
from train_worlds import generator as gen
from train_worlds import signs as sign_base
from train_worlds import things as thing_base
from train_worlds.commands import main
from train_worlds.model import build_tokenizer, build_vae, tokenize
from train_worlds.near_captions import CHANGES, changed, shown
from train_worlds.recipes import Call, NoiseLevels
from train_worlds.vae import VaeRecipe, VaeSize, windows

from ttsnap.files.settings import build, to_json
from ttsnap.pipelines import defaults, load
from ttsnap.reward_models.registry import make_reward
from ttsnap.scenes import caption, check, detect, is_held_out, parse, render, sample_spec
from ttsnap.scenes.reader import (
    MAX_WORDS,
    VOCABULARY,
    ReaderSize,
    SceneReader,
    load_reader,
    word_ids,
)
from ttsnap.signs import grammar as lettered
from ttsnap.things.grammar import THINGS as LANGUAGE

RNG = np.random.default_rng
BASE = base.Recipe(
    seed=3,
    save_every=2,
    defaults=Call(2, 2.0, 1),
    probe=base.Probe(every=4, per_kind=1, final_per_kind=1),
    data=base.Data(images=64),
    vae=VaeRecipe(model=VaeSize(4, (8, 8, 8), layers=1, groups=4), lr=1e-3, batch=8, steps=3),
    generator=gen.GeneratorRecipe(
        text=gen.TextSize(16, layers=2, heads=2),
        text_2=gen.TextSize(8, layers=1, heads=1),
        transformer=gen.TransformerSize(2, heads=2, head_dim=8),
        batch=8,
        steps=6,
        warmup=2,
        decay_steps=3,
        muon_lr=1e-3,
        ema=0.9,
        sigma=NoiseLevels(0.5, 1.0, 0.2),
        caption_dropout=0.3,
        zero_tokens=(1, 256),
        reading_block=0,
        bf16=False,
        compile=False,
    ),
)


SIGNS = replace(
    sign_base.Recipe(),
    save_every=4,
    probe=BASE.probe,
    data=base.Data(images=32),
    vae=BASE.vae,
    defaults=replace(sign_base.Recipe().defaults, num_inference_steps=2),
    generator=replace(
        BASE.generator, transformer=gen.TransformerSize(2, heads=2, head_dim=8, patch=2), steps=4
    ),
)


THINGS = replace(
    thing_base.Recipe(),
    save_every=4,
    probe=BASE.probe,
    generator=SIGNS.generator,
    data=base.Data(images=16, cell=4),
    vae=replace(BASE.vae, window=4, whole=1),
    defaults=replace(thing_base.Recipe().defaults, num_inference_steps=2),
)


@pytest.mark.parametrize(
    ("world", "recipe", "prompt", "size"),
    [
        ("signs", SIGNS, 'a red sign that says "HELLO"', (lettering.WIDTH, lettering.HEIGHT)),
        pytest.param("things", THINGS, "an owl left of a car", 2 * (landscape.IMAGE_SIZE,)),
        pytest.param("base", BASE, "a red circle", (32, 32), marks=pytest.mark.slow),
    ],
)
def test_one_command_runs_a_recipe(world, recipe, prompt, size, tmp_path):
    (tmp_path / "mini.yaml").write_text(yaml.safe_dump(to_json(recipe)))
    command = [world, "--recipe", str(tmp_path / "mini.yaml"), "--out", str(tmp_path / "out")]
    main(command)
    made = {p.name for p in (tmp_path / "out").iterdir()}
    assert {"samples_000004.png", "samples_final.png", "accuracy.md", "generator.pt"} <= made
    main(command)  # nothing left to train
    assert build(type(recipe), json.loads((tmp_path / "out" / "config.json").read_text())) == recipe
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "out" / "pipeline")
    width, height = size
    images = pipe(prompt, height=height, width=width, num_inference_steps=2).images
    assert images[0].size == size


def test_training_forward_is_the_stock_forward():
    tokenizer, size = build_tokenizer(), (4, 8, 8)
    ids = tokenize(tokenizer, ["a red circle", "two blue crosses", ""])
    examples = gen.Examples(
        torch.randn(3, *size).half(), torch.zeros(3, 8, 8).byte(), ids.to(torch.uint8), ids[2], 25
    )
    model = gen.GeneratorTrainer(
        BASE.generator, tokenizer, examples, seed=1, device=torch.device("cpu")
    ).ema
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.1)
    x, sigma = torch.randn(3, *size), torch.rand(3)
    with torch.no_grad():
        text, pooled = gen.encode_text((model.text, model.text_2), ids)
        ours, _ = model(x, sigma, ids, tap=0)
        stock = model.transformer(x, text, pooled, sigma * 1000).sample
    torch.testing.assert_close(ours, stock)
    assert text.shape[1] == ids.shape[1] + 1
    assert not text[:, -1].any()


# --- the model that writes ------------------------------------------------------------------------


def test_training_words_are_none_of_the_held_out_and_have_no_held_out_pair():
    words = lettering.random_words(2000, np.random.default_rng(0))
    assert not set(words) & set(lettered.WORDS)
    assert not set().union(*map(lettered.pairs, words)) & lettered.UNSEEN_PAIRS
    assert set(Counter(map(len, words))) == {3, 4, 5, 6, 7, 8}
    assert set("".join(words)) == set(lettered.LETTERS)
    assert words == lettering.random_words(2000, np.random.default_rng(0))


def test_a_picture_has_the_colours_and_the_letters_of_its_sign():
    signs = [lettered.Sign("HELLO", "red", "white"), lettered.Sign("OIL", "yellow", "black")]
    images, maps = lettering.render(signs, np.random.default_rng(1))
    assert images.shape == (2, 3, lettering.HEIGHT, lettering.WIDTH)
    for image, labels, sign in zip(images, maps, signs, strict=True):
        assert tuple(image[:, 0, 0]) == lettered.RGB[sign.ground]
        ink = np.array(lettered.RGB[str(sign.ink)])[:, None, None]
        assert np.abs(image - ink).sum(0).min() < 40
        seen = [lettered.LETTERS[c - 1] for c in labels.max(0) if c]
        assert "".join(dict.fromkeys(seen)) == "".join(dict.fromkeys(sign.word))
        assert set(np.unique(labels)) == {
            0,
            *(1 + lettered.LETTERS.index(letter) for letter in sign.word),
        }


def test_each_letter_is_a_token_and_stands_at_its_place():
    tokenizer = sign_base.build_tokenizer()
    ids = tokenize(
        tokenizer, ['a red sign that says "HELLO"', 'a blue sign that says "CHARCOAL" in white', ""]
    )
    assert ids.shape == (3, 19)
    words = [tokenizer.convert_ids_to_tokens(row.tolist()) for row in ids]
    assert words[0][6:13] == ['"', *"HELLO", '"']
    assert words[1][1:19] == [
        "a",
        "blue",
        "sign",
        "that",
        "says",
        '"',
        *"CHARCOAL",
        '"',
        "in",
        "white",
        words[2][1],
    ]
    assert set(words[2][1:]) == {tokenizer.eos_token}
    assert len(tokenizer) == 5 + 6 + 26 + 1 + 2


# --- the few-step model ---------------------------------------------------------------------------

TURBO = turbo.Recipe(
    seed=3,
    teacher=Call(4, 3.0, 1),
    defaults=Call(2, 1.0, 1),
    pairs=turbo.PairsRecipe(
        from_noise=8, from_renders=4, starts=(1, 2), skipped=(2,), shard=4, batch=2
    ),
    batch=4,
    steps=4,
    warmup=2,
    decay_steps=2,
    ema=0.9,
    held=2,
    save_every=2,
    look_every=2,
    final_per_kind=0,
    bf16=False,
    compile=False,
)


@pytest.fixture(scope="module")
def tiny():
    """A stock pipeline of random weights."""
    torch.manual_seed(0)
    small = gen.TransformerSize(1, heads=2, head_dim=8)
    texts = {"text": gen.TextSize(16, layers=2, heads=2), "text_2": gen.TextSize(8, 1, 1)}
    recipe = gen.GeneratorRecipe(**texts, transformer=small)
    tokenizer = build_tokenizer()
    model = gen.Generator(recipe, tokenizer, 4, 8)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    vae = build_vae(image_size=32, latent_channels=4, channels=(8, 8, 8), layers=1, groups=4)
    return gen.build_pipeline(model.eval(), vae.eval(), tokenizer, 1.0)


def test_the_target_leads_from_anywhere_on_the_line_to_the_end():
    start, end = torch.tensor([[[[4.0]]], [[[1.0]]]]), torch.tensor([[[[2.0]]], [[[3.0]]]])
    level, share = torch.tensor([1.0, 0.5]), torch.tensor([0.25, 1.0])
    x, velocity = turbo.on_the_way(start, end, share), turbo.straight_velocity(start, end, level)
    assert (x.flatten().tolist(), velocity.flatten().tolist()) == ([2.5, 1.0], [2.0, -4.0])
    assert torch.equal(x - (level * share).view(-1, 1, 1, 1) * velocity, end)


def test_the_teacher_ends_where_a_constant_velocity_leads(tiny, monkeypatch):
    teacher = turbo.Teacher(tiny, TURBO)
    levels = []

    def velocity(x, sigma, *text):
        levels.append(sigma)
        return torch.full_like(x, 2.0)

    monkeypatch.setattr(teacher, "velocity", velocity)
    x = torch.ones(1, 4, 8, 8)
    torch.testing.assert_close(teacher.ends(x, 1, ["a red circle"]), x - 2 * teacher.sigmas[1])
    assert levels == [teacher.sigmas[1], teacher.sigmas[3]]  # step 2 is skipped


def test_the_teacher_is_the_stock_call(tiny):
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    prompts = ["a red circle", "two blue crosses"]
    stock = tiny(prompts, latents=noise, output_type="latent", **to_json(TURBO.teacher)).images
    whole = replace(TURBO, pairs=replace(TURBO.pairs, skipped=()))
    torch.testing.assert_close(
        turbo.Teacher(tiny, whole).ends(noise, 0, prompts), stock, rtol=1e-3, atol=1e-3
    )


@pytest.mark.slow
def test_one_command_makes_a_few_step_model(tmp_path):
    recipe = replace(TURBO, steps=2, pairs=replace(TURBO.pairs, from_noise=4, shard=2))
    (tmp_path / "mini.yaml").write_text(yaml.safe_dump(to_json(recipe)))
    command = ["turbo", "--recipe", str(tmp_path / "mini.yaml"), "--out", str(tmp_path / "out")]
    main(command)
    folder = tmp_path / "out" / "pipeline"
    assert load(folder).scheduler.config.shift_terminal == 0.5
    assert defaults(folder) == to_json(TURBO.defaults)
    words = json.loads((folder / "tokenizer" / "tokenizer.json").read_text())
    assert words["padding"] is None  # as new, not as the training left it
    before = (folder / "transformer" / "diffusion_pytorch_model.safetensors").read_bytes()
    main(command)  # nothing left to train
    assert (folder / "transformer" / "diffusion_pytorch_model.safetensors").read_bytes() == before


# --- the learned reward ---------------------------------------------------------------------------


@pytest.mark.parametrize("what", [*CHANGES, "background"])
def test_one_thing_changes(what):
    rng, made = RNG(0), 0
    for spec in [sample_spec(rng) for _ in range(200)]:
        other = changed(spec, what, rng)
        if other is not None:
            found = [w for w in ("relation", "background") if getattr(spec, w) != getattr(other, w)]
            for g, h in zip(spec.groups, other.groups, strict=True):
                before = (g.count, *g.noun.split())
                after = (h.count, *h.noun.split())
                names = ("count", "color", "shape")
                found += [w for w, a, b in zip(names, before, after, strict=True) if a != b]
            assert found == [what], (spec, other)
            parse(caption(other))
            made += 1
    assert made > 20


def test_things_stand_where_their_boxes_and_captions_say():
    rng = RNG(2)
    specs = [LANGUAGE.sample_spec(rng) for _ in range(40)]
    images, labels, boxes = landscape.render(specs, rng)
    assert images.shape == (40, 3, 128, 128)
    for spec, label, things in zip(specs, labels, boxes, strict=True):
        named = [landscape.THINGS[int(thing)] for thing in things[:, 0]]
        assert tuple(named) == spec.objects
        for thing, x, y, side in things:
            seen = (label == 1 + int(thing))[int(y - side / 2) : int(y + side / 2) + 1]
            assert seen[:, int(x - side / 2) : int(x + side / 2) + 1].sum() > 0.15 * side**2
        if spec.relation == "left of":
            first = spec.groups[0].count
            assert things[:first, 1].max() < things[first:, 1].min()


def test_a_window_shows_a_thing_and_its_labels():
    images = torch.zeros(3, 3, 32, 32)
    labels = torch.zeros(3, 8, 8, dtype=torch.uint8)
    labels[:2, 7, 6] = 5
    images[:2, :, 28:, 24:28] = 1
    parts, maps = windows(images, labels, 4)
    assert parts.shape == (3, 3, 16, 16)
    assert (maps[:2] == 5).sum() == 2
    where = torch.nn.functional.interpolate((maps == 5).float()[:, None], scale_factor=4)
    assert torch.equal(parts, where.expand_as(parts))


def test_other_captions_are_of_the_kinds_to_train_on():
    """More objects, or counts in a triple, make kinds that the models and rewards must go on never
    to have seen."""
    rng = RNG(0)
    others = [
        changed(parse("three red circles and a blue square"), "count", rng) for _ in range(200)
    ]
    assert {tuple(g.count for g in other.groups) for other in others if other} == {(1, 1), (2, 1)}
    specs = [
        parse("two red circles and a blue square"),
        parse("three red circles and two blue squares"),
    ]
    found = detect(render(specs, rng))
    assert [shown(found, 0), shown(found, 1)] == [specs[0], None]


def test_pairs_are_what_the_checker_says():
    rng = RNG(1)
    specs = [sample_spec(rng) for _ in range(40)]
    images = np.rint(render(specs, rng) * 255).astype(np.uint8)
    data = reward.pairs(images, specs, 4, RNG(2))
    soft, _ = check(images / 255.0, specs)
    np.testing.assert_allclose(data.soft[:, 0].numpy(), soft, atol=1e-6)
    texts = [
        " ".join(VOCABULARY[i] for i in row if i).replace(" ,", ",")
        for row in data.ids.reshape(-1, MAX_WORDS)
    ]
    others = [t for n, t in enumerate(texts) if n % 4]
    every, _ = check(np.repeat(images / 255.0, 4, 0), [parse(t) for t in texts])
    np.testing.assert_allclose(data.soft.numpy().ravel(), every)
    assert not any(is_held_out(caption(parse(t))) for t in others)
    assert data.soft[:, 1:].mean() < data.soft[:, 0].mean() - 0.2
    assert [(row > 0).sum() for row in data.centres] == [spec.num_objects for spec in specs]


def test_words_are_counted_and_padding_is_not_read():
    ids = word_ids(["a red circle", "a Red circle, and"])
    assert (ids.shape, int((ids[0] > 0).sum())) == ((2, MAX_WORDS), 3)
    for text in ("a photo", "a " * 20):
        with pytest.raises(ValueError, match="cannot read"):
            word_ids([text])
    torch.manual_seed(0)
    model = SceneReader(ReaderSize(width=32, blocks=(1, 1), layers=2, heads=2)).eval()
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        together = model(x, word_ids(["a red circle", "a red circle above a blue square"]))
        alone = model(x[:1], word_ids(["a red circle"]))
    torch.testing.assert_close(together[:1], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("store", "error", "share"), [(pack.rounded, 0.012, 0.72), (pack.eight_bits, 0.03, 0.5)]
)
def test_packed_weights_are_nearly_the_same_and_deflate(store, error, share, tmp_path):
    torch.manual_seed(0)
    given = {"matrix": 0.05 * torch.randn(64, 256), "bias": torch.randn(64)}
    save_file(given, path := tmp_path / "model.safetensors", {"format": "pt"})
    pack.pack(tmp_path, store)
    kept = load_file(path)
    assert (kept["matrix"].float() - given["matrix"]).norm() < error * given["matrix"].norm()
    assert kept["bias"].equal(given["bias"].half())
    halves = save({name: value.half() for name, value in given.items()})
    assert len(zlib.compress(path.read_bytes())) < share * len(zlib.compress(halves))
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}
    before = path.read_bytes()
    pack.pack(tmp_path, store)
    assert path.read_bytes() == before


def test_a_reader_is_saved_and_loaded(tmp_path):
    size = ReaderSize(width=32, blocks=(1, 1), layers=1, heads=2)
    model = SceneReader(size).eval()
    reward.save_reader(model, {"model": to_json(size)}, tmp_path)
    again = load_reader(tmp_path)
    for name, value in again.state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[name], atol=1e-3, rtol=8e-3)
    (tmp_path / "model.safetensors").write_bytes(
        (tmp_path / "model.safetensors").read_bytes()[:1000]
    )
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match="no learned reward"):
            make_reward(f"scenes-learned:{folder}")


WANTED = reward.RewardData(renders=64, prompts=2, first_step=2, captions=3)
SMALL = reward.Recipe(
    data=WANTED,
    model=ReaderSize(width=32, blocks=(1, 1), layers=1, heads=2),
    batch=16,
    warmup=2,
    phases=tuple(replace(phase, steps=4) for phase in reward.Recipe().phases),
)


def test_training_learns_and_is_reproducible(tmp_path):
    phases = tuple(replace(phase, steps=20) for phase in SMALL.phases)
    recipe, data = (
        replace(SMALL, ema=0.8, bf16=False, phases=phases),
        reward.rendered(64, 3, RNG(0)),
    )
    first = reward.train(recipe, data, data, tmp_path / "first")
    # stopped after the first phase
    shutil.copytree(tmp_path / "first" / "phase-0", tmp_path / "again" / "phase-0")
    again = reward.train(recipe, data, data, tmp_path / "again")
    assert all(
        torch.equal(a, b)
        for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True)
    )
    named = first.centres(first.see(data.images.float() / 127.5 - 1)).argmax(1)
    assert (named == data.centres).float().mean() > 0.9


def test_the_ranking_loss_is_bradley_terry():
    logits, soft = torch.tensor([[1.0, 0.0, 3.0]]), torch.tensor([[0.9, 0.5, 0.88]])
    # 0 beats 1 and 2 beats 1; 0 and 2 are too close to call.
    expected = (np.log1p(np.exp(-1.0)) + np.log1p(np.exp(-3.0))) / 2
    torch.testing.assert_close(float(reward.ranking(logits, soft)), expected, atol=1e-6, rtol=0)
    assert float(reward.ranking(logits, torch.ones(1, 3))) == 0
