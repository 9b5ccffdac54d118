"""The device: its model, and threads of searches that take it in turn."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from ttsnap.core.grid import Grid
from ttsnap.core.results import Event, Result
from ttsnap.demo.form import DemoLimits, aspect_of, picture_task, title_of
from ttsnap.demo.html import LARGE, shrunk_uri
from ttsnap.demo.panels import View
from ttsnap.files.pictured import Picture
from ttsnap.files.pictured import opened as pictures_opened
from ttsnap.loop.request import LoopSearch
from ttsnap.request.request import Prepared, SearchRequest
from ttsnap.request.request import prepare as prepare_request
from ttsnap.results.course import Course
from ttsnap.results.record import SearchRecord

T = TypeVar("T")
Judge = Callable[[Any], bool | None]
"""Says of an image (3, H, W) in [0, 1] whether it is strictly right; None where nobody can tell."""


@dataclass
class Models:
    """Loads models by name and keeps the last one. Its functions raise ValueError."""

    load: Callable[..., Any]
    """load(name, task=...) gives a search pipeline; the task is None for texts."""
    judge: Callable[[str, str], Judge] = lambda prompt, name: lambda image: None
    """judge(prompt, name), for marks on the page."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Held by the running search."""
    _name: tuple[str, str | None] | None = None
    _pipe: Any = None

    def pipeline(self, name: str, task: str | None = None) -> Any:
        """The model, for texts or for a task with pictures. Called with the lock held.

        The model before is let go first, so that both need not fit.
        """
        if self._name != (name, task):
            self._name = None
            self._pipe = None
            self._pipe = self.load(name, task=task)
            self._pipe.set_progress_bar_config(disable=True)
            self._name = name, task
        return self._pipe


class SearchThread(threading.Thread):
    """Waits for the device and works on it, from the start of a `with` block to its end."""

    def __init__(
        self,
        requests: Sequence[SearchRequest],
        models: Models,
        limits: DemoLimits,
        stop: threading.Event,
    ) -> None:
        super().__init__(daemon=True, name="searches")
        self.requests = requests
        self.models = models
        self.limits = limits
        self.stop = stop
        self.lock = threading.Lock()
        """Held while what is shown changes, and while it is drawn."""
        self.pipe: Any = None
        self.late = False
        """Whether time was up before the work was done."""
        self.error: Exception | None = None
        self._done = threading.Event()
        self._deadline = float("inf")

    def __enter__(self) -> None:
        self.start()

    def __exit__(self, *_: object) -> None:
        self.stop.set()

    def frames(self, draw: Callable[[], T | None], period: float) -> Iterator[T]:
        """What is drawn every `period` in seconds, where it differs, until the work is done. Raises
        its error."""
        last: T | None = None
        done = False
        while not done:
            done = self._done.wait(period)
            with self.lock:
                if self.error is not None:
                    raise self.error
                frame = draw()
            if frame is not None and frame != last:
                yield frame
            last = frame

    def work(self) -> None:
        """The work on the device."""
        raise NotImplementedError

    def run(self) -> None:
        try:
            with self.models.lock:
                self.pipe = self.models.pipeline(
                    self.requests[0].model, picture_task(self.requests[0])
                )
                self._deadline = time.monotonic() + self.limits.seconds * len(self.requests)
                self.work()
        except Exception as error:  # shown to the visitor; the server lives on
            self.error = error
        finally:
            self._done.set()

    def should_stop(self) -> bool:
        """Whether the visitor stopped the work, or time is up."""
        self.late = self.late or time.monotonic() > self._deadline
        return self.late or self.stop.is_set()


@dataclass
class RunningSearch:
    """A running search."""

    request: Prepared
    loop: LoopSearch
    """What is run, within the limits."""
    grid: Grid
    view: View
    result: Result | None = None
    """At its end."""
    record: SearchRecord | None = None
    """At its end."""


def prepare_search(pipe: Any, request: SearchRequest, limits: DemoLimits) -> RunningSearch:
    """A search that has not begun, with its budget in evaluations and within the limits, and its
    drafter chosen."""
    from ttsnap.pipelines.run import decisions_of  # loaded with the model
    from ttsnap.reward_models.registry import asked_of

    search = prepare_request(request, decisions_of(pipe))
    denoiser = pipe.sampling_denoiser(search.engine.sampler, **pictures_opened(search.call))
    grid: Grid = denoiser.grid
    budget = limits.capped(request.budget, grid, denoiser.start)
    view = View(
        title_of(request),
        Course(grid.levels, search.selection, asked_of(search.engine.rewards, search.prompt.read)),
        budget,
        limits.seconds_of(budget),
        aspect=aspect_of(search),
    )
    if isinstance(picture := request.prompt.inputs.get("image"), Picture):
        view.source = shrunk_uri(np.asarray(picture.opened()), LARGE)
    loop = LoopSearch(search.algorithm, budget, search.selection, search.seed)
    return RunningSearch(search, loop, grid, view)


def run_search(
    pipe: Any,
    search: RunningSearch,
    should_stop: Callable[[], bool],
    listen: Callable[[Event], None],
    rows: int | None,
) -> tuple[Result, SearchRecord]:
    """The result and the record of a search. rows: the most candidates per batch; None for as many
    as fit."""
    from ttsnap.pipelines.run import run  # loaded with the model

    outcome = run(
        search.request, pipe, None, listen, should_stop, loop=search.loop, batch_size=rows
    )
    return outcome.results[0], outcome.record
