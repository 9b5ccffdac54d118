"""Streams searches, a few frames a second: boards while they run, files at their end. No gradio."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ttsnap.demo import snippet
from ttsnap.demo.form import BASELINE, DemoLimits, baseline, title_of
from ttsnap.demo.live import LiveSearches
from ttsnap.demo.panels import render_plain, render_stage
from ttsnap.demo.view import Hand
from ttsnap.demo.worker import Models
from ttsnap.request.request import Prepared, SearchRequest
from ttsnap.results import outputs

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
        python=caveat + snippet.python_lines(request, str(pipe._execution_device), dtype, budget),
        command=snippet.command_line(request, budget),
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
