"""Rewards with actors of their own: their names, their costs, and the images that wait for them.

Images go from actor to actor by the object store, as the driver directs. Outcomes wait here for scores, while the
engines run other rows. Idle actors share the images that wait; an actor at work is sent a full batch ahead.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ttsnap.cluster import messages as m
from ttsnap.cluster.actor_group import ActorGroup
from ttsnap.cluster.merging import averaged
from ttsnap.cluster.reward_actor import RewardActor
from ttsnap.core.cost import Cost, Price, Rates
from ttsnap.core.outcome import Outcome
from ttsnap.rewards.scoring import NOT_FINITE

AHEAD = 2
"""Batches that an actor is sent at most: one that it scores, and one that waits."""


@dataclass(eq=False)
class Waiting:
    """An outcome whose rows lack scores."""

    outcome: Outcome
    left: int
    """How many rows lack scores."""
    errors: list[str | None] = field(default_factory=list)


Item = tuple[Waiting, int, m.ImageToScore]
"""One row of an outcome, and its image."""


class RewardQueue:
    """Images that wait for scores, and those that actors are at."""

    def __init__(
        self, actors: int, columns: Sequence[int], post: Callable[[int, tuple[m.ImageToScore, ...]], None]
    ) -> None:
        """columns: where the rewards of the actors are among all. post: sends actor i a batch, at once."""
        self.columns, self.post = list(columns), post
        self.batch = 1
        self.queue: deque[Item] = deque()
        self.sent: list[deque[list[Item]]] = [deque() for _ in range(actors)]
        """By actor, the batches that it was sent, oldest first."""
        self._waiting: list[Waiting] = []

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

    def add(self, outcome: Outcome, images: Sequence[m.ImageToScore]) -> None:
        """An outcome with one image for each of its rows."""
        # Arrays from another process may be read-only.
        scores = None if outcome.scores is None else outcome.scores.copy()
        waiting = Waiting(replace(outcome, scores=scores), len(images), list(outcome.errors))
        self._waiting.append(waiting)
        self.queue.extend((waiting, row, image) for row, image in enumerate(images))

    def hurry(self, job: int) -> None:
        """Let the rows of a job go first."""
        mine = [item for item in self.queue if item[0].outcome.job == job]
        self.queue = deque([*mine, *(item for item in self.queue if item[0].outcome.job != job)])

    def send(self) -> None:
        """Send the batches that actors have room for."""
        while self.queue:
            actor = min(range(len(self.sent)), key=lambda i: len(self.sent[i]))
            if not self.sent[actor]:
                idle = sum(not batches for batches in self.sent)
                size = min(self.batch, -(-len(self.queue) // idle))
            elif len(self.sent[actor]) < AHEAD and len(self.queue) >= self.batch:
                size = self.batch
            else:
                return
            items = [self.queue.popleft() for _ in range(size)]
            self.sent[actor].append(items)
            self.post(actor, tuple(image for _, _, image in items))

    def heard(self, actor: int, scores: m.ImageScores) -> list[Outcome]:
        """An actor's answer to its oldest batch; returns the outcomes that lack nothing more."""
        done, items = [], self.sent[actor].popleft()
        for (waiting, row, _), values, error in zip(items, scores.scores, scores.errors, strict=True):
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
        """An actor is gone: its images go to any actor, before all others.

        Returns how many images of its batch may have been scored in vain.
        """
        batches = list(self.sent[actor])
        self.sent[actor].clear()
        self.queue.extendleft(item for items in reversed(batches) for item in reversed(items))
        return len(batches[0]) if batches else 0


class RemoteRewards:
    """The rewards that have actors of their own, which may be none."""

    def __init__(
        self, group: ActorGroup, actors: range, columns: Sequence[int], done: Callable[[list[Outcome]], None]
    ) -> None:
        """actors: of the group, those for rewards. columns: where their rewards are among all. done: called with
        outcomes that have all their scores."""
        self.group, self.actors, self.columns, self.done = group, actors, tuple(columns), done
        self._description = m.RewardsDescription()
        self.start()

    def describe(self) -> None:
        """Ask what the rewards are."""
        self._describe(self.group.ask(self.actors, m.Call(RewardActor.describe)))

    def calibrate(self) -> Cost:
        """Measure the seconds of a call of each; returns what that took."""
        answers = self.group.ask(self.actors, m.Call(RewardActor.calibrate))
        self._describe([description for _, description in answers])
        return Cost().plus(*(cost for cost, _ in answers))

    def _describe(self, descriptions: Sequence[m.RewardsDescription]) -> None:
        if descriptions:
            self._description = replace(descriptions[0], seconds=max(one.seconds for one in descriptions))
            self.queue.batch = self._description.batch

    def start(self) -> None:
        """Forget what waits."""
        self.queue = RewardQueue(len(self.actors), self.columns, self._post)
        self.queue.batch = self._description.batch

    def _post(self, number: int, images: tuple[m.ImageToScore, ...]) -> None:
        def heard(scores: m.ImageScores) -> None:
            self.done(self.queue.heard(number, scores))

        self.group.post(self.actors[number], m.Call(RewardActor.score, images), heard)

    def names(self, known: Sequence[str]) -> tuple[str, ...]:
        """The names of all rewards, in the places of those that engines know. ValueError where two are alike."""
        names = list(known)
        for column, name in zip(self.columns, self._description.names, strict=True):
            names[column] = name
        if len(set(names)) < len(names):
            raise ValueError(f"each reward needs a name of its own, got {names}")
        return tuple(names)

    def priced(self, price: Price, rewards: int) -> Price:
        """The price of engines without these rewards, with the cost of these added.

        rewards: how many rewards there are; a reward call costs their average. Seconds are divided by the number of
        actors, which score side by side.
        """
        if not self.actors:
            return price
        flops = _dearer(price.flops, self._description.flops / rewards)
        each = self._description.seconds / rewards / len(self.actors)
        return replace(price, flops=flops, seconds=None if price.seconds is None else _dearer(price.seconds, each))

    def timed(self, timings: Mapping[str, float]) -> dict[str, float]:
        """Seconds by phase of engines and of rewards, added up though both work side by side."""
        own = averaged([self.group.last[actor].timings for actor in self.actors])
        return {phase: seconds + own.get(phase, 0.0) for phase, seconds in timings.items()}

    def wait(self, outcome: Outcome, prompt: str, steps: int) -> bool:
        """Hold an outcome until it has its scores; False for one that lacks none."""
        if not self.actors or outcome.scores is None or outcome.images is None:
            return False
        images = []
        for step, picture in zip(outcome.step.tolist(), outcome.images, strict=True):
            if picture is None:
                raise RuntimeError(f"an engine made no image for {self._description.names} to score at step {step}")
            images.append(m.ImageToScore(picture, prompt, last=step == steps))
        self.queue.add(outcome, images)
        return True

    def revived(self, actor: int) -> None:
        """A new actor is in the place of one that died, whose images are scored again."""
        self.group.post(actor, m.Call(RewardActor.start))
        again = self.queue.died(actor - self.actors.start)
        self.group.gone += Cost(reward_calls=again * len(self.columns))


def _dearer(rates: Rates, reward_call: float) -> Rates:
    return replace(rates, reward_calls=rates.reward_calls + reward_call)
