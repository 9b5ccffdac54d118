"""What an engine without a model says of itself, and that a part of one is none."""

from __future__ import annotations

from typing import Any

import pytest

from ttsnap.core.prompt import Prompt
from ttsnap.core.protocols import Engine


def test_an_engine_must_define_what_the_loop_calls() -> None:
    class Half(Engine):
        def pending(self) -> int:
            return 0

    with pytest.raises(TypeError, match="abstract"):
        Half()  # type: ignore[abstract]


def test_the_live_engine_says_its_batch_sizes_and_asks_its_rewards(engine: Any) -> None:
    class Picky:
        name = "picky"

        def __call__(self, images: Any, prompts: Any, level: Any) -> Any:
            return images.mean((1, 2, 3))

        def check(self, prompts: Any) -> None:
            if "" in prompts:
                raise ValueError("picky needs a prompt")

    mine = Picky()
    live = engine(rewards=[mine], batch_size=3)
    assert live.batch_sizes == {"batch_size": 3, "decode_batch_size": 3}
    assert live.rewards[0].given is mine
    live.check([Prompt("a")])
    live.start()
    with pytest.raises(ValueError, match="picky needs a prompt"):
        live.admit([Prompt("")])
