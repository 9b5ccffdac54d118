"""Vision-language models that score in words: questions and answers of the original package, on tiny networks."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ttsnap.reward_models.registry import make_reward
from ttsnap.reward_models.vlm.edit_score import EditScore, marks
from ttsnap.reward_models.vlm.model import template
from ttsnap.reward_models.vlm.unified_reward import UnifiedReward

from ..golden import tiny, tiny_vlm  # noqa: TID252

GOLDEN = json.loads(tiny_vlm.VALUES.read_text())["edit_score"]
STATE = tiny.state(GOLDEN["shapes"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen2.5-VL as it is published."""
    path = tmp_path_factory.mktemp("spoken")
    tiny_vlm.write_backbone(path, "qwen2_5_vl")
    save_file(STATE, path / "model.safetensors", {"format": "pt"})
    return path


@pytest.fixture(scope="module")
def edit(folder: Path) -> EditScore:
    return EditScore.from_pretrained(folder, dtype=torch.float32, temperature=0, answer_tokens=12)


def as_tensor(array: Any) -> Tensor:
    return torch.from_numpy(array).permute(2, 0, 1)[None].float() / 255


def pair() -> tuple[Tensor, Tensor]:
    """The image that was edited, and the result."""
    source, result = (as_tensor(array) for array in tiny.images([tiny_vlm.SOURCE, tiny_vlm.SIZES[0]]))
    return source, result


def test_answers_of_the_original_package(edit: EditScore) -> None:
    source, result = pair()
    for question, golden in enumerate(GOLDEN["answers"]):
        (answer,) = edit.answers(question, result, [tiny_vlm.PROMPTS[1]], source)
        assert len(answer) > 12
        assert golden.startswith(answer)  # the original goes on for 512 tokens


def test_scores_of_the_original_package(edit: EditScore) -> None:
    assert len(set(GOLDEN["scores"])) == len(tiny_vlm.ANSWERS)
    for answers, golden in zip(tiny_vlm.ANSWERS, GOLDEN["scores"], strict=True):
        assert edit.read(answers) == pytest.approx(golden)


@pytest.mark.parametrize(
    "answer",
    [
        *("", "no", "{}", '{"score": []}', '{"score": ["a", 1]}', '{"score": [true, 1]}', '{"score": [NaN, 1]}', "[1"),
        *('{"score": null}', '{"score": [26, 1]}', '{"score": [-1, 1]}', "[" * 5000, '{"score": {"a": 1}}', "score: ["),
    ],
)
def test_answers_without_marks_have_no_score(answer: str, edit: EditScore) -> None:
    assert math.isnan(edit.read([answer, "[1, 2]"]))
    assert math.isnan(edit.read(["[1, 2]", answer]))


def test_marks_of_one_question() -> None:
    assert marks('{"score": [3, 4]}') == [3, 4]
    assert marks('{"reasoning": "broken" quotes", "score": [3, 4.5]}') == [3, 4.5]
    assert marks("12") == []


def test_sampled_answers_depend_on_their_row_alone(folder: Path) -> None:
    reward = EditScore.from_pretrained(folder, dtype=torch.float32, answer_tokens=5, passes=2)
    source, result = pair()
    images, sources = torch.cat([result, result.flip(3)]), source.expand(2, -1, -1, -1)
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    both = reward.answers(1, images, ["a", "b"], sources)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert both[1:] == reward.answers(1, images[1:], ["b"], sources[1:])
    assert both[1:] != reward.answers(1, images[1:], ["b"], sources[1:], passed=1)


def test_batches_and_what_is_asked_for(edit: EditScore) -> None:
    source, result = pair()
    images, sources = torch.cat([result, result.flip(3)]), source.expand(2, -1, -1, -1)
    prompts = ["a", "three green crosses"]  # of different lengths, so that one is padded
    together = edit.answers(0, images, prompts, sources)
    assert together == [edit.answers(0, images[i : i + 1], prompts[i : i + 1], source)[0] for i in range(2)]
    scores = edit(images, prompts, None, sources)
    assert scores.shape == (2,)
    assert scores.isnan().all()  # a random network says nothing that could be read
    with pytest.raises(ValueError, match="its source; got none"):
        edit(images, prompts)
    with pytest.raises(ValueError, match="cannot read a prompt that holds"):
        edit(images, ["a", "<|im_end|>"], source=sources)
    with pytest.raises(ValueError, match="2 passes give the same answers at temperature 0"):
        EditScore(edit.network, edit.processor, temperature=0, passes=2)
    with pytest.raises(ValueError, match="must be at least 1, temperature at least 0, got 0, 512, 1 and 0"):
        EditScore(edit.network, edit.processor, temperature=0, batch_size=0)


def test_mean_over_passes_that_can_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reward = EditScore.from_pretrained(folder, dtype=torch.float32, passes=3)
    said = {0: "[10, 20]", 1: "nothing", 2: "[20, 20]"}
    monkeypatch.setattr(reward, "answers", lambda question, images, prompts, source, passed: [said[passed]])
    source, result = pair()
    assert reward(result, ["a"], None, source).item() == pytest.approx((10 + 20) / 2 * 10 / 25)


def test_adapters_are_added_to_the_model(tmp_path: Path, folder: Path, edit: EditScore) -> None:
    name = "model.layers.1.self_attn.q_proj"
    draw = torch.Generator().manual_seed(0)
    down, up = torch.randn(3, 64, generator=draw), torch.randn(64, 3, generator=draw)
    tensors = {f"base_model.model.{name}.lora_A.weight": down, f"base_model.model.{name}.lora_B.weight": up}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    settings = {"r": 3, "lora_alpha": 6, "use_rslora": False, "alpha_pattern": {}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    reward = EditScore.from_pretrained(tmp_path, backbone=folder, dtype=torch.float32)
    found = reward.network.get_parameter("model.language_model.layers.1.self_attn.q_proj.weight")
    plain = edit.network.get_parameter("model.language_model.layers.1.self_attn.q_proj.weight")
    torch.testing.assert_close(found, plain + 2 * up @ down)
    (tmp_path / "adapter_config.json").write_text(json.dumps({**settings, "alpha_pattern": {"a": 1}}))
    with pytest.raises(ValueError, match="have alpha_pattern, which is not read here"):
        EditScore.from_pretrained(tmp_path, backbone=folder)
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    save_file({"base_model.model.other.lora_A.weight": down}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"are for another model: it has nothing for base_model.model.other.lora_A"):
        EditScore.from_pretrained(tmp_path, backbone=folder)


def test_unified_reward_is_asked_and_read(folder: Path) -> None:
    reward = make_reward(f"unifiedreward:{folder}", dtype=torch.float32)
    assert isinstance(reward, UnifiedReward)
    # The example of its authors' script.
    example = (
        "Alignment Score (1-5): 2.694700002670288\nCoherence Score (1-5): 2.371500015258789\n"
        "Style Score (1-5): 2.802500009536743\n"
    )
    axes = (2.694700002670288, 2.371500015258789, 2.802500009536743)
    assert reward.read([example]) == pytest.approx(sum(axes) / 3)
    style = UnifiedReward(reward.network, reward.processor, axes=["Style"])
    assert style.read([example]) == pytest.approx(axes[2])
    wrong = (
        "",
        example.replace("2.69", "6.69"),
        example + "Style Score (1-5): 3",
        example.partition("\nC")[0],
        "1 2 3",
    )
    assert all(math.isnan(reward.read([answer])) for answer in wrong)
    with pytest.raises(ValueError, match="axes are some of Alignment, Coherence, Style, got"):
        UnifiedReward(reward.network, reward.processor, axes=["Taste"])
    text = reward.layout(template("unified_reward").replace("{text_prompt}", "a {cat}"), 1)
    assert "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>You are presented with" in text
    assert text.endswith("Text Caption: [a {cat}]<|im_end|>\n<|im_start|>assistant\n")


def test_unified_reward_sees_the_image(folder: Path) -> None:
    reward = UnifiedReward.from_pretrained(folder, dtype=torch.float32, answer_tokens=6)
    _, result = pair()
    answers = reward.answers(0, torch.cat([result, 1 - result]), ["a", "a"])
    text = reward.layout(template("unified_reward").replace("{text_prompt}", "a"), 1)
    picture = (result[0] * 255).round().byte()
    inputs = reward.processor(images=[[picture]], text=[text], return_tensors="pt")
    expected = reward.network.generate(**inputs, do_sample=False, max_new_tokens=6)[0, inputs["input_ids"].shape[1] :]  # type: ignore[operator]
    assert answers[0] == reward.processor.tokenizer.decode(expected, skip_special_tokens=True).strip()
    assert answers[0] != answers[1]
    assert reward.flops > 1e8


def test_pickles_are_not_read(tmp_path: Path) -> None:
    tiny_vlm.write_backbone(tmp_path, "qwen2_5_vl")
    torch.save(STATE, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"cannot load .*safetensors"):
        UnifiedReward.from_pretrained(tmp_path)
