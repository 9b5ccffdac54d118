"""Runs a request on a pipeline, for every door that waits for the result."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
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
from ttsnap.request.request import SearchRequest
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


def completed(request: SearchRequest, pipe: Any) -> SearchRequest:
    """The request with what the model recommends where it says nothing: arguments of the call, a reward, and the
    model's own drafter where that is known to help. ValueError where there is no reward then."""
    spec = request.engine.completed(defaults_of(pipe).tuned(request.algorithm), pipe.call_arguments())
    own = dict(spec.call)
    for prompt in request.prompts:
        own |= {**prompt.inputs, **({"negative_prompt": prompt.negative} if prompt.negative else {})}
    request = replace(request, engine=spec)
    sampler = drafting(pipe, spec.sampler, request.algorithm, request.rewards, own)
    return replace(request, engine=replace(request.engine, sampler=sampler))


def run(
    request: SearchRequest,
    pipe: Any,
    devices: DeviceOptions | None = None,
    on_event: Listener | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> SearchOutcome:
    """Search with a search pipeline, with what its model recommends (`completed`). Arguments of the call may be lists
    with an entry for each prompt.

    on_event: called with every Event. should_stop: asked once per batch; when it says True, or `pipe._interrupt` is
    set, prompts under way end with their best finished image. ValueError for what the model refuses.
    """
    if pipe.check_prompt is not None and "prompt_embeds" not in request.engine.call:
        for prompt in request.prompts:
            pipe.check_prompt(prompt.text)
    pipe._interrupt = False
    asked, request = request, completed(request, pipe)
    backend, call = pipe.backend(request.engine.call)
    prompts, shared = backend.apart(request.prompts, call)
    spec = replace(request.engine, call=shared)
    report = make_rewards(request.report, device=pipe._execution_device) if request.report else ()
    with open_engine(spec, devices or DeviceOptions(), backend) as (engine, denoiser):
        if not asked.engine.sampler.left_open:  # the model's own is taken where it was checked
            warn_of_doubt(denoiser.drafts, model_name(pipe))
        shown = shown_of(denoiser, spec.batch.frames)
        shown.check(report)
        recorder, finished = Recorder(), dict[tuple[int, int], Tensor]()

        def keep_latents(event: Event) -> None:
            if event.kind == "score" and event.step == engine.grid.steps:
                finished.update({(event.job, uid): event.kept["latent"].cpu() for uid in event.uids})

        listeners: list[Listener] = [recorder, *([] if on_event is None else [on_event])]
        if "latents" in spec.batch.keep:
            listeners.append(keep_latents)

        def stops() -> bool:
            return pipe._interrupt or (should_stop is not None and should_stop())

        try:
            with _progress(pipe, request, engine, listeners) as listen:
                wanted = replace(request.spec, eager=on_event is not None)
                results = searched(prompts, wanted, engine, listen, stops)
            results, flags = output.finish(
                pipe, results, prompts, report, denoiser=denoiser, shown=shown, thumbnails=recorder.thumbnails
            )
        finally:
            pipe.maybe_free_model_hooks()
        results = output.with_sources(results, [{**shared, **prompt.inputs} for prompt in prompts])
        if request.doubt is not None:
            results = [replace(result, warnings=(*result.warnings, request.doubt)) for result in results]
        told = call if request.engine.model is None else request.engine.call
        made = replace(request, prompts=tuple(prompts), engine=replace(spec, call=told))
        record = record_of(backend, made, engine.reward_names)
    best = [(job, candidate.uid) for job, result in enumerate(results) for candidate in result.images]
    return SearchOutcome(results, record, flags, denoiser, [finished[each] for each in best] if finished else [])


@contextmanager
def _progress(
    pipe: Any, request: SearchRequest, engine: Engine, listeners: Sequence[Listener]
) -> Iterator[Callable[[Event], None]]:
    """Tells all listeners, and moves a progress bar styled as the pipeline's, which counts evaluations."""
    nfe = request.budget.on(engine.grid).nfe
    total = nfe * len(request.prompts) if nfe else None
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
