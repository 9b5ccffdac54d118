"""The reward tensors that were published with TTSnap (arXiv 2511.22242), as recordings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ttsnap.core.grid import Grid
from ttsnap.core.price import Price, Rates
from ttsnap.files.reading import Tensor
from ttsnap.recordings.replay import Recording

PUBLISHED = Price(Rates(nfe=9.9e12, reward_calls=1.2e12))
"""FLOPs per denoiser evaluation and per decode with its reward call, as published with the reward tensors."""


def recording_of(path: Path, tensors: Mapping[str, Tensor], which: str, price: Price) -> Recording:
    """Of a file of published reward tensors, whose layout `load_recording` tells.

    ValueError for another layout, and for `which` other than "base" and "noise_aware".
    """
    if which not in ("base", "noise_aware"):
        raise ValueError(f"scores must be base or noise_aware, got {which!r}")
    base, aware = tensors.get("base"), tensors.get("noise_aware")
    if base is None or aware is None or base.ndim != 3 or base.shape != aware.shape or not base.size:
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        raise ValueError(f"{path} is no recording: expected base and noise_aware, each (P, S, K), found {shapes}")
    base, aware = base.astype(float), aware.astype(float)
    estimates = base if which == "base" else np.where(np.isnan(aware), base, aware)
    prompts, _, steps = base.shape
    final = base[..., -1:]
    return Recording(
        prompts=tuple(f"prompt {i}" for i in range(prompts)),
        scores=np.concatenate([estimates[..., :-1], final, final], -1)[..., None],
        grid=Grid(tuple(np.linspace(1, 0, steps + 1).tolist())),
        reward_names=(path.stem,),
        price=price,
        info={"source": path.name, "scores": which},
    )
