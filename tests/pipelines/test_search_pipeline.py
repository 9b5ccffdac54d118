"""The call that type checkers see is the call that pipelines have."""

from __future__ import annotations

import inspect

import diffusers

from ttsnap.options.call import CALL
from ttsnap.pipelines import FAMILIES
from ttsnap.pipelines.arguments import DECLARED
from ttsnap.pipelines.modular.classic import MODULAR
from ttsnap.pipelines.search_pipeline import CallArguments, SearchPipeline


def test_its_search_arguments_are_the_declared_ones() -> None:
    parameters = inspect.signature(SearchPipeline.__call__).parameters.values()
    found = [(each.name, each.default) for each in parameters if each.kind is each.KEYWORD_ONLY]
    assert found == [(option.name, option.default) for option in DECLARED]


def test_its_other_arguments_are_those_of_all_stock_calls() -> None:
    calls = [getattr(diffusers, name).__call__ for name in {*FAMILIES, *MODULAR}]
    stock = {name for call in calls for name in inspect.signature(call).parameters if not name.startswith("_")}
    assert set(CALL) <= stock - {"self", "kwargs", "prompt"} == set(CallArguments.__annotations__)
