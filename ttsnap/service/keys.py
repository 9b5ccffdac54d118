"""API keys, and the callers who have them. Keys are compared in constant time, never logged."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ttsnap.files.reading import JSON_BYTES, foreign, read_bytes
from ttsnap.service.limits import RequestError

logger = logging.getLogger(__name__)
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
            self.callers, self._read = (), (0, 0, 0)
            return
        except OSError:
            read = (0, 0, 0)
        if read == self._read:
            return
        again, self._read = self._read != (), read
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
        digest, found = _digest(key.strip()), None
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
