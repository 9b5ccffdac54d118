"""What rows of a search are of: an encoded prompt or, where a seed changes more than noise, both.

conditions = Conditions([fox, hens])    # the stock calls of two prompts
conditions[1]                           # of the second, for any seed
conditions.number(1, seed=7)            # 2, from now on the second with what seed 7 draws
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ttsnap.pipelines.calls.stock_call import StockCall


class Condition(NamedTuple):
    """What a frame is begun for: frames of one condition differ in their latents alone."""

    stock: StockCall
    seed: int
    """By which it draws what else it draws; 0 where that changes nothing."""

    def key(self, index: int) -> tuple[int, int, int]:
        """Under which its frames wait that stand at this index."""
        return id(self.stock), self.seed, index


class Conditions:
    """Those of the prompts of a search, by their numbers: first the prompts, then what seeds add.

    by_seed: whether more than first latents differs from seed to seed.
    """

    def __init__(self, calls: Sequence[StockCall] = (), *, by_seed: bool = False) -> None:
        self._all = [Condition(call, 0) for call in calls]
        self._by_seed = by_seed
        self._numbers: dict[tuple[int, int], int] = {}

    def __getitem__(self, number: int) -> Condition:
        return self._all[number]

    def number(self, prompt: int, seed: int) -> int:
        """That of a prompt and a seed."""
        pair = prompt, seed
        if pair not in self._numbers:
            self._numbers[pair] = len(self._all)
            self._all.append(self._all[prompt]._replace(seed=seed))
        return self._numbers[pair]

    def followed(self, number: int) -> Condition:
        """What frames are begun for that follow rows of a condition from their latents on."""
        found = self._all[number]
        return found if self._by_seed else found._replace(seed=0)
