"""Tiny VAEs of videos: closed forms, the published shapes, and previews in searches."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from ttsnap.pipelines import upgrade
from ttsnap.pipelines.latents.tiny_video_vae import TinyVideoVAE
from ttsnap.pipelines.opening import _preview_vae
from ttsnap.sampling.rng import seeded

from .modular.tiny import CASES, built
from .tiny import FAMILIES, shared


@pytest.fixture(autouse=True)
def no_graphs():
    with torch.no_grad():
        yield


def plain(times=(1, 2, 2), patch=1):
    """One whose convolutions hand on what they get, channel by channel, and whose blocks add
    nothing."""
    vae = TinyVideoVAE(1, (1, 1, 1, 1), times, patch)
    for name, weight in vae.named_parameters():
        weight.zero_()
        if "conv." not in name and weight.ndim == 4:
            weight[..., 1, 1] = 1.0
        elif name.endswith(".conv.weight"):
            weight.fill_(1.0)
    return vae.eval()


def some(*sizes):
    """One with random weights, whose pictures are in the middle of what can be shown."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = TinyVideoVAE(*sizes)
        vae.decoder[22].bias.fill_(0.5)
    return vae.eval()


def soft(*values):
    return 3 * torch.tanh(torch.tensor(values) / 3)


def shown(vae, *values):
    """What the frames of latents with a value each show, (T,) in [0, 1]; they have no pattern."""
    frames = vae.decode(torch.tensor(values).view(1, 1, -1, 1, 1))[0][0] / 2 + 0.5
    assert torch.equal(frames, frames[:1, :, :1, :1].expand_as(frames))
    return frames[0, :, 0, 0]


def test_a_latent_is_held_softly_and_shown_by_as_many_frames_as_it_stands_for():
    expected = soft(0.2, *[0.9] * 4, *[0.5] * 4)  # the first stands for one frame
    torch.testing.assert_close(shown(plain(), 0.2, 0.9, 0.5), expected)
    assert shown(plain(), -0.5, 9.0).tolist() == [0.0, 1.0, 1.0, 1.0, 1.0]


def test_groups_of_channels_are_frames_in_their_order():
    """The two layers for more frames make 1, 1/2 and 1, 1/4 times a frame: 1, 1/4, 1/2 and 1/8 in
    that order."""
    vae = plain()
    vae.decoder[13].conv.weight[1] = 0.5
    vae.decoder[19].conv.weight[1] = 0.25
    # of the first latent only the last is shown
    expected = soft(0.9) * torch.tensor([1 / 8, 1, 1 / 4, 1 / 2, 1 / 8])
    torch.testing.assert_close(shown(vae, 0.9, 0.9), expected)


def test_blocks_see_the_frame_before():
    """A block that adds the frame before it, nothing before the first, over latent frames, too, of
    1 and 1/2 each."""
    vae = plain(times=(1, 2, 1))
    vae.decoder[13].conv.weight[1] = 0.5
    block = vae.decoder[15].conv
    block[0].weight[0, 1, 1, 1] = 1.0  # its second half is the frame before
    block[2].weight[0, 0, 1, 1] = block[4].weight[0, 0, 1, 1] = 1.0
    x = soft(0.1, 0.2, 0.3)
    expected = [1.5 * x[0], x[1] + x[0] / 2, 1.5 * x[1], x[2] + x[1] / 2, 1.5 * x[2]]
    torch.testing.assert_close(shown(vae, 0.1, 0.2, 0.3), torch.stack(expected))


def test_pixels_of_a_patch_are_channels_first():
    vae = plain(patch=2)
    vae.decoder[22].weight.zero_()
    vae.decoder[22].bias.copy_(torch.arange(12) / 12)
    (video,) = vae.decode(torch.zeros(1, 1, 1, 1, 1))
    assert video.shape == (1, 3, 1, 16, 16)
    square = torch.arange(12).view(3, 2, 2) / 12
    torch.testing.assert_close(video[0, :, 0] / 2 + 0.5, square.repeat(1, 8, 8))


@pytest.mark.parametrize(("z_dim", "times", "patch"), [(16, (1, 2, 2), 1), (128, (2, 2, 2), 4)])
def test_names_and_shapes_are_those_of_the_published_files(z_dim, times, patch):
    """Of taew2_1 (Wan 2.1) and taeltx_2 (LTX-2): 64 tensors of a decoder, with these shapes in
    their headers."""
    with torch.device("meta"):
        state = TinyVideoVAE(z_dim, times=times, patch_size=patch).state_dict()
    grown, last = 256 * times[0], 3 * patch**2
    shapes = {
        "1.weight": (256, z_dim, 3, 3),
        "1.bias": (256,),
        "22.weight": (last, 64, 3, 3),
        "22.bias": (last,),
        "7.conv.weight": (grown, 256, 1, 1),
        "13.conv.weight": (256, 128, 1, 1),
        "19.conv.weight": (128, 64, 1, 1),
        "8.weight": (128, 256, 3, 3),
        "14.weight": (64, 128, 3, 3),
        "20.weight": (64, 64, 3, 3),
    }
    for i, width in {
        3: 256,
        4: 256,
        5: 256,
        9: 128,
        10: 128,
        11: 128,
        15: 64,
        16: 64,
        17: 64,
    }.items():
        for layer, inputs in ((0, 2 * width), (2, width), (4, width)):
            shapes |= {
                f"{i}.conv.{layer}.weight": (width, inputs, 3, 3),
                f"{i}.conv.{layer}.bias": (width,),
            }
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == {
        f"decoder.{name}": shape for name, shape in shapes.items()
    }


def test_files_are_read_by_their_shapes_or_refused(tmp_path):
    vae = some(3, (6, 4, 2, 2), (2, 1, 2), 2)
    tensors = {**vae.state_dict(), "encoder.0.weight": torch.zeros(1)}
    save_file(
        {name: tensor.half() for name, tensor in tensors.items()},
        path := tmp_path / "tae.safetensors",
    )
    read = _preview_vae(str(path))
    sizes = [read.config[name] for name in ("z_dim", "widths", "times", "patch_size")]
    assert sizes == [3, (6, 4, 2, 2), (2, 1, 2), 2]
    z = torch.randn(1, 3, 2, 2, 2, generator=seeded(0))
    torch.testing.assert_close(read.decode(z), vae.decode(z), atol=1e-3, rtol=1e-2)
    with pytest.raises(ValueError, match=r"\(N, 3, T, h, w\).*\(1, 4, 2, 2\)"):
        read.decode(torch.zeros(1, 4, 2, 2))
    for name, tensor, message in (
        ("decoder.8.weight", None, "of a TAEHV"),
        ("decoder.7.conv.weight", torch.zeros(0, 6, 1, 1), "of a TAEHV"),
        ("decoder.3.conv.2.bias", None, "decoder.3.conv.2.bias"),
        (
            "decoder.9.conv.0.weight",
            torch.zeros(4, 4, 3, 3),
            "size mismatch for decoder.9.conv.0.weight",
        ),
    ):
        state = {key: value for key, value in vae.state_dict().items() if key != name}
        save_file(state if tensor is None else {**state, name: tensor}, path)
        with pytest.raises(ValueError, match=rf"{path}.*{message}"):
            TinyVideoVAE.from_file(path)
    path.write_bytes(b"not tensors")
    with pytest.raises(ValueError, match=str(path)):
        TinyVideoVAE.from_file(path)


PREVIEWED = {
    *(
        "QwenImagePipeline",
        "QwenImageModularPipeline",
        "WanModularPipeline",
        "WanImage2VideoModularPipeline",
        "LTX2ModularPipeline",
    ),
    *("Wan22ModularPipeline", "Wan22Image2VideoModularPipeline"),
}


@pytest.mark.parametrize("name", sorted(PREVIEWED))
def test_estimates_are_decoded_where_the_table_says_so(name):
    """As many frames as the pipeline's own VAE makes, at eight times the sides of the latents."""
    if name == "QwenImagePipeline":
        stock, call = shared("qwen_image"), FAMILIES["qwen_image"].call
    else:
        case = next(case for case in CASES.values() if case.pipeline == name)
        stock, call = built(case.pipeline, case.parts), case.call
    pipe, vae = upgrade(stock), stock.vae
    pipe.preview_vae = some(
        vae.config.get("z_dim") or vae.config.latent_channels, (4, 4, 4, 4), (1, 1, 2)
    )
    # The VAEs of these pipelines make fewer pixels of a latent than those that published files
    # stand for.
    if name == "LTX2ModularPipeline":
        pipe.preview_vae.spatial_compression_ratio = vae.spatial_compression_ratio
    else:
        pipe.preview_vae.temperal_downsample = vae.temperal_downsample
    denoiser = pipe.denoiser(**call)
    denoiser.encode(["a cat"])
    noise = denoiser.init_latents([seeded(0)])
    preview, own = denoiser.preview(noise), denoiser.decode(noise)
    assert preview.shape[:-2] == own.shape[:-2]
    larger = 2 if "Qwen" in name else 4
    assert preview.shape[-2:] == (larger * own.shape[-2], larger * own.shape[-1])
    assert preview.std() > 0
