"""`ttsnap evaluate`: how well a reward of noisy estimates predicts the final reward, level by
level."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttsnap.cli import arguments, common
from ttsnap.cli.loading import load_torch, loading
from ttsnap.cli.parser import Arguments, Parser
from ttsnap.options.model import ModelOptions

if TYPE_CHECKING:  # loads torch
    from ttsnap.distill.data import Frames
    from ttsnap.distill.evaluate import Evaluation

DESCRIPTION = """Score recorded estimates by a reward, and compare with the base reward's scores of the finished images.

Per noise level: rank correlation within a prompt, how often the best seed survives a cut to the best quarter and what
the cut costs, and calibration; the same for the base reward's own scores of these estimates.

examples:
  ttsnap evaluate --reward noise-aware:aware/reward --recordings recordings/test
  ttsnap evaluate --reward noise-aware:aware/reward \\
      --recordings recordings/train --prompts aware/config.yaml
  ttsnap evaluate --reward brightness --base imagereward \\
      --recordings recordings/test --prompts 0:20 --plot b.png
"""


def parser() -> Parser:
    """The command's arguments."""
    p = Parser(DESCRIPTION)
    arguments.add_config(p)
    p.add_argument("--reward", type=str, required=True, help=arguments.REWARD)
    p.add_argument(
        "--recordings",
        type=str,
        nargs="+",
        required=True,
        help="folders of `ttsnap record --images`",
    )
    p.add_argument(
        "--base",
        type=str | None,
        help="the reward that is to be forecast (default: the base of --reward)",
    )
    p.add_argument(
        "--prompts",
        type=str,
        default=":",
        help=(
            "which prompts, as 0:20, or the config.yaml of a run of `ttsnap distill`: those that it"
            " held out"
        ),
    )
    p.add_argument(
        "--steps", type=list[int] | None, help="which recorded steps, as '[2, 6]' (default: all)"
    )
    p.add_argument("--batch-size", type=int, default=64, help="images per call")
    p.add_argument("--json", type=str | None, help="file to write the measures to")
    p.add_argument(
        "--plot", type=str | None, help="PNG file: rank correlation against the noise level"
    )
    arguments.add_options(p, ModelOptions, "device", "dtype")
    return p


def run(a: Arguments) -> int:
    """Measure and print the table; write --json and --plot."""
    if a.batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {a.batch_size}")
    for name, path in (("--json", a.json), ("--plot", a.plot)):
        if path is not None and not Path(path).parent.is_dir():
            raise ValueError(f"{name} {path}: there is no folder {Path(path).parent}")
    load_torch()
    from ttsnap.distill import report
    from ttsnap.distill.data import Frames
    from ttsnap.files.writing import write_json

    frames = Frames(a.recordings)
    steps = frames.select(a.steps)
    prompts, held_out = _prompts(a.prompts, frames.prompts)
    rewards = _rewards(a)
    try:
        evaluation = _measured(a, frames, prompts, held_out, steps, rewards)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted; nothing was written") from None
    print(report.table(evaluation))
    try:
        if a.json is not None:
            write_json(Path(a.json), evaluation.to_json())
        if a.plot is not None:
            report.plot(evaluation, Path(a.plot))
    except OSError as error:
        why = f"cannot write the result: {error}; the table above is complete"
        raise ValueError(why) from error
    return 0


def _rewards(a: Arguments) -> tuple[Any, Any]:
    """The reward, and the one that it is to forecast."""
    from ttsnap.reward_models.registry import make_reward, without_queries

    place, kind = common.opening().reward_placement(a.device, a.dtype)
    common.opening().check_here(place)
    named = without_queries(a.reward)
    with loading(f"the reward {named}"):
        reward = make_reward(a.reward, device=place, dtype=kind)
        base = make_reward(a.base, device=place, dtype=kind) if a.base is not None else reward.base
    if base is None:
        raise ValueError(
            f"the reward {named} has no base of its own; name the reward that counts with --base"
        )
    return reward, base


def _measured(
    a: Arguments,
    frames: Frames,
    prompts: list[int],
    held_out: bool | None,
    steps: Sequence[int],
    rewards: tuple[Any, Any],
) -> Evaluation:
    """Both rewards on the estimates of these prompts, against the base on their final images."""
    import numpy as np

    from ttsnap.distill.data import FrameAt
    from ttsnap.distill.evaluate import evaluate
    from ttsnap.distill.processes import Member
    from ttsnap.distill.scoring import progress, score_entries

    reward, base = rewards

    def score(images: Any, texts: Any, level: Any) -> Any:
        return base(images, texts, level * 0)

    entries = [FrameAt(p, s, frames.last) for p in prompts for s in range(frames.seeds[p])]
    size = a.batch_size
    with progress(len(entries), "final images", "image", True) as bar:
        final = score_entries(score, frames, entries, "pixels", batch_size=size, bar=bar)
    finals = np.split(final, np.cumsum(frames.seeds[prompts])[:-1])
    name = reward.name if reward.name != base.name else f"{reward.name} (--reward)"
    both = {base.name: base, name: reward}
    how = {"batch_size": size, "member": Member(shown=True), "held_out": held_out}
    return evaluate(both, finals, frames, prompts, steps, **how)


def _prompts(which: str, texts: tuple[str, ...]) -> tuple[list[int], bool | None]:
    """The prompts' numbers, and whether they are known to be held out."""
    if which.endswith((".yaml", ".yml")):
        from ttsnap.distill.run import held_out_prompts

        numbers = held_out_prompts(Path(which), texts)
        if not numbers:
            raise ValueError(f"{which} held out no prompt of these recordings (validation: 0)")
        return numbers, True
    first, colon, last = which.partition(":")
    try:
        part = slice(int(first) if first else None, int(last) if last else None)
        chosen = list(range(len(texts))[part])
    except ValueError:
        raise ValueError(
            f"--prompts must be a range such as 0:20, or a config.yaml; got {which!r}"
        ) from None
    if not colon or not chosen:
        raise ValueError(
            f"--prompts {which!r} names none of the {len(texts)} prompts; write a range such as"
            " 0:20"
        )
    return chosen, None
