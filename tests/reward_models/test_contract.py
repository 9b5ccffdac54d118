"""What every reward with a network is held to, on the tiny networks of published.py."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from ttsnap.core.utility import mean
from ttsnap.results.rank import rank
from ttsnap.reward_models.noise_aware.student import NoiseAware

from ..golden import tiny  # noqa: TID252
from .published import GOLDEN, HEADED, SCORERS, as_tensor, known, load, prompts_of


@pytest.mark.parametrize("name", [*SCORERS, *HEADED])
def test_scores_of_the_original_package(name, published):
    reward, prompts, values = published(name), prompts_of(name), known(name)
    for at, (pixels, given, expected) in enumerate(values):
        # large models: each prompt once
        rows = slice(None) if at == 0 or name in SCORERS else slice(at, at + 1)
        seen, *more = (
            x.expand(len(prompts[rows]), *x.shape[1:]) for x in (pixels, *given.values())
        )
        scores = reward(seen, prompts[rows], None, *more)
        assert scores.dtype == torch.float32
        torch.testing.assert_close(
            scores, expected[rows], rtol=1e-5, atol=1e-4 if name in SCORERS else 1e-5
        )
    # the values tell images or prompts apart
    assert torch.cat([value.scores for value in values]).std() > 0.02


@pytest.mark.parametrize("name", SCORERS)
def test_crops_are_those_of_the_original_package(name, tmp_path):
    reward = load(name, tmp_path, large=True)
    pictures = map(as_tensor, tiny.images(tiny.LARGE_SIZES))
    scores = torch.cat([reward(picture, tiny.PROMPTS[-1:]) for picture in pictures])
    torch.testing.assert_close(
        scores, torch.tensor(GOLDEN[f"{name}-large"]["scores"]), rtol=1e-5, atol=1e-4
    )


@pytest.mark.parametrize("name", ["pickscore", "open_clip", "imagereward", "aesthetics"])
def test_alpha_is_dropped_as_in_the_original(name, tmp_path, published):
    paths = [tmp_path / f"{i}.png" for i in range(len(tiny.SIZES))]
    for path, array in zip(paths, tiny.translucent(), strict=True):
        Image.fromarray(array).save(path)
    base = published(name)
    found = {
        r.path: r.scores
        for r in rank(
            dict(zip(paths, tiny.PROMPTS, strict=True)), [base, NoiseAware(base, rank=2)], mean
        )
    }
    golden = torch.tensor(GOLDEN[f"{name}-translucent"]["scores"])
    # a noise-aware reward's of finished images are its base's
    scores = torch.tensor([found[path] for path in paths])
    torch.testing.assert_close(scores, golden[:, None].expand(-1, 2), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", [*SCORERS, "hpsv3"])
def test_each_row_is_scored_alone(name, published, monkeypatch):
    reward, prompts = published(name), [prompts_of(name)[i] for i in (0, 1, 0)]
    monkeypatch.setattr(reward, "batch_size", 2)
    images = torch.rand(3, 3, 40, 52, generator=torch.Generator().manual_seed(0))
    together = reward(images, prompts, torch.full((3,), 0.3))
    alone = torch.cat([reward(images[i : i + 1], prompts[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4 if name in SCORERS else 1e-5)
    assert not together.requires_grad
    assert len(reward(images[:0], [])) == 0
    assert reward.flops > 1e5
    with pytest.raises(ValueError, match="2 prompts for 3 images"):
        reward(images, prompts[:2])
    for wrong, message in (
        (images[:, 0], r"got \(3, 40, 52\)"),
        ((images * 255).byte(), r"torch\.uint8"),
    ):
        with pytest.raises(ValueError, match=message):
            reward(wrong, prompts)


@pytest.mark.parametrize("name", [*SCORERS, "hpsv3"])
def test_half_precision_stays_near(name, tmp_path):
    reward = load(name, tmp_path, dtype=torch.bfloat16)
    assert next(reward.network.parameters()).dtype == torch.bfloat16
    pixels, _, golden = known(name)[0]
    scores = reward(pixels.expand(len(golden), -1, -1, -1), prompts_of(name))
    assert scores.dtype == torch.float32
    assert (scores - golden).abs().max() < 0.05 * golden.abs().max()


@pytest.mark.parametrize(("name", "most"), [("clip", 77), ("open_clip", 77), ("imagereward", 35)])
def test_long_prompts_are_cut(name, most, published, caplog):
    reward, long = published(name), "word " * 80
    reward.check(["short"])
    assert not caplog.messages
    reward.check([long])
    assert f"{name} reads {most} tokens" in caplog.messages[-1]
    images = known(name)[0].pixels.expand(2, -1, -1, -1)
    assert reward(images, [long, long + "more"]).unique().numel() == 1
