"""Listeners of searches. A search without a listener is taken out of the queue, and stopped where it runs.

gradio takes a call with one request and gives its results over another. Calls whose results nobody fetches would run to
their end, with other visitors waiting.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

GRACE = 5.0
"""Seconds for a visitor to start listening, and to come back after a broken connection."""
PERIOD = 0.5


@dataclass
class Listeners:
    """Connections that wait for results."""

    queue: Any
    """gradio's queue of calls."""
    stop: Callable[[str], None]
    """Ends the searches of a session, one of whose calls had no listener for `grace` seconds."""
    grace: float = GRACE
    open: Counter[str] = field(default_factory=Counter)
    """Connections by session of the page, or by id of a call made without the page."""
    _silent: dict[str, float] = field(default_factory=dict)
    _task: asyncio.Task[None] | None = None

    @contextmanager
    def listening(self, key: str) -> Iterator[None]:
        """A connection waits for the results of a session or a call, until the block ends."""
        self.open[key] += 1
        try:
            yield
        finally:
            self.open[key] -= 1
            if self.open[key] <= 0:
                del self.open[key]

    def heard(self, session: str) -> bool:
        """Whether a session, or one of its calls, has a listener."""
        calls = self.queue.pending_event_ids_session.get(session, ())
        return self.open[session] > 0 or any(self.open[call] > 0 for call in list(calls))

    def arrived(self, session: str) -> bool:
        """Whether a session gets a listener within `grace` seconds; blocks until then."""
        end = time.monotonic() + self.grace
        while not (heard := self.heard(session)) and time.monotonic() < end:
            time.sleep(0.05)
        return heard

    def watch(self) -> None:
        """Watch the queue until it is empty. Called on the server's event loop, after each new call."""
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._watch())

    async def _watch(self) -> None:
        while calls := self._calls():
            now = time.monotonic()
            self._silent = {key: since for key, since in self._silent.items() if key in calls}
            for call, session in calls.items():
                if self.heard(session):
                    self._silent.pop(call, None)
                elif now - self._silent.setdefault(call, now) >= self.grace:
                    await self.queue.clean_events(event_id=call)
                    self.stop(session)
            await asyncio.sleep(PERIOD)

    def _calls(self) -> dict[str, str]:
        """The sessions of waiting and running calls, by the call's id."""
        waiting = [call for calls in self.queue.event_queue_per_concurrency_id.values() for call in calls.queue]
        running = [call for job in self.queue.active_jobs if job for call in job]
        return {call._id: call.session_hash for call in (*waiting, *running)}
