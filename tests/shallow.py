"""The embedded model in a quarter of the time, for tests that do not mind what its images look
like."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import diffusers
import pytest


@contextmanager
def shallow() -> Iterator[None]:
    """Transformers of Stable Diffusion 3 that are loaded in here, in this process, run the last of
    their blocks alone. The others stay, so that drafts and adapters fit, and hand on what they are
    given."""
    whole = diffusers.SD3Transformer2DModel.from_pretrained

    def loaded(*args: Any, **kwargs: Any) -> Any:
        network = whole(*args, **kwargs)
        for block in network.transformer_blocks[:-1]:
            block.forward = _handed_on
        return network

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diffusers.SD3Transformer2DModel, "from_pretrained", loaded)
        yield


def _handed_on(hidden_states: Any, encoder_hidden_states: Any, **kwargs: Any) -> Any:
    return encoder_hidden_states, hidden_states
