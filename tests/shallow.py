"""The embedded model in a quarter of the time, for tests that do not mind what its images look
like; its files are read once in a process."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path

import diffusers
import pytest
from diffusers.models.attention import JointTransformerBlock

from tests.pickled import copier
from ttsnap.options.model import EMBEDDED
from ttsnap.pipelines import located

WEIGHTS = located(EMBEDDED)
COPIERS = {}
"""Of what was read, by the options of the call."""


@contextmanager
def shallow():
    """Transformers of Stable Diffusion 3 that are loaded in here, in this process, run the last of
    their blocks alone. The others stay, so that drafts and adapters fit, and hand on what they are
    given."""
    whole, read = (
        kind.from_pretrained
        for kind in (diffusers.SD3Transformer2DModel, diffusers.DiffusionPipeline)
    )

    def pipeline(where, **options):
        if Path(where) != WEIGHTS:
            return read(where, **options)
        asked = str(sorted(options.items()))
        if asked not in COPIERS:
            COPIERS[asked] = copier(read(where, **options))
        return COPIERS[asked]()

    def loaded(*args, **kwargs):
        network = whole(*args, **kwargs)
        for block in network.transformer_blocks[:-1]:
            block.__class__ = _HandsOn
        return network

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diffusers.SD3Transformer2DModel, "from_pretrained", loaded)
        patch.setattr(diffusers.DiffusionPipeline, "from_pretrained", pipeline)
        yield


class _HandsOn(JointTransformerBlock):  # type: ignore[misc]
    def forward(self, hidden_states, encoder_hidden_states, **kwargs):
        return encoder_hidden_states, hidden_states
