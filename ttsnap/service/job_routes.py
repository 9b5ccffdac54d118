"""What callers do with their jobs: ask how far they are, fetch what they made, list and end them.

Videos have the shape of OpenAI's `/v1/videos`. Jobs of images have the same states at the address
of their request, and the shape of a reply with images once they are done.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, Response

from ttsnap.files.settings import Json
from ttsnap.service.job_store import COMPLETED, FAILED, RUNNING, StoredJob
from ttsnap.service.jobs import THUMBNAIL, Jobs
from ttsnap.service.limits import RequestError
from ttsnap.service.replies import reply_of
from ttsnap.service.requests import Generation, Video, read_body

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
    path, store = PATHS[kind], jobs.store

    async def job_of(request: Request, name: str) -> StoredJob:
        return await jobs.ask(store.get, caller_of(request), kind, name)

    @app.get(path, **documented)
    async def listed(request: Request) -> Response:
        """`after`, `limit` and `order` (asc or desc), as in OpenAI's API."""
        owner, query = caller_of(request), request.query_params
        text, order = query.get("limit", "20"), query.get("order", "desc")
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
        job, query = await job_of(request, name), request.query_params
        variant, rank = query.get("variant", "video"), query.get("rank", "1")
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
        name, media = THUMBNAIL, MEDIA["webp"]
    else:
        made, form = len((job.outcome or {})["data"]), read_body(job.kind, job.body).output_format
        number = number_in(rank)
        if not 1 <= number <= made:
            raise RequestError(
                404,
                f"there are {made} here, from rank 1 on; got {rank[:60]!r}",
                "rank",
                "not_found",
            )
        name, media = f"{number}.{form}", MEDIA[form]
    return FileResponse(jobs.store.files(job) / name, media_type=media, filename=f"{job.id}-{name}")


def number_in(text: str) -> int:
    """A whole number in a query; -1 for what is none, or has many digits."""
    return int(text) if text.isdecimal() and len(text) < 10 else -1


def shown(job: StoredJob, jobs: Jobs) -> dict[str, Any]:
    """A job, without what it made."""
    wanted, outcome = job.body["fields"], job.outcome or {}
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
    folder, count = jobs.store.files(job), len(job.outcome["data"])
    files = [
        (folder / f"{rank}.{wanted.output_format}").read_bytes() for rank in range(1, count + 1)
    ]
    return {**reply_of(job.outcome, files, wanted), **told}
