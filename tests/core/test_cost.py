"""Every kind of cost is summed, priced, capped, read and printed; and a new one is, by its line
alone."""

from __future__ import annotations

import re

import pytest

from ttsnap import Budget, Cost
from ttsnap.core import Price, Rates, Spent
from ttsnap.core.cost import KINDS, PHASES
from ttsnap.loop.ledger import Ledger

from ..copied import copy_package, recipe, run_trial  # noqa: TID252

each = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
OTHERS = Cost(1, 2, 3, 4, 5, 6)


def only(kind, amount):
    return Cost(**{kind.name: amount})


@each
def test_it_is_summed_and_priced(kind):
    assert (
        only(kind, 3).plus(only(kind, 4), only(kind, 5))
        == only(kind, 12)
        == only(kind, 3) + only(kind, 9)
    )
    assert only(kind, 3) - only(kind, 4) == only(kind, -1)
    assert (OTHERS + only(kind, 10)).named() == OTHERS.named() | {
        kind.name: OTHERS.named()[kind.name] + 10
    }
    rates = Rates(**{kind.name: 2.5}, call=1e9)
    assert rates.of(OTHERS) == 2.5 * OTHERS.named()[kind.name]
    assert rates.by_phase(only(kind, 4)) == {
        phase: 10.0 if phase == kind.phase else 0.0 for phase in PHASES
    }
    price = Price(rates)
    summary = Spent(only(kind, 4), price, "").to_json()
    assert summary["flops"] == summary[f"flops_{kind.phase}"] == 10.0
    assert summary.get(kind.name) == (4 if kind.summed else None)
    assert only(kind, 3).counts()[kind.name] == 3
    assert (kind.name in Cost().counts()) is not kind.rare


@each
def test_it_is_capped_and_its_cap_read_and_written(kind):
    budget, price = Budget(**{kind.name: 10}), Price()
    free = {other.name: 99 for other in KINDS if other != kind}
    assert budget.shortfall(Cost(**free, **{kind.name: 10}), price) is None
    assert budget.shortfall(Cost(**free, **{kind.name: 11}), price) == f"11 {kind.label}"
    assert budget.share(only(kind, 5), price) == 0.5
    ledger = Ledger(budget, price)
    ledger.charge(only(kind, 6), reserve=only(kind, 4))
    with pytest.raises(ValueError, match="exceeds"):
        ledger.charge(only(kind, 7))
    ledger.refund(only(kind, 6))
    assert ledger.spent == Cost()
    assert str(budget) == f"10{kind.unit}"
    for text in (f"10{kind.unit}", f"10 {kind.unit.upper()}", f"10{kind.unit.removesuffix('s')}"):
        assert Budget.parse(text) == budget
    assert Budget.parse(f"10{kind.unit},2pflop") == Budget(**{kind.name: 10}, flops=2e15)
    for bad in (f"1.5{kind.unit}", f"1{kind.unit},2{kind.unit}", f"0{kind.unit}"):
        with pytest.raises(ValueError, match="budget"):
            Budget.parse(bad)


def test_files_have_the_keys_that_they_always_had():
    assert list(Spent(Cost(), Price(), "").to_json())[:12] == [
        "nfe",
        "forward_passes",
        "decodes",
        "previews",
        "reward_calls",
        "flops",
        "flops_denoise",
        "flops_decode",
        "flops_reward",
        "gradients",
        "flops_gradient",
        "budget",
    ]
    assert list(OTHERS.counts()) == [
        "nfe",
        "decodes",
        "reward_calls",
        "previews",
        "gradients",
        "backwards",
    ]
    assert list(Cost().counts()) == ["nfe", "decodes", "reward_calls"]
    caps = Budget(1, 2, 3, 4, 5, 6, flops=7e15, seconds=8, images=9)
    assert str(caps) == "1nfe,2decodes,3rewards,4previews,5gradients,6backwards,8s,9images,7pflop"


TRIAL = """
import json
import numpy as np
from pathlib import Path
from ttsnap.core import Cost, Grid, Price, Rates, Spent
from ttsnap.loop.budget import Budget
from ttsnap.loop.ledger import Ledger
from ttsnap.recordings.header import Header
from ttsnap.recordings.replay import Recording

cost = Cost(nfe=2, answers=300) + Cost(answers=100) - Cost(answers=50)
assert cost == Cost(2, answers=350)
assert cost.counts() == {"nfe": 2, "decodes": 0, "reward_calls": 0, "answers": 350}
price = Price(Rates(nfe=10.0, answers=2.0))
budget = Budget.parse("300answers")
assert budget == Budget(answers=300) and str(budget) == "300answers"
assert budget.shortfall(cost, price) == "350 answers"
ledger = Ledger(Budget(answers=400), price)
assert not ledger.affords(cost + cost)
ledger.charge(cost)
spent = Spent(ledger.spent, price, str(ledger))
told = spent.to_json()
assert (told["answers"], told["flops"], told["flops_reward"]) == (350, 720.0, 700.0)
counts = "2 nfe, 0 decodes, 0 reward calls, 350 answers, 2 forward passes"
assert str(spent).startswith(f"{counts} of a budget of ")
recording = Recording(("a",), np.zeros((1, 2, 2, 1)), Grid((1.0, 0.0)), ("r",), price=price)
told = Header.of(recording).to_json()
assert told["price"]["flops"]["answer"] == 2.0
assert Header.from_json(told, Path("here")).price == price
del told["price"]["flops"]["answer"]
assert Header.from_json(told, Path("before")).price == Price(Rates(nfe=10.0))
"""


def test_a_new_kind_is_the_line_of_the_how_to(tmp_path):
    """In a copy of the package whose table has that line more."""
    found = re.search(r"^answers: N = .*\n", recipe("A kind of cost"), re.MULTILINE)
    assert found is not None
    copy_package(tmp_path)
    table = tmp_path / "ttsnap" / "core" / "cost.py"
    last = [
        line
        for line in table.read_text().splitlines(keepends=True)
        if re.match(r"    \w+: N = kind\(", line)
    ][-1]
    table.write_text(table.read_text().replace(last, f"{last}    {found.group()}"))
    run_trial(TRIAL, tmp_path)
