"""What clients may ask of searches: options of their own, the operator's files and drafter; and what fails alone."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from tests.service.conftest import PROMPT, client_of, metric, one_device, picture, serve, until
from ttsnap.algorithms import make_algorithm
from ttsnap.algorithms.pricing.fitting import fit
from ttsnap.core.looks import estimates
from ttsnap.core.prompt import Prompt
from ttsnap.loop.budget import Budget
from ttsnap.options.model import ModelOptions
from ttsnap.pipelines import defaults, recommended
from ttsnap.request.allowlist import OFFERED, search_of, searches_of
from ttsnap.request.offer import ServingCatalog
from ttsnap.request.request import EngineSpec, SearchRequest
from ttsnap.reward_models.registry import make_rewards
from ttsnap.service.engine_pool import Isolated
from ttsnap.service.engines import OneDevice
from ttsnap.service.limits import RequestError, ServiceLimits
from ttsnap.service.opening import with_drafts
from ttsnap.service.requests import Generation, prepared_of
from ttsnap.service.server import GenerationServer

STEPS = 6
OWN: dict[str, object] = {"seed": 3, "budget": "18nfe", "steps": STEPS}


class Moody:
    """A reward that fails while it is told to."""

    name = "moody"
    broken = True

    def __call__(self, images: Any, prompts: Any, level: Any) -> Any:
        if self.broken:
            raise OSError("/srv/secret is gone")
        return images.mean((1, 2, 3))


class Slow(OneDevice):
    """Makes no engine before `go` is set."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.go = threading.Event()

    @contextmanager
    def engine(self, spec: EngineSpec) -> Iterator[Any]:
        assert self.go.wait(20)
        with super().engine(spec) as made:
            yield made


@pytest.fixture(scope="module")
def files(pipe: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files as `ttsnap tune` and `ttsnap calibrate` write them."""
    folder = tmp_path_factory.mktemp("searches")
    levels = pipe.denoiser(**{**defaults(), "num_inference_steps": STEPS}).grid.levels
    rng = np.random.default_rng(0)
    final = rng.standard_normal((20, 40, 1))
    forecast = fit(final + rng.standard_normal((20, 40, STEPS + 1)), levels, estimates(2, 4, STEPS))
    specs = {
        "tuned": {"name": "seed-pruning", "keep": [0.5], "levels": [0.7], "denoising_steps": STEPS},
        "priced": {"name": "price-of-compute", "forecast": forecast.to_json(), "n": 20},
    }
    for name, spec in specs.items():
        (folder / f"{name}.json").write_text(json.dumps(spec))
    return {name: folder / f"{name}.json" for name in specs}


@pytest.fixture(scope="module")
def service(pipe: Any, files: dict[str, Path]) -> Iterator[GenerationServer]:
    rewards = {"scenes": make_rewards("scenes")[0], "moody": make_rewards([Moody()])[0]}
    searches = searches_of([f"{name}={path}" for name, path in files.items()])
    offer = ServingCatalog("embedded", tuple(rewards), recommended, searches, draft="embedded")
    with serve(OneDevice(pipe, rewards), offer) as running:
        yield running


def asked(service: GenerationServer, **own: object) -> dict[str, Any]:
    reply: dict[str, Any] = client_of(service).images.generate(prompt=PROMPT, extra_body={**OWN, **own}).to_dict()
    return reply


def test_it_is_ready_once_the_model_is_loaded(pipe: Any, offer: ServingCatalog) -> None:
    engines = Slow(pipe, one_device(pipe, *offer.rewards).rewards)
    with serve(engines, offer) as service:
        assert httpx.get(f"{service.url}/ready").json() == {"status": "loading"}
        assert httpx.get(f"{service.url}/ready").status_code == 503
        assert httpx.get(f"{service.url}/health").status_code == 200
        engines.go.set()
        until(lambda: httpx.get(f"{service.url}/ready").status_code == 200)
        assert metric(service, "ttsnap_nfe_total") == 0, "no request was needed for it"


def test_a_model_that_cannot_be_made_ready_says_so(pipe: Any, offer: ServingCatalog) -> None:
    class Broken(OneDevice):
        @contextmanager
        def engine(self, spec: EngineSpec) -> Iterator[Any]:
            if not whole:
                raise NameError("name 'ftfy' is not defined")
            with super().engine(spec) as engine:
                yield engine

    whole: list[bool] = []
    engines = Broken(pipe, one_device(pipe, *offer.rewards).rewards)
    with serve(engines, offer) as service:
        until(lambda: httpx.get(f"{service.url}/ready").json()["status"] != "loading")
        reply = httpx.get(f"{service.url}/ready")
        assert reply.status_code == 503
        assert "could not be made ready (NameError); the log says why" in reply.json()["status"]
        whole.append(True)
        asked(service)
        assert httpx.get(f"{service.url}/ready").status_code == 200


@pytest.mark.parametrize("search", ["tuned", "priced", {"name": "best-of-n", "n": 2}])
def test_searches_of_files_and_with_options(service: GenerationServer, pipe: Any, files: Any, search: Any) -> None:
    steps = {} if search == "tuned" else {"num_inference_steps": STEPS}  # which it says itself
    reply = asked(service, search=search, steps=steps.get("num_inference_steps"))
    spec = str(files[search]) if isinstance(search, str) else search
    out = pipe(PROMPT, search=spec, reward="scenes", **steps, seed=3, budget="18nfe")
    assert reply["data"][0]["seed"] == out.search[0].best.seed
    assert reply["usage"]["nfe"] == out.search[0].spent.nfe
    told = json.loads(picture(reply["data"][0]["b64_json"]).info["ttsnap"])
    assert str(files["tuned"].parent) not in json.dumps(told)
    kinds = {"tuned": "seed-pruning", "priced": "price-of-compute"}
    assert told["search"]["algorithm"] == kinds.get(str(search), "best-of-n")


def test_a_request_that_says_nothing_has_the_models_own_draft_where_it_helps(pipe: Any) -> None:
    rewards = {"scenes": make_rewards("scenes")[0], "moody": make_rewards([Moody()])[0]}
    offer, limits = ServingCatalog("embedded", tuple(rewards), recommended), ServiceLimits()

    def draft(offer: ServingCatalog, **own: Any) -> Any:
        wanted = Generation(PROMPT, **own)
        return prepared_of(wanted, offer, limits).engine.sampler.draft

    auto, none = (with_drafts(offer, name, pipe, rewards) for name in ("auto", "none"))
    assert draft(auto) == draft(auto, negative_prompt="", size="32x32", reward="moody") == "embedded"
    left_out: list[dict[str, Any]] = [
        {"draft": False}, {"steps": 10}, {"guidance_scale": 2.0}, {"negative_prompt": "blue"}, {"search": "best-of-n"},
        {"search": "svdd"}, {"kernel": "ode"}, {"size": "16x16"}, {"search": {"name": "seed-pruning", "n": 8}},
    ]  # fmt: skip
    assert [draft(auto, **own) for own in left_out] == [None] * len(left_out)
    assert draft(auto, draft=True, steps=10) == "embedded"
    assert draft(none) is None
    with pytest.raises(RequestError, match="no drafter"):
        draft(none, draft=True)
    other = with_drafts(offer, "hot:2", pipe, rewards)
    assert (draft(other), draft(other, draft=True)) == (None, "hot:2")
    rewards["scenes"].tokens = 100
    assert draft(with_drafts(offer, "auto", pipe, rewards)) is None


def test_drafts_are_looked_at_where_they_are_asked_for(service: GenerationServer, client: Any) -> None:
    with_drafts = asked(service, draft=True, budget="12nfe")
    assert with_drafts["usage"]["draft_calls"] > 0
    told = json.loads(picture(with_drafts["data"][0]["b64_json"]).info["ttsnap"])
    assert told.get("draft") is None
    with pytest.raises(openai.BadRequestError, match="no drafter"):
        client.images.generate(prompt=PROMPT, extra_body={"draft": True})


@pytest.mark.parametrize(
    ("search", "said"),
    [
        ({"name": "priced"}, "no search 'priced' here; choose one of tuned, priced, best-of-n"),
        ({"n": 3}, "no search 'None'"),
        ({"name": "noise-ascent"}, "no search 'noise-ascent'"),
        ({"name": "nested", "first": "/etc/tuned.json"}, "no file, got '/etc/tuned.json'"),
        ({"name": "nested", "first": {"name": "refined"}}, "offered here and no file, got 'refined'"),
        ({"name": "best-of-n", "n": 10**9}, "may multiply to 4000 here, got 1000000000"),
        ({"name": "svdd", "n": 100, "streams": 100}, "may multiply to 4000 here, got 10000"),
        ({"name": "best-of-n", "m": 3}, r"unknown option\(s\) \['m'\]"),
        ({"name": "best-of-n", "n": "x"}, "best-of-n: n must be a whole number"),
        ({"name": "seed-pruning", "keep": [2.0]}, "keep"),
    ],
)
def test_what_is_not_offered_is_refused(service: GenerationServer, search: Any, said: str) -> None:
    with pytest.raises(openai.BadRequestError, match=said) as error:
        asked(service, search=search)
    assert error.value.type == "invalid_request_error"


def test_the_operator_s_searches_are_checked(files: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "climb.json").write_text('{"name": "noise-ascent"}')
    wrong = {
        str(files["tuned"]): "NAME=FILE.json",
        f"svdd={files['tuned']}": "there is a search 'svdd' already",
        f"mine={tmp_path / 'none.json'}": "cannot read algorithm file",
        f"climb={tmp_path / 'climb.json'}": "follows gradients",
    }
    for given, said in wrong.items():
        with pytest.raises(ValueError, match=said):
            searches_of([given])


def test_a_reward_that_fails_ends_its_own_requests_only(service: GenerationServer) -> None:
    Moody.broken = True
    with ThreadPoolExecutor(3) as pool:
        good = [pool.submit(asked, service, search="best-of-n") for _ in range(2)]
        with pytest.raises(openai.InternalServerError, match="moody") as error:
            asked(service, reward="moody", search="best-of-n")
        assert all(len(one.result()["data"]) == 1 for one in good)
    assert (error.value.code, error.value.param) == ("reward_failed", "reward")
    assert "secret" not in str(error.value.body)
    Moody.broken = False
    assert asked(service, reward="moody", search="best-of-n")["data"][0]["reward"] > 0


def test_a_search_that_fails_ends_alone(service: GenerationServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """An algorithm's mistake is its own request's: those on the same engine go on."""
    kind = type(make_algorithm("evolution"))

    def step(*_: object) -> None:
        raise IndexError("out of range")

    with ThreadPoolExecutor(1) as pool:
        good = pool.submit(asked, service, search="best-of-n", budget="48nfe")
        until(lambda: metric(service, "ttsnap_active") == 1)
        spec = {"name": "evolution", "n": 2, "generations": 2}
        monkeypatch.setattr(kind, "step", step)
        with pytest.raises(openai.InternalServerError, match="failed: IndexError"):
            asked(service, search=spec)
        assert len(good.result()["data"]) == 1


def test_what_cannot_be_told_ends_its_own_request_only(
    service: GenerationServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = metric(service, 'ttsnap_requests_total{outcome="failed"}')
    with monkeypatch.context() as patch:
        patch.setattr("ttsnap.pipelines.run.record_of", lambda *_: 1 / 0)
        with pytest.raises(openai.InternalServerError, match="ZeroDivisionError"):
            asked(service, search="best-of-n", budget="6nfe")
    assert asked(service, search="best-of-n", budget="6nfe")["data"]
    assert metric(service, 'ttsnap_requests_total{outcome="failed"}') == failed + 1


def test_every_name_that_is_offered_can_be_asked_for_with_its_defaults() -> None:
    for name in OFFERED:
        plain, same = search_of(name, {}, 4000), search_of({"name": name}, {}, 4000)
        assert make_algorithm(plain) == make_algorithm(same)
    one, other = (
        SearchRequest((Prompt("x"),), EngineSpec(ModelOptions(), ()), search_of(wanted, {}, 9), Budget())
        for wanted in ({"name": "best-of-n", "n": 2}, {"n": 2, "name": "best-of-n"})
    )
    assert one.label == other.label
    assert Isolated(replace(make_algorithm("best-of-n"), n=2), None).n == 2  # type: ignore[arg-type, type-var]
