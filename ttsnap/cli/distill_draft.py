"""`ttsnap distill-draft`: from a model to a LoRA that guesses early where each seed will end."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttsnap.cli import arguments, common
from ttsnap.cli.common import loading, resumable
from ttsnap.cli.parser import Arguments, Common, Parser
from ttsnap.files.settings import build
from ttsnap.options.model import EMBEDDED, TURBO, ModelOptions

if TYPE_CHECKING:
    from ttsnap.distill.draft.config import DraftConfig
    from ttsnap.distill.draft.prompts import Prompts

DESCRIPTION = """Train a LoRA that guesses, in one call without guidance, where the model's own sampler ends.

The first x0 estimates of a seed are blurred, so that their rewards rank seeds badly. A draft shows the image that a
noise will become. Training needs no reward and no images, only prompts: the model makes its own data. A draft is for
one model, one number of steps and one guidance.

Trajectories -> train -> OUT/draft, a LoRA that plain diffusers loads, with a card -> rank correlations on held-out
prompts. Ctrl-C and SIGTERM are safe: a checkpoint is written, and the same command resumes. Several devices share the
work under `accelerate launch`.

examples:
  ttsnap distill-draft --out mine            # embedded model: hours on a CPU
  ttsnap distill-draft --out try --trajectories.count 2048 \\
      --training.steps 300 --trajectories.precision bf16
  ttsnap distill-draft --model stabilityai/stable-diffusion-3.5-medium \\
      --call '{num_inference_steps: 28, guidance_scale: 4.5}' \\
      --prompts-file prompts.txt --evaluation.reward imagereward --out sd35
  accelerate launch --multi_gpu --num_processes 2 -m ttsnap distill-draft \\
      --config sd35/config.yaml --trust --prompts-file prompts.txt --out again
  ttsnap generate "two red circles" --draft mine/draft:2
"""
_NO_CONFIG = ("trust", "out", "prompts_file", "device", "dtype")


def parser() -> Parser:
    """The command's arguments: every key of distill.draft.config.DraftConfig, and where the model
    runs."""
    from ttsnap.distill.draft.config import DraftConfig

    p = Parser(DESCRIPTION)
    arguments.add_config(p)
    p.add_argument(
        "--out",
        type=str,
        required=True,
        metavar="FOLDER",
        help=Common("folder to write to, or of a run to resume"),
    )
    p.add_argument(
        "--prompts-file",
        type=str | None,
        metavar="FILE",
        help=Common(
            "text file, one prompt a line: the first evaluation.prompts of them are held out, the"
            " others trained on (default: captions of the embedded model)"
        ),
    )
    arguments.add_options(p, ModelOptions, "device", "dtype")
    arguments.add_options(p, DraftConfig)
    return p


def run(a: Arguments) -> int:
    """Distil a draft, or resume a run, and print how well the draft ranks."""
    from ttsnap.distill.draft.config import DraftConfig
    from ttsnap.pipelines.packaged import MODELS

    values = {key: value for key, value in a.nested().items() if key not in _NO_CONFIG}
    values["call"] = _call(a)
    if not values["evaluation"]["reward"] and a.model in MODELS:
        values["evaluation"]["reward"] = MODELS[a.model].rewards[0]
    config = build(DraftConfig, values)
    out = Path(a.out)
    if config.evaluation.prompts and not config.evaluation.reward:
        raise ValueError(
            "give --evaluation.reward, by which held-out prompts show how well the draft ranks, or"
            " no prompts to measure on: --evaluation.prompts 0"
        )
    prompts, held_out = _prompts(a, config)
    with loading("torch and accelerate"):
        from ttsnap.distill import checkpoints, processes
        from ttsnap.distill.draft.report import DRAFT
        from ttsnap.distill.draft.run import COMMAND, Measured, distill_draft
        from ttsnap.distill.training import CHECKPOINTS
        from ttsnap.pipelines.opening import check_call
        from ttsnap.simulation.looks import table
    place = common.opening().placement(a.device, a.dtype)[0]
    dtype = "float32" if a.dtype == "auto" and place.type == "cpu" else a.dtype  # it is trained
    member = processes.start(COMMAND, cpu=place.type == "cpu", announced=True)
    if member.count > 1:
        place = member.device
    rewards = (
        common.load_rewards(config.evaluation.reward, device=place)
        if held_out and member.is_main
        else []
    )
    pipe = common.load_model(a.model, str(place), dtype)
    check_call(pipe, dict(config.call or {}))
    with resumable(
        out,
        lambda: f"{checkpoints.steps_done(out / CHECKPOINTS)} optimiser steps and all before are",
    ):
        measured = Measured(held_out, rewards[0]) if rewards else None
        looks = distill_draft(pipe, config, prompts, out, measured=measured, bar=True)
    if not member.is_main:
        return 0
    if looks:
        print(f"{table(looks)}\n\nSpearman within a prompt, {len(held_out)} held-out prompts\n")
    print(
        f"the draft is in {out / DRAFT}; use it with: ttsnap generate PROMPT --draft {out / DRAFT}"
    )
    return 0


def _call(a: Arguments) -> dict[str, Any]:
    """Arguments of the pipeline's call: those that were given, and the model's defaults for the
    others."""
    from ttsnap.pipelines import recommended

    return recommended(a.model).completed(a.call or {})


def _prompts(a: Arguments, config: DraftConfig) -> tuple[Prompts, tuple[str, ...]]:
    """What to train on, and what to measure on."""
    from ttsnap.distill.draft.prompts import Listed, SceneCaptions
    from ttsnap.scenes import sample_prompts

    wanted = config.evaluation.prompts
    if a.prompts_file is None:
        if a.model not in (EMBEDDED, TURBO):
            raise ValueError(
                f"model {a.model} needs --prompts-file FILE, thousands of prompts, one a line"
            )
        return SceneCaptions(config.trajectories.seed), tuple(
            sample_prompts(wanted, config.evaluation.seed)
        )
    from ttsnap.pipelines import recommended

    canonical = recommended(a.model).canonical
    texts = list(
        dict.fromkeys(
            canonical(prompt.text) for prompt in arguments.read_prompts(a, "distill-draft")
        )
    )
    if len(texts) <= wanted:
        raise ValueError(
            f"{a.prompts_file} holds {len(texts)} different prompts, of which {wanted} are held out"
            " (--evaluation.prompts); write more, or hold out fewer"
        )
    return Listed(texts[wanted:]), tuple(texts[:wanted])
