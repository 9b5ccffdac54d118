"""Signal: whether early scores rank seeds, and how much of best-of-8's gain searches keep at half
its cost.

Prompts x seeds are recorded once, prompt by prompt; all searches are played back on that. Where
drafts are finished, their ends are other images, so that these are recorded as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np

from ttsnap.algorithms import spec_of
from ttsnap.algorithms.seed_pruning import SeedPruning
from ttsnap.check.ladder import Figure, Known, Rung, Setup, in_short
from ttsnap.check.titles import title
from ttsnap.core import metrics
from ttsnap.core.arrays import FloatArray
from ttsnap.core.cost import Rates
from ttsnap.core.looks import ESTIMATE
from ttsnap.engine.live import LiveEngine
from ttsnap.files.run_folder import read_unit
from ttsnap.files.settings import Count, Json, Natural, Settings, to_json
from ttsnap.files.writing import write_json
from ttsnap.loop.budget import Budget
from ttsnap.options.record import RecordOptions
from ttsnap.options.sampler import SamplerOptions
from ttsnap.recordings.folder import SCORES
from ttsnap.recordings.record import record
from ttsnap.recordings.replay import Recording
from ttsnap.simulation.looks import ranked
from ttsnap.simulation.simulate import curve
from ttsnap.simulation.sizing import short_of_seeds

IMAGES = 8
LEAST = 3
ENOUGH = 96
MOST = 48
"""Images of the search that others are held against, so at least as many seeds; the fewest prompts;
the images from which seeds are twice as many, so that pruning can choose; the most seeds."""
LEVELS = (0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.25)
"""Noise levels at which estimates are scored, but for the last step, whose estimate is the image
itself."""
KEEP = (0.2, 0.35, 0.5)
DRAFT_SHARES = (0.15, 0.3, 0.5)
REPEATS = 20
"""Schedules that are tried: shares kept at one check, shares of the cost for drafts. Searches for
each prompt."""
RANKED = "ranking-drafts"
FINISHED = "finished-drafts"
PLAIN = "best-of-n"
PRUNING = "pruning"
FEW = "it takes two prompts"
SAME = 0.9
"""Rewards that rank the seeds of a prompt alike by more than this say the same."""


@dataclass(frozen=True)
class SignalPlan(Settings):
    """What is recorded."""

    prompts: Natural
    seeds: Count


@dataclass(frozen=True)
class Compared:
    """A search: the recording that it is played on, and its schedules, of which one is chosen."""

    recording: Recording
    schedules: Sequence[SeedPruning]


def signal(setup: Setup) -> Rung:
    """Record as many prompts x seeds as the time allows, then play searches on them."""
    rung = Rung("signal")
    whole = _recorded(setup, rung, "noise", setup.drafted)
    if whole is None:
        return rung
    rung.figures["prompts"], rung.figures["seeds"] = Figure(len(whole.prompts)), Figure(whole.seeds)
    latest = _correlations(setup, rung, whole)
    _effective(setup, rung, whole)
    final = setup.utility(whole.final)
    one = final.mean(1)
    gain = metrics.best_of_n(final, IMAGES) - final.mean(1)
    rung.note("gain", Figure.over_prompts(gain), FEW)
    varied = bool(metrics.varied(final).any())
    if setup.judged:
        right = whole.final[..., -1]
        more = metrics.best_of_n(final, IMAGES, of=right) - right.mean(1)
        rung.note("right-images", Figure.over_prompts(100 * right.mean(1), unit="%"), FEW)
        rung.note("right-more", Figure.over_prompts(100 * more, unit="%"), FEW)
    finished = None
    if setup.draft is None:
        rung.missing[RANKED] = rung.missing[FINISHED] = (
            "the model has no drafter, and none is named (--draft)"
        )
    else:
        how = replace(setup.spec.sampler.from_drafts(), draft=setup.draft)
        try:
            finished = _recorded(setup, rung, "finished", how, len(whole.prompts), whole.seeds)
        except ValueError as error:
            rung.missing[FINISHED] = in_short(error)
    schedules = _searches(setup, rung, whole, finished, one, gain) if varied else {}
    rung.known = Known(varied=varied, latest=latest, schedules=schedules)
    rung.done = not any(name.startswith("unrecorded:") for name in rung.missing)
    return rung


def _recorded(
    setup: Setup,
    rung: Rung,
    name: str,
    sampler: SamplerOptions,
    prompts: int = 0,
    seeds: int = 0,
) -> Recording | None:
    """The recording, of as many prompts as the time allows; None where these are too few, which is
    noted."""
    engine = setup.engine(setup.cost.batch_size, sampler)
    grid = engine.grid
    folder = setup.out / name
    steps = list[int]()
    if name != "finished":
        found = {grid.step_at(level) for level in LEVELS}
        steps = sorted(step for step in found if step < grid.steps - 1)
    rates = _seconds(setup, engine.price.nfe_per_draft)
    one = 0.0 if rates is None else _image_seconds(rates, engine, len(steps))
    if not prompts:
        share = 0.7 if setup.draft is None else 0.45
        images = int(share * setup.left / one) if one else LEAST * IMAGES
        plan = planned(setup, images)
        prompts = plan.prompts
        seeds = plan.seeds
        if prompts < LEAST:
            rung.missing["signal"] = (
                f"it takes {LEAST} prompts x {IMAGES} seeds, and {images} images of {one:.3g} s "
                "fit into the time; give more --minutes"
            )
            return None
    parts: list[Recording] = []
    for index, prompt in enumerate(setup.prompts[:prompts]):
        there = folder / f"{index:02d}"
        too_late = setup.left < one * seeds * 0.7
        if too_late and parts and not (there / SCORES).exists():
            break
        options = RecordOptions(seeds, steps=steps or [grid.steps], block=(1, seeds))
        parts.append(record(engine, [prompt], there, options))
        setup.say(f"{name}: {len(parts)} of {prompts} prompts x {seeds} seeds are recorded")
    if left := prompts - len(parts):
        why = "the time was over; the same command goes on"
        rung.missing[f"unrecorded:{left}:{name}"] = why
    return _joined(parts) if len(parts) >= LEAST else None


def _image_seconds(rates: Rates, engine: LiveEngine, checks: int) -> float:
    """Of one image with so many checks on the way."""
    checked = checks * (rates.previews or rates.decodes) + rates.decodes
    judged = (checks + 1) * len(engine.reward_names) * rates.reward_calls
    return engine.grid.nfe * rates.nfe + checked + judged


def planned(setup: Setup, images: int) -> SignalPlan:
    """How many prompts and seeds so many images are; what was begun stays as it was planned."""
    kept = setup.out / "plan.json"
    if kept.exists():
        return read_unit(SignalPlan, kept, "it is planned again")
    seeds = IMAGES if images < ENOUGH else min(MOST, max(2 * IMAGES, images // len(setup.prompts)))
    plan = SignalPlan(min(len(setup.prompts), images // seeds), seeds)
    if plan.prompts >= LEAST:
        write_json(kept, to_json(plan))
    return plan


def _joined(parts: Sequence[Recording]) -> Recording:
    """One recording of many, each of one prompt."""
    return replace(
        parts[0],
        prompts=tuple(text for part in parts for text in part.prompts),
        scores=np.concatenate([part.scores for part in parts]),
        looks={
            seen: np.concatenate([part.looks[seen] for part in parts]) for seen in parts[0].looks
        },
    )


def _seconds(setup: Setup, nfe_per_draft: float) -> Rates | None:
    """Seconds a unit as the search of the cost rung took them; None where it did not run."""
    rates = setup.cost.seconds
    return None if rates is None else replace(rates, draft_calls=rates.nfe * nfe_per_draft)


def _correlations(setup: Setup, rung: Rung, recording: Recording) -> str | None:
    """Note how each look ranks the seeds of a prompt; the name of the last estimate's figure."""
    last = -1
    latest = None
    for look in ranked(recording, setup.utility):
        step = look.seen.step
        estimate = look.seen.look == ESTIMATE.name
        word = "estimate" if estimate else "draft"
        level = recording.grid.levels[step]
        name = f"rank:{word}:{level:.2f}:{look.nfe:g}"
        rung.note(name, Figure.over_prompts(look.spearman), "no score varies within two prompts")
        if estimate and step > last:
            last = step
            latest = name
    return latest


def _effective(setup: Setup, rung: Rung, whole: Recording) -> None:
    """How many seeds and rewards there effectively are, and which rewards say the same."""
    why = "the scores do not vary"
    n = whole.seeds
    alike = metrics.intraclass(setup.utility(whole.final))
    rung.note(f"effective-seeds:{n}", Figure(metrics.effective(n, alike)), why)
    names = whole.reward_names[: -1 if setup.judged else None]
    pairs = {}
    for a, b in combinations(range(len(names)), 2):
        each = metrics.spearman(whole.final[..., a], whole.final[..., b])
        pairs[a, b] = float(each[np.isfinite(each)].mean()) if np.isfinite(each).any() else np.nan
    if pairs:
        found = metrics.effective(len(names), float(np.mean(list(pairs.values()))))
        rung.note(f"effective-rewards:{len(names)}", Figure(found), why)
    rung.said += [
        f"rewards {a + 1} and {b + 1} rank images the same (correlation {rho:.2f}): one would do"
        for (a, b), rho in pairs.items()
        if rho > SAME
    ]


def _searches(
    setup: Setup,
    rung: Rung,
    whole: Recording,
    finished: Recording | None,
    one: FloatArray,
    gain: FloatArray,
) -> dict[str, dict[str, Json]]:
    """Note which share of best-of-8's gain each search keeps at half its cost; the algorithm of
    each. one: (P,) the mean of one seed. gain: (P,) of best-of-8 over it."""
    rates = _seconds(setup, whole.price.nfe_per_draft)
    if rates is None:
        budget = Budget(images=IMAGES / 2)
        unit = "evaluations"
    else:
        rewards = len(whole.reward_names) * rates.reward_calls
        image = whole.grid.nfe * rates.nfe + rates.decodes + rewards
        budget = Budget(seconds=IMAGES / 2 * image)
        unit = "seconds, as measured above"
    rung.said.append(f"half the cost is in {unit}")
    plain = metrics.best_of_n(setup.utility(whole.final), IMAGES // 2) - one
    nothing = "best-of-8 gains nothing"
    rung.note(f"kept:{PLAIN}", Figure.over_prompts(100 * plain, gain, "%"), nothing)
    chosen: dict[str, dict[str, Json]] = {}
    for name, tried in _tried(whole, finished).items():
        recording = tried.recording
        schedules = tried.schedules
        priced = replace(recording, price=replace(recording.price, seconds=rates))
        found = [
            curve(priced, each, [budget], REPEATS, utility=setup.utility).rewards[:, 0]
            for each in schedules
        ]
        n = len(recording.prompts)
        table = np.array(found) - one[:n]
        kept = _chosen_elsewhere(table)
        lead = kept - plain[:n]
        rung.note(f"kept:{name}", Figure.over_prompts(100 * kept, gain[:n], "%"), nothing)
        if (ahead := Figure.over_prompts(100 * lead, gain[:n], "%")) is not None:
            rung.figures[f"lead:{name}"] = ahead
        chosen[name] = spec_of(schedules[int(table.mean(1).argmax())])
        if short_of_seeds(priced, schedules[0], [budget]) is not None:
            rung.said.append(
                f"{title(name)} would start more than the {recording.seeds} recorded seeds, and"
                " find more, live"
            )
    return chosen


def _tried(whole: Recording, finished: Recording | None) -> dict[str, Compared]:
    """The searches that are held against best-of-N."""
    fitted: dict[str, Any] = {"denoising_steps": whole.denoising_steps}
    checks = [step for step in range(whole.grid.steps) if whole.scored[step]]
    pruned = [
        SeedPruning(None, (keep,), steps=(at,), draft_share=0.0, **fitted)
        for at in checks
        for keep in KEEP
    ]
    drafted = [SeedPruning(None, (), (), draft_share=share, **fitted) for share in DRAFT_SHARES]
    tried = {PRUNING: Compared(whole, pruned)}
    if whole.looks:
        tried[RANKED] = Compared(whole, drafted)
    if finished is not None:
        tried[FINISHED] = Compared(finished, drafted)
    return tried


def _chosen_elsewhere(table: FloatArray) -> FloatArray:
    """(P,) of each prompt what the schedule finds that is best on all other prompts. table: (S, P)
    of S schedules."""
    others = table.sum(1, keepdims=True) - table
    kept: FloatArray = np.take_along_axis(table, others.argmax(0)[None], 0)[0]
    return kept
