"""Runs searches in threads and puts what happens into a queue. Several take turns by the evaluations they spent."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ttsnap.algorithms import make_algorithm
from ttsnap.algorithms.by_hand import ByHand, Wish
from ttsnap.core.grid import Grid
from ttsnap.core.protocols import Algorithm
from ttsnap.core.results import Event, Result
from ttsnap.demo.asked import Asked, Limits, title_of
from ttsnap.demo.board import Board
from ttsnap.demo.models import Models
from ttsnap.demo.panels import View
from ttsnap.demo.pictures import LARGE, large_uri, shrunk_uri, thumbnail_uri
from ttsnap.loop.budget import Budget
from ttsnap.options.option import values
from ttsnap.results import outputs

LOOKS, MOST_ROWS = 40, 16
"""On a CPU, where larger batches gain little, a search is cut into about so many, so that one sees it go on."""


@dataclass(frozen=True)
class Search:
    """One search as it runs: what was asked, on which grid, what listens, and what came of it."""

    asked: Asked
    grid: Grid
    view: View
    recorder: outputs.Recorder


@dataclass(frozen=True)
class Scored:
    """An event of the search at this place, without its tensors: small pictures in their place."""

    place: int
    event: Event
    picture: str = ""
    large: str = ""
    right: bool | None = None


@dataclass(frozen=True)
class Found:
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


class Worker(threading.Thread):
    """Runs searches beside each other and puts what happens into `news`: a Search for each before any of them begins,
    Scored, Found, an error, None at the end.

    wishes: those of the visitor so far, which may grow meanwhile; None where the searches take none.
    """

    def __init__(
        self, asked: list[Asked], models: Models, limits: Limits, stop: threading.Event, wishes: Sequence[Wish] | None
    ) -> None:
        super().__init__(daemon=True, name="searches")
        self.asked, self.models, self.limits, self.stop, self.wishes = asked, models, limits, stop, wishes
        self.news: queue.SimpleQueue[Search | Scored | Found | Exception | None] = queue.SimpleQueue()
        self.pipe: Any = None
        self.late = False

    def run(self) -> None:
        try:
            with self.models.lock:
                self.pipe = self.models.pipeline(self.asked[0].model, self.asked[0].task)
                searches = [opened(self.pipe, asked, self.limits) for asked in self.asked]
                for search in searches:
                    self.news.put(search)
                turns, deadline = Turns(len(searches)), time.monotonic() + self.limits.seconds * len(searches)
                threads = [
                    threading.Thread(target=self._search, args=(place, search, turns, deadline), daemon=True)
                    for place, search in enumerate(searches)
                ]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
        except Exception as error:  # shown to the visitor; the server lives on
            self.news.put(error)
        finally:
            self.news.put(None)

    def _search(self, place: int, search: Search, turns: Turns, deadline: float) -> None:
        asked, steps = search.asked, search.grid.steps
        judge = self.models.judge(asked.prompt, asked.model)

        def listen(event: Event) -> None:
            search.recorder(event)
            light = replace(event, picture=None, kept={})
            if event.image is None:
                self.news.put(Scored(place, light))
            else:
                finished = event.step == steps
                leads = finished and sum(event.scores) / len(event.scores) >= event.best - 1e-9
                large = large_uri(event.image) if leads else ""
                right = judge(event.image) if finished else None
                self.news.put(Scored(place, light, thumbnail_uri(event.image), large, right))
            if event.kind == "tick":
                turns.spend(place, event.nfe)

        def should_stop() -> bool:
            self.late = self.late or time.monotonic() > deadline
            return self.late or self.stop.is_set()

        try:
            turns.begin(place)
            rows, algorithm = _rows(self.pipe, asked.budget), make_algorithm(asked.algorithm)
            if (wishes := self.wishes) is not None:
                algorithm = ByHand(algorithm, wishes=lambda: wishes, rows=rows or MOST_ROWS)
            result = found(self.pipe, asked, algorithm, should_stop, listen, rows)
        except Exception as error:  # as in `run`
            self.news.put(error)
            return
        finally:
            turns.leave(place)
        if len(self.asked) > 1:  # the clock of the search went on while the other one ran
            seconds = turns.seconds[place]
            result = replace(result, spent=replace(result.spent, seconds=seconds, seconds_all_prompts=seconds))
        self.news.put(Found(place, result))


def opened(pipe: Any, asked: Asked, limits: Limits) -> Search:
    """A search that has not begun, its budget in evaluations and within the limits, its drafter decided on."""
    from ttsnap.pipelines.drafting.own_draft import drafting  # loaded with the model

    algorithm = make_algorithm(asked.algorithm)
    asked = replace(asked, sampler=drafting(pipe, asked.sampler, algorithm, asked.rewards, asked.call))
    denoiser = pipe.denoiser(**asked.arguments)
    if asked.sampler.kernel != "pipeline":
        denoiser.convert(asked.sampler.path, asked.sampler.times)
    grid: Grid = denoiser.grid
    budget = asked.budget.on(grid)
    budget = replace(budget, nfe=min(budget.nfe or limits.nfe, limits.nfe))
    seconds = min(budget.seconds or limits.seconds, limits.seconds)
    view = View(title_of(asked.algorithm), Board(grid.levels), budget, seconds)
    if asked.picture is not None:
        view.source = shrunk_uri(np.asarray(asked.picture.opened()), LARGE)
    return Search(replace(asked, budget=budget), grid, view, outputs.Recorder())


def found(
    pipe: Any,
    asked: Asked,
    algorithm: Algorithm,
    should_stop: Callable[[], bool],
    listen: Callable[[Event], None] | None = None,
    rows: int | None = None,
) -> Result:
    """Run one search to its end. rows: the most candidates per batch; None for as many as fit."""
    output = pipe(
        prompt=[asked.prompt],
        search=algorithm,
        reward=list(asked.rewards),
        budget=asked.budget,
        seed=asked.seed,
        num_images_per_prompt=asked.keep,
        batch_size=rows,
        on_event=listen,
        should_stop=should_stop,
        output_type="pt",
        **values(asked.sampler),
        **asked.arguments,
    )
    result: Result = output.search[0]
    return result


def _rows(pipe: Any, budget: Budget) -> int | None:
    """The most candidates per batch; None for as many as fit. What a search finds does not depend on it."""
    if pipe._execution_device.type != "cpu" or budget.nfe is None:
        return None
    return max(2, min(MOST_ROWS, budget.nfe // LOOKS))
