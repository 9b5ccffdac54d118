"""Limits of the service, and errors in the shape that OpenAI's clients read."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ttsnap.core.names import FieldError
from ttsnap.files.settings import Count, Json, Positive
from ttsnap.options.option import option
from ttsnap.request.limits import SearchLimits


@dataclass(frozen=True)
class ServiceLimits(SearchLimits):
    """Limits of one search, and of all of them. Options are flags of `ttsnap serve`."""

    nfe: Count = option(
        4000, "most denoiser evaluations for one request", flag="max_budget", common=True
    )
    seconds: Positive = option(
        300.0, "most seconds for one search", flag="max_seconds", common=True
    )
    side: Count = option(1024, "most pixels a side", flag="max_size")
    active: Count = option(32, "searches at a time; more need more memory")
    queue: Count = option(64, "requests that wait; others get status 429", flag="queue_size")
    per_key: Count = option(32, "requests of one caller that wait or run")
    drain: Positive = option(30.0, "seconds within which searches end on SIGTERM")
    video_side: Count = option(1792, "most pixels a side of a video", flag="max_video_size")
    frames: Count = option(257, "most frames of a video", flag="max_frames")
    jobs: Count = option(4, "jobs that run at a time", flag="active_jobs")
    jobs_per_key: Count = option(20, "jobs of one caller that wait or run; others get status 429")
    job_seconds: Positive = option(3600.0, "most seconds for one job", flag="max_job_seconds")
    job_hours: Positive = option(24.0, "hours for which what a job made is kept")
    job_mib: Count = option(1024, "MiB that the jobs of one caller keep on the disk")
    state_mib: Count = option(8192, "MiB that the jobs of all callers keep on the disk")
    body_bytes: Count = 2**16
    """Bytes of a request."""
    form_bytes: Count = 2**24
    """Bytes of a request with pictures."""
    held: Count = 2**28
    """Bytes of all requests that are arriving."""
    body_seconds: Positive = 30.0
    """Seconds for the body of a request to arrive."""
    connections: Count = 256
    """Open connections; more are answered with status 503."""
    pictures: Count = 16
    """Of one edit, as in OpenAI's API."""
    idle: Count = 4
    """Engines without work that stay ready."""

    @property
    def of_videos(self) -> ServiceLimits:
        """The same for videos, whose usual sizes are larger than those of images."""
        return replace(self, side=self.video_side)

    @property
    def of_jobs(self) -> ServiceLimits:
        """The same for jobs, for which nobody waits at a connection."""
        return replace(self, seconds=self.job_seconds)


class RequestError(Exception):
    """A request that is answered with an error."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        """status: of HTTP. param: the parameter at fault. code: for programs. retry_after: seconds,
        where a second try helps."""
        super().__init__(message)
        self.status, self.param, self.code, self.retry_after = status, param, code, retry_after

    @classmethod
    def of(cls, error: FieldError) -> RequestError:
        """For a field whose value cannot be honoured."""
        return cls(400, str(error), error.field, "invalid_value")

    @property
    def kind(self) -> str:
        """The type of errors of this status in OpenAI's API."""
        kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
        return kinds.get(
            self.status, "invalid_request_error" if self.status < 500 else "server_error"
        )

    def told(self) -> dict[str, Json]:
        """The error of a job, which always has a code."""
        return {
            "message": str(self),
            "type": self.kind,
            "param": self.param,
            "code": self.code or self.kind,
        }

    def body(self) -> dict[str, Json]:
        """The reply's body."""
        return {"error": {**self.told(), "code": self.code}}

    def headers(self) -> dict[str, str]:
        """Its headers."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return headers


def stopping() -> RequestError:
    """The answer while the service ends."""
    return RequestError(503, "the service is being stopped", code="stopping", retry_after=5)


def storage_failed() -> RequestError:
    """The answer where nothing can be stored or looked up."""
    return RequestError(
        503, "jobs cannot be stored now; try again later", code="storage_failed", retry_after=10
    )
