"""The packaged draft: what it is told, that plain diffusers loads it, and that it knows where seeds end."""

from __future__ import annotations

import json

import torch
from diffusers import DiffusionPipeline
from safetensors import safe_open

from ttsnap.distill.draft.config import DraftConfig
from ttsnap.files.plain_yaml import load_settings
from ttsnap.pipelines import defaults, load
from ttsnap.pipelines.drafting.drafting import use_drafter
from ttsnap.sampling.drafts import TrainedFor, read_draft
from ttsnap.sampling.rng import seeded
from ttsnap.scenes import draft_path, sample_prompts, weights_path

WEIGHTS = "pytorch_lora_weights.safetensors"


def test_it_is_small_and_says_what_it_is_for() -> None:
    assert sum(path.stat().st_size for path in draft_path().iterdir()) < 3_000_000
    settings = read_draft(draft_path())
    assert settings.first_time == 0.87
    assert settings.trained_for == TrainedFor("embedded", 20, 4.0)
    (checked,) = [c for c in settings.checked if (c.model, c.steps, c.guidance_scale) == ("embedded", 20, 4.0)]
    assert checked.pays
    assert checked.figures["prompts"] >= 24
    assert "What it is not for" in (draft_path() / "README.md").read_text()
    with safe_open(draft_path() / WEIGHTS, "pt") as file:
        names = list(file.keys())
        assert {file.get_tensor(name).dtype for name in names} == {torch.bfloat16}
        assert json.loads(file.metadata()["lora_adapter_metadata"])["transformer.r"] == 32
    assert all(name.startswith("transformer.transformer_blocks.") for name in names)


def test_plain_diffusers_loads_it() -> None:
    pipe = DiffusionPipeline.from_pretrained(weights_path())
    pipe.set_progress_bar_config(disable=True)
    call = {**defaults(), "num_inference_steps": 1, "output_type": "latent"}

    def image() -> torch.Tensor:
        made: torch.Tensor = pipe("a red circle", generator=seeded(0), **call).images
        return made

    before = image()
    pipe.load_lora_weights(draft_path())
    assert float((image() - before).abs().mean()) > 0.05
    pipe.unload_lora_weights()
    assert torch.equal(image(), before)


def test_its_guesses_are_nearer_to_the_ends_than_x0_estimates_are() -> None:
    pipe, (prompt,) = load(), sample_prompts(1, 3)
    denoiser = pipe.denoiser(**defaults())
    use_drafter(denoiser, "embedded:2")
    assert (denoiser.drafts.calls, denoiser.drafts.doubt("embedded")) == (2, None)
    denoiser.encode([prompt])
    x, cond = denoiser.init_latents([seeded(i) for i in range(6)]), torch.zeros(6, dtype=torch.long)
    with torch.no_grad():
        guesses = [denoiser.drafts.guess(x, cond, cond, calls) for calls in (1, 2)]
        estimate = denoiser.predict(x, cond, cond).x0
        for step in range(denoiser.grid.steps):
            k = torch.full((6,), step)
            x = denoiser.kernel.step(x, denoiser.predict(x, k, cond), k, [(0, 0, 0)] * 6, [None] * 6)[0]
    first, second, blurred = (float((found - x).pow(2).mean()) for found in (*guesses, estimate))
    assert second < first < 0.6 * blurred


def test_its_recipe_can_be_read() -> None:
    config = load_settings(DraftConfig, draft_path().parent / "draft_recipe.yaml")
    assert config.trajectories.states == 5
    assert config.training.rank == 32
