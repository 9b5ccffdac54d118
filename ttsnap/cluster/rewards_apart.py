"""Rewards with actors of their own, as a ClusterEngine sees them: their names, what they cost, what waits for them.

Images go from the actor that made one to the one that scores it, by the object store. The driver only says which.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ttsnap.cluster import messages as m
from ttsnap.cluster.crew import Crew
from ttsnap.cluster.merging import averaged
from ttsnap.cluster.pool import TicketT
from ttsnap.cluster.reward_queue import RewardQueue
from ttsnap.core.cost import Cost
from ttsnap.core.outcome import Outcome
from ttsnap.core.price import Price, Rates
from ttsnap.core.prompt import Prompt


class RewardsApart:
    """actors: of the crew, those for rewards, none where all rewards are where the latents are. columns: where their
    rewards are among all."""

    def __init__(self, crew: Crew[TicketT], actors: range, columns: Sequence[int]) -> None:
        self.crew, self.actors, self.columns = crew, actors, tuple(columns)
        self._told = m.RewardsDescription((), 0.0, 0.0, 1)
        self.start()

    def describe(self, *before: m.Command) -> Cost:
        """Ask what the rewards are, after these commands; returns what calibrating took."""
        turns = self.crew.ask(self.actors, *before, m.Describe())
        told = [turn.rewards for turn in turns if turn.rewards is not None]
        if told:
            self._told = replace(told[0], seconds=max(one.seconds for one in told))
            self.queue.batch = self._told.batch
        return Cost().plus(*(turn.calibrated for turn in turns))

    def start(self) -> None:
        """Forget what waits."""
        self.queue = RewardQueue(len(self.actors), self.columns, self._post)
        self.queue.batch = self._told.batch

    def _post(self, number: int, command: m.ScoreImages) -> None:
        self.crew.post(self.actors[number], command)

    def names(self, known: Sequence[str]) -> tuple[str, ...]:
        """The names of all rewards, in the places of those that engines know. ValueError where two are alike."""
        names = list(known)
        for column, name in zip(self.columns, self._told.names, strict=True):
            names[column] = name
        if len(set(names)) < len(names):
            raise ValueError(f"each reward needs a name of its own, got {names}")
        return tuple(names)

    def check(self, prompts: Sequence[Prompt]) -> None:
        """ValueError for prompts that they cannot score."""
        self.crew.ask(self.actors, m.Check(tuple(prompts)))

    def calibrate(self) -> Cost:
        """Measure the seconds of a call of each; returns what that took."""
        return self.describe(m.Calibrate()) if self.actors else Cost()

    def priced(self, price: Price, rewards: int) -> Price:
        """The price of engines that leave these rewards out, with them; a reward call is one of so many, on average.

        In seconds they take what they do divided by their number, as they score side by side.
        """
        if not self.actors:
            return price
        flops = _dearer(price.flops, self._told.flops / rewards)
        each = self._told.seconds / rewards / len(self.actors)
        return replace(price, flops=flops, seconds=None if price.seconds is None else _dearer(price.seconds, each))

    def timed(self, timings: Mapping[str, float]) -> dict[str, float]:
        """Seconds by phase of the engines, with those of rewards, which are added up though both work side by side."""
        own = averaged([self.crew.last[actor].timings for actor in self.actors])
        return {phase: seconds + own.get(phase, 0.0) for phase, seconds in timings.items()}

    def wait(self, outcome: Outcome, prompt: str, steps: int) -> bool:
        """Hold an outcome until it has its scores; False for one that lacks none."""
        if not self.actors or outcome.scores is None or outcome.images is None:
            return False
        images = []
        for step, picture in zip(outcome.step.tolist(), outcome.images, strict=True):
            if picture is None:
                raise RuntimeError(f"an engine made no image for {self._told.names} to score at step {step}")
            images.append(m.ImageToScore(picture, prompt, last=step == steps))
        self.queue.add(outcome, images)
        return True

    def heard(self, actor: int, turn: m.Turn) -> list[Outcome]:
        """The outcomes that an answer completes."""
        return self.queue.heard(actor - self.actors.start, turn.scored) if turn.scored else []

    def revived(self, actor: int) -> None:
        """A new actor is in the place of one that died: what that one had is scored again."""
        self.crew.post(actor, m.Start())
        again = self.queue.died(actor - self.actors.start)
        self.crew.gone += Cost(reward_calls=again * len(self.columns))


def _dearer(rates: Rates, reward_call: float) -> Rates:
    return replace(rates, reward_calls=rates.reward_calls + reward_call)
