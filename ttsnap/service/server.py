"""The service on a socket: uvicorn with limits on connections. Searches finish before it ends."""

from __future__ import annotations

import asyncio
import socket
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

from ttsnap.request.offer import ServingCatalog
from ttsnap.reward_models.serve import SocketServer
from ttsnap.service.app import make_app
from ttsnap.service.engines import Engines
from ttsnap.service.job_store import JobStore
from ttsnap.service.jobs import Jobs
from ttsnap.service.keys import Keys
from ttsnap.service.limits import ServiceLimits
from ttsnap.service.monitoring import Metrics
from ttsnap.service.requests import plain
from ttsnap.service.tickets import RequestParser
from ttsnap.service.worker import Worker

if TYPE_CHECKING:  # needs the extra `tracing`
    from ttsnap.service.tracing import Traces

GRACE, IDLE = 10, 30
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
        self.worker, self.jobs = worker, jobs

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
