"""Tests that run on the CPU in the fast suite, and on this machine's accelerator with `-m gpu`
(`make test-gpu`)."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
import torch

from ttsnap.check.environment import device_name
from ttsnap.version import versions

DRIVER = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
COUNTED = ("passed", "failed", "error", "skipped")


def accelerator():
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None


@pytest.fixture(params=["cpu", pytest.param("accelerator", marks=pytest.mark.gpu)])
def device(request):
    """Where the test runs; skipped where it asks for an accelerator and there is none."""
    found = torch.device("cpu") if request.param == "cpu" else accelerator()
    if found is None:
        pytest.skip("this machine has no accelerator that PyTorch can use")
    return found


def pytest_terminal_summary(terminalreporter, config):
    """What to send of a run on an accelerator."""
    if config.getoption("markexpr") == "gpu":
        terminalreporter.write_sep("=", "to be sent: docs/contributing.md")
        for line in evidence(terminalreporter.stats):
            terminalreporter.write_line(line)


def evidence(stats):
    """The run as a page: the card, driver and versions, and what failed. No path, host, user or key
    is in it."""
    place = accelerator() or torch.device("cpu")
    counts = ", ".join(f"{len(stats.get(kind, []))} {kind}" for kind in COUNTED)
    known = versions("torch", "diffusers", "transformers") | {
        "CUDA": torch.version.cuda,
        "ROCm": torch.version.hip,
    }
    if place.type == "cuda" and shutil.which(DRIVER[0]):
        known["driver"] = subprocess.run(
            DRIVER, capture_output=True, text=True, check=False
        ).stdout.split("\n")[0]
    told = ", ".join(f"{name} {version}" for name, version in known.items() if version)
    yield f"# tests/gpu on {device_name(place)}: {counts}"
    yield ""
    yield f"{told}."
    yield ""
    for report in [*stats.get("failed", []), *stats.get("error", [])]:
        test = report.nodeid.rpartition("/")[2]
        # The last line ends with the name of the exception, and begins with a path.
        kind = re.search(r"[\w.]*$", str(report.longreprtext).strip())
        yield f"- {test}: {kind[0] if kind else ''}"
