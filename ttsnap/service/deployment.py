"""The service in replicas, as an application of Ray Serve:

    serve run ttsnap.service.deployment:app model=embedded max_replicas=4

Each replica has a device, and is what `ttsnap serve` is in one process. Serve's proxy hands
requests to replicas that have few; Serve starts more of them while many requests come in, and those
again that fail their health check.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from fastapi import FastAPI
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig

from ttsnap.files.plain_yaml import read_text
from ttsnap.files.settings import Count, Positive, Settings, build, hints_of
from ttsnap.options.model import ModelOptions
from ttsnap.options.sampler import AUTO
from ttsnap.pipelines.opening import opened, placement, reward_placement
from ttsnap.request.allowlist import searches_of
from ttsnap.reward_models.registry import make_rewards
from ttsnap.service.app import make_app
from ttsnap.service.engines import OneDevice
from ttsnap.service.keys import Keys
from ttsnap.service.limits import ServiceLimits
from ttsnap.service.monitoring import Metrics, log_to_stderr
from ttsnap.service.opening import bound_kernels, offer_of, offered, traces_of_environment
from ttsnap.service.requests import plain
from ttsnap.service.tickets import RequestParser
from ttsnap.service.worker import Worker


@dataclass(frozen=True)
class ReplicaSettings(Settings):
    """What the operator says, as NAME=VALUE after `serve run`, or under `args` in a file for `serve
    deploy`."""

    model: str = "embedded"
    """embedded, a diffusers folder, or a hub id."""
    rewards: str = ""
    """Names that clients choose from, separated by spaces, as --rewards of `ttsnap serve`."""
    searches: str = ""
    """NAME=FILE.json, separated by spaces, as --searches of `ttsnap serve`."""
    draft: str = AUTO
    """The drafter that requests may use, as --draft of `ttsnap serve`."""
    loras: str | None = None
    """The folder of LoRAs, on each machine, as --loras of `ttsnap serve`."""
    name: str | None = None
    """The name of the model for clients."""
    aliases: str = ""
    """Further names, separated by spaces."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """A GPU for each replica, or a core of the CPU."""
    dtype: str = "auto"
    lora: str | None = None
    keys: str | None = None
    """The file of API keys, where this is started."""
    open_docs: bool = False
    """Whether /docs and /openapi.json can be read without a key."""
    min_replicas: Count = 1
    max_replicas: Count = 1
    busy: Positive = 8.0
    """Requests under way in each replica, beyond which another one is started."""
    limits: ServiceLimits = field(default_factory=ServiceLimits)

    @classmethod
    def of(cls, args: Mapping[str, object]) -> ReplicaSettings:
        """From values as text or parsed. ValueError for unknown names, and for values that do not
        fit."""
        hints = hints_of(cls)
        texts = {
            name: value for name, value in args.items() if isinstance(value, str) and name in hints
        }
        return build(
            cls,
            {**args, **{name: read_text(name, text, hints[name]) for name, text in texts.items()}},
        )


class Replica:
    """One device. It loads the model, and searches in a thread of its own."""

    def __init__(self, settings: ReplicaSettings, keys: Keys) -> None:
        bound_kernels()
        log_to_stderr()
        specs = offered(settings.rewards.split(), settings.model)
        device, dtype = reward_placement(settings.device, settings.dtype)
        pipe = opened(
            ModelOptions(
                settings.model, settings.lora, device=settings.device, dtype=settings.dtype
            )
        )
        rewards = {
            name: make_rewards(spec, device=device, dtype=dtype)[0] for name, spec in specs.items()
        }
        engines, searches = (
            OneDevice(pipe, rewards, settings.limits.lora_mib),
            searches_of(settings.searches.split()),
        )
        offer = offer_of(
            settings.model,
            engines,
            settings.name,
            searches,
            settings.draft,
            aliases=settings.aliases.split(),
            loras=settings.loras,
        )
        traces = traces_of_environment()
        self._worker = Worker(
            engines, settings.limits, Metrics(), plain(offer, settings.limits), traces
        )
        self._worker.start()
        self._app = make_app(self._worker, RequestParser(offer, settings.limits), keys)
        if traces is not None:
            traces.watch(self._app)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The same application as that of `ttsnap serve`."""
        return self._app

    def check_health(self) -> None:
        """As /health: RuntimeError where this replica must be started again."""
        if not self._worker.is_alive():
            raise RuntimeError("the thread of searches has ended")


def app(args: Mapping[str, object]) -> Application:
    """The application. args: as of `ReplicaSettings.of`. The environment variable TTSNAP_API_KEY
    sets one key, as for `ttsnap serve`."""
    settings = ReplicaSettings.of(args)
    limits = settings.limits
    # only digests travel
    keys = replace(Keys.chosen(settings.keys), open_docs=settings.open_docs, file=None)
    searches_of(settings.searches.split())
    offered(settings.rewards.split(), settings.model)  # errors come before any replica starts
    cuda = placement(settings.device, settings.dtype)[0].type == "cuda"
    settings = replace(settings, device="cuda" if cuda else "cpu")
    scaling = AutoscalingConfig(
        min_replicas=settings.min_replicas,
        max_replicas=max(settings.min_replicas, settings.max_replicas),
        target_ongoing_requests=settings.busy,
    )
    replica = serve.deployment(
        ray_actor_options={"num_gpus": 1} if cuda else {"num_cpus": 1},
        autoscaling_config=scaling,
        max_ongoing_requests=limits.active + limits.queue,
        graceful_shutdown_timeout_s=limits.drain,
        health_check_period_s=10,
        health_check_timeout_s=30,
    )(serve.ingress()(Replica))
    return replica.bind(settings, keys)
