"""Ray, begun for one command: on this machine, or a connection to a cluster."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from ttsnap.extras import install


@contextmanager
def connected(address: str | None, workers: int) -> Iterator[None]:
    """A session of Ray with room for so many workers; the one that has begun already, where there is one.

    address: of a cluster, as HOST:PORT, or "auto" for the one that this machine belongs to; None begins one on this
    machine alone, which ends with the block. Raises ValueError without Ray, and where no cluster answers.
    """
    try:
        import ray
    except ImportError:
        raise ValueError(f"several workers take Ray: {install('cluster')}") from None
    if ray.is_initialized():
        yield
        return
    cores = max(workers, os.cpu_count() or 1) if address is None else None
    try:
        ray.init(
            address or "local",
            num_cpus=cores,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, RuntimeError) as error:
        raise ValueError(f"no Ray cluster answers at {address}: {error}") from None
    try:
        yield
    finally:
        ray.shutdown()
