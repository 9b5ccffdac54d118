"""Images on their way to actors of rewards: outcomes wait here for scores, while the engines go on with other rows.

An actor that has nothing to do gets what there is, shared with others that have nothing; one at work gets a full batch,
so that it never waits for the next.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ttsnap.cluster.messages import ImageScores, ImageToScore, ScoreImages
from ttsnap.core.outcome import Outcome
from ttsnap.rewards.first_scores import NOT_FINITE

AHEAD = 2
"""Batches that an actor is sent at most: one that it scores, and one that waits."""


@dataclass(eq=False)
class Waiting:
    """An outcome whose rows lack scores. left: how many of them."""

    outcome: Outcome
    left: int
    errors: list[str | None] = field(default_factory=list)


Item = tuple[Waiting, int, ImageToScore]
"""One row of an outcome, and what is asked about it."""


class RewardQueue:
    """Of so many actors. columns: where their rewards are among all. post: how actor i is sent a batch, at once."""

    def __init__(self, actors: int, columns: Sequence[int], post: Callable[[int, ScoreImages], None]) -> None:
        self.columns, self.post = list(columns), post
        self.batch = 1
        self.queue: deque[Item] = deque()
        self.sent: list[dict[int, list[Item]]] = [{} for _ in range(actors)]
        """By actor, the batches that it was sent, by number, oldest first."""
        self._waiting: list[Waiting] = []
        self._number = 0

    @property
    def held(self) -> int:
        """Rows that wait for scores."""
        return sum(len(one.outcome.uids) for one in self._waiting)

    @property
    def surplus(self) -> int:
        """Images that wait beyond those that keep the actors busy."""
        return max(0, len(self.queue) - AHEAD * self.batch * len(self.sent))

    def holds(self, job: int) -> bool:
        """Whether rows of this job wait."""
        return any(one.outcome.job == job for one in self._waiting)

    def add(self, outcome: Outcome, images: Sequence[ImageToScore]) -> None:
        """An outcome with one image for each of its rows."""
        # What travelled may be read-only.
        scores = None if outcome.scores is None else outcome.scores.copy()
        waiting = Waiting(replace(outcome, scores=scores), len(images), list(outcome.errors))
        self._waiting.append(waiting)
        self.queue.extend((waiting, row, image) for row, image in enumerate(images))

    def hurry(self, job: int) -> None:
        """Let the rows of a job go first."""
        mine = [item for item in self.queue if item[0].outcome.job == job]
        self.queue = deque([*mine, *(item for item in self.queue if item[0].outcome.job != job)])

    def send(self) -> None:
        """What actors have room for."""
        while self.queue:
            actor = min(range(len(self.sent)), key=lambda i: len(self.sent[i]))
            if not self.sent[actor]:
                idle = sum(not batches for batches in self.sent)
                size = min(self.batch, -(-len(self.queue) // idle))
            elif len(self.sent[actor]) < AHEAD and len(self.queue) >= self.batch:
                size = self.batch
            else:
                return
            self._number += 1
            items = [self.queue.popleft() for _ in range(size)]
            self.sent[actor][self._number] = items
            self.post(actor, ScoreImages(self._number, tuple(image for _, _, image in items)))

    def heard(self, actor: int, scored: Mapping[int, ImageScores]) -> list[Outcome]:
        """An actor's answers; returns the outcomes that lack nothing more."""
        done = []
        for number, scores in scored.items():
            for (waiting, row, _), values, error in zip(
                self.sent[actor].pop(number), scores.scores, scores.errors, strict=True
            ):
                known = waiting.errors[row]
                if known != NOT_FINITE and waiting.outcome.scores is not None:
                    waiting.outcome.scores[row, self.columns] = values
                    waiting.errors[row] = "; ".join(filter(None, (known, error))) or None
                waiting.left -= 1
                if not waiting.left:
                    self._waiting.remove(waiting)
                    done.append(replace(waiting.outcome, errors=waiting.errors))
        return done

    def died(self, actor: int) -> int:
        """An actor is gone: what it was sent is asked again, of any, before all else. Returns how many images it was
        at, which were scored in vain as far as they were."""
        batches = list(self.sent[actor].values())
        self.sent[actor] = {}
        self.queue.extendleft(item for items in reversed(batches) for item in reversed(items))
        return len(batches[0]) if batches else 0
