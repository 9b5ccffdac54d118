"""Trains the text encoders and the transformer together, by flow matching with a reading task on the way.

The reading task: a small head on the image tokens of one block names the object (colour and shape) that the clean
picture has in that cell. It tells the network what its text is for long before the flow loss would, and is thrown
away afterwards.

Everything random in a step comes from a generator seeded with (seed, step), so a resumed run repeats the undisturbed
one exactly.
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import nn
from tqdm import tqdm
from transformers import CLIPTokenizer

from ttsnap.files.writing import write_whole
from ttsnap.scenes.render import NUM_LABELS
from ttsnap.scenes.training.base.attention import ZeroTokenAttention, zero_token_attention
from ttsnap.scenes.training.base.generator import Generator
from ttsnap.scenes.training.base.recipe import GeneratorRecipe, NoiseLevels


class Rates(Protocol):
    """What a recipe says of its optimisers and their learning rates (see `GeneratorRecipe`)."""

    @property
    def steps(self) -> int: ...
    @property
    def warmup(self) -> int: ...
    @property
    def decay_steps(self) -> int: ...
    @property
    def adam_lr(self) -> float: ...
    @property
    def muon_lr(self) -> float: ...
    @property
    def muon_ns_steps(self) -> int: ...
    @property
    def weight_decay(self) -> float: ...


def learning_rate(step: int, recipe: Rates) -> float:
    """Warm-up, constant, linear decay to zero over the last `decay_steps`; a factor in (0, 1]."""
    warm = (step + 1) / recipe.warmup
    left = (recipe.steps - step) / max(1, recipe.decay_steps)
    return max(0.0, min(1.0, warm, left))


def optimizers_of(named: Iterable[tuple[str, nn.Parameter]], recipe: Rates) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside blocks, AdamW for everything else."""
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, p in named:
        inner = p.ndim == 2 and ("transformer_blocks" in name or "layers" in name)
        (matrices if inner and "norm" not in name and recipe.muon_lr > 0 else rest).append(p)
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(rest, lr=recipe.adam_lr, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    ]
    if matrices:
        optimizers.append(
            torch.optim.Muon(
                matrices,
                lr=recipe.muon_lr,
                weight_decay=recipe.weight_decay,
                adjust_lr_fn="match_rms_adamw",
                ns_steps=recipe.muon_ns_steps,
            )
        )
    return optimizers


def sample_sigma(n: int, levels: NoiseLevels, generator: torch.Generator) -> torch.Tensor:
    """Noise levels (n,): logit-normal, with a uniform share."""
    z = torch.randn(n, generator=generator) * levels.std + levels.mean
    flat = torch.rand(n, generator=generator) < levels.uniform
    return torch.where(flat, torch.rand(n, generator=generator), torch.sigmoid(z))


@dataclass(frozen=True)
class Examples:
    """What the generator learns from.

    Args:
        latents: scaled latents, shape (N, C, H, W).
        labels: shape (N, H, W), see `data.pool_labels`.
        ids: caption tokens, shape (N, MAX_TOKENS).
        null_ids: tokens of the empty caption, shape (MAX_TOKENS,).
    """

    latents: torch.Tensor
    labels: torch.Tensor
    ids: torch.Tensor
    null_ids: torch.Tensor


class Trainer:
    """Training state that can be saved and resumed at any step.

    Args:
        recipe: what to train, and how.
        tokenizer: of the captions.
        examples: what to learn from.
        seed: of weights and of every step.
        device: where to train.
    """

    def __init__(
        self,
        recipe: GeneratorRecipe,
        tokenizer: CLIPTokenizer,
        examples: Examples,
        seed: int,
        device: torch.device,
    ) -> None:
        torch.manual_seed(seed)
        self.recipe, self.examples, self.seed, self.device = recipe, examples, seed, device
        _, channels, size, _ = examples.latents.shape
        self.model = Generator(recipe, tokenizer, channels, size).to(device)
        width = recipe.transformer.width
        self.head = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, NUM_LABELS)
        ).to(device)
        self.ema = copy.deepcopy(self.model).eval().requires_grad_(False)
        named = [*self.model.named_parameters(), *self.head.named_parameters()]
        self.optimizers = optimizers_of(named, recipe)
        self.rates = [o.param_groups[0]["lr"] for o in self.optimizers]
        self.step = 0
        if recipe.compile:
            for block in self.model.transformer.transformer_blocks:
                block.compile(dynamic=False)

    def state(self) -> dict[str, object]:
        """Everything that the next step depends on."""
        return {
            "step": self.step,
            "steps": self.recipe.steps,
            "decay_steps": self.recipe.decay_steps,
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "head": self.head.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
        }

    def save(self, path: Path) -> None:
        """Write a checkpoint; the old one stays until the new one is whole."""
        write_whole(path, lambda file: torch.save(self.state(), file))

    def load(self, path: Path) -> None:
        """Continue from a checkpoint."""
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.step = state["step"]
        self.recipe = replace(self.recipe, steps=state["steps"], decay_steps=state["decay_steps"])
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        self.head.load_state_dict(state["head"])
        for optimizer, part in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(part)

    def decay_from_here(self, steps: int) -> None:
        """Finish early: decay the learning rate over the next `steps` steps, then stop."""
        self.recipe = replace(self.recipe, steps=self.step + steps, decay_steps=steps)

    def losses(self, on_step: Callable[["Trainer"], None] | None = None) -> Iterator[dict[str, float]]:
        """Train to the end, yielding each step's losses."""
        with zero_token_attention(self.model.transformer, self.recipe.batch) as attention:
            while self.step < self.recipe.steps:
                yield self._train_step(attention)
                if on_step is not None:
                    on_step(self)

    def _train_step(self, attention: ZeroTokenAttention) -> dict[str, float]:
        recipe, batch, given = self.recipe, self.recipe.batch, self.examples
        dice = torch.Generator().manual_seed(self.seed * 1_000_003 + self.step)
        rows = torch.randint(len(given.latents), (batch,), generator=dice)
        sigma = sample_sigma(batch, recipe.sigma, dice).to(self.device)
        noise = torch.randn(batch, *given.latents.shape[1:], generator=dice).to(self.device)
        ids = given.ids[rows].long()
        ids[torch.rand(batch, generator=dice) < recipe.caption_dropout] = given.null_ids.long()
        lengths = torch.tensor(recipe.zero_tokens, dtype=torch.float32)
        attention.set_repeats(lengths[torch.randint(len(lengths), (batch,), generator=dice)].to(self.device))
        x0 = given.latents[rows].to(self.device).float()
        level = sigma.view(-1, 1, 1, 1)
        x = (1 - level) * x0 + level * noise
        factor = learning_rate(self.step, recipe)
        for optimizer, rate in zip(self.optimizers, self.rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * factor
        with torch.autocast(self.device.type, torch.bfloat16, enabled=recipe.bf16):
            out, tapped = self.model(x, sigma, ids.to(self.device), recipe.reading_block)
            logits = self.head(tapped) if recipe.reading > 0 else None
        flow = (out.float() - (noise - x0)).pow(2).mean()
        loss = flow
        reading = torch.zeros(())
        if logits is not None:
            target = given.labels[rows].to(self.device).long().flatten()
            reading = nn.functional.cross_entropy(logits.float().flatten(0, 1), target)
            loss = loss + recipe.reading * reading
        loss.backward()
        params = [p for o in self.optimizers for p in o.param_groups[0]["params"]]
        nn.utils.clip_grad_norm_(params, 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        keep = min(recipe.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.ema.parameters()), list(self.model.parameters()), 1 - keep)
        self.step += 1
        return {"flow": flow.item(), "read": reading.item()}


def run(trainer: Trainer, checkpoint: Path, save_every: int, on_step: Callable[[Trainer], None] | None = None) -> None:
    """Train to the end with a progress bar and checkpoints."""
    batch = trainer.recipe.batch
    bar = tqdm(initial=trainer.step * batch, total=trainer.recipe.steps * batch, desc="generator", unit="img")
    mean: dict[str, float] = {}
    for losses in trainer.losses(on_step):
        for name, value in losses.items():
            mean[name] = value if name not in mean else 0.98 * mean[name] + 0.02 * value
        bar.update(batch)
        if trainer.step % 50 == 0:
            bar.set_postfix({k: f"{v:.4f}" for k, v in mean.items()} | {"step": trainer.step})
        if trainer.step % save_every == 0 or trainer.step == trainer.recipe.steps:
            trainer.save(checkpoint)
    bar.close()
