"""Vision-language models with a head against their original packages, on tiny networks (tests/golden)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import interpolate
from transformers import AutoConfig, AutoProcessor

from ttsnap.reward_models.preprocess import Sight
from ttsnap.reward_models.registry import make_reward
from ttsnap.reward_models.vlm.edit_reward import EditReward
from ttsnap.reward_models.vlm.headed import HeadedVLM
from ttsnap.reward_models.vlm.hpsv3 import HPSv3
from ttsnap.reward_models.vlm.video_align import VideoAlign
from ttsnap.reward_models.weights import adapter_scale, merge_adapters

from ..golden import tiny, tiny_vlm  # noqa: TID252

GOLDEN = json.loads(tiny_vlm.VALUES.read_text())
PROMPTS = list(tiny_vlm.PROMPTS)
N = len(PROMPTS)


class Published(NamedTuple):
    """A reward, how its weights are published, and which of the golden values is its score."""

    reward: type[HeadedVLM]
    kind: str
    file: str
    value: int


REWARDS = {
    "hpsv3": Published(HPSv3, "qwen2_vl", "HPSv3.safetensors", 0),
    "edit_reward": Published(EditReward, "qwen2_5_vl", "model.safetensors", 0),
    "video_align": Published(VideoAlign, "qwen2_vl", "model.safetensors", 3),
}


def state(name: str) -> dict[str, Tensor]:
    return tiny.state(GOLDEN[name]["shapes"])


def write(folder: Path, name: str) -> Path:
    """The published files of a tiny reward."""
    tiny_vlm.write_backbone(folder, REWARDS[name].kind)
    save_file(state(name), folder / REWARDS[name].file)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = write(tmp_path_factory.mktemp(name), name)
        return made[name]

    return folder


@pytest.fixture(scope="module")
def load(folders: Callable[[str], Path]) -> Callable[[str], HeadedVLM]:
    made: dict[str, HeadedVLM] = {}

    def reward(name: str) -> HeadedVLM:
        if name not in made:
            made[name] = REWARDS[name].reward.from_pretrained(folders(name), dtype=torch.float32, batch_size=N)
        return made[name]

    return reward


def as_tensor(array: Any) -> Tensor:
    """(..., H, W, 3) uint8 -> (1, ..., 3, H, W) in [0, 1]."""
    return torch.from_numpy(array).movedim(-1, -3)[None].float() / 255


def shown(name: str) -> list[tuple[Tensor, dict[str, Tensor]]]:
    """What the golden values are of: images or a video, and what else the reward is called with."""
    if name == "video_align":
        return [(as_tensor(array), {}) for array in tiny_vlm.videos()]
    (source,) = tiny.images([tiny_vlm.SOURCE])
    given = {"source": as_tensor(source)} if name == "edit_reward" else {}
    return [(as_tensor(array), given) for array in tiny.images(tiny_vlm.SIZES)]


def repeated(x: Tensor, n: int = N) -> Tensor:
    return x.expand(n, *x.shape[1:])


@pytest.mark.parametrize("name", REWARDS)
def test_scores_of_the_original_package(name: str, load: Callable[[str], HeadedVLM]) -> None:
    reward = load(name)
    golden = torch.tensor(GOLDEN[name]["scores"])[:, REWARDS[name].value].view(-1, N)
    assert golden.std() > 0.02  # the values tell images and prompts apart
    assert (golden.std(1) > 1e-3).all()
    for (images, given), expected in zip(shown(name)[1:], golden[1:], strict=True):
        more = {key: repeated(value) for key, value in given.items()}
        scores = reward(repeated(images), PROMPTS, None, **more)
        assert scores.dtype == torch.float32
        torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5)
    images, given = shown(name)[0]
    torch.testing.assert_close(reward(images, PROMPTS[:1], **given), golden[0, :1], rtol=1e-5, atol=1e-5)


def test_each_criterion_of_a_video(load: Callable[[str], HeadedVLM]) -> None:
    reward = load("video_align")
    assert isinstance(reward, VideoAlign)
    video, _ = shown("video_align")[0]
    with torch.no_grad():
        found = reward.criteria(reward._ask(0, reward.show(video, None), PROMPTS[:1]))
    torch.testing.assert_close(found[0], torch.tensor(GOLDEN["video_align"]["scores"][0][:3]), rtol=1e-5, atol=1e-5)
    # A head with an output for each criterion, as in VideoAlign's train.sh: each is read at its own mark.
    values = torch.arange(9.0).view(1, 3, 3)
    expected = (torch.tensor([0.0, 4.0, 8.0]) - torch.tensor(reward.mean)) / torch.tensor(reward.std)
    torch.testing.assert_close(reward.criteria(values), expected[None])


def test_rows_do_not_change_each_other(load: Callable[[str], HeadedVLM]) -> None:
    reward = load("hpsv3")
    images = torch.rand(2, 3, 40, 52, generator=torch.Generator().manual_seed(0))
    prompts = [PROMPTS[0], PROMPTS[1]]  # of different lengths, so that one is padded
    together = reward(images, prompts, torch.full((2,), 0.3))
    alone = torch.cat([reward(images[i : i + 1], prompts[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    assert torch.equal(reward(images, prompts, source=images), together)  # only rewards of edits see a source
    assert len(reward(images[:0], [])) == 0
    assert not together.requires_grad
    with pytest.raises(ValueError, match="1 prompts for 2 images"):
        reward(images, prompts[:1])
    with pytest.raises(ValueError, match=r"images must be \(N, 3, H, W\)"):
        reward(images[0], prompts)


def test_sources_and_videos_are_asked_for(load: Callable[[str], HeadedVLM]) -> None:
    edit, video = load("edit_reward"), load("video_align")
    images = torch.rand(2, 3, 40, 52)
    assert (edit.needs, video.needs) == ({"source"}, {"video"})
    with pytest.raises(ValueError, match="compares each image with the one that was edited, its source; got none"):
        edit(images, PROMPTS[:2])
    with pytest.raises(ValueError, match="got 1 for 2 images"):
        edit(images, PROMPTS[:2], source=images[:1])
    with pytest.raises(ValueError, match=r"scores videos \(N, T, 3, H, W\), got \(2, 3, 40, 52\)"):
        video(images, PROMPTS[:2])


def test_gradients_of_the_image(load: Callable[[str], HeadedVLM]) -> None:
    reward = load("hpsv3")
    images = torch.rand(1, 3, 448, 448, generator=torch.Generator().manual_seed(0)).requires_grad_()
    score = reward.differentiable(images, PROMPTS[:1])
    torch.testing.assert_close(score.detach(), reward(images, PROMPTS[:1]), atol=1e-2, rtol=1e-2)
    (gradient,) = torch.autograd.grad(score.sum(), images)
    step = 1e-2 * gradient / gradient.norm()
    with torch.no_grad():
        up, down = (reward.differentiable(images + sign * step, PROMPTS[:1]) for sign in (1, -1))
    torch.testing.assert_close((up - down).item() / 2e-2, gradient.norm().item(), rtol=0.05, atol=0)


def test_prompts_with_tokens_are_refused(load: Callable[[str], HeadedVLM]) -> None:
    reward = load("hpsv3")
    reward.check(PROMPTS)
    for token in ("<|Reward|>", "<|image_pad|>", "<|im_end|>"):
        with pytest.raises(ValueError, match=r"hpsv3 cannot read a prompt that holds"):
            reward.check([f"a cat {token}"])
    with pytest.raises(ValueError, match="leave it out"):
        reward(torch.rand(1, 3, 32, 32), ["<|Reward|>"])


def test_flops_are_those_of_its_layers(load: Callable[[str], HeadedVLM]) -> None:
    reward = load("hpsv3")
    text = reward._text(0, "image", [torch.tensor([1, 32, 32])], reward.example)
    tokens = len(reward._tokenizer(text)["input_ids"])
    # Two per multiply-add: query, key, value, output and the gated unit of a layer, and attention in its matmul form.
    width, inner, heads = tiny_vlm.HIDDEN, 96, 2
    layer = tokens * (2 * width * width + 2 * width * width // heads + 3 * width * inner) + 2 * tokens**2 * width
    assert reward.flops > 2 * 2 * layer
    assert reward.flops < 2 * 2 * layer * 3  # the vision tower and the head take less than twice as much


def test_frames_of_long_videos_are_chosen_evenly(load: Callable[[str], HeadedVLM]) -> None:
    reward = load("video_align")
    assert isinstance(reward, VideoAlign)
    video = torch.arange(12.0).view(1, 12, 1, 1, 1).expand(1, 12, 3, 28, 28) / 255
    reward.frames = 4
    (levels,) = reward.show(video, None)
    assert levels[0, :, 0, 0, 0].tolist() == [0, 4, 7, 11]
    reward.frames = 10
    (levels,) = reward.show(video[:, :3], None)
    assert levels.shape[1] == 3  # an odd last frame is seen twice


@pytest.mark.parametrize("kind", ["image", "video"])
def test_patches_are_those_of_the_processor(kind: str, folders: Callable[[str], Path]) -> None:
    processor = AutoProcessor.from_pretrained(folders("hpsv3"))
    sight = Sight.of(AutoConfig.from_pretrained(folders("hpsv3")), (1, 10**6))
    frames = torch.randint(0, 256, (1 if kind == "image" else 3, 3, 56, 84), generator=torch.Generator().manual_seed(0))
    patches, grid = sight.patches(frames.float())
    if kind == "image":
        made = processor.image_processor(frames[0].byte(), do_resize=False, return_tensors="pt")
        expected, found = made["pixel_values"], made["image_grid_thw"][0]
    else:
        made = processor.video_processor(frames.byte(), do_resize=False, return_tensors="pt")
        expected, found = made["pixel_values_videos"], made["video_grid_thw"][0]
    assert grid.tolist() == found.tolist()
    torch.testing.assert_close(patches, expected, rtol=1e-5, atol=1e-5)
    assert sight.tokens(grid) == len(expected) // 4


def newer(name: str) -> str:
    """The name that transformers from 4.52 on gives to a tensor of an older Qwen2-VL."""
    if name.startswith("visual."):
        return f"model.{name}"
    return f"model.language_model.{name.removeprefix('model.')}" if name.startswith("model.") else name


def test_newer_names_and_several_files(tmp_path: Path, load: Callable[[str], HeadedVLM]) -> None:
    tiny_vlm.write_backbone(tmp_path)
    tensors = {newer(name): value for name, value in state("hpsv3").items() if not name.startswith("lm_head")}
    names = sorted(tensors)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, some in parts.items():
        save_file({name: tensors[name] for name in some}, tmp_path / file)
    index = {"weight_map": {name: file for file, some in parts.items() for name in some}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    image, _ = shown("hpsv3")[0]
    reward = make_reward(f"hpsv3:{tmp_path}", dtype=torch.float32)
    assert reward.name == "hpsv3"
    torch.testing.assert_close(reward(image, PROMPTS[:1]), load("hpsv3")(image, PROMPTS[:1]))
    index["weight_map"][names[0]] = "../elsewhere.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="must list the files of its tensors, beside it"):
        HPSv3.from_pretrained(tmp_path)


def test_half_precision_stays_near(folders: Callable[[str], Path]) -> None:
    file = folders("hpsv3") / "HPSv3.safetensors"
    reward = HPSv3.from_pretrained(file)  # bfloat16, as it was trained; the heads stay in float32
    assert reward.network.backbone.get_input_embeddings().weight.dtype == torch.bfloat16  # type: ignore[operator]
    assert {p.dtype for p in reward.network.heads.parameters()} == {torch.float32}
    image, _ = shown("hpsv3")[0]
    golden = GOLDEN["hpsv3"]["scores"][0][0]
    assert reward(image, PROMPTS[:1]).item() == pytest.approx(golden, abs=0.05)


def test_adapters_are_added_to_their_weights() -> None:
    draw = torch.Generator().manual_seed(0)
    w, a, b = (torch.randn(*shape, generator=draw) for shape in ((5, 7), (2, 7), (5, 2)))
    start = "base_model.model.model.layers.0.q_proj"
    peft = {f"{start}.base_layer.weight": w, f"{start}.lora_A.default.weight": a, f"{start}.lora_B.default.weight": b}
    merged = merge_adapters({**peft, "base_model.model.rm_head.weight": w}, 3.0)
    assert set(merged) == {"model.layers.0.q_proj.weight", "rm_head.weight"}
    x = torch.randn(4, 7, generator=draw)
    expected = x @ w.T + 3 * (x @ a.T) @ b.T
    torch.testing.assert_close(x @ merged["model.layers.0.q_proj.weight"].T, expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"needs a lora_B, and model.layers.0.q_proj.weight of its shape"):
        merge_adapters({f"{start}.lora_A.default.weight": a}, 1.0)


def test_settings_of_a_trained_model_count(tmp_path: Path, load: Callable[[str], HeadedVLM]) -> None:
    write(tmp_path, "video_align")
    normal = {f"{c}_{what}": value for c in ("VQ", "MQ", "TA") for what, value in (("mean", 0.0), ("std", 1.0))}
    lora = {"lora_r": 4, "lora_alpha": 8, "use_rslora": False}
    (tmp_path / "model_config.json").write_text(json.dumps({"inference_config": normal, "peft_lora_config": lora}))
    video, _ = shown("video_align")[0]
    plain, usual = VideoAlign.from_pretrained(tmp_path, dtype=torch.float32), load("video_align")
    assert isinstance(usual, VideoAlign)
    with torch.no_grad():
        raw = plain.criteria(plain._ask(0, plain.show(video, None), PROMPTS[:1]))
    expected = ((raw - torch.tensor(usual.mean)) / torch.tensor(usual.std)).sum(-1)
    torch.testing.assert_close(usual(video, PROMPTS[:1]), expected, rtol=1e-5, atol=1e-5)
    assert adapter_scale(lora, "lora_r") == 2
    (tmp_path / "model_config.json").write_text(json.dumps({"peft_lora_config": {**lora, "use_rslora": True}}))
    merged = VideoAlign.from_pretrained(tmp_path, dtype=torch.float32)
    tensors, start = state("video_align"), "base_model.model.model.layers.0.self_attn.q_proj"
    names = ("base_layer", "lora_A.default", "lora_B.default")
    weight, down, up = (tensors[f"{start}.{name}.weight"] for name in names)
    found = merged.network.backbone.get_parameter("language_model.layers.0.self_attn.q_proj.weight")
    torch.testing.assert_close(found, weight + 4 * up @ down)
    assert merged.mean == usual.mean


def test_unusable_weights_are_explained(tmp_path: Path, folders: Callable[[str], Path]) -> None:
    tiny_vlm.write_backbone(tmp_path)

    def refused(message: str, tensors: dict[str, Tensor]) -> None:
        save_file(tensors, tmp_path / "HPSv3.safetensors")
        with pytest.raises(ValueError, match=message):
            HPSv3.from_pretrained(tmp_path)

    torch.save(state("hpsv3"), tmp_path / "model.pth")
    with pytest.raises(ValueError, match=r"holds none of HPSv3.safetensors, model.safetensors"):
        HPSv3.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"is no safetensors file; docs/rewards.md shows how to convert"):
        HPSv3.from_pretrained(tmp_path / "model.pth")
    whole = state("hpsv3")
    refused(
        "no layer '0' that reads 64 features, got None", {n: v for n, v in whole.items() if n != "rm_head.0.weight"}
    )
    refused("0 heads for 1 questions", {n: v for n, v in whole.items() if not n.startswith("rm_head")})
    refused("no language_model.embed_tokens.weight", {n: v for n, v in whole.items() if "embed_tokens" not in n})
    refused(r"1 missing \(such as visual", {n: v for n, v in whole.items() if n != "visual.blocks.0.norm1.bias"})
    refused("know 1400 tokens", {n: v[:1400] if "embed_tokens" in n else v for n, v in whole.items()})
    refused("1 unknown", {**whole, "model.extra.weight": torch.zeros(3)})
    config = json.loads((tmp_path / "config.json").read_text())
    config["model_type"] = "qwen2"
    (tmp_path / "config.json").write_text(json.dumps(config))
    refused(r"is of a 'qwen2'; this reward reads qwen2_vl and qwen2_5_vl", whole)


def test_resized_frames_are_torchvisions(folders: Callable[[str], Path]) -> None:
    sight = Sight.of(AutoConfig.from_pretrained(folders("hpsv3")), VideoAlign.pixels)
    video = torch.rand(1, 2, 3, 90, 120, generator=torch.Generator().manual_seed(0))
    levels = sight.video(video)
    assert levels.shape == (1, 2, 3, 280, 392)  # at least 128 x 28 x 28 pixels, in multiples of 28
    raw = (video[0] * 255).round()
    expected = interpolate(raw, size=(280, 392), mode="bicubic", antialias=True).clamp(0, 255).round()
    assert torch.equal(levels[0], expected)
