"""Units of work for other processes, which import nothing else for them."""

from __future__ import annotations

import os
import time


def work(unit):
    """The unit and who did it; words misbehave."""
    if unit == "refuse":
        raise ValueError("this unit is refused")
    if unit == "die":
        os._exit(9)
    if unit == "last long":
        time.sleep(600)
    return unit, os.getpid()
