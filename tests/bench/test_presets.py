"""Protocols of papers: their numbers, and `ttsnap bench --preset` on the embedded model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ttsnap.algorithms import make_algorithm
from ttsnap.bench import presets
from ttsnap.bench.arms import Arm, read_arms
from ttsnap.bench.presets import PARTS, halves
from ttsnap.cli import main
from ttsnap.core.cost import Price, Rates, SeedGroups
from ttsnap.core.grid import Grid
from ttsnap.loop.budget import Budget
from ttsnap.loop.dry import DryEngine
from ttsnap.loop.request import LoopSearch
from ttsnap.loop.search import foreseen, prepared, search
from ttsnap.options.sampler import SamplerOptions

from ..said import error_of  # noqa: TID252

PRICE = Price(flops=Rates(nfe=100.0, decodes=5.0, reward_calls=1.0))


def planned(arm: Arm, budget: Budget) -> Any:
    engine = DryEngine(Grid(tuple(np.linspace(1, 0, 36))), ("a", "b", "c"), price=PRICE)
    return foreseen(prepared(LoopSearch(arm.made, budget), engine), engine)[0]


@pytest.mark.parametrize(
    ("n", "kept", "nfe"),
    [(5, [2, 1, 1, 1], 70), (10, [5, 2, 1, 1], 133), (15, [8, 4, 2, 1], 210), (20, [10, 5, 2, 1], 266)],
)
def test_dogtrim_halves_as_its_authors_and_no_baseline_gets_more(n: int, kept: list[int], nfe: int) -> None:
    """max(1, round(n / 2)) with Python's `round`, every 7 of 35 steps."""
    left = n
    assert [left := round(share * left) for share in halves(n)] == kept
    trim, *baselines = read_arms(PARTS["dogtrim"][f"n={n}"], SamplerOptions())
    cost = planned(trim, Budget())
    looks = n + sum(kept)
    assert (cost.nfe, cost.decodes, cost.reward_calls) == (nfe, looks, 3 * looks)
    most = PRICE.flops.of(cost)
    taken = {arm.name: planned(arm, Budget(flops=most)) for arm in baselines}
    assert all(PRICE.flops.of(cost) <= most for cost in taken.values())
    if n == 15:
        assert {name: cost.nfe for name, cost in taken.items()} == {
            "best-of-n": 210, "noise, greedy": 210, "noise, epsilon-greedy": 210, "paths": 209, "greedy, SDE": 205,
            "greedy, ODE": 210, "SMC, SDE": 210, "SMC, ODE": 210, "early selection": 200,
        }  # fmt: skip


def test_each_gets_what_the_first_takes_and_the_table_has_the_papers_layout(
    shallow_model: None, any_flops: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    others = ("best-of-n name='best of n'", "svdd kernel=sde")
    few = {f"n={n}": (f"seed-pruning n={n} keep=[0.5] steps=[1] name=trim", *others) for n in (4, 6)}
    monkeypatch.setitem(presets.PARTS, "dogtrim-embedded", few)  # type: ignore[index]
    argv = ["bench", "--preset", "dogtrim-embedded", "--steps", "4", "--prompts", "0:2", "--device", "cpu"]
    argv += ["--out", "b", "--reward", "[scenes, brightness]"]
    for more, said in ((["--budget", "9nfe"], "--as-first"), (["--algorithms", "svdd"], "leave --algorithms out")):
        assert main([*argv, *more]) == 2
        assert said in error_of(capsys)
    assert main([*argv, "--dry-run"]) == 0
    table = capsys.readouterr().out
    assert not Path("b").exists()
    trim = next(line.split("|")[2:5] for line in table.splitlines() if "n=6: trim" in line)
    assert [int(cell) for cell in trim] == [6 * 2 + 3 * 2, 9, 18]

    assert main(argv) == 0
    summary = Path("b/summary.md").read_text()
    head, _, *rows = summary.splitlines()
    assert [cell.strip() for cell in head.split("|")[1:-1]] == [
        "algorithm", "n=4: scenes", "n=4: brightness", "n=6: scenes", "n=6: brightness",
    ]  # fmt: skip
    assert [row.split("|")[1].strip() for row in rows] == ["trim", "best of n", "svdd kernel=sde"]
    for part in few:
        found = [json.loads(line) for line in Path("b", part, "results.jsonl").read_text().splitlines()]
        most = next(row["spent"]["flops"] for row in found if row["algorithm"] == "trim")
        assert all(row["spent"]["flops"] <= most * (1 + 1e-9) for row in found)
        assert len({row["index"] for row in found}) == 2
    assert main(argv) == 0  # nothing is left to do
    assert Path("b/summary.md").read_text() == summary


def test_looks_stay_where_they_are_when_seeds_begin_together() -> None:
    """Of 35 steps five are taken in groups of 8: 15 seeds take those of 16, and are looked at after as many in all."""
    trim = make_algorithm("seed-pruning", n=15, keep=halves(15), steps=presets.LOOKS)
    whole = Grid(tuple(np.linspace(1, 0, 36)))
    found = {}
    for began, groups in ((0, None), (5, SeedGroups(8, 5))):
        engine = DryEngine(Grid(whole.levels[began:]), ("r",), price=Price(groups=groups))
        result = search([""], trim, engine)[0]
        found[began] = [float(engine.grid.levels[move["stop"][0]]) for move in result.trace]
        assert result.spent.nfe == 210 + (5 if groups else 0)
    assert found[5] == found[0] == pytest.approx([1 - step / 35 for step in (*presets.LOOKS, 35)])
    late = DryEngine(Grid(whole.levels[10:]), ("r",), price=Price(groups=SeedGroups(8, 10)))
    assert [move["stop"][0] for move in search([""], trim, late)[0].trace] == [0, 3, 10, 17, 25]
    with pytest.raises(ValueError, match=r"grid of 35 steps"):
        search([""], make_algorithm("seed-pruning", n=2, keep=[0.5], steps=[35]), late)
