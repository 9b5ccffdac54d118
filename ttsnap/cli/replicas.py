"""`ttsnap serve` in replicas, as an application of Ray Serve:

    serve run ttsnap.cli.replicas:app options="embedded --device cpu --database URL --state FOLDER"

Each replica is what the command is with these options, but for its socket. How many there are is
Serve's to say.
"""

from __future__ import annotations

import shlex
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, asynccontextmanager

from fastapi import FastAPI
from ray import serve
from ray.serve import Application

from ttsnap.cli import arguments, common
from ttsnap.cli.serve import parser, parts_of
from ttsnap.service.limits import ServiceLimits
from ttsnap.service.monitoring import log_to_stderr
from ttsnap.service.server import Service


class Replica:
    """One device. It loads the model, and searches in a thread of its own."""

    def __init__(self, options: list[str]) -> None:
        a = parser().parse_args(options)
        log_to_stderr(requests=not a.no_access_log, lines=a.log_format)
        self._held = ExitStack()
        self._service = Service(**self._held.enter_context(parts_of(a)))
        self._service.worker.start()
        self._service.app.router.lifespan_context = self._lifespan

    @asynccontextmanager
    async def _lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        jobs = self._service.jobs
        assert jobs is not None
        jobs.start()
        yield
        self._service.worker.drain(now=True)
        await jobs.close()
        self._held.close()

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The same application as that of `ttsnap serve`."""
        return self._service.app

    def check_health(self) -> None:
        """As /health: RuntimeError where this replica must be started again."""
        if not self._service.worker.is_alive():
            raise RuntimeError("the thread of searches has ended")


def app(args: Mapping[str, str]) -> Application:
    """The application. args: the `options` of `ttsnap serve`, which are checked here. ValueError
    for others, and without a database that replicas can share."""
    if set(args) != {"options"}:
        raise ValueError(f'give options="MODEL ...", as of ttsnap serve; got {", ".join(args)}')
    options = shlex.split(args["options"])
    a = parser().parse_args(options)
    if a.database is None or a.state is None:
        raise ValueError(
            "replicas share their jobs: give --database postgresql+psycopg:// and --state"
        )
    limits = arguments.read(ServiceLimits, a)
    cuda = common.opening().placement(a.device, a.dtype)[0].type == "cuda"
    replica = serve.deployment(
        ray_actor_options={"num_gpus": 1} if cuda else {"num_cpus": 1},
        max_ongoing_requests=limits.active + limits.queue,
        graceful_shutdown_timeout_s=limits.drain,
        health_check_period_s=10,
        health_check_timeout_s=30,
    )(serve.ingress()(Replica))
    return replica.bind(options)
