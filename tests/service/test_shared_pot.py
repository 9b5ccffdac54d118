"""`ttsnap serve --shared-pot`: what requests leave of their budgets is for others of their key, for some time."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest
from PIL import Image

from tests.service.conftest import client_of
from tests.service.test_service import metric, until
from ttsnap.service.keys import Keys
from ttsnap.service.limits import ServiceLimits
from ttsnap.service.server import GenerationServer

ALICE, BOB = "a" * 20, "b" * 20
OWN = {"search": "best-of-n", "budget": "7nfe", "steps": 4, "reward": "brightness"}
"""One image of four evaluations, which leaves three."""


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    (tmp_path / "keys").write_text(f"alice {ALICE}\nbob {BOB}\n")
    return Keys.read(tmp_path / "keys")


def spent(server: GenerationServer, key: str, **own: object) -> int:
    """The evaluations of a request. A hard one is never satisfied, and goes on while it may spend."""
    before, more = metric(server, "ttsnap_nfe_total"), {**OWN, **own}
    client = client_of(server, key)
    if "require" in more:
        with pytest.raises(openai.UnprocessableEntityError):
            client.images.generate(prompt="two green crosses", extra_body=more)
    else:
        told = client.images.generate(prompt="two green crosses", extra_body=more).to_dict()
        assert told["usage"]["nfe"] == 4
    until(lambda: metric(server, "ttsnap_active") == 0)
    return round(metric(server, "ttsnap_nfe_total") - before)


HARD: dict[str, Any] = {"require": "brightness>2"}


def test_what_is_left_goes_to_the_same_key(serving: Callable[..., GenerationServer], keys: Keys) -> None:
    server = serving(ServiceLimits(shared_pot=600.0, drain=0.1), keys)
    assert spent(server, BOB, **HARD) == 4
    assert spent(server, ALICE) == 4
    assert spent(server, ALICE) == 4
    assert spent(server, BOB, **HARD) == 8, "its own budget and the three that its first one left"
    assert spent(server, ALICE, **HARD) == 12, "of three times seven, thirteen are there"
    assert spent(server, ALICE, **HARD) == 8
    assert spent(server, ALICE, budget="7nfe,50decodes", **HARD) == 4, "a budget of something else keeps to itself"
    for _ in range(8):
        spent(server, ALICE)
    assert spent(server, ALICE, **HARD) == 20, "three budgets at most"


def test_a_request_keeps_to_the_limit_of_the_server(serving: Callable[..., GenerationServer], keys: Keys) -> None:
    server = serving(ServiceLimits(shared_pot=600.0, nfe=9, drain=0.1), keys)
    for _ in range(4):
        spent(server, ALICE)
    assert spent(server, ALICE, **HARD) == 8


def test_what_is_left_expires_and_is_kept_only_where_that_is_wanted(
    serving: Callable[..., GenerationServer], keys: Keys
) -> None:
    for limits in (ServiceLimits(shared_pot=1e-6, drain=0.1), ServiceLimits(drain=0.1)):
        server = serving(limits, keys)
        assert spent(server, ALICE) == 4
        assert spent(server, ALICE, **HARD) == 4


def test_it_is_the_callers_and_stays_where_the_engine_goes(
    serving: Callable[..., GenerationServer], keys: Keys
) -> None:
    server = serving(ServiceLimits(shared_pot=600.0, idle=1, drain=0.1), keys)
    assert spent(server, ALICE) == 4
    (engine,) = (spec for spec in server.worker._searches if spec.call["num_inference_steps"] == 4)
    for steps in (2, 3):
        client_of(server, BOB).images.generate(prompt="a red circle", extra_body={**OWN, "steps": steps})
    until(lambda: engine not in server.worker._searches)
    assert spent(server, ALICE, **HARD) == 8


def test_the_reply_says_what_came_from_others(serving: Callable[..., GenerationServer], keys: Keys) -> None:
    server = serving(ServiceLimits(shared_pot=600.0, drain=0.1), keys)
    client = client_of(server, ALICE)

    def asked(**own: object) -> dict[str, Any]:
        return client.images.generate(prompt="a red circle", extra_body={**OWN, **own}).to_dict()

    rewards = {seed: float(asked(seed=seed)["data"][0]["reward"]) for seed in range(8)}
    seed = next(seed for seed in range(7) if rewards[seed] < rewards[seed + 1])
    told = asked(seed=seed, require=f"brightness>{(rewards[seed] + rewards[seed + 1]) / 2}")
    assert (told["data"][0]["seed"], told["usage"]["nfe"]) == (seed + 1, 8)
    assert "1 evaluations more than the budget were left by other requests of yours" in told["warnings"]
    file = io.BytesIO(base64.b64decode(told["data"][0]["b64_json"]))
    assert json.loads(Image.open(file).info["ttsnap"])["search"]["shared"] is True
