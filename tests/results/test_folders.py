"""Folders for results: each run has its own, tried before anything is computed."""

from __future__ import annotations

import errno
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.shallow import shallow
from ttsnap.cli import common, main
from ttsnap.files import run_folder
from ttsnap.options.model import EMBEDDED
from ttsnap.results.outputs import new_file, reserved

GENERATE = ["generate", "a red circle", "--steps", "4", "--device", "cpu", "--budget", "32nfe"]
REWARD = """
import os, shutil, signal
from pathlib import Path

calls = []

def first():
    {first}

def score(images, prompts):
    calls.append(len(images))
    if len(calls) == 1:
        first()
    return images.mean((1, 2, 3))
"""


@pytest.fixture(scope="module")
def pipe():
    """The embedded model, loaded once."""
    with shallow():
        return common.load_model(EMBEDDED, "cpu", "float32")


@pytest.fixture(autouse=True)
def _inside(tmp_path, monkeypatch, pipe):
    monkeypatch.setattr(common, "load_model", lambda *_, **__: pipe)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def generate(*more, first="pass"):
    """A search whose reward does something when it is first asked."""
    Path("mine.py").write_text(REWARD.format(first=first))
    return main([*GENERATE, "--reward", "mine.py:score", *more])


def test_folders_are_numbered_made_and_removed_where_nothing_came_of_them():
    with reserved(None, "A red Circle!", False) as one:
        assert one.is_dir()
    assert not Path("outputs").exists()
    with reserved(None, "A red Circle!", False) as one, reserved(None, "../../etc", False) as two:
        assert (str(one), str(two)) == ("outputs/0001-a-red-circle", "outputs/0002-etc")
        (one / "x").write_text("mine")
    assert [str(path) for path in Path("outputs").rglob("*")] == [str(one), str(one / "x")], (
        "what is there stays"
    )
    refused = (
        (one, False, "holds files"),
        (one / "x", True, "is a file"),
        (one / "x" / "y", True, "not a folder"),
    )
    for out, overwrite, message in refused:
        with pytest.raises(ValueError, match=message), reserved(out, "a", overwrite):
            pass
    with reserved(one, "a", True) as there:
        assert there == one
    assert [path.name for path in one.iterdir()] == ["x"]
    assert (one / "x").read_text() == "mine"


def test_runs_that_start_together_get_folders_of_their_own():
    together = threading.Barrier(8, timeout=60)

    def run(_):
        together.wait()
        with reserved(None, "a red circle", False) as folder:
            together.wait()
            return folder.name

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(run, range(8))) == [f"{i:04d}-a-red-circle" for i in range(1, 9)]
    with reserved(Path("there"), "a", True), pytest.raises(ValueError, match="another process"):
        ExitStack().enter_context(reserved(Path("there"), "a", True))


def test_a_folder_is_tried_before_the_model_is_loaded(monkeypatch, capsys):
    monkeypatch.setattr(common, "load_model", lambda *_: pytest.fail("the model was loaded"))
    monkeypatch.setattr(run_folder.tempfile, "TemporaryFile", full)
    for argv, where in (([*GENERATE, "--out", "a/b"], "a/b"), (GENERATE, "outputs")):
        assert main(argv) == 2
        assert f"cannot write to {where}: No space left on device" in capsys.readouterr().err
    assert not list(Path().iterdir())
    with pytest.raises(ValueError, match="space left"):
        new_file("one.json", False)


def test_where_nothing_can_be_written_the_seeds_are_said(monkeypatch, capsys):
    monkeypatch.setattr(os, "replace", full)
    assert generate() == 2
    said = capsys.readouterr()
    assert all(words in said.out for words in ("1. seed ", "manual_seed("))
    assert "outputs/0001-a-red-circle: No space left on device" in said.err


def test_a_reward_that_fails_at_once_leaves_one_sentence(
    capsys,
):
    assert generate(first="raise KeyError('no such key')") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("ttsnap: error: none of the first ")
    assert error.endswith(
        f"score: KeyError: 'no such key' ({Path('mine.py').absolute()}:8, in first)"
    )
    assert not Path("outputs").exists()


def test_what_was_found_outlives_its_folder_and_a_comparison_that_cannot_run(capsys):
    assert generate("--out", "o", "--compare", "svdd", first="shutil.rmtree('o')") == 2
    assert "1. seed " in capsys.readouterr().out
    assert len(list(Path("o").glob("01-seed*.png"))) == 1


@pytest.fixture
def handlers(ctrl_c):
    """Handlers that tell when the command leaves signals to them; afterwards those from before."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def unheard(number, _):
        pytest.fail(f"signal {number} was left to others")

    signal.signal(signal.SIGTERM, unheard)
    yield {**before, signal.SIGTERM: unheard}
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_ends_the_search_with_its_best_image(name, handlers, capsys):
    assert (
        generate("--out", "o", "--batch-size", "2", first=f"os.kill(os.getpid(), signal.{name})")
        == 0
    )
    said = capsys.readouterr()
    assert "stopped early; the budget was not used up" in said.out
    assert "the best finished image will be written" in said.err
    assert len(list(Path("o").glob("01-seed*.png"))) == 1
    assert all(signal.getsignal(number) == handler for number, handler in handlers.items())


def test_signals_while_loading(monkeypatch, handlers, capsys):
    monkeypatch.setattr(common, "load_model", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    assert main(GENERATE) == 130
    assert capsys.readouterr().err.endswith("\ninterrupted\n")
    monkeypatch.setattr(common, "load_model", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    assert main(GENERATE) == 128 + signal.SIGTERM
    assert capsys.readouterr().err.endswith("\ninterrupted\n")
    assert not list(Path().iterdir())
    assert all(signal.getsignal(number) == handler for number, handler in handlers.items())
