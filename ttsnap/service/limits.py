"""How much one request, one caller and all of them together may take."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What the service takes. ValueError for limits that are not positive.

    nfe: most evaluations for one request; steps, side (pixels), images: of one image, and to return. seconds: for one
    search, which ends with its best image then. active: searches at a time; queue: requests that wait beside them, the
    next one being answered with status 429; per_key: requests of one caller that wait or run. bytes: of a request, and
    body_seconds for it to arrive; connections: open ones; prompt: characters. drain: seconds that searches have to end
    once the service is told to stop. idle: configurations (sizes, steps, rewards ...) that are kept ready unused.
    """

    nfe: int = 4000
    steps: int = 100
    side: int = 1024
    images: int = 10
    seconds: float = 300.0
    active: int = 32
    queue: int = 64
    per_key: int = 32
    bytes: int = 2**16
    body_seconds: float = 30.0
    connections: int = 256
    prompt: int = 4000
    rewards: int = 3
    drain: float = 30.0
    idle: int = 4

    def __post_init__(self) -> None:
        wrong = [f"{name} = {value}" for name, value in vars(self).items() if not value > 0]
        if wrong:
            raise ValueError(f"limits of the service must be positive, got {', '.join(wrong)}")
