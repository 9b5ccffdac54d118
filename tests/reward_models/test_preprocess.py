"""Geometry and arithmetic of the preprocessing, against PIL and torchvision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from ttsnap.reward_models import preprocess
from ttsnap.reward_models.preprocess import HALF, Preprocess

SIZES = [(1, 1), (7, 5), (64, 64), (96, 61), (61, 300), (224, 224)]
RAW = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255, 1 / 255, 1 / 255)}


def picture(height, width, channels=3):
    """Noise is the hardest case: it overshoots and hits rounding boundaries."""
    array = np.random.default_rng(height * 1000 + width).integers(
        0, 256, (height, width, channels), dtype=np.uint8
    )
    return torch.from_numpy(array).permute(2, 0, 1)[None].float() / 255, Image.fromarray(array)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("mode", "filter"), [("bicubic", Image.BICUBIC), ("bilinear", Image.BILINEAR)]
)
def test_resize_is_pils_to_the_bit(size, mode, filter):
    tensor, image = picture(*size)
    for side in (16, 64, 100):
        ours = Preprocess(side, **RAW, fit="squash", mode=mode)(tensor)[0].permute(1, 2, 0)
        # Two calls fix the order of the passes, which Pillow 13 chooses by cost.
        stock = image.resize((side, size[0]), filter).resize((side, side), filter)
        assert np.array_equal(ours.round().numpy(), np.asarray(stock))


def resized(to, *more):
    """torchvision's resize by a bicubic filter, and a crop of 32."""
    transforms = pytest.importorskip("torchvision.transforms")
    bicubic = transforms.InterpolationMode.BICUBIC
    return transforms.Compose(
        [transforms.Resize(to, interpolation=bicubic), transforms.CenterCrop(32), *more]
    )


@pytest.mark.parametrize("size", SIZES)
def test_crop_is_torchvisions(size):
    transforms = pytest.importorskip("torchvision.transforms")
    tensor, image = picture(*size)
    normal = transforms.Normalize(preprocess.CLIP_MEAN, preprocess.CLIP_STD)
    stock = resized(32, transforms.ToTensor(), normal)(image)
    torch.testing.assert_close(Preprocess(32)(tensor)[0], stock, rtol=0, atol=1e-5)
    batch = torch.cat([tensor, tensor.flip(-1)])
    assert torch.equal(Preprocess(32)(batch)[1:], Preprocess(32)(batch[1:]))


@pytest.mark.parametrize("size", [*SIZES, (32, 50), (32, 32)])
@pytest.mark.parametrize("fit", ["crop", "squash"])
def test_alpha_weighs_colours_in_resizing_as_in_pil(size, fit):
    tensor, image = picture(*size, channels=4)
    stock = resized(32 if fit == "crop" else (32, 32))(image).convert("RGB")
    ours = (Preprocess(32, fit=fit).without_alpha(tensor)[0] * 255).round().permute(1, 2, 0).numpy()
    assert np.array_equal(ours, np.asarray(stock))
    assert torch.equal(
        Preprocess(32, fit=fit, rules="transformers").without_alpha(tensor), tensor[:, :3]
    )


def test_pad_keeps_everything_on_black():
    ones = torch.ones(1, 3, 20, 40)
    out = Preprocess(32, **RAW, fit="pad")(ones)[0, 0].round()
    assert out.shape == (32, 32)
    assert (out[8:24].eq(255).all(), out[:8].any(), out[24:].any()) == (True, False, False)
    assert Preprocess(32, fit="pad")(torch.rand(2, 3, 32, 9)).shape == (2, 3, 32, 32)
    assert Preprocess(32, fit="pad")(torch.rand(1, 3, 500, 3)).shape == (1, 3, 32, 32)


def test_values_are_those_of_a_saved_file():
    noisy = torch.tensor([-0.1, 0.1001, 0.5001, 1.2]).view(1, 1, 2, 2).expand(1, 3, 2, 2)
    out = Preprocess(2, HALF, HALF)(noisy)
    assert ((out + 1) * 127.5)[0, 0].flatten().round().tolist() == [0, 26, 128, 255]
    half = Preprocess(2, HALF, HALF)(noisy.to(torch.float16))
    assert half.dtype == torch.float32
