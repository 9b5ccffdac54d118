"""What operators watch: logs without secrets, a line for each request, and metrics in the text
format of Prometheus."""

from __future__ import annotations

import json
import logging
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal
from urllib.parse import quote

import diffusers
import torch
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.datastructures import MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ttsnap.core.prompt import PRIVATE
from ttsnap.service.limits import RequestError
from ttsnap.service.tickets import PendingRequest

access = logging.getLogger("ttsnap.service.access")
logger = logging.getLogger(__name__)

REQUEST = "request"
"""The attribute of a record with the values of a request."""
GONE = 499
"""The status of a request whose client went away before its answer, as of nginx."""
SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
"""Bounds of the histogram of latencies."""
_HIDDEN = (
    (re.compile(r"(?<=://)[^\s'\"]*@"), ""),
    (re.compile(r"(://[^\s'\"?]*\?)[^\s'\"]*"), r"\1..."),
    (re.compile(r"(?i)\b(bearer|basic) +\S+"), r"\1 ..."),
)
"""Names and passwords in addresses, queries of addresses, and credentials after Bearer or Basic in
headers."""


class Discreet(logging.Formatter):
    """Writes records and their tracebacks without prompts and credentials, which errors of an
    operator's reward may quote.

    "cannot reach http://user:secret@10.0.0.7/score?key=1" becomes "cannot reach
    http://10.0.0.7/score?...".
    """

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        for prompt in vars(record).get(PRIVATE, ()):
            text = re.sub(rf"(?<!\w){re.escape(prompt)}(?!\w)", "...", text)
        for hidden, shown in _HIDDEN:
            text = hidden.sub(shown, text)
        return text


class Seldom:
    """Logs errors, one a minute: a disk that is full is met every second."""

    def __init__(self, logger: logging.Logger) -> None:
        self.logger = logger
        self._next = 0.0

    def error(self, message: str, error: Exception) -> None:
        """Log an error, unless one was logged within the last minute."""
        if (now := time.monotonic()) >= self._next:
            self._next = now + 60
            self.logger.error(message, exc_info=error)


class AccessLog:
    """The application, with a line in the log `access` for each request after its answer:

        POST /v1/images/generations 200 1.284 s key=alice nfe=400 id=req_5f0c1d9a3b7e2468

    key: the caller's name; nfe: evaluations of the request's search; - stands for none. id: what
    the answer says in the header x-request-id, as OpenAI's API does. Of the address only the path
    is written: a query may hold a key. A request whose client went away has status 499.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = 0
        begin = time.monotonic()
        state = scope.setdefault("state", {})
        state.update(caller=None, ticket=None)  # the application notes them
        name = f"req_{secrets.token_hex(8)}"

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = name
            await send(message)

        try:
            await self.app(scope, receive, sent)
        except Exception as error:  # here, so that its words come into no trace
            logger.error("a request failed", exc_info=error)
            if not status:
                body = RequestError(500, f"the service failed: {type(error).__name__}").body()
                await JSONResponse(body, 500)(scope, receive, sent)
        finally:
            caller = state["caller"]
            ticket = state["ticket"]
            key = caller or "-"
            nfe = ticket.nfe if ticket else "-"
            path = quote(scope["path"], safe="/")[:200]
            seconds = time.monotonic() - begin
            log_request(scope["method"], path, status or 500, seconds, key, nfe, id=name)


def log_request(
    method: str,
    path: str,
    status: int | str,
    seconds: float,
    key: str,
    nfe: float | str,
    **more: str,
) -> None:
    """A line in the log `access`, whose values a line in JSON has one by one. Of a job: JOB, its id
    and its state."""
    told = {
        "method": method,
        "path": path,
        "status": status,
        "seconds": round(seconds, 3),
        "key": key,
        "nfe": nfe,
    }
    told |= more
    line = "%(method)s %(path)s %(status)s %(seconds).3f s key=%(key)s nfe=%(nfe)s"
    line += "".join(f" {name}=%({name})s" for name in more)
    access.info(line, told, extra={REQUEST: told})


class JsonLines(Discreet):
    """A line of JSON for each record: time, level, logger, message, and the values of a request."""

    def format(self, record: logging.LogRecord) -> str:
        told = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": super().format(record),
        }
        return json.dumps(told | vars(record).get(REQUEST, {}))


def log_to_stderr(*, requests: bool = True, lines: Literal["text", "json"] = "text") -> None:
    """Write warnings and errors of ttsnap alone to stderr, in one format; requests: and a line for
    each request."""
    # its warnings quote prompts that a text encoder cuts
    diffusers.utils.logging.disable_default_handler()
    handler = logging.StreamHandler()
    text = Discreet("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(JsonLines() if lines == "json" else text)
    logging.getLogger("ttsnap").addHandler(handler)
    access.setLevel(logging.INFO if requests else logging.WARNING)


@dataclass(frozen=True)
class Batch:
    """One batch of an engine, with what was decoded and scored after it."""

    seconds: float
    nfe: int
    """Evaluations, rows of other engines among them."""
    room: int
    """Places for evaluations."""
    phases: Mapping[str, float]
    """Seconds of the device by phase: denoise, decode, reward."""


class Observer:
    """Told of requests by the thread that searches, unless it says otherwise."""

    def queued(self, ticket: PendingRequest) -> None:
        """A request waits. Told by the application, in the context of the HTTP request."""

    def begun(self, ticket: PendingRequest) -> None:
        """Its search begins."""

    def ended(self, ticket: PendingRequest, outcome: str) -> None:
        """A request is done, cancelled, refused or failed."""


class Metrics(Observer):
    """Metrics of one service, in a registry of their own. Rates, as evaluations per second, are
    Prometheus' to take."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.requests = Counter(
            "ttsnap_requests", "Requests by outcome.", ["outcome"], registry=registry
        )
        """By done, cancelled, refused, failed."""
        about = "From a request to its images."
        self.latency = Histogram(
            "ttsnap_request_seconds", about, buckets=SECONDS, registry=registry
        )
        self.nfe = Counter("ttsnap_nfe", "Denoiser evaluations.", registry=registry)
        about = "Places in the denoiser's batches, in use or not."
        self.places = Counter("ttsnap_batch_places", about, registry=registry)
        self.phases = Counter(
            "ttsnap_phase_seconds", "Time of the device by phase.", ["phase"], registry=registry
        )
        self.fill = Gauge(
            "ttsnap_batch_fill", "Share of the denoiser's last batch in use.", registry=registry
        )
        self.waiting = Gauge("ttsnap_queue", "Requests that wait.", registry=registry)
        self.active = Gauge("ttsnap_active", "Searches that run.", registry=registry)
        self.engines = Gauge(
            "ttsnap_configurations", "Configurations that are kept ready.", registry=registry
        )
        self.jobs = Gauge("ttsnap_jobs", "Stored jobs by status.", ["status"], registry=registry)
        self.job_bytes = Gauge("ttsnap_job_bytes", "Bytes of the files of jobs.", registry=registry)
        if torch.cuda.is_available():
            memory = Gauge(
                "ttsnap_gpu_memory_bytes", "Memory that PyTorch allocated.", registry=registry
            )
            memory.set_function(torch.cuda.memory_allocated)

    def ran(self, batch: Batch) -> None:
        """A batch ran."""
        if batch.nfe > 0:
            self.nfe.inc(batch.nfe)
        if batch.room > 0:
            self.places.inc(batch.room)
            self.fill.set(batch.nfe / batch.room)
        for phase, seconds in batch.phases.items():
            self.phases.labels(phase).inc(max(0.0, seconds))

    def ended(self, ticket: PendingRequest, outcome: str) -> None:
        self.requests.labels(outcome).inc()
        if outcome == "done":
            self.latency.observe(time.monotonic() - ticket.came)

    def measure(self, waiting: int, active: int, engines: int) -> None:
        """Note how much there is of everything now."""
        self.waiting.set(waiting)
        self.active.set(active)
        self.engines.set(engines)

    def text(self) -> bytes:
        """All metrics, as they are now."""
        return generate_latest(self.registry)
