"""Runs a request on a pipeline, for every door that waits for the result."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor
from tqdm.auto import tqdm

from ttsnap.core.prompt import Prompt
from ttsnap.core.protocols import Engine
from ttsnap.core.results import Event, Result
from ttsnap.engine.scoring import shown_of
from ttsnap.loop.budget import Budget
from ttsnap.loop.request import Listener, LoopSearch
from ttsnap.loop.search import searched
from ttsnap.options.call import VideoOptions
from ttsnap.options.engine import DeviceOptions
from ttsnap.options.model import PACKAGED
from ttsnap.pipelines import output
from ttsnap.pipelines.drafting.own_draft import drafting, warn_of_doubt
from ttsnap.pipelines.engine_factory import open_engine
from ttsnap.pipelines.model_defaults import defaults_of
from ttsnap.pipelines.record import model_name, record_of
from ttsnap.request.request import ModelDefaults, Prepared
from ttsnap.results.outputs import (
    FinishedLatents,
    Recorder,
    enlarged_path,
    write_enlarged,
    write_results,
)
from ttsnap.results.record import SearchRecord
from ttsnap.results.report import with_answers
from ttsnap.reward_models.registry import make_rewards, parts
from ttsnap.rewards.reward_model import RewardModel


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

    def write(self, folder: Path, videos: VideoOptions | None = None) -> list[list[Path]]:
        """Write the images with their record, contact sheets and a trace to a folder; the paths of
        the images by prompt. videos: their format and speed."""
        paths = write_results(folder, self.results, self.record, videos)
        for index, result in enumerate(self.results):
            if result.images:
                write_enlarged(enlarged_path(folder, self.results, index), result.best.pixels)
        return paths


class LoadedRewards(NamedTuple):
    """Rewards that are there already, for several searches; None where a search loads its own."""

    scoring: Sequence[RewardModel] | None = None
    """Those of its engine."""
    reports: Sequence[RewardModel] | None = None


class Opened(NamedTuple):
    """What searches run on."""

    engine: Engine
    denoiser: Any
    """Of the call, in this process; None where there is none."""
    prompts: Sequence[Prompt]
    """Those that are searched."""
    reports: Sequence[RewardModel] = ()
    """Rewards that score the images that come back."""
    scoring: Sequence[Any] = ()
    """The rewards of the search, where others than its engine's spec names say what they ask."""


def decisions_of(pipe: Any) -> ModelDefaults:
    """What the model of a pipeline decides where users say nothing, its drafter among it."""
    ours = pipe.model_options is not None and pipe.model_options.model in PACKAGED
    ours = ours or model_name(pipe) in PACKAGED
    return replace(
        defaults_of(pipe),
        drafted=partial(drafting, pipe),
        parts=partial(parts, packaged=ours),
        split=pipe.split_prompt_inputs,
    )


def run(
    search: Prepared,
    pipe: Any,
    devices: DeviceOptions | None = None,
    on_event: Listener | None = None,
    should_stop: Callable[[], bool] | None = None,
    loaded: LoadedRewards | None = None,
    loop: LoopSearch | None = None,
    batch_size: int | None = None,
    form: str | None = None,
) -> SearchOutcome:
    """Search with a search pipeline.

    on_event: called with every Event. should_stop: asked once per batch; when it says True, or
    `pipe._interrupt` is set, prompts under way end with their best finished image. loaded: rewards
    that are there. loop: as of `run_on`. batch_size: in place of the search's. form: in
    which images will be asked for, as of output_type. ValueError for what the model refuses.
    """
    interrupts = pipe.interrupts
    rewards, reports = loaded or LoadedRewards()
    if reports is None:
        reported = search.request.selection.reported
        reports = make_rewards(reported, device=pipe._execution_device) if reported else ()

    def stops() -> bool:
        return pipe.interrupts > interrupts or (should_stop is not None and should_stop())

    where = devices or DeviceOptions()
    spec = search.engine
    with open_engine(spec, where, pipe, rewards, batch_size) as (engine, denoiser):
        if form is not None:
            denoiser.must_return(form)
        opened = Opened(engine, denoiser, search.prompts, reports)
        # the model's own is taken where it was checked
        if not search.request.engine.sampler.left_open:
            warn_of_doubt(denoiser.drafts, model_name(pipe))
        try:
            with _progress(pipe, (loop or search.loop).budget, engine, len(search.prompts)) as bar:
                eager = on_event is not None
                listeners = list(filter(None, (bar, on_event)))
                found = run_on(
                    opened, search, pipe, listeners, Recorder(), stops, loop=loop, eager=eager
                )
        finally:
            pipe.maybe_free_model_hooks()
    inputs = [{**spec.call, **prompt.inputs} for prompt in search.prompts]
    return replace(found, results=output.with_sources(found.results, inputs))


def run_on(
    opened: Opened,
    search: Prepared,
    pipe: Any,
    listeners: Sequence[Listener] = (),
    recorder: Recorder | None = None,
    should_stop: Callable[[], bool] | None = None,
    *,
    loop: LoopSearch | None = None,
    eager: bool = False,
) -> SearchOutcome:
    """Run a search on an engine that is open, and finish what it finds.

    recorder: keeps thumbnails for the results; None for none. loop: what is run in place of the
    search's own. eager: as of `searched`. ValueError where reports cannot see what is made.
    """
    engine = opened.engine
    batch = search.engine.batch
    shown_of(opened.denoiser, batch.frames).check(opened.reports)
    latents = FinishedLatents(engine.grid.steps) if "latents" in batch.keep else None
    heard = [each for each in (recorder, latents, *listeners) if each is not None]
    found = searched(opened.prompts, loop or search.loop, engine, heard, should_stop, eager=eager)
    if search.doubt is not None:
        found = [replace(result, warnings=(*result.warnings, search.doubt)) for result in found]
    ended = finished(found, search, opened, pipe, recorder)
    return ended if latents is None else replace(ended, latents=latents.of(ended.results))


def finished(
    found: list[Result],
    search: Prepared,
    opened: Opened,
    pipe: Any,
    recorder: Recorder | None = None,
    *,
    discreet: bool = False,
) -> SearchOutcome:
    """What a search found, as every door gives it on: past the safety checker, its answers by what
    was asked, scored by the rewards that report. discreet: the record names no drafter."""
    engine, denoiser, prompts, report, scoring = opened
    frames = search.engine.batch.frames
    results, flags = output.checked(pipe, found)
    results = [
        with_answers(result, scoring or search.engine.rewards, engine.reward_names, prompt.read)
        for result, prompt in zip(results, prompts, strict=True)
    ]
    if report:
        sources = (
            [None] * len(results)
            if denoiser is None
            else output.sources_of(denoiser, prompts, report)
        )
        each = zip(results, prompts, sources, strict=True)
        results = [
            output.reported(result, report, frames, source, prompt.read)
            for result, prompt, source in each
        ]
    results = output.with_thumbnails(
        results, {} if recorder is None else recorder.thumbnails, flags
    )
    spec = search.engine.undrafted if discreet else search.engine
    record = record_of(pipe, search, spec, prompts, engine.reward_names)
    return SearchOutcome(results, record, flags, denoiser)


@contextmanager
def _progress(pipe: Any, budget: Budget, engine: Engine, prompts: int) -> Iterator[Listener]:
    """A listener that moves a progress bar styled as the pipeline's, which counts evaluations."""
    nfe = budget.on(engine.grid, engine.price.start).nfe
    total = nfe * prompts if nfe else None
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
