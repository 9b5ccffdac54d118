"""Weights as the package holds them: in files that any loader reads, of which a wheel needs half.

A wheel is packed by deflate, to which random digits are incompressible. So digits that change no
figure are taken away: a matrix keeps its dtype and loses its last bits, or is stored in eight bits.
Vectors, which are few, stay float16.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from ttsnap.files.writing import sha256, write_text, write_whole
from ttsnap.reward_models.noise_aware.files import HEADER, TENSORS

FINENESS = 24
"""Steps of a rounded row in its root mean square. A network's output then changes about as much as
by computing in bfloat16."""

Store = Callable[[Tensor], Tensor]


def rounded(matrix: Tensor) -> Tensor:
    """The matrix (rows, ...) in float16, each row in whole steps of its own, a power of two."""
    rows = matrix.float().flatten(1)
    spread = rows.square().mean(1, keepdim=True).sqrt().clamp_min(2.0**-14)
    step = torch.exp2(torch.floor(torch.log2(spread / FINENESS)))
    return ((rows / step).round() * step).view_as(matrix).half()


def eight_bits(matrix: Tensor) -> Tensor:
    """The matrix in float8 (e4m3), for what itself changes another network only a little."""
    return matrix.to(torch.float8_e4m3fn)


def pack(folder: Path, store: Store = rounded) -> None:
    """Rewrite all weights in a folder. The header of a noise-aware reward follows them."""
    for path in sorted(folder.rglob("*.safetensors")):
        with safe_open(path, "pt") as file:
            about = file.metadata()
            given = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        tensors = {
            name: (store(value) if value.ndim > 1 else value.half()).contiguous()
            for name, value in given.items()
        }
        data = save(tensors, about)
        write_whole(path, lambda file, data=data: file.write(data))
        header = path.with_name(HEADER)
        if path.name == TENSORS and header.exists():
            told = json.loads(header.read_text()) | {"sha256": sha256(path)}
            write_text(header, json.dumps(told, indent=1))
