"""The web application: OpenAI's images API, health and metrics. Its event loop never waits for the
model."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import JSONResponse, RedirectResponse, Response
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from ttsnap.files.settings import Json
from ttsnap.reward_models.serve import BodyLimits
from ttsnap.service.answers import ResponseBuilder, without_jobs
from ttsnap.service.forms import Pictures, body_in, body_schema
from ttsnap.service.job_routes import MEDIA, PATHS, add_job_routes
from ttsnap.service.jobs import Jobs
from ttsnap.service.keys import Keys
from ttsnap.service.limits import RequestError
from ttsnap.service.monitoring import GONE, AccessLog
from ttsnap.service.requests import FRAME, Body, Edit, Generation, Video, no_model
from ttsnap.service.tickets import RequestParser
from ttsnap.service.worker import Worker
from ttsnap.version import __version__

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
    offer, limits = answers.offer, answers.limits

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
    offer, limits = answers.offer, answers.limits

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
        made, more = "videos", ""
        if other is not Video:
            made, more = "images", ", or a server of a model of videos, as by --task text-to-video"
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
    offer, created = answers.offer, int(time.time())

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
