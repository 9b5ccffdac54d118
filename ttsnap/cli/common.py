"""What commands share: what they say and hear while they run, the model, rewards, servers."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttsnap.cli import arguments
from ttsnap.cli.parser import Arguments
from ttsnap.core.names import unknown
from ttsnap.core.requirement import Requirement
from ttsnap.files.hub import require_repository
from ttsnap.files.settings import Port
from ttsnap.files.unbroken import Unbroken
from ttsnap.options.engine import DeviceOptions
from ttsnap.options.model import EMBEDDED, PACKAGED, TEXT, ModelOptions
from ttsnap.options.option import option
from ttsnap.options.sampler import NOISE
from ttsnap.options.selection import listed
from ttsnap.request.request import ModelDefaults, Prepared, SearchRequest, prepare
from ttsnap.reward_models.registry import LIKENESSES, REWARDS, named
from ttsnap.reward_models.registry import check_names as check_rewards

if TYPE_CHECKING:
    from ttsnap.pipelines.run import LoadedRewards


class Clock:
    """Seconds since a command began, and how many of them went into loading."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Set both to zero."""
        self._begin = time.monotonic()
        self.loading = 0.0

    @property
    def total(self) -> float:
        """Seconds so far."""
        return time.monotonic() - self._begin

    def __str__(self) -> str:
        return f"{self.total:.1f} s in all, {self.loading:.1f} s of them loading"


CLOCK = Clock()
"""The clock of the running command."""


def speaks() -> bool:
    """Whether this process prints: of those that `accelerate launch` starts, one does."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


@contextmanager
def loading(what: str, *, bars: bool = False) -> Iterator[None]:
    """Print on stderr what is being loaded, and at the end how long it took.

    bars: whether progress bars may be drawn meanwhile, which need lines of their own.
    """
    if speaks():
        print(f"loading {what} ...", end="\n" if bars else "", flush=True, file=sys.stderr)
    begin = time.monotonic()
    try:
        yield
    finally:
        seconds = time.monotonic() - begin
        CLOCK.loading += seconds
        if speaks():
            print(
                f"loaded in {seconds:.1f} s" if bars else f" {seconds:.1f} s",
                flush=True,
                file=sys.stderr,
            )


def load_torch() -> None:
    """Import torch."""
    if "torch" not in sys.modules:
        with loading("torch"):
            import torch  # noqa: F401


def load_libraries() -> None:
    """Import torch and the libraries of pipelines."""
    load_torch()
    if "ttsnap.pipelines.mixin" not in sys.modules:
        from ttsnap.pipelines.quiet import quiet

        # whose advice is to install torchvision: no search needs it
        with loading("diffusers"), quiet("transformers"):
            import ttsnap.pipelines.mixin  # noqa: F401


Handler = Callable[[int, Any], Any] | int | signal.Handlers | None


class Interrupted(KeyboardInterrupt):
    """By a signal of this number; the message says what is safe."""

    def __init__(self, number: int, said: str = "") -> None:
        super().__init__(said)
        self.number = number


@contextmanager
def left_by_signals() -> Iterator[None]:
    """SIGTERM unwinds the block as Ctrl-C does, so that nothing is left behind; the exit status is
    then 143.

    Ctrl-C is heard where it was ignored, too, as it is in the background of a script."""

    def leave(number: int, _: object) -> None:
        raise Interrupted(number)

    before = {number: _handle(number, leave) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            _handle(number, handler)


@contextmanager
def resumable(out: Path, safe: Callable[[], str] = lambda: "what is done is") -> Iterator[None]:
    """Work whose parts are kept in a folder, or in a file, so that the same command resumes it.

    safe: says what is safe there, for the message after a signal. ValueError where it cannot be
        written to."""
    again = "run the same command again to resume"
    try:
        with left_by_signals():
            yield
    except KeyboardInterrupt as error:
        number = error.number if isinstance(error, Interrupted) else signal.SIGINT
        # of a part of the work, which has said more
        if isinstance(error, Interrupted) and str(error):
            raise
        raise Interrupted(number, f"interrupted; {safe()} safe in {out}; {again}") from None
    except OSError as error:
        mend = "Free some space or mend what is wrong"
        raise ValueError(
            f"cannot write to {out}: {error}; what was there is safe. {mend}, then {again}"
        ) from error


class StopOnSignal(Unbroken):
    """Called, whether a SIGINT or SIGTERM has come, at which the search ends with its best finished
    image."""

    then = "the best finished image will be written"

    def __exit__(self, *_: object) -> None:
        self._restore()


def _handle(number: int, handler: Handler) -> Handler:
    """Set a handler and return the one before; no effect outside the main thread, which alone gets
    signals."""
    if threading.current_thread() is not threading.main_thread() or handler is None:
        return None
    return signal.signal(number, handler)


def load_rewards(spec: Any, **where: Any) -> Any:
    """The rewards of --reward, on a device and in a dtype. ValueError for unknown ones."""
    from ttsnap.reward_models.registry import make_rewards, refuse_credentials, without_queries

    names = [spec] if isinstance(spec, str) else list(spec)
    refuse_credentials(spec)
    if where.get("device") is not None:
        opening().check_here(where["device"])
    with loading(f"the reward{'s' * (len(names) > 1)} {', '.join(map(without_queries, names))}"):
        return make_rewards(spec, **where)


def prepared(request: SearchRequest) -> Prepared:
    """The search with what the model's folder recommends, by which it can be refused before the
    model is loaded; its drafter is decided on then. ValueError where neither names a reward, and
    for sizes that do not fit."""
    from ttsnap.pipelines import located, recommended
    from ttsnap.pipelines.sides import check_call_sides

    defaults = recommended(request.model)
    if not request.engine.rewards and defaults.reward is None:
        require_repository(request.model)  # a misspelt id is what is wrong, before the reward
    search = prepare(request, defaults)
    check_call_sides(located(request.model) or Path(), search.engine.call)
    return search


def check_names(typed: Arguments) -> None:
    """ValueError for a model, a task or a reward that surely is none, of any command; nothing is
    loaded for it."""
    from ttsnap.pipelines import located

    if "task" in typed:
        arguments.read(ModelOptions, typed)
    if typed.get("model") is not None:
        located(typed.model)
    for name in ("reward", "report", "base"):
        check_rewards(typed.get(name) or None)
    for name in ("require", "until"):
        check_rewards([Requirement.parse(text).reward for text in listed(typed.get(name))])
    check_rewards([named(text)[1] for text in typed.get("rewards", [])])
    known = (*LIKENESSES, *REWARDS)
    likeness = typed.get("likeness")
    if likeness is not None and likeness.partition(":")[0] not in known:
        raise ValueError(unknown("likeness", likeness, known))


def check_affordable(search: Prepared) -> None:
    """ValueError for a budget that cannot pay for an image, as far as that is known without the
    model: where the call says how many steps an image takes. An image takes an evaluation a step or
    more, unless drafts may be finished."""
    from ttsnap.pipelines import recommended

    call = search.engine.call
    sampler = search.engine.sampler
    budget = search.budget
    steps = call.get("num_inference_steps")
    own = recommended(search.request.model) if sampler.left_open else ModelDefaults()
    own_drafts = own.draft is not None and own.call.get("num_inference_steps") == steps
    drafted = own_drafts if sampler.left_open else sampler.draft is not None
    if budget.images is not None and budget.images < 1:
        raise ValueError(f"budget {budget} is too small for one image; give 1images or more")
    fewer = {"image", "sigmas", "timesteps", "denoising_start", "denoising_end"} & set(call)
    fewer |= {"draft"} if drafted and sampler.finish != NOISE else set()
    if isinstance(steps, int) and budget.nfe is not None and budget.nfe < steps and not fewer:
        raise ValueError(
            f"budget {budget} is too small for one image, which takes {steps} NFE at {steps} steps;"
            " raise the budget or lower --steps"
        )


# --- the model ------------------------------------------------------------------------------------


def load_model(
    model: str,
    device: str,
    dtype: str,
    offload: str = "none",
    loras: Sequence[str] = (),
    task: str | None = None,
) -> Any:
    """The search pipeline on its device. task: as in ttsnap.pipelines.load. ValueError for an
    unknown model, device or dtype, a bad --lora, or a task that the model is not for."""
    place, kind = opening().placement(device, dtype)
    opening().check_here(place)
    if offload != "none" and place.type == "cpu":
        raise ValueError(
            f"--offload {offload} moves parts between a GPU and RAM, but the device is {place}"
        )
    load_libraries()
    name = "the embedded model" if model == EMBEDDED else model
    with loading(name, bars=model not in PACKAGED):
        pipe = opening().loaded(model, kind, loras, task)
    pipe.model_options = ModelOptions(model, next(iter(loras), None), task or TEXT, device, dtype)
    placed = opening().placed(pipe, place, offload)
    if offload == "model":
        print(opening().moves(placed), file=sys.stderr)
    return placed


def loaded(
    search: Prepared,
    devices: DeviceOptions,
    *more: str,
    check: Callable[[Any], object] = lambda rewards: None,
) -> tuple[Any, LoadedRewards]:
    """The pipeline of a search, and its rewards with some more. Where other processes search, they
    load what they need themselves, and this one keeps off the devices.

    check: called with the rewards, which load faster than a model; it raises where they do not
    fit."""
    model = search.engine.model
    place, _ = opening().placement(model.device, model.dtype)
    from ttsnap.pipelines.opening import check_call, prepare
    from ttsnap.pipelines.run import LoadedRewards

    here = devices == DeviceOptions()
    if not here:
        from ttsnap.cluster.devices import alone

        here = alone(devices, place.type)
    names = (*search.engine.rewards, *more)
    rewards = load_rewards(names, device=place) if here else None
    check(rewards)
    reported = search.request.selection.reported
    report = load_rewards(reported, device=place) if reported else ()
    device, offload = (model.device, model.offload) if here else ("cpu", "none")
    pipe = load_model(model.model, device, model.dtype, offload, model.loras, model.task)
    check_call(pipe, search.engine.call, model.task)
    prepare(pipe, model)
    return pipe, LoadedRewards(rewards, report)


def opening() -> Any:
    """ttsnap.pipelines.opening. That torch is loaded for it is announced."""
    load_torch()
    from ttsnap.pipelines import opening

    return opening


@dataclass(frozen=True)
class ListenOptions:
    """Where a server listens."""

    host: str = option(
        "127.0.0.1", "address to listen on; 0.0.0.0 for all", metavar="HOST", common=True
    )
    port: Port = option(8000, "port to listen on; 0 for any free one", common=True)


@contextmanager
def listening(a: Arguments) -> Iterator[None]:
    """ValueError where a server cannot listen on --host and --port."""
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"cannot listen on {a.host}:{a.port}: {error}; choose another --host or --port"
        ) from None
