"""Seconds by phase. On an accelerator the device's own clock is read, once at the end: no batch waits for it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch


class Stopwatch:
    """Adds up the time spent in each of `phases`."""

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
        start, end = (torch.Event(device=device.type, enable_timing=True) for _ in range(2))
        start.record()
        try:
            yield
        finally:
            end.record()
            self._events.append((phase, start, end))

    @property
    def seconds(self) -> dict[str, float]:
        """By phase. Waits for the device."""
        for phase, start, end in self._events:
            end.synchronize()
            self._sums[phase] += start.elapsed_time(end) / 1000
        self._events = []
        return dict(self._sums)
