"""The energy of a CUDA board by NVML: from its counter, or from power samples where it has none."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any, Protocol

import torch

SAMPLING_SECONDS = 0.2
Clock = Callable[[], float]


class Nvml(Protocol):
    """What is used of pynvml. A handle is whatever it gives for a board."""

    def nvmlInit(self) -> None: ...  # noqa: N802

    def nvmlShutdown(self) -> None: ...  # noqa: N802

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> object: ...  # noqa: N802

    def nvmlDeviceGetHandleByPciBusId(self, address: str) -> object: ...  # noqa: N802

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: object) -> int:  # noqa: N802
        """Millijoules since the driver was loaded."""
        ...

    def nvmlDeviceGetPowerUsage(self, handle: object) -> int:  # noqa: N802
        """Milliwatts."""
        ...


class _Board(Protocol):
    """What is read of torch's properties of a CUDA device."""

    @property
    def uuid(self) -> object: ...

    @property
    def pci_domain_id(self) -> int: ...

    @property
    def pci_bus_id(self) -> int: ...

    @property
    def pci_device_id(self) -> int: ...


class Energy:
    """Joules since it was made, from the board's counter, or from power samples where it has none.

    Every NVML error ends in None: measuring must not break what is measured.
    """

    kind = ""

    def __init__(self, nvml: Nvml) -> None:
        self._nvml = nvml

    def joules(self) -> float | None:
        raise NotImplementedError

    def close(self) -> None:
        with suppress(Exception):
            self._nvml.nvmlShutdown()


class _Counter(Energy):
    """nvmlDeviceGetTotalEnergyConsumption: millijoules since the driver was loaded, Volta and later."""

    kind = "NVML energy counter"

    def __init__(self, nvml: Nvml, handle: object) -> None:
        super().__init__(nvml)
        self._handle = handle
        self._first = nvml.nvmlDeviceGetTotalEnergyConsumption(handle)

    def joules(self) -> float | None:
        try:
            spent = self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle) - self._first
        except Exception:
            return None
        return spent / 1e3 if spent >= 0 else None  # negative: the driver was reloaded meanwhile


class _Sampler(Energy):
    """nvmlDeviceGetPowerUsage (milliwatts) in a thread, integrated by trapezoids."""

    kind = "NVML power samples"

    def __init__(self, nvml: Nvml, handle: object, interval: float, clock: Clock) -> None:
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
    device: torch.device, nvml: Nvml | None = None, interval: float = SAMPLING_SECONDS, clock: Clock = time.perf_counter
) -> Energy | None:
    """Start to count the energy of a CUDA device; None without NVML, its board, or the permission to read it."""
    try:
        if nvml is None:
            import pynvml

            nvml = pynvml
        nvml.nvmlInit()
    except Exception:  # the package, the driver's library, or the driver is missing
        return None
    handle = _handle(device, nvml)
    makers: tuple[Callable[[], Energy], ...] = (
        lambda: _Counter(nvml, handle),
        lambda: _Sampler(nvml, handle, interval, clock),
    )
    for make in makers if handle is not None else ():
        try:
            return make()
        except Exception:  # not supported by this board, or not permitted
            continue
    Energy(nvml).close()
    return None


def _handle(device: torch.device, nvml: Nvml) -> object | None:
    """NVML's handle of a torch CUDA device; None where it is not found.

    By UUID or PCI address: CUDA_VISIBLE_DEVICES renumbers CUDA's devices but not NVML's, and their orders differ. A MIG
    slice has a UUID that NVML may refuse; its address is that of the whole board, as is its energy.
    """
    try:
        properties: Any = torch.cuda.get_device_properties(device)  # its stub lacks the address
    except Exception:
        return None
    for find in (lambda: nvml.nvmlDeviceGetHandleByUUID(_uuid(properties)), lambda: _by_address(properties, nvml)):
        try:
            return find()
        except Exception:
            continue
    return None


def _uuid(properties: _Board) -> str:
    """CUDA gives a UUID without the "GPU-" that NVML's begin with."""
    uuid = str(properties.uuid)
    return uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"


def _by_address(properties: _Board, nvml: Nvml) -> object:
    p = properties
    return nvml.nvmlDeviceGetHandleByPciBusId(f"{p.pci_domain_id:08X}:{p.pci_bus_id:02X}:{p.pci_device_id:02X}.0")
