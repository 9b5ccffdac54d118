"""Names that people write: which known one an unknown name was probably meant to be, and the sentence that says so."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that looks most like this one, whatever the case; None where none does."""
    by_letters = {each.casefold(): each for each in known}
    near = difflib.get_close_matches(name.casefold()[:80], by_letters, n=1, cutoff=0.65)
    return by_letters[near[0]] if near else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a sentence that refuses a name: "; did you mean seed-pruning?", or nothing."""
    near = nearest(name, known)
    return f"; did you mean {near}?" if near is not None else ""


def unknown(what: str, name: object, known: Iterable[str], more: str = "") -> str:
    """A sentence that refuses a name and lists the known ones, `more` after them.

    For example "unknown algorithm 'svd'; did you mean svdd? Choose one of best-of-n, ..., or a .json file".
    """
    known = list(known)
    near = nearest(name, known) if isinstance(name, str) else None
    meant = f"did you mean {near}? Choose" if near is not None else "choose"
    return f"unknown {what} {name!r:.80}; {meant} one of {', '.join(known)}{more}"
