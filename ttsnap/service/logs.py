"""The service's log: what went wrong in detail, without what must not be read there."""

from __future__ import annotations

import logging
import re

_HIDDEN = (
    (re.compile(r"(?<=://)[^\s'\"]*@"), ""),
    (re.compile(r"(://[^\s'\"?]*\?)[^\s'\"]*"), r"\1..."),
    (re.compile(r"(?i)\b(bearer|basic) +\S+"), r"\1 ..."),
)
"""The name and the password of an address, its query, and what follows the word Bearer or Basic in a header."""


class Discreet(logging.Formatter):
    """Writes records and their tracebacks without credentials. A reward is the operator's code, and what it raises may
    quote them: "cannot reach http://user:secret@10.0.0.7/score?key=1" becomes "cannot reach http://10.0.0.7/score?..."."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        for hidden, shown in _HIDDEN:
            text = hidden.sub(shown, text)
        return text


def log_to_stderr() -> None:
    """Have warnings and errors of ttsnap, and nobody else's, written to stderr in one format."""
    handler = logging.StreamHandler()
    handler.setFormatter(Discreet("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger("ttsnap").addHandler(handler)
