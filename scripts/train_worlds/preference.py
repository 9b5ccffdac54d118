"""A preference LoRA of the embedded model, by Diffusion-DPO (arXiv 2311.12908) for a flow. None is packaged.

A reward chooses the best and the worst of a few pictures of each training caption, and the LoRA learns to prefer the
one to the other. Other captions tell when to stop: what single pictures get from the reward, and in addition what the
exact checker says, which shows where the reward is fooled. `pipe.load_lora_weights(FOLDER)` and
`ttsnap generate --lora FOLDER` read the LoRA.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from train_worlds.evaluate import load
from train_worlds.generator import encode_captions
from train_worlds.preference_pairs import Pairs, PreferenceData, load_pairs, sample, score, split
from train_worlds.recipes import NoiseLevels
from train_worlds.training import Trainer, sample_sigma
from ttsnap.files.settings import Count, Json, Natural, NotNegative, Positive, Settings, to_json
from ttsnap.files.writing import markdown, write_json
from ttsnap.reward_models.registry import make_rewards

CHECKS = ("scenes", "scenes-strict")
"""What is measured on the way besides the reward that prefers: the exact checker."""
_VALIDATION_SEED = 900_000_000
"""Far from the seeds of the pairs."""


@dataclass(frozen=True)
class Lora(Settings):
    """The adapter: its rank, its scale alpha / rank, and the layers of the transformer that get one."""

    rank: Count = 8
    alpha: Count = 8
    modules: tuple[str, ...] = (
        *("to_q", "to_k", "to_v", "to_out.0"),
        *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    )


@dataclass(frozen=True)
class Validation(Settings):
    """When to stop: every so many steps the captions' pictures are made again, from `seeds` seeds in `steps` steps.

    patience: checks without a better reward before training ends.
    """

    every: Count = 60
    seeds: Count = 2
    steps: Count = 10
    patience: Count = 3


@dataclass(frozen=True)
class Recipe(Settings):
    """How the LoRA is trained.

    bf16: bfloat16 autocast, a third faster on CPUs that have it.
    beta: how strongly the frozen model anchors the tuned one.
    batch: pairs in a step.
    sigma: noise levels, as the base model was trained.
    """

    seed: Natural = 0
    bf16: bool = True
    data: PreferenceData = PreferenceData()
    lora: Lora = Lora()
    beta: Positive = 50.0
    lr: Positive = 1.5e-3
    weight_decay: NotNegative = 0.0
    batch: Count = 8
    steps: Count = 180
    warmup: Count = 20
    sigma: NoiseLevels = NoiseLevels()
    validation: Validation = Validation()


def preference_loss(tuned: Tensor, frozen: Tensor, beta: float) -> Tensor:
    """Diffusion-DPO (arXiv 2311.12908, eq. 14): -log sigmoid(beta * lead of the preferred picture), mean over pairs.

    A picture's implicit reward is how much smaller the tuned model's squared error is than the frozen one's. The
    velocity takes the place of the noise.

    Args:
        tuned: squared errors at shared noise and time, shape (2, B), preferred pictures first; means over elements, as
            in the authors' code (whose `beta_dpo` is twice this beta).
        frozen: those of the model without the adapter, shape (2, B).
        beta: the anchor; a larger one lets the model move less.

    Returns:
        A scalar: log 2 where the tuned model is the frozen one.
    """
    reward = frozen - tuned
    return -nn.functional.logsigmoid(beta * (reward[0] - reward[1])).mean()


def squared_errors(
    transformer: Callable[..., Any], latents: Tensor, sigma: Tensor, noise: Tensor, text: tuple[Tensor, Tensor]
) -> Tensor:
    """Mean squared velocity errors of preferred and rejected latents at the same noise and time, shape (2, B).

    Args:
        transformer: of a flow on the straight path x = (1 - sigma) x0 + sigma noise; it predicts noise - x0.
        latents: shape (2, B, C, h, w).
        sigma: shape (B,), in (0, 1).
        noise: shape (B, C, h, w).
        text: token embeddings (B, L, D) and pooled ones (B, D).
    """
    level = sigma.view(-1, 1, 1, 1)
    x = ((1 - level) * latents + level * noise).flatten(0, 1)
    tokens, pooled = (part.repeat(2, *[1] * (part.ndim - 1)) for part in text)
    velocity = transformer(x, tokens, pooled, 1000 * sigma.repeat(2)).sample
    errors = (velocity.to(x.dtype) - (noise - latents).flatten(0, 1)).square().mean((1, 2, 3))
    by_picture: Tensor = errors.unflatten(0, (2, -1))
    return by_picture


def add_lora(transformer: Any, lora: Lora) -> list[nn.Parameter]:
    """Give the transformer a fresh adapter, which changes nothing yet; its weights, the only ones that train."""
    transformer.requires_grad_(False)
    transformer.add_adapter(LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=list(lora.modules)))
    return [p for p in transformer.parameters() if p.requires_grad]


class PreferenceTrainer(Trainer[Any]):
    """Trains an adapter of `pipe.transformer`.

    `history` holds what was measured before the first step and every `validation.every` steps: `step`, `loss` and
    `right` (the share of pairs in the right order), means since the time before, and what `validate` gave.

    Args:
        recipe: how it is trained.
        pipe: the base model.
        pairs: what to learn from.
        validate: measures the pipeline as it is; its first number says when to stop.
    """

    def __init__(self, recipe: Recipe, pipe: Any, pairs: Pairs, validate: Callable[[], dict[str, float]]) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.pairs, self.validate = recipe, pairs, validate
        self.dice = torch.Generator().manual_seed(recipe.seed)
        weights = add_lora(pipe.transformer, recipe.lora)
        adam = torch.optim.AdamW(weights, recipe.lr, (0.9, 0.99), weight_decay=recipe.weight_decay)
        super().__init__(pipe.transformer, [adam], steps=recipe.steps, warmup=recipe.warmup)
        self.text = encode_captions(pipe, list(pairs.prompts))
        before = validate()
        self.chosen = next(iter(before))
        self.history: list[dict[str, float]] = [{"step": 0, **before}]
        self.since: list[Tensor] = []
        self.best_at, self.best_weights = 0, dict[str, Tensor]()

    def loss(self) -> tuple[Tensor, dict[str, Tensor]]:
        recipe, latents = self.recipe, self.pairs.latents
        rows = torch.randint(latents.shape[1], (recipe.batch,), generator=self.dice)
        sigma = sample_sigma(recipe.batch, recipe.sigma, self.dice)
        noise = torch.randn(recipe.batch, *latents.shape[2:], generator=self.dice)
        given = latents[:, rows], sigma, noise, (self.text[0][rows], self.text[1][rows])
        # The CPU's fused attention takes longer backward than the plain one.
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bf16), sdpa_kernel(SDPBackend.MATH):
            self.net.disable_adapters()
            with torch.no_grad():
                frozen = squared_errors(self.net, *given)
            self.net.enable_adapters()
            tuned = squared_errors(self.net, *given)
        loss = preference_loss(tuned, frozen, recipe.beta)
        reward = (frozen - tuned).detach()
        figures = {"loss": loss, "right": (reward[0] > reward[1]).float().mean()}
        self.since.append(torch.stack([value.detach() for value in figures.values()]))
        return loss, figures

    def look(self) -> None:
        """Measure when it is time to, and stop where the last `patience` measurements were no better."""
        when = self.recipe.validation
        if self.step % when.every and self.step < self.steps:
            return
        loss, right = torch.stack(self.since).mean(0).tolist()
        self.since.clear()
        self.history.append({"step": self.step, "loss": loss, "right": right, **self.validate()})
        rewards = [measured[self.chosen] for measured in self.history]
        if not self.best_at or rewards[-1] > rewards[self.best_at]:
            self.best_at = len(self.history) - 1
            self.best_weights = {k: v.detach().clone() for k, v in get_peft_model_state_dict(self.net).items()}
        if len(self.history) - 1 - self.best_at >= when.patience:
            self.steps = self.step

    def finish(self) -> None:
        """Put back the adapter as it was when the reward was highest, of what was measured after the first step."""
        set_peft_model_state_dict(self.net, self.best_weights)


def save(pipe: Any, folder: Path) -> None:
    """Write pytorch_lora_weights.safetensors, rounded to half precision, as `load_lora_weights` reads it."""
    net = pipe.transformer
    layers = {name: value.half() for name, value in get_peft_model_state_dict(net).items()}
    # What makes the scale other than 1; the rank is in the weights.
    names = ("r", "lora_alpha", "target_modules")
    config = {name: value for name, value in net.peft_config["default"].to_dict().items() if name in names}
    config["target_modules"] = sorted(config["target_modules"])
    pipe.save_lora_weights(folder, transformer_lora_layers=layers, transformer_lora_adapter_metadata=config)
    for written in folder.glob("*.safetensors"):
        written.chmod(0o644)


def run(recipe: Recipe, out: Path, reward: str) -> None:
    """Make what is missing in `out`: the pairs, the LoRA and metrics.json. reward: the name of what prefers."""
    rewards = make_rewards([reward, *(name for name in CHECKS if name != reward)])
    name, pipe, began = rewards[0].name, load(), time.perf_counter()
    training, others = split(recipe.data.prompts, recipe.data.validation, recipe.seed)
    pairs = load_pairs(pipe, training, rewards[0], recipe.data, out / "pairs.pt", seed=recipe.seed, bf16=recipe.bf16)
    made = time.perf_counter()

    def validate() -> dict[str, float]:
        """The mean of each reward over single pictures, from the same seeds every time."""
        seeds, steps = recipe.validation.seeds, recipe.validation.steps
        latents = sample(pipe, others, seeds, _VALIDATION_SEED, bf16=recipe.bf16, steps=steps)
        return {name: values.mean().item() for name, values in score(pipe, latents, others, rewards).items()}

    trainer = PreferenceTrainer(recipe, pipe, pairs, validate)
    trainer.run("preference", look=trainer.look)
    trainer.finish()
    save(pipe, out)
    history, best = trainer.history, trainer.history[trainer.best_at]
    seconds = {"pairs": made - began, "training": time.perf_counter() - made}
    counts: dict[str, Json] = {"reward": name, "pairs": len(pairs.prompts), "best_step": best["step"]}
    write_json(out / "metrics.json", {**counts, "history": history, "seconds": seconds, "config": to_json(recipe)})
    rows = [[h["step"], *(f"{h[k]:.3f}" if k in h else "" for k in history[-1] if k != "step")] for h in history]
    print(markdown(list(history[-1]), rows))
    if best[name] <= history[0][name]:
        print(f"warning: no step had a better mean {name} than the model as it is")
    took = f"{len(pairs.prompts)} pairs in {seconds['pairs']:.0f} s, trained in {seconds['training']:.0f} s"
    print(f"{took}; wrote step {best['step']} to {out}")
