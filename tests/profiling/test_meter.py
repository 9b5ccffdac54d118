"""The meter, against a stand-in for NVML."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch

from ttsnap.profiling.meter import Meter, Stopwatch, integrate, open_energy, peak_rss

UUID = "7a1b6c1e-0000-4000-8000-00000000000b"


class NVMLError(Exception):
    """As pynvml's."""


class FakeNVML(SimpleNamespace):
    """Two boards; the second one is what CUDA sees. Power is constant, and the counter runs with
    `clock`."""

    def __init__(self, *refuse, watts=300.0):
        super().__init__(refuse=refuse, watts=watts, now=100.0, open=0, clock=lambda: self.now)
        boards = {"GPU-0": 0, f"GPU-{UUID}": 1, "00000000:01:00.0": 0, "00000000:C1:00.0": 1}
        self.nvmlInit = lambda: self.told("init", lambda: self.opened(1))
        self.nvmlShutdown = lambda: self.opened(-1)
        self.nvmlDeviceGetHandleByUUID = lambda uuid: self.told("uuid", lambda: boards[uuid])
        self.nvmlDeviceGetHandleByPciBusId = lambda address: self.told(
            "pci", lambda: boards[address]
        )
        self.nvmlDeviceGetTotalEnergyConsumption = lambda board: self.told(
            "energy", lambda: board * int(self.watts * self.now * 1e3)
        )
        self.nvmlDeviceGetPowerUsage = lambda board: self.told(
            "power", lambda: board * int(self.watts * 1e3)
        )

    def told(self, name, value):
        if name in self.refuse:
            raise NVMLError(f"{name}: not supported")
        return value()

    def opened(self, more):
        self.open += more


@pytest.fixture
def gpu(monkeypatch):
    """A CUDA device as far as the meter can see; returns how often what was called."""
    calls, there = (
        Counter[str](),
        SimpleNamespace(uuid=UUID, pci_domain_id=0, pci_bus_id=0xC1, pci_device_id=0),
    )
    told = {
        "is_available": True,
        "init": None,
        "max_memory_allocated": 5 << 30,
        "max_memory_reserved": 6 << 30,
    }
    told |= {"get_device_properties": there, "synchronize": None, "reset_peak_memory_stats": None}
    for name, value in told.items():
        call = lambda *_, name=name, value=value: (calls.update([name]), value)[1]  # noqa: E731
        monkeypatch.setattr(torch.cuda, name, call)
    return calls


def test_a_stopwatch_records_on_the_stream_of_its_own_device(
    monkeypatch,
):
    device, recorded = torch.device("cuda:1"), []

    def event(device, enable_timing):
        return SimpleNamespace(
            record=lambda stream: recorded.append((device, stream)),
            synchronize=int,
            elapsed_time=lambda end: 2000.0,
        )

    monkeypatch.setattr(torch, "Event", event)
    monkeypatch.setattr(torch.accelerator, "current_stream", lambda device: f"stream of {device}")
    watch = Stopwatch(["decode"])
    with watch("decode", device):
        pass
    assert recorded == [(device, "stream of cuda:1")] * 2
    assert watch.seconds == {"decode": 2.0}


@pytest.mark.parametrize("refuse", [(), ("uuid",)])
def test_energy_counter(gpu, refuse):
    nvml = FakeNVML(*refuse)
    with Meter("cuda:0", nvml=nvml, clock=nvml.clock) as meter:
        nvml.now += 10
    nvml.now += 1000  # what comes afterwards does not count
    out = meter.summary(4)
    assert (out["seconds"], out["energy_joules"], out["energy_joules_per_image"]) == (10, 3000, 750)
    assert out["energy_kind"] == "NVML energy counter"
    assert (out["peak_memory_bytes"], out["reserved_memory_bytes"]) == (5 << 30, 6 << 30)
    assert "GPU" in out["memory_kind"]
    assert (gpu["reset_peak_memory_stats"], gpu["synchronize"]) == (1, 2)
    assert nvml.open == 0
    assert json.loads(json.dumps(out)) == out


def test_power_samples_where_the_board_has_no_counter(gpu):
    nvml, before = FakeNVML("energy", watts=200), threading.active_count()
    with Meter("cuda", nvml=nvml, interval=0.01) as meter:
        time.sleep(0.1)
        nvml.watts = 400
        time.sleep(0.1)
        running = meter.summary()["energy_joules"]
    out = meter.summary()
    assert out["energy_kind"] == "NVML power samples"
    assert 0 < running <= out["energy_joules"]
    assert 0.9 * 200 * out["seconds"] < out["energy_joules"] < 1.1 * 400 * out["seconds"]
    assert threading.active_count() == before
    assert nvml.open == 0


def test_power_is_integrated_by_trapezoids():
    assert integrate([(0, 100), (1, 300), (3, 300)]) == 200 + 600
    assert integrate([(0, 100)]) == 0


@pytest.mark.parametrize(
    ("begin", "within", "end", "ahead"),
    [
        *((word, word, word, 1) for word in ("init", "uuid pci", "energy power")),
        ("energy", "energy power", "energy", 1),  # samples that fail on the way
        ("", "", "energy", 1),  # a counter that died
        ("", "", "", -50),  # one that ran backwards
    ],
)
def test_what_cannot_be_measured_is_unknown(gpu, begin, within, end, ahead):
    nvml = FakeNVML(*begin.split())
    with Meter("cuda", nvml=nvml, interval=0.01) as meter:
        nvml.refuse, nvml.now = tuple(within.split()), nvml.now + ahead
        time.sleep(0.1)
        nvml.refuse = tuple(end.split())
    out = meter.summary(1)
    assert out["energy_joules"] is out["energy_joules_per_image"] is out["energy_kind"] is None
    assert (out["peak_memory_bytes"], nvml.open) == (5 << 30, 0)


def test_the_package_is_imported_late_and_may_be_missing(gpu, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)  # type: ignore[arg-type]
    assert open_energy(torch.device("cuda")) is None
    monkeypatch.setitem(sys.modules, "pynvml", FakeNVML())  # type: ignore[arg-type]
    assert open_energy(torch.device("cuda")).kind == "NVML energy counter"  # type: ignore[union-attr]


def test_an_error_of_the_run_is_the_one_that_shows(gpu, monkeypatch):
    def run():
        with Meter("cuda", nvml=nvml):
            monkeypatch.setattr(
                torch.cuda, "synchronize", Mock(side_effect=RuntimeError("CUDA error"))
            )
            raise ValueError("the run")

    nvml = FakeNVML("energy")
    with pytest.raises(ValueError, match="the run"):
        run()
    assert nvml.open == 0


def test_on_a_cpu_memory_is_the_process_peak():
    with Meter("cpu") as meter:
        time.sleep(0.01)
    out = meter.summary(2)
    assert out["seconds"] >= 0.01
    assert (out["energy_joules"], "process" in out["memory_kind"]) == (None, True)
    assert 10 << 20 < out["peak_memory_bytes"] < 1 << 42


@pytest.mark.skipif(sys.platform != "linux", reason="other systems tell it by getrusage alone")
def test_peak_memory_is_this_processs_own_and_not_what_its_parent_held():
    held = bytearray(2**28)
    held[:: 2**12] = b"x" * len(held[:: 2**12])  # pages count once they are written
    code = (  # without torch, which would take long and hold much
        "import sys, types; sys.modules['torch'] = types.ModuleType('torch')\n"
        "from ttsnap.profiling.meter import peak_rss; print(peak_rss())"
    )
    told = int(
        subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE).stdout
    )
    assert 2**24 < told < len(held) < (peak_rss() or 0)
