"""What rows are denoised under: the state of the loop for each prompt and seed, and the states of a batch as one."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Self

import torch
from diffusers.image_processor import VaeImageProcessor
from torch import Tensor

from ttsnap.core.prompt import Prompt
from ttsnap.pipelines.memory.flops import values_on_meta
from ttsnap.pipelines.modular.blocks import CallState

Rule = Callable[[Sequence[Any]], Any]
"""How one field of the states of several rows becomes that of a batch."""
KEPT = 512
"""How many states of seeds are kept. Others are made again when their rows run."""


class Encoded(NamedTuple):
    """What was made of a prompt."""

    prompt: Prompt
    begun: CallState
    """After the blocks that run once for a prompt."""
    ready: dict[str, Any]
    """Of the loop, with any seed."""
    source: Tensor | None
    """The image (1, 3, h, w) that it edits."""


class Conditions:
    """The states of a loop by number: first those of the prompts, with any seed, then those of (prompt, seed)."""

    def __init__(self, make: Callable[[CallState, int], dict[str, Any]]) -> None:
        """make: the state of the loop, of what was begun for a prompt and of a seed."""
        self.prompts: list[Encoded] = []
        self._make = make
        self._states: OrderedDict[tuple[int, int], dict[str, Any]] = OrderedDict()
        self._pairs: list[tuple[int, int]] = []
        self._numbers: dict[tuple[int, int], int] = {}

    def hold(self, prompts: Sequence[Encoded]) -> None:
        """Number these prompts anew. States of seeds are kept for the prompts that were there before."""
        held = {id(each) for each in prompts}
        self._states = OrderedDict((key, state) for key, state in self._states.items() if key[0] in held)
        self.prompts, self._pairs, self._numbers = list(prompts), [], {}

    def number(self, prompt: int, seed: int) -> int:
        """That of a prompt and a seed, whose state is there afterwards."""
        encoded, pair = self.prompts[prompt], (prompt, seed)
        key = (id(encoded), seed)
        if key not in self._states:
            self._states[key] = self._make(encoded.begun, seed)
        self._states.move_to_end(key)
        if len(self._states) > KEPT:
            self._states.popitem(last=False)
        if pair not in self._numbers:
            self._numbers[pair] = len(self.prompts) + len(self._pairs)
            self._pairs.append(pair)
        return self._numbers[pair]

    def encoded(self, cond: Tensor) -> list[Encoded]:
        """The prompts of these numbers (N,)."""
        n = len(self.prompts)
        return [self.prompts[i if i < n else self._pairs[i - n][0]] for i in cond.tolist()]

    def rows(self, cond: Tensor) -> list[dict[str, Any]]:
        """The states of these numbers (N,)."""
        n = len(self.prompts)
        return [
            encoded.ready if i < n else self._states[id(encoded), self._pairs[i - n][1]]
            for i, encoded in zip(cond.tolist(), self.encoded(cond), strict=True)
        ]

    def on_meta(self) -> Self:
        """The same with all tensors on the meta device."""
        twin = copy.copy(self)
        twin.prompts = [each._replace(ready=values_on_meta(each.ready)) for each in self.prompts]
        twin._states = OrderedDict()
        return twin

    def column(self, name: str, cond: Tensor) -> Tensor:
        """One field (N, ...) of these numbers (N,)."""
        return torch.cat([row[name] for row in self.rows(cond)])

    def held(self, x: Tensor, cond: Tensor) -> Tensor:
        """Latents x (N, S, C), tokens of frames and perhaps of sound, with the image as their first frame."""
        mask = self.column("conditioning_mask", cond)
        first = torch.nn.functional.pad(mask, (0, x.shape[1] - mask.shape[1]))[..., None] > 0
        return torch.where(first, self.column("latents", cond).to(x.dtype), x)

    def inside(self, x: Tensor, cond: Tensor, noised: Callable[[Tensor], Tensor] = lambda image: image) -> Tensor:
        """Latents x (N, ...) inside the mask; outside those of the image, `noised` to their level."""
        mask, outside = self.column("mask", cond), noised(self.column("image_latents", cond))
        return ((1 - mask) * outside + mask * x).to(x.dtype)


def stack(rows: Sequence[Any]) -> Any:
    """Tensors (1, ...) as one (N, ...). Anything else must be alike in all rows, and is taken once."""
    first = rows[0]
    if not isinstance(first, Tensor) or first.dim() == 0:
        return alike(rows)
    return torch.cat(list(rows))


def alike(rows: Sequence[Any]) -> Any:
    """The first value, for what all rows share without a batch axis: ids of positions, numbers, names."""
    return rows[0]


def pad(rows: Sequence[Any]) -> Any:
    """Texts (1, L, D), or masks (1, L), of different lengths as one batch: shorter ones are padded with zeros."""
    if not isinstance(rows[0], Tensor):
        return alike(rows)
    longest = max(row.shape[1] for row in rows)
    return torch.cat([_padded(row, longest) for row in rows])


def joined(rows: Sequence[Any]) -> Any:
    """Lists with one entry a row, as one list."""
    return [entry for row in rows for entry in row] if isinstance(rows[0], list) else alike(rows)


def collated(rows: Sequence[Mapping[str, Any]], rules: Mapping[str, Rule]) -> dict[str, Any]:
    """The states of rows as one state: each field by its rule, or by `stack`; dicts field by field."""
    values = {}
    for name, first in rows[0].items():
        column = [row[name] for row in rows]
        values[name] = collated(column, rules) if isinstance(first, dict) else rules.get(name, stack)(column)
    return values


def taken(pipe: Any, call: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call as blocks take them.

    In calls of a classic LTX tensors are prepared as there; its blocks take them as they are.
    """
    image, sides = call.get("image"), (call.get("height"), call.get("width"))
    if isinstance(image, Tensor) and (pipe.classic or "").startswith("LTX"):
        return {**call, "image": pipe.video_processor.preprocess(image, *sides)}
    return dict(call)


def source_of(image: Any) -> Tensor:
    """The image that is edited, the first of several, as (1, 3, h, w) in [0, 1]."""
    first = image[0] if isinstance(image, list | tuple) else image
    made: Tensor = VaeImageProcessor(vae_scale_factor=1, do_normalize=False).preprocess(first)
    return made / 2 + 0.5 if made.min() < 0 else made


def _padded(row: Tensor, length: int) -> Tensor:
    missing = length - row.shape[1]
    return torch.cat([row, row.new_zeros(1, missing, *row.shape[2:])], dim=1) if missing else row
