"""One prompt under way: its particles, its money, what its algorithm wants, and what came of it so
far."""

from __future__ import annotations

import dataclasses
import logging
from collections import deque
from typing import NamedTuple

import numpy as np

from ttsnap.core.arrays import IntArray
from ttsnap.core.cost import Cost
from ttsnap.core.looks import ESTIMATE
from ttsnap.core.outcome import NOTHING, Decoded, Here, Outcome, PictureLost
from ttsnap.core.particles import Particles
from ttsnap.core.plans import Plan
from ttsnap.core.prompt import Prompt, private
from ttsnap.core.protocols import AlgorithmState
from ttsnap.core.results import DROP, FINISH, TracedMove
from ttsnap.core.table import ParticleTable
from ttsnap.loop.by_hand import Said, of
from ttsnap.loop.ledger import Ledger

logger = logging.getLogger(__name__)
MOST_SPARE = 2**30
MOST_HELD = 2**32
"""Bytes of finished images or videos of one prompt above which only those are held that may still
be returned, and above which no more than will be: one video may take 400 MB."""
MOST_SEEDS = 4096
"""Seeds of a prompt after which no more are begun in place of refused ones, whatever the budget."""


class Notice(NamedTuple):
    """What the user should know of a search."""

    sentence: str
    """Ours; it may be shown to anyone."""
    said: str = ""
    """What a reward or a device said, if anything. It may hold addresses and paths: it is for
    whoever runs the search."""

    def __str__(self) -> str:
        return f"{self.sentence}: {self.said}" if self.said else self.sentence


class Proposal(NamedTuple):
    """What an algorithm wants next."""

    plan: Plan | None
    """None for nothing more."""
    value: float
    """What the plan is worth (Move.value)."""
    state: AlgorithmState
    """The algorithm's, once the plan is carried out."""
    at: IntArray = np.empty(0, int)
    """(n,) places of the plan's rows in the algorithm's move."""
    moved: IntArray = np.empty(0, int)
    """(N,) what has come of the algorithm's rows: -1 for those that are not begun."""


@dataclasses.dataclass(eq=False)
class Job:
    """One prompt of a request."""

    index: int
    """Its number on the engine."""
    place: int
    """Of its prompt among those of the request."""
    prompt: Prompt
    ledger: Ledger
    table: ParticleTable
    state: AlgorithmState
    """The algorithm's."""
    rng: np.random.Generator
    waiting: int = 0
    """Rows of the plan under way that are not done."""
    proposal: Proposal | None = None
    plan: Plan | None = None
    """The plan under way, or the last one."""
    moved: IntArray = dataclasses.field(default_factory=lambda: np.empty(0, int))
    """(n,) what came of the last move's rows, as in Particles."""
    begun: int = 0
    """Rows of the move under way that were begun in earlier parts of it."""
    moves: int = 0
    """The algorithm's moves of which all rows are begun, or cut off."""
    closing: bool = False
    """Whether it only finishes images."""
    ended: str = ""
    """STOPPED, TIMED, FOUND, or the cap in words; empty where its algorithm had all it wanted."""
    images: dict[int, Decoded | None] = dataclasses.field(default_factory=dict)
    """Finished ones by uid; None where no model ran, or where one was let go."""
    kept: list[int] = dataclasses.field(default_factory=list)
    """Uids of the images that are returned, best first, once the prompt is done."""
    rejected: set[int] = dataclasses.field(default_factory=set)
    """Uids that the algorithm does not want returned."""
    trace: list[TracedMove] = dataclasses.field(default_factory=list)
    warnings: list[Notice] = dataclasses.field(default_factory=list)
    failures: int = 0
    """Scores that failed."""
    idle: int = 0
    """Moves in a row that cost nothing."""
    said: deque[tuple[str, int]] = dataclasses.field(default_factory=deque)
    """Commands of a person that are not carried out yet. Other threads append to it."""
    by_hand: Said = dataclasses.field(default_factory=list)
    """Commands that are carried out with the next plan."""
    led: bool = False
    """Whether there was a command."""

    @property
    def particles(self) -> Particles:
        return self.table.view

    @property
    def finished(self) -> bool:
        """Whether there is an image, refused or not."""
        return bool(self.particles.finished.any())

    @property
    def goes_on(self) -> bool:
        """Whether what its algorithm leaves of a budget goes to further images, as none so far may
        be returned."""
        particles = self.particles
        if not particles.selection.gated or (particles.finished & ~particles.refused).any():
            return False
        return self.ledger.capped and particles.seeds < MOST_SEEDS

    @property
    def ends(self) -> bool:
        """Whether it has all that it is to find (Selection.enough)."""
        particles = self.particles
        if particles.selection.enough is None or self.closing:
            return False
        return particles.selection.ends(particles.scores[particles.finished, -1])

    @property
    def value(self) -> float:
        """What the proposed move is worth; inf where none is proposed, as ending costs nothing."""
        return self.proposal.value if self.proposal is not None else np.inf

    def unfinished(self, *, nearest: bool) -> IntArray:
        """Uids of what may become an image, the best first, or those that are nearest to it."""
        uids = np.flatnonzero(self.particles.alive & ~self.particles.finished)
        order = -self.particles.step[uids], -self.particles.value(uids)
        return uids[np.lexsort(order[::-1] if nearest else order)]

    def take_back(self, refund: Cost) -> None:
        """Nothing is under way any more, and this part of the plan did not run."""
        self.ledger.refund(refund)
        if self.trace:
            self.trace[-1]["refund"] = refund.counts()
        self.waiting = 0

    @property
    def dropped(self) -> IntArray:
        """Living candidates that the next plan drops."""
        return np.array([uid for uid in of(DROP, self.by_hand) if self.particles.alive[uid]], int)

    def still_proposed(self, proposal: Proposal) -> Proposal | None:
        """What is left of a proposal after a person's commands. One of which nothing is begun is
        made anew."""
        if proposal.plan is None or not self.begun:
            return None
        parents = proposal.plan.rows.parent
        kept = ~np.isin(parents, [uid for _, uid in self.by_hand])
        done = np.isin(parents, of(FINISH, self.by_hand))
        self.moved[proposal.at[done]] = parents[done]
        return proposal._replace(plan=proposal.plan.take(kept.nonzero()[0]), at=proposal.at[kept])

    def move_ends(self) -> None:
        """No more rows of its algorithm's last move are begun."""
        self.moves = self.moves + 1
        self.begun = 0

    def begin(self, plan: Plan) -> None:
        """A plan was charged and is about to run."""
        self.plan = plan
        self.waiting = len(plan)
        rows = plan.rows
        self.trace.append(
            {
                "move": len(self.trace),
                "cost": plan.cost.counts(),
                "uids": plan.uid.tolist(),
                "parents": rows.parent.tolist(),
                "start": rows.start.tolist(),
                "stop": rows.stop.tolist(),
                "seeds": plan.seed.tolist(),
                "scores": {},
                "drop": plan.drop.tolist(),
                "closing": self.closing,
            }
        )
        if plan.look != ESTIMATE:
            self.trace[-1]["look"] = plan.look.name
        if self.by_hand:
            self.trace[-1]["by_hand"] = {
                verb: uids for verb in (DROP, FINISH) if (uids := of(verb, self.by_hand))
            }
            self.by_hand = []

    def take(self, outcome: Outcome, end: int) -> None:
        """Rows of the plan are done: note scores, and the images of those that came to step `end`.

        Images that cannot be among the best any more are let go now and then.
        """
        self.table.record(outcome)
        self.waiting -= len(outcome.uids)
        if outcome.unspent != NOTHING:
            self.ledger.refund(outcome.unspent)
            self.trace[-1]["cost"] = (Cost(**self.trace[-1]["cost"]) - outcome.unspent).counts()
        if outcome.scores is None or outcome.images is None:
            return
        uids = outcome.uids.tolist()
        self.trace[-1]["scores"].update(zip(uids, outcome.scores.tolist(), strict=True))
        self._note_failures(outcome)
        for i in np.flatnonzero(outcome.step == end).tolist():
            self.images[uids[i]] = outcome.images[i]
        keep = self.particles.selection.keep
        most = self.particles.selection.candidates
        if len(self.images) > most and (
            len(self.images) > most + 3 * keep + 32 or self._held > MOST_SPARE
        ):
            self.images = {uid: self.images[uid] for uid in self.ranking()[:most]}
        if len(self.images) > keep and self._held > MOST_HELD:
            self.images = {uid: self.images[uid] for uid in self.chosen()}

    @property
    def _held(self) -> int:
        """Bytes of the images that this process holds."""
        return sum(picture.held for picture in self.images.values() if picture is not None)

    def ranking(self) -> list[int]:
        """Uids of the images that may be returned, best first; rejected ones only where there is no
        other. Images whose final score failed come last, by the scores that they had before."""
        admitted = set(self.images) - set(np.flatnonzero(self.particles.refused).tolist())
        uids = np.array(sorted(admitted - self.rejected or admitted), int)
        ranked = self.particles.ranked(uids)
        failed = np.isneginf(self.particles.value(ranked))
        if failed.any():
            ranked[failed] = self.particles.before_end.ranked(ranked[failed])
        return [int(u) for u in ranked]

    def chosen(self) -> list[int]:
        """Uids of the images to return, best first: the best, or of many good ones some that
        differ."""
        selection = self.particles.selection
        best = np.array(self.ranking()[: selection.candidates], int)
        return [int(uid) for uid in self.particles.spread(best, selection.keep)[: selection.keep]]

    def settle(self) -> None:
        """Nothing more comes: fetch the images to return to this process, and let all others go."""
        found: dict[int, Decoded | None] = {}
        self.kept = self.chosen()
        while ahead := [uid for uid in self.kept if uid not in found]:
            for uid in ahead:
                picture = self.images[uid]
                try:
                    found[uid] = picture and Here(
                        picture.fetch(), picture.level, batches=picture.batches
                    )
                except PictureLost as lost:
                    seed = self.particles.seed[uid]
                    sentence = (
                        f"the image of seed {seed} is lost, and the next best one takes its place"
                    )
                    self.warnings.append(Notice(sentence, str(lost)))
                    del self.images[uid]
            self.kept = self.chosen()
        self.images = {uid: found.get(uid) for uid in self.images}

    def _note_failures(self, outcome: Outcome) -> None:
        failed = [i for i, error in enumerate(outcome.errors) if error is not None]
        if failed and not self.failures:
            uid = int(outcome.uids[failed[0]])
            step = int(outcome.step[failed[0]])
            where = f"particle {uid} (seed {self.particles.seed[uid]}) at step {step}"
            self.warnings.append(
                Notice(
                    f"no score for {where}, which is ranked last", str(outcome.errors[failed[0]])
                )
            )
            logger.warning(
                "prompt %d: %s", self.place + 1, self.warnings[-1], extra=private(self.prompt)
            )
        self.failures += len(failed)
