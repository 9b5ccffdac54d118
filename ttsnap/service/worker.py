"""The thread that searches. It alone uses the model; the web application only leaves tickets."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, OrderedDict, deque

from ttsnap.core.names import FieldError
from ttsnap.core.prompt import private
from ttsnap.core.protocols import EngineLost
from ttsnap.engine.fair import FairShare
from ttsnap.request.request import EngineSpec, Prepared
from ttsnap.rewards.reward_model import RewardError
from ttsnap.service.engine_pool import PooledEngine, devices_fail
from ttsnap.service.engines import Engines
from ttsnap.service.limits import RequestError, ServiceLimits, stopping
from ttsnap.service.monitoring import Batch, Metrics, Observer
from ttsnap.service.tickets import Done, Passed, PendingRequest

logger = logging.getLogger(__name__)
LATE = 5.0
AGAIN = 5
"""Seconds after the deadline, after which nothing is waited for; until a request that is refused
may come again."""


class Worker(threading.Thread):
    """Runs all submitted requests at once, on one model.

    Requests of one spec share the batches of its engine, by turns (engine/fair.py). Specs take
    turns in seconds of the device, by the number of their requests. Free places of a batch are
    filled from specs that differ in their steps and rewards alone (engine/shared_denoiser.py). An
    idle engine is kept for a while, as all share the pipeline's weights. An engine whose devices
    keep failing is made anew for the next request.
    """

    def __init__(
        self,
        engines: Engines,
        limits: ServiceLimits,
        metrics: Metrics,
        first: Prepared,
        traces: Observer | None = None,
    ) -> None:
        """first: a request to prepare for before any comes, as loading may take minutes."""
        super().__init__(daemon=True, name="searches")
        self.engines = engines
        self.limits = limits
        self.metrics = metrics
        self._observers: tuple[Observer, ...] = (metrics,) if traces is None else (metrics, traces)
        self.draining = self.loaded = False
        self.unready: str | None = None
        """Why the model takes no requests, where that was tried in vain."""
        self._first = first
        self._wake = threading.Condition()
        self._waiting: deque[PendingRequest] = deque()
        self._open: set[PendingRequest] = set()
        """Submitted, and not ended."""
        self._active: dict[PendingRequest, PooledEngine] = {}
        self._pool: OrderedDict[EngineSpec, PooledEngine] = OrderedDict()
        self._shares: FairShare[EngineSpec] = FairShare()
        self._deadline = float("inf")

    # --- called by the application ----------------------------------------------------------------

    def submit(self, ticket: PendingRequest) -> None:
        """Queue a request. RequestError (429, 503) where the queue is full, and where the service
        ends."""
        with self._wake:
            if self.draining or not self.is_alive():
                raise stopping()
            name = ticket.caller
            most = self.limits.per_key
            if sum(other.caller == name for other in self._open) >= most:
                said = (
                    f"{most} requests of yours wait or run already, the most that one key may have"
                )
                raise RequestError(
                    429,
                    f"{said}; try again in {AGAIN} s",
                    code="too_many_requests",
                    retry_after=AGAIN,
                )
            if len(self._waiting) >= self.limits.queue:
                said = f"{self.limits.queue} requests wait already, the most that are taken"
                raise RequestError(
                    429, f"{said}; try again in {AGAIN} s", code="queue_full", retry_after=AGAIN
                )
            for observer in self._observers:
                observer.queued(ticket)
            self._open.add(ticket)
            self._waiting.append(ticket)
            self._wake.notify()

    def cancel(self, ticket: PendingRequest) -> None:
        """End a request before the next batch, as its client has gone. Nothing where it has
        ended."""
        with self._wake:
            ticket.cancelled = True
            self._wake.notify()

    def drain(self, *, now: bool = False) -> None:
        """Refuse new and waiting requests, and let running ones end with an image each, within
        `drain` seconds or at once. The thread ends with the last one. Callable from a signal's
        handler."""
        self._deadline = min(self._deadline, time.monotonic() + (0 if now else self.limits.drain))
        self.draining = True  # the thread sees it within a batch, or a second

    @property
    def patience(self) -> float:
        """Seconds left to wait for searches that are to end."""
        return self._deadline + LATE - time.monotonic()

    def give_up(self) -> None:
        """Refuse all requests without an answer, whatever the thread is doing."""
        with self._wake:
            for ticket in self._open:
                ticket.tell(stopping())

    # --- the thread -------------------------------------------------------------------------------

    def run(self) -> None:
        try:
            self._engine_of(self._first.engine).warm_up(self._first)
        except ValueError:  # a model for edits lacks a picture
            logger.info("nothing is made ready for requests that say nothing", exc_info=True)
            self.loaded = True
        except Exception as error:  # the next request tries anew, and gets the error
            logger.exception("what requests get that say nothing could not be made ready")
            self.unready = (
                f"the model could not be made ready ({type(error).__name__}); the log says why"
            )
        while True:
            with self._wake:
                while not (self._active or self.draining or self._waiting):
                    self._wake.wait(timeout=1.0)
                if self.draining and not self._active and not self._waiting:
                    return
            try:
                self._turn()
            except Exception:  # a mistake of ours: every client gets an answer
                logger.exception("the thread of searches failed")
                for ticket in list(self._active):
                    self._end(ticket, "failed", RequestError(500, "the service failed"))
                for spec in list(self._pool):
                    self._drop(spec)

    def _turn(self) -> None:
        """Begin and cancel requests, then run one batch of the spec whose turn it is."""
        for ticket in [ticket for ticket in self._active if ticket.cancelled]:
            self._active[ticket].cancel(ticket)
            self._end(ticket, "cancelled")
        self._take()
        active = set(self._active.values())
        if time.monotonic() + sum(pooled.seconds_to_end for pooled in active) >= self._deadline:
            for ticket in [ticket for ticket in self._active if ticket.job]:
                self._active[ticket].cancel(ticket)
                self._end(ticket, "cancelled", stopping())
            for pooled in active:
                pooled.stop()
        busy = Counter(pooled.spec for pooled in self._active.values())
        for spec, requests in busy.items():
            self._shares.weigh(spec, requests)
        self._shares.wait(busy)
        if busy:
            self._batch(self._pool[self._shares.first()])
        self._forget(self.limits.idle)
        self.metrics.measure(len(self._waiting), len(self._active), len(self._pool))

    def _take(self) -> None:
        """Begin requests while there is room. Cancelled ones end here, and so do all that wait while
        the service drains."""
        with self._wake:
            waiting = list(self._waiting)
        for ticket in waiting:
            if ticket.cancelled or self.draining:
                self._end(ticket, "cancelled" if ticket.cancelled else "refused", stopping())
            elif len(self._active) >= self.limits.active:
                continue
            else:
                self._begin(ticket)
            with self._wake:
                self._waiting.remove(ticket)

    def _begin(self, ticket: PendingRequest) -> None:
        """Begin a request, or end it where that cannot be."""
        spec = ticket.request.engine
        try:
            pooled = self._engine_of(spec)
            pooled.add(ticket)
        except RequestError as refused:
            self._end(ticket, "refused", refused)
        except FieldError as error:
            self._end(ticket, "refused", RequestError.of(error))
        except (ValueError, TypeError) as error:  # the model's own words on the client's settings
            said = str(error)
            if isinstance(error, TypeError):
                logger.warning(
                    "a model refused its arguments",
                    exc_info=error,
                    extra=private(ticket.request.prompt),
                )
                said = "this model does not take these settings; leave some out"
            self._end(ticket, "refused", RequestError(400, said, code="invalid_value"))
        except EngineLost as error:
            logger.error("the devices keep failing", exc_info=error)
            self._end(ticket, "failed", devices_fail())
        except Exception as error:
            logger.error(
                "a search could not begin", exc_info=error, extra=private(ticket.request.prompt)
            )
            self._end(ticket, "failed", failure(error, spec, "the search could not begin"))
        else:
            self._active[ticket], ticket.begun = pooled, time.monotonic()
            self._pool.move_to_end(pooled.spec)
            ticket.tell(Passed())
            for observer in self._observers:
                observer.begun(ticket)

    def _engine_of(self, spec: EngineSpec) -> PooledEngine:
        """The engine of a spec, which is made where there is none."""
        if spec not in self._pool:
            self._pool[spec] = PooledEngine(self.engines, spec, self.limits)
            self.loaded = True
        return self._pool[spec]

    def _batch(self, pooled: PooledEngine) -> None:
        engine = pooled.engine
        nfe = self._nfe()
        phases = dict(engine.timings)
        rooms = engine.room
        begin = time.monotonic()
        try:
            ended = pooled.turn()
        except Exception as error:
            logger.error(
                "searches failed",
                exc_info=error,
                extra=private(*(ticket.request.prompt for ticket in pooled.under_way)),
            )
            self._drop(pooled.spec)
            for ticket in list(pooled.under_way):
                self._end(ticket, "failed", failure(error, pooled.spec))
            return
        seconds = time.monotonic() - begin
        took = {phase: after - phases.get(phase, 0.0) for phase, after in engine.timings.items()}
        batch = Batch(seconds, self._nfe() - nfe, engine.room - rooms, took)
        self._shares.serve(pooled.spec, seconds)
        pooled.measure(batch)
        self.metrics.ran(batch)
        for ticket, answer in ended.items():
            ticket.tell(answer)
            self._end(ticket, "done" if isinstance(answer, Done) else "failed")

    def _nfe(self) -> int:
        """Evaluations of all engines: a batch of one may hold rows of others."""
        return sum(pooled.engine.nfe for pooled in self._pool.values())

    def _end(self, ticket: PendingRequest, outcome: str, error: RequestError | None = None) -> None:
        """Close a request. error: its answer, where it has none yet."""
        self._active.pop(ticket, None)
        with self._wake:
            self._open.discard(ticket)
        if error is not None:
            ticket.tell(error)
        for observer in self._observers:
            observer.ended(ticket, outcome)

    def _forget(self, most: int) -> None:
        """Drop lost engines, and all but so many of the idle ones, longest idle first."""
        idle = [key for key, pooled in self._pool.items() if not pooled.under_way]
        lost = [key for key in idle if self._pool[key].run.lost]
        for key in {*lost, *idle[: max(0, len(idle) - most)]}:
            self._drop(key)

    def _drop(self, spec: EngineSpec) -> None:
        self._pool.pop(spec).close()
        self._shares.weights.pop(spec, None)


def failure(error: Exception, spec: EngineSpec, what: str = "the search failed") -> RequestError:
    """The answer where all searches of a spec fail. Errors of a reward are for the log alone."""
    if not isinstance(error, RewardError):
        sized = (
            "; the model may not draw this size: leave size out, or give another"
            if "width" in spec.call
            else ""
        )
        return RequestError(500, f"{what}: {type(error).__name__}{sized}")
    names = " or ".join(spec.rewards)
    said = (
        f"the reward {names} scored none of the first images; ask for another reward, or again"
        " later"
    )
    return RequestError(503, said, "reward", "reward_failed", retry_after=30)
