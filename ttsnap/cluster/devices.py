"""From the options of a user to a cluster: Ray, how many devices there are, and an engine on each
of them."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import torch

from ttsnap.cluster.engine import ClusterEngine
from ttsnap.engine.live import LiveEngine
from ttsnap.extras import install
from ttsnap.options.engine import DeviceOptions
from ttsnap.request.request import EngineSpec

if TYPE_CHECKING:  # Ray is imported only where it is needed
    from ttsnap.cluster.ray_pool import Hosts


def connect(address: str | None, workers: int = 1) -> None:
    """Begin a session of Ray, which ends with this process; nothing where one has begun already.

    address: of a cluster, as HOST:PORT, or "auto" for the one that this machine belongs to; None
    begins one on this machine alone, with room for so many workers of a core each. Raises
    ValueError without Ray, and where no cluster lets us in.
    """
    try:
        import ray
    except ImportError:
        raise ValueError(f"several devices or workers take Ray: {install('cluster')}") from None
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to its makers
    cores = None
    if address is None:
        cores = max(workers, os.cpu_count() or 1)
        # its actors need no server to go on, and Ray would end this process within a minute
        os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", "3600")
    print(
        "starting Ray" if address is None else f"joining Ray at {address}",
        flush=True,
        file=sys.stderr,
    )
    try:
        ray.init(
            address or "local",
            num_cpus=cores,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"cannot join the Ray cluster at {address}: {str(error).splitlines()[0]}; does it run"
            " there, and has this process its token, where it asks for one"
            " (docs.ray.io/en/latest/ray-security/token-auth.html)?"
        ) from None


def alone(options: DeviceOptions, kind: str) -> bool:
    """Whether a search runs on the one device of this process, without Ray. kind: of the devices,
    "cuda" or "cpu"."""
    return options.ray_address is None and _number(options, _here(kind), kind) == 1


@contextmanager
def clustered(
    spec: EngineSpec,
    builder: Callable[[EngineSpec], Callable[[], LiveEngine]],
    options: DeviceOptions,
) -> Iterator[ClusterEngine]:
    """An engine of many that ends with the block, on devices of the kind that the spec names.

    builder: gives the function that makes the engine of a spec, which is sent to the devices.
    ValueError without Ray, where no cluster answers, and for too few devices.
    """
    device = spec.model.device
    with hosts(options, torch.device(device).type) as devices:
        from ttsnap.cluster.ray_pool import RayPool

        yield ClusterEngine(RayPool.of_engines(builder(spec), devices))


@contextmanager
def hosts(options: DeviceOptions, kind: str) -> Iterator[Hosts]:
    """A process on each of these devices of a kind, "cuda" or "cpu", until the block ends.
    ValueError as above."""
    number = options.devices if isinstance(options.devices, int) else 1
    connect(options.ray_address, number if options.devices != "all" else _here(kind))
    import ray

    from ttsnap.cluster.ray_pool import Hosts

    gpu = kind != "cpu"
    free = int(ray.cluster_resources().get("GPU" if gpu else "CPU", 0))
    with closing(Hosts(max(1, _number(options, free, kind)), gpu=gpu)) as processes:
        yield processes


def _here(kind: str) -> int:
    """Devices of this machine."""
    return os.cpu_count() or 1 if kind == "cpu" else torch.get_device_module(kind).device_count()


def _number(options: DeviceOptions, free: int, kind: str) -> int:
    """How many of those that are there are meant."""
    if isinstance(options.devices, int):
        return options.devices
    return free if options.devices == "all" or kind != "cpu" else 1
