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


def test_defaults_are_those_of_a_denoiser_without_the_ability(plain: MixtureDenoiser) -> None:
    assert plain.has_path
    assert (plain.offloaded, plain.previews, plain.gradient_checkpointing) == (False, False, False)
    assert (plain.preview_flops(), plain.setting(), list(plain.parameters())) == (0.0, (), [])
    assert (plain.drafts, plain.draft_calls, plain.passes_per_draft, plain.draft_flops()) == (False, 0, 0, 0.0)
    plain.memo["a",] = 1
    assert not plain.memo
    plain.check_differentiable("denoiser")
    with pytest.raises(ValueError, match="MixtureDenoiser has no preview VAE"):
        plain.preview(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="MixtureDenoiser has no drafter"):
        plain.draft(torch.zeros(1, 3), torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long), 1)


def test_what_it_cannot_do_is_refused_before_a_search(plain: MixtureDenoiser) -> None:
    with pytest.raises(ValueError, match=r"MixtureDenoiser has no preview VAE; set pipe\.preview_vae"):
        LiveEngine(plain, [lit], EngineOptions(preview=True))


def test_a_denoiser_must_define_what_every_search_needs() -> None:
    class Half(Denoiser):
        def encode(self, prompts: Any) -> None: ...

    with pytest.raises(TypeError, match="abstract"):
        Half()  # type: ignore[abstract]
