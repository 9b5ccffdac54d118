"""Runs searches in threads and puts what happens into a queue. Several take turns by the evaluations they spent."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ttsnap.algorithms import make_algorithm
from ttsnap.algorithms.by_hand import ByHand, Wish
from ttsnap.core.grid import Grid
from ttsnap.core.protocols import Algorithm
from ttsnap.core.results import Event, Result
from ttsnap.demo.board import Board
from ttsnap.demo.form import DemoLimits, picture_of, task_of, title_of
from ttsnap.demo.panels import View
from ttsnap.demo.pictures import LARGE, shrunk_uri, thumbnail_uri
from ttsnap.files.pictured import opened as pictures_opened
from ttsnap.loop.budget import Budget
from ttsnap.request.request import SearchRequest
from ttsnap.results import outputs

Judge = Callable[[Any], bool | None]


def nobody_knows(prompt: str, name: str) -> Judge:
    """The judge of models whose images nobody can tell right or wrong."""
    return lambda image: None


LOOKS, MOST_ROWS = 40, 16
"""On a CPU, where larger batches gain little, a search is cut into about so many, so that one sees it go on."""


@dataclass
class Models:
    """Loads models by name and keeps the last one.

    load(name) gives a search pipeline, load(name, task=...) one for pictures, canonical(prompt, name) the prompt in the
    model's own words; each raises ValueError. judge(prompt, name) gives a function that says whether an image (3, H, W)
    in [0, 1] is strictly right, for marks on the page; None where nobody can tell. `lock` is held by the search that
    runs.
    """

    load: Callable[..., Any]
    canonical: Callable[[str, str], str]
    judge: Callable[[str, str], Judge] = nobody_knows
    lock: threading.Lock = field(default_factory=threading.Lock)
    _name: tuple[str, str | None] | None = None
    _pipe: Any = None

    def pipeline(self, name: str, task: str | None = None) -> Any:
        """The model, for texts or for a task with pictures; call it with the lock held. The one before is let go first,
        so that both need not fit."""
        if self._name != (name, task):
            self._name, self._pipe = None, None
            self._pipe = self.load(name) if task is None else self.load(name, task=task)
            self._pipe.set_progress_bar_config(disable=True)
            self._name = name, task
        return self._pipe


@dataclass(frozen=True)
class RunningSearch:
    """One search as it runs: what was asked, on which grid, what listens, and what came of it."""

    asked: SearchRequest
    grid: Grid
    view: View
    recorder: outputs.Recorder


@dataclass(frozen=True)
class ScoredEvent:
    """An event of the search at this place, without its tensors: small pictures in their place."""

    place: int
    event: Event
    picture: str = ""
    large: str = ""
    right: bool | None = None


@dataclass(frozen=True)
class SearchEnd:
    """The result of the search at this place."""

    place: int
    result: Result


class Turns:
    """Lets one of several threads run at a time: that whose search spent the fewest evaluations, the first of equals.

    At every moment of a comparison both searches have then spent about the same. `seconds` are those that each ran.
    """

    def __init__(self, searches: int) -> None:
        self._spent = dict.fromkeys(range(searches), 0)
        self._changed = threading.Condition()
        self._begun = [time.monotonic()] * searches
        self.seconds = [0.0] * searches

    def begin(self, place: int) -> None:
        """Wait for the first turn."""
        with self._changed:
            self._wait(place)

    def spend(self, place: int, nfe: int) -> None:
        """Count evaluations of the search whose turn it is, and wait for its next turn."""
        with self._changed:
            self._spent[place] += nfe
            self.seconds[place] += time.monotonic() - self._begun[place]
            self._changed.notify_all()
            self._wait(place)

    def leave(self, place: int) -> None:
        """This search is over: the others go on without it."""
        with self._changed:
            self.seconds[place] += time.monotonic() - self._begun[place]
            del self._spent[place]
            self._changed.notify_all()

    def _wait(self, place: int) -> None:
        self._changed.wait_for(lambda: min(self._spent, key=lambda each: (self._spent[each], each)) == place)
        self._begun[place] = time.monotonic()


class SearchThread(threading.Thread):
    """Waits for the device, does its work on it, and puts what happens into `news`: at last None, and before that the
    error, if there was one."""

    def __init__(
        self, asked: Sequence[SearchRequest], models: Models, limits: DemoLimits, stop: threading.Event
    ) -> None:
        super().__init__(daemon=True, name="searches")
        self.asked, self.models, self.limits, self.stop = asked, models, limits, stop
        self.news: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.pipe: Any = None
        self.late = False
        """Whether time was up before the work was done."""
        self._deadline = float("inf")

    def work(self) -> None:
        """What is done on the device."""
        raise NotImplementedError

    def run(self) -> None:
        try:
            with self.models.lock:
                self.pipe = self.models.pipeline(self.asked[0].model, task_of(self.asked[0]))
                self.work()
        except Exception as error:  # shown to the visitor; the server lives on
            self.news.put(error)
        finally:
            self.news.put(None)

    def start_clock(self, searches: int) -> None:
        """The time of so many searches runs from now on."""
        self._deadline = time.monotonic() + self.limits.seconds * searches

    def should_stop(self) -> bool:
        """Whether the visitor stopped it, or time is up."""
        self.late = self.late or time.monotonic() > self._deadline
        return self.late or self.stop.is_set()


class LiveSearches(SearchThread):
    """Runs searches beside each other. News: a RunningSearch for each before any of them begins, ScoredEvents, a
    SearchEnd for each.

    wishes: those of the visitor so far, which may grow meanwhile; None where the searches take none.
    """

    def __init__(
        self, asked: Sequence[SearchRequest], models: Models, limits: DemoLimits, stop: threading.Event,
        wishes: Sequence[Wish] | None,
    ) -> None:  # fmt: skip
        super().__init__(asked, models, limits, stop)
        self.wishes = wishes

    def work(self) -> None:
        searches = [opened(self.pipe, asked, self.limits) for asked in self.asked]
        for search in searches:
            self.news.put(search)
        turns = Turns(len(searches))
        self.start_clock(len(searches))
        threads = [
            threading.Thread(target=self._search, args=(place, search, turns), daemon=True)
            for place, search in enumerate(searches)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _search(self, place: int, search: RunningSearch, turns: Turns) -> None:
        asked, steps = search.asked, search.grid.steps
        judge = self.models.judge(asked.prompt.text, asked.model)

        def listen(event: Event) -> None:
            search.recorder(event)
            light = replace(event, picture=None, kept={})
            if event.image is None:
                self.news.put(ScoredEvent(place, light))
            else:
                finished = event.step == steps
                leads = finished and sum(event.scores) / len(event.scores) >= event.best - 1e-9
                large = thumbnail_uri(event.image, LARGE) if leads else ""
                right = judge(event.image) if finished else None
                self.news.put(ScoredEvent(place, light, thumbnail_uri(event.image), large, right))
            if event.kind == "tick":
                turns.spend(place, event.nfe)

        try:
            turns.begin(place)
            rows, algorithm = _rows(self.pipe, asked.budget), make_algorithm(asked.search.spec)
            if (wishes := self.wishes) is not None:
                algorithm = ByHand(algorithm, wishes=lambda: wishes, rows=rows or MOST_ROWS)
            result = found(self.pipe, asked, algorithm, self.should_stop, listen, rows)
        except Exception as error:  # as in `run`
            self.news.put(error)
            return
        finally:
            turns.leave(place)
        if len(self.asked) > 1:  # the clock of the search went on while the other one ran
            seconds = turns.seconds[place]
            result = replace(result, spent=replace(result.spent, seconds=seconds, seconds_all_prompts=seconds))
        self.news.put(SearchEnd(place, result))


def opened(pipe: Any, asked: SearchRequest, limits: DemoLimits) -> RunningSearch:
    """A search that has not begun, its budget in evaluations and within the limits, its drafter decided on."""
    from ttsnap.pipelines.drafting.own_draft import drafting  # loaded with the model

    algorithm = make_algorithm(asked.search.spec)
    sampler = drafting(pipe, asked.engine.sampler, algorithm, asked.engine.rewards, asked.call)
    asked = replace(asked, engine=replace(asked.engine, sampler=sampler))
    denoiser = pipe.denoiser(**pictures_opened(asked.call))
    if asked.engine.sampler.kernel != "pipeline":
        denoiser.convert(asked.engine.sampler.path, asked.engine.sampler.times)
    grid: Grid = denoiser.grid
    budget = limits.capped(asked.budget, grid)
    view = View(title_of(asked), Board(grid.levels), budget, limits.seconds_of(budget))
    if (picture := picture_of(asked)) is not None:
        view.source = shrunk_uri(np.asarray(picture.opened()), LARGE)
    return RunningSearch(replace(asked, budget=budget), grid, view, outputs.Recorder())


def found(
    pipe: Any,
    asked: SearchRequest,
    algorithm: Algorithm,
    should_stop: Callable[[], bool],
    listen: Callable[[Event], None] | None = None,
    rows: int | None = None,
) -> Result:
    """Run one search to its end. rows: the most candidates per batch; None for as many as fit."""
    call = {**asked.arguments, "search": algorithm, "batch_size": rows, "output_type": "pt"}
    output = pipe(**call, on_event=listen, should_stop=should_stop)
    result: Result = output.search[0]
    return result


def _rows(pipe: Any, budget: Budget) -> int | None:
    """The most candidates per batch; None for as many as fit. What a search finds does not depend on it."""
    if pipe._execution_device.type != "cpu" or budget.nfe is None:
        return None
    return max(2, min(MOST_ROWS, budget.nfe // LOOKS))
