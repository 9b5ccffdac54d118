"""A few-step model whose seeds look alike: a copy of `scenes-turbo`, trained on outputs of a single
seed.

    python benchmarks/look_alike.py --out build/variety/look_alike.pt

From any start the copy learns to go straight to what the model draws from seed 0 of the same
caption (the loss of scripts/train_worlds/turbo.py). Captions are those of training. So what remains
of a seed in its image is what the copy has not yet unlearned. Only the transformer is trained; its
weights are written as a state dict of float32.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import torch
from torch import Tensor

from ttsnap.core.prompt import Prompt
from ttsnap.files.writing import write_whole
from ttsnap.pipelines import defaults, load
from ttsnap.sampling.rng import seeded
from ttsnap.scenes import sample_prompts

BASE = "scenes-turbo"
SEED = 0
"""The one whose images are learned."""


@torch.no_grad()
def images_of(denoiser: object, captions: list[str], batch: int = 64) -> Tensor:
    """Finished latents (N, ...) of SEED for each of these captions, in float32."""
    d, ends = denoiser, []
    for first in range(0, len(captions), batch):
        some = captions[first : first + batch]
        d.encode([Prompt(text) for text in some])
        x = d.init_latents([seeded(SEED)] * len(some)).float()
        for k in range(d.grid.steps):
            at = torch.full((len(some),), k)
            x, _ = d.kernel.step(
                x,
                d.predict(x, at, torch.arange(len(some))),
                at,
                [(0,)] * len(some),
                [None] * len(some),
            )
        ends.append(x)
    return torch.cat(ends)


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--captions", type=int, default=512)
    p.add_argument("--steps", type=int, default=120)
    p.add_argument("--batch", type=int, default=16)
    p.add_argument("--lr", type=float, default=1e-3)
    p.add_argument(
        "--at-start",
        type=float,
        default=0.45,
        help="share of rows at the start of their trajectory",
    )
    p.add_argument("--out", type=Path, default=Path("build/variety/look_alike.pt"))
    a = p.parse_args()
    pipe = load(BASE, dtype=torch.float32)
    call = defaults(BASE)
    denoiser = pipe.denoiser(**call)
    captions = sample_prompts(a.captions, 0, held_out=False)
    ends = images_of(denoiser, captions)
    length = call["max_sequence_length"]
    with torch.no_grad():
        words, _, pooled, _ = pipe.encode_prompt(captions, None, None, max_sequence_length=length)
    net = copy.deepcopy(pipe.transformer).train().requires_grad_(True)
    optimizer = torch.optim.AdamW(net.parameters(), lr=a.lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda k: min(1.0, (k + 1) / 20, (a.steps - k) / 40)
    )
    for step in range(a.steps):
        dice = seeded(1_000_003 + step)
        rows = torch.randint(len(captions), (a.batch,), generator=dice)
        share = torch.rand(a.batch, generator=dice).clamp(min=0.02)
        share[torch.rand(a.batch, generator=dice) < a.at_start] = 1.0
        end = ends[rows]
        start = torch.randn(end.shape, generator=dice)
        x = end + share.view(-1, 1, 1, 1) * (start - end)
        with torch.autocast("cpu", torch.bfloat16):
            out = net(x, words[rows], pooled[rows], share * 1000).sample
        loss = (out.float() - (start - end)).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 10 == 0:
            print(step, f"{loss.item():.4f}", flush=True)
    a.out.parent.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach() for name, value in net.state_dict().items()}
    write_whole(a.out, lambda file: torch.save(weights, file))


if __name__ == "__main__":
    main()
