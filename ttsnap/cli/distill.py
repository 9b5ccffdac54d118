"""`ttsnap distill`: a noise-aware reward from recordings, trained, evaluated and exported."""

from __future__ import annotations

from pathlib import Path

from ttsnap.cli import arguments
from ttsnap.cli.common import loading, resumable
from ttsnap.cli.parser import Arguments, Common, Parser
from ttsnap.files.settings import build

DESCRIPTION = """Train a reward to score noisy estimates as the base reward scores the finished image of the trajectory.

Targets -> curriculum from clean to noisy -> train -> evaluate on held-out prompts -> OUT/reward, which then works as
--reward noise-aware:OUT/reward. Up to the noise level at which the base ranks as well, that reward scores by the base;
the table is of the exported reward. Ctrl-C and SIGTERM are safe: a checkpoint is written, and the same command resumes.

examples:
  ttsnap record --prompts-file prompts.txt --seeds 16 --images \\
      --out recordings/train
  ttsnap distill --recordings recordings/train --reward imagereward --out aware
  ttsnap distill --preset dogtrim-imagereward --recordings recordings/flux \\
      --out aware --export released
  ttsnap distill --config recipe.yaml --out aware
  ttsnap distill --config aware/config.yaml --out again    # repeats a run
  accelerate launch --multi_gpu --num_processes 2 -m ttsnap distill \\
      --config recipe.yaml --out aware
  ttsnap generate "a red circle" --reward noise-aware:aware/reward
"""


def parser() -> Parser:
    """The command's arguments: every key of distill.config.DistillConfig."""
    from ttsnap.distill.config import PRESETS, DistillConfig

    p = Parser(DESCRIPTION)
    arguments.add_config(p)
    arguments.add_preset(p, PRESETS, "a recipe, whose settings others win over")
    p.add_argument(
        "--out", type=str, required=True, help=Common("folder to write to, or of a run to resume")
    )
    p.add_argument(
        "--export",
        type=str | None,
        metavar="FOLDER",
        help=(
            "write the reward to this folder too, as DOG-Trim's code reads it: a file of weights"
            " for each level"
        ),
    )
    arguments.add_options(p, DistillConfig)
    return p


def run(a: Arguments) -> int:
    """Distil, or resume a run; the first process prints the table."""
    from ttsnap.distill.config import DistillConfig

    values = {
        key: value
        for key, value in a.nested().items()
        if key not in ("trust", "out", "preset", "export")
    }
    config = build(DistillConfig, values)
    out = Path(a.out)
    if a.export and config.student.kind != "per-level" and not config.student.per_level:
        raise ValueError(
            "--export writes a network for each noise level: train with --student.kind per-level,"
            " or full with --student.per-level true"
        )
    if a.export and config.student.network not in ("", config.reward):
        raise ValueError(
            f"--export writes networks of the base, {config.reward}, and --student.network is "
            f"{config.student.network}; leave one of the two out"
        )
    if a.export and Path(a.export).is_file():
        raise ValueError(
            f"--export writes to a folder, and {a.export} is a file; choose another one"
        )
    with loading("torch and accelerate"):
        import torch
        from accelerate import PartialState

        from ttsnap.distill import checkpoints
        from ttsnap.distill.run import REWARD, distill
    from ttsnap.cli.record import run_with
    from ttsnap.distill.report import table, usage
    from ttsnap.distill.training import CHECKPOINTS
    from ttsnap.reward_models.registry import CHOSEN

    with resumable(out, lambda: f"{checkpoints.steps_done(out / CHECKPOINTS)} optimiser steps are"):
        evaluation = distill(config, out, record=run_with, bar=True)
    if not PartialState().is_main_process:
        return 0
    print(table(evaluation))
    if used := usage(evaluation):
        print(f"\n{used}")
    named = f"noise-aware:{out / REWARD}"
    # code, an address or weights elsewhere: used only where somebody names them
    if config.reward not in CHOSEN:
        named = f"'{named} on {config.reward}'"
    if a.export:
        from ttsnap.reward_models.noise_aware.released import export
        from ttsnap.reward_models.noise_aware.student import NoiseAware
        from ttsnap.reward_models.registry import make_reward

        base = make_reward(config.reward, dtype=torch.float32)
        files = export(NoiseAware.from_pretrained(out / REWARD, base=base), a.export)
        print(
            f"\n{a.export} has {', '.join(path.name for path in files)}, as DOG-Trim's code reads"
            " them"
        )
    print(
        f"\nthe reward is in {out / REWARD}; use it with: ttsnap generate PROMPT --reward {named}"
    )
    return 0
