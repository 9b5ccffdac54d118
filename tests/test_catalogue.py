"""The catalogue of algorithms: complete, in groups, and true."""

from __future__ import annotations

import importlib
import re

import pytest

from ttsnap.algorithms import ALGORITHMS, GROUPS, make_algorithm

NEED_MORE = {"price-of-compute"}  # a forecast, which no default can be


def test_every_group_is_listed_together_and_has_members() -> None:
    order = [entry.group for entry in ALGORITHMS.values()]
    assert list(dict.fromkeys(order)) == list(GROUPS)
    assert order == sorted(order, key=list(GROUPS).index)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_entries_are_whole(name: str) -> None:
    entry = ALGORITHMS[name]
    module, _, attribute = entry.where.partition(":")
    assert callable(vars(importlib.import_module(module))[attribute])
    assert entry.title
    assert 20 <= len(entry.summary) <= 110
    assert not entry.summary.endswith(".")
    for number in re.findall(r"\d{4}\.\d{5}", entry.source):
        # What the module says it is from: an arXiv number that only the catalogue knew would be a slip.
        assert number in (importlib.import_module(module).__doc__ or "") + (
            vars(importlib.import_module(module))[attribute].__doc__ or ""
        )


@pytest.mark.parametrize("name", [name for name in ALGORITHMS if name not in NEED_MORE])
def test_a_branching_algorithm_says_that_it_needs_a_kernel_that_draws_noise(name: str) -> None:
    assert make_algorithm(name).branches == ("draws noise" in ALGORITHMS[name].needs)
