"""Answers to requests whose bodies are read: at once, event by event, or as a job."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.requests import ClientDisconnect

from ttsnap.service import replies
from ttsnap.service.forms import Pictures
from ttsnap.service.job_routes import shown
from ttsnap.service.jobs import Jobs
from ttsnap.service.keys import Keys, refuse_pages
from ttsnap.service.limits import RequestError
from ttsnap.service.requests import Body, Generation, Video
from ttsnap.service.tickets import Done, News, Partial, Passed, PendingRequest, RequestParser
from ttsnap.service.worker import Worker

logger = logging.getLogger(__name__)


class ResponseBuilder:
    """Hands requests to a worker, and puts what it finds into words of HTTP."""

    def __init__(self, worker: Worker, desk: RequestParser, keys: Keys, jobs: Jobs | None) -> None:
        self.worker, self.desk, self.keys, self.jobs = worker, desk, keys, jobs
        self.offer, self.limits = desk.offer, desk.limits

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
        files = await asyncio.to_thread(replies.files_of, done, wanted, self.offer)
        if wanted.response_format == "file":
            return Response(files[0], media_type=f"image/{wanted.output_format}")
        return JSONResponse(
            await asyncio.to_thread(replies.reply_of, replies.response_fields(done), files, wanted)
        )

    async def video(
        self, request: Request, caller: str, wanted: Video, pictures: Pictures
    ) -> bytes:
        """The file of the best video."""
        done = await self._found(request, self._ticket(request, caller, wanted, pictures))
        best, *_ = await asyncio.to_thread(replies.files_of, done, wanted, self.offer)
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
                    yield replies.event("error", news.body())
                elif isinstance(news, Passed):
                    yield b""
                elif isinstance(news, Done):
                    for event in await asyncio.to_thread(
                        replies.completed_events, news, wanted, self.offer
                    ):
                        yield event
                elif isinstance(news, Partial):
                    yield await asyncio.to_thread(replies.partial_event, news, wanted)


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
