"""Ray, for the process that has a command: begun on this machine, or joined on a cluster."""

from __future__ import annotations

import logging
import os

from ttsnap.extras import install


def connect(address: str | None, workers: int = 1) -> None:
    """Begin a session of Ray, which ends with this process; nothing where one has begun already.

    address: of a cluster, as HOST:PORT, or "auto" for the one that this machine belongs to; None begins one on this
    machine alone, with room for so many workers of a core each. Raises ValueError without Ray, and where no cluster
    lets us in.
    """
    try:
        import ray
    except ImportError:
        raise ValueError(f"several devices or workers take Ray: {install('cluster')}") from None
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to its makers
    cores = max(workers, os.cpu_count() or 1) if address is None else None
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
            f"cannot join the Ray cluster at {address}: {str(error).splitlines()[0]}; does it run there, and has this "
            "process its token, where it asks for one (docs.ray.io/en/latest/ray-security/token-auth.html)?"
        ) from None
