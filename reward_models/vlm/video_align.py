"""VideoReward of VideoAlign (Liu et al., arXiv 2501.13918): visual quality, motion and text
alignment of a video.

Source: github.com/KlingAIResearch/VideoAlign, VideoVLMRewardInference. A Qwen2-VL-2B reads three
marks in one question, one for each criterion. Each value is normalised by a mean and a deviation,
and the score is their sum (`Overall`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from ttsnap.files.reading import read_object
from ttsnap.files.settings import check
from ttsnap.reward_models.vlm.headed import Headed, HeadedVLM
from ttsnap.reward_models.weights import adapter_scale

CRITERIA = ("VQ", "MQ", "TA")
"""Visual quality, motion quality, text alignment."""
MEAN = (3.6757, 1.1646, 2.8105)
STD = (2.2476, 1.3811, 2.5121)
"""Of the three, in the published model_config.json; also given in MindSpeed-MM's
examples/videoalign."""
SETTINGS = "model_config.json"
"""What VideoAlign writes beside its weights."""
SCALE = 128 / 64
"""The adapters' alpha / rank in its train.sh."""


class VideoAlign(HeadedVLM):
    """The sum of three normalised criteria.

    frames: most frames that the model sees, evenly from the first to the last. Its authors show two
    a second; a tensor has no duration, and 10 frames are five seconds.
    """

    name = "videoalign"
    needs = frozenset({"video"})
    weights = "KwaiVGI/VideoReward"
    backbone = "Qwen/Qwen2-VL-2B-Instruct"
    questions = ("video_align",)
    marks = ("<|VQ_reward|>", "<|MQ_reward|>", "<|TA_reward|>")
    pixels = (128 * 28 * 28, 448 * 448)

    def __init__(
        self,
        network: Headed,
        processor: Any,
        *,
        batch_size: int = 4,
        frames: int = 10,
        mean: Sequence[float] = MEAN,
        std: Sequence[float] = STD,
    ) -> None:
        super().__init__(network, processor, batch_size=batch_size)
        if frames < 2:
            raise ValueError(f"frames must be at least 2, got {frames}")
        self.frames = frames
        self.mean = tuple(mean)
        self.std = tuple(std)

    @classmethod
    def load(cls, source: str, dtype: torch.dtype, **options: Any) -> Self:
        """As HeadedVLM's. A model_config.json beside the weights gives the normalisation and the
        adapters' factor."""
        settings = _settings(source)
        normal = settings.get("inference_config")
        lora = settings.get("peft_lora_config")
        if isinstance(normal, Mapping):
            for name in ("mean", "std"):
                found = [check(f"{c}_{name}", normal.get(f"{c}_{name}"), float) for c in CRITERIA]
                options.setdefault(name, found)
        scale = adapter_scale(lora, "lora_r") if isinstance(lora, Mapping) else SCALE
        return super().load(source, dtype, scale=scale, **options)

    def show(self, images: Tensor, source: Tensor | None) -> list[Tensor]:
        """Evenly chosen frames, at whole places by rounding as in the package's reader of files."""
        total = images.shape[1]
        places = torch.linspace(0, total - 1, min(total, self.frames)).round().long()
        return [self.preprocess.video(images[:, places.to(images.device)])]

    def trial_image(self) -> Tensor:
        """A gray video (1, frames, 3, h, w)."""
        return super().trial_image()[:, None].expand(-1, self.frames, -1, -1, -1)

    def criteria(self, values: Tensor) -> Tensor:
        """The head's outputs (N, 3, outputs) -> the three criteria (N, 3), normalised.

        Three outputs are one for each mark; a single output is read at each mark.
        """
        raw = (
            values.diagonal(dim1=1, dim2=2) if values.shape[-1] == len(CRITERIA) else values[..., 0]
        )
        mean, std = (torch.tensor(v, device=raw.device) for v in (self.mean, self.std))
        return (raw - mean) / std

    def read(self, values: Sequence[Tensor]) -> Tensor:
        return self.criteria(values[0]).sum(-1)


def _settings(source: str) -> dict[str, Any]:
    """VideoAlign's settings beside weights on disk; none for other weights."""
    path = Path(source).expanduser()
    path = (path.parent if path.is_file() else path) / SETTINGS
    return dict(read_object(path, what="VideoAlign's settings")) if path.is_file() else {}
