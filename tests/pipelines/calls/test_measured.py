"""docs/reference/support.csv says what searches do with the classes of diffusers."""

from __future__ import annotations

import csv
import importlib
import random
from pathlib import Path

import diffusers
import pytest

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "reference" / "support.csv"


@pytest.fixture
def support(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("support")


def lines():
    with PAGE.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_table_has_classes_of_diffusers_the_newest_first(support):
    names = [line["pipeline"] for line in lines()]
    assert set(names) <= set(dir(diffusers))
    assert names == sorted(set(names), key=support.place)
    assert sum(line["search"] == "equal" for line in lines()) >= 130


def test_three_lines_are_measured_again(support):
    equal = [line for line in lines() if line["search"] == "equal"]
    for line in random.Random(0).sample(equal, 3):
        found = support.measure(line["pipeline"])
        assert (found.search, found.rows) == (line["search"], line["rows"]), found


@pytest.mark.parametrize(
    "name",
    [
        "MochiPipeline",  # a module of its VAE has a number called step
        "BriaPipeline",  # it asks for the very class of its scheduler
        "QwenImage21Pipeline",  # its pictures are transparent
        "VisualClozeGenerationPipeline",  # its pictures are rows of one grid
        "ConsisIDPipeline",  # it hands its scheduler what that made a step before
        "SanaSprintImg2ImgPipeline",  # its scheduler lists where it arrives, and begins later
    ],
)
def test_calls_that_were_refused_once(name, support):
    found = support.measure(name)
    # ConsisID differs by 2e-5 where the processor rounds otherwise.
    assert found.search == "equal" or (found.search == "differs" and float(found.difference) < 1e-4)
