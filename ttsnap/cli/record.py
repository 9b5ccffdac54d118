"""`ttsnap record`: the rewards along every seed's trajectory, for replay, simulation and tuning."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttsnap.cli import arguments, common
from ttsnap.cli.common import resumable
from ttsnap.cli.parser import Arguments, Common, Parser
from ttsnap.files.writing import markdown
from ttsnap.loop.budget import Budget
from ttsnap.options.call import PictureOptions
from ttsnap.options.engine import BatchOptions, DeviceOptions, WorkerOptions
from ttsnap.options.model import EMBEDDED, ModelOptions
from ttsnap.options.record import RecordOptions
from ttsnap.options.sampler import HOT, SamplerOptions, calls_of
from ttsnap.options.search import SearchOptions
from ttsnap.request.request import EngineSpec, Prepared, SearchRequest

if TYPE_CHECKING:
    from ttsnap.recordings.replay import Recording
    from ttsnap.simulation.looks import Against

DESCRIPTION = """Denoise every seed of every prompt to the end, score the estimates on the way, and keep the scores.

Searches can then be replayed, compared and tuned without a model. Ctrl-C and SIGTERM are safe: the unit of work at
hand, of one prompt, is finished and kept, and the same command resumes.

With --workers N so many processes record side by side, each with a model of its own: on a GPU each, or a CPU core each
where there is none. Ray runs them, on this machine or, with --ray-address, on the machines of a cluster. A worker that
is killed costs the unit of work that it was at, which another one makes again. What one number of workers has begun,
another may resume.

examples:
  ttsnap record --prompts-file prompts.txt --seeds 40 --out recordings/first
  ttsnap record "two red circles" "a green cross" --seeds 16 --images \\
      --score-steps '[2, 6, 11]' --out recordings/few
  ttsnap record --prompts-file prompts.txt --reward my_reward.py:score \\
      --model stabilityai/stable-diffusion-3.5-medium --out recordings/sd35
  ttsnap record --prompts-file prompts.txt --seeds 40 --workers 8 \\
      --out recordings/by8
  ttsnap record --prompts-file prompts.txt --seeds 16 --draft my_draft \\
      --looks '["draft:1@0", "draft:2@0"]' --check-draft --out recordings/check
"""


def parser() -> Parser:
    """The command's arguments."""
    p = Parser(DESCRIPTION)
    arguments.add_config(p)
    make = p.add_argument_group("what to record")
    arguments.add_prompts(make)
    arguments.add_call(make, "negative_prompt", "height", "width")
    arguments.add_options(make, RecordOptions, "seeds", "seed", "steps", "looks")
    arguments.add_options(make, SearchOptions, "reward")
    arguments.add_options(p.add_argument_group("pictures to start from"), PictureOptions)
    arguments.add_sampler(p.add_argument_group("sampler"), recorded=True)
    model = p.add_argument_group("model and memory")
    arguments.add_options(model, ModelOptions, without=arguments.unrecorded(ModelOptions))
    # Part of what must stay the same to resume a recording, so not measured.
    arguments.add_options(
        model, BatchOptions, without=arguments.unrecorded(BatchOptions), batch_size=32
    )
    output = p.add_argument_group("output")
    output.add_argument(
        "--out",
        type=str,
        required=True,
        metavar="FOLDER",
        help=Common("where to write, or a recording to resume"),
    )
    arguments.add_options(output, RecordOptions, without=("seeds", "seed", "steps", "looks"))
    output.add_argument(
        "--check-draft",
        action="store_true",
        help=(
            "say whether drafts rank seeds better than estimates, and note it in the draft.json of"
            " the drafter's local folder, by which `ttsnap generate` knows; for the drafter hot in"
            " OUT.json, which --draft OUT.json reads. Ten prompts x 16 seeds will do"
        ),
    )
    arguments.add_options(p.add_argument_group("workers"), WorkerOptions)
    return p


def run_with(options: dict[str, Any]) -> None:
    """The command with these options, as of the record section of a configuration. ValueError where
    they do not fit."""
    try:
        arguments = parser().filled(options, "the record section")
    except ValueError as error:
        raise ValueError(f"the record section does not fit `ttsnap record`: {error}") from None
    run(arguments)


def run(a: Arguments) -> int:
    """Record, or resume, and say how well early scores tell the final ones."""
    from ttsnap.recordings.folder import RECORDING, progress, run_folder

    prompts = arguments.read_prompts(a, "record", a.task)
    what = arguments.read(RecordOptions, a)
    workers = arguments.read(WorkerOptions, a)
    sampler = arguments.read(SamplerOptions, a).drafted_by(None)
    if a.check_draft and sampler.draft is None:
        raise ValueError(
            "--check-draft is about a drafter, and there is none; name it: --draft FOLDER"
        )
    common.opening().placement(a.device, a.dtype)  # says that torch is loaded
    engine = arguments.engine_spec(a, prompts, sampler, what.keep)
    search = common.prepared(SearchRequest(tuple(prompts), engine, "keep-all", Budget(), what.seed))
    # One recording is of one engine, which notes the pictures of the first prompt.
    spec = dataclasses.replace(search.engine, call={**search.engine.call, **prompts[0].inputs})
    out = Path(a.out)
    # what can be refused is refused before a model is loaded
    run_folder(out, {"prompts": [prompt.text for prompt in prompts], **what.noted()}).check()
    begin = _together if workers != WorkerOptions() else _alone
    make = begin(search, spec, out, what, workers)

    def safe() -> str:
        if (out / RECORDING).exists():
            return "{} of {} units of work are".format(*progress(out))
        return "no work is"

    with resumable(out, safe):
        recording = make()
    print(_table(recording))
    count = f"{len(recording.prompts)} prompts x {recording.seeds} seeds"
    print(f"\n{count} recorded in {out}" + (", their images in images/" if what.images else ""))
    if a.check_draft:
        print(check_draft(recording, out.with_name(f"{out.name}.json")))
    return 0


def _alone(
    search: Prepared, spec: EngineSpec, out: Path, what: RecordOptions, by: WorkerOptions
) -> Callable[[], Recording]:
    """Load the model and be ready to record in this process."""
    from ttsnap.recordings.folder import run_folder

    def check(rewards: Any) -> None:
        """ValueError where the folder has a recording of others."""
        run_folder(out, {"rewards": [reward.name for reward in rewards]}).check()

    pipe, rewards = common.loaded(search, DeviceOptions(), check=check)
    from ttsnap.pipelines.engine_factory import recording_info
    from ttsnap.recordings.record import record

    engine = pipe.engine_of(spec, rewards=rewards.scoring)
    info = recording_info(pipe, engine, spec)
    return partial(record, engine, search.prompts, out, what, info=info, progress_bar=True)


def _together(
    search: Prepared, spec: EngineSpec, out: Path, what: RecordOptions, by: WorkerOptions
) -> Callable[[], Recording]:
    """Be ready to record by workers, each of which loads the model."""

    def make() -> Recording:
        from ttsnap.cluster.devices import connect

        connect(by.ray_address, by.workers)
        from ttsnap.cluster.recorders import on_gpus, record
        from ttsnap.pipelines.engine_factory import EngineBuilder
        from ttsnap.pipelines.opening import settled

        model = spec.model
        # one dtype, whatever each worker's CPU multiplies
        if not on_gpus(model.device, by.workers):
            model = settled(model, "cpu")
        builder = EngineBuilder(dataclasses.replace(spec, model=model))
        return record(builder, search.prompts, out, what, workers=by.workers, progress_bar=True)

    return make


def _table(recording: Recording) -> str:
    """A row for each scored step: how well its scores rank the seeds as the finished images do."""
    import numpy as np

    from ttsnap.recordings.record import step_correlations

    each = step_correlations(recording)
    rows = [
        [step, f"{recording.grid.levels[step]:.3f}", *(f"{value:.3f}" for value in each[step])]
        for step in np.flatnonzero(recording.scored)[:-1]
    ]
    lines = [
        "rank correlation (Spearman, within a prompt) of estimates' scores with finished images'",
        markdown(["step", "noise", *recording.reward_names], rows, left=()),
    ]
    if missing := int(np.isnan(recording.scores[:, :, list(recording.scored)]).sum()):
        lines.append(f"warning: {missing} scores failed and are nan")
    return "\n".join(lines)


def check_draft(recording: Recording, hot: Path) -> str:
    """How drafts rank seeds beside estimates, and where that is noted, or why it is not. hot: the
    file for the model as its own drafter. ValueError for a recording without drafts or without
    estimates, and for a damaged draft.json."""
    from ttsnap.core import utility
    from ttsnap.sampling.drafts import DRAFT_FILE, HOT_FILE, Checked, note_check
    from ttsnap.simulation.looks import drafts_against_estimates, figures_of, ranked, table

    looks = ranked(recording, utility.mean)
    if not (comparisons := drafts_against_estimates(looks)):
        raise ValueError(
            "drafts are compared with estimates, and the recording lacks one of the two; record"
            " with --draft, and estimates by --score-steps or without it"
        )
    text = "\n".join(["", table(looks), "", *map(_verdict, comparisons)])
    figures = figures_of(recording, comparisons)
    info = recording.info
    if not any(name.startswith("gain of ") for name in figures):
        return (
            f"{text}\nnot noted: the drafts' scores and the estimates' vary together in no prompt;"
            " record more"
        )
    where = str(info["draft"])
    model = str(info["model"])
    guidance = float(str(info["draft_guidance"]))
    name = calls_of(where)[0]
    noted = hot if name == HOT else Path(name).expanduser()
    if noted.is_file() and not name.endswith(HOT_FILE):
        noted = noted.parent
    if name == EMBEDDED or not (name == HOT or noted.exists()):
        return f"{text}\nnot noted: {where} is no local folder of a drafter"
    note_check(noted, Checked(model, recording.grid.steps, guidance, figures))
    file = noted if noted.name.endswith(HOT_FILE) else noted / DRAFT_FILE
    return (
        f"{text}\nnoted in {file} for {model}, {recording.grid.steps} steps, guidance"
        f" {guidance:g}; use it with --draft {noted}"
    )


def _verdict(a: Against) -> str:
    """A sentence: what the draft ranks like, and whether it pays."""
    like = (
        f"as well as the estimate after {a.equals:g} NFE"
        if a.equals < float("inf")
        else "better than any estimate"
    )
    gain = f"{a.gain:+.3f} +- {a.error:.3f} over {a.rival.seen} ({a.rival.nfe:g} NFE)"
    end = "it pays to draft" if a.pays else "not surely better; record more, or leave draft out"
    return f"{a.draft.seen} ({a.draft.nfe:g} NFE) ranks {like}; {gain}: {end}"
