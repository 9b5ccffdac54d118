"""By what images are compared: colours and layout, DINO, the features of rewards, a user's
function."""

from __future__ import annotations

import pytest
import torch

from ttsnap.cli import parse
from ttsnap.reward_models.closed_form import Brightness
from ttsnap.reward_models.likeness import Dino, make_likeness
from ttsnap.reward_models.registry import make_rewards
from ttsnap.reward_models.staged import Staged


@pytest.fixture
def dino(tmp_path):
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    Dinov2Model(Dinov2Config(**sizes)).save_pretrained(tmp_path)
    return tmp_path


PICTURES = torch.rand(5, 3, 48, 40, generator=torch.Generator().manual_seed(1))


def test_pixels_are_mean_colours_from_grey():
    pixels = make_likeness("pixels", [])
    image = torch.full((1, 3, 32, 32), 0.5)
    image[:, 0, :16] = 1.0  # red above
    expected = torch.zeros(3, 8, 8)
    expected[0, :4] = 0.5
    assert torch.equal(pixels(image).view(3, 8, 8), expected)
    assert pixels.flops == 0


def test_dino_gives_its_class_token_of_images_of_any_size(dino):
    likeness = make_likeness(f"dino:{dino}", [])
    assert likeness.name == "dino"
    features = likeness(PICTURES)
    assert not features.requires_grad
    network = Dino.from_pretrained(dino)
    seen = network.network(pixel_values=network.preprocess(PICTURES))
    torch.testing.assert_close(features, seen.last_hidden_state[:, 0])
    assert likeness.flops > 1e6
    assert likeness(PICTURES.repeat(14, 1, 1, 1)).shape == (70, 32)  # in parts


def test_a_reward_s_own_features_are_those_that_it_scores_by(published):
    clip = published("clip")
    for spec, rewards in (
        *((spec, [Brightness(), clip]) for spec in ("reward", "auto", "clip")),
        ("auto", [Staged(Brightness(), clip)]),
        (f"clip:{clip.network.name_or_path}", [Brightness()]),
    ):
        likeness = make_likeness(spec, rewards)
        torch.testing.assert_close(likeness(PICTURES), clip.embed_images(PICTURES))
        assert likeness.name.endswith("clip")
        assert likeness.flops > 0
    (aware,), (learned,) = make_rewards("scenes-noise-aware"), make_rewards("scenes-learned")
    image = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(aware.embed_images(image), learned.embed_images(image))  # type: ignore[misc]
    assert make_likeness("auto", [Brightness()]).name == "pixels"  # type: ignore[union-attr]
    assert make_likeness(None, [clip]) is None


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("pixel", "'pixel'; did you mean pixels?"),
        ("reward", "none of the rewards"),
        ("brightness", "'brightness' does not"),
    ],
)
def test_what_gives_no_features_is_refused(spec, words):
    with pytest.raises(ValueError, match=words):
        make_likeness(spec, [Brightness()])


def test_a_configuration_names_no_weights(tmp_path):
    def config(text):
        (tmp_path / "c.yaml").write_text(f"diverse: true\nkeep: 3\nlikeness: {text}\n")
        return ["generate", "a red circle", "--config", str(tmp_path / "c.yaml")]

    a = parse(config("dino"))[1]
    assert (a.diverse, a.keep, a.likeness, a.diversity) == (True, 3, "dino", None)
    with pytest.raises(ValueError, match="'dino:theirs'"):
        parse(config("dino:theirs"))
    assert parse([*config("dino:theirs"), "--trust"])[1].likeness == "dino:theirs"
