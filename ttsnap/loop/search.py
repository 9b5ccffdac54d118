"""THE loop: many prompts at once, ask the algorithm, price, charge, submit, collect, keep the best.

Every search, live or replayed, with any algorithm, runs through `search`. It is the only place that
charges. Three promises: no budget is exceeded; every search that starts returns an image, unless it
must meet a requirement (the cost of finishing one is held back until one is finished); what a
prompt gets does not depend on the other prompts or on the batch size, unless they share a budget.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np

from ttsnap.algorithms import name_of
from ttsnap.core.cost import Cost
from ttsnap.core.names import FieldError
from ttsnap.core.needs import Gradient, missing
from ttsnap.core.plans import image_cost
from ttsnap.core.prompt import Prompt
from ttsnap.core.protocols import Algorithm, Engine, RunUsage, Widening
from ttsnap.core.results import Event, Result
from ttsnap.core.selection import BEST, Selection
from ttsnap.loop.budget import Budget, task_of, tightest
from ttsnap.loop.clock import Pace, PlannedMove, RequestClock, work_of
from ttsnap.loop.dry import DryEngine
from ttsnap.loop.report import report
from ttsnap.loop.request import STOPPED, Listener, LoopSearch
from ttsnap.loop.run import Run

Costs = Callable[[int, Budget], Cost]
"""What a search with n seeds costs that plans by this budget."""


def search(
    prompts: Sequence[str | Prompt],
    algorithm: Algorithm,
    engine: Engine,
    budget: Budget | str | None = None,
    *,
    selection: Selection = BEST,
    seed: int = 0,
    shared: bool = False,
    on_event: Listener | None = None,
    should_stop: Callable[[], bool] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> list[Result]:
    """Run `algorithm` for every prompt on `engine` within `budget`; one Result per prompt, in
    order.

    budget: caps per prompt; with `shared` the prompts draw on one pot of that many times the number
        of prompts. A cap in seconds is for all prompts together (seconds times prompts): the engine
        is theirs in common.
    selection: what counts as best, and how many images come back, as Selection(keep=4). With a
        gate, as Selection(gate=Gate.of(["ocr>0.99"], engine.reward_names)), images must meet what
        it requires. Where the algorithm ends and none has met it, the loop makes more, one by one,
        until one does or the budget is used up; there may be none in the end.
    seed: candidate i of a prompt starts from the noise of torch seed `seed + i`; seeds are those of
        torch, from 0 to 2^64 - 1, and 0 comes after the last.
    on_event: called with every Event.
    should_stop: called once per batch. When it says True, running prompts end with their best
        finished image; one is finished first if there is none. Prompts not yet taken up come back
        without images.

    ValueError, before any compute, where the budget cannot pay for one image, the algorithm does
    not fit the grid, or the engine cannot do what the algorithm needs. RuntimeError for an
    algorithm that keeps making moves which cost nothing. rewards.RewardError (a RuntimeError) where
    a reward fails on all of the first images. A MemoryError, as core.memory.NotEnoughMemoryError,
    where one row does not fit; a search with an image by then ends with what it has.
    """
    spec = LoopSearch(algorithm, Budget.parse(budget), selection, seed, shared)
    return searched(
        prompts, spec, engine, [] if on_event is None else [on_event], should_stop, clock
    )


def searched(
    prompts: Sequence[str | Prompt],
    spec: LoopSearch,
    engine: Engine,
    listeners: Sequence[Listener] = (),
    should_stop: Callable[[], bool] | None = None,
    clock: Callable[[], float] = time.monotonic,
    *,
    eager: bool = False,
) -> list[Result]:
    """`search`, by a specification. Prompts are read and the number of seeds is fitted here.

    eager: whether some seeds are scored before the others begin, for whoever waits for pictures.
    """
    began = clock()
    if not prompts:
        raise ValueError("no prompts: give at least one")
    spec = prepared(spec, engine)
    run = Run(engine)
    seconds = np.inf if spec.budget.seconds is None else spec.budget.seconds * len(prompts)
    watch = RequestClock(clock, began, began + seconds)
    read = [Prompt.of(prompt) for prompt in prompts]
    request = run.add(read, spec, watch, *listeners, eager=eager)
    with engine.meter() as meter:
        watch.start(seconds)
        while run.busy:
            run.turn()
            if should_stop is not None and request.ended != STOPPED and should_stop():
                run.stop(request)
    return report(request, engine, meter.summary() if meter is not None else RunUsage())


def prepared(spec: LoopSearch, engine: Engine) -> LoopSearch:
    """The same search, checked, with its budget in evaluations and as many seeds as that affords;
    its engine is ready for it. ValueError as of `check_spec`."""
    budget = spec.budget.on(engine.grid, engine.price.start)
    spec = dataclasses.replace(spec, budget=budget)
    check_spec(spec, engine)
    sized = dataclasses.replace(
        spec, algorithm=fit(spec.algorithm, engine, spec.budget, spec.selection.keep)
    )
    if (
        sized.algorithm is spec.algorithm
        or spec.budget.seconds is None
        or engine.price.seconds is None
    ):
        return sized
    while True:
        plan = dry_moves(sized, engine)
        over = _seconds(plan, engine) / spec.budget.seconds
        n = sized.algorithm.n or 1
        if over <= 1 or n == 1:
            return dataclasses.replace(sized, plan=plan)
        fewer: Algorithm = dataclasses.replace(sized.algorithm, n=min(n - 1, int(n / over)))  # type: ignore[type-var]
        sized = dataclasses.replace(sized, algorithm=fewer)


def foreseen(spec: LoopSearch, engine: Engine) -> tuple[Cost, float | None]:
    """What the search of a prompt takes by its plan, with random scores; and seconds, where the
    engine measured its price in them. spec: prepared."""
    (result,) = search([""], spec.algorithm, _dry(engine), spec.budget, selection=_counted(spec))
    cost = result.spent.cost
    return cost, None if engine.price.seconds is None else _seconds(dry_moves(spec, engine), engine)


def _seconds(plan: Sequence[PlannedMove], engine: Engine) -> float:
    """Of a plan, by an engine that measured its price in them."""
    assert engine.price.seconds is not None
    rates = Pace(engine, engine.price.seconds, RequestClock(float, 0.0))
    return sum(rates.seconds(move.work) for move in plan)


def dry_moves(spec: LoopSearch, engine: Engine) -> tuple[PlannedMove, ...]:
    """The moves that a prompt's search makes with random scores."""
    calls = engine.grid.calls
    end = engine.grid.steps
    moves: list[PlannedMove] = []

    def listen(event: Event) -> None:
        if (move := event.move) is not None:
            stop = np.array(move["stop"])
            work = work_of(
                Cost(**move["cost"]),
                (calls[stop] - calls[move["start"]] + (stop < end)).max(),
                engine,
            )
            earlier = (
                moves.pop() if len(moves) > request.jobs[0].moves else PlannedMove(0 * work, 0)
            )
            moves.append(PlannedMove(earlier.work + work, earlier.rows + len(stop)))

    dry = _dry(engine)
    dry.capacity = engine.capacity
    run = Run(dry)
    nothing = PlannedMove(np.zeros(0), 0)  # by which moves are begun in parts, as they will be
    bare = LoopSearch(spec.algorithm, spec.budget, _counted(spec), plan=(nothing,))
    request = run.add([Prompt("")], bare, RequestClock(float, 0.0), listen)
    while run.busy:
        run.turn()
    return tuple(moves)


def _counted(spec: LoopSearch) -> Selection:
    """As many images as it returns, of random scores."""
    return Selection(keep=spec.selection.keep)


def _dry(engine: Engine) -> DryEngine:
    return DryEngine(
        engine.grid, engine.reward_names, price=engine.price, draft_calls=engine.draft_calls
    )


def check_spec(spec: LoopSearch, engine: Engine) -> None:
    """Get the engine ready for a search, as far as its number of seeds does not matter.

    ValueError where the algorithm needs what the engine cannot do, or does not fit the grid; where
    the budget is too small for an image.
    """
    algorithm = spec.algorithm
    budget = spec.budget
    grid = engine.grid
    if lacks := {"n", "needs", "lockstep", "init", "step"} - set(dir(algorithm)):
        raise ValueError(
            f"{type(algorithm).__name__} is no algorithm: it has no {', '.join(sorted(lacks))}; see"
            ' the how-to "Write an algorithm"'
        )
    if why := missing(algorithm.needs, engine.offers):
        raise ValueError(f"{name_of(algorithm)} {why}")
    if spec.selection.differing and not engine.price.features:
        raise ValueError(
            "images that differ are to be kept, and this engine takes no features by which to"
            " compare them; have a live engine take some, as EngineOptions(features='pixels')"
        )
    for need in algorithm.needs:
        if isinstance(need, Gradient):
            engine.differentiate(need)
    task = task_of(budget, engine, spec.selection.keep, spec.shared)
    untimed = budget.seconds is not None and engine.price.seconds is None
    if untimed:
        # What that affords is measured below; until then, any amount will do to see whether the
        # algorithm fits.
        task = dataclasses.replace(task, allowance=min(task.allowance, 100.0 * grid.nfe))
    algorithm.init(task)
    check_budget(budget, engine)
    if untimed:
        engine.calibrate()
        check_budget(budget, engine)


def check_budget(budget: Budget, engine: Engine) -> None:
    """FieldError when `budget` does not pay for one finished image."""
    one = image_cost(engine.grid, len(engine.reward_names), engine.price)
    short = budget.shortfall(one, engine.price, seconds=True)
    if short:
        size = engine.price.start.size
        group = ""
        less = f"lower the number of steps ({engine.grid.steps})"
        if size > 1:
            group = f" with the group of {size} seeds in which it begins"
            less = f"take smaller groups, as variety repel:{size // 2}"
        raise FieldError(
            "budget",
            f"budget {budget} is too small for one image{group}, which takes {short}; raise the"
            f" budget or {less}",
        )


def dry_costs(algorithm: Algorithm, engine: Engine, keep: int = 1) -> Costs:
    """What a search with n seeds costs that plans by a budget and is not held to it, with random
    scores.

    A plan counts what it takes in the tightest cap: drafts, for one, leave more seeds the dearer
    decodes are. Budgets whose tightest caps are of one kind share the runs, one for each n."""

    @cache
    def run(n: int, unheld: Budget) -> Cost:
        dry = _dry(engine)
        sized = dataclasses.replace(algorithm, n=n)  # type: ignore[type-var]
        spent: Cost = search([""], sized, dry, unheld, selection=Selection(keep=keep))[0].spent.cost
        return spent

    return lambda n, budget: run(n, tightest(budget, engine).unheld)


def fit(
    algorithm: Algorithm,
    engine: Engine,
    budget: Budget,
    keep: int = 1,
    most: int = 4096,
    costs: Costs | None = None,
) -> Algorithm:
    """The algorithm with as many seeds as `budget` affords, `most` at most, by dry runs; unchanged
    if its n is set.

    Where there is a drafter, and one seed more would bring a further survivor, which is too dear, a
    `Widening` algorithm gets further seeds without.
    costs: `dry_costs` of this algorithm on this engine, where it is fitted to several budgets,
    which share the runs. Raises ValueError when the budget has no cap, as there is then nothing to
    fit to.
    """
    if algorithm.n is not None:
        return algorithm
    if budget == Budget():
        raise ValueError(
            f"{name_of(algorithm)} has no number of seeds and there is no budget; give a budget, as"
            " 20images, an effort (low, medium, high), or its n"
        )
    costs = costs or dry_costs(algorithm, engine, keep)

    def affords(n: int) -> bool:
        return budget.shortfall(costs(n, budget), engine.price, seconds=True) is None

    def share(n: int) -> float:
        return budget.share(costs(n, budget), engine.price, seconds=True)

    low = _most(affords, share, most, even=algorithm.lockstep)
    sized: Algorithm = dataclasses.replace(algorithm, n=low)  # type: ignore[type-var]
    # without drafts no look is cheap enough to fill the rest
    if engine.draft_calls and isinstance(sized, Widening):
        return _widened(sized, engine, budget, keep, most - low)
    return sized


def _most(
    affords: Callable[[int], bool], share: Callable[[int], float], most: int, *, even: bool
) -> int:
    """The most seeds that a budget affords, of 1 to `most`, in few trials.

    share: of the budget, that so many seeds take; even: whether it rises evenly with them."""
    low = 1
    high = 2
    while high <= most and affords(high):
        low = high
        high = 2 * high
        each = share(2) - share(1)
        if low == 4 and each > 0 and math.isclose(share(4) - share(2), 2 * each):
            evenly = min(int(1 + (1 - share(1)) / each + 1e-9), most)
            if evenly > low and affords(evenly):
                # most likely the last that fits, and the first that does not
                low = evenly
                high = evenly + 1
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        if even and high <= most:  # what scores do not change rises evenly with n
            part = share(low)
            guess = int(low + (high - low) * (1 - part) / (share(high) - part))
            middle = min(max(guess, low + 1), high - 1)
        low, high = (middle, high) if affords(middle) else (low, middle)
    return low


def _widened(sized: Widening, engine: Engine, budget: Budget, keep: int, most: int) -> Algorithm:
    """With as many further seeds, `most` at most, as what the fitted number leaves of the budget
    pays for."""

    def share(more: int) -> float:
        wide = sized.widened(more)
        assert wide.n is not None
        return budget.share(
            dry_costs(wide, engine, keep)(wide.n, budget), engine.price, seconds=True
        )

    if most < 1 or (one := share(1)) > 1 or (each := one - share(0)) <= 0:
        return sized
    more = min(int(1 + (1 - one) / each + 1e-9), most)
    while more > 1 and share(more) > 1 + 1e-12:  # where another cap becomes the tightest
        more -= 1
    return sized.widened(more)
