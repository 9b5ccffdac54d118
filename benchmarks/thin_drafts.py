"""Drafts of the embedded model that leave out blocks, trained on the guesses of its packaged draft.

    python benchmarks/thin_drafts.py --out thin --depth 0.5 0.2 --rank 64 128 --steps 900 1600
    python benchmarks/distilled_drafts.py --prompt-seed 15 --draft embedded thin/0.5/draft thin/0.2/draft \\
        --looks draft:1@0 draft:2@0 --dtype float32 --compile

An end of a trajectory is the packaged draft's guess in two calls from its noise. It takes 2 passes of the network where
the recipe's trajectory takes 26, so that a thin draft sees more noises for the same compute. Training is that of
`ttsnap distill-draft --training.depth`. What was made already is kept, and training resumes.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from ttsnap.distill.draft import trajectories
from ttsnap.distill.draft.config import TrainingConfig, TrajectoryConfig
from ttsnap.distill.draft.prompts import SceneCaptions
from ttsnap.distill.draft.student import DraftStudent, export
from ttsnap.distill.draft.train import train
from ttsnap.distill.draft.trajectories import Trajectories
from ttsnap.pipelines import defaults, load
from ttsnap.pipelines.drafting.drafting import use_drafter

from ttsnap.core.prompt import Prompt
from ttsnap.options.model import EMBEDDED
from ttsnap.sampling.drafts import TrainedFor

TRAINING = TrainingConfig(decay=0.5, from_noise=0.8, second=0.2, precision="no", compile=True)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, required=True, help="folder of the guesses, and of a run for each depth")
    p.add_argument("--depth", type=float, nargs="+", default=[0.5, 0.2], help="shares of the blocks that are kept")
    p.add_argument("--rank", type=int, nargs="+", default=[64, 128], help="of the LoRA, one for each depth")
    p.add_argument("--steps", type=int, nargs="+", default=[900, 1600], help="optimiser steps, likewise")
    p.add_argument("--noises", type=int, default=20_480, help="that are guessed from")
    a = p.parse_args()
    config = TrajectoryConfig(count=a.noises, states=1, batch=64)
    pipe, call, prompts = load(dtype=torch.float32), defaults(), SceneCaptions(config.seed)
    settings = trajectories.settings_of(config, EMBEDDED, call, prompts, pipe.dtype) | {"ends": "embedded:2"}
    paths = trajectories.expected(config, a.out / "guesses")
    paths[0].parent.mkdir(parents=True, exist_ok=True)
    denoiser = pipe.denoiser(**call)
    use_drafter(denoiser, "embedded:2")
    for number, path in enumerate(paths):
        if not path.exists():
            made = guesses(denoiser, prompts.draw(number, config.shard), config.seed + number * config.shard, config)
            trajectories.write_shard(path, made, settings)
            print(f"{path} is made")
    data = Trajectories.read(paths, settings)
    for depth, rank, steps in zip(a.depth, a.rank, a.steps, strict=True):
        training = replace(TRAINING, depth=depth, rank=rank, steps=steps)
        torch.manual_seed(training.seed)
        student = DraftStudent(pipe, call, states=1, first_time=training.first_time, rank=rank, depth=depth)
        student.compile()
        run = a.out / f"{depth:g}"
        run.mkdir(exist_ok=True)
        train(student, data, training, settings, run)
        about = replace(student.settings, trained_for=TrainedFor(EMBEDDED, denoiser.grid.steps, float(denoiser.scale)))
        export(student, pipe, about, f"A draft of {depth:g} of the blocks.\n", run / "draft")


@torch.no_grad()
def guesses(denoiser: Any, texts: list[str], first_seed: int, config: TrajectoryConfig) -> Trajectories:
    """Noises of consecutive seeds, and the drafter's guesses from them."""
    states, ends = [], []
    for i in range(0, len(texts), config.batch):
        part = texts[i : i + config.batch]
        denoiser.forget_prompts()
        denoiser.encode([Prompt(text) for text in part])
        x, _ = trajectories.begin(denoiser, range(first_seed + i, first_seed + i + len(part)))
        zero = torch.zeros(len(part), dtype=torch.long)
        states.append(x.half()[:, None])
        ends.append(denoiser.drafts.guess(x, zero, torch.arange(len(part)), denoiser.drafts.calls).half())
    return Trajectories(texts, first_seed, torch.cat(states), torch.cat(ends))


if __name__ == "__main__":
    main()
