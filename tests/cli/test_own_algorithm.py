"""file.py:Class as an algorithm: wherever the user names one, and nowhere else."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from ttsnap.algorithms import make_algorithm
from ttsnap.cli import main
from ttsnap.core.prompt import Prompt
from ttsnap.loop.budget import Budget
from ttsnap.options.model import ModelOptions
from ttsnap.request.limits import search_of, searches_of
from ttsnap.request.request import EngineSpec, SearchRequest

from ..copied import recipe  # noqa: TID252
from ..said import error_of  # noqa: TID252

OWN = "halving.py:Halving"
FEW = ("--budget", "20nfe", "--steps", "4")


@pytest.fixture(autouse=True)
def _inside(tmp_path, monkeypatch):
    """In a folder with the algorithm of the how-to, and one that leaves a mark where it is run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "halving", raising=False)
    (code,) = re.findall(
        r"^```python\n(# halving.py\n.*?)^```", recipe("An algorithm"), re.S | re.M
    )
    Path("halving.py").write_text(f"from __future__ import annotations\n{code}", encoding="utf-8")
    Path("evil.py").write_text("open('ran', 'w')\nclass Evil: ...\n")


def test_generate_and_compare_take_it_with_options():
    own = ["--algorithm", OWN, "--options.level", "0.8", "--compare", "best-of-n"]
    assert main(["generate", "a red circle", *own, *FEW, "--out", "o"]) == 0
    settings = json.loads(Path("o/trace.json").read_text())["settings"]
    assert (settings["algorithm"], settings["options"]["level"]) == ("Halving", 0.8)
    assert main(["generate", "a red circle", "--compare", OWN, *FEW, "--out", "c"]) == 0
    assert list(Path("c/halving").glob("01-*.png"))


def test_bench_takes_it_and_resumes_with_the_same_file_alone(
    capsys,
):
    Path("p.txt").write_text("a red circle\n")
    argv = [
        "bench",
        "--prompts-file",
        "p.txt",
        "--algorithms",
        "best-of-n",
        f"{OWN} level=0.8",
        *FEW,
        "--out",
        "b",
    ]
    assert main(argv) == 0
    assert f"{OWN} level=0.8" in capsys.readouterr().out
    Path("halving.py").write_text(Path("halving.py").read_text() + "# changed\n")
    assert main(argv) == 2
    assert "other settings" in error_of(capsys)


def test_simulate_takes_it_to_its_workers(capsys):
    assert (
        main(
            [
                "record",
                "a red circle",
                "a blue square",
                "--seeds",
                "8",
                "--steps",
                "4",
                "--out",
                "r",
            ]
        )
        == 0
    )
    assert (
        main(["simulate", "r", "--algorithms", OWN, "--budgets", "8nfe", "12nfe", "--workers", "2"])
        == 0
    )
    assert "halving" in capsys.readouterr().out


def test_no_request_file_or_graph_runs_code():
    Path("a.json").write_text('{"name": "nested", "first": "evil.py:Evil"}')
    Path("b.json").write_text('{"name": "evil.py:Evil"}')
    asked = (
        (Prompt("x"),),
        EngineSpec(ModelOptions(), ("scenes",)),
        "evil.py:Evil",
        Budget.parse("20nfe"),
    )
    for refused in (
        lambda: make_algorithm("evil.py:Evil"),
        lambda: make_algorithm({"name": "evil.py:Evil"}),
        lambda: make_algorithm("nested", first="evil.py:Evil"),
        lambda: make_algorithm("a.json"),
        lambda: make_algorithm("b.json"),
        lambda: search_of("evil.py:Evil", {}, 100),
        lambda: search_of({"name": "nested", "second": "evil.py:Evil"}, {}, 100),
        lambda: searches_of(["mine=evil.py:Evil"]),
        lambda: SearchRequest(*asked),
    ):
        with pytest.raises(ValueError, match=r"evil\.py"):
            refused()
    assert not Path("ran").exists()
