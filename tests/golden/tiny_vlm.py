"""A tiny Qwen2-VL or Qwen2.5-VL with its processor as files, for make_golden_vlm.py and the tests.
No weights.

The names and settings are those of the published folders; the tokenizer reads bytes, and a few
words as one token.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from tiny import CLIP_MEAN, CLIP_STD, images, letters

VALUES = Path(__file__).with_name("golden_vlm.json")
PROMPTS = ("a red circle", "Zwei blaue Quadrate, über einem grünen Kreuz!", "A photo of a cat {x}")
SIZES = ((60, 100), (330, 201), (448, 448))
"""(H, W) of the images: enlarged to other shapes, and left as it is."""
SOURCE = (300, 400)
"""(H, W) of the image that was edited."""
ANSWERS = (
    (
        '{"reasoning": "good", "score": [20, 15]}',
        '{\n"reasoning" : "a \\"fine\\" one",\n"score" : [25, 9.5]\n}',
    ),
    ('```json\n{"reasoning": "", "score": [0, 25]}\n```', '{"score": [3, 4], "reasoning": "late"}'),
    ("So: {“reasoning”: “curly”, “score”: [12, 7]}", '{"reasoning": "one", "score": 16}'),
    ('{"reasoning": "it says "hello" there", "score": [8, 6]}', "[21, 22]"),
)
"""What EditScore may be answered to its two questions."""
HIDDEN = 64
NO_LORA = ("lm_head", "rm_head", "embed_tokens", "visual")
"""Parts of VideoReward without adapters."""
NORMAL = {
    "VQ_mean": 3.6757,
    "VQ_std": 2.2476,
    "MQ_mean": 1.1646,
    "MQ_std": 1.3811,
    "TA_mean": 2.8105,
    "TA_std": 2.5121,
}
"""Published with VideoReward's weights."""
SPECIAL = (
    *(
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
        "<|object_ref_start|>",
        "<|object_ref_end|>",
        "<|box_start|>",
    ),
    *(
        "<|box_end|>",
        "<|quad_start|>",
        "<|quad_end|>",
        "<|vision_start|>",
        "<|vision_end|>",
        "<|vision_pad|>",
    ),
    *("<|image_pad|>", "<|video_pad|>"),
)
WORDS = (
    "AI Alignment Assess Check Coherence Consider Consistency Creativity Criteria Evaluate Fidelity"
    " Good Image Instruction Motion Perfectly Please Poor Provided Quality Relevance Richness Score"
    " Specifically Text The Visual You a abnormal acceptable accurately across actions adheres"
    " aesthetically align and appeal appealing appearance applying appropriately are areas artifact"
    " artifacts artist artistic as aspects assigning atmosphere attributes background balance based"
    " be behavior being best between biological blinking blurring body caption clear clothing color"
    " comparison completely composition concise confidentials considered consistent contain content"
    " continuity contradictions creative degree described description different digital dimension"
    " distortions dynamic edit edited editing effectiveness elements enhance environment"
    " environmental errors evaluate evaluates evaluating evaluation example executed execution"
    " expressions factors feeling focus focuses follow following for from generated give given"
    " harmful harmony has have how human image images in inappropriate including inconsistencies"
    " indicates indistinct instruction interpret is lighting logical logically look match matches"
    " material materials meaning misinterpretation motion movement movements natural naturally"
    " nonsensical not object objective of omissions on or oranges original other output overall"
    " overediting particular parts physical pleasing political possible present privacy"
    " professional prompt provide provided quality rating ratings realistic reasoning represented"
    " satisfaction scale scene score seamless second sense shadows sharpness should significant"
    " significantly source specifies structures style stylistic sub subject success successfully"
    " such tasked terms text textual textures that the this to unnatural unnecessarily version"
    " video violent visibility visible visual visually well whether will with without worst wrong"
    " your"
)
CHAT = (
    "{% set image_count = namespace(value=0) %}{% for message in messages %}{% if loop.first and"
    " message['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{%"
    " endif %}<|im_start|>{{ message['role'] }}\n{% for content in message['content'] %}{% if"
    " content['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% elif"
    " content['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>{% else %}{{"
    " content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt"
    " %}<|im_start|>assistant\n{% endif %}"
)
"""The layout of Qwen2-VL's published chat template, without the numbering of images that it can be
asked for."""


def videos():
    """(T, H, W, 3) uint8 frames: each video moves over a larger picture."""
    (large,) = images([(360, 480)])
    return [
        np.stack([large[9 * t : 9 * t + h, 17 * t : 17 * t + w] for t in range(frames)])
        for frames, h, w in ((2, 330, 201), (4, 96, 160))
    ]


def merges():
    """Pairs that make each of WORDS, with the space before it, one token."""
    pairs = {}
    for word in WORDS.split():
        done = "Ġ"
        for letter in word:
            pairs[done, letter] = None
            done += letter
    return list(pairs)


def tokens():
    """Tokens by id: bytes, words, special ones."""
    return [*letters(), *dict.fromkeys(a + b for a, b in merges()), *SPECIAL]


def config(kind="qwen2_vl"):
    """config.json as it is published: the text model's settings are at the top."""
    ids = {token: i for i, token in enumerate(tokens())}
    vision = {
        "depth": 2,
        "num_heads": 2,
        "in_channels": 3,
        "patch_size": 14,
        "spatial_merge_size": 2,
    }
    vision |= {"temporal_patch_size": 2}
    if kind == "qwen2_vl":
        vision |= {
            "embed_dim": 32,
            "hidden_size": HIDDEN,
            "mlp_ratio": 2,
            "in_chans": 3,
            "spatial_patch_size": 14,
        }
    else:
        vision |= {
            "hidden_size": 32,
            "out_hidden_size": HIDDEN,
            "intermediate_size": 48,
            "window_size": 112,
        }
        vision |= {
            "fullatt_block_indexes": [1],
            "in_chans": 3,
            "spatial_patch_size": 14,
            "tokens_per_second": 2,
        }
    name = (
        "Qwen2VLForConditionalGeneration"
        if kind == "qwen2_vl"
        else "Qwen2_5_VLForConditionalGeneration"
    )
    places = {f"vision_{where}_token_id": f"<|vision_{where}|>" for where in ("start", "end")}
    places |= {
        "bos_token_id": "<|endoftext|>",
        "eos_token_id": "<|im_end|>",
        "vision_token_id": "<|vision_pad|>",
    }
    places |= {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
    text = {"hidden_act": "silu", "hidden_size": HIDDEN, "intermediate_size": 96}
    text |= {
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_window_layers": 2,
    }
    text |= {
        "max_position_embeddings": 32768,
        "initializer_range": 0.02,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
    }
    text |= {
        "sliding_window": 32768,
        "use_sliding_window": False,
        "tie_word_embeddings": False,
        "use_cache": True,
    }
    text |= {
        "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]},
        "vocab_size": len(ids) + 8,
    }
    vision["model_type"] = kind
    marks = {name: ids[token] for name, token in places.items()}
    return {"architectures": [name], "model_type": kind, **marks, **text, "vision_config": vision}


def write_backbone(folder, kind="qwen2_vl"):
    """All that a published folder holds beside the weights."""
    ids = {token: i for i, token in enumerate(tokens())}
    plain = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    no = ("add_prefix_space", "split_special_tokens", "clean_up_tokenization_spaces")
    tokenizer = dict.fromkeys(no, False)
    tokenizer |= {
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
    }
    tokenizer |= {
        "additional_special_tokens": list(SPECIAL[1:]),
        "errors": "replace",
        "model_max_length": 32768,
    }
    tokenizer |= {"tokenizer_class": "Qwen2Tokenizer", "chat_template": CHAT}
    tokenizer["added_tokens_decoder"] = {
        str(ids[t]): {"content": t, "special": True, **plain} for t in SPECIAL
    }
    first = "Qwen2VL" if kind == "qwen2_vl" else "Qwen2_5_VL"
    pictures = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": f"{first}Processor",
    }
    pictures |= {
        "min_pixels": 3136,
        "max_pixels": 12845056,
        "patch_size": 14,
        "temporal_patch_size": 2,
    }
    pictures |= {"merge_size": 2, "image_mean": CLIP_MEAN, "image_std": CLIP_STD}
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "config.json": config(kind),
        "tokenizer_config.json": tokenizer,
        "preprocessor_config.json": pictures,
        "vocab.json": {token: i for token, i in ids.items() if token not in SPECIAL},
        "chat_template.json": {"chat_template": CHAT},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    (folder / "merges.txt").write_text(
        "\n".join(["#version: 0.2", *(f"{a} {b}" for a, b in merges())]) + "\n"
    )
