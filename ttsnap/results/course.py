"""The course of a search: what has become of each candidate so far, by its events or its trace.

`Course.listen` takes the events of a search under way, `Course.of` a result. Both tell the same.

`drawn` makes a drawing of it, as values: which looks are shown, where, and what stands below them.
Best candidates come first. A row is a step at which candidates were scored. A candidate stands in
the first column of its seed in which there is room for it; a look from which several candidates
branched off, with the best of them. Columns that find no room side by side stand in further bands
below. The contact sheet (sheet.py), ComfyUI's preview and the demo paint it, while a search runs and
after.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from ttsnap.core.checklist import YES
from ttsnap.core.looks import ESTIMATE
from ttsnap.core.results import Event, Result
from ttsnap.core.selection import BEST, Selection

GOING = "going"
WAITING = "waiting"
DROPPED = "dropped"
FINISHED = "finished"


@dataclass(frozen=True)
class Score:
    """What was said of a candidate at a step."""

    step: int
    nfe: float
    """Evaluations spent until then."""
    value: float
    """The utility of its scores; nan where they failed."""
    answers: Mapping[str, bool] = field(default_factory=dict)
    """Questions that the picture meets or not, by name; without those whose answer failed."""
    refused: bool = False
    """Whether the image is finished and must not be returned."""

    @property
    def rank(self) -> float:
        """The value, -inf where there is none that counts."""
        return -math.inf if self.refused or math.isnan(self.value) else self.value

    @property
    def right(self) -> bool | None:
        """Whether every question is met; None without any."""
        return all(self.answers.values()) if self.answers else None


@dataclass
class Tracked:
    """One candidate."""

    uid: int
    seed: int
    parent: int
    """Its parent's uid, -1 for none."""
    aim: int
    """The step that it goes to."""
    state: str = GOING
    """GOING, WAITING, DROPPED or FINISHED."""
    scores: dict[int, Score] = field(default_factory=dict)
    """By step."""

    @property
    def name(self) -> str:
        """Its seed; of a branch the uid as well, since branches share seeds."""
        return f"{self.seed}" if self.parent < 0 else f"{self.seed} ↳{self.uid}"

    @property
    def reached(self) -> int:
        """The last step with a score, -1 before the first."""
        return max(self.scores, default=-1)

    @property
    def rank(self) -> float:
        """The last score as it counts, -inf before the first."""
        return self.scores[self.reached].rank if self.scores else -math.inf

    @property
    def open(self) -> bool:
        """Whether it may still be finished or dropped."""
        return self.state in (GOING, WAITING)


@dataclass
class Course:
    """The course of one search."""

    levels: Sequence[float]
    """(K+1,) noise levels of the steps."""
    selection: Selection = BEST
    """What makes one number of a candidate's scores."""
    asked: Mapping[str, int] = field(default_factory=dict)
    """The items of a checklist, by their words: which of the scores each has."""
    candidates: dict[int, Tracked] = field(default_factory=dict)
    """By uid."""
    moves: list[Mapping[str, Any]] = field(default_factory=list)
    """As a trace has them."""
    seeds: int = 0
    """Seeds that were started."""
    nfe: float = 0
    """Evaluations spent; drafts are parts of evaluations."""
    decodes: int = 0
    reward_calls: int = 0
    draft_calls: int = 0
    """Known at the end."""
    seconds: float = 0.0
    kept: tuple[int, ...] = ()
    """Uids of the returned images, best first; none before the end."""
    over: bool = False

    @classmethod
    def of(cls, result: Result) -> Course:
        """The course of a search that is over."""
        course = cls(result.levels, result.particles.selection, result.asked)
        for move in result.trace:
            course.move(move)
            stops = dict(zip(move["uids"], move["stop"], strict=True))
            for uid, scores in move["scores"].items():
                course.score(uid, stops[uid], scores)
        course.end(result)
        return course

    @property
    def steps(self) -> int:
        """K."""
        return len(self.levels) - 1

    def listen(self, event: Event, answers: Mapping[str, bool] | None = None) -> None:
        """Apply an event. answers: to questions about what was scored, beside a checklist's."""
        self.seconds = max(self.seconds, event.seconds)
        if event.move is not None:
            self.move(event.move)
        elif event.kind == "tick":
            self.nfe += event.nfe
        elif event.kind == "score":
            self.decodes += 1
            self.reward_calls += event.reward_calls
            self.score(event.uids[0], event.step, event.scores, answers)
        elif event.kind == "drop":
            self.drop(event.uids)
        elif event.kind == "end":
            self.end()

    def move(self, move: Mapping[str, Any]) -> None:
        """Apply the rows of a move, an entry of a trace."""
        self.moves.append(move)
        rows = zip(*(move[name] for name in ("uids", "parents", "stop", "seeds")), strict=True)
        for uid, parent, stop, seed in rows:
            known = self.candidates.get(uid)
            if known is None:
                self.candidates[uid] = Tracked(uid, seed, parent, stop)
                self.seeds += parent < 0
            else:
                known.aim = stop
                known.state = GOING
        self.drop(move["drop"])

    def score(
        self,
        uid: int,
        step: int,
        scores: Sequence[float],
        answers: Mapping[str, bool] | None = None,
    ) -> None:
        """Note the scores of a candidate at a step."""
        if uid not in self.candidates:
            return
        candidate = self.candidates[uid]
        rows = np.array([scores], float)
        value = float(self.selection.values(rows)[0]) if scores else math.nan
        said = {words: scores[at] for words, at in self.asked.items() if at < len(scores)}
        met = {words: value >= YES for words, value in said.items() if not math.isnan(value)}
        finished = step == self.steps
        refused = finished and not self.selection.admits(rows)[0]
        candidate.scores[step] = Score(step, self.nfe, value, {**met, **(answers or {})}, refused)
        candidate.state = FINISHED if finished else WAITING

    def drop(self, uids: Sequence[int]) -> None:
        """Candidates are given up."""
        for uid in uids:
            if uid in self.candidates and self.candidates[uid].state != FINISHED:
                self.candidates[uid].state = DROPPED

    def end(self, result: Result | None = None) -> None:
        """The search is over: what is not finished is given up.

        result: it has the last word on what was kept and spent."""
        self.over = True
        self.drop(list(self.candidates))
        if result is not None:
            spent = result.spent
            self.kept = tuple(image.uid for image in result.images)
            self.seeds = spent.seeds
            self.nfe = spent.nfe
            self.seconds = float(spent.seconds)
            self.decodes = spent.cost.decodes
            self.reward_calls = spent.cost.reward_calls
            self.draft_calls = spent.cost.draft_calls

    def ranked(self) -> list[Tracked]:
        """The candidates, best first: the kept ones, then those that came furthest, of these the
        ones that are not dropped, then by score."""
        places = {uid: place for place, uid in enumerate(self.kept)}

        def key(candidate: Tracked) -> tuple[float, ...]:
            place = places.get(candidate.uid, len(places))
            dropped = candidate.state == DROPPED
            return place, -candidate.reached, dropped, -candidate.rank, candidate.uid

        return sorted(self.candidates.values(), key=key)

    @property
    def answers(self) -> dict[str, int]:
        """How many of the images that are finished so far have each item of a checklist."""
        finished = [
            one.scores[self.steps].answers
            for one in self.candidates.values()
            if self.steps in one.scores
        ]
        return {words: sum(said.get(words, False) for said in finished) for words in self.asked}

    @property
    def best(self) -> Tracked | None:
        """The best finished image so far; None before the first, and where all are refused."""
        first = next(iter(self.ranked()), None)
        if first is None or first.state != FINISHED or first.rank == -math.inf:
            return None
        return first


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
