"""Protocols of papers: their numbers, and `ttsnap bench --preset` on the embedded model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from ttsnap.algorithms import make_algorithm
from ttsnap.bench import PRESETS
from ttsnap.bench.arms import read_arms
from ttsnap.cli import main
from ttsnap.cli.configs import read_preset
from ttsnap.core.cost import Cost
from ttsnap.core.grid import Grid
from ttsnap.core.price import Price
from ttsnap.core.start import AS_NOISE, Start
from ttsnap.loop.budget import Budget
from ttsnap.loop.dry import DryEngine
from ttsnap.loop.request import LoopSearch
from ttsnap.loop.search import foreseen, prepared, search
from ttsnap.options.sampler import SamplerOptions

from ..said import error_of  # noqa: TID252

PARTS = read_preset(PRESETS, "dogtrim")["parts"]
COUPLED = 7
"""Steps of FLUX.1 dev's 35 that groups of seeds take together."""


def in_groups(size, steps):
    return Start(size, Cost(size * steps, coupled=size * steps), steps)


def planned(arm, budget, began=0):
    start = in_groups(arm.sampler.repel.size, began) if began and arm.sampler.repel else AS_NOISE
    engine = DryEngine(
        Grid(tuple(np.linspace(1, 0, 36)[began:])), ("a", "b", "c"), price=Price(start=start)
    )
    return foreseen(prepared(LoopSearch(arm.made, budget), engine), engine)[0]


@pytest.mark.parametrize(
    ("n", "kept", "nfe"),
    [
        (5, [2, 1, 1, 1], 70),
        (10, [5, 2, 1, 1], 133),
        (15, [8, 4, 2, 1], 210),
        (20, [10, 5, 2, 1], 266),
    ],
)
def test_dogtrim_halves_as_its_authors_and_no_baseline_gets_more(n, kept, nfe):
    """max(1, round(n / 2)) with Python's `round`, every 7 of 35 steps."""
    left, halves = n, []
    for _ in kept:
        halves.append(left := max(1, round(left / 2)))
    assert halves == kept
    trim, *baselines = read_arms(PARTS[f"n={n}"]["algorithms"], SamplerOptions())
    looks = n + sum(kept)
    assert planned(trim, Budget()) == Cost(nfe, looks, 3 * looks)
    budget = Budget.parse(PARTS[f"n={n}"]["budget"])
    assert planned(trim, Budget(), COUPLED).nfe == planned(trim, budget, COUPLED).nfe == budget.nfe
    taken = {arm.name: planned(arm, budget).nfe for arm in baselines}
    assert all(0.75 * nfe <= spent <= budget.nfe for spent in taken.values())  # type: ignore[operator]


def test_parts_have_their_budgets_and_the_table_has_the_papers_layout(
    shallow_model,
    tmp_path,
    monkeypatch,
    capsys,
):
    monkeypatch.chdir(tmp_path)
    others = ("best-of-n name='best of n'", "svdd kernel=sde")
    few = {
        f"n={n}": {
            "budget": f"{3 * n}nfe",
            "algorithms": [f"seed-pruning n={n} keep=[0.5] steps=[1] name=trim", *others],
        }
        for n in (4, 6)
    }
    Path("small.yaml").write_text(yaml.safe_dump({"preset": "dogtrim-embedded", "parts": few}))
    for path in PRESETS.glob("*.yaml"):
        shutil.copy(path, path.name)
    monkeypatch.setattr("ttsnap.cli.bench.PRESETS", tmp_path)
    argv = ["bench", "--preset", "small", "--steps", "4", "--prompts", "0:2", "--device", "cpu"]
    argv += ["--out", "b", "--reward", "[scenes, brightness]"]
    for option, value in (("--budget", "9nfe"), ("--algorithms", "svdd")):
        assert main([*argv, option, value]) == 2
        assert f"leave {option} out" in error_of(capsys)
    assert main([*argv, "--dry-run"]) == 0
    table = capsys.readouterr().out
    assert not Path("b").exists()
    trim = next(line.split("|")[2:5] for line in table.splitlines() if "n=6: trim" in line)
    assert [int(cell) for cell in trim] == [6 * 2 + 3 * 2, 9, 18]

    assert main(argv) == 0
    summary = Path("b/summary.md").read_text()
    head, _, *rows = summary.splitlines()
    assert [cell.strip() for cell in head.split("|")[1:-1]] == [
        "algorithm",
        "n=4: scenes",
        "n=4: brightness",
        "n=6: scenes",
        "n=6: brightness",
    ]
    assert [row.split("|")[1].strip() for row in rows] == ["trim", "best of n", "svdd kernel=sde"]
    for part in few:
        found = [
            json.loads(line) for line in Path("b", part, "results.jsonl").read_text().splitlines()
        ]
        assert {row["spent"]["nfe"] <= int(few[part]["budget"][:-3]) for row in found} == {True}
        assert len({row["index"] for row in found}) == 2
    assert main(argv) == 0  # nothing is left to do
    assert Path("b/summary.md").read_text() == summary


def test_looks_stay_where_they_are_when_seeds_begin_together():
    """Of 35 steps five are taken in groups of 8: 15 seeds take those of 16, and are looked at after
    as many in all."""
    (trim,) = (arm.made for arm in read_arms(PARTS["n=15"]["algorithms"][:1], SamplerOptions()))
    whole = Grid(tuple(np.linspace(1, 0, 36)))
    found = {}
    for began, start in ((0, AS_NOISE), (5, in_groups(8, 5))):
        engine = DryEngine(Grid(whole.levels[began:]), ("r",), price=Price(start=start))
        result = search([""], trim, engine)[0]
        found[began] = [float(engine.grid.levels[move["stop"][0]]) for move in result.trace]
        assert result.spent.nfe == 210 + began
    assert found[5] == found[0] == pytest.approx([1 - step / 35 for step in (6, 13, 20, 27, 35)])
    late = DryEngine(Grid(whole.levels[10:]), ("r",), price=Price(start=in_groups(8, 10)))
    assert [move["stop"][0] for move in search([""], trim, late)[0].trace] == [0, 3, 10, 17, 25]
    with pytest.raises(ValueError, match=r"grid of 35 steps"):
        search([""], make_algorithm("seed-pruning", n=2, keep=[0.5], steps=[35]), late)
