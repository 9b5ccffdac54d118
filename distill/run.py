"""Distillations: recordings, training, evaluation, export. Each part resumes where it stopped.

Rewards are distilled here, drafts in `draft.run`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ttsnap.core.arrays import FloatArray
from ttsnap.distill import curriculum, processes, report
from ttsnap.distill.config import DistillConfig, RunConfig
from ttsnap.distill.data import FrameAt, Frames
from ttsnap.distill.evaluate import Evaluation, evaluate
from ttsnap.distill.processes import Member
from ttsnap.distill.scoring import TARGETS, final_scores, score_entries, spread
from ttsnap.distill.student import DefersToBase, Student, StudentReward, make_student
from ttsnap.distill.train import Curriculum, RewardLesson
from ttsnap.distill.training import CHECKPOINTS, Training
from ttsnap.files.plain_yaml import as_yaml, load_settings
from ttsnap.files.run_folder import RunFolder, differences
from ttsnap.files.settings import Json, to_json
from ttsnap.files.writing import write_json
from ttsnap.options.option import determining
from ttsnap.reward_models.noise_aware.student import NoiseAware
from ttsnap.reward_models.registry import make_reward, refuse_credentials
from ttsnap.rewards.scoring import Shown
from ttsnap.version import versions

CONFIG = "config.yaml"
REWARD = "reward"
EVALUATION = "evaluation.json"
PLOT = "spearman.png"
RECORDING = "recording"
MATCHED = 128
"""Prompts by whose images the units of a student's network are found."""
Recorder = Callable[[dict[str, Json]], None]
"""Records with options of `ttsnap record`, or resumes a recording."""


def distill(
    config: DistillConfig, out: str | Path, *, record: Recorder | None = None, bar: bool = False
) -> Evaluation:
    """Train a noise-aware reward, export it to out/reward, and evaluate the exported reward on
    held-out prompts.

    The same call resumes an interrupted run: recordings after their last unit, targets after the
    last batch that was saved, training after its last checkpoint; an evaluation is made anew.
    Ctrl-C and SIGTERM wait until the batch at hand is done. A finished run returns its evaluation.
    docs/distill.md lists the files. Under a launcher every process calls this, and gets the result.

    Args:
        config: the settings.
        out: folder of the run.
        record: carries out the record section, where the configuration has one; the command line
            gives it.
        bar: whether to print the number of processes and show progress.

    Raises:
        ValueError: where `out` is in use, holds other files or a run with other settings, or
            settings or data misfit.
        OSError: where the disk is full; files that were there stay.
    """
    out = Path(out)
    refuse_credentials(config.reward)  # before it is written into a file
    latents: dict[str, Json] = {"latents": True} if config.student.space == "latents" else {}
    options = {**(config.record or {}), "images": True, **latents}
    with begun("distill", config, out, record, options, bar) as member:
        if (out / EVALUATION).exists():  # written last
            return Evaluation.read(out / EVALUATION)
        return _distill(config, out, member)


@contextmanager
def begun(
    command: str,
    config: RunConfig,
    out: Path,
    record: Recorder | None,
    options: Mapping[str, Json],
    bar: bool,
) -> Iterator[Member]:
    """A run's folder, begun or resumed, by all processes of the command. The first one holds it
    until the end, and records while the others wait.

    record: carries out the record section. options: of `ttsnap record`, by that section.
    """
    if config.record is not None and record is None:
        raise ValueError(
            f"the configuration has a record section, which `ttsnap {command}` carries out; in"
            " Python, record first and name the folder in `recordings`, or give record="
        )
    run_folder(config, out).check()
    member = processes.start(command, cpu=config.device == "cpu", shown=bar)
    with ExitStack() as until_end:

        def first() -> None:
            until_end.enter_context(run_folder(config, out).opened())
            if record is not None and config.record is not None:
                record({"out": str(out / RECORDING), **options})

        member.alone(first)
        yield member
        member.leave()


def _distill(config: DistillConfig, out: Path, member: Member) -> Evaluation:
    frames = open_frames(config, out, member)
    steps = frames.select(config.steps, config.levels)
    space = config.student.space
    frames.check_stored(space, steps)
    kept, tested = curriculum.held_out(frames.prompts, config.validation, config.seed)
    fewest = int(frames.seeds.min())
    if config.group_size > fewest:
        raise ValueError(
            f"group_size is {config.group_size}, but a prompt has {fewest} seeds; lower it or"
            " record more"
        )

    torch.manual_seed(config.seed)
    base = make_reward(config.reward, device=member.device, dtype=torch.float32)
    Shown().check([base])
    student = make_student(
        base,
        config.student,
        spec=config.reward,
        levels=[frames.levels[step] for step in steps],
        seed=config.seed,
        channels=frames.load([FrameAt(0, 0, steps[0])], space).shape[1],
        batch_size=config.batch_size,
        device=member.device,
    )
    targets = final_scores(
        frames, student.base, config.reward, out, batch_size=config.batch_size, member=member
    )
    if isinstance(student, NoiseAware) and student.scores_estimates_apart:
        _match(student, frames, kept, targets, config.batch_size, member)
    plan = Curriculum(
        curriculum.stages(steps, config.order, config.steps_per_level),
        tuple(kept),
        targets,
        spread(targets, kept),
    )
    Training(RewardLesson(student, frames, plan, config, member), config, out, member).run()

    measured = tested or kept
    other = student.name if student.name != base.name else f"{student.name}-na"
    rewards = {base.name: student.base, other: StudentReward(student)}
    evaluation = evaluate(
        rewards,
        [targets[p] for p in measured],
        frames,
        measured,
        steps,
        batch_size=config.batch_size,
        member=member,
        held_out=bool(tested),
    )
    below = 0.0
    if isinstance(student, DefersToBase) and evaluation.held_out:
        below = student.base_below = base_below(evaluation)
    evaluation = exported(evaluation, below)
    member.alone(lambda: export(student, evaluation, config, frames, plan, out))
    return evaluation


def _match(
    student: NoiseAware,
    frames: Frames,
    prompts: list[int],
    targets: list[FloatArray],
    batch_size: int,
    member: Member,
) -> None:
    """Bring the scorer's scores to the targets' units, by two finished images of each of the first
    prompts."""
    entries = [
        FrameAt(p, s, frames.last)
        for p in prompts[:MATCHED]
        for s in range(min(2, len(targets[p])))
    ]
    scores = score_entries(
        lambda x, texts, level: student.scorer(x, texts),
        frames,
        entries,
        "pixels",
        batch_size=batch_size,
        member=member,
    )
    student.match(scores, np.array([targets[e.prompt][e.seed] for e in entries]))


def run_folder(config: RunConfig, out: Path) -> RunFolder:
    """The folder of a run. Its settings are fixed once there are targets or weights; before that
    nothing was computed."""

    def differing() -> list[str]:
        if not any((out / name).exists() for name in (TARGETS, CHECKPOINTS)):
            return []
        there = load_settings(type(config), out / CONFIG)
        return differences(determining(there), determining(config))

    return RunFolder(out, CONFIG, "run", differing, as_yaml(config))


def open_frames(config: RunConfig, out: Path, member: Member) -> Frames:
    """The recordings of a configuration, which the first process checks."""
    folders = [*config.recordings]
    if config.record is not None:
        folders.append(str(config.record.get("out", out / RECORDING)))
    if not member.is_main:
        member.wait()  # the first process checks first
    frames = Frames(
        folders, check=member.is_main, verified=out / "verified.json", cache=config.cache * 2**20
    )
    if member.is_main:
        member.wait()
    return frames


def export(
    student: Student,
    evaluation: Evaluation,
    config: DistillConfig,
    frames: Frames,
    plan: Curriculum,
    out: Path,
) -> None:
    """Write the reward to out/reward, a plot where matplotlib is installed, and evaluation.json.

    evaluation.json comes last, as it marks the run as finished.
    """
    info: dict[str, Json] = {
        "config": to_json(config),
        "recording": {
            "identity": frames.identity,
            "prompts": len(frames.prompts),
            "seeds": sorted(set(frames.seeds.tolist())),
            "levels": list(frames.levels),
            "info": frames.info,
        },
        "versions": versions("torch", "accelerate", "peft", "transformers"),
        "target_spread": plan.scale,
        "evaluation": evaluation.to_json(),
    }
    student.save_pretrained(out / REWARD, info)
    with contextlib.suppress(ValueError):
        report.plot(evaluation, out / PLOT)
    write_json(out / EVALUATION, evaluation.to_json())


def base_below(found: Evaluation) -> float:
    """The noise level up to which the base reward ranks at least as well as the student, by
    Spearman correlation.

    The highest measured level such that the base is no worse there and at every level below. 0: the
    student is better at the lowest level already. 1: the student is better at no level, so that
    nothing speaks for it at noisier ones either. nan, the rank correlation of scores that do not
    vary, is worse than any number.
    """
    level = 0.0
    for row in sorted(found.rows, key=lambda row: float(row["level"])):
        base, student = (np.nan_to_num(row[name]["spearman"], nan=-np.inf) for name in found.names)
        if student > base:
            return level
        level = float(row["level"])
    return 1.0


def exported(found: Evaluation, below: float) -> Evaluation:
    """The evaluation of the exported reward, from that of the trained network alone.

    Up to noise level `below` the exported reward is the base, so that these rows get the base's
    measures. The network's stay in the row as "unused".
    """
    base, student = found.names
    rows = []
    for row in found.rows:
        if row["level"] <= below:
            row = {**row, student: row[base], "unused": row[student]}
        rows.append(row)
    return replace(found, rows=tuple(rows), base_below=below)
