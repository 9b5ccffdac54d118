"""What a run used besides evaluations: wall time, peak memory, the GPU's energy, and CO2 estimated from it."""

from __future__ import annotations

import importlib
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any

WORLD_GRID = 458.0
"""g CO2e per kWh: the world's electricity of 2025, with upstream emissions (Ember, Global Electricity Review 2026,
April 2026, https://ember-energy.org/latest-insights/global-electricity-review-2026/2025-in-review). Your grid differs.
"""
SAMPLING_SECONDS = 0.2
Clock = Callable[[], float]


def carbon(joules: float | None, grams_per_kwh: float = WORLD_GRID, pue: float = 1.0) -> float | None:
    """Grams of CO2e: joules / 3.6e6 * pue * grams_per_kwh; None where the energy is unknown.

    pue: the building's energy over the computers' energy (about 1.1 in large data centres, 1.5 on average; 1 leaves it
    out). ValueError for a negative intensity or a pue below 1.
    """
    if grams_per_kwh < 0 or pue < 1:
        raise ValueError(f"need an intensity of at least 0 and a pue of at least 1, got {grams_per_kwh} and {pue}")
    return None if joules is None else joules / 3.6e6 * pue * grams_per_kwh


class Meter:
    """Measures what runs inside `with Meter(device) as meter:`; `meter.summary()` reads it, inside or afterwards.

    Energy is that of the whole board, other processes on it included, but not of the CPU, RAM or power supply. Peak
    memory on CUDA is what PyTorch held since the start, for which its own peak counters are reset, so meters must not
    be nested; elsewhere it is the process's peak so far, which may stem from before the meter. What cannot be measured
    (no NVML, i.e. no extra `energy`; no permission) is None, and no error of a measurement reaches the caller.

    device: anything that torch.device takes. nvml: pynvml or a stand-in. interval: seconds between power samples, on
    boards without an energy counter.
    """

    def __init__(
        self, device: Any, *, nvml: Any = None, interval: float = SAMPLING_SECONDS, clock: Clock = time.perf_counter
    ) -> None:
        import torch

        self.device = torch.device(device)
        self._cuda = self.device.type == "cuda" and torch.cuda.is_available()
        self._nvml, self._interval, self._clock = nvml, interval, clock
        self._energy: _Energy | None = None
        self._begin: float | None = None
        self._end: tuple[float, float | None, dict[str, Any]] | None = None

    def __enter__(self) -> Meter:
        self._end = None
        if self._cuda:
            import torch

            torch.cuda.init()
            self._wait()
            torch.cuda.reset_peak_memory_stats(self.device)
        self._energy = open_energy(self.device, self._nvml, self._interval, self._clock) if self._cuda else None
        self._begin = self._clock()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._end = self._read()
        finally:
            if self._energy is not None:
                self._energy.close()

    def _wait(self) -> None:
        """Kernels run on after their launch."""
        import torch

        with suppress(RuntimeError):  # that of a failed kernel: the run itself reports it
            torch.cuda.synchronize(self.device)

    def _read(self) -> tuple[float, float | None, dict[str, Any]]:
        if self._begin is None:
            raise RuntimeError("the meter was not started; use it as `with Meter(device) as meter:`")
        if self._cuda:
            self._wait()
        seconds = self._clock() - self._begin
        return seconds, self._energy.joules() if self._energy is not None else None, self._memory()

    def _memory(self) -> dict[str, Any]:
        if not self._cuda:
            peak = peak_rss()
            kind = None if peak is None else "peak resident memory of the process so far"
            return {"peak_memory_bytes": peak, "reserved_memory_bytes": None, "memory_kind": kind}
        import torch

        return {
            "peak_memory_bytes": int(torch.cuda.max_memory_allocated(self.device)),
            "reserved_memory_bytes": int(torch.cuda.max_memory_reserved(self.device)),
            "memory_kind": "peak allocated by PyTorch on the GPU",
        }

    def summary(
        self, images: int | None = None, *, grams_per_kwh: float = WORLD_GRID, pue: float = 1.0
    ) -> dict[str, Any]:
        """JSON-ready: seconds, memory, energy_joules and where they come from, CO2e; None where unknown.

        images: how many the run returned, for energy_joules_per_image.
        """
        seconds, joules, memory = self._end if self._end is not None else self._read()
        return {
            "seconds": seconds,
            **memory,
            "energy_joules": joules,
            "energy_joules_per_image": joules / images if joules is not None and images else None,
            "energy_kind": None if joules is None or self._energy is None else self._energy.kind,
            "co2_grams": carbon(joules, grams_per_kwh, pue),
            "co2_grams_per_kwh": grams_per_kwh,
            "pue": pue,
        }


def peak_rss() -> int | None:
    """The most bytes of RAM that this process has held since it began; None where nobody tells (Windows)."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) if sys.platform == "darwin" else int(peak) * 1024


# --- energy -------------------------------------------------------------------------------------------------------


class _Energy:
    """Joules since it was made, from the board's counter, or from power samples where it has none.

    Every NVML error ends in None: measuring must not break what is measured.
    """

    kind = ""

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml

    def joules(self) -> float | None:
        raise NotImplementedError

    def close(self) -> None:
        with suppress(Exception):
            self._nvml.nvmlShutdown()


class _Counter(_Energy):
    """nvmlDeviceGetTotalEnergyConsumption: millijoules since the driver was loaded, Volta and later."""

    kind = "NVML energy counter"

    def __init__(self, nvml: Any, handle: Any) -> None:
        super().__init__(nvml)
        self._handle = handle
        self._first = nvml.nvmlDeviceGetTotalEnergyConsumption(handle)

    def joules(self) -> float | None:
        try:
            spent = self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle) - self._first
        except Exception:
            return None
        return spent / 1e3 if spent >= 0 else None  # negative: the driver was reloaded meanwhile


class _Sampler(_Energy):
    """nvmlDeviceGetPowerUsage (milliwatts) in a thread, integrated by trapezoids."""

    kind = "NVML power samples"

    def __init__(self, nvml: Any, handle: Any, interval: float, clock: Clock) -> None:
        super().__init__(nvml)
        self._handle, self._interval, self._clock = handle, interval, clock
        self._samples: list[tuple[float, float]] = []
        self._lock, self._stop, self._failed = threading.Lock(), threading.Event(), False
        self._sample()  # raises here where power cannot be read either
        self._thread = threading.Thread(target=self._run, name="ttsnap-power", daemon=True)
        self._thread.start()

    def _sample(self) -> None:
        with self._lock:
            watts = self._nvml.nvmlDeviceGetPowerUsage(self._handle) / 1e3
            self._samples.append((self._clock(), watts))

    def _run(self) -> None:
        while not self._stop.wait(self._interval):
            try:
                self._sample()
            except Exception:
                self._failed = True
                return

    def joules(self) -> float | None:
        try:
            self._sample()
        except Exception:
            return None
        with self._lock:
            return None if self._failed else integrate(self._samples)

    def close(self) -> None:
        self._stop.set()
        self._thread.join(timeout=10 * self._interval + 1)
        super().close()


def integrate(samples: Sequence[tuple[float, float]]) -> float:
    """Joules under (seconds, watts) samples, by trapezoids."""
    return sum((t1 - t0) * (w0 + w1) / 2 for (t0, w0), (t1, w1) in pairwise(samples))


def open_energy(
    device: Any, nvml: Any = None, interval: float = SAMPLING_SECONDS, clock: Clock = time.perf_counter
) -> _Energy | None:
    """Start to count the energy of a CUDA device; None without NVML, its board, or the permission to read it."""
    try:
        if nvml is None:
            nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()
    except Exception:  # the package, the driver's library, or the driver is missing
        return None
    handle = _handle(device, nvml)
    makers: tuple[Callable[[], _Energy], ...] = (
        lambda: _Counter(nvml, handle),
        lambda: _Sampler(nvml, handle, interval, clock),
    )
    for make in makers if handle is not None else ():
        try:
            return make()
        except Exception:  # not supported by this board, or not permitted
            continue
    _Energy(nvml).close()
    return None


def _handle(device: Any, nvml: Any) -> Any:
    """NVML's handle of a torch CUDA device; None where it is not found.

    By UUID or PCI address: CUDA_VISIBLE_DEVICES renumbers CUDA's devices but not NVML's, and their orders differ. A MIG
    slice has a UUID that NVML may refuse; its address is that of the whole board, as is its energy.
    """
    try:
        import torch

        properties: Any = torch.cuda.get_device_properties(device)
    except Exception:
        return None
    for find in (lambda: nvml.nvmlDeviceGetHandleByUUID(_uuid(properties)), lambda: _by_address(properties, nvml)):
        try:
            return find()
        except Exception:
            continue
    return None


def _uuid(properties: Any) -> str:
    """CUDA gives a UUID without the "GPU-" that NVML's begin with."""
    uuid = str(properties.uuid)
    return uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"


def _by_address(properties: Any, nvml: Any) -> Any:
    p = properties
    return nvml.nvmlDeviceGetHandleByPciBusId(f"{p.pci_domain_id:08X}:{p.pci_bus_id:02X}:{p.pci_device_id:02X}.0")
