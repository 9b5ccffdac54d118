"""The searches of one configuration: one engine, on which requests come and go."""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack
from dataclasses import replace

from ttsnap.algorithms import make_algorithm
from ttsnap.core.protocols import Algorithm
from ttsnap.core.spent import Usage
from ttsnap.loop.budget import Budget
from ttsnap.loop.report import report
from ttsnap.loop.request import Request, Stopwatch
from ttsnap.loop.run import Run
from ttsnap.loop.search import prepared
from ttsnap.loop.spec import SearchSpec
from ttsnap.pipelines.output import checked, reported
from ttsnap.pipelines.settings import settings_of
from ttsnap.results.outputs import for_prompt
from ttsnap.service.algorithms import Isolated
from ttsnap.service.engines import Engines
from ttsnap.service.errors import RequestError
from ttsnap.service.limits import Limits
from ttsnap.service.requests import Asked, Configuration
from ttsnap.service.tickets import Done, PartialImages, Ticket

logger = logging.getLogger(__name__)
MOST_FITTED = 256


class Searches:
    """Makes the engine of a configuration (ValueError where the model cannot do it) and runs requests on it, until it
    is closed."""

    def __init__(self, engines: Engines, configuration: Configuration, limits: Limits) -> None:
        self.pipe, self.rewards, self.configuration, self.limits = engines.pipe, engines.rewards, configuration, limits
        self._open = ExitStack()
        self.engine = self._open.enter_context(engines.engine(configuration))
        self.run = Run(self.engine)
        self.under_way: dict[Ticket, Request] = {}
        self._fitted: dict[tuple[str, Budget, int], Algorithm] = {}

    def close(self) -> None:
        """Give the engine up; its searches have ended."""
        self._open.close()

    @property
    def weight(self) -> float:
        """The sum of its callers' weights."""
        return sum(ticket.caller.weight for ticket in self.under_way)

    def warm_up(self, asked: Asked) -> None:
        """Have everything ready for a request like this one."""
        self._prepared(asked, self._budget(asked))

    def _budget(self, asked: Asked) -> Budget:
        budget = asked.budget.on(self.engine.grid)
        return replace(budget, nfe=min(budget.nfe or self.limits.nfe, self.limits.nfe))

    def add(self, ticket: Ticket) -> None:
        """Begin a search. ValueError for what the model, the rewards or the budget do not allow."""
        asked, engine, budget = ticket.asked, self.engine, self._budget(ticket.asked)
        spec = self._prepared(asked, budget)
        now = time.monotonic()
        listener = PartialImages(ticket, float(budget.nfe or 0)) if asked.partial_images else None
        request = self.run.add([asked.prompt], spec, Stopwatch(time.monotonic, now, now + asked.seconds), listener)
        engine.weigh(request.jobs[0].index, ticket.caller.weight)
        self.under_way[ticket] = request

    def _prepared(self, asked: Asked, budget: Budget) -> SearchSpec:
        """The search, with as many seeds as its budget affords; that is found once for equal requests."""
        key = (asked.search.label, budget, asked.keep)
        algorithm = self._fitted.get(key) or make_algorithm(asked.search.spec)
        spec = SearchSpec(algorithm, budget, seed=asked.seed, keep=asked.keep)
        if key not in self._fitted:
            spec = prepared(spec, self.engine)
            if len(self._fitted) == MOST_FITTED:
                self._fitted.clear()
            self._fitted[key] = spec.algorithm
        return replace(spec, algorithm=Isolated(spec.algorithm, self.engine.grid))

    def cancel(self, ticket: Ticket) -> None:
        """End a search at once, without an image."""
        self.run.cancel(self.under_way.pop(ticket))

    def stop(self) -> None:
        """End all searches with their best images."""
        for request in self.under_way.values():
            self.run.stop(request)

    def turn(self) -> dict[Ticket, Done | RequestError]:
        """One batch. The requests that are done by it, and what to tell them; what fails in making it, fails alone."""
        self.run.turn()
        ended = [ticket for ticket, request in self.under_way.items() if request.done]
        told: dict[Ticket, Done | RequestError] = {}
        for ticket in ended:
            try:
                told[ticket] = self._finished(ticket, self.under_way.pop(ticket))
            except Exception as error:
                logger.exception("what a search found cannot be told")
                told[ticket] = RequestError(500, f"what the search found cannot be told: {type(error).__name__}")
        return told

    def _finished(self, ticket: Ticket, request: Request) -> Done | RequestError:
        asked, algorithm = ticket.asked, request.spec.algorithm
        if isinstance(algorithm, Isolated) and algorithm.error is not None:
            why = f"{type(algorithm.error).__name__}; choose other options or another search"
            return RequestError(500, f"the search failed: {why}", "search")
        (result,), _ = checked(self.pipe, report(request, self.engine, Usage()))
        if not result.images:
            return RequestError(500, "no image was finished")
        result = reported(result, [self.rewards[name] for name in asked.report])
        # Where the operator keeps the drafter is no client's business, and the image is made again without it.
        call, sampler = dict(self.configuration.call), replace(self.configuration.sampler, draft=None)
        told = settings_of(self.pipe, asked.search.spec, sampler, call, asked.budget, [asked.prompt])
        return Done(result, for_prompt(told, 0))
