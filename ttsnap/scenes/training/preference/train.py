"""Trains a preference LoRA of the embedded model by Diffusion-DPO (docs/embedded_model.md).

A reward chooses the best and the worst of a few pictures of each training caption, and the LoRA learns to prefer the
one to the other (loss.py). Other captions tell when to stop: what single pictures get from the reward, and beside it
what the exact checker says, which shows where the reward is fooled. `pipe.load_lora_weights(FOLDER)` and
`ttsnap generate --lora FOLDER` read the LoRA.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers import StableDiffusion3Pipeline
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from ttsnap.core.protocols import Reward
from ttsnap.files.settings import to_json
from ttsnap.rewards.registry import make_rewards
from ttsnap.scenes.training.base.trainer import sample_sigma
from ttsnap.scenes.training.parts import Pipeline, Transformer
from ttsnap.scenes.training.preference.loss import preference_loss, squared_errors
from ttsnap.scenes.training.preference.pairs import Pairs, load_pairs, sample, score, split
from ttsnap.scenes.training.preference.recipe import Lora, PreferenceRecipe
from ttsnap.scenes.weights_folder import defaults, weights_path

CHECKS = ("scenes", "scenes-strict")
"""What is measured on the way besides the reward that prefers: the exact checker."""
_VALIDATION_SEED = 900_000_000
"""Far from the seeds of the pairs."""


def add_lora(transformer: Transformer, lora: Lora) -> list[nn.Parameter]:
    """Give the transformer a fresh adapter, which changes nothing yet; its weights, the only ones that train."""
    transformer.requires_grad_(False)
    transformer.add_adapter(LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=list(lora.modules)))
    return [p for p in transformer.parameters() if p.requires_grad]


@dataclass
class _Best:
    """The adapter as it was when the reward was highest, of what was measured after the first step."""

    reward: float = -math.inf
    weights: dict[str, Tensor] = field(default_factory=dict)
    since: int = 0

    def update(self, reward: float, net: nn.Module) -> None:
        self.since += 1
        if not self.weights or reward > self.reward:
            weights = {k: v.detach().clone() for k, v in get_peft_model_state_dict(net).items()}
            self.reward, self.weights, self.since = reward, weights, 0


def train(
    recipe: PreferenceRecipe, pipe: Pipeline, pairs: Pairs, validate: Callable[[], dict[str, float]]
) -> list[dict[str, float]]:
    """Train an adapter of `pipe.transformer`, and leave it there as it was when `validate` gave its first number best.

    Returns what was measured before the first step and every `validation.every` steps: `step`, `loss` and `right` (the
    share of pairs in the right order), means since the time before, and what `validate` gave.
    """
    torch.manual_seed(recipe.seed)
    dice = torch.Generator().manual_seed(recipe.seed)
    net = pipe.transformer
    weights = add_lora(net, recipe.lora)
    optimizer = torch.optim.AdamW(weights, recipe.lr, (0.9, 0.99), weight_decay=recipe.weight_decay)
    text = encode(pipe, pairs.prompts)
    before = validate()
    chosen = next(iter(before))
    history: list[dict[str, float]] = [{"step": 0, **before}]
    best, told = _Best(), list[tuple[float, float]]()
    bar = tqdm(range(1, recipe.steps + 1), desc="preference", unit="step")
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * min(1.0, step / recipe.warmup)
        tuned, frozen = _errors(recipe, net, pairs, text, dice)
        loss = preference_loss(tuned, frozen, recipe.beta)
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        lead = (frozen - tuned)[0] - (frozen - tuned)[1]
        told.append((loss.item(), (lead > 0).float().mean().item()))
        if step % recipe.validation.every and step < recipe.steps:
            continue
        mean = torch.tensor(told).mean(0).tolist()
        told.clear()
        history.append({"step": step, "loss": mean[0], "right": mean[1], **validate()})
        bar.set_postfix({k: f"{v:.3f}" for k, v in history[-1].items() if k != "step"})
        best.update(history[-1][chosen], net)
        if best.since >= recipe.validation.patience:
            break
    bar.close()
    set_peft_model_state_dict(net, best.weights)
    return history


def _errors(
    recipe: PreferenceRecipe,
    net: Transformer,
    pairs: Pairs,
    text: tuple[Tensor, Tensor],
    dice: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """`squared_errors` of the tuned network and of the frozen one, for a batch of pairs drawn by `dice`."""
    rows = torch.randint(len(pairs), (recipe.batch,), generator=dice)
    sigma = sample_sigma(recipe.batch, recipe.sigma, dice)
    noise = torch.randn(recipe.batch, *pairs.latents.shape[2:], generator=dice)
    given = pairs.latents[:, rows], sigma, noise, (text[0][rows], text[1][rows])
    # The CPU's fused attention takes longer backward than the plain one.
    with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bf16), sdpa_kernel(SDPBackend.MATH):
        net.disable_adapters()
        with torch.no_grad():
            frozen = squared_errors(net, *given)
        net.enable_adapters()
        tuned = squared_errors(net, *given)
    return tuned, frozen


@torch.no_grad()
def encode(pipe: Pipeline, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Token embeddings (N, L, D) and pooled ones (N, D), as the stock call makes them."""
    length = defaults()["max_sequence_length"]
    tokens, _, pooled, _ = pipe.encode_prompt(
        list(prompts), None, None, do_classifier_free_guidance=False, max_sequence_length=length
    )
    return tokens, pooled


def save(pipe: Pipeline, folder: Path) -> None:
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


def validation(
    pipe: Pipeline, prompts: Sequence[str], rewards: Sequence[Reward], recipe: PreferenceRecipe
) -> dict[str, float]:
    """The mean of each reward over single pictures of `prompts`, from the same seeds every time."""
    seeds, steps = recipe.validation.seeds, recipe.validation.steps
    latents = sample(pipe, prompts, seeds, _VALIDATION_SEED, bf16=recipe.bf16, steps=steps)
    return {name: values.mean().item() for name, values in score(pipe, latents, prompts, rewards).items()}


def table(history: Sequence[dict[str, float]]) -> str:
    """Markdown, a line for each time that was measured."""
    names = list(history[-1])
    lines = ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    for row in history:
        cells = [f"{row[k]:.3f}" if k in row else "" for k in names[1:]]
        lines.append(f"| {row['step']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def run(recipe: PreferenceRecipe, reward: str, out: Path) -> None:
    """Make what is missing in `out`: the pairs, the LoRA and metrics.json. reward: the name of what prefers."""
    rewards = make_rewards([reward, *(name for name in CHECKS if name != reward)])
    out.mkdir(parents=True, exist_ok=True)
    pipe = StableDiffusion3Pipeline.from_pretrained(weights_path())
    pipe.set_progress_bar_config(disable=True)
    began = time.perf_counter()
    training, others = split(recipe.data.prompts, recipe.data.validation, recipe.seed)
    pairs = load_pairs(pipe, training, rewards[0], recipe, out / "pairs.pt")
    made = time.perf_counter()
    history = train(recipe, pipe, pairs, lambda: validation(pipe, others, rewards, recipe))
    save(pipe, out)
    seconds = {"pairs": made - began, "training": time.perf_counter() - made}
    name = rewards[0].name
    best = max(history[1:], key=lambda h: h[name])
    metrics = {
        "reward": name,
        "pairs": len(pairs),
        "best_step": best["step"],
        "history": history,
        "seconds": seconds,
        "config": to_json(recipe),
    }
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    print(table(history))
    if best[name] <= history[0][name]:
        print(f"warning: no step had a better mean {name} than the model as it is")
    took = f"{len(pairs)} pairs in {seconds['pairs']:.0f} s, trained in {seconds['training']:.0f} s"
    print(f"{took}; wrote step {best['step']} to {out}")
