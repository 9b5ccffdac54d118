"""Each neural reward against its original package, on tiny networks (tests/golden/make_golden.py made the values)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ttsnap.core.utility import mean
from ttsnap.results.rank import rank
from ttsnap.reward_models.aesthetics import Aesthetics
from ttsnap.reward_models.clip import CLIPScore, OpenClipScore
from ttsnap.reward_models.hpsv2 import HPSv2, HPSv21
from ttsnap.reward_models.image_reward import ImageReward
from ttsnap.reward_models.noise_aware.student import NoiseAware
from ttsnap.reward_models.pickscore import PickScore
from ttsnap.reward_models.scorer import Scorer

from ..golden import tiny  # noqa: TID252

GOLDEN = json.loads(tiny.VALUES.read_text())
NAMES = ("clip", "pickscore", "open_clip", "hpsv2", "imagereward", "aesthetics")


def architecture(folder: Path, side: int) -> str:
    """Teach open_clip the tiny architecture."""
    open_clip = pytest.importorskip("open_clip")
    (folder / f"tiny-{side}.json").write_text(json.dumps(tiny.open_clip_config(side)))
    open_clip.add_model_config(folder)
    return f"tiny-{side}"


def load(name: str, folder: Path, *, large: bool = False, **options: Any) -> Scorer:
    """The reward from files as they are published: the original packages' names and layouts."""
    shapes = GOLDEN[f"{name}-large" if large else name]["shapes"]
    weights, side = tiny.state(shapes), tiny.LARGE_SIDE if large else tiny.SIDE
    if name in ("clip", "pickscore"):
        tiny.write_clip(folder, shapes, side)
        return (CLIPScore if name == "clip" else PickScore).from_pretrained(folder, **options)
    if name == "open_clip":
        torch.save(weights, folder / "open_clip.pt")
        return OpenClipScore.from_pretrained(f"{architecture(folder, side)}:{folder / 'open_clip.pt'}", **options)
    if name == "hpsv2":
        torch.save({"epoch": 1, "state_dict": weights}, folder / "HPS_v2_compressed.pt")
        return HPSv2.from_pretrained(folder, architecture=architecture(folder, side), **options)
    if name == "imagereward":
        tiny.write_bert_tokenizer(folder)
        positions = torch.arange(40).view(1, 40)
        torch.save({**weights, "blip.text_encoder.embeddings.position_ids": positions}, folder / "ImageReward.pt")
        return ImageReward.from_pretrained(folder, **options)
    layers = {n: w for n, w in weights.items() if n.startswith("layers.")}
    tiny.write_clip(folder, {n: s for n, s in shapes.items() if n not in layers}, side)
    torch.save(layers, folder / "aesthetic-model.pth")
    return Aesthetics.from_pretrained(folder, **options)


def as_tensor(array: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(array).permute(2, 0, 1)[None].float() / 255


def pictures() -> list[Tensor]:
    return [as_tensor(array) for array in tiny.images()]


@pytest.fixture(scope="module")
def large_pictures() -> list[Tensor]:
    return [as_tensor(array) for array in tiny.images(tiny.LARGE_SIZES)]


@pytest.mark.parametrize("name", NAMES)
def test_scores_of_the_original_package(name: str, tmp_path: Path) -> None:
    reward = load(name, tmp_path)
    assert reward.name == name
    scores = torch.cat([reward(p.expand(4, -1, -1, -1), tiny.PROMPTS) for p in pictures()])
    assert scores.dtype == torch.float32
    golden = torch.tensor(GOLDEN[name]["scores"])
    assert golden.std() > 0.02  # the values tell images or prompts apart
    torch.testing.assert_close(scores, golden, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_crops_are_those_of_the_original_package(name: str, large_pictures: list[Tensor], tmp_path: Path) -> None:
    reward = load(name, tmp_path, large=True)
    scores = torch.cat([reward(picture, tiny.PROMPTS[-1:]) for picture in large_pictures])
    golden = torch.tensor(GOLDEN[f"{name}-large"]["scores"])
    torch.testing.assert_close(scores, golden, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", ["pickscore", "open_clip", "imagereward", "aesthetics"])
def test_alpha_is_dropped_where_the_original_package_drops_it(name: str, tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(len(tiny.SIZES))]
    for path, array in zip(paths, tiny.translucent(), strict=True):
        Image.fromarray(array).save(path)
    (tmp_path / "weights").mkdir()
    base = load(name, tmp_path / "weights")
    found = {r.path: r.scores for r in rank(paths, tiny.PROMPTS, [base, NoiseAware(base, rank=2)], mean)}
    golden = torch.tensor(GOLDEN[f"{name}-translucent"]["scores"])
    for reward in (0, 1):  # Of finished images, a noise-aware reward's scores are its base's.
        scores = torch.tensor([found[path][reward] for path in paths])
        torch.testing.assert_close(scores, golden, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_batches_devices_and_flops(name: str, tmp_path: Path) -> None:
    reward = load(name, tmp_path, batch_size=3)
    batch = torch.rand(5, 3, 40, 52, generator=torch.Generator().manual_seed(0))
    prompts = [tiny.PROMPTS[i] for i in (0, 1, 0, 2, 0)]
    together = reward(batch, prompts, torch.full((5,), 0.3))
    alone = torch.cat([reward(batch[i : i + 1], prompts[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
    assert not together.requires_grad
    assert len(reward(batch[:0], [])) == 0
    assert reward.flops > 1e5
    assert reward.flops == reward.flops
    with pytest.raises(ValueError, match="4 prompts for 5 images"):
        reward(batch, prompts[:4])
    with pytest.raises(ValueError, match=r"must be \(N, 3, H, W\) floats in \[0, 1\], got \(5, 40, 52\)"):
        reward(batch[:, 0], prompts)


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_stays_near(name: str, tmp_path: Path) -> None:
    reward = load(name, tmp_path, dtype=torch.bfloat16)
    assert reward.dtype == torch.bfloat16
    scores = torch.cat([reward(p.expand(4, -1, -1, -1), tiny.PROMPTS) for p in pictures()])
    golden = torch.tensor(GOLDEN[name]["scores"])
    assert scores.dtype == torch.float32
    assert (scores - golden).abs().max() < 0.05 * golden.abs().max()


def test_long_prompts_are_cut_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, most in (("clip", 77), ("imagereward", 35)):
        (tmp_path / name).mkdir()
        reward = load(name, tmp_path / name)
        reward.check(["short"])
        assert not caplog.messages
        long = "word " * 40
        reward.check([long])
        assert f"{name} reads {most} tokens" in caplog.messages[-1]
        caplog.clear()
        images = pictures()[0].expand(2, -1, -1, -1)
        assert reward(images, [long, long + "more"]).unique().numel() == 1


def test_hpsv21_is_another_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds none of HPS_v2.1_compressed.safetensors, HPS_v2.1_compressed.pt"):
        HPSv21.from_pretrained(tmp_path)


def test_unusable_checkpoints_are_explained(tmp_path: Path) -> None:
    def refused(message: str, file: str = "ImageReward.pt") -> None:
        with pytest.raises(ValueError, match=message):
            ImageReward.from_pretrained(tmp_path / file, tokenizer=tmp_path)

    load("imagereward", tmp_path)
    whole = (tmp_path / "ImageReward.pt").read_bytes()
    (tmp_path / "ImageReward.pt").write_bytes(whole[: len(whole) // 2])
    refused("cannot be read as weights, is it whole")
    torch.save({"model": Path("x")}, tmp_path / "ImageReward.pt")
    refused("could run code; convert it to safetensors")
    torch.save({"a": torch.zeros(2)}, tmp_path / "ImageReward.pt")
    refused("are for another model: no vision.embeddings.patch_embedding.weight")
    weights = tiny.state(GOLDEN["imagereward"]["shapes"])
    weights["mlp.layers.0.bias"] = torch.zeros(3)
    torch.save(weights, tmp_path / "ImageReward.pt")
    refused(r"are for another model: 1 of another shape \(such as head.0.bias\)")
    torch.save([1, 2], tmp_path / "ImageReward.pt")
    refused("does not hold tensors by name")


@pytest.mark.parametrize("width", [32, 96, 160])
def test_heads_that_the_weights_do_not_show_are_asked_for(width: int, tmp_path: Path) -> None:
    narrow, published = {tiny.BLIP_WIDTH: width, 3 * tiny.BLIP_WIDTH: 3 * width}, GOLDEN["imagereward"]["shapes"]
    shapes = {name: [narrow.get(n, n) for n in published[name]] for name in published if not name.startswith("mlp")}
    shapes |= {name: published[name] for name in published if name.startswith("mlp")}
    shapes["mlp.layers.0.weight"] = [1024, width]
    tiny.write_bert_tokenizer(tmp_path)
    torch.save(tiny.state(shapes), tmp_path / "ImageReward.pt")
    with pytest.raises(ValueError, match=rf"are {width} \(image\) and {width} \(text\) wide, not whole .* heads of 64"):
        ImageReward.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="heads of 0"):
        ImageReward.from_pretrained(tmp_path, head_width=0)
    reward = ImageReward.from_pretrained(tmp_path, head_width=16)
    assert reward(pictures()[0], ["a red circle"]).isfinite().all()
    assert reward.network["vision"].config.num_attention_heads == width // 16  # type: ignore[index]


def test_unreachable_weights_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for reward in (PickScore, HPSv2, ImageReward):
        with pytest.raises(ValueError, match=r"cannot load 'nobody/nothing': .*; give a local folder or file"):
            reward.from_pretrained("nobody/nothing")
    with pytest.raises(ValueError, match=r"named ARCHITECTURE:TAG or ARCHITECTURE:FILE, got 'ViT-B-32'"):
        OpenClipScore.from_pretrained("ViT-B-32")
