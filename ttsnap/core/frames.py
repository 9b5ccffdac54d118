"""Which frames of a video are looked at."""

from __future__ import annotations

SHOWN = 4
"""Frames of a video that one picture shows."""


def chosen(total: int, frames: int) -> list[int]:
    """So many of `total` frames, chosen evenly: the middle one of each of `frames` equal parts. Where there are fewer
    frames than that, some are chosen twice."""
    return [(2 * part + 1) * total // (2 * frames) for part in range(frames)]
