"""The drawing of a search as values: which looks are shown, where, and what stands below them.

Best candidates come first. A row is a step at which candidates were scored. A candidate stands in
the first column of its seed in which there is room for it; a look from which several candidates
branched off, with the best of them. Columns that find no room side by side stand in further bands
below. The contact sheet (sheet.py), ComfyUI's preview and the demo paint it, while a search runs and
after.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from ttsnap.core.looks import ESTIMATE
from ttsnap.results.course import DROPPED, FINISHED, GOING, Course, Score, Tracked

Look: TypeAlias = tuple[int, int]
"""A candidate (uid) scored at a step."""


class Cell(NamedTuple):
    """A look in its place."""

    look: Look
    band: int
    column: int
    row: int
    """In its band."""
    candidate: Tracked
    score: Score | None
    """None where the candidate is on its way."""
    dim: bool
    """Whether it was given up here."""
    place: int | None
    """Of a finished image that is kept, from 0: it has a frame."""
    led: int | None
    """The candidate that it belongs to, if that may be finished or dropped."""


@dataclass
class Column:
    """Looks one below the other, all of one seed."""

    best: Tracked
    """The candidate that came first."""
    looks: dict[Look, int] = field(default_factory=dict)
    """Each with the candidate (uid) that it belongs to: its own, or one that came of it."""

    def has_room(self, seed: int, looks: Sequence[Look]) -> bool:
        steps = {step for _, step in self.looks}
        return seed == self.best.seed and not any(step in steps for _, step in looks)


@dataclass(frozen=True)
class Drawing:
    """A drawing of a search, at one moment."""

    cells: Mapping[Look, Cell]
    heads: Mapping[tuple[int, int], Tracked]
    """The best candidate of each column, by band and column."""
    bands: Sequence[tuple[int, ...]]
    """The steps of each band's rows."""
    names: Mapping[int, tuple[str, str]]
    """What stands left of a step's row: its name, and its noise level. Empty of last looks."""
    words: str
    """What the search did so far, in a line."""
    whole: bool
    """Whether every look has found room."""
    end: int
    """The step of finished images."""

    @property
    def columns(self) -> int:
        return max((column for _, column in self.heads), default=-1) + 1


def drawn(course: Course, across: int, lines: int, *, last: bool = False) -> Drawing:
    """The drawing of a search with at most `across` columns side by side, and `lines` rows in all.

    last: a band is one row, of the last looks that were scored."""
    columns: list[Column] = []
    bands: list[set[int]] = []
    every = 0
    for uid, looks in _looks(course, last).items():
        every += len(looks)
        one = course.candidates[uid]
        fitting = (at for at, column in enumerate(columns) if column.has_room(one.seed, looks))
        at = len(columns) if last else next(fitting, len(columns))
        band = at // across
        steps = {course.steps} if last else {step for _, step in looks}
        rows = [*bands[:band], steps.union(*bands[band : band + 1]), *bands[band + 1 :]]
        if len(rows) > 1 and sum(map(len, rows)) > lines:
            continue
        bands = rows
        if at == len(columns):
            columns.append(Column(one))
        columns[at].looks |= dict.fromkeys(looks, uid)
    cells = _cells(course, columns, [sorted(steps) for steps in bands], across)
    words = _words(course)
    if len(cells) < every:
        words += f"; {len(cells)} of {every} pictures shown"
    steps = set() if last else set().union(*bands)
    names = {step: _row_name(course, step) for step in steps}
    whole = len(cells) == every and sum(map(len, bands)) <= lines
    heads = {divmod(at, across): column.best for at, column in enumerate(columns)}
    shown = [tuple(sorted(steps)) for steps in bands]
    return Drawing(cells, heads, shown, names, words, whole, course.steps)


def _looks(course: Course, last: bool) -> dict[int, list[Look]]:
    """The looks that belong to each candidate (uid), best first: its own, and those that it came of
    unless they belong to a better one. last: the last of them, among those that were scored; else
    one more for a candidate on its way, at the next step at which anything was scored."""
    steps = sorted({step for one in course.candidates.values() for step in one.scores})
    taken: set[Look] = set()
    belonging: dict[int, list[Look]] = {}
    for one in course.ranked():
        looks = [(one.uid, step) for step in one.scores]
        if one.state == GOING and not last:
            looks += [(one.uid, step) for step in steps if step >= one.aim][:1]
        first = min((step for _, step in looks), default=one.aim)
        parent = course.candidates.get(one.parent)
        while parent is not None:
            looks += [(parent.uid, step) for step in parent.scores if step < first]
            first = min([first, *parent.scores])
            parent = course.candidates.get(parent.parent)
        looks = sorted((look for look in looks if look not in taken), key=lambda look: look[1])
        taken.update(looks)
        if looks:
            belonging[one.uid] = looks[-1:] if last else looks
    return belonging


def _cells(
    course: Course, columns: Sequence[Column], bands: Sequence[Sequence[int]], across: int
) -> dict[Look, Cell]:
    best = course.best
    kept = course.kept or (() if best is None else (best.uid,))
    places = {(uid, course.steps): place for place, uid in enumerate(kept)}
    cells: dict[Look, Cell] = {}
    for at, column in enumerate(columns):
        band = at // across
        feet = {uid: look for look, uid in sorted(column.looks.items(), key=lambda x: x[0][1])}
        for look, uid in column.looks.items():
            candidate = course.candidates[look[0]]
            cells[look] = Cell(
                look,
                band,
                at % across,
                bands[band].index(look[1]) if look[1] in bands[band] else 0,
                candidate,
                candidate.scores.get(look[1]),
                dim=look == feet[uid] and candidate.state == DROPPED,
                place=places.get(look),
                led=uid if course.candidates[uid].open else None,
            )
    return cells


def _row_name(course: Course, step: int) -> tuple[str, str]:
    """ "draft" where all looks at the step are such, else the step."""
    if step == course.steps:
        return "finished", ""
    looks = {move.get("look", ESTIMATE.name) for move in course.moves if step in move["stop"]}
    kinds = {look.partition(":")[0] for look in looks}
    name = f"step {step}" if kinds != {"draft"} else "draft"
    return name, f"noise {course.levels[step]:.2f}"


def _words(course: Course) -> str:
    """How many began, and what has become of them."""
    candidates = course.candidates.values()
    parents = {one.parent for one in candidates}
    leaves = [one for one in candidates if one.uid not in parents or one.state != DROPPED]
    state = Counter(one.state for one in leaves)
    words = [f"{course.seeds} seeds"]
    words += [f"{len(candidates)} candidates"] if len(candidates) > course.seeds else []
    words += [f"{state[DROPPED]} pruned", f"{state[FINISHED]} finished"]
    words += [f"{state[GOING]} under way"] if state[GOING] else []
    words += [f"{round(course.nfe, 2):,g} evaluations"]
    words += [f"{course.draft_calls} draft calls among them"] if course.draft_calls else []
    return ", ".join(words)
