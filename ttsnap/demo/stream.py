"""Runs searches in a thread and tells how they go, a few times a second. No gradio."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ttsnap.algorithms import make_algorithm
from ttsnap.core.grid import Grid
from ttsnap.core.results import Event, Result
from ttsnap.demo import snippet
from ttsnap.demo.asked import BASELINE, Asked, Limits, title_of
from ttsnap.demo.board import Board
from ttsnap.demo.board_html import short
from ttsnap.demo.models import Models
from ttsnap.demo.panels import View, render_plain, render_stage
from ttsnap.demo.pictures import full_uri, large_uri, thumbnail_uri
from ttsnap.demo.unspent import why_unspent
from ttsnap.loop.budget import Budget
from ttsnap.options.option import values
from ttsnap.results import outputs
from ttsnap.version import __version__

PERIOD = 0.3
"""Seconds between two looks at the board."""
LOOKS, MOST_ROWS = 40, 16
"""On a CPU, where larger batches gain little, a search is cut into about so many, so that one sees it go on."""


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


@dataclass(frozen=True)
class Search:
    """One search as it runs: what was asked, on which grid, what listens, and what came of it."""

    asked: Asked
    grid: Grid
    view: View
    recorder: outputs.Recorder


@dataclass(frozen=True)
class Scored:
    """An event without its tensors: small pictures in their place."""

    event: Event
    picture: str = ""
    large: str = ""
    right: bool | None = None


class Worker(threading.Thread):
    """Runs searches one after the other and puts what happens into `news`: Search, Scored, Result, an error, None."""

    def __init__(self, asked: list[Asked], models: Models, limits: Limits, stop: threading.Event) -> None:
        super().__init__(daemon=True, name="search")
        self.asked, self.models, self.limits, self.stop = asked, models, limits, stop
        self.news: queue.SimpleQueue[Search | Scored | Result | Exception | None] = queue.SimpleQueue()
        self.pipe: Any = None
        self.late = False

    def run(self) -> None:
        try:
            with self.models.lock:
                self.pipe = self.models.pipeline(self.asked[0].model)
                for asked in self.asked:
                    if not self.stop.is_set() or asked is self.asked[0]:
                        self._search(asked)
        except Exception as error:  # shown to the visitor; the server lives on
            self.news.put(error)
        finally:
            self.news.put(None)

    def _search(self, asked: Asked) -> None:
        denoiser = self.pipe.denoiser(**asked.call)
        if asked.sampler.kernel != "pipeline":
            denoiser.convert(asked.sampler.path, asked.sampler.times)
        grid: Grid = denoiser.grid
        budget = asked.budget.on(grid)
        budget = replace(budget, nfe=min(budget.nfe or self.limits.nfe, self.limits.nfe))
        seconds = min(budget.seconds or self.limits.seconds, self.limits.seconds)
        view = View(title_of(asked.algorithm), Board(grid.levels), budget, seconds)
        search = Search(replace(asked, budget=budget), grid, view, outputs.Recorder())
        self.news.put(search)
        deadline = time.monotonic() + self.limits.seconds
        judge = self.models.judge(asked.prompt, asked.model)

        def listen(event: Event) -> None:
            search.recorder(event)
            light = replace(event, picture=None, kept={})
            if event.image is None:
                self.news.put(Scored(light))
                return
            finished = event.step == grid.steps
            leads = finished and sum(event.scores) / len(event.scores) >= event.best - 1e-9
            large = large_uri(event.image) if leads else ""
            self.news.put(Scored(light, thumbnail_uri(event.image), large, judge(event.image) if finished else None))

        def should_stop() -> bool:
            self.late = self.late or time.monotonic() > deadline
            return self.late or self.stop.is_set()

        output = self.pipe(
            [asked.prompt],
            search=make_algorithm(asked.algorithm),
            reward=list(asked.rewards),
            budget=budget,
            seed=asked.seed,
            num_images_per_prompt=asked.keep,
            batch_size=self._rows(budget),
            on_event=listen,
            should_stop=should_stop,
            output_type="pt",
            **values(asked.sampler),
            **asked.call,
        )
        self.news.put(output.search[0])

    def _rows(self, budget: Budget) -> int | None:
        """The most candidates per batch; None for as many as fit. What a search finds does not depend on it."""
        if self.pipe._execution_device.type != "cpu" or budget.nfe is None:
            return None
        return max(2, min(MOST_ROWS, budget.nfe // LOOKS))


def stream(
    asked: Asked, models: Models, limits: Limits, stop: threading.Event, folder: Path, *, compare: bool = False
) -> Iterator[Frame]:
    """Run what was asked (with best-of-N first, to compare) and write what was found to `folder`.

    Closing the iterator stops the search. ValueError for what the model or the search refuses.
    """
    if compare and asked.algorithm == BASELINE:
        raise ValueError(f"choose another algorithm than {BASELINE} to compare with it")
    asked = replace(asked, prompt=models.canonical(asked.prompt, asked.model))
    worker = Worker([asked.baseline(), asked] if compare else [asked], models, limits, stop)
    searches: list[Search] = []
    results: list[Result] = []
    busy = models.lock.locked()
    worker.start()
    try:
        words = "Another search is on the device; yours is next." if busy else "The first scores are on their way."
        yield Frame(render_plain(asked.prompt, words), "waiting for the device" if busy else "starting", True)
        for news in _batches(worker):
            for item in news:
                if isinstance(item, Exception):
                    raise item
                if isinstance(item, Search):
                    searches.append(item)
                elif isinstance(item, Scored):
                    searches[-1].view.board.listen(item.event, item.picture, item.large, item.right)
                elif isinstance(item, Result):
                    results.append(item)
                    _settle(searches[-1], item, ended=not (stop.is_set() or worker.late))
            if searches:
                views = [search.view for search in searches]
                yield Frame(
                    render_stage(asked.prompt, views, about(asked, both=compare)), f"searching: {views[-1].title}"
                )
        yield _last(searches, results, worker, folder)
    finally:
        stop.set()


def about(asked: Asked, *, both: bool = False) -> str:
    """One line that says how a search, or both that are compared, sample and score."""
    words = [title_of(asked.algorithm), f"{asked.call['num_inference_steps']} steps"]
    if asked.sampler.kernel == "sde":
        words.append("noise is added at every step, so that branches differ" + (" (in both)" if both else ""))
    if asked.sampler.draft is not None:
        words.append("seeds are drafted first" + (" (not by best-of-N)" if both else ""))
    return ", ".join([*words, f"reward {' + '.join(asked.rewards)}", f"seeds from {asked.seed}"])


def _batches(worker: Worker) -> Iterator[list[Any]]:
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


def _settle(search: Search, result: Result, *, ended: bool) -> None:
    """The ledger has the last word on what was spent, and the result on who won. `ended`: nobody stopped it."""
    spent, view = result.spent, search.view
    board = view.board
    # Drafts are evaluations in part, as they were while the search ran.
    board.spent = replace(spent.cost, nfe=round(spent.price.evaluations(spent.cost)))
    board.seconds = float(spent.seconds)
    board.end()
    why = why_unspent(search.asked, search.grid, spent) if ended else ""
    view.note = "; ".join([*result.warnings, *([why] if why else [])])
    if result.images:
        view.winner = result.images[0].uid
        board.picture = full_uri(result.images[0].pixels)
        rest = enumerate(result.images[1:], 2)
        view.kept = tuple(
            (large_uri(c.pixels), f"{rank}. seed {board.lanes[c.uid].name}, reward {short(c.reward)}")
            for rank, c in rest
        )


def _last(searches: list[Search], results: list[Result], worker: Worker, folder: Path) -> Frame:
    files: list[Path] = []
    for search, result in zip(searches, results, strict=False):
        files += _write(folder / search.asked.algorithm if len(searches) > 1 else folder, search, result, worker.pipe)
    views = [search.view for search in searches]
    last = searches[len(results) - 1]
    status, caveat = "done", ""
    if worker.stop.is_set() or worker.late:
        caveat = "# The search on the page was stopped early; this one goes on to the end of the budget.\n"
    if worker.stop.is_set():
        status = "stopped; this is the best image so far"
    elif worker.late:
        status = f"stopped after {worker.limits.seconds:g} seconds, the most that this demo allows"
    warnings = tuple(dict.fromkeys(w for result in results for w in result.warnings))
    device, dtype = str(worker.pipe._execution_device), str(worker.pipe.dtype).removeprefix("torch.")
    return Frame(
        render_stage(last.asked.prompt, views, about(last.asked, both=len(views) > 1)),
        status,
        files=tuple(files),
        python=caveat + snippet.python_lines(last.asked, device, dtype),
        command=snippet.command_line(last.asked),
        warnings=warnings,
    )


def _write(folder: Path, search: Search, result: Result, pipe: Any) -> list[Path]:
    """Images, contact sheet and trace, as `ttsnap generate` writes them."""
    asked = search.asked
    settings = {
        "ttsnap": __version__,
        "model": asked.model,
        "sampler": type(pipe.scheduler).__name__,
        **asked.sampler.told(),
        "call": dict(asked.call),
        "algorithm": asked.algorithm,
        "options": {},
        "budget": str(asked.budget),
        "reward": list(asked.rewards),
        "utility": "mean",
        "seed": asked.seed,
    }
    images = outputs.write_results(folder, [result], search.recorder, settings)[0]
    return [*images, folder / "sheet.png", folder / "trace.json"]
