"""Who may ask the service and for how much: API keys, limits, and refusals in the shape that
OpenAI's clients read. Keys are compared in constant time, never logged."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from ttsnap.core.names import FieldError
from ttsnap.files.reading import JSON_BYTES, foreign, read_bytes
from ttsnap.files.settings import Count, Json, Positive
from ttsnap.options.option import option
from ttsnap.request.limits import SearchLimits

logger = logging.getLogger(__name__)


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
        self.status = status
        self.param = param
        self.code = code
        self.retry_after = retry_after

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


# --- keys -----------------------------------------------------------------------------------------


KEY = "TTSNAP_API_KEY"
"""The environment variable with a single key."""
SHORTEST = 16
"""Characters of a key: shorter ones could be guessed."""
ANYBODY = "anybody"
"""Who asks where no key is needed."""

HERE = re.compile(r"([^.:]*|[0-9.]+|\[[0-9a-f:.]+\])(:[0-9]+)?", re.IGNORECASE)
"""What a Host may be that no stranger can give an address to."""


@dataclass
class Keys:
    """The keys that a service knows. Those of a file are read again when it changes."""

    callers: tuple[tuple[bytes, str], ...] = field(default=(), repr=False)
    """Names of callers by the SHA-256 of their keys; empty without a file: no key is needed."""
    open_docs: bool = False
    """Whether the service's documentation can be read without a key."""
    file: Path | None = None
    """Where they are from; None: they stay as they are."""
    _read: tuple[int, ...] = field(default=(), init=False, repr=False, compare=False)
    """The time, size and number of the file that was read."""

    @classmethod
    def read(cls, path: Path) -> Keys:
        """A text file, one caller a line: NAME KEY; # starts a comment.

        ValueError names the line, never the key.
        """
        with foreign(f"cannot read the file of keys {path}"):
            lines = read_bytes(path, JSON_BYTES, "regular file").decode().splitlines()
        callers = []
        for number, line in enumerate(lines, 1):
            words = line.partition("#")[0].split()
            if words:
                callers.append(_caller(words, f"line {number} of {path}"))
        if not callers:
            raise ValueError(
                f"the file of keys {path} holds none; write one caller a line: NAME KEY"
            )
        return cls(tuple(callers), file=path)

    def refresh(self) -> None:
        """Read the file again where it changed. Without it nobody is let in; where it cannot be
        read, the keys stay as they were."""
        if self.file is None:
            return
        try:
            now = self.file.stat()
            read = (now.st_mtime_ns, now.st_size, now.st_ino)
        except FileNotFoundError:
            if self.callers:
                logger.error("the file of API keys is gone: nobody is let in until it is back")
            self.callers = ()
            self._read = (0, 0, 0)
            return
        except OSError:
            read = (0, 0, 0)
        if read == self._read:
            return
        again = self._read != ()
        self._read = read
        try:
            self.callers = Keys.read(self.file).callers
        except ValueError as error:
            logger.error("API keys stay as they were: %s", error)
        else:
            if again:
                logger.warning("%d API keys were read again", len(self.callers))

    @classmethod
    def of(cls, key: str) -> Keys:
        """A single key, of the environment."""
        return cls((_caller(["default", key], "the environment's key"),))

    @classmethod
    def chosen(cls, file: str | None) -> Keys:
        """Those of the operator's file; without a file the environment's key, if any."""
        if file is not None:
            return cls.read(Path(file))
        key = os.environ.get(KEY)
        return cls.of(key) if key else cls()

    @property
    def names(self) -> set[str]:
        """Of all callers, as they are now."""
        self.refresh()
        return {caller for _, caller in self.callers} | ({ANYBODY} if self.open else set())

    @property
    def open(self) -> bool:
        """Whether anybody may ask."""
        return not self.callers and self.file is None

    def check_reader(self, authorization: str | None) -> None:
        """RequestError (401) for a header with which the documentation cannot be read."""
        if not self.open_docs:
            self.caller(authorization)

    def caller(self, authorization: str | None) -> str:
        """The name of the sender of a header. RequestError (401) for an unknown one."""
        self.refresh()
        if self.open:
            return ANYBODY
        scheme, _, key = (authorization or "").partition(" ")
        digest = _digest(key.strip())
        found = None
        for known, caller in self.callers:  # all of them: the time taken must say nothing of a key
            if hmac.compare_digest(known, digest):
                found = caller
        if found is None or scheme.lower() != "bearer":
            wanted = "send Authorization: Bearer KEY with a key of this service"
            raise RequestError(
                401, f"no API key, or one that is not known; {wanted}", code="invalid_api_key"
            )
        return found


def refuse_pages(headers: Mapping[str, str]) -> None:
    """RequestError (403) where a browser asks for a page of another place, or for one whose name
    was made to stand for this address."""
    host = headers.get("host", "")
    if not HERE.fullmatch(host):
        said = f"without keys a service answers to its address or localhost, got {host[:60]!r}"
        raise RequestError(403, f"{said}; start it with --keys", code="invalid_host")
    origin = headers.get("origin")
    if origin is not None and origin.partition("://")[2] != host:
        said = f"a service without keys takes nothing from pages elsewhere, got {origin[:60]!r}"
        raise RequestError(403, f"{said}; start it with --keys", code="invalid_origin")


def _caller(words: list[str], where: str) -> tuple[bytes, str]:
    if len(words) != 2:
        raise ValueError(f"{where} must be NAME KEY; it has {len(words)} words")
    if len(words[1]) < SHORTEST:
        raise ValueError(
            f"the key in {where} has {len(words[1])} characters; give at least {SHORTEST}"
        )
    return _digest(words[1]), words[0]


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
