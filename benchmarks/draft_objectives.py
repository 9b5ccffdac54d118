"""What a draft of the embedded model may be trained on: the same weights trained on by each
objective, and compared.

    python benchmarks/draft_objectives.py --out objectives

Every run starts from the packaged draft, takes the same rows of the same trajectories in the same
order, and differs in its objective only. `mse` is that of `ttsnap distill-draft`. Then the seeds of
held-out hard prompts are ranked by the drafts: Spearman within prompts with the checker's soft
score of the finished image, and its difference to `mse`, paired over prompts. The folder keeps
trajectories, drafts and the recording, so that an interrupted run goes on.

mse: the mean squared error of the guess of the end.
low frequencies: the same, plus four times the error of the latents' means over 2 x 2 cells.
features: plus the error of the learned reward's features of the decoded image, a perceptual loss.
reward: plus the error of the learned reward itself, which is what the draft is for.
consistency: the target of a first call is what the network guesses from the next state of the
  trajectory (arXiv 2303.01469, whose teacher's step is exact here); of the last one, the end.
shortcut: half of the rows from noise learn what two calls guess (self-consistency of arXiv
    2410.12557).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from distilled_drafts import with_looks
from embedded_curve import REWARDS, SOFT
from torch import Tensor
from torch.nn.functional import avg_pool2d
from tqdm.auto import tqdm

from ttsnap.core.looks import EstimatorAt
from ttsnap.core.metrics import spearman
from ttsnap.distill.draft import trajectories
from ttsnap.distill.draft.config import TrainingConfig, TrajectoryConfig
from ttsnap.distill.draft.prompts import SceneCaptions
from ttsnap.distill.draft.student import DraftStudent, export, start_from
from ttsnap.distill.draft.train import DraftBatch, DrawnRows, batch_of, draw, factor, loss, validate
from ttsnap.distill.draft.trajectories import Trajectories
from ttsnap.distill.training import Weights
from ttsnap.options.model import EMBEDDED
from ttsnap.options.record import RecordOptions
from ttsnap.pipelines import defaults, load
from ttsnap.recordings.record import record
from ttsnap.reward_models.registry import make_reward
from ttsnap.sampling.drafts import DraftSettings, guess
from ttsnap.scenes import draft_path, sample_prompts

LOOKS = (EstimatorAt("draft:1", 0), EstimatorAt("draft:2", 0))
Decode = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Lesson:
    """What an objective sees of a step: the student, the trajectories, its rows, their batch and
    guesses (N, ...)."""

    student: DraftStudent
    data: Trajectories
    rows: DrawnRows
    batch: DraftBatch
    found: Tensor
    decode: Decode

    def error(self, target: Tensor) -> Tensor:
        """The loss of `ttsnap distill-draft` with another target (N, ...)."""
        return loss(self.student.path, self.found, target, self.batch.time, 0.6)


def mse(lesson: Lesson) -> Tensor:
    return lesson.error(lesson.batch.end)


def low_frequencies(lesson: Lesson) -> Tensor:
    coarse = avg_pool2d(lesson.found - lesson.batch.end, 2)
    return mse(lesson) + 4 * coarse.pow(2).mean()


def features(lesson: Lesson) -> Tensor:
    network: Any = make_reward("scenes-learned").network
    found, end = (network.see(lesson.decode(x) * 2 - 1) for x in (lesson.found, lesson.batch.end))
    return mse(lesson) + (found - end).pow(2).mean() / end.var()


def reward(lesson: Lesson) -> Tensor:
    learned: Any = make_reward("scenes-learned")
    texts = [lesson.data.prompts[i] for i in lesson.rows.trajectories]
    found, end = (
        learned.differentiable(lesson.decode(x), texts) for x in (lesson.found, lesson.batch.end)
    )
    return mse(lesson) + 2 * (found - end.detach()).pow(2).mean()


def consistency(lesson: Lesson) -> Tensor:
    student, batch, states = lesson.student, lesson.batch, lesson.data.states
    steps = torch.from_numpy(lesson.rows.steps)
    after = (steps + 1).clamp(max=states.shape[1] - 1)
    first = torch.arange(len(batch.end)) >= lesson.rows.second
    # second calls, and first calls from the last state, learn the end
    going = first & (after > steps)
    with torch.no_grad():
        x = student.on_path(states[lesson.rows.trajectories, after].float(), after)
        ahead = student.estimate(x, student.times[after] * student.first_time, batch.cond).float()
    return lesson.error(torch.where(going.view(-1, 1, 1, 1), ahead, batch.end))


def shortcut(lesson: Lesson) -> Tensor:
    student, batch, drawn = lesson.student, lesson.batch, lesson.rows
    steps = torch.from_numpy(drawn.steps)
    noise = (steps == 0).nonzero()[:, 0]
    rows = noise[noise >= drawn.second][::2]
    x = student.on_path(lesson.data.states[drawn.trajectories[rows], 0].float(), steps[rows])
    with torch.no_grad():
        estimate = partial(student.estimate, cond=batch.cond[rows])
        two = guess(
            student.path, estimate, x, student.times[steps[rows]], 2, student.first_time
        ).float()
    return lesson.error(batch.end.index_copy(0, rows, two))


OBJECTIVES: dict[str, Callable[[Lesson], Tensor]] = {
    "mse": mse,
    "low frequencies": low_frequencies,
    "features": features,
    "reward": reward,
    "consistency": consistency,
    "shortcut": shortcut,
}


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument(
        "--out", type=Path, required=True, help="folder to keep everything in, and to go on from"
    )
    p.add_argument("--objectives", nargs="+", default=list(OBJECTIVES), choices=OBJECTIVES)
    p.add_argument("--trajectories", type=int, default=6144)
    p.add_argument("--steps", type=int, default=300)
    p.add_argument("--lr", type=float, default=5e-4)
    p.add_argument("--prompts", type=int, default=24)
    p.add_argument("--seeds", type=int, default=48)
    p.add_argument("--prompt-seed", type=int, default=0)
    p.add_argument("--json", type=Path)
    a = p.parse_args()
    pipe, call = load(), defaults()
    config = TrajectoryConfig(
        count=a.trajectories, seed=9_000_000, skipped=(11, 12, 14, 15, 17, 18, 19), batch=64
    )
    captions = SceneCaptions(config.seed)
    settings = trajectories.settings_of(config, EMBEDDED, call, captions, pipe.dtype)
    made = trajectories.make(
        pipe.denoiser(**call), captions, config, settings, a.out / "trajectories"
    )
    data = Trajectories.read(made, settings)
    training = TrainingConfig(steps=a.steps, lr=a.lr, warmup=20, decay=0.6, precision="no")
    errors: dict[str, dict[str, float]] = {"packaged": {}}
    for name in dict.fromkeys(["mse", *a.objectives]):  # to which the others are compared
        errors[name] = trained(name, pipe, call, data, training, a.out)
    plain = pipe.engine(list(REWARDS), batch_size=64, **call)
    prompts = sample_prompts(a.prompts, a.prompt_seed)
    test = record(
        plain,
        prompts,
        a.out / "test",
        RecordOptions(a.seeds, steps=[]),
        info=call,
        progress_bar=True,
    )
    final, ranks = SOFT(test.final), {}
    for name in errors:
        draft = EMBEDDED if name == "packaged" else str(a.out / name)
        looked = with_looks(
            test, pipe.engine(list(REWARDS), batch_size=64, draft=draft, **call), LOOKS, 0
        )
        ranks[name] = [spearman(SOFT(looked.looks[seen]), final) for seen in LOOKS]
    rows = [row(name, errors[name], ranks[name], ranks["mse"]) for name in errors]
    for found in rows:
        print(" | ".join(f"{key} {value}" for key, value in found.items()))
    if a.json:
        a.json.write_text(
            json.dumps({"setting": {k: str(v) for k, v in vars(a).items()}, "rows": rows}, indent=1)
        )


def trained(
    name: str,
    pipe: Any,
    call: dict[str, Any],
    data: Trajectories,
    config: TrainingConfig,
    out: Path,
) -> dict[str, float]:
    """Train and export the draft of this objective, unless it is there; its errors on held-back
    trajectories."""
    log = out / f"{name}.json"
    if log.exists():
        return dict(json.loads(log.read_text()))
    torch.manual_seed(config.seed)
    student = DraftStudent(
        pipe, call, states=data.states.shape[1], first_time=config.first_time, rank=config.rank
    )
    start_from(student, Path(draft_path()))
    denoiser = pipe.denoiser(**call)
    held, rest = data.part(0, config.validation), data.part(config.validation, len(data))
    optimizer = torch.optim.AdamW(
        student.parameters.values(), lr=config.lr, betas=(0.9, 0.99), weight_decay=0.0
    )
    weights = Weights(student.parameters, optimizer)
    for step in tqdm(range(config.steps), desc=name, mininterval=10):
        optimizer.param_groups[0]["lr"] = config.lr * factor(step, config)
        optimizer.zero_grad(set_to_none=True)
        drawn = draw(step, len(rest), data.states.shape[1], config)
        batch = batch_of(student, rest, drawn, config)
        found = student.estimate(batch.x, batch.time, batch.cond).float()
        OBJECTIVES[name](Lesson(student, rest, drawn, batch, found, denoiser.decode)).backward()
        torch.nn.utils.clip_grad_norm_(student.parameters.values(), config.clip)
        optimizer.step()
        weights.follow(min(config.ema, (1 + step) / (10 + step)))
    with weights.averaged():
        errors = validate(student, held, config)
        export(
            student,
            pipe,
            DraftSettings(first_time=config.first_time),
            f"Trained on: {name}.\n",
            out / name,
        )
    log.write_text(json.dumps(errors))
    return errors


def row(name: str, errors: dict[str, float], ranks: list[Any], base: list[Any]) -> dict[str, Any]:
    """Figures of an objective: errors, Spearman of one call and of two, and the paired differences
    to `mse`."""
    found: dict[str, Any] = {"objective": name, **errors}
    for calls, (mine, other) in enumerate(zip(ranks, base, strict=True), 1):
        both = np.isfinite(mine) & np.isfinite(other)
        gain, n = (mine - other)[both], both.sum()
        found[f"spearman {calls}"] = (
            f"{mine[both].mean():.3f} ± {mine[both].std(ddof=1) / n**0.5:.3f}"
        )
        found[f"over mse {calls}"] = f"{gain.mean():+.3f} ± {gain.std(ddof=1) / n**0.5:.3f}"
    return found


if __name__ == "__main__":
    main()
