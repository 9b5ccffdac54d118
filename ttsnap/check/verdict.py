"""Verdict: whether searches pay on this model and this machine, why, and the search that measured
best."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ttsnap.check.ladder import Rung
from ttsnap.check.titles import title

GO = "GO"
NO_GO = "NO-GO"
UNDECIDED = "undecided"
LEAST = 0.5
"""Where nearly finished images surely rank seeds less like the finished ones than by this
correlation, it is noise."""


@dataclass(frozen=True)
class Verdict:
    """What a user is told."""

    word: str
    """GO, NO-GO or undecided."""
    why: tuple[str, ...]
    best: str | None = None
    """The search whose lead is surest, as the signal rung calls it; None where none is better than
    best-of-N."""
    schedule: Mapping[str, Any] = field(default_factory=dict)
    """Its algorithm, as --algorithm reads it from a file."""


def verdict(found: Mapping[str, Rung]) -> Verdict:
    """GO where a search surely keeps more than best-of-N of the same cost, and its images are the
    model's own; NO-GO where one of the two surely does not hold, or scores say nothing; else
    undecided."""
    against = list[str]()
    open_ = list[str]()
    parity = found.get("parity", Rung("parity"))
    signal = found.get("signal", Rung("signal"))
    if parity.holds is False:
        against.append(
            "the stock pipeline, another batch or a second run makes another picture: see parity"
        )
    elif not parity.holds:
        open_.append("parity is not known")
    against += _scores(signal)
    leads = signal.of("lead")
    best = max(leads, key=lambda name: leads[name].low or 0.0, default=None)
    won = False
    if best is None:
        open_.append("no search was compared with best-of-N: see signal")
    else:
        lead = leads[best]
        won = (lead.low or 0.0) > 0
        said = (
            f"{title(best)} keep{'' if best.endswith('drafts') else 's'} {lead.value:+.0f} %"
            f" ({lead.low:+.0f} to {lead.high:+.0f}) more of best-of-8's gain than best-of-N of the"
            " same cost"
        )
        if all((each.high or 0.0) < 0 for each in leads.values()):
            against.append(f"best-of-N finds more than any search that was tried: {said}")
        elif not won:
            open_.append(
                f"{said}, which may be chance: more --minutes, prompts or seeds would tell"
            )
    right = signal.figures.get("right-more")
    if right is not None and (right.low or 0.0) <= 0:
        open_.append(f"by the known answer best-of-8 is not surely right more often: {right}")
    if against:
        return Verdict(NO_GO, tuple(against))
    chosen = {} if best is None or not won else signal.known.schedules.get(best, {})
    if open_:
        return Verdict(UNDECIDED, tuple(open_), best if won else None, chosen)
    known = f", and by the known answer {right} more of its images are right" if right else ""
    return Verdict(
        GO, (f"winners are the stock pipeline's own images; {said}{known}",), best, chosen
    )


def _scores(signal: Rung) -> list[str]:
    """What speaks against the scores themselves."""
    against = []
    if signal.known.varied is False:
        against.append("the reward gives all seeds of a prompt the same score")
    latest = signal.figures.get(signal.known.latest or "")
    if latest is not None and latest.high is not None and latest.high < LEAST:
        against.append(
            "the reward is noise: nearly finished images hardly rank seeds as finished ones do"
            f" ({latest.value:.2f})"
        )
    right = signal.figures.get("right-more")
    if right is not None and right.high is not None and right.high <= 0:
        against.append("what the reward prefers is right no more often")
    return against
