"""What a denoiser that says nothing of it can do, and that a search is refused what it cannot."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ttsnap.engine.live import LiveEngine
from ttsnap.options.engine import EngineOptions
from ttsnap.sampling.denoiser import Denoiser
from ttsnap.sampling.mixture import MixtureDenoiser


def lit(images: Any, prompts: Any) -> Any:
    return images.mean((1, 2, 3))


@pytest.fixture
def plain() -> MixtureDenoiser:
    return MixtureDenoiser(torch.zeros(1, 3), torch.ones(1), torch.ones(1), steps=4)


def test_what_it_cannot_do_is_refused_before_a_search(plain: MixtureDenoiser) -> None:
    with pytest.raises(ValueError, match=r"MixtureDenoiser has no preview VAE; set pipe\.preview_vae"):
        LiveEngine(plain, [lit], EngineOptions(preview=True))


def test_a_denoiser_must_define_what_every_search_needs() -> None:
    class Half(Denoiser):
        def encode(self, prompts: Any) -> None: ...

    with pytest.raises(TypeError, match="abstract"):
        Half()  # type: ignore[abstract]
