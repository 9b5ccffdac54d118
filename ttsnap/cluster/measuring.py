"""What the devices of a cluster use between two moments: each actor measures its own, the driver adds them up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field

import torch

from ttsnap.cluster.crew import Crew
from ttsnap.cluster.messages import Measure, Turn
from ttsnap.cluster.pool import TicketT
from ttsnap.core.protocols import EngineLost
from ttsnap.core.spent import Usage
from ttsnap.profiling.meter import Meter


class Measuring:
    """Of one device. An actor that took the place of another meanwhile has nothing to tell in the end."""

    def __init__(self, device: torch.device) -> None:
        self._begun, self._measures, self._meter = ExitStack(), False, Meter(device)

    def __call__(self, turn: Turn, *, end: bool) -> None:
        """Begin, or end and put into the answer what was used since."""
        self._begun.pop_all().close()
        if not end:
            self._begun.enter_context(self._meter)
            self._measures = True
        elif self._measures:
            turn.usage, self._measures = self._meter.summary(), False


@dataclass
class Measured:
    """What all actors used while something ran, once they have told."""

    parts: list[Usage] = field(default_factory=list)

    def summary(self) -> Usage:
        """Energy and CO2e of all together, the memory of the one that held most."""
        if not self.parts:
            return Usage()
        most = max(self.parts, key=lambda part: part["peak_memory_bytes"] or 0)
        return Usage(**{**most, "energy_joules": _sum([part["energy_joules"] for part in self.parts]),
                        "co2_grams": _sum([part["co2_grams"] for part in self.parts])})  # fmt: skip


def _sum(values: Sequence[float | None]) -> float | None:
    """None where any is unknown."""
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


@contextmanager
def measured(crew: Crew[TicketT]) -> Iterator[Measured]:
    """What all actors of a crew use inside the block."""
    everyone, found = range(len(crew)), Measured()
    crew.ask(everyone, Measure())
    yield found
    with suppress(EngineLost):
        turns = crew.ask(everyone, Measure(end=True))
        found.parts += [turn.usage for turn in turns if turn.usage is not None]
