"""Train the text encoders and the transformer together, by flow matching with a reading task on the way.

The reading task: a small head on the image tokens of one block names the object (colour and shape) that the clean
picture has in that cell. It tells the network what its text is for long before the flow loss would, and is thrown
away afterwards.

Everything random in a step comes from a generator seeded with (seed, step), so a resumed run repeats the undisturbed
one exactly.
"""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from ttsnap.files.writing import write_whole
from ttsnap.scenes.model import build_text_encoder, build_transformer
from ttsnap.scenes.render import NUM_LABELS
from ttsnap.scenes.training.attention import zero_token_attention


class Generator(nn.Module):
    """The trained parts: two CLIP text encoders and the SD3 transformer."""

    def __init__(self, config: dict[str, Any], tokenizer: CLIPTokenizer, latent_channels: int, latent_size: int):
        super().__init__()
        self.text: CLIPTextModelWithProjection = build_text_encoder(tokenizer, **config["text"])
        self.text_2: CLIPTextModelWithProjection = build_text_encoder(tokenizer, **config["text_2"])
        width = config["text"]["width"] + config["text_2"]["width"]
        self.transformer: Any = build_transformer(
            latent_size=latent_size,
            latent_channels=latent_channels,
            text_dim=width,
            pooled_dim=width,
            **config["transformer"],
        )
        for block in self.transformer.transformer_blocks:  # adaLN-zero: every block starts as the identity
            for norm in (block.norm1, block.norm1_context):
                nn.init.zeros_(norm.linear.weight)
                nn.init.zeros_(norm.linear.bias)
        nn.init.zeros_(self.transformer.norm_out.linear.weight)
        nn.init.zeros_(self.transformer.proj_out.weight)

    def encode(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Text tokens with one zero token (B, MAX_TOKENS + 1, D) and the pooled text (B, D), as the stock call."""
        outs = [encoder(ids, output_hidden_states=True) for encoder in (self.text, self.text_2)]
        tokens = torch.cat([out.hidden_states[-2] for out in outs], -1)
        return nn.functional.pad(tokens, (0, 0, 0, 1)), torch.cat([out.text_embeds for out in outs], -1)

    def forward(
        self, x: torch.Tensor, sigma: torch.Tensor, ids: torch.Tensor, tap: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The velocity (B, C, H, W) and the image tokens (B, H * W, D) after block number `tap`."""
        net = self.transformer
        text, pooled = self.encode(ids)
        hidden = net.pos_embed(x).contiguous()
        temb = net.time_text_embed(sigma * 1000, pooled)
        text = net.context_embedder(text)
        tapped = hidden
        for i, block in enumerate(net.transformer_blocks):
            text, hidden = block(hidden_states=hidden, encoder_hidden_states=text, temb=temb)
            if i == tap:
                tapped = hidden
        out = net.proj_out(net.norm_out(hidden, temb))
        return out.transpose(1, 2).reshape(x.shape), tapped


def learning_rate(step: int, config: dict[str, Any]) -> float:
    """Warm-up, constant, linear decay to zero over the last `decay_steps`; a factor in (0, 1]."""
    warm: float = (step + 1) / config["warmup"]
    left: float = (config["steps"] - step) / max(1, config["decay_steps"])
    return max(0.0, min(1.0, warm, left))


def _optimizers(model: Generator, head: nn.Module, config: dict[str, Any]) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside blocks, AdamW for everything else."""
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, p in [*model.named_parameters(), *head.named_parameters()]:
        inner = p.ndim == 2 and ("transformer_blocks" in name or "layers" in name)
        (matrices if inner and "norm" not in name and config["muon_lr"] > 0 else rest).append(p)
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(rest, lr=config["adam_lr"], betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    ]
    if matrices:
        optimizers.append(
            torch.optim.Muon(
                matrices,
                lr=config["muon_lr"],
                weight_decay=config["weight_decay"],
                adjust_lr_fn="match_rms_adamw",
                ns_steps=config["muon_ns_steps"],
            )
        )
    return optimizers


def sample_sigma(n: int, config: dict[str, Any], generator: torch.Generator) -> torch.Tensor:
    """Noise levels (n,): logit-normal, leaning to high noise where the layout is decided, with a uniform share."""
    z = torch.randn(n, generator=generator) * config["sigma_std"] + config["sigma_mean"]
    flat = torch.rand(n, generator=generator) < config["sigma_uniform"]
    return torch.where(flat, torch.rand(n, generator=generator), torch.sigmoid(z))


class Trainer:
    """Training state that can be saved and resumed at any step.

    Args:
        config: the recipe's `generator` section.
        tokenizer: of the captions.
        latents: scaled latents, shape (N, C, H, W).
        labels: shape (N, H, W), see `data.pool_labels`.
        ids: caption tokens, shape (N, MAX_TOKENS).
        null_ids: tokens of the empty caption, shape (MAX_TOKENS,).
        seed: of weights and of every step.
        device: where to train.
    """

    def __init__(
        self,
        config: dict[str, Any],
        tokenizer: CLIPTokenizer,
        latents: torch.Tensor,
        labels: torch.Tensor,
        ids: torch.Tensor,
        null_ids: torch.Tensor,
        seed: int,
        device: torch.device,
    ) -> None:
        torch.manual_seed(seed)
        self.config, self.seed, self.device = dict(config), seed, device
        self.latents, self.labels, self.ids, self.null_ids = latents, labels, ids, null_ids
        self.model = Generator(config, tokenizer, latents.shape[1], latents.shape[2]).to(device)
        width = config["transformer"]["heads"] * config["transformer"]["head_dim"]
        self.head = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, NUM_LABELS)
        ).to(device)
        self.ema = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.optimizers = _optimizers(self.model, self.head, config)
        self.rates = [o.param_groups[0]["lr"] for o in self.optimizers]
        self.step = 0
        if config["compile"]:
            for block in self.model.transformer.transformer_blocks:
                block.compile(dynamic=False)

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        return {
            "step": self.step,
            "steps": self.config["steps"],
            "decay_steps": self.config["decay_steps"],
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
        self.config.update(steps=state["steps"], decay_steps=state["decay_steps"])
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        self.head.load_state_dict(state["head"])
        for optimizer, part in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(part)

    def decay_from_here(self, steps: int) -> None:
        """Finish early: decay the learning rate over the next `steps` steps, then stop."""
        self.config.update(steps=self.step + steps, decay_steps=steps)

    def losses(self, on_step: Callable[["Trainer"], None] | None = None) -> Iterator[dict[str, float]]:
        """Train to the end, yielding each step's losses."""
        with zero_token_attention(self.model.transformer, self.config["batch"]) as attention:
            while self.step < self.config["steps"]:
                yield self._train_step(attention)
                if on_step is not None:
                    on_step(self)

    def _train_step(self, attention: Any) -> dict[str, float]:
        config, batch = self.config, self.config["batch"]
        dice = torch.Generator().manual_seed(self.seed * 1_000_003 + self.step)
        rows = torch.randint(len(self.latents), (batch,), generator=dice)
        sigma = sample_sigma(batch, config, dice).to(self.device)
        noise = torch.randn(batch, *self.latents.shape[1:], generator=dice).to(self.device)
        ids = self.ids[rows].long()
        ids[torch.rand(batch, generator=dice) < config["caption_dropout"]] = self.null_ids.long()
        lengths = torch.tensor(config["zero_tokens"], dtype=torch.float32)
        attention.set_repeats(lengths[torch.randint(len(lengths), (batch,), generator=dice)].to(self.device))
        x0 = self.latents[rows].to(self.device).float()
        level = sigma.view(-1, 1, 1, 1)
        x = (1 - level) * x0 + level * noise
        factor = learning_rate(self.step, config)
        for optimizer, rate in zip(self.optimizers, self.rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * factor
        with torch.autocast(self.device.type, torch.bfloat16, enabled=config["bf16"]):
            out, tapped = self.model(x, sigma, ids.to(self.device), config["reading_block"])
            logits = self.head(tapped) if config["reading"] > 0 else None
        flow = (out.float() - (noise - x0)).pow(2).mean()
        loss = flow
        reading = torch.zeros(())
        if logits is not None:
            target = self.labels[rows].to(self.device).long().flatten()
            reading = nn.functional.cross_entropy(logits.float().flatten(0, 1), target)
            loss = loss + config["reading"] * reading
        loss.backward()
        params = [p for o in self.optimizers for p in o.param_groups[0]["params"]]
        nn.utils.clip_grad_norm_(params, 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        keep = min(config["ema"], (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.ema.parameters()), list(self.model.parameters()), 1 - keep)
        self.step += 1
        return {"flow": flow.item(), "read": reading.item()}


def run(trainer: Trainer, checkpoint: Path, save_every: int, on_step: Callable[[Trainer], None] | None = None) -> None:
    """Train to the end with a progress bar and checkpoints."""
    batch = trainer.config["batch"]
    bar = tqdm(initial=trainer.step * batch, total=trainer.config["steps"] * batch, desc="generator", unit="img")
    mean: dict[str, float] = {}
    for losses in trainer.losses(on_step):
        for name, value in losses.items():
            mean[name] = value if name not in mean else 0.98 * mean[name] + 0.02 * value
        bar.update(batch)
        if trainer.step % 50 == 0:
            bar.set_postfix({k: f"{v:.4f}" for k, v in mean.items()} | {"step": trainer.step})
        if trainer.step % save_every == 0 or trainer.step == trainer.config["steps"]:
            trainer.save(checkpoint)
    bar.close()
