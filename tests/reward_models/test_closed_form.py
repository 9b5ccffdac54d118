"""Closed forms, and one reward for estimates with another for finished images."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ttsnap.reward_models.closed_form import Brightness, Colourfulness, Compressibility, Incompressibility, Place
from ttsnap.reward_models.registry import make_reward
from ttsnap.reward_models.staged import Staged
from ttsnap.rewards.reward_model import FunctionReward


def flat(*colour: float) -> torch.Tensor:
    return torch.tensor(colour, dtype=torch.float32).view(1, 3, 1, 1).expand(1, 3, 8, 8)


def test_jpeg_size_is_that_of_the_file() -> None:
    images = torch.rand(2, 3, 40, 24, generator=torch.Generator().manual_seed(0))
    array = (images[1] * 255).round().byte().permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="JPEG", quality=95)
    assert Incompressibility()(images, ["", ""])[1].item() == pytest.approx(len(buffer.getvalue()) / 1000)
    assert torch.equal(Compressibility()(images, ["", ""]), -Incompressibility()(images, ["", ""]))


def test_brightness_and_colourfulness() -> None:
    batch = torch.cat([flat(0, 0, 0), flat(1, 1, 1), flat(1, 0, 0), flat(0.5, 0.5, 0.5)])
    assert Brightness()(batch, [""] * 4).tolist() == pytest.approx([0, 1, 0.299, 0.5])
    # Flat red: both opponent axes are constant, at 255 and 127.5.
    red = 0.3 * float(np.hypot(255, 127.5))
    assert Colourfulness()(batch, [""] * 4).tolist() == pytest.approx([0, 0, red, 0])
    halves = torch.cat([flat(1, 0, 0), flat(0, 1, 0)], -1)
    expected = 255 + 0.3 * 127.5  # rg is +-255, yb 127.5 throughout
    assert Colourfulness()(halves, [""]).item() == pytest.approx(expected)
    with pytest.raises(ValueError, match="must be"):
        Brightness()(batch.byte(), [""] * 4)


def test_place_is_what_an_edit_and_its_source_share_whatever_the_hue() -> None:
    grey, red, blue = flat(0.5, 0.5, 0.5), flat(1, 0, 0), flat(0, 0, 1)
    left, right = torch.cat([red, grey], -1), torch.cat([grey, blue], -1)
    edits = torch.cat([left, torch.cat([blue, grey], -1), right, torch.cat([red, red], -1)])
    assert Place()(edits, [""] * 4, source=left.expand(4, -1, -1, -1)).tolist() == pytest.approx([1, 1, 0, 0.5])
    small = left[..., ::2, ::2]
    assert Place()(edits, [""] * 4, source=small.expand(4, -1, -1, -1))[1].item() > 0.7  # of another size
    assert Place()(grey, [""], source=grey).tolist() == [0]  # nothing to compare, and no nan
    assert make_reward("place").needs == {"source"}  # type: ignore[attr-defined]


def test_estimates_and_finished_images_have_their_own_reward() -> None:
    calls: list[Any] = []

    def costly(images: Any, prompts: Any, level: Any) -> Any:
        calls.append((len(images), prompts, level.tolist()))
        return [10.0 + i for i in range(len(prompts))]

    reward = Staged(Brightness(), FunctionReward(costly))
    assert reward.name == "brightness then costly"
    batch = torch.cat([flat(0.2, 0.2, 0.2), flat(0, 0, 0), flat(1, 1, 1), flat(0, 0, 0)])
    scores = reward(batch, ["a", "b", "c", "d"], torch.tensor([0.7, 0.0, 0.1, 0.0]))
    assert scores.tolist() == pytest.approx([0.2, 10, 1, 11])
    assert calls == [(2, ["b", "d"], [0.0, 0.0])]
    assert reward(batch, ["a", "b", "c", "d"]).tolist() == [10, 11, 12, 13]
    assert make_reward("brightness then compressibility").name == "brightness then compressibility"
    with pytest.raises(ValueError, match="unknown reward 'lovely'"):
        make_reward("brightness then lovely")


def test_staged_passes_checks_on_and_prices_a_finished_image_apart() -> None:
    reward = make_reward("brightness then scenes")
    with pytest.raises(ValueError, match="zebra"):
        reward.check(["a zebra"])  # type: ignore[attr-defined]
    cheap, costly = Brightness(), Brightness()
    costly.flops = 3e9  # type: ignore[attr-defined]
    priced = [(one.flops, one.base_flops) for one in (Staged(cheap, costly), Staged(costly, cheap))]
    assert priced == [(0, 3e9), (3e9, 0)]
