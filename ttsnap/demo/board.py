"""The state of one search for people, from its events or its trace: candidates, scores, spending, progress."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ttsnap.algorithms.by_hand import Wish
from ttsnap.core.cost import Cost
from ttsnap.core.looks import ESTIMATE
from ttsnap.core.results import Event

MOST_LANES, MOST_OF_DEEP = 18, 28


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
    """One candidate: a column of the board."""

    uid: int
    seed: int
    parent: int
    """Its parent's uid, -1 for none."""
    born: int
    """The step where it left its parent."""
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
    columns: list[int] = field(default_factory=list)
    """Who is shown, by uid, from left to right."""
    wishes: Sequence[Wish] | None = None
    """Those of the visitor so far; None where the search takes none."""

    @property
    def steps(self) -> int:
        """K."""
        return len(self.levels) - 1

    @property
    def hope(self) -> Lane | None:
        """The candidate with the highest last score among those with a picture there."""
        seen = [lane for lane in self.lanes.values() if lane.reached in lane.pictures]
        return max(seen, key=lambda lane: (lane.value, -lane.uid), default=None)

    @property
    def rows(self) -> list[int]:
        """Steps with scores, and those that candidates go to."""
        scored = {step for lane in self.lanes.values() for step in lane.scores}
        return sorted(scored | {lane.aim for lane in self.lanes.values() if lane.state == "going"})

    def listen(self, event: Event, picture: str = "", large: str = "", right: bool | None = None) -> None:
        """Apply an event of the search. picture, large: its image as data URIs. right: as in `Lane`."""
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
        columns = (move[name] for name in ("uids", "parents", "start", "stop", "seeds"))
        for uid, parent, start, stop, seed in zip(*columns, strict=True):
            lane = self.lanes.get(uid)
            if lane is None:
                self.lanes[uid] = Lane(uid, seed, parent, start, stop)
            else:
                lane.aim, lane.state = stop, "going"
        self.drop(move["drop"])

    def score(self, uid: int, step: int, scores: Sequence[float], picture: str = "", right: bool | None = None) -> None:
        """Note the scores of a candidate, by their mean."""
        lane = self.lanes.get(uid)
        if lane is None:
            return
        lane.scores[step] = sum(scores) / len(scores) if scores else math.nan
        finished = step == self.steps
        lane.state, lane.right = ("finished", right) if finished else ("waiting", lane.right)
        self.marks.append(Mark(self.spent.nfe, lane.scores[step], finished, right if finished else None))
        if picture:
            lane.pictures[step] = picture
        if lane.value == -math.inf:
            return
        if finished and (self.best is None or (lane.value, -lane.uid) > (self.best.value, -self.best.uid)):
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

    def forks(self) -> dict[int, int]:
        """The last step from which each parent was branched."""
        last_steps: dict[int, int] = {}
        for lane in self.lanes.values():
            if lane.parent >= 0:
                last_steps[lane.parent] = max(lane.born, last_steps.get(lane.parent, 0))
        return last_steps

    def end(self) -> None:
        """The search is over: candidates that are not finished are given up."""
        self.over = True
        self.drop(list(self.lanes))
        if self.curve:
            self.curve.append(self.curve[-1]._replace(nfe=max(self.spent.nfe, self.curve[-1].nfe)))

    def lineage(self, uid: int, known: Collection[int] = (), most: int = 10_000) -> list[int]:
        """A candidate and its ancestors, itself first, up to a `known` one, and `most` of them."""
        ancestry: list[int] = []
        while uid in self.lanes and uid not in known and len(ancestry) < most:
            ancestry.append(uid)
            uid = self.lanes[uid].parent
        return ancestry

    def placed(self) -> list[Lane]:
        """The candidates shown, by column. While a search runs, each keeps its own until it is dropped or finished."""
        shown = {lane.uid: lane for lane in self.shown()}
        if self.over:
            return list(shown.values())
        new = sorted(shown.keys() - set(self.columns), key=lambda uid: (-shown[uid].reached, -shown[uid].value, uid))
        for place, uid in enumerate(self.columns):
            if new and uid not in shown and self.lanes[uid].state in ("dropped", "finished"):
                self.columns[place] = new.pop(0)
        self.columns += sorted(new[: max(0, len(shown) - len(self.columns))])
        return [self.lanes[uid] for uid in self.columns]

    def shown(self, most: int | None = None) -> list[Lane]:
        """The candidates that got furthest, and their ancestors, families side by side.

        most: by default as many as the page has room for, and a few more with a deep lineage. Where finished ones would
        take all room, a quarter of it is for pruned ones. The order is that of starting while the search runs. Once it
        is over, the winner comes first, then its ancestors, then worse ones.
        """
        ranked = sorted(self.lanes.values(), key=lambda lane: (-lane.reached, -lane.value, lane.uid))
        if most is None:
            deep = len(self.lineage(ranked[0].uid, most=MOST_OF_DEEP)) if ranked else 0
            most = min(MOST_OF_DEEP, max(MOST_LANES, deep + 8))
        chosen: set[int] = set()
        for lane in _mixed(ranked, most):
            chain = self.lineage(lane.uid, chosen, most + 1)
            if len(chosen) + len(chain) <= most or not chosen:
                chosen.update(chain[:most])
            if len(chosen) == most:
                break
        own = {lane.uid: place for place, lane in enumerate(ranked)} if self.over else {}
        rank = dict(own)  # of a candidate, or of the best of its descendants
        for uid in sorted(chosen if own else (), reverse=True):  # children come after their parents
            if (parent := self.lanes[uid].parent) in chosen:
                rank[parent] = min(rank[parent], rank[uid])
        children: dict[int, list[int]] = {}
        for uid in sorted(chosen, key=lambda uid: (rank.get(uid, 0), uid)):
            parent = self.lanes[uid].parent
            children.setdefault(parent if parent in chosen else -1, []).append(uid)

        def family(uid: int) -> list[int]:
            """A candidate, its better descendants before it, and its worse ones after it."""
            parts = children.get(uid, [])
            better = [each for child in parts if own and rank[child] < own[uid] for each in family(child)]
            worse = [each for child in parts if not own or rank[child] > own[uid] for each in family(child)]
            return [*better, uid, *worse]

        order = [each for root in children.get(-1, []) for each in family(root)]
        return [self.lanes[uid] for uid in order]


def _mixed(ranked: Sequence[Lane], most: int) -> list[Lane]:
    """Candidates in the order in which they get room. Where finished ones would take most of it, some dropped ones come
    first, from all over the ranking."""
    finished = [lane for lane in ranked if lane.state == "finished"]
    dropped = [lane for lane in ranked if lane.state == "dropped" and lane.scores]
    some = most // 4
    if len(finished) <= most - some or not dropped:
        return list(ranked)
    spread = dropped[:: max(1, len(dropped) // max(1, some))][:some]
    first = finished[: most - len(spread)]
    return [*first, *spread, *ranked]
