"""What a run used besides evaluations: seconds (also by phase), peak memory, the GPU's energy."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import torch

from ttsnap.core.protocols import RunUsage

SAMPLING_SECONDS = 0.2
Clock = Callable[[], float]
Nvml: TypeAlias = Any
"""pynvml, which has no types, or a stand-in."""


class Meter:
    """Measures what runs inside `with Meter(device) as meter:`; `meter.summary()` reads it, inside
    or afterwards.

    Energy is that of the whole board with all its processes, without the CPU, RAM and power supply.
    Peak memory on CUDA is what PyTorch held since the start: its peak counters are reset, so meters
    must not be nested. Elsewhere it is the peak of the process so far, which may be older than the
    meter. What cannot be measured (no NVML, i.e. no extra `energy`; no permission) is None. No
    error of a measurement reaches the caller.

    device: anything that torch.device takes. nvml: pynvml or a stand-in. interval: seconds between
    power samples, on boards without an energy counter.
    """

    def __init__(
        self,
        device: torch.device | str,
        *,
        nvml: Nvml | None = None,
        interval: float = SAMPLING_SECONDS,
        clock: Clock = time.perf_counter,
    ) -> None:
        self.device = torch.device(device)
        self._cuda = self.device.type == "cuda" and torch.cuda.is_available()
        self._nvml = nvml
        self._interval = interval
        self._clock = clock
        self._energy: Energy | None = None
        self._begin: float | None = None
        self._end: tuple[float, float | None, RunUsage] | None = None

    def __enter__(self) -> Meter:
        self._end = None
        if self._cuda:
            torch.cuda.init()
            self._wait()
            torch.cuda.reset_peak_memory_stats(self.device)
        self._energy = (
            open_energy(self.device, self._nvml, self._interval, self._clock)
            if self._cuda
            else None
        )
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
        with suppress(RuntimeError):  # that of a failed kernel: the run itself reports it
            torch.cuda.synchronize(self.device)

    def _read(self) -> tuple[float, float | None, RunUsage]:
        if self._begin is None:
            raise RuntimeError(
                "the meter was not started; use it as `with Meter(device) as meter:`"
            )
        if self._cuda:
            self._wait()
        seconds = self._clock() - self._begin
        return seconds, self._energy.joules() if self._energy is not None else None, self._memory()

    def _memory(self) -> RunUsage:
        if not self._cuda:
            peak = peak_rss()
            kind = None if peak is None else "peak resident memory of the process so far"
            return {"peak_memory_bytes": peak, "reserved_memory_bytes": None, "memory_kind": kind}
        return {
            "peak_memory_bytes": int(torch.cuda.max_memory_allocated(self.device)),
            "reserved_memory_bytes": int(torch.cuda.max_memory_reserved(self.device)),
            "memory_kind": "peak allocated by PyTorch on the GPU",
        }

    def summary(self, images: int | None = None) -> RunUsage:
        """Seconds, memory and energy.

        images: how many the run returned, for energy_joules_per_image.
        """
        seconds, joules, memory = self._end if self._end is not None else self._read()
        return {
            "seconds": seconds,
            **memory,
            "energy_joules": joules,
            "energy_joules_per_image": joules / images if joules is not None and images else None,
            "energy_kind": None if joules is None or self._energy is None else self._energy.kind,
        }


STATUS = Path("/proc/self/status")
"""What Linux tells of this process."""


def peak_rss() -> int | None:
    """The most bytes of RAM that this process has held since it began; None where nobody tells
    (Windows)."""
    # Linux; getrusage would count what the parent held when it began
    with suppress(OSError, StopIteration):
        lines = STATUS.read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) * 1024
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) if sys.platform == "darwin" else int(peak) * 1024


class Stopwatch:
    """Adds up the seconds spent in each of some phases.

    On an accelerator the device's own clock is read, once at the end: no batch waits for it.
    """

    def __init__(self, phases: Sequence[str]) -> None:
        self._phases = tuple(phases)
        self.reset()

    def reset(self) -> None:
        self._sums = dict.fromkeys(self._phases, 0.0)
        self._events: list[tuple[str, torch.Event, torch.Event]] = []

    @contextmanager
    def __call__(self, phase: str, device: torch.device | None) -> Iterator[None]:
        """Time what runs inside on `device`."""
        if device is None or device.type == "cpu":
            begin = time.perf_counter()
            try:
                yield
            finally:
                self._sums[phase] += time.perf_counter() - begin
            return
        start, end = (torch.Event(device=device, enable_timing=True) for _ in range(2))
        # by default that of the device which is current
        start.record(torch.accelerator.current_stream(device))
        try:
            yield
        finally:
            end.record(torch.accelerator.current_stream(device))
            self._events.append((phase, start, end))

    @property
    def seconds(self) -> dict[str, float]:
        """By phase. Waits for the device."""
        for phase, start, end in self._events:
            end.synchronize()
            self._sums[phase] += start.elapsed_time(end) / 1000
        self._events = []
        return dict(self._sums)


# --- the energy of a CUDA board by NVML: from its counter, or from power samples where it has none


class Energy:
    """Joules of a board since this was made.

    The counter (Volta and later) is read where there is one; else power is sampled in a thread.
    Every NVML error on the way ends in None: measuring must not break what is measured.
    """

    def __init__(self, nvml: Nvml, handle: object, interval: float, clock: Clock) -> None:
        """Raises what NVML raises where neither can be read."""
        self._nvml = nvml
        self._handle = handle
        self._interval = interval
        self._clock = clock
        self._samples: list[tuple[float, float]] = []
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._failed = False
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
                millijoules = (
                    self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle) - self._first
                )
                # the driver was reloaded meanwhile
                return float(millijoules / 1e3) if millijoules >= 0 else None
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
    device: torch.device,
    nvml: Nvml | None = None,
    interval: float = SAMPLING_SECONDS,
    clock: Clock = time.perf_counter,
) -> Energy | None:
    """Start to count the energy of a CUDA device; None without NVML, its board, or the permission
    to read it."""
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

    By UUID or PCI address: CUDA_VISIBLE_DEVICES renumbers CUDA's devices but not NVML's, and their
    orders differ. A MIG slice has a UUID that NVML may refuse; its address is that of the whole
    board, as is its energy.
    """
    board: Any = torch.cuda.get_device_properties(device)  # its stub lacks the address
    try:
        uuid = str(board.uuid)  # CUDA leaves out the "GPU-" that NVML's begin with
        return nvml.nvmlDeviceGetHandleByUUID(
            uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"
        )
    except Exception:
        address = f"{board.pci_domain_id:08X}:{board.pci_bus_id:02X}:{board.pci_device_id:02X}.0"
        return nvml.nvmlDeviceGetHandleByPciBusId(address)
