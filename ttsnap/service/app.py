"""The web application: OpenAI's images API, health and metrics. Its event loop never waits for the
model."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import JSONResponse, RedirectResponse, Response, StreamingResponse
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from ttsnap.files.settings import Json
from ttsnap.reward_models.serve import BodyLimits
from ttsnap.service.forms import Pictures, body_in, body_schema
from ttsnap.service.jobs import MEDIA, PATHS, Jobs, add_job_routes, shown
from ttsnap.service.limits import Keys, RequestError, refuse_pages
from ttsnap.service.monitoring import GONE, AccessLog
from ttsnap.service.requests import FRAME, Body, Edit, Generation, Video, no_model
from ttsnap.service.tickets import (
    Done,
    News,
    Partial,
    Passed,
    PendingRequest,
    RequestParser,
    completed_events,
    event,
    files_of,
    partial_event,
    reply_of,
    response_fields,
)
from ttsnap.service.worker import Worker
from ttsnap.version import __version__

logger = logging.getLogger(__name__)
BEARER = Depends(HTTPBearer(auto_error=False))
"""For the documentation; `ResponseBuilder.caller_of` checks keys."""
VIDEO_AT_ONCE = "/v1/videos/sync"
PICTURED = {PATHS[Edit.kind], PATHS[Video.kind], VIDEO_AT_ONCE}
"""Where bodies with pictures come."""
BODIES = (413, 415, 422, 429)
"""Further errors where a body comes."""
CODES = {408: None, 413: "too_large", 503: "busy"}
"""Of bodies beyond the limits, by their status."""


def make_app(worker: Worker, desk: RequestParser, keys: Keys, jobs: Jobs | None = None) -> FastAPI:
    """The application over a running worker. Health and metrics need no key; all else does where
    there are keys, and the documentation unless `keys.open_docs`. Without jobs, requests are
    answered at once or not at all."""
    # FastAPI's own pages of documentation need no key.
    app = FastAPI(
        title="ttsnap", version=__version__, openapi_url=None, docs_url=None, redoc_url=None
    )
    limits = desk.limits
    app.add_middleware(
        BodyLimits,
        most=lambda path: limits.form_bytes if path in PICTURED else limits.body_bytes,
        seconds=limits.body_seconds,
        held=limits.held,
    )
    app.add_middleware(AccessLog)
    answers = ResponseBuilder(worker, desk, keys, jobs)
    _add_images(app, answers)
    _add_videos(app, answers)
    _add_jobs(app, answers)
    _add_models(app, answers)
    _add_operation(app, worker, keys)
    _add_errors(app, worker)
    return app


def _documented(keys: Keys, *statuses: int) -> dict[str, Any]:
    """How the documentation describes an address: its errors, and whether it asks for a key."""
    errors = (400, 403 if keys.open else 401, 404, *statuses, 503)
    other = {"default": {"description": "Another error"}}
    return {
        "dependencies": [] if keys.open else [BEARER],
        "responses": {status: {} for status in errors} | other,
    }


def _add_images(app: FastAPI, answers: ResponseBuilder) -> None:
    offer = answers.offer
    limits = answers.limits

    @app.post(
        PATHS[Generation.kind],
        **_documented(answers.keys, *BODIES),
        openapi_extra=body_schema(Generation),
    )
    async def generate(request: Request) -> Response:
        caller = answers.caller_of(request)
        _refuse_unless(offer.frames_every is None, offer.model, Video)
        wanted, pictures = await body_in(Generation, request, limits)
        return await answers.images(request, caller, wanted, pictures)

    @app.post(
        PATHS[Edit.kind], **_documented(answers.keys, *BODIES), openapi_extra=body_schema(Edit)
    )
    async def edit(request: Request) -> Response:
        caller = answers.caller_of(request)
        _refuse_unless(offer.frames_every is None, offer.model, Video)
        if not offer.edits:
            there = "ask POST /v1/images/generations, or a server with --task image-to-image"
            raise RequestError(404, f"{offer.model!r} changes no pictures; {there}", "model")
        most = replace(limits, pictures=1) if offer.one_picture else limits
        wanted, pictures = await body_in(Edit, request, most)
        return await answers.images(request, caller, wanted, pictures)


def _add_videos(app: FastAPI, answers: ResponseBuilder) -> None:
    offer = answers.offer
    limits = answers.limits

    async def video_in(request: Request) -> tuple[Video, Pictures]:
        _refuse_unless(offer.frames_every is not None, offer.model, Generation)
        wanted, pictures = await body_in(Video, request, limits)
        if pictures and not offer.edits:
            said = "takes no first frame; leave it out, or ask a server with --task image-to-video"
            raise RequestError(400, f"{offer.model!r} {said}", FRAME, "invalid_value")
        if offer.needs_picture and not pictures:
            raise RequestError(
                400, f"{offer.model!r} needs a first frame: send one", FRAME, "missing_parameter"
            )
        return wanted, pictures

    @app.post(
        PATHS[Video.kind], **_documented(answers.keys, *BODIES), openapi_extra=body_schema(Video)
    )
    async def make_video(request: Request) -> Response:
        """Starts a job."""
        caller = answers.caller_of(request)
        return await answers.later(caller, *await video_in(request))

    @app.post(VIDEO_AT_ONCE, **_documented(answers.keys, *BODIES), openapi_extra=body_schema(Video))
    async def video_at_once(request: Request) -> Response:
        """The file of the best video."""
        caller = answers.caller_of(request)
        wanted, pictures = await video_in(request)
        best = await answers.video(request, caller, wanted, pictures)
        return Response(best, media_type=MEDIA[wanted.output_format])


def _refuse_unless(right: bool, model: str, other: type[Body]) -> None:
    if not right:
        made = "videos"
        more = ""
        if other is not Video:
            made = "images"
            more = ", or a server of a model of videos, as by --task text-to-video"
        raise RequestError(
            404, f"{model!r} makes {made}; ask POST {PATHS[other.kind]}{more}", "model"
        )


def _add_jobs(app: FastAPI, answers: ResponseBuilder) -> None:
    async def no_job(request: Request) -> Response:
        answers.caller_of(request)
        raise without_jobs(Video if request.url.path.startswith(PATHS[Video.kind]) else Generation)

    for kind in (Generation, Edit, Video):
        if answers.jobs is not None:
            told = _documented(answers.keys)
            add_job_routes(app, answers.jobs, kind.kind, answers.caller_of, told)
        else:
            there = PATHS[kind.kind] + "{rest:path}"
            app.add_api_route(there, no_job, methods=["GET", "DELETE"], include_in_schema=False)


def _add_models(app: FastAPI, answers: ResponseBuilder) -> None:
    offer = answers.offer
    created = int(time.time())

    def shown_model(name: str) -> dict[str, Json]:
        own: dict[str, Json] = {
            "id": name,
            "object": "model",
            "created": created,
            "owned_by": "ttsnap",
        }
        return {**own, "loras": list(offer.loras)}

    @app.get("/v1/models", **_documented(answers.keys))
    async def models(request: Request) -> Response:
        answers.caller_of(request)
        return JSONResponse({"object": "list", "data": list(map(shown_model, offer.names))})

    @app.get("/v1/models/{name:path}", **_documented(answers.keys))
    async def one_model(request: Request, name: str) -> Response:
        answers.caller_of(request)
        if name not in offer.names:
            raise no_model(name, offer)
        return JSONResponse(shown_model(name))


def _add_operation(app: FastAPI, worker: Worker, keys: Keys) -> None:
    @app.get("/health")
    async def health() -> Response:
        """Whether the process works; 503 tells a supervisor to start it again."""
        alive = worker.is_alive()
        return JSONResponse(
            {"status": "ok" if alive else "the thread of searches has ended"}, 200 if alive else 503
        )

    @app.get("/ready")
    async def ready() -> Response:
        """Whether a loaded model takes requests; 503 tells a balancer to send them elsewhere."""
        takes = worker.is_alive() and not worker.draining
        status = (
            "stopping" if not takes else "ready" if worker.loaded else worker.unready or "loading"
        )
        return JSONResponse({"status": status}, 200 if status == "ready" else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(
            worker.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8"
        )

    @app.get("/", include_in_schema=False)
    async def root() -> Response:
        return RedirectResponse("docs")

    @app.get("/openapi.json", include_in_schema=False)
    async def schema(request: Request) -> Response:
        keys.check_reader(request.headers.get("authorization"))
        return JSONResponse(app.openapi())

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> Response:
        """The schema inside a page, so that a browser need not send its key again."""
        keys.check_reader(request.headers.get("authorization"))
        return get_swagger_ui_html(
            openapi_url="", title="ttsnap", swagger_ui_parameters={"spec": app.openapi()}
        )


def _add_errors(app: FastAPI, worker: Worker) -> None:
    @app.exception_handler(RequestError)
    async def refused(request: Request, error: RequestError) -> Response:
        # the worker counts those that it ended
        if request.method == "POST" and request.state.ticket is None:
            worker.metrics.requests.labels("refused").inc()
        return JSONResponse(error.body(), error.status, error.headers())

    @app.exception_handler(HTTPException)
    async def refused_by_starlette(request: Request, error: HTTPException) -> Response:
        if error.status_code in CODES:
            again = 5 if error.status_code == 503 else None
            code = CODES[error.status_code]
            return await refused(
                request,
                RequestError(error.status_code, error.detail, code=code, retry_after=again),
            )
        there = ", ".join(
            [
                "POST /v1/images/generations makes images",
                "/v1/images/edits changes one",
                "/v1/videos makes videos",
                "GET /v1/models lists models",
            ]
        )
        body = RequestError(error.status_code, f"{error.detail}: {there}").body()
        return JSONResponse(body, error.status_code, error.headers)

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=GONE)


# --- answers to requests whose bodies are read ----------------------------------------------------


class ResponseBuilder:
    """Hands requests to a worker, and puts what it finds into words of HTTP."""

    def __init__(self, worker: Worker, desk: RequestParser, keys: Keys, jobs: Jobs | None) -> None:
        self.worker = worker
        self.desk = desk
        self.keys = keys
        self.jobs = jobs
        self.offer = desk.offer
        self.limits = desk.limits

    def caller_of(self, request: Request) -> str:
        """The sender of a request. RequestError for an unknown one (401), and without keys for a
        page of another place (403)."""
        if self.keys.open:
            refuse_pages(request.headers)
        caller = self.keys.caller(request.headers.get("authorization"))
        request.state.caller = caller if self.keys.callers else None
        return caller

    async def images(
        self, request: Request, caller: str, wanted: Generation, pictures: Pictures
    ) -> Response:
        """As the request wants them: in one reply, in a stream, or by a job."""
        if wanted.background is True:
            return await self.later(caller, wanted, pictures)
        ticket = self._ticket(request, caller, wanted, pictures)
        if wanted.stream:
            events = self._streamed(request, ticket, wanted)
            await anext(events)  # what the model refuses has a status of its own
            return StreamingResponse(events, media_type="text/event-stream")
        done = await self._found(request, ticket)
        files = await asyncio.to_thread(files_of, done, wanted, self.offer)
        if wanted.response_format == "file":
            return Response(files[0], media_type=f"image/{wanted.output_format}")
        return JSONResponse(await asyncio.to_thread(reply_of, response_fields(done), files, wanted))

    async def video(
        self, request: Request, caller: str, wanted: Video, pictures: Pictures
    ) -> bytes:
        """The file of the best video."""
        done = await self._found(request, self._ticket(request, caller, wanted, pictures))
        best, *_ = await asyncio.to_thread(files_of, done, wanted, self.offer)
        return best

    async def later(self, caller: str, wanted: Generation | Video, pictures: Pictures) -> Response:
        """A job."""
        if self.jobs is None:
            raise without_jobs(type(wanted))
        job = await self.jobs.submit(wanted, caller, pictures)
        logger.info("%s: job %s", caller, job.id)
        return JSONResponse(shown(job, self.jobs))

    def _ticket(
        self, request: Request, caller: str, wanted: Body, pictures: Pictures
    ) -> PendingRequest:
        ticket = self.desk.ticket(wanted, caller, pictures)
        self.worker.submit(ticket)
        request.state.ticket = ticket
        logger.info("%s: %s by %s", caller, ticket.request.request.label, ticket.request.budget)
        return ticket

    async def _found(self, request: Request, ticket: PendingRequest) -> Done:
        async with aclosing(news_of(request, ticket, self.worker)) as followed:
            async for news in followed:
                if isinstance(news, RequestError):
                    raise news
                if isinstance(news, Done):
                    return news
        raise AssertionError("a ticket's news end with an answer")

    async def _streamed(
        self, request: Request, ticket: PendingRequest, wanted: Generation
    ) -> AsyncIterator[bytes]:
        """The events of a search, after an empty one at its begin. RequestError where it does not
        begin."""
        async with aclosing(news_of(request, ticket, self.worker)) as followed:
            async for news in followed:
                if isinstance(news, RequestError):
                    if ticket.begun is None:
                        raise news
                    yield event("error", news.body())
                elif isinstance(news, Passed):
                    yield b""
                elif isinstance(news, Done):
                    for each in await asyncio.to_thread(completed_events, news, wanted, self.offer):
                        yield each
                elif isinstance(news, Partial):
                    yield await asyncio.to_thread(partial_event, news, wanted)


def without_jobs(kind: type[Body]) -> RequestError:
    instead = "ask POST /v1/videos/sync" if kind is Video else "leave background out"
    return RequestError(404, f"no jobs are kept here; {instead}", code="no_jobs")


async def news_of(
    request: Request, ticket: PendingRequest, worker: Worker
) -> AsyncGenerator[News, None]:
    """The news of a request, until it has ended. A client that goes away (ClientDisconnect) cancels
    its search, and so does a consumer that ends early."""
    left = asyncio.create_task(_left(request))
    news = None
    try:
        while not isinstance(news, Done | RequestError):
            following = asyncio.create_task(ticket.news.get())
            await asyncio.wait({following, left}, return_when=asyncio.FIRST_COMPLETED)
            if not following.done():
                following.cancel()
                raise ClientDisconnect
            news = following.result()
            yield news
    finally:
        left.cancel()
        worker.cancel(ticket)


async def _left(request: Request) -> None:
    """Returns when the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
