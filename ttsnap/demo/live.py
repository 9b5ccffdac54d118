"""Searches side by side, each on a board; one alone is led by its visitor."""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ttsnap.algorithms.options import options_of
from ttsnap.core.grid import Grid
from ttsnap.core.results import Event, Result, Spent
from ttsnap.core.selection import Selection
from ttsnap.demo.form import BASELINE, DemoLimits, baseline, command_line, python_lines, title_of
from ttsnap.demo.html import FULL, LARGE, RIGHT, short, thumbnail_uri
from ttsnap.demo.panels import Hand, render_plain, render_stage
from ttsnap.demo.worker import Models, RunningSearch, SearchThread, prepare_search, run_search
from ttsnap.loop.budget import Budget
from ttsnap.loop.dry import DryEngine
from ttsnap.loop.search import fit
from ttsnap.loop.search import search as search_dry
from ttsnap.request.request import Prepared, SearchRequest
from ttsnap.results import outputs
from ttsnap.results.record import SearchRecord

BATCHES = 40
MOST_ROWS = 16
"""Batches of a search, and candidates in each, on a CPU: larger batches gain little there, and show
less."""
UNSPENT = 0.1
"""The share of a budget that may be left over without an explanation."""


class Turns:
    """Lets one of several threads run at a time: that of the fewest evaluations so far, the first
    of equals.

    Both searches of a comparison have then spent about the same at every moment.
    """

    def __init__(self, searches: int) -> None:
        self._spent = dict.fromkeys(range(searches), 0.0)
        self._changed = threading.Condition()
        self._begun = [time.monotonic()] * searches
        self.seconds = [0.0] * searches
        """Time of each search's turns."""

    def begin(self, place: int) -> None:
        """Wait for the first turn."""
        with self._changed:
            self._wait(place)

    def spend(self, place: int, nfe: float) -> None:
        """Count evaluations of the search whose turn it is, and wait for its next turn."""
        with self._changed:
            self._spent[place] += nfe
            self.seconds[place] += time.monotonic() - self._begun[place]
            self._changed.notify_all()
            self._wait(place)

    def leave(self, place: int) -> None:
        """A search is over: the others go on."""
        with self._changed:
            self.seconds[place] += time.monotonic() - self._begun[place]
            del self._spent[place]
            self._changed.notify_all()

    def _wait(self, place: int) -> None:
        self._changed.wait_for(
            lambda: min(self._spent, key=lambda each: (self._spent[each], each)) == place
        )
        self._begun[place] = time.monotonic()


class LiveSearches(SearchThread):
    """Runs searches side by side."""

    def __init__(
        self,
        requests: Sequence[SearchRequest],
        models: Models,
        limits: DemoLimits,
        hand: Hand,
    ) -> None:
        super().__init__(requests, models, limits, hand.stop)
        self.hand = hand if len(requests) == 1 else None
        """The visitor's; None of a comparison, which nobody leads."""
        self.searches: list[RunningSearch] = []
        """In the order of the requests; none before the device is free."""

    def work(self) -> None:
        searches = [prepare_search(self.pipe, request, self.limits) for request in self.requests]
        for search in searches:
            search.view.hand = self.hand
        with self.lock:
            self.searches = searches
        turns = Turns(len(searches))
        threads = [
            threading.Thread(target=self._search, args=(place, search, turns), daemon=True)
            for place, search in enumerate(searches)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _search(self, place: int, search: RunningSearch, turns: Turns) -> None:
        request = search.request.request
        view = search.view
        judge = self.models.judge(search.request.prompt.text, request.model)

        def listen(event: Event) -> None:
            if self.hand is not None and event.led is not None:
                event.led.in_parts = True
                self.hand.led = event.led
            answers: dict[str, bool] = {}
            small = best = ""
            if (shown := event.image) is not None:
                small = thumbnail_uri(shown)
                if event.step == search.grid.steps:
                    answers = {RIGHT: right} if (right := judge(shown)) is not None else {}
                    if sum(event.scores) / len(event.scores) >= event.best - 1e-9:
                        best = thumbnail_uri(shown, LARGE)
            with self.lock:
                view.course.listen(event, answers)
                view.best = best or view.best
                if small:
                    view.pictures[event.uids[0], event.step] = small
            if event.kind == "tick":
                turns.spend(place, event.nfe)

        try:
            turns.begin(place)
            rows = _rows(self.pipe, search.loop.budget)
            result, record = run_search(self.pipe, search, self.should_stop, listen, rows)
        except Exception as error:  # as in `run`
            self.error = error
            return
        finally:
            turns.leave(place)
        if len(self.requests) > 1:  # the clock of the search went on while the other one ran
            seconds = turns.seconds[place]
            spent = replace(result.spent, seconds=seconds, seconds_all_prompts=seconds)
            result = replace(result, spent=spent)
        with self.lock:
            self._end(search, result, record)

    def _end(self, search: RunningSearch, result: Result, record: SearchRecord) -> None:
        """Show the result: the ledger has the last word on spending, the result on the winner."""
        search.result = result
        search.record = record
        view = search.view
        view.course.end(result)
        notes = [*result.warnings]
        if led := result.by_hand:
            counts = [f"{len(uids)} to {verb}" for verb, uids in led.items()]
            notes.append(f"led by hand: {', '.join(counts)}")
        elif not (self.stop.is_set() or self.late):
            notes.append(why_unspent(search.request, search.loop.budget, search.grid, result.spent))
        view.note = "; ".join(filter(None, notes))
        if result.images:
            named = view.course.candidates
            view.best = thumbnail_uri(result.images[0].pixels, FULL)
            view.kept = tuple(
                (
                    thumbnail_uri(c.pixels, LARGE),
                    f"{rank}. seed {named[c.uid].name}, reward {short(c.reward)}",
                )
                for rank, c in enumerate(result.images[1:], 2)
            )


def _rows(pipe: Any, budget: Budget) -> int | None:
    """The most candidates per batch; None for as many as fit. Results do not depend on it."""
    if pipe._execution_device.type != "cpu" or budget.nfe is None:
        return None
    return max(2, min(MOST_ROWS, budget.nfe // BATCHES))


def why_unspent(request: Prepared, budget: Budget, grid: Grid, spent: Spent) -> str:
    """A sentence on the evaluations that a search left over; "" where they are few, or another cap
    held."""
    allowed = budget.nfe
    algorithm = request.request.label
    clock = spent.seconds / (budget.seconds or math.inf)
    if not allowed or max(clock, budget.share(spent.cost, spent.price)) > 1 - UNSPENT:
        return ""
    head = f"{title_of(request.request)} ended after {spent.nfe:,g} of {allowed:,} evaluations"
    about_n = next((option.text for option in options_of(algorithm) if option.name == "n"), "")
    meaning = re.split("[;.]", about_n)[0]
    what = f" ({meaning})" if len(meaning.split()) > 2 or meaning == "seeds" else ""
    search: Any = request.algorithm
    if search.n is not None:
        return f"{head}: it runs with n = {search.n}{what} whatever the budget."
    calls = spent.cost.draft_calls // max(1, spent.seeds)  # per seed
    engine = DryEngine(grid, request.engine.rewards, price=spent.price, draft_calls=calls)
    keep = request.selection.keep
    sized: Any = fit(search, engine, Budget(nfe=allowed), keep)
    more = replace(sized, n=sized.n + 1)
    (larger,) = search_dry([""], more, engine, selection=Selection(keep=keep))
    if larger.spent.nfe <= allowed:
        return f"{head}: it came to its end with less."
    takes = f"n = {more.n} would take {larger.spent.nfe:,g}"
    return f"{head}: it ran with n = {sized.n}{what}, and {takes}."


PERIOD = 0.3
"""Seconds between two frames."""


@dataclass(frozen=True)
class Frame:
    """The page at a moment. The last frame has files, Python and command line."""

    stage: str
    status: str = ""
    fresh: bool = False
    """Whether it is the first frame, with which the files of an earlier search go."""
    files: tuple[Path, ...] = ()
    python: str = ""
    command: str = ""


def stream(
    request: SearchRequest,
    models: Models,
    limits: DemoLimits,
    hand: Hand,
    folder: Path,
    *,
    compare: bool = False,
) -> Iterator[Frame]:
    """Run a search, with best-of-N to compare with it, and write its files to `folder`.

    hand: leads the search, but no comparison, and stops both.
    Closing the iterator stops the search. ValueError for a request that the model or the search
    refuses.
    """
    if compare:
        check_comparable(request)
    both = [request, baseline(request)] if compare else [request]
    worker = LiveSearches(both, models, limits, hand)
    status = "starting"
    words = "The first scores are on their way."
    if models.lock.locked():
        status = "waiting for the device"
        words = "Another search is on the device; yours is next."
    with worker:
        yield Frame(render_plain(request.prompt.text, words), status, fresh=True)
        yield from worker.frames(lambda: _frame(worker) if worker.searches else None, PERIOD)
        yield _last(worker, folder)


def check_comparable(request: SearchRequest) -> None:
    """ValueError where a search cannot be compared with best-of-N at equal evaluations."""
    if request.label == BASELINE:
        raise ValueError(f"choose another algorithm than {BASELINE} to compare with it")
    if request.budget.seconds is not None:
        how = f"but the budget is {request.budget}; give it as 6 images or 120nfe"
        raise ValueError(f"a comparison is one of equal evaluations, {how}")


def about(request: Prepared, *, both: bool = False) -> str:
    """A line on how a search, or both of a comparison, sample and score."""
    sampler = request.engine.sampler
    steps = request.call["num_inference_steps"]
    words = [title_of(request.request), f"model {request.request.model}", f"{steps} steps"]
    if sampler.kernel == "sde":
        noise = "noise is added at every step, so that branches differ"
        words.append(f"{noise} (in both)" if both else noise)
    if sampler.draft is not None:
        words.append("seeds are drafted first" + (" (not by best-of-N)" if both else ""))
    rewards = request.request.engine.rewards or request.engine.rewards
    words += [f"reward {' + '.join(rewards)}", f"seeds from {request.seed}"]
    return ", ".join(words)


def _frame(worker: LiveSearches) -> Frame:
    views = [search.view for search in worker.searches]
    request = worker.searches[0].request
    stage = render_stage(request.prompt.text, views, about(request, both=len(views) > 1))
    return Frame(stage, f"searching: {' and '.join(view.title for view in views)}")


def _last(worker: LiveSearches, folder: Path) -> Frame:
    """The last frame, with files and what repeats the search."""
    search = worker.searches[0]
    pipe = worker.pipe
    request = search.request
    budget = search.loop.budget
    status, caveat = _ended(worker)
    dtype = str(pipe.dtype).removeprefix("torch.")
    return replace(
        _frame(worker),
        status=status,
        files=tuple(_written(worker, folder)),
        python=caveat + python_lines(request, str(pipe._execution_device), dtype, budget),
        command=command_line(request, budget),
    )


def _written(worker: LiveSearches, folder: Path) -> Iterator[Path]:
    """The files of all searches, that of the best image first; of several, in a folder each."""
    for search in worker.searches:
        out = folder / search.request.request.label if len(worker.searches) > 1 else folder
        if search.result is not None and search.record is not None:
            yield from outputs.write_results(out, [search.result], search.record)[0]
            yield from (out / "sheet.png", out / "trace.json")


def _ended(worker: LiveSearches) -> tuple[str, str]:
    """How the searches ended; and a comment on the lines that repeat them, where these find more or
    less."""
    results = [search.result for search in worker.searches if search.result is not None]
    caveat = ""
    if worker.stop.is_set() or worker.late:
        caveat = "was stopped early; this one goes on to the end of the budget"
    elif any(result.by_hand for result in results):
        caveat = "was led by hand, as its trace.json says; this one goes on without"
    comment = f"# The search on the page {caveat}.\n" if caveat else ""
    if worker.stop.is_set():
        return "stopped; this is the best image so far", comment
    if worker.late:
        most = f"{worker.limits.seconds:g} seconds, the most that this demo allows"
        return f"stopped after {most}", comment
    return "done", comment
