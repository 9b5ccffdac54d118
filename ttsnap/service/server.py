"""A service as an operator starts it: what it offers, from a few words, and its socket."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn

from ttsnap.core.protocols import Algorithm
from ttsnap.extras import install
from ttsnap.files.pictured import Blank
from ttsnap.options.sampler import AUTO, SamplerOptions
from ttsnap.pipelines import recommended
from ttsnap.pipelines.drafting.own_draft import own_draft
from ttsnap.pipelines.mixin import SearchMixin
from ttsnap.request.offer import ServingCatalog
from ttsnap.reward_models.registry import named, refuse_credentials, without_queries
from ttsnap.reward_models.serve import SocketServer
from ttsnap.rewards.reward_model import RewardModel
from ttsnap.service.app import make_app
from ttsnap.service.engines import Engines
from ttsnap.service.job_store import JobStore
from ttsnap.service.jobs import Jobs
from ttsnap.service.limits import Keys, ServiceLimits
from ttsnap.service.monitoring import Metrics
from ttsnap.service.requests import plain
from ttsnap.service.tickets import RequestParser
from ttsnap.service.worker import Worker

if TYPE_CHECKING:
    from ttsnap.service.tracing import Traces

logger = logging.getLogger(__name__)
TRACED = (
    "OTEL_TRACES_EXPORTER",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
)
"""The variables of the environment one of which must be set for traces."""
UNDRAFTED = (
    "no seeds are drafted by a server that changes pictures, so that fewer are looked at than"
    " without its --task"
)
KERNELS = "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256"
"""The variable that bounds how many compiled kernels oneDNN keeps, by which torch computes on CPUs;
and the bound."""


def bound_kernels() -> None:
    """Have this process, and those that it starts, keep fewer kernels of oneDNN than its 1,024.
    Nothing happens where the environment has a bound, or torch has computed already.

    Each shape of a batch has kernels of its own, and one of bfloat16 takes half a megabyte. A
    service sees new shapes for hours, as its requests come and go.
    """
    os.environ.setdefault(*KERNELS)


def offered(given: Sequence[str], model: str) -> dict[str, str]:
    """Rewards by the names that clients use. ValueError for none, and for a name that would tell of
    a place."""
    own = recommended(model).reward
    if not given and own is None:
        raise ValueError(
            f"model {model} needs --rewards: names of rewards that clients choose from, as clip"
        )
    rewards: dict[str, str] = {}
    for text in given or ([] if own is None else [f"{own.partition(':')[0]}={own}"]):
        refuse_credentials(text)
        name, spec = named(text)
        if any(sign in name for sign in "/\\:"):
            shown = without_queries(name)
            raise ValueError(
                f"clients would see {shown!r}; offer it by another name, as --rewards NAME={shown}"
            )
        rewards[name] = spec
    return rewards


def offer_of(
    model: str,
    engines: Engines,
    name: str | None,
    searches: Mapping[str, Algorithm],
    draft: str,
    *,
    aliases: Sequence[str] = (),
    edits: bool = False,
) -> ServingCatalog:
    """The choices of clients. name: of the model for clients, by default the last part of its
    place; aliases: further ones. draft: as of `with_drafts`."""
    name = name or model.rstrip("/").rpartition("/")[2]
    known = replace(recommended(model), parts=engines.rewards.parts)
    takes = engines.pipe.call_arguments()
    every = engines.pipe.frames_every()
    offer = ServingCatalog(
        name,
        tuple(engines.rewards),
        lambda _: known,
        searches,
        engines.loras.offered,
        aliases,
        edits=edits if every is None else "image" in takes,
        one_picture=edits and every is None and takes_one_picture(engines.pipe, known.call),
        needs_picture=every is not None and engines.pipe.needs_picture(),
        frames_every=every,
        frame_rate=every is not None and "frame_rate" in takes,
        boundary=engines.pipe.boundary(),
        true_cfg="true_cfg_scale" in takes,
        lists=engines.rewards.lists.keys(),
    )
    return with_drafts(offer, draft, engines.pipe, engines.rewards)


def takes_one_picture(pipe: SearchMixin, call: Mapping[str, Any]) -> bool:
    """Whether a model refuses a second picture. False where nothing can be learned of that."""
    blank = Blank((256, 256))
    for pictures in (blank, (blank, blank)):
        try:
            pipe.sampling_denoiser(SamplerOptions(), **call, image=pictures)
        except Exception as error:
            return pictures is not blank and isinstance(error, ValueError)
    return False


def with_drafts(
    offer: ServingCatalog, draft: str, pipe: Any, rewards: Mapping[str, RewardModel]
) -> ServingCatalog:
    """The offer with a drafter, as --draft names it: of this pipeline, for these rewards by the
    names of clients. ValueError for a drafter that does not fit the model."""
    own = own_draft(pipe)
    named = SamplerOptions(draft=draft)
    drafter = named.drafted_by(None if own is None else own.name).draft
    if drafter is not None:  # errors of a drafter come at once
        pipe.sampling_denoiser(replace(named, draft=drafter), **offer.defaults(offer.model).call)
    if own is None or own.name != drafter:
        lost = draft == AUTO and own is None and offer.defaults(offer.model).draft
        return replace(offer, draft=drafter, undrafted=UNDRAFTED if lost else None)

    def drafted(
        algorithm: Algorithm, sampler: SamplerOptions, names: Sequence[str], call: Mapping[str, Any]
    ) -> SamplerOptions:
        if sampler.draft is None:
            return sampler
        helped = own.drafted(
            algorithm, replace(sampler, draft=None), [rewards[name] for name in names], call
        )
        return helped if sampler.left_open or helped.draft is not None else sampler

    known = replace(offer.defaults(offer.model), drafted=drafted)
    return replace(offer, draft=drafter, defaults=lambda _: known)


def traces_of_environment() -> Traces | None:
    """Traces as the standard variables OTEL_* want them; None where they want none.

    ValueError for an exporter that is not known. Without the extra only a warning is told: a
    cluster may set the variables for everything that it runs.
    """
    off = (
        os.environ.get(TRACED[0]) == "none"
        or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    )
    if off or not any(map(os.environ.get, TRACED)):
        return None
    try:
        from ttsnap.service import tracing
    except ImportError as error:
        logger.warning(
            "no traces are written, which needs OpenTelemetry (%s): %s", error, install("tracing")
        )
        return None
    return tracing.Traces(tracing.provider_of_environment())


# --- the socket -----------------------------------------------------------------------------------


GRACE = 10
IDLE = 30
"""Seconds for replies to leave after the last search; seconds for which a connection without a
request stays open. OpenAI's clients keep theirs for 5: with as many here, they would now and then
send a request into a connection that is being closed."""


class Server(uvicorn.Server):
    """Drains its worker on a signal; on a second one, searches end with what they have.

    Who comes meanwhile is told so. Every request is answered before uvicorn ends open ones, with a
    bare status of 500 or half a stream.
    """

    def __init__(self, config: uvicorn.Config, worker: Worker, jobs: Jobs | None) -> None:
        super().__init__(config)
        self.worker = worker
        self.jobs = jobs

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.jobs is not None:
            self.jobs.start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        while self.worker.is_alive() and self.worker.patience > 0:  # less after a second signal
            await asyncio.sleep(0.05)
        self.worker.give_up()  # those without an answer
        await super().shutdown(sockets)
        if self.jobs is not None:
            await self.jobs.close()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.worker.drain(now=self.should_exit)
        self.should_exit = True


class Service:
    """The application over a model, with what runs behind it: the same on a socket and in a replica
    of Ray Serve."""

    def __init__(
        self,
        engines: Engines,
        offer: ServingCatalog,
        limits: ServiceLimits,
        keys: Keys,
        store: JobStore | None,
        traces: Traces | None,
    ) -> None:
        """store: of jobs; without it there are none."""
        self.worker = Worker(engines, limits, Metrics(), plain(offer, limits), traces)
        desk = RequestParser(offer, limits)
        self.jobs = None if store is None else Jobs(store, self.worker, desk, keys)
        self.app = make_app(self.worker, desk, keys, self.jobs)
        self.offer = offer
        if traces is not None:
            traces.watch(self.app)


class GenerationServer(SocketServer):
    """Serves a model until Ctrl-C or SIGTERM."""

    def __init__(
        self,
        engines: Engines,
        offer: ServingCatalog,
        limits: ServiceLimits | None = None,
        keys: Keys | None = None,
        address: tuple[str, int] = ("127.0.0.1", 8000),
        store: JobStore | None = None,
        traces: Traces | None = None,
    ) -> None:
        """store: of jobs; without it there are none. address, OSError and OverflowError: as of
        SocketServer."""
        limits = limits or ServiceLimits()
        service = Service(engines, offer, limits, keys or Keys(), store, traces)
        self.worker = service.worker
        super().__init__(
            service.app,
            address,
            connections=limits.connections,
            server=partial(Server, worker=self.worker, jobs=service.jobs),
            timeout_graceful_shutdown=GRACE,
            timeout_keep_alive=IDLE,
        )

    def run(self) -> None:
        """Serve until a signal, and let running searches end (ServiceLimits.drain)."""
        self.worker.start()
        super().run()
        self.worker.drain(now=True)
        self.worker.join()
