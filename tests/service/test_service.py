"""The service as its callers meet it, on a real socket, over the embedded model; over several devices; and its end."""

from __future__ import annotations

import json
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest
from openai import OpenAI

from tests.cluster.local import LocalPool
from tests.service.asking import ALICE, BOB, IMAGES, LARGE, PROMPT, SMALL, Caller, apart, best, picture, refusal, until
from tests.service.conftest import REWARDS, Slow, command, one_device, serve
from ttsnap.core.protocols import EngineLost
from ttsnap.engine.live import LiveEngine
from ttsnap.options.model import ModelOptions
from ttsnap.request.offer import ServingCatalog
from ttsnap.service.engine_pool import PooledEngine
from ttsnap.service.engines import ManyDevices
from ttsnap.service.keys import Keys
from ttsnap.service.limits import ServiceLimits
from ttsnap.service.server import GenerationServer


def test_a_generation_is_what_the_pipeline_gives(client: OpenAI, pipe: Any) -> None:
    own = {"seed": 3, "budget": "60nfe", "search": "seed-pruning", "reward": "scenes", "report": "brightness"}
    reply = client.images.generate(prompt=PROMPT, n=2, extra_body=own)
    out = pipe(PROMPT, num_images_per_prompt=2, draft=None, **own)
    assert reply.data is not None
    for image, theirs, candidate in zip(reply.data, out.images, out.search[0].images, strict=True):
        found, mine = image.to_dict(), picture(str(image.b64_json))
        assert (found["seed"], found["reward"]) == (candidate.seed, pytest.approx(candidate.reward, abs=1e-5))
        assert found["metrics"] == {"brightness": pytest.approx(candidate.metrics["brightness"], abs=1e-5)}
        assert apart(mine, theirs) <= 1, "rounding may differ with the batch"
        told, ours = json.loads(mine.info["ttsnap"]), json.loads(theirs.info["ttsnap"])
        assert (told["seed"], told["call"], told["model"]) == (ours["seed"], ours["call"], ours["model"])
    assert reply.usage is not None
    usage, spent = reply.usage.to_dict(), out.search[0].spent
    assert (usage["nfe"], usage["seeds"], usage["total_tokens"]) == (spent.nfe, spent.seeds, 0)
    assert (reply.size, reply.output_format, reply.quality) == ("32x32", "png", "medium")


def test_searches_that_share_batches_find_what_they_find_alone(caller: Caller) -> None:
    searches = (("best-of-n", 24, 6, "32x32"), ("seed-pruning", 30, 6, "16x32"), ("svdd", 24, 6, "32x32"),
                ("best-of-n", 15, 5, "32x32"), ("seed-pruning", 30, 6, "32x32"))  # fmt: skip

    def run(i: int) -> tuple[object, ...]:
        search, nfe, steps, size = searches[i]
        reward = "scenes" if size == "32x32" else "brightness"
        told = caller.made(search=search, seed=i, budget=f"{nfe}nfe", steps=steps, size=size, reward=reward)
        assert told["size"] == size
        return *best(told), told["usage"]["nfe"]

    alone = list(map(run, range(len(searches))))
    with ThreadPoolExecutor(5) as pool:
        assert list(pool.map(run, range(len(searches)))) == alone


def events(caller: Caller, **body: object) -> list[dict[str, Any]]:
    """Those of a stream, from the client's own requests."""
    text = caller.send(stream=True, seed=3, **body).text
    return [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")]


def test_a_stream_shows_estimates_and_ends_with_the_images(caller: Caller) -> None:
    own = {"n": 2, "budget": "60nfe", "search": "seed-pruning", "steps": None, "output_format": "jpeg"}
    told = events(caller, partial_images=2, **own)
    kinds = [event["type"].removeprefix("image_generation.") for event in told]
    assert kinds in (["partial_image"] * count + ["completed"] * 2 for count in (1, 2))
    assert [event["partial_image_index"] for event in told[:-2]] == list(range(len(told) - 2))
    assert all(picture(event["b64_json"]).format == "JPEG" for event in told)
    whole = caller.made(**own)
    assert [event["seed"] for event in told[-2:]] == [image["seed"] for image in whole["data"]]
    assert [event["rank"] for event in told[-2:]] == [1, 2]
    assert told[-1]["usage"]["nfe"] == whole["usage"]["nfe"]


def test_images_that_fail_a_requirement_are_not_returned(caller: Caller) -> None:
    own = {"budget": "20nfe", "reward": "brightness"}
    rewards = [image["reward"] for image in caller.made(n=5, **own)["data"]]
    some = caller.made(n=5, **own, require=[f"brightness>{(rewards[1] + rewards[2]) / 2}", "scenes<2"])
    assert [image["reward"] for image in some["data"]] == pytest.approx(rewards[:2], abs=1e-5)
    assert any("3 of 5 finished images" in warning for warning in some["warnings"])
    spent = caller.metric("nfe_total")
    none = caller.send(**{**SMALL, **own, "require": "brightness>1"})
    assert refusal(none) == (422, "require", "requirement_not_met")
    assert caller.metric("nfe_total") == spent + 20
    *partials, last = events(caller, budget="100nfe", reward="brightness", partial_images=3, require="brightness>0")
    shown = [np.asarray(picture(event["b64_json"])) for event in partials]
    assert all((one == np.asarray(picture(last["b64_json"]))).all() for one in shown[-1:]), "no estimate is shown"


@pytest.mark.parametrize(
    ("budget", "images"), [("1tokens", 20), ("1gradients", 20), ("3images,1tokens", 3), ("1images", 1)]
)
def test_every_budget_is_capped_in_evaluations(caller: Caller, budget: str, images: int) -> None:
    told = caller.made(budget=budget, seed=0)
    assert told["usage"]["nfe"] == 4 * images
    assert told["data"][0]["seed"] < images, "zero is a seed"


def test_models_health_and_what_is_measured(caller: Caller, client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["embedded"]
    assert client.models.retrieve("embedded").owned_by == "ttsnap"
    assert caller.get("/health").json() == {"status": "ok"}
    assert caller.get("/ready").json() == {"status": "ready"}
    assert caller.get("/").headers["location"] == "docs"
    before = caller.metric("nfe_total")
    caller.made()
    assert before < caller.metric("nfe_total") <= before + 16
    assert caller.metric('phase_seconds_total{phase="denoise"}') > 0
    assert 0 < caller.metric("batch_fill") <= 1


def test_a_client_that_goes_away_cancels_its_search(caller: Caller) -> None:
    cancelled, nfe = (caller.metric(name) for name in ('requests_total{outcome="cancelled"}', "nfe_total"))
    with caller.running():
        pass
    caller.left()
    until(lambda: caller.metric('requests_total{outcome="cancelled"}') == cancelled + 2)
    until(lambda: caller.metric("active") == 0)
    spent = caller.metric("nfe_total")
    assert spent < nfe + 3000, "neither search went on to its end"
    time.sleep(0.2)
    assert caller.metric("nfe_total") == spent


def test_a_large_request_does_not_keep_a_small_one_waiting(caller: Caller) -> None:
    with caller.running():
        before = caller.metric("nfe_total")
        caller.made(prompt="a red circle", budget="4nfe")
        # 4 steps, one in each batch of 16 rows at most; and a few batches while the requests are on their way.
        assert caller.metric("nfe_total") - before <= 40 * 16
        assert caller.metric("active") == 1, "the large one still runs"
    until(lambda: caller.metric("active") == 0)


def test_limits_on_the_queue_and_on_each_key(serving: Callable[..., GenerationServer], two_keys: Keys) -> None:
    server = serving(ServiceLimits(active=1, queue=1, per_key=2, drain=0.1, seconds=60), two_keys)
    alice, bob = Caller(server.url, ALICE), Caller(server.url, BOB)
    with ThreadPoolExecutor(1) as pool:
        with alice.running():
            waiting = pool.submit(alice.made)
            until(lambda: alice.metric("queue") == 1)
            for caller, code in ((alice, "too_many_requests"), (bob, "queue_full")):
                reply = caller.send()
                assert (*refusal(reply), reply.headers["retry-after"]) == (429, None, code, "5")
        assert waiting.result()["data"]
    until(lambda: alice.metric("active") == alice.metric("queue") == 0)
    assert alice.made()["data"]
    for key in ("c" * 20, "", ALICE[:-1]):
        reply = Caller(server.url, key).send()
        assert refusal(reply) == (401, None, "invalid_api_key")
        assert (reply.json()["error"]["type"], reply.headers["www-authenticate"]) == ("authentication_error", "Bearer")
        assert not key or key not in reply.text
    assert [Caller(server.url).get(path).status_code for path in ("/v1/models", "/health")] == [401, 200]


@pytest.mark.parametrize(("open_docs", "without_key"), [(False, 401), (True, 200)])
def test_the_documentation_asks_for_a_key_unless_it_is_opened(
    serving: Callable[..., GenerationServer], open_docs: bool, without_key: int
) -> None:
    server = serving(keys=replace(Keys.of(ALICE), open_docs=open_docs))
    alice, anybody = Caller(server.url, ALICE), Caller(server.url)
    for path in ("/openapi.json", "/docs"):
        assert (anybody.get(path).status_code, alice.get(path).status_code) == (without_key, 200)
    schema = alice.get("/openapi.json").json()
    for path, kind in (("generations", "application/json"), ("edits", "multipart/form-data")):
        operation = schema["paths"][f"/v1/images/{path}"]["post"]
        fields = operation["requestBody"]["content"][kind]["schema"]
        assert fields["properties"].keys() >= set(fields["required"]) >= {"prompt"}
        assert operation["security"] == [{"HTTPBearer": []}]
    assert anybody.get("/v1/models").status_code == 401, "all else asks for a key as before"


def test_where_no_key_is_needed_the_documentation_needs_none(caller: Caller) -> None:
    page = caller.get("/docs")
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert IMAGES in page.text


def test_a_search_ends_in_time_with_its_best_image(caller: Caller) -> None:
    begin = time.monotonic()
    told = caller.made(budget="0.5s", steps=None)
    assert time.monotonic() - begin < 15
    assert len(told["data"]) == 1
    assert not any("stopped early" in warning for warning in told["warnings"])  # it had all the time that it asked for


# --- several devices: engines are clusters, and what callers get is the same ---------------------------------------


CPU, LIMITS = ModelOptions(device="cpu", dtype="float32"), ServiceLimits(drain=0.1, idle=1)


def serving(pipe: Any, offer: ServingCatalog, pool: Any) -> AbstractContextManager[GenerationServer]:
    engines = ManyDevices(one_device(pipe, *REWARDS), CPU, {name: name for name in REWARDS}, pool)
    return serve(engines, offer, LIMITS)


def asked(caller: Caller, **own: object) -> tuple[Any, ...]:
    told = caller.made(**own)
    return *best(told), told["usage"]["nfe"]


def check_lost(caller: Caller) -> None:
    reply = caller.send(**SMALL)
    assert (refusal(reply)[0], reply.headers["retry-after"]) == (503, "30")
    assert "keep failing" in reply.text


@pytest.mark.usefixtures("shallow_model")
def test_several_devices_give_what_one_gives_and_are_measured(pipe: Any, offer: ServingCatalog, caller: Caller) -> None:
    pools: list[LocalPool] = []

    def pool(make: Callable[[], LiveEngine]) -> LocalPool:
        pools.append(LocalPool(make, 2))
        return pools[-1]

    with serving(pipe, offer, pool) as server:
        mine, other = Caller(server.url), {"reward": "brightness", "report": "scenes"}
        assert (asked(mine), asked(mine, **other)) == (asked(caller), asked(caller, **other))
        assert len(pools) == 3, "that of plain requests, which was made ready, and two others"
        networks = {id(actor.engine.denoiser.pipe.transformer) for pool in pools for actor in pool.actors}
        assert len(networks) == 1, "a process loads the model once"
        assert mine.metric("nfe_total") == 32
        assert 0 < mine.metric("batch_fill") <= 1
        assert mine.metric("batch_places_total") >= 32


@pytest.mark.usefixtures("shallow_model")
def test_devices_that_keep_failing_are_said_and_tried_anew(pipe: Any, offer: ServingCatalog) -> None:
    pools: list[LocalPool] = []

    def pool(make: Callable[[], LiveEngine]) -> LocalPool:
        pools.append(LocalPool(make, 2))
        pools[-1].hopeless = len(pools) <= 2  # what is made ready, and for the first request
        return pools[-1]

    with serving(pipe, offer, pool) as server:
        caller = Caller(server.url)
        check_lost(caller)
        assert caller.made()
        pools[-1].hopeless = True
        check_lost(caller)
        until(lambda: caller.metric("configurations") == 0)
        assert caller.made()


@pytest.mark.usefixtures("shallow_model")
def test_devices_that_fail_during_a_search_are_said_as_those_that_fail_before_it(
    pipe: Any, offer: ServingCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tick(engine: LiveEngine) -> None:
        raise EngineLost("actor 1 of 2 died 3 times in a row")

    with serve(one_device(pipe, *REWARDS), offer, LIMITS) as server:
        with monkeypatch.context() as broken:
            broken.setattr(LiveEngine, "tick", tick)
            check_lost(Caller(server.url))
        assert Caller(server.url).made()


# --- the end under load: every request that was taken has an answer, an image or one sentence ----------------------


CLIENTS, STREAMS = 24, 6


def ask(pool: ThreadPoolExecutor, caller: Caller) -> list[Future[httpx.Response]]:
    """Many clients at once, of which the first few want streams."""
    more = [{"steps": 10, "stream": number < STREAMS, "seed": number} for number in range(CLIENTS)]
    return [pool.submit(caller.send, IMAGES, **{**LARGE, **own}) for own in more]


def last_of(reply: httpx.Response) -> tuple[str, dict[str, Any]]:
    """How a request ended, and what it was told then: "image", or the code of an error in OpenAI's shape."""
    streamed = reply.headers["content-type"].startswith("text/event-stream")
    told = json.loads(reply.text.rpartition("data: ")[2] if streamed else reply.text)
    if "error" in told:
        assert set(told["error"]) == {"message", "type", "param", "code"}
        assert streamed or (reply.status_code, reply.headers["retry-after"]) == (503, "5")
        assert not streamed or told["type"] == "error"
        return told["error"]["code"], told
    image = told if streamed else told["data"][0]
    assert image["b64_json"]
    return "image", told


@contextmanager
def loaded(
    slow: Slow, offer: ServingCatalog, drain: float
) -> Iterator[tuple[GenerationServer, ThreadPoolExecutor, list[Future[httpx.Response]]]]:
    """A server at which many searches are under way."""
    limits, offer = ServiceLimits(drain=drain, per_key=99), replace(offer, rewards=("brightness",))
    with ThreadPoolExecutor(CLIENTS + 1) as pool, serve(slow, offer, limits) as server:
        caller = Caller(server.url)
        asked = ask(pool, caller)
        until(lambda: caller.metric("active") == CLIENTS and caller.metric("nfe_total") > 0)
        yield server, pool, asked


def test_searches_wind_up_early_enough_to_finish_an_image_each(
    slow: Slow, offer: ServingCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    early, stop = list[float](), PooledEngine.stop

    def watched(searches: PooledEngine) -> None:
        early.append(server.worker._deadline - time.monotonic())
        stop(searches)

    monkeypatch.setattr(PooledEngine, "stop", watched)
    with loaded(slow, offer, 3) as (server, _, asked):
        server.__exit__()
        ends = [last_of(reply.result()) for reply in asked]
    assert early[0] > 0.5, "24 images of 10 steps, in batches of 16 that take 0.05 s at least"
    assert [end for end, _ in ends] == ["image"] * CLIENTS
    assert all("stopped early" in " ".join(told["warnings"]) for _, told in ends)


def test_who_comes_late_is_told_so_until_the_last_answer(slow: Slow, offer: ServingCatalog) -> None:
    slow.left, limits = 1, ServiceLimits(drain=10)
    with ThreadPoolExecutor(2) as pool, serve(slow, replace(offer, rewards=("brightness",)), limits) as server:
        caller = Caller(server.url)
        first = pool.submit(caller.send, IMAGES, **LARGE)
        until(lambda: slow.left < 0)
        ending = pool.submit(server.__exit__)
        until(lambda: server.worker.draining)
        time.sleep(0.3)
        assert last_of(caller.send(**LARGE))[0] == "stopping"
        assert caller.get("/ready").json() == {"status": "stopping"}
        slow.left = 10**6
        slow.go.set()
        assert last_of(first.result())[0] == "image"
        ending.result(timeout=30)
        with pytest.raises(httpx.ConnectError):
            caller.send()


@pytest.mark.parametrize(("late", "drain", "batches", "most", "least"), [
    (0.5, 0.5, 0, 0, 24),  # what cannot be finished is told so
    (5.0, 0.01, 15, 22, 2),  # the oldest finish: of batches of 16 rows, the first 16 images take 11, and all take 20
])  # fmt: skip
def test_where_time_is_short_the_rest_is_told_so(
    slow: Slow, offer: ServingCatalog, monkeypatch: pytest.MonkeyPatch,
    late: float, drain: float, batches: int, most: int, least: int,
) -> None:  # fmt: skip
    monkeypatch.setattr("ttsnap.service.worker.LATE", late)
    with loaded(slow, offer, drain) as (server, pool, asked):
        slow.left = batches
        ending = pool.submit(server.__exit__)
        ends = Counter(last_of(reply.result(timeout=30))[0] for reply in asked)
        slow.go.set()
        ending.result(timeout=30)
    assert ends["image"] + ends["stopping"] == CLIENTS
    assert ends["stopping"] >= least
    assert min(most, 12) <= ends["image"] <= most


@pytest.mark.slow
def test_sigterm_under_load() -> None:
    with command("embedded", "--drain", "4") as (process, url):
        with ThreadPoolExecutor(CLIENTS) as pool:
            asked = ask(pool, Caller(url))
            until(lambda: Caller(url).metric("active") == CLIENTS, 60)
            process.send_signal(signal.SIGTERM)
            ends = [last_of(reply.result(timeout=60))[0] for reply in asked]
        assert process.wait(30) == 0
    assert set(ends) <= {"image", "stopping"}
    assert ends.count("image") > CLIENTS // 2
