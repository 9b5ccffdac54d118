"""An engine of the pool: that of one spec, on which requests come and go."""

from __future__ import annotations

import logging
import math
import time
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ttsnap.core.grid import Grid
from ttsnap.core.moves import Move
from ttsnap.core.particles import Particles
from ttsnap.core.prompt import Prompt, private
from ttsnap.core.protocols import Algorithm, AlgorithmState, RunUsage
from ttsnap.core.results import Result
from ttsnap.core.validate import validate
from ttsnap.files.pictured import Picture
from ttsnap.loop.budget import Budget, task_of
from ttsnap.loop.clock import RequestClock
from ttsnap.loop.report import notices, report
from ttsnap.loop.request import LoopSearch, RunningRequest
from ttsnap.loop.run import Run
from ttsnap.loop.search import prepared
from ttsnap.pipelines.output import judged
from ttsnap.pipelines.record import model_name
from ttsnap.pipelines.run import Opened, finished
from ttsnap.request.request import EngineSpec, Prepared
from ttsnap.rewards.reward_model import turn_of
from ttsnap.service.engines import Engines
from ttsnap.service.limits import RequestError, ServiceLimits
from ttsnap.service.monitoring import Batch
from ttsnap.service.tickets import Done, PendingRequest, Progress

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)
MOST_FITTED = 256
RECENT = 0.9
RESERVE = 1.5
FIRST = 1000
"""The weight of earlier batches in measurements; the factor on measured times to finish; the
searches in an order when all end."""

UNCHECKED = (
    "drafts were not checked for this model, these steps and this guidance: they may choose worse"
    " seeds"
)


def taken_as(request: Prepared, result: Result) -> list[str]:
    """A warning where the images are of another size than was asked for, or than the picture that
    they change."""
    call = request.engine.call
    picture = request.prompt.inputs.get("image")
    first, (rows, columns) = (
        picture[0] if isinstance(picture, tuple) else picture,
        result.images[0].pixels.shape[-2:],
    )
    drawn = (columns, rows)
    sized = (call.get("width"), call.get("height"))
    warnings = list[str]()
    if None not in sized and sized != drawn:
        warnings.append(
            f"the model draws {columns}x{rows} in place of {sized[0]}x{sized[1]}, whose sides do"
            " not fit"
        )
    if isinstance(first, Picture) and first.size != drawn:
        warnings.append(
            f"the picture of {first.size[0]}x{first.size[1]} was taken as one of {columns}x{rows}"
        )
    return warnings


def devices_fail() -> RequestError:
    """The answer to a search that has no image when the engine's devices fail."""
    return RequestError(503, "the devices keep failing; try again later", retry_after=30)


class Isolated:
    """An algorithm whose mistakes end its own search only: options come from clients, and others
    share the loop."""

    lockstep: ClassVar[bool] = False

    def __init__(self, algorithm: Algorithm, grid: Grid) -> None:
        self.algorithm = algorithm
        self.grid = grid
        self.n = algorithm.n
        self.needs = algorithm.needs
        self.init = algorithm.init
        self.error: Exception | None = None
        """Raised by the algorithm; the search has ended."""

    def step(
        self, state: AlgorithmState, particles: Particles, rng: np.random.Generator
    ) -> tuple[Move | None, AlgorithmState]:
        """The algorithm's step; no more moves after a failure."""
        try:
            move, state = self.algorithm.step(state, particles, rng)
            if move is not None and len(move):
                validate(move, particles, self.grid, self.algorithm)
        except Exception as error:
            logger.exception("a search failed")
            self.error = error
            return None, state
        return move, state


class PooledEngine:
    """Makes the engine of a spec, and runs requests on it until it is closed."""

    def __init__(self, engines: Engines, spec: EngineSpec, limits: ServiceLimits) -> None:
        """ValueError or RequestError for a spec that the model cannot do."""
        self.pipe = engines.pipe
        self.rewards = engines.rewards
        self.spec = spec
        self.limits = limits
        self._open = ExitStack()
        try:
            self.engine = self._open.enter_context(engines.engine(spec))
        except ValueError as error:
            if spec.sampler.draft is None:
                raise
            with engines.engine(spec.undrafted):
                pass  # raises for what cannot be done without drafts either
            # it may name the operator's files
            logger.warning("drafts cannot be used", exc_info=error)
            raise RequestError(
                400, "drafts do not go with these settings; leave draft out", "draft"
            ) from None
        self.run = Run(self.engine)
        self.under_way: dict[PendingRequest, RunningRequest] = {}
        self._seconds = self._nfe = self._room = 0.0
        self._fitted: dict[tuple[str, Budget, int], Algorithm] = {}
        self._unchecked = spec.sampler.draft is not None and (
            bool(spec.loras) or self._has_doubts()
        )

    def _has_doubts(self) -> bool:
        """Whether drafts were not checked for this spec. The reason names the operator's files, and
        stays here."""
        denoiser = self.pipe.sampling_denoiser(self.spec.sampler, **dict(self.spec.call))
        return (
            denoiser.drafts is not None and denoiser.drafts.doubt(model_name(self.pipe)) is not None
        )

    def close(self) -> None:
        """Let the engine go; its searches have ended."""
        self._open.close()

    def warm_up(self, request: Prepared) -> None:
        """Prepare for requests like this one."""
        self._prepared(request)

    def add(self, ticket: PendingRequest) -> None:
        """Begin a search. ValueError for what model or budget do not allow, RequestError for a
        prompt that a reward cannot read."""
        request = ticket.request
        engine = self.engine
        spec = self._prepared(request)
        for name in self.spec.rewards:
            self._check(name, request.prompt)
        limits = self.limits.of_jobs if ticket.job else self.limits
        now = time.monotonic()
        ticket.seconds = limits.seconds_of(request.budget)
        allowance = task_of(spec.budget, engine, request.selection.keep).allowance
        listener = Progress(ticket, allowance, request.selection, self._safe)
        limit = ticket.seconds != request.budget.seconds
        watch = RequestClock(time.monotonic, now, now + ticket.seconds, limit=limit)
        self.under_way[ticket] = self.run.add(
            [request.prompt], spec, watch, listener, eager=ticket.partials > 0
        )

    def _safe(self, image: Tensor) -> bool:
        """Whether the model's safety checker, if any, lets an image, or the frames of a video,
        pass."""
        _, flags = judged(self.pipe, [image] if image.ndim == 3 else list(image))
        return not any(flags or ())

    def _check(self, name: str, prompt: Prompt) -> None:
        try:
            with turn_of(self.rewards[name]):
                self.rewards[name].check([prompt.read])
        except ValueError as error:
            # it quotes the prompt
            logger.warning("the reward %s cannot read a prompt: %s", name, type(error).__name__)
            said = (
                f"the reward {name} cannot score this prompt; write another one, or ask for another"
                " reward"
            )
            raise RequestError(400, said, "prompt", "invalid_value") from None

    def _prepared(self, request: Prepared) -> LoopSearch:
        """The search with as many seeds as its budget affords, found once for equal requests.

        A clock of its own ends it in time. ValueError for a search that does not fit.
        """
        engine = self.engine
        budget = self.limits.capped(request.budget, engine.grid, engine.price.start)
        budget = replace(budget, seconds=None)
        key = (request.request.label, budget, request.selection.keep)
        if key not in self._fitted:
            sized = prepared(LoopSearch(request.algorithm, budget, request.selection), engine)
            if len(self._fitted) == MOST_FITTED:
                self._fitted.clear()
            self._fitted[key] = sized.algorithm
        algorithm = Isolated(self._fitted[key], engine.grid)
        return LoopSearch(algorithm, budget, request.selection, request.seed)

    def measure(self, batch: Batch) -> None:
        """Note a batch: its time, its evaluations, and its places. The last ten or so count."""
        self._seconds = RECENT * self._seconds + batch.seconds
        self._nfe = RECENT * self._nfe + batch.nfe
        self._room = RECENT * self._room + batch.room

    @property
    def seconds_to_end(self) -> float:
        """Time until every search has an image, by measurements and with a reserve for decodes and
        rewards.

        It is that of an image each, or of their batches one after the other, whichever is more. 0
        where every search has an image, or nothing ran yet.
        """
        bare = sum(not running.jobs[0].finished for running in self.under_way.values())
        if not bare or not self._nfe or not self._room:
            return 0.0
        places = max(1, self.engine.capacity // 2)
        each = self._seconds / self._nfe
        batch = places * self._seconds / self._room
        return RESERVE * self.engine.grid.nfe * max(bare * each, -(-bare // places) * batch)

    def cancel(self, ticket: PendingRequest) -> None:
        """End a search at once, without an image."""
        self.run.cancel(self.under_way.pop(ticket))

    def stop(self) -> None:
        """End all searches with their best images, the oldest first: in a short time some end,
        instead of none."""
        for rank, running in enumerate(self.under_way.values()):
            if not running.stopping:
                self.engine.weigh(running.jobs[0].index, 0.5 ** min(rank, FIRST))
                self.run.stop(running)

    def turn(self) -> dict[PendingRequest, Done | RequestError]:
        """One batch. Returns the requests that end with it, and their answers; an answer that
        fails, fails alone."""
        self.run.turn()
        ended = [ticket for ticket, running in self.under_way.items() if running.done]
        answers: dict[PendingRequest, Done | RequestError] = {}
        for ticket in ended:
            try:
                answers[ticket] = self._finished(ticket, self.under_way.pop(ticket))
            except Exception as error:
                logger.exception("what a search found cannot be told")
                answers[ticket] = RequestError(
                    500, f"what the search found cannot be told: {type(error).__name__}"
                )
        return answers

    def _finished(self, ticket: PendingRequest, running: RunningRequest) -> Done | RequestError:
        request = ticket.request
        algorithm = running.spec.algorithm
        if isinstance(algorithm, Isolated) and algorithm.error is not None:
            why = f"{type(algorithm.error).__name__}; choose other options or another search"
            return RequestError(500, f"the search failed: {why}", "search")
        found = report(running, self.engine, RunUsage())
        reported = tuple(self.rewards[name] for name in request.request.selection.reported)
        scoring = tuple(self.rewards[name] for name in self.spec.rewards)
        here = Opened(self.engine, None, request.prompts, reported, scoring)
        # The drafter's name would tell of the operator's files, and the image is made again without
        # it.
        outcome = finished(found, request, here, self.pipe, discreet=True)
        (result,) = outcome.results
        if not result.images:
            if self.run.lost or not request.selection.gated:
                return (
                    devices_fail() if self.run.lost else RequestError(500, "no image was finished")
                )
            said = [notice.sentence for notice in notices(running.jobs[0], self.engine, ())]
            return RequestError(422, "; ".join(said), "require", "requirement_not_met")
        ticket.nfe = result.spent.nfe
        warnings = [*ticket.notes, *taken_as(request, result), *[UNCHECKED] * self._unchecked]
        warnings += [
            notice.sentence for notice in notices(running.jobs[0], self.engine, result.images)
        ]
        if flagged := sum(outcome.flags or ()):
            warnings.append(
                f"the model's safety checker replaced {flagged} of {len(result.images)} images"
            )
        for warning in result.warnings[len(found[0].warnings) :]:
            logger.warning("%s", warning, extra=private(request.prompt))
        for name in request.request.selection.reported:
            if not all(math.isfinite(candidate.metrics[name]) for candidate in result.images):
                warnings.append(f"the reported reward {name} did not score every image")
        return Done(result, outcome.record, tuple(warnings))
