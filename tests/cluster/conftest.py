"""Ray, and processes of it, once for all tests of this folder."""

from __future__ import annotations

from contextlib import closing

import pytest

from tests.on_ray import ray_runs


@pytest.fixture(scope="package")
def ray_session():
    with ray_runs():
        yield


@pytest.fixture(scope="package")
def hosts(ray_session):
    """Two, on all the cores that Ray has here: as long as there are tests of this folder, no others
    start."""
    from ttsnap.cluster.ray_pool import Hosts

    with closing(Hosts(2, gpu=False)) as hosts:
        yield hosts
