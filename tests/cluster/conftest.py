"""Ray, and processes of it, once for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from tests.on_ray import ray_runs


@pytest.fixture(scope="package")
def ray_session() -> Iterator[None]:
    with ray_runs():
        yield


@pytest.fixture(scope="package")
def hosts(ray_session: None) -> Iterator[Any]:
    """Two, on all the cores that Ray has here: as long as there are tests of this folder, no others
    start."""
    from ttsnap.cluster.ray_pool import Hosts

    with closing(Hosts(2, gpu=False)) as hosts:
        yield hosts
