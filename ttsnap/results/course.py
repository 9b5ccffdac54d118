"""The course of a search: what has become of each candidate so far, by its events or its trace.

`Course.listen` takes the events of a search under way, `Course.of` a result. Both tell the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ttsnap.core.checklist import YES
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
