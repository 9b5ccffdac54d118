"""Vision-language models, with a head or in words: what test_contract.py does not ask of every
reward."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import AutoConfig, AutoProcessor

from ttsnap.reward_models.preprocess import Sight
from ttsnap.reward_models.registry import make_reward
from ttsnap.reward_models.vlm.edit_score import EditScore
from ttsnap.reward_models.vlm.hpsv3 import HPSv3
from ttsnap.reward_models.vlm.model import template
from ttsnap.reward_models.vlm.unified_reward import UnifiedReward
from ttsnap.reward_models.vlm.video_align import VideoAlign
from ttsnap.reward_models.vqa import VQAScore

from ..golden import tiny, tiny_vlm  # noqa: TID252
from .published import GOLDEN, as_tensor, known, write_vlm

PROMPTS = list(tiny_vlm.PROMPTS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_vlm(tmp_path_factory.mktemp("hpsv3"), "hpsv3")


def test_each_criterion_of_a_video(published):
    reward, video = published("video_align"), known("video_align")[0].pixels
    with torch.no_grad():
        found = reward.criteria(reward._ask(0, reward.show(video, None), PROMPTS[:1]))
    torch.testing.assert_close(
        found[0], torch.tensor(GOLDEN["video_align"]["scores"][0][:3]), rtol=1e-5, atol=1e-5
    )
    # A head with an output for each criterion, as in VideoAlign's train.sh: each is read at its own
    # mark.
    expected = (torch.tensor([0.0, 4.0, 8.0]) - torch.tensor(reward.mean)) / torch.tensor(
        reward.std
    )
    torch.testing.assert_close(reward.criteria(torch.arange(9.0).view(1, 3, 3)), expected[None])


def test_what_is_needed_is_asked_for(published):
    hps, edit, video = (published(name) for name in ("hpsv3", "edit_reward", "video_align"))
    images, prompts = torch.rand(2, 3, 40, 52), PROMPTS[:2]
    assert (hps.needs, edit.needs, video.needs) == (set(), {"source"}, {"video"})
    # only edits have a source
    assert torch.equal(hps(images, prompts, source=images), hps(images, prompts))
    with pytest.raises(ValueError, match="got none"):
        edit(images, prompts)
    with pytest.raises(ValueError, match="got 1 for 2 images"):
        edit(images, prompts, source=images[:1])
    with pytest.raises(ValueError, match=r"got \(2, 3, 40, 52\)"):
        video(images, prompts)
    hps.check(PROMPTS)
    for token in ("<|Reward|>", "<|image_pad|>", "<|im_end|>"):
        for ask in (hps.check, lambda texts: hps(images[:1], texts)):
            with pytest.raises(ValueError, match=r"hpsv3"):
                ask([f"a cat {token}"])


def test_gradients_of_the_image(published):
    reward = published("hpsv3")
    images = torch.rand(1, 3, 448, 448, generator=torch.Generator().manual_seed(0)).requires_grad_()
    score = reward.differentiable(images, PROMPTS[:1])
    torch.testing.assert_close(score.detach(), reward(images, PROMPTS[:1]), atol=1e-2, rtol=1e-2)
    (gradient,) = torch.autograd.grad(score.sum(), images)
    step = 1e-2 * gradient / gradient.norm()
    with torch.no_grad():
        up, down = (reward.differentiable(images + sign * step, PROMPTS[:1]) for sign in (1, -1))
    torch.testing.assert_close((up - down).item() / 2e-2, gradient.norm().item(), rtol=0.05, atol=0)


def test_frames_of_long_videos_are_chosen_evenly(published, monkeypatch):
    reward = published("video_align")
    video = torch.arange(12.0).view(1, 12, 1, 1, 1).expand(1, 12, 3, 28, 28) / 255
    monkeypatch.setattr(reward, "frames", 4)
    (levels,) = reward.show(video, None)
    assert levels[0, :, 0, 0, 0].tolist() == [0, 4, 7, 11]
    (levels,) = reward.show(video[:, :3], None)
    assert levels.shape[1] == 3  # an odd last frame is seen twice
    with pytest.raises(ValueError, match=r"frames .* got 1"):
        VideoAlign(reward.network, reward.processor, frames=1)


def test_patches_of_an_odd_video_are_those_of_the_processor(folder):
    processor = AutoProcessor.from_pretrained(folder)
    sight = Sight.of(AutoConfig.from_pretrained(folder), (1, 10**6))
    frames = torch.randint(0, 256, (3, 3, 56, 84), generator=torch.Generator().manual_seed(0))
    patches, grid = sight.patches(frames.float())
    made = processor.video_processor(frames.byte(), do_resize=False, return_tensors="pt")
    assert grid.tolist() == made["video_grid_thw"][0].tolist()
    torch.testing.assert_close(patches, made["pixel_values_videos"], rtol=1e-5, atol=1e-5)
    assert sight.tokens(grid) == len(patches) // 4


def test_the_trained_precision_is_the_default_and_heads_stay_fine(folder):
    reward = HPSv3.from_pretrained(folder / "HPSv3.safetensors")
    assert {p.dtype for p in reward.network.backbone.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in reward.network.heads.parameters()} == {torch.float32}


# --- in words -------------------------------------------------------------------------------------

SOURCE, RESULT = (as_tensor(array) for array in tiny.images([tiny_vlm.SOURCE, tiny_vlm.SIZES[0]]))
IMAGES, SOURCES = torch.cat([RESULT, RESULT.flip(3)]), SOURCE.expand(2, -1, -1, -1)


@pytest.fixture(scope="module")
def spoken(tmp_path_factory):
    """A tiny Qwen2.5-VL as it is published."""
    return write_vlm(tmp_path_factory.mktemp("spoken"), "edit_score")


@pytest.fixture(scope="module")
def edit(spoken):
    return EditScore.from_pretrained(spoken, dtype=torch.float32, temperature=0, answer_tokens=12)


def test_answers_and_scores_of_the_original_package(edit):
    golden = GOLDEN["edit_score"]
    for question, whole in enumerate(golden["answers"]):
        (answer,) = edit.answers(question, RESULT, [PROMPTS[1]], SOURCE)
        assert len(answer) > 12
        assert whole.startswith(answer)  # the original goes on for 512 tokens
    assert len(set(golden["scores"])) == len(tiny_vlm.ANSWERS)
    assert [edit.read(answers) for answers in tiny_vlm.ANSWERS] == pytest.approx(golden["scores"])


@pytest.mark.parametrize(
    "answer",
    [
        *(
            "",
            "no",
            "{}",
            '{"score": []}',
            '{"score": ["a", 1]}',
            '{"score": [true, 1]}',
            '{"score": [NaN, 1]}',
            "[1",
        ),
        *(
            '{"score": null}',
            '{"score": [26, 1]}',
            '{"score": [-1, 1]}',
            "[" * 5000,
            '{"score": {"a": 1}}',
            "score: [",
        ),
    ],
)
def test_answers_without_marks_have_no_score(answer, edit):
    assert math.isnan(edit.read([answer, "[1, 2]"]))
    assert math.isnan(edit.read(["[1, 2]", answer]))


def test_sampled_answers_depend_on_their_row_alone(spoken):
    reward = EditScore.from_pretrained(spoken, dtype=torch.float32, answer_tokens=5, passes=2)
    before = torch.random.get_rng_state()
    both = reward.answers(1, IMAGES, ["a", "b"], SOURCES)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert both[1:] == reward.answers(1, IMAGES[1:], ["b"], SOURCES[1:])
    assert both[1:] != reward.answers(1, IMAGES[1:], ["b"], SOURCES[1:], passed=1)


def test_batches_and_what_is_asked_for(edit):
    prompts = ["a", "three green crosses"]  # of different lengths, so that one is padded
    together = edit.answers(0, IMAGES, prompts, SOURCES)
    assert together == [
        edit.answers(0, IMAGES[i : i + 1], prompts[i : i + 1], SOURCE)[0] for i in range(2)
    ]
    scores = edit(IMAGES, prompts, None, SOURCES)
    assert scores.shape == (2,)
    assert scores.isnan().all()  # a random network says nothing that could be read
    for options, wrong in (
        ({"passes": 2}, "2 passes .* temperature 0"),
        ({"batch_size": 0}, "got 0, 512, 1 and 0"),
    ):
        with pytest.raises(ValueError, match=wrong):
            EditScore(edit.network, edit.processor, temperature=0, **options)


def test_mean_over_passes_that_can_be_read(edit, monkeypatch):
    said = {0: "[10, 20]", 1: "nothing", 2: "[20, 20]"}
    monkeypatch.setattr(edit, "passes", 3)
    monkeypatch.setattr(
        edit, "answers", lambda question, images, prompts, source, passed: [said[passed]]
    )
    assert edit(RESULT, ["a"], None, SOURCE).item() == pytest.approx((10 + 20) / 2 * 10 / 25)


def test_unified_reward_is_asked_and_read(spoken):
    reward = make_reward(f"unifiedreward:{spoken}", dtype=torch.float32)
    # in the example of its authors' script
    axes = (2.694700002670288, 2.371500015258789, 2.802500009536743)
    named = zip(("Alignment", "Coherence", "Style"), axes, strict=True)
    example = "".join(f"{name} Score (1-5): {x}\n" for name, x in named)
    assert reward.read([example]) == pytest.approx(sum(axes) / 3)
    assert UnifiedReward(reward.network, reward.processor, axes=["Style"]).read(
        [example]
    ) == pytest.approx(axes[2])
    twice, cut = f"{example}Style Score (1-5): 3", example.partition("\nC")[0]
    assert all(
        math.isnan(reward.read([one]))
        for one in ("", example.replace("2.69", "6.69"), twice, cut, "1 2 3")
    )
    with pytest.raises(ValueError, match=r"Alignment, Coherence, Style, got .*Taste"):
        UnifiedReward(reward.network, reward.processor, axes=["Taste"])
    text = reward.layout(template("unified_reward").replace("{text_prompt}", "a {cat}"), 1)
    assert (
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>You are presented with"
        in text
    )
    assert text.endswith("Text Caption: [a {cat}]<|im_end|>\n<|im_start|>assistant\n")


def test_unified_reward_sees_the_image(spoken):
    reward = UnifiedReward.from_pretrained(spoken, dtype=torch.float32, answer_tokens=6)
    answers = reward.answers(0, torch.cat([RESULT, 1 - RESULT]), ["a", "a"])
    text = reward.layout(template("unified_reward").replace("{text_prompt}", "a"), 1)
    inputs = reward.processor(
        images=[[(RESULT[0] * 255).round().byte()]], text=[text], return_tensors="pt"
    )
    expected = reward.network.generate(**inputs, do_sample=False, max_new_tokens=6)[
        0, inputs["input_ids"].shape[1] :
    ]
    assert (
        answers[0] == reward.processor.tokenizer.decode(expected, skip_special_tokens=True).strip()
    )
    assert answers[0] != answers[1]
    assert reward.flops > 1e8


def test_vqascore_is_the_probability_of_yes(spoken):
    """Against the logits of one image and one question at a time."""
    reward = make_reward(f"vqascore:{spoken}")
    reward.batch_size = 2
    with torch.no_grad():
        reward.network.lm_head.weight.mul_(5)  # random logits hardly differ
    images, prompts = (
        torch.cat([IMAGES, 1 - RESULT]),
        ["a red circle", "square", "a cat over three green crosses"],
    )
    scores = reward(images, prompts)
    for image, prompt, score in zip(images, prompts, scores, strict=True):
        question = f'Does this figure show "{prompt}"? Please answer yes or no.'
        seen = (
            f"<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>{question}<|im_end|>\n"
        )
        system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        text = f"{system}{seen}<|im_start|>assistant\n"
        inputs = reward.processor(
            images=[[(image * 255).round().byte()]], text=[text], return_tensors="pt"
        )
        yes = reward.processor.tokenizer("Yes").input_ids[0]
        with torch.no_grad():
            expected = reward.network(**inputs).logits[0, -1].softmax(-1)[yes]
        assert score.item() == pytest.approx(expected.item(), rel=1e-3)
    assert scores.std() > 1e-3 * scores.mean() > 0
    lists = [prompts, prompts[1:], ["a red square"]]
    alone = torch.cat(
        [
            reward(image.expand(len(texts), -1, -1, -1), texts)
            for image, texts in zip(images.split(1), lists, strict=True)
        ]
    )
    together = reward.score_each(images, lists)  # each image is read once
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=0)
    assert 4 * reward.flops_more < 0.3 * reward.flops
    with pytest.raises(ValueError, match=r"needs a \{\}"):
        VQAScore(reward.network, reward.processor, question="Is it good?")
