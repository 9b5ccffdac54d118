"""What an engine is told beside the sampler: how large its batches are, and what it hands to listeners."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ttsnap.options.option import check_bounds, option


@dataclass(frozen=True)
class BatchOptions:
    """How much runs at once. It decides speed and memory; results differ by it in the last digits only.

    Raises ValueError for sizes below 1.
    """

    batch_size: int | None = option(
        None,
        "most candidates per denoiser call",
        unset="as many as fit into the GPU's memory, 16 without one",
        written=int | None,
        metavar="N",
        least=1,
    )
    decode_batch_size: int | None = option(
        None,
        "most images per decode",
        unset="as many as fit into the GPU's memory, the batch size without one",
        written=int | None,
        metavar="N",
        least=1,
    )
    gradient_batch_size: int | None = option(
        None,
        "most candidates per call that takes a gradient",
        unset="as many as fit into the GPU's memory, the batch size without one",
        written=int | None,
        metavar="N",
        least=1,
        recorded=False,
    )

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True)
class CaptureOptions:
    """What an engine hands to listeners beside the decoded estimates."""

    keep: Sequence[str] = option((), 'what to hand over: "latents", "features", or both')
    features_block: int | None = option(
        None, "the transformer block of the denoiser whose hidden states the features are"
    )
