"""How a search runs: on which devices, by how many workers, in batches of which size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ttsnap.files.settings import Count, Settings
from ttsnap.options.option import Spec, option, values

_FITTING = "as many as fit into the GPU's memory, the batch size without one"
Kept = Literal["latents"]
"""What an engine hands to listeners beside the decoded estimates."""
_CLUSTER = ", as HOST:6379, or auto for the one that this machine belongs to"


@dataclass(frozen=True)
class BatchOptions(Settings):
    """Sizes of batches, which decide speed, memory, and the last digits of results; and how much of
    a video is scored.

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
        unset=_FITTING,
        metavar="N",
    )
    gradient_batch_size: Count | None = option(
        None,
        "most candidates per call that takes a gradient",
        unset=_FITTING,
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
    """The settings of an engine, except for the denoiser, the rewards and the sampler."""

    keep: Sequence[Kept] = option(
        (),
        'what to hand to listeners beside the decoded estimates: "latents", or nothing',
        written=None,
    )
    padded: bool = option(
        False,
        "fill batches up to a few sizes, so that a compiled network is not compiled for every size",
        written=None,
    )
    preview: bool = option(
        False, "decode unfinished estimates with the denoiser's preview VAE", written=None
    )
    fair: bool = option(
        False,
        "let prompts take turns in the batches, so that one with a large budget does not keep"
        " others waiting",
        python="By default rows run in the order in which they came.",
        written=None,
    )
    features: Spec = option(
        None,
        "take features of images, by which a search keeps some that differ; values as of likeness",
        written=None,
    )

    @classmethod
    def of(cls, batches: BatchOptions, keep: Sequence[Kept] = ()) -> EngineOptions:
        """The options of an engine with these batches, which hands `keep` to listeners."""
        return cls(**values(batches), keep=keep)


@dataclass(frozen=True)
class DeviceOptions(Settings):
    """The devices of one search. Results are the same but for the last digits.

    Raises ValueError for what is no number of devices.
    """

    devices: Count | Literal["all", "auto"] = option(
        1,
        "devices that search together, a model on each: a number, all (GPUs, or CPU cores where"
        " there is none), or auto (all GPUs where there are several)",
        shell="more than one takes Ray",
        metavar="N",
    )
    ray_address: str | None = option(
        None,
        f"the Ray cluster whose devices search{_CLUSTER}",
        unset="this machine alone",
        metavar="HOST:PORT",
        loads="address",
    )


@dataclass(frozen=True)
class WorkerOptions(Settings):
    """The processes that share the work of one command. Results are the same.

    Raises ValueError for fewer workers than one.
    """

    workers: Count = option(
        1,
        "processes that share the work, as many as there are CPU cores, or GPUs for a model",
        shell="what comes out is the same",
        metavar="N",
        common=True,
    )
    ray_address: str | None = option(
        None,
        f"the Ray cluster whose machines the workers run on{_CLUSTER}; all of them must see the"
        " folder --out",
        unset="this machine alone",
        metavar="HOST:PORT",
        loads="address",
    )
