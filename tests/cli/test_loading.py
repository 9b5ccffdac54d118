"""Loading is announced before it begins, and counted."""

from __future__ import annotations

import re
import time

import pytest

from ttsnap.cli.common import CLOCK, loading


@pytest.mark.parametrize("bars", [False, True])
def test_loading_is_said_before_it_happens_and_counted(bars, capsys):
    CLOCK.start()
    with loading("the model big", bars=bars):
        assert capsys.readouterr().err == "loading the model big ..." + "\n" * bars
        time.sleep(0.02)
    assert re.fullmatch(r"(loaded in| ) ?0\.\d s\n", capsys.readouterr().err)
    assert 0.02 <= CLOCK.loading <= CLOCK.total
    assert re.fullmatch(r"\d+\.\d s in all, \d+\.\d s of them loading", str(CLOCK))


def test_one_process_of_several_speaks_and_what_fails_leaves_a_whole_line(monkeypatch, capsys):
    for rank, end in (("0", " s\n"), ("1", "")):
        monkeypatch.setenv("LOCAL_RANK", rank)
        with pytest.raises(ValueError, match="reward"), loading("a reward"):
            raise ValueError("no such reward")
        assert capsys.readouterr().err[-3:] == end
