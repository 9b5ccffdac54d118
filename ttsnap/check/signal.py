"""Signal: whether early scores rank seeds, and how much of best-of-8's gain searches keep at half
its cost.

Prompts x seeds are recorded once, prompt by prompt; all searches are played back on that. Where
drafts are finished, their ends are other images, so that these are recorded as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ttsnap.algorithms import spec_of
from ttsnap.algorithms.seed_pruning import SeedPruning
from ttsnap.check.ladder import Figure, Rung, Setup, in_short
from ttsnap.core import metrics
from ttsnap.core.arrays import FloatArray
from ttsnap.core.cost import Rates
from ttsnap.core.looks import ESTIMATE
from ttsnap.files.reading import read_object
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

IMAGES, LEAST, ENOUGH, MOST = 8, 3, 96, 48
"""Images of the search that others are held against, so at least as many seeds; the fewest prompts;
the images from which seeds are twice as many, so that pruning can choose; the most seeds."""
LEVELS = (0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.25)
"""Noise levels at which estimates are scored, but for the last step, whose estimate is the image
itself."""
KEEP, DRAFT_SHARES, REPEATS = (0.2, 0.35, 0.5), (0.15, 0.3, 0.5), 20
"""Schedules that are tried: shares kept at one check, shares of the cost for drafts. Searches for
each prompt."""
RANKED, FINISHED = "drafts that rank", "drafts that are finished"
PLAIN, PRUNING = "best-of-N", "pruning"


def signal(setup: Setup) -> Rung:
    """Record as many prompts x seeds as the time allows, then play searches on them."""
    rung = Rung("signal")
    whole = _recorded(setup, rung, "noise", setup.drafted)
    if whole is None:
        return rung
    rung.figures["prompts"], rung.figures["seeds"] = Figure(len(whole.prompts)), Figure(whole.seeds)
    _correlations(setup, rung, whole)
    final = setup.utility(whole.final)
    one, gain = final.mean(1), metrics.best_of_n(final, IMAGES) - final.mean(1)
    rung.note("gain of best-of-8 in the reward", Figure.over_prompts(gain), "it takes two prompts")
    rung.more["varied"] = bool(metrics.varied(final).any())
    if setup.judged:
        right = whole.final[..., -1]
        more = metrics.best_of_n(final, IMAGES, of=right) - right.mean(1)
        rung.note(
            "right images",
            Figure.over_prompts(100 * right.mean(1), unit="%"),
            "it takes two prompts",
        )
        rung.note(
            "right images more by best-of-8",
            Figure.over_prompts(100 * more, unit="%"),
            "it takes two prompts",
        )
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
    if rung.more["varied"]:
        _searches(setup, rung, whole, finished, one, gain)
    rung.done = not rung.more.pop("cut", False)
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
    engine = setup.engine(setup.more("cost", "batch_size"), sampler)
    grid, folder = engine.grid, setup.out / name
    rates, ends = _seconds(setup, engine.price.nfe_per_draft), name == "finished"
    steps = (
        []
        if ends
        else sorted({at for level in LEVELS if (at := grid.step_at(level)) < grid.steps - 1})
    )
    one = 0.0
    if rates is not None:
        checks = len(steps) * (rates.previews or rates.decodes) + rates.decodes
        one = (
            grid.nfe * rates.nfe
            + checks
            + (len(steps) + 1) * len(engine.reward_names) * rates.reward_calls
        )
    if not prompts:
        images = (
            int((0.7 if setup.draft is None else 0.45) * setup.left / one)
            if one
            else LEAST * IMAGES
        )
        plan = _plan(setup, images)
        prompts, seeds = plan["prompts"], plan["seeds"]
        if prompts < LEAST:
            rung.missing["signal"] = (
                f"it takes {LEAST} prompts x {IMAGES} seeds, and {images} images of {one:.3g} s "
                "fit into the time; give more --minutes"
            )
            return None
    parts: list[Recording] = []
    for index, prompt in enumerate(setup.prompts[:prompts]):
        if (
            setup.left < one * seeds * 0.7
            and not (folder / f"{index:02d}" / SCORES).exists()
            and parts
        ):
            break
        options = RecordOptions(seeds, steps=steps or [grid.steps], block=(1, seeds))
        parts.append(record(engine, [prompt], folder / f"{index:02d}", options))
        setup.say(f"{name}: {len(parts)} of {prompts} prompts x {seeds} seeds are recorded")
    if len(parts) < prompts:
        rung.more["cut"] = True
        rung.missing[f"{prompts - len(parts)} prompts of {name}"] = (
            "the time was over; the same command goes on"
        )
    return _joined(parts) if len(parts) >= LEAST else None


def _plan(setup: Setup, images: int) -> dict[str, Any]:
    """How many prompts and seeds so many images are; what was begun stays as it was planned."""
    kept = setup.out / "plan.json"
    if kept.is_file():
        return dict(read_object(kept, what="plan of a check"))
    seeds = IMAGES if images < ENOUGH else min(MOST, max(2 * IMAGES, images // len(setup.prompts)))
    plan = {"prompts": min(len(setup.prompts), images // seeds), "seeds": seeds}
    if plan["prompts"] >= LEAST:
        write_json(kept, dict(plan))
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
    known = setup.more("cost", "seconds")
    if not known:
        return None
    rates = Rates(**known)
    return replace(rates, draft_calls=rates.nfe * nfe_per_draft)


def _correlations(setup: Setup, rung: Rung, recording: Recording) -> None:
    why = "no score varies within two prompts"
    for look in ranked(recording, setup.utility):
        step = look.seen.step
        at = f"noise {recording.grid.levels[step]:.2f}, {look.nfe:g} evaluations"
        word = "estimate" if look.seen.look == ESTIMATE.name else "draft"
        found = Figure.over_prompts(look.spearman)
        rung.note(f"rank correlation of the {word} at {at}", found, why)
        if found is not None:
            rung.more.setdefault("ranks", {})[f"{word}@{step}"] = [
                found.value,
                found.low,
                found.high,
            ]
    rung.more["latest"] = max(
        (step for step in range(recording.grid.steps) if recording.scored[step]), default=None
    )


def _searches(
    setup: Setup,
    rung: Rung,
    whole: Recording,
    finished: Recording | None,
    one: FloatArray,
    gain: FloatArray,
) -> None:
    """Shares of best-of-8's gain at half its cost; the schedule is chosen on the other prompts each
    time."""
    rates = _seconds(setup, whole.price.nfe_per_draft)
    image = (
        None
        if rates is None
        else whole.grid.nfe * rates.nfe
        + rates.decodes
        + (len(whole.reward_names) * rates.reward_calls)
    )
    budget = Budget(images=IMAGES / 2) if image is None else Budget(seconds=IMAGES / 2 * image)
    rung.said.append(
        "half the cost is in " + ("evaluations" if image is None else "seconds, as measured above")
    )
    checks = [step for step in range(whole.grid.steps) if whole.scored[step]]
    fitted: dict[str, Any] = {"denoising_steps": whole.denoising_steps}
    tried: dict[str, tuple[Recording, list[SeedPruning]]] = {
        PRUNING: (
            whole,
            [
                SeedPruning(None, (keep,), steps=(at,), draft_share=0.0, **fitted)
                for at in checks
                for keep in KEEP
            ],
        ),
    }
    drafted = [SeedPruning(None, (), (), draft_share=share, **fitted) for share in DRAFT_SHARES]
    if whole.looks:
        tried[RANKED] = whole, drafted
    if finished is not None:
        tried[FINISHED] = finished, drafted
    plain = metrics.best_of_n(setup.utility(whole.final), IMAGES // 2) - one
    shares = {PLAIN: plain}
    for name, (recording, schedules) in tried.items():
        priced = replace(recording, price=replace(recording.price, seconds=rates))
        table = (
            np.array(
                [
                    curve(priced, each, [budget], REPEATS, utility=setup.utility).rewards[:, 0]
                    for each in schedules
                ]
            )
            - one[: len(recording.prompts)]
        )
        others = table.sum(1, keepdims=True) - table
        shares[name] = np.take_along_axis(table, others.argmax(0)[None], 0)[0]
        rung.more.setdefault("schedules", {})[name] = spec_of(
            schedules[int(table.mean(1).argmax())]
        )
        if short_of_seeds(priced, schedules[0], [budget]) is not None:
            rung.said.append(
                f"{name} would start more than the {recording.seeds} recorded seeds, and find more,"
                " live"
            )
    for name, kept in shares.items():
        n = len(kept)
        rung.note(
            f"share kept by {name}",
            Figure.over_prompts(100 * kept, gain[:n], "%"),
            "best-of-8 gains nothing",
        )
        lead = Figure.over_prompts(100 * (kept - plain[:n]), gain[:n], "%")
        if name != PLAIN and lead is not None:
            rung.figures[f"lead of {name} over best-of-N of the same cost"] = lead
            rung.more.setdefault("leads", {})[name] = [lead.value, lead.low, lead.high]
