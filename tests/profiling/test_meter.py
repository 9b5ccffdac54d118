"""The meter, against a stand-in for NVML."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ttsnap.profiling.meter import Meter, integrate, open_energy, peak_rss

UUID = "7a1b6c1e-0000-4000-8000-00000000000b"


class NVMLError(Exception):
    """As pynvml's."""


class FakeNVML:
    """Two boards; the second one is what CUDA sees. Power is constant, and the counter runs with `clock`."""

    def __init__(self, *, watts: float = 300.0, refuse: tuple[str, ...] = ()) -> None:
        self.watts, self.refuse, self.now, self.open = watts, refuse, 100.0, 0
        self.asked: list[Any] = []

    def clock(self) -> float:
        return self.now

    def _check(self, name: str) -> None:
        if name in self.refuse:
            raise NVMLError(f"{name}: not supported")

    def nvmlInit(self) -> None:  # noqa: N802
        self._check("init")
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.open -= 1

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        self._check("uuid")
        self.asked.append(uuid)
        return {"GPU-0": "board 0", f"GPU-{UUID}": "board 1"}[uuid]

    def nvmlDeviceGetHandleByPciBusId(self, address: str) -> str:  # noqa: N802
        self._check("pci")
        self.asked.append(address)
        return {"00000000:01:00.0": "board 0", "00000000:C1:00.0": "board 1"}[address]

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:  # noqa: N802
        self._check("energy")
        assert handle == "board 1"
        return int(self.watts * self.now * 1e3)

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:  # noqa: N802
        self._check("power")
        assert handle == "board 1"
        return int(self.watts * 1e3)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """A CUDA device as far as the meter can see; returns how often what was called."""
    calls = {"reset": 0, "synchronize": 0}

    def count(name: str) -> Any:
        return lambda device=None: calls.__setitem__(name, calls[name] + 1)

    properties = SimpleNamespace(uuid=UUID, pci_domain_id=0, pci_bus_id=0xC1, pci_device_id=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "synchronize", count("synchronize"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", count("reset"))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 5 << 30)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 6 << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    return calls


def test_energy_counter(gpu: dict[str, int]) -> None:
    nvml = FakeNVML()
    with Meter("cuda:0", nvml=nvml, clock=nvml.clock) as meter:
        nvml.now += 10
    nvml.now += 1000  # what comes afterwards does not count
    out = meter.summary(4)
    assert (out["seconds"], out["energy_joules"], out["energy_joules_per_image"]) == (10, 3000, 750)
    assert out["energy_kind"] == "NVML energy counter"
    assert (out["peak_memory_bytes"], out["reserved_memory_bytes"]) == (5 << 30, 6 << 30)
    assert "GPU" in out["memory_kind"]
    assert gpu == {"reset": 1, "synchronize": 2}
    assert nvml.asked == [f"GPU-{UUID}"]
    assert nvml.open == 0
    assert json.loads(json.dumps(out)) == out


def test_power_samples_where_the_board_has_no_counter(gpu: dict[str, int]) -> None:
    nvml, before = FakeNVML(refuse=("energy",), watts=200), threading.active_count()
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


def test_a_sampler_that_fails_on_the_way_knows_nothing(gpu: dict[str, int]) -> None:
    nvml = FakeNVML(refuse=("energy",))
    with Meter("cuda", nvml=nvml, interval=0.01) as meter:
        nvml.refuse = ("energy", "power")
        time.sleep(0.1)
        nvml.refuse = ("energy",)
    assert meter.summary()["energy_joules"] is None


def test_power_is_integrated_by_trapezoids() -> None:
    assert integrate([(0, 100), (1, 300), (3, 300)]) == 200 + 600
    assert integrate([(0, 100)]) == 0


@pytest.mark.parametrize("refuse", [("init",), ("uuid", "pci"), ("energy", "power")], ids=str)
def test_without_nvml_board_or_permission_energy_is_unknown(gpu: dict[str, int], refuse: tuple[str, ...]) -> None:
    nvml = FakeNVML(refuse=refuse)
    with Meter("cuda", nvml=nvml) as meter:
        pass
    out = meter.summary(1)
    assert out["energy_joules"] is out["energy_joules_per_image"] is out["energy_kind"] is None
    assert out["peak_memory_bytes"] == 5 << 30
    assert nvml.open == 0


def test_a_counter_that_ran_backwards_or_died_is_unknown(gpu: dict[str, int]) -> None:
    for refuse, ahead in (((), -50), (("energy",), 1)):
        nvml = FakeNVML()
        with Meter("cuda", nvml=nvml, clock=nvml.clock) as meter:
            nvml.now, nvml.refuse = nvml.now + ahead, refuse
        assert meter.summary()["energy_joules"] is None


def test_the_package_is_imported_late_and_may_be_missing(gpu: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)  # type: ignore[arg-type]
    assert open_energy(torch.device("cuda")) is None
    monkeypatch.setitem(sys.modules, "pynvml", FakeNVML())  # type: ignore[arg-type]
    energy = open_energy(torch.device("cuda"))
    assert energy is not None
    assert energy.kind == "NVML energy counter"


def test_an_error_of_the_run_is_the_one_that_shows(gpu: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    def dead(device: Any = None) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    def run() -> None:
        with Meter("cuda", nvml=nvml):
            monkeypatch.setattr(torch.cuda, "synchronize", dead)
            raise ValueError("the run")

    nvml = FakeNVML(refuse=("energy",))
    with pytest.raises(ValueError, match="the run"):
        run()
    assert nvml.open == 0


def test_on_a_cpu_memory_is_the_process_peak() -> None:
    with Meter("cpu") as meter:
        time.sleep(0.01)
    out = meter.summary(2)
    assert out["seconds"] >= 0.01
    assert out["energy_joules"] is None
    assert "process" in out["memory_kind"]
    assert 10 << 20 < out["peak_memory_bytes"] < 1 << 42
    assert json.loads(json.dumps(out)) == out


@pytest.mark.skipif(sys.platform != "linux", reason="other systems tell it by getrusage alone")
def test_peak_memory_is_this_processs_own_and_not_what_its_parent_held() -> None:
    held = bytearray(2**30)
    held[:: 2**12] = b"x" * len(held[:: 2**12])  # pages count once they are written
    code = "from ttsnap.profiling.meter import peak_rss; print(peak_rss())"
    told = int(subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE).stdout)
    assert 2**24 < told < len(held) < (peak_rss() or 0)
