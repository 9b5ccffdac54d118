"""Who listens to which search. What nobody listens to is taken out of the queue, and stopped where it runs.

gradio takes a call with one request and gives its results over another, so that calls whose results nobody fetches
would run to their end, with other visitors waiting behind them.
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
"""Seconds that a visitor has to start listening, or to come back after a broken connection."""
PERIOD = 0.5


@dataclass
class Listeners:
    """Connections that wait for results, by session (of the page, or of one call made without it).

    queue: gradio's queue of calls. stop: called with the session of a call that nobody has listened to for `grace`
    seconds.
    """

    queue: Any
    stop: Callable[[str], None]
    grace: float = GRACE
    open: Counter[str] = field(default_factory=Counter)
    _silent: dict[str, float] = field(default_factory=dict)
    _task: asyncio.Task[None] | None = None

    @contextmanager
    def listening(self, key: str) -> Iterator[None]:
        """While a connection is open that waits for the results of this session or call."""
        self.open[key] += 1
        try:
            yield
        finally:
            self.open[key] -= 1
            if self.open[key] <= 0:
                del self.open[key]

    def heard(self, session: str) -> bool:
        """Whether anyone listens to a session, or to one of its calls."""
        calls = self.queue.pending_event_ids_session.get(session, ())
        return self.open[session] > 0 or any(self.open[call] > 0 for call in list(calls))

    def arrived(self, session: str) -> bool:
        """Whether anyone listens, given the time to start listening; blocks for `grace` seconds at most."""
        end = time.monotonic() + self.grace
        while not (heard := self.heard(session)) and time.monotonic() < end:
            time.sleep(0.05)
        return heard

    def watch(self) -> None:
        """Look after the queue until it is empty. To be called from the server's event loop, after each new call."""
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
        """The session of each call that waits or runs, by the call's id."""
        waiting = [call for calls in self.queue.event_queue_per_concurrency_id.values() for call in calls.queue]
        running = [call for job in self.queue.active_jobs if job for call in job]
        return {call._id: call.session_hash for call in (*waiting, *running)}
