"""Runs the jobs of a store on the worker, a few at a time. A job is a search like any other, for
which nobody waits. Other servers may take jobs of the same store."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, Response

from ttsnap.engine.background import Background
from ttsnap.files.settings import Json
from ttsnap.files.writing import write_bytes
from ttsnap.service.forms import Pictures
from ttsnap.service.job_store import COMPLETED, FAILED, QUEUED, RUNNING, JobStore, StoredJob
from ttsnap.service.limits import Keys, RequestError, stopping, storage_failed
from ttsnap.service.monitoring import log_request
from ttsnap.service.requests import Generation, Video, read_body
from ttsnap.service.tickets import (
    Done,
    Partial,
    PendingRequest,
    RequestParser,
    files_of,
    reply_of,
    response_fields,
    thumbnail_of,
)
from ttsnap.service.worker import Worker

T = TypeVar("T")
logger = logging.getLogger(__name__)
THUMBNAIL = "thumbnail.webp"
"""The file beside those of a job's results."""
THREADS = 8
PATIENCE = 10.0
"""Threads that ask the database for callers; seconds until a caller is told that it does not
answer."""
BEAT = 2.0
SWEEP = 60.0
AGAIN = 1.0
"""Seconds between two looks for jobs; for what expired; until what could not be done is tried
again."""


@dataclass(eq=False)
class _JobRun:
    """A job that is under way."""

    job: StoredJob
    ticket: PendingRequest | None = None
    task: asyncio.Task[None] | None = None

    @property
    def progress(self) -> int:
        """Percent of the budget that is spent."""
        return 0 if self.ticket is None else min(99, int(100 * self.ticket.share))


class Jobs:
    """The jobs of a server. All methods are called in its event loop.

    A job that the server's end interrupts is begun anew by another one or the next, from its seed.
    It waits while another model is served, and while its caller's key is not known.
    """

    def __init__(self, store: JobStore, worker: Worker, desk: RequestParser, keys: Keys) -> None:
        self.store = store
        self.worker = worker
        self.desk = desk
        self.keys = keys
        self._runs: dict[str, _JobRun] = {}
        # Others than those of images: a database that hangs holds up itself alone.
        self._threads = cycle([Background() for _ in range(THREADS)])
        self._own = Background()
        self._wake = asyncio.Event()
        self._runner: asyncio.Task[None] | None = None

    # --- for callers ------------------------------------------------------------------------------

    async def ask(self, call: Callable[..., T], *given: object) -> T:
        """What a method of the store returns. RequestError (503) where that takes too long."""
        try:
            async with asyncio.timeout(PATIENCE):
                return await asyncio.wrap_future(next(self._threads).submit(partial(call, *given)))
        except TimeoutError as error:
            self.store.log.error("the database of jobs hangs", error)
            raise storage_failed() from None

    async def submit(
        self, wanted: Generation | Video, caller: str, pictures: Pictures
    ) -> StoredJob:
        """Store a request. RequestError for what is not offered here; what the model refuses fails
        the job."""
        if self.worker.draining:
            raise stopping()
        ticket = self.desk.ticket(wanted, caller, pictures, job=True)
        model = self.desk.offer.model
        settled = wanted.model_copy(update={"seed": ticket.request.seed, "model": model})
        job = await self.ask(
            self.store.add, caller, wanted.kind, model, settled.written(), pictures
        )
        self._wake.set()
        return job

    def progress(self, job: StoredJob) -> int:
        """Percent of the budget that is spent; of a job elsewhere, some seconds ago."""
        run = self._runs.get(job.id)
        if job.status == COMPLETED:
            return 100
        return job.progress if run is None else run.progress

    async def delete(self, job: StoredJob) -> None:
        """End a job before the next batch, and remove all that is known of it."""
        await self.ask(self.store.delete, job)
        run = self._runs.get(job.id)
        if run is not None and run.task is not None:
            run.task.cancel()
        self._wake.set()

    # --- the server's -----------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to run jobs."""
        self._runner = asyncio.create_task(self._run_all())

    async def close(self) -> None:
        """Begin no more, and queue again what the worker does not end in time."""
        if self._runner is not None:
            self._runner.cancel()
        left = {run.task for run in self._runs.values() if run.task is not None}
        if left:
            await asyncio.wait(left, timeout=max(0.0, self.worker.patience))
        for task in left:
            task.cancel()
        try:
            async with asyncio.timeout(PATIENCE):
                await self._awaited(self.store.leave)
        except Exception:  # others find this server dead, and begin its jobs again
            logger.exception("jobs could not be queued again")

    async def _run_all(self) -> None:
        swept = -math.inf
        while True:
            self._wake.clear()
            pause = BEAT
            try:
                if time.monotonic() > swept + SWEEP:  # first, as it makes room on a full disk
                    await self._awaited(self.store.sweep)
                    swept = time.monotonic()
                await self._beat()
                await self._begin()
                self._measure(await self._awaited(self.store.counts))
            except Exception as error:  # the database may answer again
                self.store.log.error("jobs cannot be looked up", error)
                pause = AGAIN
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._wake.wait()

    async def _beat(self) -> None:
        """Say that this server lives, and end what it runs no more: jobs that were deleted, or
        begun elsewhere."""
        before = list(self._runs.values())
        held = await self._awaited(self.store.beat, {run.job.id: run.progress for run in before})
        lost = [run.task for run in before if run.task is not None and run.job.id not in held]
        for task in lost:
            task.cancel()
        await asyncio.gather(*lost, return_exceptions=True)

    def _measure(self, counts: Mapping[str, int]) -> None:
        metrics = self.worker.metrics
        for status in (QUEUED, RUNNING, COMPLETED, FAILED):
            metrics.jobs.labels(status).set(counts[status])
        metrics.job_bytes.set(counts["bytes"])

    async def _begin(self) -> None:
        """Begin queued jobs while there is room. One that may have ended a server runs alone, so
        that another end is its own."""
        while (
            len(self._runs) < self.desk.limits.jobs
            and self.worker.is_alive()
            and not self.worker.draining
            and not any(run.job.attempts for run in self._runs.values())
        ):
            model = self.desk.offer.model
            alone = not self._runs
            job = await self._awaited(self.store.take, model, self.keys.names, alone)
            if job is None:
                return
            run = _JobRun(job)
            self._runs[job.id] = run
            run.task = asyncio.create_task(self._run(run))
            run.task.add_done_callback(partial(self._ended, run))

    def _ended(self, run: _JobRun, task: asyncio.Task[None]) -> None:
        """Also of a task that was cancelled before its first step."""
        self._runs.pop(run.job.id, None)
        if run.ticket is not None:
            self.worker.cancel(run.ticket)
        self._wake.set()

    async def _run(self, run: _JobRun) -> None:
        job = run.job
        begin = time.monotonic()
        try:
            outcome = await self._outcome(run)
        except RequestError as error:
            if error.code == "stopping":
                await self._noted(self.store.put_back, job)
                return
            status = FAILED
            outcome = error.told()
        except Exception as error:
            logger.exception("a job failed")
            status = FAILED
            outcome = RequestError(500, f"the job failed: {type(error).__name__}").told()
        else:
            status = COMPLETED
        if not await self._noted(self.store.end, job, status, outcome):
            return
        nfe = "-" if run.ticket is None else run.ticket.nfe
        log_request("JOB", job.id, status, time.monotonic() - begin, job.owner, nfe)

    async def _awaited(self, call: Callable[..., T], *given: object) -> T:
        """What a method of the store returns, however long it takes."""
        return await asyncio.wrap_future(self._own.submit(partial(call, *given)))

    async def _noted(self, note: Callable[..., T], *what: object) -> T:
        """Note what became of a job, as soon as the database answers."""
        while True:
            try:
                return await self._awaited(note, *what)
            except Exception as error:
                self.store.log.error("what became of a job cannot be noted", error)
            await asyncio.sleep(AGAIN)

    async def _outcome(self, run: _JobRun) -> dict[str, Json]:
        """What a job's search found, whose files are written. RequestError where it ends
        without."""
        wanted, pictures = await asyncio.to_thread(
            lambda: (read_body(run.job.kind, run.job.body), self.store.pictures(run.job))
        )
        ticket = run.ticket = self.desk.ticket(wanted, run.job.owner, pictures, job=True)
        while True:
            try:
                self.worker.submit(ticket)
                break
            except RequestError as error:
                if error.status != 429:
                    raise
                await asyncio.sleep(AGAIN)
        while True:
            news = await ticket.news.get()
            if isinstance(news, Partial):
                await asyncio.to_thread(self._show, run.job, news)
            elif isinstance(news, Done):
                return await asyncio.to_thread(self._write, run.job, wanted, news)
            elif isinstance(news, RequestError):
                raise news

    def _show(self, job: StoredJob, preview: Partial) -> None:
        """Keep the best estimate so far where any server finds it."""
        with suppress(OSError):  # it may have been deleted, or the disk be full
            write_bytes(self.store.files(job) / THUMBNAIL, thumbnail_of(preview.image))

    def _write(self, job: StoredJob, wanted: Generation | Video, done: Done) -> dict[str, Json]:
        best = done.result.images[0].pixels
        made = files_of(done, wanted, self.desk.offer)
        files = {f"{rank}.{wanted.output_format}": data for rank, data in enumerate(made, 1)}
        files[THUMBNAIL] = thumbnail_of(best)
        try:
            for name, data in files.items():
                write_bytes(self.store.files(job) / name, data)
        except OSError as error:
            for name in files:  # what fills the disk already
                (self.store.files(job) / name).unlink(missing_ok=True)
            self.store.log.error("what a job made cannot be stored", error)
            said = "what the job made could not be stored"
            raise RequestError(500, said, code="storage_failed") from None
        told = response_fields(done)
        if isinstance(wanted, Video):
            told["seconds"] = f"{len(best) / wanted.rate(self.desk.offer):g}"
        return told


# --- what callers do with their jobs --------------------------------------------------------------


PATHS = {
    "video": "/v1/videos",
    "image_generation": "/v1/images/generations",
    "image_edit": "/v1/images/edits",
}
"""By the kind of request."""
OBJECTS = {"video": "video", "image_generation": "image.generation", "image_edit": "image.edit"}
MEDIA = {
    "mp4": "video/mp4",
    **{kind: f"image/{kind}" for kind in ("png", "jpeg", "webp")},
}
PAGE = 100
"""Most jobs of a list."""


def add_job_routes(
    app: FastAPI,
    jobs: Jobs,
    kind: str,
    caller_of: Callable[[Request], str],
    documented: Mapping[str, Any],
) -> None:
    """The addresses of jobs of one kind. documented: of FastAPI, for each."""
    path = PATHS[kind]
    store = jobs.store

    async def job_of(request: Request, name: str) -> StoredJob:
        return await jobs.ask(store.get, caller_of(request), kind, name)

    @app.get(path, **documented)
    async def listed(request: Request) -> Response:
        """`after`, `limit` and `order` (asc or desc), as in OpenAI's API."""
        owner = caller_of(request)
        query = request.query_params
        text = query.get("limit", "20")
        order = query.get("order", "desc")
        limit = number_in(text)
        if not 0 <= limit <= PAGE:
            raise RequestError(
                400, f"limit must be from 0 to {PAGE}, got {text[:60]!r}", "limit", "invalid_value"
            )
        if order not in ("asc", "desc"):
            raise RequestError(
                400, f"order must be asc or desc, got {order[:60]!r}", "order", "invalid_value"
            )
        after = query.get("after") or None
        page, more = await jobs.ask(store.page, owner, kind, after, limit, order == "desc")
        data: list[Json] = [shown(job, jobs) for job in page]
        ends = (
            {"first_id": page[0].id, "last_id": page[-1].id}
            if page
            else {"first_id": None, "last_id": None}
        )
        return JSONResponse({"object": "list", "data": data, **ends, "has_more": more})

    @app.get(f"{path}/{{name}}", **documented)
    async def one(request: Request, name: str) -> Response:
        """How far a job is; of images also what it made."""
        job = await job_of(request, name)
        return JSONResponse(await asyncio.to_thread(whole, job, jobs))

    @app.get(f"{path}/{{name}}/content", **documented)
    async def content(request: Request, name: str) -> Response:
        """The best of what a job made, or that of a `rank`; `variant=thumbnail`: a small picture,
        which is there while it runs, of the best estimate so far."""
        job = await job_of(request, name)
        query = request.query_params
        variant = query.get("variant", "video")
        rank = query.get("rank", "1")
        if variant not in ("video", "image", "thumbnail"):
            said = f"variant must be video, image or thumbnail, got {variant[:60]!r}"
            raise RequestError(400, said, "variant", "invalid_value")
        if job.status == COMPLETED:
            return file_of(job, jobs, variant, rank)
        preview = store.files(job) / THUMBNAIL
        if variant == "thumbnail" and job.status == RUNNING and preview.exists():
            fresh = {"Cache-Control": "no-store"}
            small = await asyncio.to_thread(preview.read_bytes)
            return Response(small, media_type=MEDIA["webp"], headers=fresh)
        raise RequestError(404, f"there is no content: the job is {job.status}", "id", "not_ready")

    @app.delete(f"{path}/{{name}}", **documented)
    async def delete(request: Request, name: str) -> Response:
        """End a job before its next step, and remove what it made."""
        job = await job_of(request, name)
        await jobs.delete(job)
        return JSONResponse({"id": job.id, "object": f"{OBJECTS[kind]}.deleted", "deleted": True})


def file_of(job: StoredJob, jobs: Jobs, variant: str, rank: str) -> Response:
    """A file of a completed job. RequestError (404) for a rank that there is not."""
    if variant == "thumbnail":
        name = THUMBNAIL
        media = MEDIA["webp"]
    else:
        made = len((job.outcome or {})["data"])
        form = read_body(job.kind, job.body).output_format
        number = number_in(rank)
        if not 1 <= number <= made:
            raise RequestError(
                404,
                f"there are {made} here, from rank 1 on; got {rank[:60]!r}",
                "rank",
                "not_found",
            )
        name = f"{number}.{form}"
        media = MEDIA[form]
    return FileResponse(jobs.store.files(job) / name, media_type=media, filename=f"{job.id}-{name}")


def number_in(text: str) -> int:
    """A whole number in a query; -1 for what is none, or has many digits."""
    return int(text) if text.isdecimal() and len(text) < 10 else -1


def shown(job: StoredJob, jobs: Jobs) -> dict[str, Any]:
    """A job, without what it made."""
    wanted = job.body["fields"]
    outcome = job.outcome or {}
    done = job.status == COMPLETED
    told: dict[str, Any] = {
        "id": job.id,
        "object": OBJECTS[job.kind],
        "model": job.model,
        "status": job.status,
        "progress": jobs.progress(job),
        "created_at": int(job.created),
        "completed_at": int(job.ended) if done and job.ended else None,
        "expires_at": int(job.expires) if job.expires else None,
        "prompt": wanted.get("prompt"),
        "size": outcome["size"] if done else wanted.get("size", "auto"),
        "error": dict(outcome) if job.status == FAILED else None,
    }
    if job.kind == Video.kind:
        told["seconds"] = outcome["seconds"] if done else _seconds(wanted)
    else:
        told["created"] = int(job.created)  # as in replies with images
    return told


def _seconds(wanted: Any) -> str:
    return f"{wanted['seconds']:g}" if "seconds" in wanted else "auto"


def whole(job: StoredJob, jobs: Jobs) -> dict[str, Any]:
    """A job with what it made: the scores of videos, and images themselves."""
    told = shown(job, jobs)
    if job.status != COMPLETED or job.outcome is None:
        return told
    wanted = read_body(job.kind, job.body)
    if not isinstance(wanted, Generation):
        return {**told, **job.outcome}
    folder = jobs.store.files(job)
    count = len(job.outcome["data"])
    files = [
        (folder / f"{rank}.{wanted.output_format}").read_bytes() for rank in range(1, count + 1)
    ]
    return {**reply_of(job.outcome, files, wanted), **told}
