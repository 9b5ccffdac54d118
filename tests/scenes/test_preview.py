"""The preview VAE of the embedded model: its files and training, how near it comes, and what the ledger says of it."""

from __future__ import annotations

import dataclasses
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from diffusers import AutoencoderTiny, DiffusionPipeline
from ttsnap.pipelines import defaults, load

from ttsnap import Budget, search
from ttsnap.algorithms.keep_all import KeepAll
from ttsnap.algorithms.seed_pruning import SeedPruning
from ttsnap.engine.live import LiveEngine
from ttsnap.files.settings import to_json
from ttsnap.options.engine import EngineOptions
from ttsnap.rewards.registry import make_reward
from ttsnap.scenes import parse, render, sample_prompts, weights_path
from ttsnap.scenes.preview_files import preview_vae, save_preview
from ttsnap.scenes.training.__main__ import main
from ttsnap.scenes.training.base.vae import encode
from ttsnap.scenes.training.preview.recipe import PreviewData, PreviewRecipe, PreviewSize
from ttsnap.scenes.training.preview.train import decoded, estimates, mixtures, rendered, train

BOUND, BOUND_BLURRED = 0.09, 0.17
"""Of the mean absolute difference: .062 and .123 measured; each picture's mean colour is .319 and .286 away."""
CALL = {**defaults(), "num_inference_steps": 6}
HELD_OUT = sample_prompts(32, 4)


@pytest.fixture(scope="module")
def stock() -> Any:
    loaded: Any = DiffusionPipeline.from_pretrained(weights_path())
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.fixture(scope="module")
def trained(stock: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe's network, trained for seconds on renders and mixtures alone."""
    rows = rendered(stock.vae, PreviewData(clean=400, mixtures=140), np.random.default_rng(0))
    folder = tmp_path_factory.mktemp("preview")
    save_preview(train(PreviewRecipe(steps=180, batch=32, ema=0.98), rows, decoded(stock.vae, rows)), folder)
    return folder


@pytest.fixture(scope="module")
def pipe(trained: Path) -> Any:
    loaded = load()
    loaded.preview_vae = preview_vae(trained)
    return loaded


@pytest.fixture(scope="module")
def latents(pipe: Any) -> torch.Tensor:
    """The denoiser's latents of renders of held-out captions."""
    images = np.rint(render([parse(text) for text in HELD_OUT], np.random.default_rng(0)) * 255).astype(np.uint8)
    config = pipe.vae.config
    return (encode(pipe.vae, images, torch.device("cpu")).float() - config.shift_factor) * config.scaling_factor


def test_it_is_small_and_readable(pipe: Any, trained: Path) -> None:
    assert isinstance(pipe.preview_vae, AutoencoderTiny)
    assert sum(file.stat().st_size for file in trained.iterdir()) < 300_000
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o644 for file in trained.iterdir())


def test_a_folder_without_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no preview VAE at"):
        preview_vae(tmp_path)


@torch.no_grad()
def test_it_comes_near_the_real_decode(pipe: Any, latents: torch.Tensor) -> None:
    denoiser = pipe.denoiser(**CALL)
    denoiser.encode(HELD_OUT[:1])
    seen, real = denoiser.preview(latents), denoiser.decode(latents)
    assert seen.shape == real.shape == (len(latents), 3, 32, 32)
    assert seen.dtype == torch.float32
    assert seen.min() >= 0
    assert seen.max() <= 1
    assert (seen - real).abs().mean() < BOUND
    # Early estimates are blurred: so are means of latents.
    blurred = mixtures(latents, 32, 6, np.random.default_rng(1))
    assert (denoiser.preview(blurred) - denoiser.decode(blurred)).abs().mean() < BOUND_BLURRED


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
    results = search(
        HELD_OUT[:2], SeedPruning(n=5, keep=(0.6, 0.6), steps=(1, 3)), engine, budget, on_event=events.append
    )
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


def test_estimates_are_those_of_a_search(stock: Any) -> None:
    found = estimates(stock, HELD_OUT[:2], 1, batch=2).unflatten(0, (-1, 2))
    engine = LiveEngine(load().denoiser(**defaults()), [make_reward("scenes")], EngineOptions(2, keep=["latents"]))
    kept: dict[tuple[int, int], torch.Tensor] = {}

    def listen(event: Any) -> None:
        if event.kind == "score":
            kept[event.job, event.step] = event.kept["latent"]

    for job, prompt in enumerate(HELD_OUT[:2]):  # one after the other: seed 0 and seed 1
        search(
            [prompt], KeepAll(1), engine, seed=job, on_event=lambda e, job=job: listen(dataclasses.replace(e, job=job))
        )
    for step in (0, 3, 10, 19):
        for job in range(2):
            torch.testing.assert_close(found[step, job], kept[job, step], atol=5e-3, rtol=1e-3)


def test_mixtures_are_means() -> None:
    rng = np.random.default_rng(0)
    same = mixtures(torch.ones(5, 2, 3, 3), 7, 4, rng)
    torch.testing.assert_close(same, torch.ones(7, 2, 3, 3))
    pure = torch.randn(500, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    assert mixtures(pure, 500, 6, rng).var() < 0.8 * pure.var()


SMALL = PreviewRecipe(
    model=PreviewSize(width=4, blocks=(1, 0, 0)),
    data=PreviewData(clean=24, mixtures=8, prompts=1, seeds=1),
    batch=8,
    steps=30,
    warmup=2,
    ema=0.8,
)


def test_training_learns_and_is_reproducible(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(32, 8, 8, 8, generator=generator)
    targets = latents[:, :3].repeat_interleave(4, 2).repeat_interleave(4, 3).tanh().half()
    first, again, hardly = (train(replace(SMALL, steps=n), latents, targets) for n in (60, 60, 3))
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))
    with torch.no_grad():
        error, before = ((vae.decode(latents).sample - targets.float()).square().mean() for vae in (first, hardly))
    assert error < 0.8 * before
    save_preview(first, tmp_path)
    for name, value in preview_vae(tmp_path).state_dict().items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, first.state_dict()[name], atol=1e-3, rtol=1e-3)


def test_the_command_trains(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(to_json(SMALL)))
    main(["preview", "--recipe", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "out")])
    stored = torch.load(tmp_path / "out" / "data.pt", weights_only=True)
    assert stored["latents"].shape == (24 + 8 + 20, 8, 8, 8)
    assert stored["targets"].shape == (24 + 8 + 20, 3, 32, 32)
    assert stored["targets"].abs().max() <= 1
    assert not preview_vae(tmp_path / "out" / "preview").encoder.layers[0].weight.any()
