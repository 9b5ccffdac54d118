"""What the ledger of the embedded model says of a search that decodes its estimates by a preview VAE."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import AutoencoderTiny

from ttsnap import Budget, search
from ttsnap.algorithms.seed_pruning import SeedPruning
from ttsnap.engine.live import LiveEngine
from ttsnap.options.engine import EngineOptions
from ttsnap.pipelines import defaults, load
from ttsnap.reward_models.registry import make_reward
from ttsnap.scenes import sample_prompts

CALL = {**defaults(), "num_inference_steps": 6}
HELD_OUT = sample_prompts(2, 4)


@pytest.fixture
def pipe() -> Any:
    """With random weights of the size that was measured (docs/journal/preview_vae.md)."""
    loaded = load()
    torch.manual_seed(0)
    loaded.preview_vae = AutoencoderTiny(
        latent_channels=8, encoder_block_out_channels=(4, 4, 4), num_encoder_blocks=(0, 0, 0),
        decoder_block_out_channels=(16, 16, 16), num_decoder_blocks=(2, 1, 0), scaling_factor=1.0, shift_factor=0.0,
    ).eval()  # fmt: skip
    return loaded


def counting(vae: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of every decode by this VAE from now on."""
    rows: list[int] = []
    decode: Callable[..., Any] = vae.decode

    def counted(z: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        rows.append(len(z))
        return decode(z, *args, **kwargs)

    monkeypatch.setattr(vae, "decode", counted)
    return rows


def test_the_ledger_of_a_live_search(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    reward = make_reward("scenes-learned")
    engine = LiveEngine(pipe.denoiser(**CALL), [reward], EngineOptions(4, preview=True))
    flops = engine.price.flops  # counted before the counters are on
    assert engine.price.estimates == "preview"
    assert flops.previews < flops.decodes / 10
    real, seen = counting(pipe.vae, monkeypatch), counting(pipe.preview_vae, monkeypatch)
    events: list[Any] = []
    budget = Budget(flops=4 * (6 * flops.nfe + flops.decodes + flops.reward_calls))
    results = search(HELD_OUT, SeedPruning(n=5, keep=(0.6, 0.6), steps=(1, 3)), engine, budget, on_event=events.append)
    spent = [result.spent for result in results]
    assert [s.cost.previews for s in spent] == [5 + 3, 5 + 3]
    assert [s.cost.decodes for s in spent] == [2, 2]
    assert sum(s.cost.previews for s in spent) == sum(seen) == engine.stats["previews"]
    assert sum(s.cost.decodes for s in spent) == sum(real) == engine.stats["decodes"]
    scored = [event.step for event in events if event.kind == "score" for _ in event.uids]
    assert sum(step < 6 for step in scored) == sum(seen)
    assert sum(step == 6 for step in scored) == sum(real)
    for s in spent:
        assert s.flops_by["denoise"] == flops.nfe * s.nfe
        assert s.flops_by["decode"] == flops.decodes * s.cost.decodes + flops.previews * s.cost.previews
        assert s.flops_by["reward"] == flops.reward_calls * s.cost.reward_calls
        parts = s.flops_by["denoise"] + s.flops_by["decode"] + s.flops_by["reward"]
        assert s.flops == pytest.approx(parts, rel=1e-12)
        assert s.flops <= (budget.flops or 0)
    monkeypatch.undo()
    for result in results:  # the finished image is the real VAE's, and chosen by its score
        again = float(reward(result.best.image[None], [result.prompt], None)[0])
        assert again == pytest.approx(result.best.reward, abs=1e-4)
