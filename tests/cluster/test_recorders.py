"""Recordings by several workers hold, to the last byte, what one process writes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from ttsnap.cli import main
from ttsnap.cluster import recorders
from ttsnap.cluster.actor import Actor
from ttsnap.cluster.actor_group import MOST_DEATHS, ActorDied
from ttsnap.core.grid import Grid
from ttsnap.core.prompt import Prompt
from ttsnap.options.model import ModelOptions
from ttsnap.options.record import RecordOptions
from ttsnap.recordings.folder import OpenRecording, progress, read_images
from ttsnap.recordings.header import Header, Unit
from ttsnap.recordings.record import RecordedUnit, RecordingSetup, record
from ttsnap.recordings.replay import Recording
from ttsnap.request.request import EngineSpec

from ..said import error_of  # noqa: TID252
from .local import LocalPool, ToyBuilder

PROMPTS = ["two red circles and a blue square", "a green cross above a yellow triangle"]
WHAT = RecordOptions(seeds=8, seed=3, images=True, block=(1, 2))
"""Eight units of a prompt and two seeds."""


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def recorded_alone(folder):
    """What makes an engine, and what one process writes."""
    builder = ToyBuilder(EngineSpec(ModelOptions(), (folder.parent,)))
    engine, info = builder.recording()
    record(engine, PROMPTS, folder, WHAT, info=info)
    return builder, contents(folder)


@pytest.fixture
def running(hosts, monkeypatch):
    """Workers are hosts that have begun, and stay."""

    def of(workers, *, gpu):
        assert (workers, gpu) == (len(hosts.actors), False)
        return hosts

    monkeypatch.setattr(recorders, "Hosts", of)
    monkeypatch.setattr(recorders, "closing", nullcontext)


@pytest.mark.usefixtures("running")
def test_what_one_process_began_two_go_on_with_and_one_of_them_is_killed(tmp_path):
    builder, whole = recorded_alone(tmp_path / "whole")
    (tmp_path / "interrupt").touch()
    with pytest.raises(KeyboardInterrupt):
        recorded_alone(tmp_path / "part")
    assert progress(tmp_path / "part") in [(done, 8) for done in (1, 2, 3)]
    (tmp_path / "deadly").touch()
    found = recorders.record(builder, PROMPTS, tmp_path / "part", WHAT, workers=2)
    assert not (tmp_path / "deadly").exists()  # a worker was killed
    assert contents(tmp_path / "part") == whole
    assert found.scores.shape == (2, 8, 5, 1)
    assert len(list(read_images(tmp_path / "part"))) == 2 * 8 * 5


@pytest.mark.usefixtures("running", "ctrl_c")
def test_a_signal_waits_for_the_units_of_all_workers(tmp_path, monkeypatch):
    (builder, whole), add, added = (
        recorded_alone(tmp_path / "whole"),
        OpenRecording.add,
        list[int](),
    )

    def signalled(self, unit, *made):
        if not added:
            os.kill(os.getpid(), signal.SIGINT)
        add(self, unit, *made)
        added.append(unit.index)

    monkeypatch.setattr(OpenRecording, "add", signalled)
    with pytest.raises(KeyboardInterrupt):
        recorders.record(builder, PROMPTS, tmp_path / "part", WHAT, workers=2)
    assert 2 <= len(added) <= 4, "those at work, and those that were begun just before"
    assert progress(tmp_path / "part") == (len(added), 8)
    recorders.record(builder, PROMPTS, tmp_path / "part", WHAT, workers=2)
    assert contents(tmp_path / "part") == whole


@pytest.mark.usefixtures("running")
@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--workers", "3"], "3 workers"),
        (["--workers", "2", "--device", "cuda"], "no GPU is there"),
        (["--workers", "2", "--device", "cuda:1"], "got cuda:1"),
        (["--workers", "0"], "workers must be greater than or equal to 1, got 0"),
        (["--ray-address", "auto", "--reward", "magic"], "'magic'"),
    ],
)
def test_what_workers_cannot_do_gets_one_line(more, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["record", *PROMPTS, "--steps", "2", "--out", "r", *more]) == 2
    assert message in error_of(capsys)
    assert not Path("r").exists()


def test_one_process_takes_no_ray():
    code = (
        "import sys, ttsnap.cli.record, ttsnap.pipelines.engine_factory; sys.exit('ray' in"
        " sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- without processes: losses at random, and the units all the same ------------------------------


HEADER = Header.of(Recording(("a",), np.zeros((1, 20, 2, 1)), Grid((1.0, 0.0)), ("r",)))
UNITS = [Unit(index, range(1), range(index, index + 1)) for index in range(20)]


class Worker(Actor):
    """Makes a unit of its number. Units that are `deadly` end it; it cannot make those of a disk
    that is `full`."""

    def __init__(self, begun, deadly=-1, full=-1, loads=True):
        self.begun, self.deadly, self.full, self.loads = begun, deadly, full, loads

    def load(self):
        if not self.loads:
            raise ActorDied("out of memory")

    def describe(self, prompts, options):
        self.load()
        return RecordingSetup(HEADER, tuple(prompts), 2.0)

    def begin(self, setup):
        self.setup = setup

    def make(self, unit, path):
        assert self.setup.prompts == (Prompt("a"),)
        self.begun.append(unit.index)
        if unit.index == self.deadly:
            raise ActorDied("out of memory")
        if unit.index == self.full:
            raise ValueError("the disk is full")
        return RecordedUnit(np.full(1, float(unit.index)), None)


def made_by(workers, units=UNITS, seed=0, kills=0, **how):
    """The units that were begun by workers, of which some are killed, and how often one was."""
    begun = []
    make = partial(Worker, begun, **how)
    pool = LocalPool(make, workers, seed=seed, kills=kills, often=0.2, actor=lambda make: make())
    spent = []
    setup, making = recorders.recorded_by(pool, [Prompt("a")], Path("r"), RecordOptions(20))
    found = [
        (unit.index, float(made.scores[0]))
        for unit, made in making(units, spent.append, lambda: False)
    ]
    assert sorted(found) == [(unit.index, unit.index) for unit in units]
    assert sum(spent) == setup.nfe * len(found)
    return begun, pool.deaths


@pytest.mark.parametrize("workers", [1, 3, 30])
def test_every_unit_is_made_once_whoever_is_lost(workers):
    for seed in range(20):
        begun, deaths = made_by(workers, seed=seed, kills=2)
        assert 20 <= len(begun) <= 20 + deaths
        if workers == 1:
            assert list(dict.fromkeys(begun)) == list(range(20))  # in order
    assert made_by(workers, []) == ([], 0)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"deadly": 4}, f"^unit 4 was begun {MOST_DEATHS} times.*killed, or out of memory"),
        ({"full": 7}, "disk is full"),
        ({"loads": False}, f"^{MOST_DEATHS} workers were lost while they loaded the model"),
    ],
)
def test_what_workers_die_of_again_and_again_or_raise_is_raised_here(how, said):
    with pytest.raises(ValueError, match=said):
        made_by(2, **how)
