"""What commands share: prompts, rewards, the model, results."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttsnap.cli import arguments
from ttsnap.cli.loading import load_libraries, load_torch, loading
from ttsnap.cli.parser import Arguments
from ttsnap.core.names import unknown
from ttsnap.core.requirement import Requirement
from ttsnap.files.hub import require_repository
from ttsnap.files.settings import Port
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


def check_names(given: Arguments) -> None:
    """ValueError for a model, a task or a reward that surely is none, of any command; nothing is
    loaded for it."""
    from ttsnap.pipelines import located

    if "task" in given:
        arguments.read(ModelOptions, given)
    if given.get("model") is not None:
        located(given.model)
    for name in ("reward", "report", "base"):
        check_rewards(given.get(name) or None)
    for name in ("require", "until"):
        check_rewards([Requirement.parse(text).reward for text in listed(given.get(name))])
    check_rewards([named(text)[1] for text in given.get("rewards", [])])
    known = (*LIKENESSES, *REWARDS)
    likeness = given.get("likeness")
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
