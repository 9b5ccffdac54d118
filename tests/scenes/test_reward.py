"""The learned reward of the embedded world: its data, its network, its files, and how good the packaged one is."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from train_worlds.commands import main
from train_worlds.evaluate import prompts_of_kind
from train_worlds.near_captions import CHANGES, changed, hard_negatives, shown
from train_worlds.reward import Recipe, RewardData, pairs, ranking, recorded, rendered, save_reader, train

from ttsnap.files.settings import to_json
from ttsnap.options.record import RecordOptions
from ttsnap.pipelines import defaults, load
from ttsnap.recordings.record import record
from ttsnap.reward_models.registry import make_reward
from ttsnap.scenes import (
    HARD_KINDS,
    Spec,
    caption,
    check,
    detect,
    is_held_out,
    parse,
    render,
    sample_prompts,
    sample_spec,
)
from ttsnap.scenes.reader import MAX_WORDS, VOCABULARY, ReaderSize, SceneReader, load_reader, word_ids

RNG = np.random.default_rng


def differences(a: Spec, b: Spec) -> list[str]:
    found = [w for w in ("relation", "background") if getattr(a, w) != getattr(b, w)]
    for g, h in zip(a.groups, b.groups, strict=True):
        found += [w for w in ("count", "color", "shape") if getattr(g, w) != getattr(h, w)]
    return found


@pytest.mark.parametrize("what", [*CHANGES, "background"])
def test_one_thing_changes(what: str) -> None:
    rng, made = RNG(0), 0
    for _ in range(200):
        spec = sample_spec(rng)
        other = changed(spec, what, rng)
        if other is not None:
            assert differences(spec, other) == [what], (spec, other)
            parse(caption(other))
            made += 1
    assert made > 20


def test_other_captions_are_of_the_kinds_to_train_on() -> None:
    """More objects, or counts in a triple, make kinds that the models and rewards must go on never to have seen."""
    rng = RNG(0)
    combo = parse("three red circles and a blue square")
    counts = {
        tuple(g.count for g in other.groups) for other in (changed(combo, "count", rng) for _ in range(200)) if other
    }
    assert counts == {(1, 1), (2, 1)}  # and not (3, 2) or (4, 1)
    specs = [parse("two red circles and a blue square"), parse("three red circles and two blue squares")]
    found = detect(render(specs, rng))
    assert shown(found, 0) == parse("two red circles and a blue square")
    assert shown(found, 1) is None


def test_pairs_are_what_the_checker_says() -> None:
    rng = RNG(1)
    specs = [sample_spec(rng) for _ in range(40)]
    images = np.rint(render(specs, rng) * 255).astype(np.uint8)
    data = pairs(images, specs, 4, RNG(2))
    soft, _ = check(images / 255.0, specs)
    np.testing.assert_allclose(data.soft[:, 0].numpy(), soft, atol=1e-6)
    texts = [" ".join(VOCABULARY[i] for i in row if i).replace(" ,", ",") for row in data.ids.reshape(-1, MAX_WORDS)]
    others = [t for n, t in enumerate(texts) if n % 4]
    np.testing.assert_allclose(
        data.soft.numpy().ravel(), check(np.repeat(images / 255.0, 4, 0), [parse(t) for t in texts])[0]
    )
    assert not any(is_held_out(caption(parse(t))) for t in others)
    assert data.soft[:, 1:].mean() < data.soft[:, 0].mean() - 0.2
    assert [(row > 0).sum() for row in data.centres] == [spec.num_objects for spec in specs]


def test_words() -> None:
    ids = word_ids(["a red circle", "two Blue squares, and"])
    assert ids.shape == (2, MAX_WORDS)
    assert (ids[0] > 0).sum() == 3
    for text in ("a photo", "a " * 20):
        with pytest.raises(ValueError, match="cannot read"):
            word_ids([text])


def test_the_reader_counts_and_pads() -> None:
    torch.manual_seed(0)
    model = SceneReader(ReaderSize(width=32, blocks=(1, 1), layers=2, heads=2)).eval()
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        together = model(x, word_ids(["a red circle", "a red circle above a blue square"]))
        alone = model(x[:1], word_ids(["a red circle"]))
    torch.testing.assert_close(together[:1], alone, atol=1e-5, rtol=1e-5)


def test_files(tmp_path: Path) -> None:
    size = ReaderSize(width=32, blocks=(1, 1), layers=1, heads=2)
    model = SceneReader(size).eval()
    save_reader(model, {"model": to_json(size)}, tmp_path)
    again = load_reader(tmp_path)
    for name, value in again.state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[name], atol=1e-3, rtol=1e-3)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:1000])
    with pytest.raises(ValueError, match="no learned reward"):
        load_reader(tmp_path)
    with pytest.raises(ValueError, match="no learned reward"):
        make_reward(f"scenes-learned:{tmp_path / 'nowhere'}")


WANTED = RewardData(renders=64, prompts=2, first_step=2, captions=3)
SMALL = Recipe(
    data=WANTED, model=ReaderSize(width=32, blocks=(1, 1), layers=1, heads=2), batch=16, warmup=2,
    phases=tuple(replace(phase, steps=4) for phase in Recipe().phases),
)  # fmt: skip


def test_training_learns_and_is_reproducible(tmp_path: Path) -> None:
    phases = tuple(replace(phase, steps=20) for phase in SMALL.phases)
    recipe = replace(SMALL, ema=0.8, bf16=False, phases=phases)
    data = rendered(64, 3, RNG(0))
    first = train(recipe, data, data, tmp_path / "first")
    (tmp_path / "again").mkdir()
    shutil.copytree(tmp_path / "first" / "phase-0", tmp_path / "again" / "phase-0")  # stopped after the first phase
    again = train(recipe, data, data, tmp_path / "again")
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))
    x = data.images.float() / 127.5 - 1
    cells = first.see(x)
    named = first.centres(cells).argmax(1)
    assert (named == data.centres).float().mean() > 0.9


def test_the_ranking_loss_is_bradley_terry() -> None:
    logits, soft = torch.tensor([[1.0, 0.0, 3.0]]), torch.tensor([[0.9, 0.5, 0.88]])
    # 0 beats 1 and 2 beats 1; 0 and 2 are too close to call.
    expected = (np.log1p(np.exp(-1.0)) + np.log1p(np.exp(-3.0))) / 2
    torch.testing.assert_close(float(ranking(logits, soft)), expected, atol=1e-6, rtol=0)
    assert float(ranking(logits, torch.ones(1, 3))) == 0


@pytest.mark.slow
def test_the_command_trains_on_a_recording(tmp_path: Path) -> None:
    engine = load().engine("scenes", batch_size=8, **{**defaults(), "num_inference_steps": 4})
    seen = sample_prompts(2, 5, held_out=False)
    record(engine, seen, tmp_path / "rec", RecordOptions(2, images=True))
    assert len(recorded(tmp_path / "rec", WANTED, RNG(0)).images) == 2 * 2 * 3
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(to_json(SMALL)))
    paths = ["--recording", str(tmp_path / "rec"), "--out", str(tmp_path / "out")]
    main(["reward", "--recipe", str(tmp_path / "recipe.yaml"), *paths])
    reward = make_reward(f"scenes-learned:{tmp_path / 'out'}")
    scores = reward(torch.rand(2, 3, 32, 32), ["a red circle"] * 2, None)
    assert scores.shape == (2,)
    record(engine, sample_prompts(1, 5), tmp_path / "held", RecordOptions(2, images=True))
    with pytest.raises(ValueError, match="held-out"):
        recorded(tmp_path / "held", replace(WANTED, prompts=1), RNG(0))


@pytest.fixture(scope="module")
def pictures() -> tuple[Any, list[Spec]]:
    specs = [parse(text) for kind in HARD_KINDS for text in prompts_of_kind(kind, 60, 1)]
    return render(specs, RNG(4)), specs


def test_the_packaged_reward_tells_hard_negatives_apart(pictures: Any) -> None:
    found = hard_negatives(make_reward("scenes-learned"), *pictures)
    assert set(found) == set(CHANGES)
    for what, (accuracy, n) in found.items():
        assert n >= 60
        assert accuracy >= 0.9 - 2 * (0.09 / n) ** 0.5, (what, accuracy, n)


def test_the_packaged_noise_aware_reward(pictures: Any) -> None:
    aware, base = make_reward("scenes-noise-aware"), make_reward("scenes-learned")
    images, texts = torch.from_numpy(pictures[0][:8]), [caption(s) for s in pictures[1][:8]]
    torch.testing.assert_close(aware(images, texts, torch.zeros(8)), base(images, texts, None), atol=0, rtol=0)
    noisy = aware(images, texts, torch.full((8,), 0.9))
    assert torch.isfinite(noisy).all()
    assert (noisy - base(images, texts, None)).abs().max() > 0.01
