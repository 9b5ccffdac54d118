"""`ttsnap distill-draft`: from recordings of a model to a LoRA that guesses early where each seed
will end."""

from __future__ import annotations

from pathlib import Path

from ttsnap.cli import arguments, common
from ttsnap.cli.common import loading, resumable
from ttsnap.cli.parser import Arguments, Common, Parser
from ttsnap.files.settings import build

DESCRIPTION = """Train a LoRA that guesses, in one call without guidance, where the model's own sampler ends.

The first x0 estimates of a seed are blurred, so that their rewards rank seeds badly. A draft shows the image that a
noise will become. It learns from recordings of the model with latents, of many prompts; their scores are not used. A
draft is for one model, one number of steps and one guidance: those that were recorded.

Train -> OUT/draft, a LoRA that plain diffusers loads, with a card -> rank correlations on held-out prompts. Ctrl-C and
SIGTERM are safe: a checkpoint is written, and the same command resumes. Several devices share the training under
`accelerate launch`.

examples:
  ttsnap record --prompts-file prompts.txt --seeds 8 --seed 1000000 --latents \\
      --score-steps '[]' --out recordings/ends
  ttsnap distill-draft --recordings recordings/ends --out mine
  ttsnap distill-draft --config recipe.yaml --out mine    # may record first
  accelerate launch --multi_gpu --num_processes 2 -m ttsnap distill-draft \\
      --config mine/config.yaml --trust --out again
  ttsnap generate "two red circles" --draft mine/draft:2
"""


def parser() -> Parser:
    """The command's arguments: every key of distill.config.DraftConfig."""
    from ttsnap.distill.config import DraftConfig

    p = Parser(DESCRIPTION)
    arguments.add_config(p)
    p.add_argument(
        "--out",
        type=str,
        required=True,
        metavar="FOLDER",
        help=Common("folder to write to, or of a run to resume"),
    )
    arguments.add_options(p, DraftConfig)
    return p


def run(a: Arguments) -> int:
    """Distil a draft, or resume a run, and print how well the draft ranks."""
    from ttsnap.distill.config import DraftConfig

    values = {key: value for key, value in a.nested().items() if key not in ("trust", "out")}
    config = build(DraftConfig, values)
    out = Path(a.out)
    with loading("torch and accelerate"):
        import torch
        from accelerate import PartialState

        from ttsnap.distill import checkpoints
        from ttsnap.distill.draft.run import DRAFT, distill_draft
        from ttsnap.distill.training import CHECKPOINTS
        from ttsnap.simulation.looks import table
    from ttsnap.cli.record import run_with

    def pipe_on(device: torch.device, dtype: str) -> object:
        return common.load_model(config.model, str(device), dtype)

    with resumable(out, lambda: f"{checkpoints.steps_done(out / CHECKPOINTS)} optimiser steps are"):
        looks = distill_draft(config, out, pipe_on, record=run_with, bar=True)
    if not PartialState().is_main_process:
        return 0
    if looks:
        print(f"{table(looks)}\n\nSpearman within a prompt, of held-out prompts\n")
    print(
        f"the draft is in {out / DRAFT}; use it with: ttsnap generate PROMPT --draft {out / DRAFT}"
    )
    return 0
