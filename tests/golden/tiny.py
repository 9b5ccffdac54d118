"""Tiny configurations whose weights, images and texts follow from formulas, the same in every
environment.

Used by make_golden.py, next to the original packages, and by the tests. Needs numpy, torch and
safetensors only.
"""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path

import numpy as np
import torch

VALUES = Path(__file__).with_name("golden.json")
SIZES = ((32, 32), (48, 40), (24, 64), (100, 60))
"""(H, W) of the images: as large as the networks read, cropped, enlarged, and shrunk threefold."""
SIDE = 32
"""What the networks read."""
LARGE_SIZES = ((330, 201), (187, 310), (1216, 832), (832, 1216))
"""(H, W) at which transformers and torchvision crop different columns or rows for networks that
read LARGE_SIDE."""
LARGE_SIDE = 224
PROMPTS = ("a red circle", "two blue squares above a green cross", "A photo of a cat!", "z")

_LAYERS = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
_TOKENS = {"vocab_size": 514, "bos_token_id": 512, "eos_token_id": 513, "pad_token_id": 513}
_TEXT = {
    "model_type": "clip_text_model",
    "projection_dim": 16,
    "max_position_embeddings": 77,
    **_TOKENS,
    **_LAYERS,
}
_VISION = {
    "model_type": "clip_vision_model",
    "projection_dim": 16,
    "image_size": 32,
    "patch_size": 8,
    **_LAYERS,
}
CLIP_CONFIG = {
    "model_type": "clip",
    "architectures": ["CLIPModel"],
    "projection_dim": 16,
}
CLIP_CONFIG |= {"logit_scale_init_value": 2.6592, "text_config": _TEXT, "vision_config": _VISION}
OPEN_CLIP_CONFIG = {"embed_dim": 16}
OPEN_CLIP_CONFIG["vision_cfg"] = {
    "image_size": 32,
    "layers": 2,
    "width": 32,
    "head_width": 16,
    "patch_size": 8,
}
OPEN_CLIP_CONFIG["text_cfg"] = {
    "context_length": 77,
    "vocab_size": 49408,
    "width": 32,
    "heads": 2,
    "layers": 2,
}
BLIP_WIDTH, BLIP_LAYERS = 128, 2
MED_CONFIG = {
    "hidden_size": BLIP_WIDTH,
    "num_hidden_layers": BLIP_LAYERS,
    "encoder_width": BLIP_WIDTH,
}
MED_CONFIG |= {"num_attention_heads": BLIP_WIDTH // 64, "intermediate_size": 256, "vocab_size": 64}
MED_CONFIG |= {
    "max_position_embeddings": 40,
    "layer_norm_eps": 1e-12,
    "type_vocab_size": 2,
    "pad_token_id": 0,
}
MED_CONFIG |= {"add_cross_attention": True, "hidden_act": "gelu"}


def noise(name, n):
    """(n,) values in [-1, 1), fixed by the name."""
    phase = zlib.crc32(name.encode()) % 10007
    return 2 * np.modf(np.abs(np.sin(np.arange(n) * 12.9898 + phase) * 43758.5453))[0] - 1


def weight(name, shape):
    """float32 weights of a usual size: matrices keep the variance, norms are near 1, biases near
    0."""
    values = torch.from_numpy(noise(name, math.prod(shape))).float().view(list(shape))
    if len(shape) == 0:
        return torch.tensor(4.6)  # a logit scale: about 100
    if len(shape) > 1:
        return values * math.sqrt(3 / math.prod(shape[1:]))
    return 1 + 0.2 * values if name.endswith("weight") else 0.1 * values


def fill(module):
    """Set a module's floating weights; their shapes by name."""
    state = {
        name: value for name, value in module.state_dict().items() if value.is_floating_point()
    }
    module.load_state_dict(
        {name: weight(name, value.shape) for name, value in state.items()}, strict=False
    )
    module.eval()
    return {name: list(value.shape) for name, value in state.items()}


def state(shapes):
    """The weights that `fill` set."""
    return {name: weight(name, shape) for name, shape in shapes.items()}


def images(sizes=SIZES):
    """(H, W, 3) uint8 pictures of these sizes: a gradient with noise."""
    out = []
    for height, width in sizes:
        grain = noise(f"{height}x{width}", height * width * 3).reshape(height, width, 3)
        y, x = np.mgrid[0:height, 0:width] / max(height, width)
        smooth = np.stack([x, y, 1 - x * y], -1)
        out.append(((0.7 * smooth + 0.15 + 0.15 * grain).clip(0, 1) * 255).astype(np.uint8))
    return out


def translucent():
    """(H, W, 4) uint8 pictures of SIZES, with alpha of every value and colours where nothing is
    seen."""
    alpha = [
        noise(f"alpha {h}x{w}", h * w).reshape(h, w, 1) * 1.2 * 127.5 + 127.5 for h, w in SIZES
    ]
    return [
        np.concatenate([c, a.clip(0, 255).astype(np.uint8)], 2)
        for c, a in zip(images(), alpha, strict=True)
    ]


def patch(side):
    """The side of a network's patches."""
    return max(8, side // 8)


def clip_config(side=SIDE):
    """CLIP_CONFIG for a network that reads images of `side`."""
    vision = {**CLIP_CONFIG["vision_config"], "image_size": side, "patch_size": patch(side)}
    return {**CLIP_CONFIG, "vision_config": vision}


def open_clip_config(side=SIDE):
    """OPEN_CLIP_CONFIG, likewise."""
    vision = {**OPEN_CLIP_CONFIG["vision_cfg"], "image_size": side, "patch_size": patch(side)}
    return {**OPEN_CLIP_CONFIG, "vision_cfg": vision}


CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


def letters():
    """The 256 letters that stand for bytes in byte-level tokenizers."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(b) for b in kept] + [chr(256 + n) for n in range(256 - len(kept))]


def write_clip_tokenizer(folder, side=SIDE):
    """A byte-level CLIP tokenizer of 514 tokens, as vocab.json and merges.txt, with its image
    processor's settings."""
    tokens = [
        *letters(),
        *(f"{letter}</w>" for letter in letters()),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    special = {
        "bos_token": tokens[-2],
        **dict.fromkeys(("eos_token", "unk_token", "pad_token"), tokens[-1]),
    }
    sizes = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    normal = {"image_mean": CLIP_MEAN, "image_std": CLIP_STD}
    files = {
        "vocab.json": {token: i for i, token in enumerate(tokens)},
        "special_tokens_map.json": special,
        "tokenizer_config.json": {
            "tokenizer_class": "CLIPTokenizer",
            "model_max_length": 77,
            **special,
        },
        "preprocessor_config.json": {
            "image_processor_type": "CLIPImageProcessor",
            **sizes,
            **normal,
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    (folder / "merges.txt").write_text("#version: 0.2\n")


def write_bert_tokenizer(folder):
    """A letter-wise BERT tokenizer of 62 tokens, to which ImageReward adds two."""
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters)]
    tokens += [f"[unused{i}]" for i in range(62 - len(tokens))]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))


def write_clip(folder, shapes=None, side=SIDE):
    """A folder that transformers loads as a CLIPModel; the weights, too, where shapes are given."""
    from safetensors.torch import save_file

    write_clip_tokenizer(folder, side)
    (folder / "config.json").write_text(json.dumps(clip_config(side)))
    if shapes is not None:
        save_file(state(shapes), folder / "model.safetensors", {"format": "pt"})
