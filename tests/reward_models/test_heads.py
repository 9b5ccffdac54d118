"""Heads on latents and hidden features: the base's later layers behind a new stem."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from ttsnap.reward_models.noise_aware.heads import Head
from ttsnap.reward_models.noise_aware.student import NoiseAware
from ttsnap.reward_models.scenes_learned import ScenesLearned

from ttsnap.rewards.registry import make_reward
from ttsnap.scenes.reader import ReaderSize, SceneReader

PROMPTS = ["a red circle", "two blue squares", "a green cross above a red square"]
LEVELS = torch.tensor([0.9, 0.5, 0.1])


@pytest.fixture
def base() -> ScenesLearned:
    torch.manual_seed(0)
    return ScenesLearned(SceneReader(ReaderSize(width=32, blocks=(1, 1), layers=1, heads=2)))


def latents(n: int = 3, channels: int = 8, size: int = 8) -> torch.Tensor:
    return torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(1))


def test_finished_images_are_the_bases(base: ScenesLearned) -> None:
    head = Head(base, space="latents", channels=8)
    images = torch.rand(3, 3, 32, 32)
    torch.testing.assert_close(head(images, PROMPTS, torch.zeros(3)), base(images, PROMPTS), atol=0, rtol=0)
    torch.testing.assert_close(head(images, PROMPTS), base(images, PROMPTS), atol=0, rtol=0)
    with pytest.raises(ValueError, match="from latents, not from decoded"):
        head(images, PROMPTS, LEVELS)


def test_batches_do_not_matter_and_sizes_may_differ(base: ScenesLearned) -> None:
    head = Head(base, space="latents", channels=8, batch_size=2)
    torch.nn.init.normal_(head.network.embedding.score.weight, std=0.1)
    together = head.score_estimates(latents(), PROMPTS, LEVELS)
    alone = [head.score_estimates(latents()[i : i + 1], PROMPTS[i : i + 1], LEVELS[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-5)
    assert head.score_estimates(latents(size=16), PROMPTS, LEVELS).shape == (3,)
    assert head.score_estimates(latents(0), [], LEVELS[:0]).shape == (0,)
    with pytest.raises(ValueError, match="8 channels"):
        head.score_estimates(latents(channels=4), PROMPTS, LEVELS)


def test_training_fits_the_level_and_leaves_the_base_alone(base: ScenesLearned) -> None:
    head = Head(base, space="features", channels=8, features_block=2)
    images = torch.rand(3, 3, 32, 32)
    before = base(images, PROMPTS)
    frozen = {n: p.clone() for n, p in head.network.named_parameters() if not p.requires_grad}
    target = torch.tensor([0.2, 0.9, 0.5])
    optimizer = torch.optim.AdamW(head.trainable().values(), 3e-3)
    losses = []
    for _ in range(40):
        loss = (head.predict(latents(), PROMPTS, LEVELS) - target).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < 0.1 * losses[0]
    torch.testing.assert_close(base(images, PROMPTS), before, atol=0, rtol=0)
    assert all(torch.equal(p, frozen[n]) for n, p in head.network.named_parameters() if n in frozen)
    assert not any(name.startswith(("base.", "copy.text", "copy.words")) for name in head.trainable())
    with torch.no_grad():
        one = latents()[:1].expand(2, -1, -1, -1)
        low, high = head.predict(one, PROMPTS[:1] * 2, torch.tensor([0.05, 0.95]))
    assert abs(float(low - high)) > 1e-4


def test_save_and_load(base: ScenesLearned, tmp_path: Path) -> None:
    head = Head(base, space="features", channels=8, features_block=2, spec="scenes-learned")
    head.save_pretrained(tmp_path, {"note": 1})
    again: Any = NoiseAware.from_pretrained(tmp_path, base=base)
    assert isinstance(again, Head)
    assert (again.estimates, again.features_block) == ("features", 2)
    expected = head.score_estimates(latents(), PROMPTS, LEVELS)
    torch.testing.assert_close(again.score_estimates(latents(), PROMPTS, LEVELS), expected, atol=1e-6, rtol=0)
    other = ScenesLearned(SceneReader(ReaderSize(width=32, blocks=(1, 1), layers=1, heads=2)))
    with pytest.raises(ValueError, match="another checkpoint"):
        NoiseAware.from_pretrained(tmp_path, base=other)
    header = json.loads((tmp_path / "adapter.json").read_text())
    (tmp_path / "adapter.json").write_text(json.dumps({**header, "channels": "many"}))
    with pytest.raises(ValueError, match="no head wrote"):
        NoiseAware.from_pretrained(tmp_path, base=base)


def test_what_does_not_fit_is_refused(base: ScenesLearned) -> None:
    for options in (
        {"space": "pixels", "channels": 8},
        {"space": "features", "channels": 8},
        {"space": "latents", "channels": 8, "features_block": 1},
        {"space": "latents", "channels": 0},
    ):
        with pytest.raises(ValueError, match=r"space is one of|at least 1"):
            Head(base, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="does not say where a stem would go"):
        Head(make_reward("brightness"), space="latents", channels=8)  # type: ignore[arg-type]


def test_flops_leave_out_what_the_stem_replaces(base: ScenesLearned) -> None:
    assert 0 < Head(base, space="latents", channels=8).flops < 1.2 * base.flops
