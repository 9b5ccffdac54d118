"""The energy of a CUDA board by NVML: from its counter, or from power samples where it has none."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any, TypeAlias

import torch

SAMPLING_SECONDS = 0.2
Clock = Callable[[], float]
Nvml: TypeAlias = Any
"""pynvml, which has no types, or a stand-in."""


class Energy:
    """Joules of a board since this was made.

    The counter (Volta and later) is read where there is one; else power is sampled in a thread. Every NVML error on the
    way ends in None: measuring must not break what is measured.
    """

    def __init__(self, nvml: Nvml, handle: object, interval: float, clock: Clock) -> None:
        """Raises what NVML raises where neither can be read."""
        self._nvml, self._handle, self._interval, self._clock = nvml, handle, interval, clock
        self._samples: list[tuple[float, float]] = []
        self._lock, self._stop, self._failed = threading.Lock(), threading.Event(), False
        self._thread: threading.Thread | None = None
        self.kind = "NVML energy counter"
        try:
            self._first = nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        except Exception:
            self.kind = "NVML power samples"
            self._sample()
            self._thread = threading.Thread(target=self._run, name="ttsnap-power", daemon=True)
            self._thread.start()

    def _sample(self) -> None:
        with self._lock:
            milliwatts = self._nvml.nvmlDeviceGetPowerUsage(self._handle)
            self._samples.append((self._clock(), milliwatts / 1e3))

    def _run(self) -> None:
        while not self._stop.wait(self._interval):
            try:
                self._sample()
            except Exception:
                self._failed = True
                return

    def joules(self) -> float | None:
        """None where they cannot be read any more."""
        with suppress(Exception):
            if self._thread is None:
                millijoules = self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle) - self._first
                return float(millijoules / 1e3) if millijoules >= 0 else None  # the driver was reloaded meanwhile
            self._sample()
            with self._lock:
                return None if self._failed else integrate(self._samples)
        return None

    def close(self) -> None:
        """Stop sampling, and leave NVML."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=10 * self._interval + 1)
        with suppress(Exception):
            self._nvml.nvmlShutdown()


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
    try:
        return Energy(nvml, _handle(device, nvml), interval, clock)
    except Exception:  # not found, not supported by this board, or not permitted
        with suppress(Exception):
            nvml.nvmlShutdown()
        return None


def _handle(device: torch.device, nvml: Nvml) -> object:
    """NVML's handle of a torch CUDA device.

    By UUID or PCI address: CUDA_VISIBLE_DEVICES renumbers CUDA's devices but not NVML's, and their orders differ. A MIG
    slice has a UUID that NVML may refuse; its address is that of the whole board, as is its energy.
    """
    board: Any = torch.cuda.get_device_properties(device)  # its stub lacks the address
    try:
        uuid = str(board.uuid)  # CUDA leaves out the "GPU-" that NVML's begin with
        return nvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}")
    except Exception:
        address = f"{board.pci_domain_id:08X}:{board.pci_bus_id:02X}:{board.pci_device_id:02X}.0"
        return nvml.nvmlDeviceGetHandleByPciBusId(address)
