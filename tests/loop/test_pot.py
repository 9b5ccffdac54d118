"""A pot that searches join as they come: what one leaves is for later ones, and no sum is exceeded."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.scripted import Scripted
from ttsnap.core.cost import Cost, Price
from ttsnap.core.grid import Task
from ttsnap.core.moves import Move, fresh
from ttsnap.core.needs import Needs
from ttsnap.core.particles import Particles
from ttsnap.core.prompt import Prompt
from ttsnap.loop.budget import Budget
from ttsnap.loop.clock import RequestClock
from ttsnap.loop.ledger import Ledger
from ttsnap.loop.request import RunningRequest, SearchSpec
from ttsnap.loop.run import Run

STEPS = 4


@dataclass
class Member:
    """A ledger, and what it should do."""

    ledger: Ledger
    share: int
    most: int
    open: bool = True

    @property
    def spent(self) -> int:
        return self.ledger.spent.nfe


def joined(pot: Ledger, share: int, most: int, reserve: int = 0) -> Member:
    ledger = Ledger(Budget(nfe=share), pot.price)
    ledger.hold(Cost(reserve))
    ledger.join(pot, share, Budget(nfe=most))
    return Member(ledger, share, most)


def test_what_one_leaves_another_takes_up_to_its_own_maximum() -> None:
    pot = Ledger(Budget(), Price())
    easy, hard = joined(pot, 10, 30), joined(pot, 10, 25)
    easy.ledger.charge(Cost(4))
    assert hard.ledger.affords(Cost(10))
    assert not hard.ledger.affords(Cost(11)), "what an open one has not spent yet is its own"
    easy.ledger.close()
    assert hard.ledger.affords(Cost(16))
    assert not hard.ledger.affords(Cost(17)), "the sum of budgets is 20"
    hard.ledger.charge(Cost(16))
    easier = joined(pot, 10, 30)
    assert not hard.ledger.affords(Cost(1))
    easier.ledger.close()
    assert hard.ledger.affords(Cost(9))
    assert not hard.ledger.affords(Cost(10)), "its own maximum is 25"
    hard.ledger.refund(Cost(3))
    hard.ledger.close()
    assert (pot.spent, pot.reserve, pot.budget.nfe) == (Cost(17), Cost(), 30)
    alone = joined(Ledger(Budget(), Price()), 5, 15)
    assert not alone.ledger.affords(Cost(6)), "another pot's leftovers are not seen"


operations = st.lists(
    st.tuples(
        st.sampled_from(["join", "charge", "charge", "charge", "refund", "close", "close"]),
        st.integers(0, 1),  # which pot
        st.integers(0, 9),  # which member
        st.integers(1, 40),  # how much
        st.integers(0, 12),  # drafts, or what is held back
    ),
    max_size=40,
)


@settings(deadline=None, max_examples=150)
@given(operations, st.sampled_from([0, 1, 2]))
def test_no_sum_is_exceeded_whatever_comes(what: list[tuple[str, int, int, int, int]], passes: int) -> None:
    price = Price(passes_per_nfe=2, passes_per_draft=passes)
    pots = [Ledger(Budget(), price), Ledger(Budget(), price)]
    members: list[list[Member]] = [[], []]
    for kind, which, number, amount, more in what:
        pot, mine, other = pots[which], members[which], pots[1 - which]
        untouched = other.spent, other.reserve, other.budget
        if kind == "join":
            mine.append(joined(pot, amount, 3 * amount, min(more, amount)))
        elif mine:
            member = mine[number % len(mine)]
            if kind == "charge" and member.open and member.ledger.affords(Cost(amount, draft_calls=more)):
                member.ledger.charge(Cost(amount, draft_calls=more))
            elif kind == "refund" and member.open:
                member.ledger.refund(Cost(min(amount, member.spent)))
            elif kind == "close":
                member.ledger.close()
                member.open = False
        assert (other.spent, other.reserve, other.budget) == untouched
        assert pot.spent == Cost().plus(*(member.ledger.spent for member in mine))
        total = sum(member.share for member in mine)
        assert price.evaluations(pot.spent) + pot.reserve.nfe <= total
        for member in mine:
            took = price.evaluations(member.ledger.spent)
            assert took <= member.most
            if member.open and took < member.share:
                rest = int(member.share - took)
                assert rest == 0 or member.ledger.affords(Cost(rest)), "its own budget stays its own"


@dataclass(frozen=True)
class Until:
    """Makes one image after the other until one is good enough."""

    bar: float
    n: int = 1
    needs: ClassVar[Needs] = frozenset()
    lockstep: ClassVar[bool] = False

    def init(self, task: Task) -> None:
        assert task.later == task.shared

    def step(self, state: None, particles: Particles, rng: np.random.Generator) -> tuple[Move | None, None]:
        done = len(particles) and particles.value(np.arange(len(particles))).max() >= self.bar
        return None if done else fresh(1, STEPS), None


@dataclass
class Sent:
    """A request of a caller."""

    caller: int
    running: RunningRequest
    share: int
    most: int


@dataclass
class Service:
    """Requests of several callers on one engine, each of whom has a pot."""

    run: Run
    pots: dict[int, Ledger] = field(default_factory=dict)
    sent: list[Sent] = field(default_factory=list)

    def send(self, caller: int, images: int, bar: float) -> None:
        share = STEPS * images
        spec = SearchSpec(Until(bar), Budget(nfe=share), seed=7 * caller, later=True)
        running = self.run.add([Prompt(f"{caller}")], spec, RequestClock(time.monotonic, 0.0))
        pot = self.pots.setdefault(caller, Ledger(Budget(), self.run.engine.price))
        running.jobs[0].ledger.join(pot, share, Budget(nfe=3 * share))
        self.sent.append(Sent(caller, running, share, 3 * share))

    def of(self, caller: int) -> list[int]:
        """The evaluations of each of a caller's requests."""
        return [sent.running.jobs[0].ledger.spent.nfe for sent in self.sent if sent.caller == caller]


def rising(uid: int, step: int) -> float:
    """The image of particle uid is worth uid."""
    return float(uid)


def test_an_easy_request_pays_for_a_hard_one() -> None:
    service = Service(Run(Scripted(rising, STEPS)))
    for bar in (0, 0, 9):
        service.send(1, 3, bar)
        while service.run.busy:
            service.run.turn()
    assert service.of(1) == [STEPS, STEPS, 7 * STEPS]
    assert service.pots[1].reserve == Cost()


arrivals = st.lists(
    st.tuples(st.integers(0, 2), st.integers(1, 4), st.integers(0, 12), st.integers(0, 3), st.booleans()),
    min_size=1, max_size=12,
)  # fmt: skip


def played(what: Sequence[tuple[int, int, int, int, bool]], only: int | None = None) -> Service:
    """Requests (caller, images, bar, turns until the next one, whether the client then leaves)."""
    service = Service(Run(Scripted(rising, STEPS)))
    for caller, images, bar, turns, leaves in what:
        if only is None or caller == only:
            service.send(caller, images, float(bar))
        for _ in range(turns):
            service.run.turn()
        if leaves and (only is None or caller == only) and not service.sent[-1].running.done:
            service.run.cancel(service.sent[-1].running)
        for sent in service.sent:
            assert sent.running.jobs[0].ledger.spent.nfe <= sent.most
        for pot in service.pots.values():
            assert pot.spent.nfe + pot.reserve.nfe <= (pot.budget.nfe or 0)
    while service.run.busy:
        service.run.turn()
    return service


@settings(deadline=None, max_examples=60)
@given(arrivals)
def test_callers_spend_no_more_than_their_budgets_and_see_nothing_of_others(what: Any) -> None:
    service = played(what)
    for caller, pot in service.pots.items():
        own = [sent for sent in service.sent if sent.caller == caller]
        assert sum(service.of(caller)) == pot.spent.nfe <= sum(sent.share for sent in own) == pot.budget.nfe
        assert pot.reserve == Cost(), "nothing is held for requests that have ended"
        assert service.of(caller) == played(what, only=caller).of(caller)
        for sent in own:
            (job,) = sent.running.jobs
            assert len(job.kept) == 1 or sent.running.stopping, "each that is waited for has an image"


def test_a_search_that_joins_no_pot_is_as_it_was() -> None:
    run = Run(Scripted(rising, STEPS))
    running = run.add(
        [Prompt("a")], SearchSpec(Until(9), Budget(nfe=3 * STEPS), later=False), RequestClock(time.monotonic, 0.0)
    )
    while run.busy:
        run.turn()
    assert running.jobs[0].ledger.spent.nfe == 3 * STEPS
    with pytest.raises(ValueError, match="exceeds 12nfe"):
        running.jobs[0].ledger.charge(Cost(1))
