"""`ttsnap serve`: generation as a service, by OpenAI's images API."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

from ttsnap.cli import arguments, common
from ttsnap.cli.common import load_torch, loading
from ttsnap.cli.parser import Arguments, Parser
from ttsnap.extras import install
from ttsnap.options.engine import DeviceOptions
from ttsnap.options.model import TEXT, ModelOptions
from ttsnap.options.option import option
from ttsnap.options.sampler import AUTO
from ttsnap.service.limits import ServiceLimits

if TYPE_CHECKING:  # these rooms are loaded once the arguments are checked
    from ttsnap.request.offer import ServingCatalog
    from ttsnap.service.engines import Engines
    from ttsnap.service.job_store import JobStore
    from ttsnap.service.limits import Keys
    from ttsnap.service.server import GenerationServer

VIDEOS = "serving videos, as .mp4 where clients say nothing,"
DESCRIPTION = """Serve image generation over HTTP: every request is a search.

The official openai client works unchanged. n is how many images of the search are kept, quality its effort, usage what
it spent; search, reward, budget, seed, steps and others are our fields (docs/reference/http.md). Requests of all
callers share the model's batches, and a large one does not keep small ones waiting. Clients choose among the rewards
that are named here, the first being preset; they name no file and no address. With --devices, the candidates of every
request are spread over several devices, which have a model each.

Without --keys anybody who reaches the address may ask: leave --host at 127.0.0.1 then. The environment variable
TTSNAP_API_KEY is another way to set one key. SIGTERM and Ctrl-C let searches under way end first.

examples:
  ttsnap serve embedded
  ttsnap serve stabilityai/stable-diffusion-3.5-medium --devices all \\
      --rewards imagereward pickscore --keys keys.txt --host 0.0.0.0
"""


@dataclass(frozen=True)
class ServeOptions:
    """What a service offers, who may ask, and what it keeps."""

    rewards: tuple[str, ...] = option(
        (),
        "what clients choose from: names, file.py:function, http://HOST:PORT; NAME=REWARD offers one"
        " by another name (default: scenes for the embedded model)",
        metavar="REWARD",
        common=True,
    )
    searches: tuple[str, ...] = option(
        (),
        "searches of your own, by the names that clients use: .json files, as of ttsnap tune",
        metavar="NAME=FILE",
    )
    draft: str = option(
        AUTO,
        "the drafter that requests may use, as ttsnap generate --draft takes it: auto (the model's"
        " own, by which requests are searched where it is known to help), none, or another, for"
        " those that say draft: true",
        common=True,
    )
    loras: str | None = option(
        None,
        "LoRAs that clients choose from: NAME.safetensors, or a folder NAME with such a file; read"
        " once",
        metavar="FOLDER",
    )
    name: tuple[str, ...] = option(
        (),
        "what clients call the model (default: the last part of its name), and further names, as"
        " gpt-image-1",
    )
    keys: str | None = option(
        None, "API keys, one caller a line: NAME KEY", metavar="FILE", common=True
    )
    state: str | None = option(
        None,
        "where jobs and what they made are kept",
        unset="ttsnap/serve-PORT in $XDG_STATE_HOME or ~/.local/state; with --port 0 a temporary"
        " folder",
        metavar="FOLDER",
        common=True,
    )
    database: str | None = option(
        None,
        "where the rows of jobs are kept, as SQLAlchemy takes it: postgresql+psycopg://HOST/NAME",
        unset="a file of SQLite in --state",
        metavar="URL",
    )
    open_docs: bool = option(False, "let /docs and /openapi.json be read without a key")
    no_access_log: bool = option(False, "write no line to stderr for each request")
    log_format: Literal["text", "json"] = option(
        "text",
        "lines on stderr: text, or an object of JSON each; requests are told without their prompts",
    )


def parser() -> Parser:
    """The command's arguments."""
    p = Parser(DESCRIPTION)
    p.add_argument("model", type=str, help="embedded, a diffusers folder, or a hub id")
    arguments.add_options(p, common.ListenOptions)
    arguments.add_options(p, ServeOptions)
    arguments.add_options(p, ServiceLimits)
    arguments.add_options(p, ModelOptions, without=("model", "offload"))
    arguments.add_options(p, DeviceOptions)
    return p


def run(a: Arguments) -> int:
    """Serve until SIGTERM or Ctrl-C."""
    with parts_of(a) as parts:
        from ttsnap.service.monitoring import log_to_stderr
        from ttsnap.service.server import GenerationServer

        with common.listening(a), loading("the service"):
            server = GenerationServer(address=(a.host, a.port), **parts)
        log_to_stderr(requests=not a.no_access_log, lines=a.log_format)
        _serve(server, parts["offer"], parts["keys"])
    print("stopped")
    return 0


@contextmanager
def parts_of(a: Arguments) -> Iterator[dict[str, Any]]:
    """What a service is made of, by the arguments of `Service`."""
    load_torch()
    try:
        from ttsnap.service.limits import Keys
        from ttsnap.service.server import bound_kernels, offer_of, offered, traces_of_environment
    except ImportError as error:
        raise ValueError(
            f"the service needs fastapi and others ({error}): {install('service')}"
        ) from None
    from ttsnap.pipelines import makes_videos
    from ttsnap.request.limits import searches_of
    from ttsnap.results.media import require_av

    bound_kernels()
    limits = arguments.read(ServiceLimits, a)
    traces = traces_of_environment()
    keys = replace(Keys.chosen(a.keys), open_docs=a.open_docs)
    devices = arguments.read(DeviceOptions, a)
    specs = offered(list(a.rewards), a.model)
    searches = searches_of(list(a.searches))
    if makes_videos(a.model):
        require_av(VIDEOS)
    with store_of(a, limits) as store, engines(a, devices, specs) as pool:
        name = next(iter(a.name), None)
        edits = a.task != TEXT
        offer = offer_of(a.model, pool, name, searches, a.draft, aliases=a.name[1:], edits=edits)
        if offer.frames_every is not None:  # also of a hub id
            require_av(VIDEOS)
        yield {
            "engines": pool,
            "offer": offer,
            "limits": limits,
            "keys": keys,
            "store": store,
            "traces": traces,
        }


def _serve(server: GenerationServer, offer: ServingCatalog, keys: Keys) -> None:
    """Until SIGTERM or Ctrl-C."""
    known = (
        f"{len(keys.callers)} API keys"
        if keys.callers
        else "no API keys: anybody who reaches it may ask"
    )
    print(f"serving {offer.model} at {server.url}/v1, {known} (Ctrl-C ends)", flush=True)
    # uvicorn handles it, and raises it again at its end
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        server.run()
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def store_of(a: Arguments, limits: ServiceLimits) -> Iterator[JobStore]:
    """The store of jobs; of a folder that goes with the server where no port is chosen. ValueError
    where the folder cannot be written."""
    from ttsnap.service.job_store import JobStore

    home = Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser()
    with ExitStack() as stack:
        if a.state or a.port:
            where = Path(a.state).expanduser() if a.state else home / "ttsnap" / f"serve-{a.port}"
        else:
            where = Path(stack.enter_context(TemporaryDirectory(prefix="ttsnap-")))
        try:
            store = JobStore(where, limits, a.database)
        except OSError as error:
            raise ValueError(
                f"{where} cannot be written, by this user alone: {error}; choose a folder by"
                " --state"
            ) from None
        yield stack.enter_context(closing(store))


@contextmanager
def engines(a: Arguments, devices: DeviceOptions, specs: Mapping[str, str]) -> Iterator[Engines]:
    """Engines on the device of this process or on several. specs: of the rewards, by the names of
    clients."""
    from ttsnap.cluster.devices import alone, hosts
    from ttsnap.pipelines.opening import prepare, settled
    from ttsnap.service.engines import ManyDevices, OneDevice, loras_in

    place, _ = common.opening().placement(a.device, a.dtype)
    spread = not alone(devices, place.type)
    # Where other processes search, the devices are theirs.
    device = "cpu" if spread else a.device
    where, dtype = common.opening().reward_placement(device, "auto" if spread else a.dtype)
    model = arguments.read(ModelOptions, a)
    rewards = {
        name: common.load_rewards(s, device=where, dtype=dtype)[0] for name, s in specs.items()
    }
    pipe = common.load_model(a.model, device, a.dtype, loras=model.loras, task=a.task)
    prepare(pipe, model)
    offered = () if a.loras is None else loras_in(Path(a.loras).expanduser())
    here = OneDevice(pipe, rewards, offered)
    if not spread:
        yield here
        return
    model = settled(arguments.read(ModelOptions, a), place.type)
    with hosts(devices, place.type) as there:
        from ttsnap.cluster.ray_pool import RayPool

        yield ManyDevices(here, model, specs, lambda make: RayPool.of_engines(make, there))
