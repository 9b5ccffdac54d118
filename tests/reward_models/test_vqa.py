"""P("Yes") with a tiny random LLaVA, against the logits of one image and one question at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from ttsnap.reward_models.vqa import QUESTION, VQAScore

TEMPLATE = (
    "{% for m in messages %}<s> {% for c in m['content'] %}{% if c['type'] == 'image' %}<image> "
    "{% else %}{{ c['text'] }} {% endif %}{% endfor %}{% endfor %}{% if add_generation_prompt %}answer{% endif %}"
)
TEXT = '<pad> <s> <unk> <image> Yes No answer yes or no a red blue circle square Does this figure show "'
WORDS = TEXT.split()


@pytest.fixture(scope="module")
def parts() -> tuple[Any, Any]:
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<unk>", bos_token="<s>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        chat_template=TEMPLATE,
        num_additional_image_tokens=1,
    )
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(image_size=16, patch_size=8, projection_dim=16, **small),
        text_config=LlamaConfig(vocab_size=len(WORDS), pad_token_id=0, num_key_value_heads=2, **small),
        image_token_id=WORDS.index("<image>"),
        vision_feature_layer=-1,
    )
    torch.manual_seed(0)
    return LlavaForConditionalGeneration(config), processor


def test_probability_of_yes(parts: tuple[Any, Any]) -> None:
    network, processor = parts
    with torch.no_grad():
        network.lm_head.weight.mul_(20)  # random logits hardly differ
    reward = VQAScore(network, processor, batch_size=2)
    images = torch.randint(0, 256, (3, 3, 16, 24), generator=torch.Generator().manual_seed(0)) / 255
    prompts = ["a red circle", "square", "a blue square or a red circle"]
    scores = reward(images, prompts)
    assert scores.shape == (3,)
    assert ((scores > 0) & (scores < 1)).all()
    assert scores.std() > 1e-4
    for image, prompt, score in zip(images, prompts, scores, strict=True):
        text = f"<s> <image> {QUESTION.format(prompt)} answer"
        array = (image * 255).round().byte()
        inputs = processor(images=[array], text=[text], return_tensors="pt")
        with torch.no_grad():
            logits = network(**inputs).logits[0, -1]
        expected = logits.softmax(-1)[WORDS.index("Yes")]
        assert score.item() == pytest.approx(expected.item(), abs=1e-4)
    assert reward.flops > 1e5
    with pytest.raises(ValueError, match="2 prompts for 3 images"):
        reward(images, prompts[:2])
    with pytest.raises(ValueError, match=r"question needs a \{\}"):
        VQAScore(network, processor, question="Is it good?")
