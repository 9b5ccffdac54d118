"""Ray on two cores of this machine, for tests that share it."""

from __future__ import annotations

import os
import threading
import warnings
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

END = 60.0
"""Seconds that Ray has to end its processes."""


@contextmanager
def ray_runs(cores=2):
    """Ray starts here, which takes about ten seconds, and ends here. Its workers import this
    repository's tests, too, where a test sends them some."""
    ray = pytest.importorskip("ray")
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
    before = set(psutil.Process().children(recursive=True))
    ray.init("local", num_cpus=cores, runtime_env={"env_vars": {"PYTHONPATH": path}}, **quiet)
    begun = set(psutil.Process().children(recursive=True)) - before
    yield
    # It waits for its processes in C++, which no signal ends, and all tests are over by now.
    thread = threading.Thread(target=ray.shutdown, daemon=True)
    thread.start()
    thread.join(END)
    if thread.is_alive():
        warnings.warn(f"Ray did not end in {END:g} s; its processes are killed", stacklevel=2)
        for process in begun:
            process.kill()
