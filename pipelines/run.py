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
from ttsnap.results.outputs import Recorder
from ttsnap.results.record import SearchRecord
from ttsnap.reward_models.registry import make_rewards


@dataclass(frozen=True)
class SearchOutcome:
    """What a request found."""

    results: list[Result]
    """One for each prompt, finished (`output.finish`)."""
    record: SearchRecord
    """Of the search as a whole."""
    flags: list[bool] | None
    """What the safety checker said of each image; None without one."""
    denoiser: Any
    """The denoiser of the call, in this process."""
    latents: list[Tensor] = field(default_factory=list)
    """Of each image, on the CPU, where the request's engine hands them to listeners (`EngineOptions.keep`)."""


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
    """Search with a search pipeline. Arguments of the call may be lists with an entry for each prompt.

    on_event: called with every Event. should_stop: asked once per batch; when it says True, or `pipe._interrupt` is
    set, prompts under way end with their best finished image. ValueError for what the model refuses.
    """
    pipe._interrupt = False
    backend, call = pipe.resolve_pipeline(search.engine.call)
    prompts, shared = backend.split_prompt_inputs(search.prompts, call)
    wanted = replace(search, prompts=tuple(prompts), engine=replace(search.engine, call=shared))
    if search.request.report:
        report = make_rewards(search.request.report, device=pipe._execution_device)
        wanted = replace(wanted, request=replace(search.request, report=tuple(report)))
    with open_engine(wanted.engine, devices or DeviceOptions(), backend) as (engine, denoiser):
        if not search.request.engine.sampler.left_open:  # the model's own is taken where it was checked
            warn_of_doubt(denoiser.drafts, model_name(pipe))
        finished = dict[tuple[int, int], Tensor]()

        def keep_latents(event: Event) -> None:
            if event.kind == "score" and event.step == engine.grid.steps:
                finished.update({(event.job, uid): event.kept["latent"].cpu() for uid in event.uids})

        listeners = [] if on_event is None else [on_event]
        if "latents" in wanted.engine.batch.keep:
            listeners.append(keep_latents)

        def stops() -> bool:
            return pipe._interrupt or (should_stop is not None and should_stop())

        try:
            with _progress(pipe, wanted, engine, listeners) as listen:
                eager = replace(wanted, eager=on_event is not None)
                results, flags = run_on(engine, denoiser, eager, pipe, listen, Recorder(), stops)
        finally:
            pipe.maybe_free_model_hooks()
        results = output.with_sources(results, [{**shared, **prompt.inputs} for prompt in prompts])
        opened = pipe.model_options is not None  # by text, as a replay opens it
        told = replace(wanted, engine=replace(wanted.engine, call=search.engine.call if opened else call))
        record = record_of(pipe if opened else backend, told, engine.reward_names)
    best = [(job, candidate.uid) for job, result in enumerate(results) for candidate in result.images]
    return SearchOutcome(results, record, flags, denoiser, [finished[each] for each in best] if finished else [])


def run_on(
    engine: Engine, denoiser: Any, search: Prepared, pipe: Any, listener: Listener | None, recorder: Recorder | None,
    should_stop: Callable[[], bool] | None = None,
) -> tuple[list[Result], list[bool] | None]:  # fmt: skip
    """Run a search on an engine that is open, and finish what it finds: results, and what the safety checker said.

    recorder: keeps thumbnails for the results; None for none. ValueError where reports cannot see what is made.
    """
    shown, report = shown_of(denoiser, search.engine.batch.frames), search.request.report
    shown.check(report)

    def listen(event: Event) -> None:
        for each in (recorder, listener):
            if each is not None:
                each(event)

    results = searched(search.prompts, search, engine, listen, should_stop)
    seen = None if recorder is None else recorder.thumbnails
    results, flags = output.finish(
        pipe, results, search.prompts, report, denoiser=denoiser, shown=shown, thumbnails=seen
    )
    if search.doubt is not None:
        results = [replace(result, warnings=(*result.warnings, search.doubt)) for result in results]
    return results, flags


@contextmanager
def _progress(
    pipe: Any, search: Prepared, engine: Engine, listeners: Sequence[Listener]
) -> Iterator[Callable[[Event], None]]:
    """Tells all listeners, and moves a progress bar styled as the pipeline's, which counts evaluations."""
    nfe = search.budget.on(engine.grid).nfe
    total = nfe * len(search.prompts) if nfe else None
    style = {"total": total, "unit": "nfe", "desc": "search", **getattr(pipe, "_progress_bar_config", {})}
    bar: Any = None

    def listen(event: Event) -> None:
        nonlocal bar
        if bar is None:  # opened late, so that refused input leaves no empty bar
            bar = tqdm(**style)
        if event.kind == "tick":
            bar.update(event.nfe)
        elif event.kind == "score" and event.best == event.best:
            bar.set_postfix(best=f"{event.best:.3f}", refresh=False)
        for listener in listeners:
            listener(event)

    try:
        yield listen
    finally:
        if bar is not None:
            bar.close()
