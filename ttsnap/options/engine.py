"""What an engine is told beside the sampler: how large its batches are, and what it hands to listeners."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ttsnap.files.settings import Count, Settings
from ttsnap.options.option import option, values


@dataclass(frozen=True)
class BatchOptions(Settings):
    """How much runs at once, which decides speed and memory; results differ by it in the last digits only. And how
    much of a video is scored, on which scores, and so results, do depend.

    Raises ValueError for sizes below 1.
    """

    batch_size: Count | None = option(
        None,
        "most candidates per denoiser call",
        unset="as many as fit into the GPU's memory, 16 without one",
        metavar="N",
    )
    decode_batch_size: Count | None = option(
        None,
        "most images per decode",
        unset="as many as fit into the GPU's memory, the batch size without one",
        metavar="N",
    )
    gradient_batch_size: Count | None = option(
        None,
        "most candidates per call that takes a gradient",
        unset="as many as fit into the GPU's memory, the batch size without one",
        metavar="N",
        recorded=False,
    )
    frames: Count = option(
        4,
        "frames of a video, chosen evenly, that a reward of images sees; the score is their mean",
        python="Each frame is a reward call. Rewards that need videos get all frames, in one call.",
        metavar="N",
    )


@dataclass(frozen=True)
class EngineOptions(BatchOptions):
    """All that an engine is told beside the denoiser, the rewards and the sampler."""

    keep: Sequence[str] = option(
        (), 'what to hand to listeners beside the decoded estimates: "latents", or nothing', written=None
    )
    padded: bool = option(
        False,
        "fill batches up to a few sizes, so that a compiled network is not compiled for every size",
        written=None,
    )
    preview: bool = option(False, "decode unfinished estimates with the denoiser's preview VAE", written=None)
    fair: bool = option(
        False,
        "let prompts take turns in the batches, so that one with a large budget does not keep others waiting",
        python="By default rows run in the order in which they came.",
        written=None,
    )

    @classmethod
    def of(cls, batches: BatchOptions, keep: Sequence[str] = ()) -> EngineOptions:
        """Those of batches, which hand `keep` to listeners."""
        return cls(**values(batches), keep=keep)
