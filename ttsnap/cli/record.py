"""`ttsnap record`: the rewards along every seed's trajectory, for replay, simulation and tuning."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from ttsnap.cli import arguments, common
from ttsnap.cli.configs import refuse_classes
from ttsnap.cli.help import new_parser
from ttsnap.options.engine import BatchOptions, EngineOptions
from ttsnap.options.model import ModelOptions
from ttsnap.options.option import values
from ttsnap.options.record import RecordOptions
from ttsnap.options.sampler import SamplerOptions
from ttsnap.options.search import SearchOptions

if TYPE_CHECKING:
    from ttsnap.recordings.replay import Recording

HELP = "keep the scores of many seeds, to study searches on"
DESCRIPTION = """Denoise every seed of every prompt to the end, score the estimates on the way, and keep the scores.

Searches can then be replayed, compared and tuned without a model. Ctrl-C is safe: the same command goes on.

examples:
  ttsnap record --prompts-file prompts.txt --seeds 40 --out recordings/first
  ttsnap record "two red circles" "a green cross" --seeds 16 --images \\
      --score-steps '[2, 6, 11]' --out recordings/few
  ttsnap record --prompts-file prompts.txt --reward my_reward.py:score \\
      --model stabilityai/stable-diffusion-3.5-medium --out recordings/sd35
"""


def parser() -> ArgumentParser:
    """The command's arguments."""
    p = new_parser(DESCRIPTION)
    arguments.add_config(p)
    make = p.add_argument_group("what to record")
    arguments.add_prompts(make)
    arguments.add_call(make, "negative_prompt", "height", "width")
    arguments.add_options(make, RecordOptions, "seeds", "seed", "steps", "looks")
    arguments.add_options(make, SearchOptions, "reward")
    arguments.add_sampler(p.add_argument_group("sampler"), recorded=True)
    model = p.add_argument_group("model and memory")
    arguments.add_options(model, ModelOptions, without=arguments.unrecorded(ModelOptions))
    # Part of what must stay the same to go on with a recording, so not measured.
    arguments.add_options(model, BatchOptions, without=arguments.unrecorded(BatchOptions), batch_size=32)
    output = p.add_argument_group("output")
    output.add_argument(
        "--out", type=str, required=True, metavar="FOLDER", help="where to write, or a recording to go on with"
    )
    arguments.add_options(output, RecordOptions, without=("seeds", "seed", "steps", "looks"))
    return p


def run_with(options: dict[str, Any]) -> None:
    """The command with these options, as of the record section of a configuration. ValueError where they do not fit."""
    refuse_classes(options, "the record section")
    asked = parser()
    asked.exit_on_error = False
    try:
        arguments = asked.parse_object(options)
    except Exception as error:  # jsonargparse raises several kinds
        raise ValueError(f"the record section does not fit `ttsnap record`: {error}") from None
    if run(arguments) == 130:
        raise KeyboardInterrupt


def run(a: Namespace) -> int:
    """Record, or go on with it, and say how well early scores tell the final ones."""
    prompts, reward = common.read_prompts(a, "record"), common.require_reward(a)
    sampler, batches = arguments.read(SamplerOptions, a), arguments.read(BatchOptions, a)
    what = arguments.read(RecordOptions, a)
    from ttsnap.recordings.folder import check_folder, progress
    from ttsnap.recordings.record import record

    # What can be refused is refused before the model is loaded.
    prompts, out = common.canonical(prompts, a.model), Path(a.out)
    rewards = common.load_rewards(reward, device=common.placement(a.device, a.dtype)[0])
    check_folder(out, {"prompts": prompts, **what.noted(), "rewards": [r.name for r in rewards]})
    call = common.call_arguments(a)
    pipe = common.load_model(a.model, a.device, a.dtype, lora=a.lora)
    common.check_call(pipe, call)
    options = EngineOptions(**values(batches), keep=what.keep, features_block=what.features)
    engine = pipe.engine(rewards, **values(sampler), **values(options), **call)
    info = {
        "model": a.model,
        **({"lora": a.lora} if a.lora else {}),
        "sampler": type(pipe.scheduler).__name__,
        **sampler.noted(),
        **({"draft_guidance": engine.denoiser.scale} if sampler.draft is not None else {}),
        "call": call,
        "device": pipe.device.type,
        "dtype": str(pipe.dtype).removeprefix("torch."),
    }
    try:
        recording = record(engine, prompts, out, what, info=info, progress_bar=True)
    except KeyboardInterrupt:
        there, units = progress(out)
        print(
            f"\ninterrupted; {there} of {units} units of work are safe in {out}\nrun the same command again to go on",
            file=sys.stderr,
        )
        return 130
    except OSError as error:
        raise ValueError(f"cannot write to {out}: {error}; when that is mended, run the same command again") from error
    print(_table(recording))
    count = f"{len(recording.prompts)} prompts x {recording.seeds} seeds"
    print(f"\n{count} recorded in {out}" + (", their images in images/" if what.images else ""))
    return 0


def _table(recording: Recording) -> str:
    """One line a scored step: how well its scores rank the seeds as the finished images do."""
    import numpy as np

    from ttsnap.recordings.record import step_correlations

    correlations, names = step_correlations(recording), recording.reward_names
    widths = [max(8, len(name)) for name in names]
    lines = [
        "rank correlation (Spearman, within a prompt) of the estimates' scores with the finished images'",
        "  step   noise   " + "  ".join(f"{name:>{w}}" for name, w in zip(names, widths, strict=True)),
    ]
    for step in np.flatnonzero(recording.scored)[:-1]:
        cells = [
            f"{'-' if np.isnan(value) else format(value, '.3f'):>{w}}"
            for value, w in zip(correlations[step], widths, strict=True)
        ]
        lines.append(f"  {step:4d}   {recording.grid.levels[step]:5.3f}   " + "  ".join(cells))
    missing = int(np.isnan(recording.scores[:, :, list(recording.scored)]).sum())
    if np.isnan(correlations[-1]).any():
        lines.append("  (-: the finished images' scores do not vary within any prompt)")
    return "\n".join(lines) + (f"\nwarning: {missing} scores failed and are nan" if missing else "")
