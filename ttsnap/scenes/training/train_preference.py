"""Train a preference LoRA of the embedded model by Diffusion-DPO (docs/embedded_model.md).

``python -m ttsnap.scenes.training.train_preference --out FOLDER``

A reward chooses the best and the worst of a few pictures of each training caption, and the LoRA learns to prefer the
one to the other: Diffusion-DPO (arXiv 2311.12908, eq. 14), where the velocity takes the place of the noise. Other
captions tell when to stop: what single pictures get from the reward, and beside it what the exact checker says, which
shows where the reward is fooled. `pipe.load_lora_weights(FOLDER)` and `ttsnap generate --lora FOLDER` read the LoRA.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from diffusers import DiffusionPipeline
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from ttsnap.rewards.registry import make_rewards
from ttsnap.scenes.training.generator import sample_sigma
from ttsnap.scenes.training.preference_data import Pairs, load_pairs, sample, score, split
from ttsnap.scenes.weights_folder import defaults, weights_path

RECIPE = Path(__file__).with_name("preference_recipe.yaml")
CHECKS = ("scenes", "scenes-strict")
_VALIDATION_SEED = 900_000_000
"""Far from the seeds of the pairs."""


def preference_loss(tuned: Tensor, frozen: Tensor, beta: float) -> Tensor:
    """Diffusion-DPO (arXiv 2311.12908, eq. 14): -log sigmoid(beta * lead of the preferred picture), mean over pairs.

    A picture's implicit reward is how much smaller the tuned model's squared error is than the frozen one's.

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
    transformer: Any, latents: Tensor, sigma: Tensor, noise: Tensor, text: tuple[Tensor, Tensor]
) -> Tensor:
    """Mean squared velocity errors of preferred and rejected latents at the same noise and time, shape (2, B).

    Args:
        transformer: of a flow on the straight path x = (1 - sigma) x0 + sigma noise, velocity noise - x0.
        latents: shape (2, B, C, h, w).
        sigma: shape (B,), in (0, 1).
        noise: shape (B, C, h, w).
        text: token embeddings (B, L, D) and pooled ones (B, D).
    """
    level = sigma.view(-1, 1, 1, 1)
    x = ((1 - level) * latents + level * noise).flatten(0, 1)
    tokens, pooled = (part.repeat(2, *[1] * (part.ndim - 1)) for part in text)
    velocity = transformer(x, tokens, pooled, 1000 * sigma.repeat(2)).sample
    errors: Tensor = (
        (velocity.to(x.dtype) - (noise - latents).flatten(0, 1)).square().mean((1, 2, 3)).unflatten(0, (2, -1))
    )
    return errors


def add_lora(transformer: Any, config: dict[str, Any]) -> list[nn.Parameter]:
    """Give the transformer a fresh adapter, which changes nothing yet; its weights, the only ones that train."""
    transformer.requires_grad_(False)
    transformer.add_adapter(
        LoraConfig(r=config["rank"], lora_alpha=config["alpha"], target_modules=list(config["modules"]))
    )
    return [p for p in transformer.parameters() if p.requires_grad]


def train(
    config: dict[str, Any], pipe: Any, pairs: Pairs, validate: Callable[[], dict[str, float]]
) -> list[dict[str, float]]:
    """Train an adapter of `pipe.transformer`, and leave it there as it was when `validate` gave its first number best.

    Returns what was measured before the first step and every `validation.every` steps: `step`, `loss` and `right` (the
    share of pairs in the right order), means since the time before, and what `validate` gave.
    """
    torch.manual_seed(config["seed"])
    dice = torch.Generator().manual_seed(config["seed"])
    net = pipe.transformer
    weights = add_lora(net, config["lora"])
    optimizer = torch.optim.AdamW(weights, config["lr"], (0.9, 0.99), weight_decay=config["weight_decay"])
    text = encode(pipe, pairs.prompts)
    every, patience = config["validation"]["every"], config["validation"]["patience"]
    history: list[dict[str, float]] = [{"step": 0, **validate()}]
    best: dict[str, Tensor] = {}
    since = 0
    chosen = next(iter(name for name in history[0] if name != "step"))
    told: list[tuple[float, float]] = []
    bar = tqdm(range(1, config["steps"] + 1), desc="preference", unit="step")
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = config["lr"] * min(1.0, step / config["warmup"])
        rows = torch.randint(len(pairs), (config["batch"],), generator=dice)
        sigma = sample_sigma(config["batch"], config["sigma"], dice)
        noise = torch.randn(config["batch"], *pairs.latents.shape[2:], generator=dice)
        given = pairs.latents[:, rows], sigma, noise, (text[0][rows], text[1][rows])
        # The CPU's fused attention takes longer backward than the plain one.
        with torch.autocast("cpu", torch.bfloat16, enabled=config["bf16"]), sdpa_kernel(SDPBackend.MATH):
            net.disable_adapters()
            with torch.no_grad():
                frozen = squared_errors(net, *given)
            net.enable_adapters()
            tuned = squared_errors(net, *given)
        loss = preference_loss(tuned, frozen, config["beta"])
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        lead = (frozen - tuned)[0] - (frozen - tuned)[1]
        told.append((loss.item(), (lead > 0).float().mean().item()))
        if step % every and step < config["steps"]:
            continue
        mean = torch.tensor(told).mean(0).tolist()
        told = []
        history.append({"step": step, "loss": mean[0], "right": mean[1], **validate()})
        bar.set_postfix({k: f"{v:.3f}" for k, v in history[-1].items() if k != "step"})
        since += 1
        if not best or history[-1][chosen] > max(h[chosen] for h in history[1:-1]):
            best, since = {k: v.detach().clone() for k, v in get_peft_model_state_dict(net).items()}, 0
        if since >= patience:
            break
    bar.close()
    set_peft_model_state_dict(net, best)
    return history


@torch.no_grad()
def encode(pipe: Any, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Token embeddings (N, L, D) and pooled ones (N, D), as the stock call makes them."""
    length = defaults()["max_sequence_length"]
    tokens, _, pooled, _ = pipe.encode_prompt(
        list(prompts), None, None, do_classifier_free_guidance=False, max_sequence_length=length
    )
    return tokens, pooled


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


def validation(pipe: Any, prompts: Sequence[str], rewards: Sequence[Any], config: dict[str, Any]) -> dict[str, float]:
    """The mean of each reward over single pictures of `prompts`, from the same seeds every time."""
    seeds, steps = config["validation"]["seeds"], config["validation"]["steps"]
    latents = sample(pipe, prompts, seeds, _VALIDATION_SEED, bf16=config["bf16"], steps=steps)
    return {name: values.mean().item() for name, values in score(pipe, latents, prompts, rewards).items()}


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m ttsnap.scenes.training.train_preference",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, default=RECIPE)
    parser.add_argument("--out", type=Path, required=True, help="folder for the pairs, the LoRA and metrics.json")
    parser.add_argument("--reward", default="scenes-learned", help="what prefers, as `ttsnap generate --reward`")
    parser.add_argument("--seed", type=int, help="in place of the recipe's")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    config = yaml.safe_load(args.config.read_text())
    config["seed"] = config["seed"] if args.seed is None else args.seed
    rewards = make_rewards([args.reward, *(name for name in CHECKS if name != args.reward)])
    args.out.mkdir(parents=True, exist_ok=True)
    pipe: Any = DiffusionPipeline.from_pretrained(weights_path())
    pipe.set_progress_bar_config(disable=True)
    began = time.perf_counter()
    training, others = split(config["data"]["prompts"], config["data"]["validation"], config["seed"])
    pairs = load_pairs(pipe, training, rewards[0], config, args.out / "pairs.pt")
    made = time.perf_counter()
    history = train(config, pipe, pairs, lambda: validation(pipe, others, rewards, config))
    save(pipe, args.out)
    seconds = {"pairs": made - began, "training": time.perf_counter() - made}
    name = rewards[0].name
    best = max(history[1:], key=lambda h: h[name])
    metrics = {
        "reward": name,
        "pairs": len(pairs),
        "best_step": best["step"],
        "history": history,
        "seconds": seconds,
        "config": config,
    }
    (args.out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    print(table(history))
    if best[name] <= history[0][name]:
        print(f"warning: no step had a better mean {name} than the model as it is")
    took = f"{len(pairs)} pairs in {seconds['pairs']:.0f} s, trained in {seconds['training']:.0f} s"
    print(f"{took}; wrote step {best['step']} to {args.out}")


def table(history: Sequence[dict[str, float]]) -> str:
    """Markdown, a line for each time that was measured."""
    names = list(history[-1])
    lines = ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    for row in history:
        cells = [f"{row[k]:.3f}" if k in row else "" for k in names[1:]]
        lines.append(f"| {row['step']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
