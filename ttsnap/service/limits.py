"""How much the service takes, and the errors with which it refuses more, in the shape that OpenAI's clients read."""

from __future__ import annotations

from dataclasses import dataclass

from ttsnap.files.settings import Count, Json, Positive
from ttsnap.request.limits import FieldError, SearchLimits


@dataclass(frozen=True)
class ServiceLimits(SearchLimits):
    """What the service takes: of one search, and of all of them."""

    active: Count = 32
    """Searches at a time."""
    queue: Count = 64
    """Requests that wait besides; the next one is answered with status 429."""
    per_key: Count = 32
    """Requests of one caller that wait or run."""
    bytes: Count = 2**16
    """Of a request."""
    form_bytes: Count = 2**24
    """Of a request with pictures."""
    held: Count = 2**28
    """Bytes of all requests that are being read."""
    body_seconds: Positive = 30.0
    """For a request to arrive, and for a client to read the next half megabyte of a reply."""
    connections: Count = 256
    """Open ones."""
    drain: Positive = 30.0
    """Seconds that searches have to end once the service is told to stop."""
    idle: Count = 4
    """Engines that are kept ready unused."""


class RequestError(Exception):
    """A request that is answered with an error: the status of HTTP, a sentence, the parameter that is at fault, a code
    for programs, and after how many seconds to try again, where that helps."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.retry_after = status, param, code, retry_after

    @classmethod
    def of(cls, error: FieldError) -> RequestError:
        """That of a field whose value cannot be honoured."""
        return cls(400, str(error), error.field, "invalid_value")

    @property
    def kind(self) -> str:
        """What OpenAI's API calls errors of this status."""
        kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
        return kinds.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")

    def body(self) -> dict[str, Json]:
        """What is sent."""
        return {"error": {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """What is sent before it."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return headers
