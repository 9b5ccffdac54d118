"""The service on a socket: uvicorn with limits on connections. Searches finish before it ends."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

import uvicorn

from ttsnap.files.settings import Json
from ttsnap.request.offer import Offer
from ttsnap.reward_models.request import Limits as ConnectionLimits
from ttsnap.reward_models.serve import Guarded
from ttsnap.service.app import make_app
from ttsnap.service.engines import Engines
from ttsnap.service.keys import Keys
from ttsnap.service.limits import RequestError, ServiceLimits
from ttsnap.service.monitoring import Metrics
from ttsnap.service.requests import plain
from ttsnap.service.worker import Worker

BACKLOG, GRACE, IDLE = 512, 10, 30
"""Connections that wait to be accepted; seconds for replies to leave after the last search; seconds for which a
connection without a request stays open. OpenAI's clients keep theirs for 5: with as many here, they would now and
then send a request into a connection that is being closed."""


class Connection(Guarded):
    """One connection, with errors in OpenAI's shape."""

    def error_of(self, status: int, sentence: str) -> dict[str, Json]:
        return RequestError(status, sentence).body()


class Server(uvicorn.Server):
    """Drains its worker on a signal; on a second one, searches end with what they have.

    Every request is answered before uvicorn ends open ones, with a bare status of 500 or half a stream.
    """

    worker: Worker

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        giving_up = asyncio.create_task(self._give_up())
        await super().shutdown(sockets)
        giving_up.cancel()

    async def _give_up(self) -> None:
        while (seconds := self.worker.patience) > 0:  # less after a second signal
            await asyncio.sleep(min(seconds, 0.5))
        self.worker.give_up()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.worker.drain(now=self.should_exit)
        self.should_exit = True


class GenerationServer:
    """Serves a model at `url`: by `run` until Ctrl-C or SIGTERM, or in a thread as a context manager."""

    def __init__(
        self,
        engines: Engines,
        offer: Offer,
        limits: ServiceLimits | None = None,
        keys: Keys | None = None,
        address: tuple[str, int] = ("127.0.0.1", 8000),
        canonical: Callable[[str], str] = str,
    ) -> None:
        """address: host and port, of which 0 takes any free one. canonical: as of `make_app`. OSError or OverflowError
        where it cannot listen."""
        limits, (host, port) = limits or ServiceLimits(), address
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.create_server((host, port), family=family, backlog=BACKLOG)
        self.port: int = self._socket.getsockname()[1]
        self.url = f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"
        self.worker = Worker(engines, limits, Metrics(), plain(offer, limits))
        guard = ConnectionLimits(seconds=limits.body_seconds, connections=limits.connections)
        config = uvicorn.Config(
            make_app(self.worker, offer, keys or Keys(), limits, canonical),
            http=type("Limited", (Connection,), {"limits": guard}),
            ws="none",
            lifespan="off",
            loop="asyncio",
            log_config=None,
            log_level="critical",  # failures are logged by the application
            access_log=False,
            proxy_headers=False,
            backlog=BACKLOG,
            timeout_keep_alive=IDLE,
            timeout_graceful_shutdown=int(limits.drain) + GRACE,
        )
        self._server = Server(config)
        self._server.worker = self.worker
        self._thread = threading.Thread(target=self.run, name="generation server", daemon=True)

    def run(self) -> None:
        """Serve until a signal, and let running searches end (ServiceLimits.drain)."""
        self.worker.start()
        with suppress(KeyboardInterrupt):
            self._server.run(sockets=[self._socket])
        self.worker.drain(now=True)
        self.worker.join()

    def __enter__(self) -> GenerationServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.handle_exit(signal.SIGTERM, None)
        self._thread.join()
