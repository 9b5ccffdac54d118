"""What a search gives in the end: the kept images of each prompt, and what they took."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ttsnap.core.particles import Particles
from ttsnap.core.protocols import Engine, RunUsage
from ttsnap.core.results import Candidate, Result, Spent
from ttsnap.loop.job import Job, Notice
from ttsnap.loop.request import TIMED, RunningRequest


def report(request: RunningRequest, engine: Engine, usage: RunUsage) -> list[Result]:
    """A Result for each job of a request that is done. usage: what the run used besides
    (profiling/meter.py)."""
    jobs = request.jobs
    watch = request.watch
    taken = [engine.price.evaluations(job.ledger.spent) for job in jobs]
    total = sum(taken) or 1
    times = watch.seconds, watch.before
    for job in jobs:
        if job.ended == TIMED:  # how, is known at the end
            job.ended = request.time_is_up
    return [
        _result(job, engine, times, usage, nfe / total)
        for job, nfe in zip(jobs, taken, strict=True)
    ]


def _result(
    job: Job, engine: Engine, times: tuple[float, float], usage: RunUsage, share: float
) -> Result:
    """times: seconds of the run, and before it; share: of this job in the evaluations of all."""
    seconds, before = times
    particles = job.particles
    images = _candidates(job, engine.reward_names)
    spent = Spent(
        job.ledger.spent,
        engine.price,
        str(job.ledger),
        seconds=seconds * share,
        seconds_by={phase: value * share for phase, value in engine.timings.items()},
        seconds_all_prompts=seconds,
        seconds_before=before,
        ended=job.ended,
        usage=_shared(usage, share, len(images)),
        seeds=_started(particles),
        finished=int(particles.finished.sum()),
        gain_of_second_half=_second_half(particles),
        refused=particles.selection.refusals(particles.scores[particles.finished, -1]),
        calibration=engine.calibration_cost,
        lost=engine.lost,
    )
    found = (spent, tuple(job.trace), particles, tuple(map(str, notices(job, engine, images))))
    return Result(job.prompt.text, images, *found, state=job.state, levels=engine.grid.levels)


def _candidates(job: Job, names: Sequence[str]) -> tuple[Candidate, ...]:
    """The kept images, best first."""
    particles = job.particles
    ranking = job.ranking()
    kept = set(job.kept)
    # Of all images, as a utility may rank them among each other.
    values: Sequence[float] = particles.value(ranking).tolist() if ranking else []
    return tuple(
        Candidate(
            uid,
            int(particles.seed[uid]),
            float(v) if np.isfinite(v) else float("nan"),
            {name: float(s) for name, s in zip(names, particles.scores[uid, -1], strict=True)},
            None if (picture := job.images[uid]) is None else picture.fetch(),
            batches=() if picture is None else picture.batches,
        )
        for uid, v in zip(ranking, values, strict=True)
        if uid in kept
    )


def notices(job: Job, engine: Engine, images: Sequence[Candidate]) -> list[Notice]:
    """What to say of a job that is done, and of the images that came of it."""
    found = list(job.warnings)
    keep = job.particles.selection.keep
    if not images and not job.trace:
        found.append(Notice("stopped before this prompt was taken up"))
    elif images and not any(np.isfinite(candidate.reward) for candidate in images):
        found.append(Notice("no image has a score: which of them is the best is not known"))
    found += _refusals(job, images)
    if 0 < len(images) < keep:
        found.append(Notice(f"{len(images)} of the {keep} images asked for were finished"))
    drafts = _started(job.particles) > 1  # of one seed, none is chosen
    if engine.draft_calls and images and drafts and not job.ledger.spent.draft_calls:
        why = "this search looks at none; seed-pruning with draft_share > 0 does"
        found.append(Notice(f"the draft was not used: {why}"))
    return found + [Notice(said) for said in engine.notices]


def _refusals(job: Job, images: Sequence[Candidate]) -> list[Notice]:
    """How many images were refused, by what, and what it means where all were."""
    particles = job.particles
    refused = int(particles.refused.sum())
    finished = int(particles.finished.sum())
    if not refused:
        return []
    counts = particles.selection.refusals(particles.scores[particles.finished, -1])
    by = ", ".join(f"{name} {count}" for name, count in counts.items() if count)
    said = [Notice(f"{refused} of {finished} finished images were refused (by {by})")]
    if not images:
        said.append(
            Notice(
                "no image meets what is required: raise the budget, require less, or try other"
                " seeds"
            )
        )
    return said


def _started(particles: Particles) -> int:
    """How many seeds were begun."""
    begun = (particles.step > 0) | (particles.scored >= 0) | particles.cached
    return int(((particles.parent < 0) & begun).sum())


def _shared(usage: RunUsage, share: float, images: int) -> RunUsage:
    """What the run used, its energy by this prompt's share of it; without the seconds, which Spent
    has itself."""
    joules = usage.get("energy_joules")
    used = usage.copy()
    used.pop("seconds", None)
    used["energy_joules"] = joules = None if joules is None else joules * share
    used["energy_joules_per_image"] = joules / images if joules is not None and images else None
    return used


def _second_half(particles: Particles) -> float | None:
    """By how much the best finished image exceeds the best of half of them, on average over halves;
    None below 4.

    Best-of-N rises ever more slowly with log N, so doubling the budget can be expected to gain less
    than this.
    """
    # imported late: scipy would double the start of the command line
    from ttsnap.core.metrics import best_of_n

    value = particles.value(np.flatnonzero(particles.finished))
    value = value[np.isfinite(value)]
    return float(value.max() - best_of_n(value, len(value) // 2)) if len(value) >= 4 else None
