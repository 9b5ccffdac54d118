"""Trajectories on disk: safetensors files of some hundreds each, whole or absent, that know what made them."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from ttsnap.files import reading as files
from ttsnap.files.settings import Json, check
from ttsnap.files.writing import write_whole

FORMAT = 1


@dataclass(frozen=True)
class TrajectoryShard:
    """N trajectories: their prompts, the first one's seed (the others follow), and in float16 states (N, S, ...) at
    grid steps 0..S-1, in the sampler's own scaling, and ends (N, ...)."""

    prompts: Sequence[str]
    first_seed: int
    states: Tensor
    ends: Tensor


def path_of(folder: Path, number: int, size: int) -> Path:
    """The file of a shard; its name tells which trajectories it holds, the last one included."""
    return folder / f"trajectories-{number * size:07d}-{(number + 1) * size - 1:07d}.safetensors"


def digest(settings: Mapping[str, Json]) -> str:
    """Of all that trajectories depend on."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def write(path: Path, shard: TrajectoryShard, settings: Mapping[str, Json]) -> None:
    """Write a shard, whole or not at all. ValueError for numbers that are not finite; OSError on a full disk."""
    tensors = {"states": shard.states.contiguous(), "ends": shard.ends.contiguous()}
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise ValueError(f"trajectories from seed {shard.first_seed} on have numbers that are not finite in float16; "
                         "give the model another --dtype, as float32, or a lower guidance")  # fmt: skip
    about = {
        "format": FORMAT,
        "digest": digest(settings),
        "first_seed": shard.first_seed,
        "prompts": list(shard.prompts),
        "crc32": _checksum(shard.states, shard.ends),
    }
    data = save(tensors, {"trajectories": json.dumps(about)})
    write_whole(path, lambda file: file.write(data))


def read(path: Path, settings: Mapping[str, Json]) -> TrajectoryShard:
    """A shard. ValueError where it is missing, damaged, or was made with other settings."""
    tensors, metadata = files.read_tensors(path, "file of trajectories")
    about = files.parse_object(metadata.get("trajectories", ""), path)
    try:
        if check("format", about["format"], int) != FORMAT:
            raise ValueError(f"its format is {about['format']}, this version of ttsnap reads {FORMAT}")
        if about["digest"] != digest(settings):
            raise ValueError(
                "it was made with other settings (model, dtype, call, prompts or trajectories.*); use the same to go "
                "on with it, or choose another folder"
            )
        prompts = check("prompts", about["prompts"], tuple[str, ...])
        first, crc = check("first_seed", about["first_seed"], int), check("crc32", about["crc32"], int)
        states, ends = (_half(tensors, name) for name in ("states", "ends"))
        if len(states) != len(prompts) or len(ends) != len(prompts) or states.shape[2:] != ends.shape[1:]:
            raise ValueError(
                f"it holds states {tuple(states.shape)} and ends {tuple(ends.shape)} of {len(prompts)} prompts"
            )
        if _checksum(states, ends) != crc:
            raise ValueError("its numbers are not those that were written")
    except (ValueError, KeyError, TypeError) as error:
        why = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"cannot use {path}: {why}. A file that is removed is made again") from None
    return TrajectoryShard(prompts, first, states, ends)


def _half(tensors: Mapping[str, files.Tensor], name: str) -> Tensor:
    array = tensors[name]
    if array.dtype != np.float16 or array.ndim < 2 or not np.isfinite(array).all():
        raise ValueError(f"its {name} must be finite float16 numbers, got {array.dtype} of shape {array.shape}")
    return torch.from_numpy(np.array(array))


def _checksum(states: Tensor, ends: Tensor) -> int:
    return zlib.crc32(ends.contiguous().numpy().tobytes(), zlib.crc32(states.contiguous().numpy().tobytes()))
