"""The drawing of a search as values: which looks are shown, where, and what stands below them.

Best candidates come first. A candidate is a column, a row a step at which candidates were scored.
Columns that find no room side by side stand in further bands below. The contact sheet (sheet.py),
ComfyUI's preview and the demo paint it, while a search runs and after.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ttsnap.core.looks import ESTIMATE
from ttsnap.results.course import DROPPED, FINISHED, GOING, Course, Score, Tracked
from ttsnap.results.lineage import (
    CandidateAtStep,
    Family,
    Origins,
    chain,
    choose,
    hidden_below,
    in_bands,
    mixed,
    origins,
)


class Cell(NamedTuple):
    """A look in its place; at step -1 a seed, which is named above the first row."""

    look: CandidateAtStep
    source: CandidateAtStep | None
    """The look that it came of; None for seeds."""
    band: int
    column: int
    row: int
    """In its band; -1 for seeds."""
    candidate: Tracked
    score: Score | None
    """None for seeds, and where the candidate is on its way."""
    dim: bool
    """Whether it was given up here."""
    golden: bool
    """Whether the best image came of it."""
    place: int | None
    """Of a finished image that is kept, from 0: it has a frame."""
    more: int
    """Candidates that came of it and are not shown."""
    led: int | None
    """The candidate at the foot of its column, if it may be finished or dropped."""


@dataclass(frozen=True)
class Drawing:
    """A drawing of a search, at one moment."""

    cells: Mapping[CandidateAtStep, Cell]
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
        return max((cell.column for cell in self.cells.values()), default=-1) + 1


def drawn(course: Course, across: int, lines: int, *, last: bool = False) -> Drawing:
    """The drawing of a search with at most `across` columns side by side, and `lines` rows in all.

    last: a band is one row, of the last looks that were scored."""
    origin = _tree(course, under_way=not last)
    ends = _ends(course, origin)
    if last:
        alone = [end for end in ends if end not in set(origin.values())]
        families = [Family({end: None}, {end: 0}) for end in alone]
    else:
        given_up = {end for end in ends if course.candidates[end.uid].state == DROPPED}
        families = choose(ends, mixed(ends, given_up), origin, across, across * lines)
    bands: list[list[Family]] = []
    rows: list[tuple[int, ...]] = []
    for band in in_bands(families, across):
        looks = [look for family in band for look in family.origin]
        steps = {course.steps if last else look.step for look in looks} - {-1}
        if bands and sum(map(len, rows)) + len(steps) > lines:
            break
        bands.append(band)
        rows.append(tuple(sorted(steps)))
    cells = _cells(course, origin, bands, rows)
    shown = sum(look.step >= 0 for look in cells)
    every = len(families) if last else sum(look.step >= 0 for look in origin)
    words = _words(course)
    if shown < every:
        words += f"; {shown} of {every} pictures shown"
        more = any(cell.more for cell in cells.values())
        words += " (+1 under one: another came of it)" if more else ""
    steps = set() if last else {step for steps in rows for step in steps}
    names = {step: _row_name(course, step) for step in steps}
    return Drawing(cells, rows, names, words, shown == every, course.steps)


def _ends(course: Course, origin: Origins) -> list[CandidateAtStep]:
    """The last look at each candidate, best first."""
    last = {look.uid: look for look in sorted(origin, key=lambda look: look.step)}
    return [last[one.uid] for one in course.ranked() if one.uid in last]


def _tree(course: Course, *, under_way: bool) -> Origins:
    """The looks that were scored. under_way: and one for each candidate on its way, at the next
    step at which anything was scored."""
    looks = {(one.uid, step) for one in course.candidates.values() for step in one.scores}
    steps = sorted({step for _, step in looks})
    going = [one for one in course.candidates.values() if under_way and one.state == GOING]
    aims = {(one.uid, one.aim) for one in going}
    found = origins(course.moves, looks | aims)
    moved: Origins = {}
    for uid, aim in aims - looks - set(found.values()):
        at = CandidateAtStep(uid, next((step for step in steps if step >= aim), aim))
        if at not in found:
            moved[CandidateAtStep(uid, aim)] = at
    return {moved.get(look) or look: source for look, source in found.items()}


def _cells(
    course: Course,
    origin: Origins,
    bands: Sequence[Sequence[Family]],
    rows: Sequence[tuple[int, ...]],
) -> dict[CandidateAtStep, Cell]:
    best = course.best
    kept = course.kept or (() if best is None else (best.uid,))
    places = {CandidateAtStep(uid, course.steps): place for place, uid in enumerate(kept)}
    won = next((look for look in places if look in origin), None)
    golden = set(chain(won, origin))
    shown = {look for band in bands for family in band for look in family.origin}
    hidden, given_up = hidden_below(origin, shown), _given_up(course, origin)
    cells: dict[CandidateAtStep, Cell] = {}
    for band, families in enumerate(bands):
        free = 0
        row = {step: place for place, step in enumerate(rows[band])}
        for family in families:
            downwards = sorted(family.origin, key=lambda look: look.step)
            feet = {family.columns[look]: course.candidates[look.uid] for look in downwards}
            for look, column in family.columns.items():
                candidate, foot = course.candidates[look.uid], feet[column]
                cells[look] = Cell(
                    look,
                    family.origin[look],
                    band,
                    free + column,
                    -1 if look.step < 0 else row.get(look.step, 0),
                    candidate,
                    candidate.scores.get(look.step),
                    dim=look in given_up,
                    golden=look in golden,
                    place=places.get(look),
                    more=hidden[look],
                    led=foot.uid if foot.open else None,
                )
            free += family.wide
    return cells


def _given_up(course: Course, origin: Origins) -> set[CandidateAtStep]:
    """The looks at which candidates were dropped, and seeds of which nobody is left."""
    going_on = set(origin.values())
    ends = {look for look in origin if look not in going_on}
    dropped = {look for look in ends if course.candidates[look.uid].state == DROPPED}
    living = {chain(look, origin)[-1] for look in ends - dropped}
    return dropped | {look for look in origin if look.step < 0 and look not in living}


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
