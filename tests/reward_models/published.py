"""The table of the contract: rewards from tiny files as they are published, and the scores of their
original packages.

tests/golden/make_golden.py and make_golden_vlm.py made the scores.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ttsnap.reward_models.aesthetics import Aesthetics
from ttsnap.reward_models.clip import CLIPScore, OpenClipScore
from ttsnap.reward_models.hpsv2 import HPSv2
from ttsnap.reward_models.image_reward import ImageReward
from ttsnap.reward_models.pickscore import PickScore
from ttsnap.reward_models.vlm.edit_reward import EditReward
from ttsnap.reward_models.vlm.edit_score import EditScore
from ttsnap.reward_models.vlm.hpsv3 import HPSv3
from ttsnap.reward_models.vlm.video_align import VideoAlign

from ..golden import tiny, tiny_vlm  # noqa: TID252

GOLDEN = json.loads(tiny.VALUES.read_text()) | json.loads(tiny_vlm.VALUES.read_text())
SCORERS = {
    "clip": CLIPScore,
    "pickscore": PickScore,
    "open_clip": OpenClipScore,
    "hpsv2": HPSv2,
    "imagereward": ImageReward,
    "aesthetics": Aesthetics,
}
HEADED = {"hpsv3": HPSv3, "edit_reward": EditReward, "video_align": VideoAlign}
REWARDS = SCORERS | HEADED | {"edit_score": EditScore}


Bases = Callable[[str], Any]


class Known(NamedTuple):
    """A picture (1, 3, H, W) or a video (1, T, 3, H, W), what else a reward is given, and its score
    by each prompt."""

    pixels: Tensor
    given: dict[str, Tensor]
    scores: Tensor


def as_tensor(array):
    """(..., H, W, 3) uint8 -> (1, ..., 3, H, W) in [0, 1]."""
    return torch.from_numpy(array).movedim(-1, -3)[None].float() / 255


def prompts_of(name):
    return list(tiny.PROMPTS if name in SCORERS else tiny_vlm.PROMPTS)


@functools.cache
def known(name):
    sizes = tiny.SIZES if name in SCORERS else tiny_vlm.SIZES
    shown = tiny_vlm.videos() if name == "video_align" else tiny.images(sizes)
    given = (
        {"source": as_tensor(tiny.images([tiny_vlm.SOURCE])[0])} if name == "edit_reward" else {}
    )
    scores = torch.tensor(GOLDEN[name]["scores"])
    if name in HEADED:  # rows of mu and sigma, or of criteria and their sum
        scores = scores[:, -1 if name == "video_align" else 0]
    return [
        Known(as_tensor(x), given, s)
        for x, s in zip(shown, scores.view(len(shown), -1), strict=True)
    ]


def architecture(folder, side):
    """Teach open_clip the tiny architecture."""
    open_clip = pytest.importorskip("open_clip")
    (folder / f"tiny-{side}.json").write_text(json.dumps(tiny.open_clip_config(side)))
    open_clip.add_model_config(folder)
    return f"tiny-{side}"


def write_vlm(folder, name):
    tiny_vlm.write_backbone(folder, "qwen2_5_vl" if name.startswith("edit") else "qwen2_vl")
    file = "HPSv3.safetensors" if name == "hpsv3" else "model.safetensors"
    save_file(tiny.state(GOLDEN[name]["shapes"]), folder / file, {"format": "pt"})
    return folder


def load(name, folder, *, large=False, **options):
    """The reward from files with the original package's names and layout. large: reads pictures of
    LARGE_SIDE."""
    shapes = GOLDEN[f"{name}-large" if large else name]["shapes"]
    weights, side, source = tiny.state(shapes), tiny.LARGE_SIDE if large else tiny.SIDE, str(folder)
    if name not in SCORERS:
        write_vlm(folder, name)
    elif name in ("clip", "pickscore"):
        tiny.write_clip(folder, shapes, side)
    elif name == "open_clip":
        torch.save(weights, folder / "open_clip.pt")
        source = f"{architecture(folder, side)}:{folder / 'open_clip.pt'}"
    elif name == "hpsv2":
        torch.save({"epoch": 1, "state_dict": weights}, folder / "HPS_v2_compressed.pt")
        options["architecture"] = architecture(folder, side)
    elif name == "imagereward":
        tiny.write_bert_tokenizer(folder)
        positions = torch.arange(40).view(1, 40)
        torch.save(
            {**weights, "blip.text_encoder.embeddings.position_ids": positions},
            folder / "ImageReward.pt",
        )
    else:
        layers = {n: w for n, w in weights.items() if n.startswith("layers.")}
        tiny.write_clip(folder, {n: s for n, s in shapes.items() if n not in layers}, side)
        torch.save(layers, folder / "aesthetic-model.pth")
    return REWARDS[name].from_pretrained(source, **{"dtype": torch.float32, **options})
