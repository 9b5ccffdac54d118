"""The lines that `ttsnap generate` closes with."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ttsnap import BestOfN, search
from ttsnap.cli.found import describe
from ttsnap.options.sampler import SamplerOptions
from ttsnap.pipelines.run import SearchOutcome
from ttsnap.results.record import SearchRecord


@pytest.mark.parametrize(
    ("budget", "stop", "end"),
    [("24nfe", False, ""), ("23nfe", False, "; 23 NFE were used up"), ("24nfe", True, "; stopped by you")],
)
def test_the_cap_that_ended_a_search_stands_in_the_closing_line(
    engine: Any, budget: str, stop: bool, end: str, capsys: pytest.CaptureFixture[str]
) -> None:
    results = search(["a"], BestOfN(3), engine(), budget, should_stop=lambda: stop)
    record = SearchRecord("x", "x", {}, SamplerOptions(draft=None), "best-of-n", {}, budget)
    a: Any = SimpleNamespace(lora=None)
    describe(SearchOutcome(results, record, None, None), 0, [], a, plain=False)
    told = capsys.readouterr().out
    assert f"of a budget of {budget}{end}\n" in told
    assert "% between them; " in told
    assert " s before, to warm up\n" in told
