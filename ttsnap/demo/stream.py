"""Tells how searches go, a few times a second: boards while they run, files at their end. No gradio."""

from __future__ import annotations

import queue
import re
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ttsnap.algorithms import make_algorithm
from ttsnap.algorithms.by_hand import State, Wish
from ttsnap.algorithms.options import options_of
from ttsnap.core.grid import Grid
from ttsnap.core.results import Result
from ttsnap.core.spent import Spent
from ttsnap.demo import snippet
from ttsnap.demo.board_html import short
from ttsnap.demo.form import BASELINE, DemoLimits, baseline, task_of, title_of
from ttsnap.demo.panels import render_plain, render_stage
from ttsnap.demo.pictures import FULL, LARGE, thumbnail_uri
from ttsnap.demo.worker import LiveSearches, Models, RunningSearch, ScoredEvent, SearchEnd
from ttsnap.files.pictured import digests
from ttsnap.loop.budget import Budget
from ttsnap.loop.dry import DryEngine
from ttsnap.loop.search import fit
from ttsnap.loop.search import search as search_dry
from ttsnap.request.request import SearchRequest
from ttsnap.results import outputs
from ttsnap.version import __version__

PERIOD = 0.3
"""Seconds between two looks at the board."""
UNSPENT = 0.1
"""Less than this share of a budget left over needs no explanation."""


@dataclass(frozen=True)
class Frame:
    """What the page shows next. The first one is `fresh`: what an earlier search left there goes; files, python and
    command line come with the last one."""

    stage: str
    status: str = ""
    fresh: bool = False
    files: tuple[Path, ...] = ()
    python: str = ""
    command: str = ""
    warnings: tuple[str, ...] = ()


def stream(
    asked: SearchRequest,
    models: Models,
    limits: DemoLimits,
    stop: threading.Event,
    folder: Path,
    *,
    compare: bool = False,
    wishes: Sequence[Wish] = (),
) -> Iterator[Frame]:
    """Run what was asked (beside best-of-N, to compare) and write what was found to `folder`.

    wishes: those of the visitor so far, which may grow meanwhile. A comparison takes none: it is one of algorithms.
    Closing the iterator stops the search. ValueError for what the model or the search refuses.
    """
    if compare:
        check_comparable(asked)
    asked = asked.worded(models.canonical(asked.prompt.text, asked.model))
    both, heard = ([baseline(asked), asked], None) if compare else ([asked], wishes)
    worker = LiveSearches(both, models, limits, stop, heard)
    searches: list[RunningSearch] = []
    results: dict[int, Result] = {}
    busy = models.lock.locked()
    worker.start()
    try:
        words = "Another search is on the device; yours is next." if busy else "The first scores are on their way."
        yield Frame(render_plain(asked.prompt.text, words), "waiting for the device" if busy else "starting", True)
        for news in _batches(worker):
            for item in news:
                if isinstance(item, Exception):
                    raise item
                if isinstance(item, RunningSearch):
                    searches.append(item)
                elif isinstance(item, ScoredEvent):
                    board = searches[item.place].view.board
                    board.listen(item.event, item.picture, item.large, item.right)
                elif isinstance(item, SearchEnd):
                    results[item.place] = item.result
                    _settle(searches[item.place], item.result, ended=not (stop.is_set() or worker.late))
            if searches:
                views = [search.view for search in searches]
                names = " and ".join(view.title for view in views)
                how = about(searches[-1].asked, both=compare)
                yield Frame(render_stage(asked.prompt.text, views, how), f"searching: {names}")
        yield _last(searches, results, worker, folder)
    finally:
        stop.set()


def check_comparable(asked: SearchRequest) -> None:
    """ValueError where a search cannot be compared with best-of-N at equal evaluations."""
    if asked.search.label == BASELINE:
        raise ValueError(f"choose another algorithm than {BASELINE} to compare with it")
    if asked.budget.seconds is not None:
        raise ValueError(
            f"a comparison is one of equal evaluations, but the budget is {asked.budget}; give it as 6 images or 120nfe"
        )


def about(asked: SearchRequest, *, both: bool = False) -> str:
    """One line that says how a search, or both that are compared, sample and score."""
    words = [title_of(asked), f"{asked.call['num_inference_steps']} steps"]
    if asked.engine.sampler.kernel == "sde":
        words.append("noise is added at every step, so that branches differ" + (" (in both)" if both else ""))
    if asked.engine.sampler.draft is not None:
        words.append("seeds are drafted first" + (" (not by best-of-N)" if both else ""))
    return ", ".join([*words, f"reward {' + '.join(asked.engine.rewards)}", f"seeds from {asked.seed}"])


def _batches(worker: LiveSearches) -> Iterator[list[Any]]:
    """What came since the last look, at most every PERIOD seconds, until the worker is done."""
    going = True
    while going:
        items = [worker.news.get()]
        end = time.monotonic() + PERIOD
        while items[-1] is not None and (left := end - time.monotonic()) > 0:
            try:
                items.append(worker.news.get(timeout=left))
            except queue.Empty:
                break
        going = items[-1] is not None
        yield [item for item in items if item is not None]


def by_hand(result: Result) -> tuple[tuple[int, Wish], ...]:
    """What was done as the visitor wished, with the turns."""
    return result.state.taken if isinstance(result.state, State) else ()


def _settle(search: RunningSearch, result: Result, *, ended: bool) -> None:
    """The ledger has the last word on what was spent, and the result on who won. `ended`: nobody stopped it."""
    spent, view = result.spent, search.view
    board = view.board
    # Drafts are evaluations in part, as they were while the search ran.
    board.spent = replace(spent.cost, nfe=round(spent.price.evaluations(spent.cost)))
    board.seconds = float(spent.seconds)
    board.end()
    taken = by_hand(result)
    why = why_unspent(search.asked, search.grid, spent) if ended and not taken else ""
    hand = f"{len(taken)} wish{'es' * (len(taken) != 1)} by hand carried out" if taken else ""
    view.note = "; ".join([*result.warnings, *(words for words in (why, hand) if words)])
    if result.images:
        view.winner = result.images[0].uid
        board.picture = thumbnail_uri(result.images[0].pixels, FULL)
        rest = enumerate(result.images[1:], 2)
        view.kept = tuple(
            (thumbnail_uri(c.pixels, LARGE), f"{rank}. seed {board.lanes[c.uid].name}, reward {short(c.reward)}")
            for rank, c in rest
        )


def _last(searches: list[RunningSearch], results: dict[int, Result], worker: LiveSearches, folder: Path) -> Frame:
    files: list[Path] = []
    for place, search in enumerate(searches):
        result = results[place]
        files += _write(
            folder / search.asked.search.label if len(searches) > 1 else folder, search, result, worker.pipe
        )
    views = [search.view for search in searches]
    last = searches[-1]
    status, caveat = "done", ""
    if worker.stop.is_set() or worker.late:
        caveat = "# The search on the page was stopped early; this one goes on to the end of the budget.\n"
    elif any(by_hand(result) for result in results.values()):
        caveat = "# The search on the page was led by hand, as its trace.json says; this one goes on without.\n"
    if worker.stop.is_set():
        status = "stopped; this is the best image so far"
    elif worker.late:
        status = f"stopped after {worker.limits.seconds:g} seconds, the most that this demo allows"
    warnings = tuple(dict.fromkeys(w for result in results.values() for w in result.warnings))
    device, dtype = str(worker.pipe._execution_device), str(worker.pipe.dtype).removeprefix("torch.")
    return Frame(
        render_stage(last.asked.prompt.text, views, about(last.asked, both=len(views) > 1)),
        status,
        files=tuple(files),
        python=caveat + snippet.python_lines(last.asked, device, dtype),
        command=snippet.command_line(last.asked),
        warnings=warnings,
    )


def _write(folder: Path, search: RunningSearch, result: Result, pipe: Any) -> list[Path]:
    """Images, contact sheet and trace, as `ttsnap generate` writes them."""
    asked = search.asked
    settings: dict[str, Any] = {
        "ttsnap": __version__,
        "model": asked.model,
        "sampler": type(pipe.scheduler).__name__,
        **asked.engine.sampler.told(),
        "call": {name: value for name, value in asked.call.items() if name != "image"},
        "task": task_of(asked),
        "dtype": str(pipe.dtype).removeprefix("torch."),
        "pictures": [digests(asked.call)] if "image" in asked.call else None,
        "algorithm": asked.search.label,
        "options": {},
        "budget": str(asked.budget),
        "reward": list(asked.engine.rewards),
        "utility": "mean",
        "seed": asked.seed,
    }
    if taken := by_hand(result):
        settings["by_hand"] = {"n": result.state.n, "taken": [[turn, *wish] for turn, wish in taken]}
    images = outputs.write_results(folder, [result], search.recorder, settings)[0]
    return [*images, folder / "sheet.png", folder / "trace.json"]


def why_unspent(asked: SearchRequest, grid: Grid, spent: Spent) -> str:
    """A sentence on what a search left of its evaluations; "" where that is next to nothing, or they were not limited.

    asked: the search, its budget in evaluations.
    """
    allowed, taken = asked.budget.nfe, spent.price.evaluations(spent.cost)
    if not allowed or allowed - taken < UNSPENT * allowed:
        return ""
    head = f"{title_of(asked)} ended after {taken:,g} of {allowed:,} evaluations"
    meaning = next((option.text for option in options_of(asked.search.label) if option.name == "n"), "")
    meaning = re.split("[;.]", meaning)[0]
    what = f" ({meaning})" if len(meaning.split()) > 2 or meaning == "seeds" else ""
    made: Any = make_algorithm(asked.search.label)
    if made.n is not None:
        return f"{head}: it runs with n = {made.n}{what} whatever the budget."
    calls = spent.cost.draft_calls // max(1, spent.seeds)  # of each seed's draft
    engine = DryEngine(grid, asked.engine.rewards, price=spent.price, draft_calls=calls)
    sized: Any = fit(made, engine, Budget(nfe=allowed), asked.keep)
    (larger,) = search_dry([""], replace(sized, n=sized.n + 1), engine, keep=asked.keep)
    if (more := spent.price.evaluations(larger.spent.cost)) <= allowed:
        return f"{head}: it came to its end with less."
    return f"{head}: it ran with n = {sized.n}{what}, and n = {sized.n + 1} would take {more:,g}."
