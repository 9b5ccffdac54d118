"""By what images are compared: colours and layout, DINO, the features of rewards, a user's function."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ttsnap.cli import parse
from ttsnap.core.diversity import distances
from ttsnap.reward_models.closed_form import Brightness
from ttsnap.reward_models.likeness import Dino, make_likeness
from ttsnap.reward_models.registry import make_reward, make_rewards
from ttsnap.reward_models.staged import Staged

from ..golden import tiny  # noqa: TID252


@pytest.fixture
def clip(tmp_path: Path) -> Any:
    from transformers import CLIPConfig, CLIPModel

    tiny.write_clip(tmp_path)
    torch.manual_seed(0)
    CLIPModel(CLIPConfig.from_pretrained(tmp_path)).save_pretrained(tmp_path)
    return make_reward(f"clip:{tmp_path}")


@pytest.fixture
def dino(tmp_path: Path) -> Path:
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    Dinov2Model(Dinov2Config(**sizes)).save_pretrained(tmp_path)
    return tmp_path


def pictures(n: int = 5) -> torch.Tensor:
    return torch.rand(n, 3, 48, 40, generator=torch.Generator().manual_seed(1))


def test_pixels_are_mean_colours_from_grey() -> None:
    pixels: Any = make_likeness("pixels", [])
    image = torch.full((1, 3, 32, 32), 0.5)
    image[:, 0, :16] = 1.0  # red above
    features = pixels(image).view(3, 8, 8)
    assert torch.equal(features[0, :4], torch.full((4, 8), 0.5))
    assert not features[1:].any()
    assert not features[0, 4:].any()
    assert pixels.flops == 0


def test_pixels_tell_a_layout_from_its_mirror_and_not_from_noise() -> None:
    pixels: Any = make_likeness("pixels", [])
    left = torch.full((1, 3, 32, 32), 0.4)
    left[:, 1, 8:24, 2:12] = 1.0
    noisy = left + 0.02 * torch.randn(left.shape, generator=torch.Generator().manual_seed(0))
    apart = distances(pixels(torch.cat([left, noisy, left.flip(-1)])).double().numpy())
    assert apart[0, 1] < 0.2 * apart[0, 2]


def test_dino_gives_its_class_token_of_images_of_any_size(dino: Path) -> None:
    likeness: Any = make_likeness(f"dino:{dino}", [])
    assert likeness.name == "dino"
    features = likeness(pictures())
    assert features.shape == (5, 32)
    assert not features.requires_grad
    network = Dino.from_pretrained(dino)
    seen = network.network(pixel_values=network.preprocess(pictures()))
    torch.testing.assert_close(features, seen.last_hidden_state[:, 0])
    assert likeness.flops > 1e6
    assert likeness(pictures(70)).shape == (70, 32)  # in parts


def test_a_reward_s_own_features_are_those_that_it_scores_by(clip: Any) -> None:
    for spec in ("reward", "auto", "clip"):
        likeness: Any = make_likeness(spec, [Brightness(), clip])
        assert likeness.name == "clip"
        torch.testing.assert_close(likeness(pictures()), clip.embed_images(pictures()))
        assert likeness.flops > 0
    other: Any = make_likeness(f"clip:{clip.network.name_or_path}", [Brightness()])
    torch.testing.assert_close(other(pictures()), clip.embed_images(pictures()))


def test_features_go_with_a_reward_through_what_wraps_it(clip: Any) -> None:
    staged: Any = make_likeness("auto", [Staged(Brightness(), clip)])
    torch.testing.assert_close(staged(pictures()), clip.embed_images(pictures()))
    (aware,) = make_rewards("scenes-noise-aware")
    (learned,) = make_rewards("scenes-learned")
    image = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(aware.embed_images(image), learned.embed_images(image))


def test_rewards_without_features_leave_pixels(clip: Any) -> None:
    assert make_likeness("auto", [Brightness()]).name == "pixels"  # type: ignore[union-attr]
    assert make_likeness(None, [clip]) is None


def test_a_user_s_reward_may_have_features() -> None:
    class Mine:
        name = "mine"

        def __call__(self, images: Any, prompts: Any, level: Any) -> Any:
            return images.mean((1, 2, 3))

        def embed_images(self, images: Any) -> Any:
            return images.mean((2, 3))

    likeness: Any = make_likeness("reward", make_rewards(Mine()))
    torch.testing.assert_close(likeness(pictures()), pictures().mean((2, 3)))


@pytest.mark.parametrize(("spec", "words"), [
    ("pixel", "unknown likeness 'pixel'; did you mean pixels?"),
    ("reward", "none of the rewards has features"),
    ("brightness", "reward 'brightness' does not have features"),
])  # fmt: skip
def test_what_gives_no_features_is_refused(spec: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make_likeness(spec, [Brightness()])


def test_a_wrong_name_is_refused_before_a_model_is_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from ttsnap.cli import main

    assert main(["generate", "a red circle", "--keep", "2", "--diverse", "--likeness", "pixl"]) == 2
    told = capsys.readouterr().err
    assert "unknown likeness 'pixl'; did you mean pixels?" in told
    assert "loading" not in told


def test_a_configuration_names_no_weights(tmp_path: Path) -> None:
    def config(text: str) -> list[str]:
        (tmp_path / "c.yaml").write_text(f"diverse: true\nkeep: 3\nlikeness: {text}\n")
        return ["generate", "a red circle", "--config", str(tmp_path / "c.yaml")]

    a = parse(config("dino"))[1]
    assert (a.diverse, a.keep, a.likeness, a.diversity) == (True, 3, "dino", None)
    with pytest.raises(ValueError, match="names likeness 'dino:theirs'"):
        parse(config("dino:theirs"))
    assert parse([*config("dino:theirs"), "--trust"])[1].likeness == "dino:theirs"
