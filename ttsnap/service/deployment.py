"""The service in replicas, as an application of Ray Serve:

    serve run ttsnap.service.deployment:app model=embedded max_replicas=4

Each replica has a device, and is what `ttsnap serve` is in one process. Serve's proxy hands requests to replicas that
have few; Serve starts more of them while many requests come in, and those again that fail their health check.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig

from ttsnap.options.model import ModelOptions
from ttsnap.options.sampler import AUTO
from ttsnap.pipelines import defaults
from ttsnap.pipelines.opening import opened, placement, reward_placement
from ttsnap.request.offer import Offer
from ttsnap.request.searches import searches_of
from ttsnap.rewards.registry import make_rewards
from ttsnap.service.app import make_app
from ttsnap.service.engines import OneDevice
from ttsnap.service.keys import Keys
from ttsnap.service.limits import ServiceLimits
from ttsnap.service.logs import log_to_stderr
from ttsnap.service.metrics import Metrics
from ttsnap.service.opening import canonical_of, model_called, offered, with_drafts
from ttsnap.service.requests import plain
from ttsnap.service.worker import Worker


class ReplicaSettings(BaseModel):
    """What the operator says, as NAME=VALUE after `serve run`, or under `args` in a file for `serve deploy`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field("embedded", description="embedded, a diffusers folder, or a hub id")
    rewards: str = Field("", description="what clients choose from, separated by spaces, as --rewards of ttsnap serve")
    searches: str = Field("", description="NAME=FILE.json, separated by spaces, as --searches of ttsnap serve")
    draft: str = Field(AUTO, description="the drafter that requests may use, as --draft of ttsnap serve")
    name: str | None = Field(None, description="what clients call the model")
    device: str = Field("auto", pattern="^(auto|cuda|cpu)$", description="of each replica: a GPU, or a core of the CPU")
    dtype: str = "auto"
    lora: str | None = None
    keys: str | None = Field(None, description="the file of API keys, where this is started")
    open_docs: bool = Field(False, description="let /docs and /openapi.json be read without a key")
    min_replicas: int = Field(1, ge=1)
    max_replicas: int = Field(1, ge=1)
    busy: float = Field(8, gt=0, description="requests under way in each replica, beyond which another one is started")
    limits: ServiceLimits = ServiceLimits()


class Replica:
    """One device. It loads the model, and searches in a thread of its own."""

    def __init__(self, settings: ReplicaSettings, keys: Keys) -> None:
        log_to_stderr()
        specs = offered(settings.rewards.split(), settings.model)
        device, dtype = reward_placement(settings.device, settings.dtype)
        pipe = opened(ModelOptions(settings.model, settings.lora, device=settings.device, dtype=settings.dtype))
        rewards = {name: make_rewards(spec, device=device, dtype=dtype)[0] for name, spec in specs.items()}
        self._limits, self._keys, self._canonical = settings.limits, keys, canonical_of(settings.model)
        name, searches = model_called(settings.name, settings.model), searches_of(settings.searches.split())
        known, true_cfg = defaults(settings.model), "true_cfg_scale" in pipe.call_arguments()
        offer = Offer(name, tuple(rewards), lambda _: known, searches, true_cfg=true_cfg)
        self._offer = with_drafts(offer, settings.draft, pipe, rewards)
        self._worker = Worker(OneDevice(pipe, rewards), settings.limits, Metrics(), plain(self._offer, settings.limits))
        self._worker.start()

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The same application as that of `ttsnap serve`."""
        return make_app(self._worker, self._offer, self._keys, self._limits, self._canonical)

    def check_health(self) -> None:
        """As /health: RuntimeError where this replica must be started again."""
        if not self._worker.is_alive():
            raise RuntimeError("the thread of searches has ended")


def app(args: Mapping[str, object]) -> Application:
    """The application. args: the fields of ReplicaSettings, as text or parsed; ValueError for others. The environment
    variable TTSNAP_API_KEY sets one key, as for `ttsnap serve`."""
    settings = ReplicaSettings.model_validate(dict(args))
    limits = settings.limits
    keys = replace(Keys.chosen(settings.keys), open_docs=settings.open_docs)  # only digests of keys travel
    searches_of(settings.searches.split())
    offered(settings.rewards.split(), settings.model)  # what is wrong is said before any replica starts
    cuda = placement(settings.device, settings.dtype)[0].type == "cuda"
    settings = settings.model_copy(update={"device": "cuda" if cuda else "cpu"})
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
