"""Runs a request on a pipeline, for every door that waits for the result."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from torch import Tensor
from tqdm.auto import tqdm

from ttsnap.core.protocols import Engine
from ttsnap.core.results import Event, Result
from ttsnap.engine.scoring import shown_of
from ttsnap.loop.request import Listener
from ttsnap.loop.search import searched
from ttsnap.options.engine import DeviceOptions
from ttsnap.pipelines import output
from ttsnap.pipelines.drafting.own_draft import drafting, warn_of_doubt
from ttsnap.pipelines.engine_factory import open_engine
from ttsnap.pipelines.model_defaults import defaults_of
from ttsnap.pipelines.record import model_name, record_of
from ttsnap.request.request import ModelDefaults, Prepared
from ttsnap.results.outputs import FinishedLatents, Recorder
from ttsnap.results.record import SearchRecord
from ttsnap.reward_models.registry import make_rewards


@dataclass(frozen=True)
class SearchOutcome:
    """What a request found."""

    results: list[Result]
    """One for each prompt, finished."""
    record: SearchRecord
    """Of the search as a whole."""
    flags: list[bool] | None
    """What the safety checker said of each image; None without one."""
    denoiser: Any
    """The denoiser of the call, in this process; None where there is none."""
    latents: list[Tensor] = field(default_factory=list)
    """Of each image, where the request's engine hands them to listeners (`EngineOptions.keep`)."""


def decisions_of(pipe: Any) -> ModelDefaults:
    """What the model of a pipeline decides where users say nothing, its drafter among it."""
    return replace(defaults_of(pipe), drafted=partial(drafting, pipe))


def run(
    search: Prepared,
    pipe: Any,
    devices: DeviceOptions | None = None,
    on_event: Listener | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> SearchOutcome:
    """Search with a search pipeline. Arguments of the call may be lists with an entry for each
    prompt.

    on_event: called with every Event. should_stop: asked once per batch; when it says True, or
    `pipe._interrupt` is set, prompts under way end with their best finished image. ValueError for
    what the model refuses.
    """
    interrupts = pipe.interrupts
    prompts, shared = pipe.split_prompt_inputs(search.prompts, search.engine.call)
    wanted = replace(
        search,
        prompts=tuple(prompts),
        engine=replace(search.engine, call=shared),
        eager=on_event is not None,
    )
    if reported := search.request.selection.reported:
        wanted = wanted.reporting(make_rewards(reported, device=pipe._execution_device))
    told = replace(wanted, engine=search.engine)

    def stops() -> bool:
        return pipe.interrupts > interrupts or (should_stop is not None and should_stop())

    with open_engine(wanted.engine, devices or DeviceOptions(), pipe) as (engine, denoiser):
        # the model's own is taken where it was checked
        if not search.request.engine.sampler.left_open:
            warn_of_doubt(denoiser.drafts, model_name(pipe))
        try:
            with _progress(pipe, wanted, engine) as bar:
                listeners = [bar] if on_event is None else [bar, on_event]
                found = run_on(engine, denoiser, wanted, pipe, listeners, Recorder(), stops, told)
        finally:
            pipe.maybe_free_model_hooks()
    return replace(
        found,
        results=output.with_sources(
            found.results, [{**shared, **prompt.inputs} for prompt in prompts]
        ),
    )


def run_on(
    engine: Engine,
    denoiser: Any,
    search: Prepared,
    pipe: Any,
    listeners: Sequence[Listener] = (),
    recorder: Recorder | None = None,
    should_stop: Callable[[], bool] | None = None,
    told: Prepared | None = None,
) -> SearchOutcome:
    """Run a search on an engine that is open, and finish what it finds.

    recorder: keeps thumbnails for the results; None for none. told: as of `finished`. ValueError
    where reports cannot see what is made.
    """
    shown_of(denoiser, search.engine.batch.frames).check(search.request.selection.reported)
    latents = FinishedLatents(engine.grid.steps) if "latents" in search.engine.batch.keep else None
    heard = [each for each in (recorder, latents, *listeners) if each is not None]
    found = searched(search.prompts, search, engine, heard, should_stop)
    if search.doubt is not None:
        found = [replace(result, warnings=(*result.warnings, search.doubt)) for result in found]
    ended = finished(found, search, engine, pipe, denoiser, recorder, told)
    return ended if latents is None else replace(ended, latents=latents.of(ended.results))


def finished(
    found: list[Result],
    search: Prepared,
    engine: Engine,
    pipe: Any,
    denoiser: Any = None,
    recorder: Recorder | None = None,
    told: Prepared | None = None,
) -> SearchOutcome:
    """What a search found, as every door gives it on: past the safety checker, scored by the
    rewards that report.

    denoiser: encodes what is edited for rewards that need it. told: the search that the record
    names, where that is another.
    """
    report, frames = search.request.selection.reported, search.engine.batch.frames
    results, flags = output.checked(pipe, found)
    if report:
        sources = (
            [None] * len(results)
            if denoiser is None
            else output.sources_of(denoiser, search.prompts, report)
        )
        each = zip(results, search.prompts, sources, strict=True)
        results = [
            output.reported(result, report, frames, source, prompt.read)
            for result, prompt, source in each
        ]
    results = output.with_thumbnails(
        results, {} if recorder is None else recorder.thumbnails, flags
    )
    record = record_of(pipe, told or search, engine.reward_names)
    return SearchOutcome(results, record, flags, denoiser)


@contextmanager
def _progress(pipe: Any, search: Prepared, engine: Engine) -> Iterator[Listener]:
    """A listener that moves a progress bar styled as the pipeline's, which counts evaluations."""
    nfe = search.budget.on(engine.grid, engine.price.start).nfe
    total = nfe * len(search.prompts) if nfe else None
    style = {
        "total": total,
        "unit": "nfe",
        "desc": "search",
        **getattr(pipe, "_progress_bar_config", {}),
    }
    bar: Any = None

    def listen(event: Event) -> None:
        nonlocal bar
        if bar is None:  # opened late, so that refused input leaves no empty bar
            bar = tqdm(**style)
        if event.kind == "tick":
            bar.update(event.nfe)
        elif event.kind == "score" and event.best == event.best:
            bar.set_postfix(best=f"{event.best:.3f}", refresh=False)

    try:
        yield listen
    finally:
        if bar is not None:
            bar.close()
