"""Work that is spread over processes: what comes out is the same, and nothing is left running."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ttsnap import BestOfN, Budget, SeedPruning
from ttsnap.core import utility
from ttsnap.options.record import TuneOptions
from ttsnap.simulation.calibrate import Fit, calibrate
from ttsnap.simulation.processes import working
from ttsnap.simulation.simulate import Method, Study, curve
from ttsnap.simulation.tune import tune

from .test_simulate import recording
from .units import work


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    """Worker processes import units.py by its name."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2])


def gone(pids, seconds=30):
    """Whether no process of these runs any more; zombies, whose owner has not asked after them yet,
    do not run."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        states = [Path(f"/proc/{pid}/stat") for pid in pids]
        if not any(
            state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z"
            for state in states
        ):
            return True
        time.sleep(0.05)
    return False


def test_one_worker_is_this_process():
    with working(work, 1) as made:
        assert list(made(range(5))) == [(i, os.getpid()) for i in range(5)]
    with pytest.raises(ValueError, match="1, got 0"), working(work, 0):
        pass


@pytest.mark.parametrize(
    "by", [KeyboardInterrupt(), "refuse"], ids=["Ctrl-C", "an error in a unit"]
)
def test_nothing_runs_on_after_an_interruption(by):
    """Both workers are at work when the block ends by an exception here, or in a unit."""
    before, others = time.monotonic(), set(multiprocessing.active_children())
    with contextlib.suppress(KeyboardInterrupt, ValueError), working(work, 2) as made:
        list(made([1]))
        pids = {
            process.pid
            for process in set(multiprocessing.active_children()) - others
            if process.pid is not None
        }
        made(["last long"])
        if isinstance(by, str):
            list(made([by]))
        else:
            made(["last long"])
            raise by
    assert pids
    assert gone(pids)
    assert time.monotonic() - before < 60


def test_several_workers_answer_in_order_and_what_goes_wrong_is_raised_here():
    with working(work, 2) as made:
        found = list(made(range(40)))
    assert [one for one, _ in found] == list(range(40))
    assert gone({pid for _, pid in found}, 0.2)
    with pytest.raises(ValueError, match="this unit is refused"), working(work, 2) as made:
        list(made(["refuse"]))
    with pytest.raises(ChildProcessError, match=r"fewer --workers"), working(work, 2) as made:
        list(made(["die"]))


@pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="processes are looked for in /proc"
)
def test_nothing_runs_on_after_the_owner_was_killed(tmp_path):
    script = tmp_path / "owner.py"
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(Path(__file__).parents[2])!r})\n"
        "from tests.simulation.units import work\n"
        "from ttsnap.simulation.processes import working\n\n"
        "if __name__ == '__main__':\n"
        "    with working(work, 2) as made:\n"
        "        print(next(made([1]))[1], flush=True)\n"
        "        list(made(['last long']))\n"
    )
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        worker = int(owner.stdout.readline())
        assert not gone({worker}, 0.2)
        owner.send_signal(signal.SIGKILL)
    assert gone({worker})


def test_curves_schedules_and_prices_are_the_same_to_the_last_digit():
    r, budgets = recording(6, 20, rewards=2), tuple(map(Budget.parse, ("20nfe", "40nfe", "80nfe")))
    methods = Method(SeedPruning(None, (0.5,), steps=(4,))), Method(BestOfN())
    progress = []
    combine = utility.make([1.0, 2.0])
    study = Study(r, methods, budgets, 5, combine, seed=3)
    here, there = study.curves(), study.curves(2, lambda *told: progress.append(told))
    for method, *found in zip(methods, here, there, strict=True):
        alone = curve(r, method.algorithm, budgets, 5, utility=combine, seed=3)
        for name in ("rewards", "scores", "spent", "most"):
            for each in found:
                np.testing.assert_array_equal(vars(each)[name], vars(alone)[name])
    assert progress == [(i, 6) for i in range(1, 7)]

    one, two = (
        tune(r, budgets, TuneOptions(trials=6), fit=Fit(seeds=20, seed=1, workers=n))
        for n in (1, 2)
    )
    assert one.schedule == two.schedule
    assert one.fitted.omega == two.fitted.omega

    few, both = (
        calibrate(r, images=(2, 3), checks=[4, 10], fit=Fit(seeds=20, workers=n)).to_json()
        for n in (1, 2)
    )
    assert few == both
