"""Ray, once for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.on_ray import ray_runs


@pytest.fixture(scope="package")
def ray_session() -> Iterator[None]:
    with ray_runs():
        yield
