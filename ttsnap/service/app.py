"""The web application: OpenAI's images API, health and metrics. Its event loop never waits for the model."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from fastapi import Depends, FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import JSONResponse, Response, StreamingResponse
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from ttsnap.files.settings import Json
from ttsnap.service import replies
from ttsnap.service.bodies import FILES, FRAMES, Bodies, body_schema
from ttsnap.service.edits import FRAME, Edit, Pictures, edit_of, video_of
from ttsnap.service.job_routes import MEDIA, PATHS, add_job_routes, shown
from ttsnap.service.jobs import Jobs
from ttsnap.service.keys import Caller, Keys
from ttsnap.service.limits import RequestError
from ttsnap.service.monitoring import GONE, AccessLog
from ttsnap.service.requests import Body, Generation, Video, json_of, parse, validated
from ttsnap.service.tickets import Desk, Done, News, Partial, Passed, Ticket
from ttsnap.service.worker import Worker
from ttsnap.version import __version__

logger = logging.getLogger(__name__)


def make_app(worker: Worker, desk: Desk, keys: Keys, jobs: Jobs | None = None) -> FastAPI:
    """The application over a running worker. Health and metrics need no key; all else does where there are keys, and
    the documentation unless `keys.open_docs`. Without jobs, requests are answered at once or not at all."""
    offer, limits = desk.offer, desk.limits
    # FastAPI's own pages of documentation need no key.
    app = FastAPI(title="ttsnap", version=__version__, openapi_url=None, docs_url=None, redoc_url=None)
    app.add_middleware(AccessLog)
    created, bodies = int(time.time()), Bodies(limits)

    def shown_model() -> dict[str, Json]:
        own: dict[str, Json] = {"id": offer.model, "object": "model", "created": created, "owned_by": "ttsnap"}
        return {**own, "loras": list(offer.loras())}

    def caller_of(request: Request) -> Caller:
        caller = keys.caller(request.headers.get("authorization"))
        request.state.caller = caller if keys.callers else None
        return caller

    keyed = [Depends(HTTPBearer(auto_error=False))]  # for the documentation; `caller_of` checks keys

    @app.post(PATHS[Generation.kind], dependencies=keyed, openapi_extra=body_schema(Generation, "application/json"))
    async def generate(request: Request) -> Response:
        caller = caller_of(request)
        refuse_unless(offer.frames_every is None, Video)
        async with bodies.of(request, limits.body_bytes) as body:
            wanted = parse(bytes(body))
        return await answered(request, caller, wanted, {})

    @app.post(PATHS[Edit.kind], dependencies=keyed, openapi_extra=body_schema(Edit, "multipart/form-data", FILES))
    async def edit(request: Request) -> Response:
        caller = caller_of(request)
        refuse_unless(offer.frames_every is None, Video)
        if not offer.edits:
            raise RequestError(404, f"{offer.model!r} changes no pictures; ask POST /v1/images/generations", "model")
        async with bodies.of(request, limits.form_bytes) as body:
            wanted, pictures = await edit_of(body, request.headers, limits)
        return await answered(request, caller, wanted, pictures)

    @app.post(PATHS[Video.kind], dependencies=keyed, openapi_extra=body_schema(Video, "multipart/form-data", FRAMES))
    async def make_video(request: Request) -> Response:
        """Starts a job."""
        caller = caller_of(request)
        return await submitted(caller, *await video_in(request))

    @app.post(
        PATHS[Video.kind] + "/{name}/remix", dependencies=keyed, openapi_extra=body_schema(Video, "application/json")
    )
    async def remix(request: Request, name: str) -> Response:
        """Starts a job like an earlier one, with another prompt, and with other fields where they are given."""
        caller = caller_of(request)
        if jobs is None:
            raise without_jobs(Video)
        job = await asyncio.to_thread(jobs.store.get, caller.name, Video.kind, name)
        async with bodies.of(request, limits.body_bytes) as body:
            given = json_of(bytes(body))
        if given.get("prompt") is None:
            raise RequestError(400, "a remix needs a prompt: say what to show now", "prompt", "missing_parameter")
        wanted = validated(Video, {**job.body["fields"], **given})
        return await submitted(caller, wanted, await asyncio.to_thread(jobs.store.pictures, job), job.id)

    @app.post("/v1/videos/sync", dependencies=keyed, openapi_extra=body_schema(Video, "multipart/form-data", FRAMES))
    async def video_at_once(request: Request) -> Response:
        """The file of the best video."""
        caller = caller_of(request)
        wanted, pictures = await video_in(request)
        done = await found(request, ticket_of(request, caller, wanted, pictures))
        best, *_ = await asyncio.to_thread(replies.files_of, done, wanted, offer)
        return Response(best, media_type=MEDIA[wanted.output_format])

    async def video_in(request: Request) -> tuple[Video, Pictures]:
        refuse_unless(offer.frames_every is not None, Generation)
        async with bodies.of(request, limits.form_bytes) as body:
            wanted, pictures = await video_of(body, request.headers, limits)
        if pictures and not offer.edits:
            raise RequestError(400, f"{offer.model!r} takes no first frame; leave it out", FRAME, "invalid_value")
        if offer.needs_picture and not pictures:
            raise RequestError(400, f"{offer.model!r} needs a first frame: send one", FRAME, "missing_parameter")
        return wanted, pictures

    def refuse_unless(right: bool, other: type[Body]) -> None:
        if not right:
            made = "videos" if other is Video else "images"
            raise RequestError(404, f"{offer.model!r} makes {made}; ask POST {PATHS[other.kind]}", "model")

    async def submitted(
        caller: Caller, wanted: Generation | Video, pictures: Pictures, remixed: str | None = None
    ) -> Response:
        if jobs is None:
            raise without_jobs(type(wanted))
        job = await jobs.submit(wanted, caller, pictures, remixed)
        logger.info("%s: job %s", caller.name, job.id)
        return JSONResponse(shown(job, jobs))

    async def answered(request: Request, caller: Caller, wanted: Generation, pictures: Pictures) -> Response:
        if wanted.background is True:
            return await submitted(caller, wanted, pictures)
        ticket = ticket_of(request, caller, wanted, pictures)
        if wanted.stream:
            events = streamed(request, ticket, wanted)
            await anext(events)  # what the model refuses has a status of its own
            return StreamingResponse(events, media_type="text/event-stream")
        done = await found(request, ticket)
        files = await asyncio.to_thread(replies.files_of, done, wanted, offer)
        return JSONResponse(await asyncio.to_thread(replies.reply_of, replies.told_of(done), files, wanted))

    def ticket_of(request: Request, caller: Caller, wanted: Body, pictures: Pictures) -> Ticket:
        ticket = desk.ticket(wanted, caller, pictures)
        worker.submit(ticket)
        request.state.ticket = ticket
        logger.info("%s: %s by %s", caller.name, ticket.request.label, ticket.request.budget)
        return ticket

    async def found(request: Request, ticket: Ticket) -> Done:
        async with aclosing(news_of(request, ticket, worker)) as followed:
            async for news in followed:
                if isinstance(news, RequestError):
                    raise news
                if isinstance(news, Done):
                    return news
        raise AssertionError("a ticket's news end with an answer")

    async def no_job(request: Request) -> Response:
        caller_of(request)
        raise without_jobs(Video if request.url.path.startswith(PATHS[Video.kind]) else Generation)

    for kind in (Generation, Edit, Video):
        if jobs is not None:
            add_job_routes(app, jobs, kind.kind, caller_of, keyed)
        else:
            there = PATHS[kind.kind] + "{rest:path}"
            app.add_api_route(there, no_job, methods=["GET", "DELETE"], include_in_schema=False)

    async def streamed(request: Request, ticket: Ticket, wanted: Generation) -> AsyncIterator[bytes]:
        """The events of a search, after an empty one at its begin. RequestError where it does not begin."""
        async with aclosing(news_of(request, ticket, worker)) as followed:
            async for news in followed:
                if isinstance(news, RequestError):
                    if ticket.begun is None:
                        raise news
                    yield replies.event("error", news.body())
                elif isinstance(news, Passed):
                    yield b""
                elif isinstance(news, Done):
                    for event in await asyncio.to_thread(replies.completed_events, news, wanted, offer):
                        yield event
                elif isinstance(news, Partial):
                    yield await asyncio.to_thread(replies.partial_event, news, wanted)

    @app.get("/v1/models", dependencies=keyed)
    async def models(request: Request) -> Response:
        caller_of(request)
        return JSONResponse({"object": "list", "data": [shown_model()]})

    @app.get("/v1/models/{name:path}", dependencies=keyed)
    async def one_model(request: Request, name: str) -> Response:
        caller_of(request)
        if name != offer.model:
            there = f"there is {offer.model!r}"
            raise RequestError(404, f"no model {name[:100]!r} here; {there}", "model", "model_not_found")
        return JSONResponse(shown_model())

    @app.get("/health")
    async def health() -> Response:
        """Whether the process works; 503 tells a supervisor to start it again."""
        alive = worker.is_alive()
        return JSONResponse({"status": "ok" if alive else "the thread of searches has ended"}, 200 if alive else 503)

    @app.get("/ready")
    async def ready() -> Response:
        """Whether a loaded model takes requests; 503 tells a balancer to send them elsewhere."""
        takes = worker.is_alive() and not worker.draining
        status = "stopping" if not takes else "ready" if worker.loaded else "loading"
        return JSONResponse({"status": status}, 200 if status == "ready" else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(worker.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/openapi.json", include_in_schema=False)
    async def schema(request: Request) -> Response:
        keys.check_reader(request.headers.get("authorization"))
        return JSONResponse(app.openapi())

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> Response:
        """The schema inside a page, so that a browser need not send its key again."""
        keys.check_reader(request.headers.get("authorization"))
        return get_swagger_ui_html(openapi_url="", title="ttsnap", swagger_ui_parameters={"spec": app.openapi()})

    @app.exception_handler(RequestError)
    async def refused(request: Request, error: RequestError) -> Response:
        if request.method == "POST" and request.state.ticket is None:  # the worker counts those that it ended
            worker.metrics.requests.labels("refused").inc()
        headers = error.headers() | ({"Connection": "close"} if error.status == 408 else {})
        return JSONResponse(error.body(), error.status, headers)

    @app.exception_handler(HTTPException)
    async def refused_by_starlette(request: Request, error: HTTPException) -> Response:
        there = ", ".join(["POST /v1/images/generations makes images", "/v1/images/edits changes one",
                           "/v1/videos makes videos", "GET /v1/models lists models"])  # fmt: skip
        body = RequestError(error.status_code, f"{error.detail}: {there}").body()
        return JSONResponse(body, error.status_code, error.headers)

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=GONE)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        logger.error("a request failed", exc_info=error)
        return JSONResponse(RequestError(500, f"the service failed: {type(error).__name__}").body(), 500)

    return app


def without_jobs(kind: type[Body]) -> RequestError:
    instead = "ask POST /v1/videos/sync" if kind is Video else "leave background out"
    return RequestError(404, f"no jobs are kept here; {instead}", code="no_jobs")


async def news_of(request: Request, ticket: Ticket, worker: Worker) -> AsyncGenerator[News, None]:
    """The news of a request, until it has ended. A client that goes away (ClientDisconnect) cancels its search, and so
    does a consumer that ends early."""
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
