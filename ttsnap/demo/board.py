"""The state of one search for people, from its events: candidates, scores, spending, and where each
is drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ttsnap.algorithms.by_hand import UserCommand
from ttsnap.core.cost import Cost
from ttsnap.core.looks import ESTIMATE
from ttsnap.core.results import Event
from ttsnap.results.lineage import (
    CandidateAtStep,
    Origins,
    chain,
    choose,
    mixed,
    most_wanted,
    origins,
    place,
)

COLUMNS = 18
"""Of pictures on the board, at most."""


class Mark(NamedTuple):
    """A score on the chart."""

    nfe: int
    """Evaluations spent until then."""
    score: float
    finished: bool = False
    """Whether it is of a finished image."""
    right: bool | None = None
    """Whether that image is strictly right; None where nobody can tell."""


@dataclass
class Lane:
    """One candidate."""

    uid: int
    seed: int
    parent: int
    """Its parent's uid, -1 for none."""
    aim: int
    """The step that it goes to."""
    state: str = "going"
    """going, waiting, dropped or finished."""
    scores: dict[int, float] = field(default_factory=dict)
    """By step."""
    pictures: dict[int, str] = field(default_factory=dict)
    """Data URIs by step."""
    right: bool | None = None
    """Whether the finished image is strictly right; None where nobody can tell."""

    @property
    def name(self) -> str:
        """Its name on the page: its seed, and the uid of a branch, since branches share seeds."""
        return f"{self.seed}" if self.parent < 0 else f"{self.seed} ↳{self.uid}"

    @property
    def reached(self) -> int:
        """The last step with a score, -1 before the first."""
        return max(self.scores, default=-1)

    @property
    def value(self) -> float:
        """The last score, -inf where there is none or it failed."""
        last = self.scores.get(self.reached, math.nan)
        return -math.inf if math.isnan(last) else last


@dataclass
class Board:
    """The state of one search."""

    levels: Sequence[float]
    """Noise levels of steps 0..K."""
    lanes: dict[int, Lane] = field(default_factory=dict)
    """Candidates by uid."""
    spent: Cost = field(default_factory=Cost)
    seconds: float = 0.0
    curve: list[Mark] = field(default_factory=list)
    """The best so far: of estimates until an image is finished, then of finished images."""
    best: Lane | None = None
    """The finished candidate with the highest score, the first of equals."""
    marks: list[Mark] = field(default_factory=list)
    """Every score."""
    picture: str = ""
    """The best finished image, large, as a data URI."""
    over: bool = False
    looks: dict[int, set[str]] = field(default_factory=dict)
    """By step, the estimators that score candidates which stop there ("draft", "estimate")."""
    moves: list[Mapping[str, Any]] = field(default_factory=list)
    """As a trace has them."""
    seeds: list[int] = field(default_factory=list)
    """The seeds whose families are shown, by uid, from left to right."""
    wishes: Sequence[UserCommand] | None = None
    """Those of the visitor so far; None where the search takes none."""

    @property
    def steps(self) -> int:
        """K."""
        return len(self.levels) - 1

    @property
    def hope(self) -> Lane | None:
        """The candidate with the highest last score among those with a picture there, dropped ones
        last."""
        seen = [lane for lane in self.lanes.values() if lane.reached in lane.pictures]
        living = [lane for lane in seen if lane.state != "dropped"]
        return max(living or seen, key=lambda lane: (lane.value, -lane.uid), default=None)

    def listen(
        self, event: Event, picture: str = "", large: str = "", right: bool | None = None
    ) -> None:
        """Apply an event of the search. picture, large: its image as data URIs. right: as in
        `Lane`."""
        self.seconds = max(self.seconds, event.seconds)
        if event.move is not None:
            self.move(event.move)
        elif event.kind == "tick":
            self.spent += Cost(nfe=round(event.nfe))
        elif event.kind == "score":
            self.spent += Cost(decodes=1, reward_calls=event.reward_calls)
            self.score(event.uids[0], event.step, event.scores, picture, right)
            if large:
                self.picture = large
        elif event.kind == "drop":
            self.drop(event.uids)
        elif event.kind == "end":
            self.end()

    def move(self, move: Mapping[str, Any]) -> None:
        """Apply the rows of a move, an entry of a trace."""
        look = str(move.get("look", ESTIMATE.name)).partition(":")[0]
        for stop in move["stop"]:
            self.looks.setdefault(stop, set()).add(look)
        self.moves.append(move)
        for uid, parent, stop, seed in zip(
            *(move[name] for name in ("uids", "parents", "stop", "seeds")), strict=True
        ):
            lane = self.lanes.get(uid)
            if lane is None:
                self.lanes[uid] = Lane(uid, seed, parent, stop)
            else:
                lane.aim, lane.state = stop, "going"
        self.drop(move["drop"])

    def score(
        self,
        uid: int,
        step: int,
        scores: Sequence[float],
        picture: str = "",
        right: bool | None = None,
    ) -> None:
        """Note the scores of a candidate, by their mean."""
        lane = self.lanes.get(uid)
        if lane is None:
            return
        lane.scores[step] = sum(scores) / len(scores) if scores else math.nan
        finished = step == self.steps
        lane.state, lane.right = ("finished", right) if finished else ("waiting", lane.right)
        self.marks.append(
            Mark(self.spent.nfe, lane.scores[step], finished, right if finished else None)
        )
        if picture:
            lane.pictures[step] = picture
        if lane.value == -math.inf:
            return
        if finished and (
            self.best is None or (lane.value, -lane.uid) > (self.best.value, -self.best.uid)
        ):
            self.best = lane
        if finished and self.best is not None:
            self._draw(Mark(self.spent.nfe, self.best.value, True, self.best.right))
        elif self.best is None and (not self.curve or lane.value > self.curve[-1].score):
            self._draw(Mark(self.spent.nfe, lane.value))

    def _draw(self, mark: Mark) -> None:
        """Continue the curve. Scores of one batch are one point."""
        if self.curve and self.curve[-1].nfe == mark.nfe:
            self.curve.pop()
        self.curve.append(mark)

    def drop(self, uids: Sequence[int]) -> None:
        """Candidates are given up."""
        for uid in uids:
            if uid in self.lanes and self.lanes[uid].state != "finished":
                self.lanes[uid].state = "dropped"

    def end(self) -> None:
        """The search is over: candidates that are not finished are given up."""
        self.over = True
        self.drop(list(self.lanes))
        if self.curve:
            self.curve.append(self.curve[-1]._replace(nfe=max(self.spent.nfe, self.curve[-1].nfe)))

    def placed(self) -> tuple[Origins, dict[CandidateAtStep, int]]:
        """The looks that are shown, each with its origin, and their columns: those that were
        scored, and where candidates are going.

        While a search runs, the best families are shown, first those of which some candidate is
        still to be dropped or finished. One that stays keeps its place. Once the search is over,
        the winner's comes first.
        """
        looks = {(lane.uid, step) for lane in self.lanes.values() for step in lane.scores}
        looks |= {(lane.uid, lane.aim) for lane in self.lanes.values() if lane.state == "going"}
        first = [self.best] if self.best is not None else [] if self.over else [self.hope]
        origin, kept = origins(self.moves, looks), [lane.uid for lane in first if lane is not None]
        ends = most_wanted(origin, kept, lambda uid: self.lanes[uid].value)
        if self.over:
            shown = choose(mixed(ends, len(kept), self.steps), origin, COLUMNS)
            return shown, place(shown, ends)
        family = {end: chain(end, origin)[-1].uid for end in ends}
        led = {
            family[end]
            for end in ends
            if end.uid in kept or self.lanes[end.uid].state in ("going", "waiting")
        }
        ranked = sorted(ends, key=lambda end: family[end] not in led)
        shown = choose(ranked, origin, COLUMNS)
        new = [look.uid for look in shown if look.step < 0 and look.uid not in self.seeds]
        for column, uid in enumerate(self.seeds):
            if new and CandidateAtStep(uid, -1) not in shown:
                self.seeds[column] = new.pop(0)
        self.seeds += new
        return shown, place(
            shown,
            sorted(ends, key=lambda end: self.seeds.index(family[end]) if end in shown else -1),
        )
