"""How often a showcase goes as it is shown: best-of-N beside seed pruning, one prompt, one budget.

    python benchmarks/showcase.py --json showcase.json
    python benchmarks/showcase.py --model signs --plot signs.png  # needs the extras ocr and plot

Seeds of the prompt of a packaged model's showcase (ttsnap/pipelines/packaged.py) are recorded:
every seed to the end, with the score by which searches choose at some steps, and the score that
says whether an image is right; and again from its draft, where the model has a drafter whose drafts
are finished. Then each search plays its recording again and again, each time with the recorded
seeds in another random order, the same for all. Printed are the shares of searches whose winner is
right, and how the winners of best-of-N and of the shown search compare. The draws share one
recording, so that more of them do not make the figures better than its seeds are: the standard
errors are over bootstraps of the recorded seeds. At last come the first seeds from which only the
shown search finds a right image, and what the searches find from the showcase's own seed. With
--plot, a picture of these two; below a word stands what the OCR reads.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ttsnap import BestOfN, Budget, SeedPruning, __version__
from ttsnap.core.grid import Task
from ttsnap.core.protocols import Algorithm
from ttsnap.core.results import Event, Spent
from ttsnap.core.selection import Selection
from ttsnap.core.utility import Utility, weighted
from ttsnap.engine.live import LiveEngine
from ttsnap.loop.search import search
from ttsnap.options.record import RecordOptions
from ttsnap.pipelines import load, recommended
from ttsnap.pipelines.packaged import MODELS, Packaged, Showcase
from ttsnap.recordings.record import record
from ttsnap.recordings.replay import Recording
from ttsnap.results.media import still
from ttsnap.sampling.drafts import read_draft
from ttsnap.simulation.lockstep import lockstep
from ttsnap.simulation.orders import Orders
from ttsnap.simulation.sizing import sized_for

PLAIN = "best-of-n"
FIRST = 100
"""First seeds from which the searches are compared one by one."""
Recordings = Mapping[str, Recording]
"""Of the same seeds, by the names of the searches that play them."""
Sized = Mapping[str, tuple[Task, Algorithm]]
"""Each algorithm by the name of its arm, with the seeds that the budget affords, and its task."""


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--model", default="embedded", help="a packaged model with a showcase")
    p.add_argument("--prompt", help="another than the showcase's")
    p.add_argument("--budget", help="another than the showcase's")
    p.add_argument("--draft", help="the model's own by default")
    p.add_argument("--seeds", type=int, default=1000, help="recorded, from seed 0 on")
    p.add_argument(
        "--repeats",
        type=int,
        default=20_000,
        help="draws of seeds from the recording, for all algorithms",
    )
    p.add_argument(
        "--bootstraps", type=int, default=50, help="of the recorded seeds, for the standard errors"
    )
    p.add_argument(
        "--score-steps",
        type=int,
        nargs="+",
        default=[8],
        help="where seed pruning looks at estimates",
    )
    p.add_argument("--batch-size", type=int, default=64)
    p.add_argument("--dtype", default="float32", help="as `make demo` runs it")
    p.add_argument(
        "--recordings", type=Path, help="folder to keep the recording in, and to go on from"
    )
    p.add_argument("--json", type=Path)
    p.add_argument("--plot", type=Path, help="a picture of both searches from the showcase's seed")
    a = p.parse_args()
    if a.seeds < FIRST:
        p.error(
            f"--seeds must be {FIRST} or more, from each of which a search begins; got {a.seeds}"
        )
    ours, own = MODELS[a.model], recommended(a.model)
    shown = ours.showcase or p.error(f"{a.model} has no showcase")
    given = {
        name: value for name in ("prompt", "budget") if (value := getattr(a, name)) is not None
    }
    shown, draft = dataclasses.replace(shown, **given), a.draft or own.draft
    rewards = [ours.rewards[0], *([] if ours.report is None else [ours.report])]
    pipe, finish = load(a.model, dtype=getattr(torch, a.dtype)), read_draft(ours.draft).finish
    ways = {"noise": {}, **({finish: {"draft": draft, "finish": finish}} if draft else {})}
    made = {}
    with tempfile.TemporaryDirectory() as temporary:
        for way, how in ways.items():
            engine = pipe.engine(rewards, batch_size=a.batch_size, **how, **own.call)
            folder = (a.recordings or Path(temporary)) / f"showcase-{way.replace(':', '-')}"
            options = RecordOptions(
                a.seeds, steps=a.score_steps if way == "noise" else [engine.grid.steps]
            )
            made[way] = record(
                engine, [shown.prompt], folder, options, info={**own.call, **how}, progress_bar=True
            )
    searches = arms(draft is not None)
    recordings = {
        name: made[finish if name == list(searches)[-1] and draft else "noise"] for name in searches
    }
    sized = {
        name: sized_for(recordings[name], each, Budget.parse(shown.budget))
        for name, each in searches.items()
    }
    plain = recordings[PLAIN]
    found = shares(
        recordings, ours, Orders.drawn(plain, a.repeats, np.random.default_rng(0)), sized
    )
    errors = standard_errors(recordings, ours, sized, a.repeats, a.bootstraps)
    print(f"{shown.prompt!r}, {shown.budget}: {a.repeats} draws from {plain.seeds} recorded seeds")
    for name, share in found.items():
        print(f"{name:>48}: {100 * share:5.1f} ± {100 * errors[name]:.1f} %")
    each = [shares(recordings, ours, from_seed(plain, seed), sized) for seed in range(FIRST)]
    best = list(sized)[-1]
    told = [s for s, e in enumerate(each) if e[f"{best} right"] > e[f"{PLAIN} right"]]
    print(f"of the first seeds 0 to 99 the difference shows from {told}")
    print(
        f"from seed {shown.seed}:"
        f" {', '.join(name for name, share in each[shown.seed].items() if share == 1)}"
    )
    if a.plot:
        odds = {name: (found[f"{name} right"], errors[f"{name} right"]) for name in (PLAIN, best)}
        plot(engine, ours, shown, searches, odds, a.plot)
    if a.json:
        settings = {
            "model": a.model,
            "prompt": shown.prompt,
            "budget": shown.budget,
            "seeds": a.seeds,
            "repeats": a.repeats,
            "dtype": a.dtype,
            "draft": draft,
            "call": own.call,
        }
        noted = {"ttsnap": __version__, "settings": settings, "shares": found, "errors": errors}
        a.json.write_text(json.dumps({**noted, "from seed": each[shown.seed]}, indent=1))


def arms(drafted: bool) -> dict[str, Algorithm]:
    """The searches by name, the shown one last."""
    if not drafted:
        return {PLAIN: BestOfN(), "seed-pruning": SeedPruning(draft_share=0)}
    return {
        PLAIN: BestOfN(),
        "seed-pruning without drafts": SeedPruning(draft_share=0),
        "seed-pruning with drafts, finished": SeedPruning(),
    }


def first(names: Sequence[str]) -> Utility:
    """Searches choose by the first reward."""
    return weighted([1.0] + [0.0] * (len(names) - 1))


def right(recording: Recording, ours: Packaged) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Whether each recorded seed's image is right."""
    return ours.right.met(recording.final[0, :, -1])


def shares(
    recordings: Recordings, ours: Packaged, orders: Orders, sized: Sized
) -> dict[str, float]:
    """Shares in [0, 1]: of the recorded seeds that are right, then of searches in these orders by
    what holds."""
    reward, winner, holds = {}, {}, {}
    for name, (task, algorithm) in sized.items():
        recording = recordings[name]
        assert algorithm.n is not None  # `sized_for` sets it
        lookup = orders.play(recording, algorithm.n)
        out = lockstep(
            algorithm,
            lookup,
            len(orders),
            task,
            rewards=len(recording.reward_names),
            utility=first(recording.reward_names),
        )
        reward[name] = out.reward
        winner[name] = np.take_along_axis(orders.seeds, out.winner[:, None], 1)[:, 0]
        holds[name] = right(recording, ours)
    best = list(sized)[-1]
    return {
        "recorded seeds right": float(holds[PLAIN].mean()),
        **{f"{name} right": float(holds[name][winner[name]].mean()) for name in sized},
        f"lead of {best}": float(
            holds[best][winner[best]].mean() - holds[PLAIN][winner[PLAIN]].mean()
        ),
        f"{best} of higher reward": float((reward[best] > reward[PLAIN]).mean()),
        f"{best} of lower reward": float((reward[best] < reward[PLAIN]).mean()),
        "same seed": float((winner[best] == winner[PLAIN]).mean()),
    }


def standard_errors(
    recordings: Recordings, ours: Packaged, sized: Sized, repeats: int, bootstraps: int
) -> dict[str, float]:
    """Of `shares`: their spread where the recorded seeds are resampled and other orders are
    drawn."""
    rng, found = np.random.default_rng(1), []
    for _ in range(bootstraps):
        rows = rng.integers(recordings[PLAIN].seeds, size=recordings[PLAIN].seeds)
        resampled = {
            name: dataclasses.replace(
                recording,
                scores=recording.scores[:, rows],
                looks={seen: scores[:, rows] for seen, scores in recording.looks.items()},
            )
            for name, recording in recordings.items()
        }
        found.append(shares(resampled, ours, Orders.drawn(resampled[PLAIN], repeats, rng), sized))
    return {name: float(np.std([one[name] for one in found])) for name in found[0]}


def from_seed(recording: Recording, seed: int) -> Orders:
    """The order of a live search whose first seed is `seed`, as a single search."""
    return Orders(((np.arange(recording.seeds) - seed) % recording.seeds)[None].astype(float))


def plot(
    engine: LiveEngine,
    ours: Packaged,
    shown: Showcase,
    named: Mapping[str, Algorithm],
    odds: Mapping[str, tuple[float, float]],
    file: Path,
) -> None:
    """Draw what best-of-N and the shown search finish from the showcase's seed: live searches, best
    images first."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows: list[tuple[str, Spent, list[Event]]] = []
    for name in odds:
        finished: list[Event] = []

        def listen(event: Event, finished: list[Event] = finished) -> None:
            if event.kind == "score" and event.step == engine.grid.steps:
                finished.append(event)

        (found,) = search(
            [shown.prompt],
            named[name],
            engine,
            shown.budget,
            selection=Selection(first(engine.reward_names)),
            seed=shown.seed,
            on_event=listen,
        )
        winner = found.best.uid
        rows.append(
            (name, found.spent, sorted(finished, key=lambda e: (e.uids[0] != winner, -e.scores[0])))
        )
    images = [[still(event.image) for event in finished] for _, _, finished in rows]
    read = getattr(engine.rewards[0], "read", None)  # the OCR's
    width, height = images[0][0].size
    wide, gap = max(map(len, images)), 0.08
    cell = min(2.1, (9.0 - gap) / wide - gap)
    tall = cell * height / width
    total = 0.42 + len(rows) * (0.58 + tall)
    fig = plt.figure(figsize=(9.0, total), dpi=150)

    def write(x: float, y: float, text: str, size: float, **how: Any) -> None:
        fig.text(x / 9.0, 1 - y / total, text, fontsize=size, va="center", **how)

    write(gap, 0.22, f"{shown.prompt} · {shown.budget}", 12, weight="bold")
    if read is not None:
        write(9.0 - gap, 0.22, "below each: what the OCR reads", 9.5, ha="right", color="#555555")
    for line, (name, spent, finished) in enumerate(rows):
        top, (share, error) = 0.42 + line * (0.58 + tall), odds[name]
        looked = (
            f"{spent.seeds} seeds started, {spent.finished} finished"
            if spent.seeds > spent.finished
            else (f"{spent.seeds} seeds")
        )
        write(gap, top + 0.16, f"{name}: {looked}", 9.5)
        write(
            9.0 - gap,
            top + 0.16,
            f"right from {100 * share:.0f} ± {100 * error:.0f} % of first seeds",
            9.5,
            ha="right",
            color="#555555",
        )
        for place, event in enumerate(finished):
            x = gap + place * (cell + gap)
            axis = fig.add_axes(
                (x / 9.0, 1 - (top + 0.32 + tall) / total, cell / 9.0, tall / total)
            )
            axis.imshow(images[line][place], interpolation="nearest", aspect="auto")
            axis.set(xticks=[], yticks=[])
            good = bool(ours.right.met(np.array(event.scores[-1])))
            colour = "#2a9d5c" if good else "#c0392b"
            axis.spines[:].set(visible=place == 0, color=colour, linewidth=3)
            said = f"{'winner, ' if place == 0 else ''}{'right' if good else 'wrong'}"
            if read is not None and event.image is not None:
                said += (
                    f": {' '.join(part.text for part in read(event.image[None])[0]) or 'nothing'}"
                )
            write(
                x + cell / 2,
                top + 0.44 + tall,
                said,
                8,
                ha="center",
                color=colour if place == 0 else "#777777",
                weight="bold" if place == 0 else "normal",
            )
    fig.savefig(file)


if __name__ == "__main__":
    main()
