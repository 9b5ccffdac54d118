"""Files of weights: names of other versions, several files, adapters, and what is refused and
why."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests import bombs
from ttsnap.reward_models.clip import OpenClipScore
from ttsnap.reward_models.hpsv2 import HPSv2, HPSv21
from ttsnap.reward_models.image_reward import ImageReward
from ttsnap.reward_models.pickscore import PickScore
from ttsnap.reward_models.registry import make_reward
from ttsnap.reward_models.vlm.edit_score import EditScore
from ttsnap.reward_models.vlm.hpsv3 import HPSv3
from ttsnap.reward_models.vlm.unified_reward import UnifiedReward
from ttsnap.reward_models.vlm.video_align import VideoAlign
from ttsnap.reward_models.weights import merge_adapters, read_state

from ..golden import tiny, tiny_vlm  # noqa: TID252
from .published import GOLDEN, known, load, write_vlm

SHAPES = GOLDEN["imagereward"]["shapes"]
WHOLE = tiny.state(GOLDEN["hpsv3"]["shapes"])


@pytest.mark.parametrize(
    ("given", "wrong"),
    [
        (None, "cannot be read as weights, is it whole"),
        ({"model": Path("x")}, "could run code"),
        ({"a": torch.zeros(2)}, "another model: no vision.embeddings.patch_embedding.weight"),
        (
            {**tiny.state(SHAPES), "mlp.layers.0.bias": torch.zeros(3)},
            r"1 of another shape \(such as head.0.bias\)",
        ),
        ([1, 2], "tensors by name"),
    ],
)
def test_unusable_checkpoints_are_explained(given, wrong, tmp_path):
    load("imagereward", tmp_path)
    file = tmp_path / "ImageReward.pt"
    if given is None:
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2])
    else:
        torch.save(given, file)
    with pytest.raises(ValueError, match=wrong):
        ImageReward.from_pretrained(file, tokenizer=tmp_path)


ODD = {
    "meta": lambda one: one.to("meta"),
    "sparse": lambda one: one.to_sparse(),
    "nested": lambda one: torch.nested.nested_tensor([one]),
    "quantised": lambda one: torch.quantize_per_tensor(one, 1, 0, torch.qint8),
    "bits": lambda one: one.byte().view(torch.bits8),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [*ODD, "number"])
def test_tensors_without_plain_numbers_or_names_are_refused(kind, tmp_path):
    one = torch.ones(2)
    torch.save({"a": ODD[kind](one)} if kind in ODD else {3: one}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="tensors by name"):
        read_state(tmp_path / "x.pt")


def test_files_that_never_end_or_unpack_to_more_than_they_are_are_refused(tmp_path):
    whole, packed = tmp_path / "whole.pt", tmp_path / "packed.pt"
    torch.save({"a": torch.zeros(2**16)}, whole)
    packed.write_bytes(bombs.repacked(whole.read_bytes()))
    unpacked = torch.load(packed, weights_only=True)
    assert torch.equal(unpacked["a"], read_state(whole)["a"])
    with pytest.raises(ValueError, match="unpack"):
        read_state(packed)
    packed.write_bytes(packed.read_bytes() + whole.read_bytes())  # two tables of entries
    with pytest.raises(ValueError, match="unpack"):
        read_state(packed)
    for name in ("pipe.pt", "pipe.safetensors"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(ValueError, match="no such"):
            read_state(tmp_path / name)


@pytest.mark.parametrize("width", [32, 96])
def test_heads_that_the_weights_do_not_show_are_asked_for(width, tmp_path):
    narrow = {tiny.BLIP_WIDTH: width, 3 * tiny.BLIP_WIDTH: 3 * width}
    shapes = {
        n: s if n.startswith("mlp") else [narrow.get(side, side) for side in s]
        for n, s in SHAPES.items()
    }
    shapes["mlp.layers.0.weight"] = [1024, width]
    tiny.write_bert_tokenizer(tmp_path)
    torch.save(tiny.state(shapes), tmp_path / "ImageReward.pt")
    for options, wrong in (
        ({}, rf"are {width} \(image\) and {width} \(text\) .* of 64"),
        ({"head_width": 0}, "of 0"),
    ):
        with pytest.raises(ValueError, match=wrong):
            ImageReward.from_pretrained(tmp_path, **options)
    reward = ImageReward.from_pretrained(tmp_path, head_width=16)
    assert reward(known("imagereward")[0].pixels, ["a red circle"]).isfinite().all()
    assert reward.network["vision"].config.num_attention_heads == width // 16  # type: ignore[index]


@pytest.mark.parametrize(
    ("reward", "source", "wrong"),
    [
        *(
            (reward, "nobody/nothing", r"'nobody/nothing': .* local folder")
            for reward in (PickScore, HPSv2)
        ),
        (OpenClipScore, "ViT-B-32", "ARCHITECTURE:TAG .* got 'ViT-B-32'"),
        (HPSv21, "{}", r"none of HPS_v2.1_compressed.safetensors, HPS_v2.1_compressed.pt"),
    ],
)
def test_no_weights_are_there(reward, source, wrong, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=wrong):
        reward.from_pretrained(source.format(tmp_path))


# --- vision-language models -----------------------------------------------------------------------


def newer(name):
    """The name that transformers from 4.52 on gives to a tensor of an older Qwen2-VL."""
    if name.startswith("visual."):
        return f"model.{name}"
    return (
        f"model.language_model.{name.removeprefix('model.')}" if name.startswith("model.") else name
    )


def test_newer_names_and_several_files(tmp_path, published):
    tiny_vlm.write_backbone(tmp_path)
    tensors = {
        newer(name): value for name, value in WHOLE.items() if not name.startswith("lm_head")
    }
    names, files = sorted(tensors), ("model-1.safetensors", "model-2.safetensors")
    for at, file in enumerate(files):
        save_file({name: tensors[name] for name in names[at::2]}, tmp_path / file)
    index = {name: files[at % 2] for at, name in enumerate(names)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    reward, (pixels, _, _) = (
        make_reward(f"hpsv3:{tmp_path}", dtype=torch.float32),
        known("hpsv3")[0],
    )
    torch.testing.assert_close(reward(pixels, ["a"], None), published("hpsv3")(pixels, ["a"]))
    index[names[0]] = "../elsewhere.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    with pytest.raises(ValueError, match="beside it"):
        HPSv3.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        (
            lambda n, v: None if n == "rm_head.0.weight" else v,
            "no layer '0' that reads 64 features, got None",
        ),
        (lambda n, v: None if n.startswith("rm_head") else v, "0 heads for 1 questions"),
        (lambda n, v: None if "embed_tokens" in n else v, "no language_model.embed_tokens.weight"),
        (
            lambda n, v: None if n == "visual.blocks.0.norm1.bias" else v,
            r"1 missing \(such as visual",
        ),
        (lambda n, v: v[:1400] if "embed_tokens" in n else v, "know 1400 tokens"),
        (lambda n, v: v, "1 unknown"),
    ],
)
def test_weights_of_another_model_are_explained(change, wrong, tmp_path):
    tiny_vlm.write_backbone(tmp_path)
    tensors = {name: change(name, value) for name, value in WHOLE.items()}
    if wrong == "1 unknown":
        tensors["model.extra.weight"] = torch.zeros(3)
    save_file(
        {name: value for name, value in tensors.items() if value is not None},
        tmp_path / "HPSv3.safetensors",
    )
    with pytest.raises(ValueError, match=wrong):
        HPSv3.from_pretrained(tmp_path)


def test_pickles_and_other_architectures_are_not_read(tmp_path):
    tiny_vlm.write_backbone(tmp_path)
    for file in ("model.pth", "pytorch_model.bin"):
        torch.save(WHOLE, tmp_path / file)
    with pytest.raises(ValueError, match="none of HPSv3"):
        HPSv3.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no safetensors file"):
        HPSv3.from_pretrained(tmp_path / "model.pth")
    with pytest.raises(ValueError, match="cannot load"):
        UnifiedReward.from_pretrained(tmp_path)
    save_file(WHOLE, tmp_path / "HPSv3.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(tiny_vlm.config() | {"model_type": "qwen2"}))
    with pytest.raises(ValueError, match=r"'qwen2'; .* qwen2_vl and qwen2_5_vl"):
        HPSv3.from_pretrained(tmp_path)


# --- adapters -------------------------------------------------------------------------------------


def test_adapters_are_added_to_their_weights():
    draw = torch.Generator().manual_seed(0)
    w, a, b = (torch.randn(*shape, generator=draw) for shape in ((5, 7), (2, 7), (5, 2)))
    start = "base_model.model.model.layers.0.q_proj"
    peft = {
        f"{start}.base_layer.weight": w,
        f"{start}.lora_A.default.weight": a,
        f"{start}.lora_B.default.weight": b,
    }
    merged = merge_adapters({**peft, "base_model.model.rm_head.weight": w}, 3.0)
    assert set(merged) == {"model.layers.0.q_proj.weight", "rm_head.weight"}
    torch.testing.assert_close(merged["model.layers.0.q_proj.weight"], w + 3 * b @ a)
    with pytest.raises(ValueError, match=r"model.layers.0.q_proj.weight"):
        merge_adapters({f"{start}.lora_A.default.weight": a}, 1.0)


def test_settings_of_a_trained_video_reward_count(tmp_path, published):
    write_vlm(tmp_path, "video_align")
    normal = {
        f"{c}_{what}": value
        for c in ("VQ", "MQ", "TA")
        for what, value in (("mean", 0.0), ("std", 1.0))
    }
    lora, usual = {"lora_r": 4, "lora_alpha": 8, "use_rslora": False}, published("video_align")
    (tmp_path / "model_config.json").write_text(
        json.dumps({"inference_config": normal, "peft_lora_config": lora})
    )
    plain, (video, _, golden) = (
        VideoAlign.from_pretrained(tmp_path, dtype=torch.float32),
        known("video_align")[0],
    )
    with torch.no_grad():
        raw = plain.criteria(plain._ask(0, plain.show(video, None), ["a red circle"]))
    expected = ((raw - torch.tensor(usual.mean)) / torch.tensor(usual.std)).sum(-1)
    torch.testing.assert_close(golden[:1], expected, rtol=1e-5, atol=1e-5)
    (tmp_path / "model_config.json").write_text(
        json.dumps({"peft_lora_config": {**lora, "use_rslora": True}})
    )
    merged = VideoAlign.from_pretrained(tmp_path, dtype=torch.float32)
    start = "base_model.model.model.layers.0.self_attn.q_proj"
    names = [
        f"{start}.{name}.weight" for name in ("base_layer", "lora_A.default", "lora_B.default")
    ]
    weight, down, up = tiny.state(
        {name: GOLDEN["video_align"]["shapes"][name] for name in names}
    ).values()
    found = merged.network.backbone.get_parameter("language_model.layers.0.self_attn.q_proj.weight")
    torch.testing.assert_close(found, weight + 4 * up @ down)  # 8 over the root of 4
    assert merged.mean == usual.mean


def test_adapters_beside_a_model_that_speaks(tmp_path, published):
    edit, name = published("edit_score"), "model.layers.1.self_attn.q_proj"
    backbone, draw = edit.network.name_or_path, torch.Generator().manual_seed(0)
    down, up = torch.randn(3, 64, generator=draw), torch.randn(64, 3, generator=draw)
    tensors = {
        f"base_model.model.{name}.lora_A.weight": down,
        f"base_model.model.{name}.lora_B.weight": up,
    }
    settings = {"r": 3, "lora_alpha": 6, "use_rslora": False, "alpha_pattern": {}}

    def made(tensors, **changes):
        save_file(tensors, tmp_path / "adapter_model.safetensors")
        (tmp_path / "adapter_config.json").write_text(json.dumps(settings | changes))
        return EditScore.from_pretrained(tmp_path, backbone=backbone, dtype=torch.float32)

    where = "model.language_model.layers.1.self_attn.q_proj.weight"
    found, plain = made(tensors).network.get_parameter(where), edit.network.get_parameter(where)
    torch.testing.assert_close(found, plain + 2 * up @ down)
    with pytest.raises(ValueError, match="alpha_pattern"):
        made(tensors, alpha_pattern={"a": 1})
    with pytest.raises(ValueError, match=r"base_model.model.other.lora_A"):
        made({"base_model.model.other.lora_A.weight": down})
