"""The service as its callers meet it, on a real socket; OpenAI's clients and others; several
devices; and the end."""

from __future__ import annotations

import asyncio
import base64
import io
import itertools
import json
import logging
import re
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from unittest.mock import Mock

import httpx
import numpy as np
import openai
import pytest
import torch
from fastapi.testclient import TestClient
from huggingface_hub import InferenceClient
from openai import AsyncOpenAI
from PIL import Image

from tests.cluster.local import LocalPool
from tests.service.asking import (
    EDITED,
    IMAGES,
    LARGE,
    PROMPT,
    SMALL,
    apart,
    best,
    picture,
    refusal,
    until,
)
from tests.service.conftest import (
    ALICE,
    BOB,
    EDITS,
    REWARDS,
    client_of,
    one_device,
    serve,
)
from ttsnap.cluster.engine import ClusterEngine
from ttsnap.core.protocols import EngineLost
from ttsnap.core.results import Event
from ttsnap.loop.budget import Budget
from ttsnap.options.model import ModelOptions
from ttsnap.pipelines.pipeline_copy import copied
from ttsnap.scenes import caption, parse
from ttsnap.service.engine_pool import PooledEngine
from ttsnap.service.engines import ManyDevices
from ttsnap.service.limits import Keys, ServiceLimits
from ttsnap.service.requests import Generation, notes_of, prepared_of, validated
from ttsnap.service.tickets import Progress, file_of


def test_a_generation_is_what_the_pipeline_gives(caller, pipe):
    own = {
        "seed": 3,
        "budget": "60nfe",
        "search": "seed-pruning",
        "reward": "scenes",
        "report": "brightness",
    }
    reply = client_of(caller).images.generate(prompt=PROMPT, n=2, extra_body=own)
    out = pipe(PROMPT, num_images_per_prompt=2, draft=None, **own)
    assert reply.data is not None
    for image, theirs, candidate in zip(reply.data, out.images, out.search[0].images, strict=True):
        found, mine = image.to_dict(), picture(str(image.b64_json))
        assert (found["seed"], found["reward"]) == (
            candidate.seed,
            pytest.approx(candidate.reward, abs=1e-5),
        )
        assert found["metrics"] == {
            "brightness": pytest.approx(candidate.metrics["brightness"], abs=1e-5)
        }
        assert apart(mine, theirs) <= 1, "rounding may differ with the batch"
        told, ours = json.loads(mine.info["ttsnap"]), json.loads(theirs.info["ttsnap"])
        assert (told["seed"], told["call"], told["model"]) == (
            ours["seed"],
            ours["call"],
            ours["model"],
        )
    assert reply.usage is not None
    usage, spent = reply.usage.to_dict(), out.search[0].spent
    assert (usage["nfe"], usage["seeds"], usage["total_tokens"]) == (spent.nfe, spent.seeds, 0)
    assert (reply.size, reply.output_format, reply.quality) == ("32x32", "png", "medium")


def test_searches_that_share_batches_find_what_they_find_alone(caller):
    searches = (
        ("best-of-n", 24, 6, "32x32"),
        ("seed-pruning", 30, 6, "16x32"),
        ("svdd", 24, 6, "32x32"),
        ("best-of-n", 15, 5, "32x32"),
        ("seed-pruning", 30, 6, "32x32"),
    )

    def run(i):
        search, nfe, steps, size = searches[i]
        reward = "scenes" if size == "32x32" else "brightness"
        told = caller.made(
            search=search, seed=i, budget=f"{nfe}nfe", steps=steps, size=size, reward=reward
        )
        assert told["size"] == size
        return *best(told), told["usage"]["nfe"]

    alone = list(map(run, range(len(searches))))
    with ThreadPoolExecutor(5) as pool:
        assert list(pool.map(run, range(len(searches)))) == alone


def events(caller, **body):
    """Those of a stream, from the client's own requests."""
    text = caller.send(stream=True, seed=3, **body).text
    return [
        json.loads(line.removeprefix("data: "))
        for line in text.splitlines()
        if line.startswith("data: ")
    ]


def test_a_stream_shows_estimates_and_ends_with_the_images(caller):
    own = {
        "n": 2,
        "budget": "60nfe",
        "search": "seed-pruning",
        "steps": None,
        "output_format": "jpeg",
    }
    told = events(caller, partial_images=2, **own)
    kinds = [event["type"].removeprefix("image_generation.") for event in told]
    assert kinds in (["partial_image"] * count + ["completed"] * 2 for count in (1, 2))
    assert [event["partial_image_index"] for event in told[:-2]] == list(range(len(told) - 2))
    assert all(picture(event["b64_json"]).format == "JPEG" for event in told)
    whole = caller.made(**own)
    assert [event["seed"] for event in told[-2:]] == [image["seed"] for image in whole["data"]]
    assert [event["rank"] for event in told[-2:]] == [1, 2]
    assert told[-1]["usage"]["nfe"] == whole["usage"]["nfe"]


def test_images_that_fail_a_requirement_are_not_returned(caller):
    own = {"budget": "20nfe", "reward": "brightness"}
    rewards = [image["reward"] for image in caller.made(n=5, **own)["data"]]
    some = caller.made(
        n=5, **own, require=[f"brightness>{(rewards[1] + rewards[2]) / 2}", "scenes<2"]
    )
    assert [image["reward"] for image in some["data"]] == pytest.approx(rewards[:2], abs=1e-5)
    assert any("3 of 5 finished images" in warning for warning in some["warnings"])
    spent = caller.metric("nfe_total")
    none = caller.send(**{**SMALL, **own, "require": "brightness>1"})
    assert refusal(none) == (422, "require", "requirement_not_met")
    assert caller.metric("nfe_total") == spent + 20
    *partials, last = events(
        caller, budget="100nfe", reward="brightness", partial_images=3, require="brightness>0"
    )
    shown = [np.asarray(picture(event["b64_json"])) for event in partials]
    assert all((one == np.asarray(picture(last["b64_json"]))).all() for one in shown[-1:]), (
        "no estimate is shown"
    )


@pytest.mark.parametrize(
    ("budget", "images"),
    [("1tokens", 20), ("1gradients", 20), ("3images,1tokens", 3), ("1images", 1)],
)
def test_every_budget_is_capped_in_evaluations(caller, budget, images):
    told = caller.made(budget=budget, seed=0)
    assert told["usage"]["nfe"] == 4 * images
    assert told["data"][0]["seed"] < images, "zero is a seed"


def test_models_health_and_what_is_measured(caller):
    client = client_of(caller)
    assert [model.id for model in client.models.list()] == ["embedded"]
    assert client.models.retrieve("embedded").owned_by == "ttsnap"
    assert caller.get("/health").json() == {"status": "ok"}
    assert caller.get("/ready").json() == {"status": "ready"}
    assert caller.get("/").headers["location"] == "docs"
    page = caller.get("/docs")  # needs no key where nobody has one
    assert (page.status_code, page.headers["content-type"], IMAGES in page.text) == (
        200,
        "text/html; charset=utf-8",
        True,
    )
    before = caller.metric("nfe_total")
    caller.made()
    assert before < caller.metric("nfe_total") <= before + 16
    assert caller.metric('phase_seconds_total{phase="denoise"}') > 0
    assert 0 < caller.metric("batch_fill") <= 1


def test_a_client_that_goes_away_cancels_its_search(caller):
    cancelled, nfe = (
        caller.metric(name) for name in ('requests_total{outcome="cancelled"}', "nfe_total")
    )
    with caller.running():
        pass
    caller.left()
    until(lambda: caller.metric('requests_total{outcome="cancelled"}') == cancelled + 2)
    until(lambda: caller.metric("active") == 0)
    spent = caller.metric("nfe_total")
    assert spent < nfe + 3000, "neither search went on to its end"
    time.sleep(0.2)
    assert caller.metric("nfe_total") == spent


def test_a_large_request_does_not_keep_a_small_one_waiting(caller):
    with caller.running():
        before = caller.metric("nfe_total")
        caller.made(prompt="a red circle", budget="4nfe")
        # 4 steps, one in each batch of 16 rows at most; and a few batches while the requests are on
        # their way.
        assert caller.metric("nfe_total") - before <= 40 * 16
        until(lambda: caller.metric("active") == 1)  # the large one still runs
    until(lambda: caller.metric("active") == 0)


def test_limits_on_the_queue_and_on_each_key(serving, two_keys):
    server = serving(ServiceLimits(active=1, queue=1, per_key=2, drain=0.1, seconds=60), two_keys)
    alice, bob = server.by(ALICE), server.by(BOB)
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
        reply = server.by(key).send()
        assert refusal(reply) == (401, None, "invalid_api_key")
        assert (reply.json()["error"]["type"], reply.headers["www-authenticate"]) == (
            "authentication_error",
            "Bearer",
        )
        assert not key or key not in reply.text
    assert [server.get(path).status_code for path in ("/v1/models", "/health")] == [401, 200]


@pytest.mark.parametrize(("open_docs", "without_key"), [(False, 401), (True, 200)])
def test_the_documentation_asks_for_a_key_unless_it_is_opened(serving, open_docs, without_key):
    anybody = serving(keys=replace(Keys.of(ALICE), open_docs=open_docs))
    alice = anybody.by(ALICE)
    for path in ("/openapi.json", "/docs"):
        assert (anybody.get(path).status_code, alice.get(path).status_code) == (without_key, 200)
    schema = alice.get("/openapi.json").json()
    for path, kind in (("generations", "application/json"), ("edits", "multipart/form-data")):
        operation = schema["paths"][f"/v1/images/{path}"]["post"]
        fields = operation["requestBody"]["content"][kind]["schema"]
        assert fields["properties"].keys() >= set(fields["required"]) >= {"prompt"}
        assert operation["security"] == [{"HTTPBearer": []}]
        assert operation["responses"].keys() >= {"400", "401", "404", "413", "429", "503"}
        assert fields["properties"]["prompt"]["minLength"] == 1
    assert anybody.get("/v1/models").status_code == 401, "all else asks for a key as before"


def test_the_documentation_of_a_service_without_keys_asks_for_none(jobs):
    ways = [
        way for path in jobs.get("/openapi.json").json()["paths"].values() for way in path.values()
    ]
    assert not any("security" in way for way in ways)
    assert all("HTTPValidationError" not in json.dumps(way) for way in ways)


def test_a_search_ends_in_time_with_its_best_image(caller, serving):
    begin = time.monotonic()
    told = caller.made(budget="0.5s", steps=None)
    assert time.monotonic() - begin < 15
    assert (len(told["data"]), told["warnings"]) == (1, []), "its budget is used up"
    (warning,) = serving(ServiceLimits(seconds=0.5, drain=0.1)).made(budget="2000nfe")["warnings"]
    assert "0.5 s" in warning, "its budget is not"
    # it had all the time that it asked for
    assert not any("stopped early" in warning for warning in told["warnings"])


# --- several devices: engines are clusters, and what callers get is the same ----------------------


@pytest.mark.usefixtures("shallow_model")
def test_several_devices_give_what_one_gives_and_where_they_fail_are_tried_anew(
    pipe, offer, caller
):
    pools = []

    def pool(make):
        pools.append(LocalPool(make, 2))
        pools[-1].hopeless = len(pools) <= 2  # what is made ready, and for the first request
        return pools[-1]

    def lost(engine):
        raise EngineLost("actor 1 of 2 died 3 times in a row")

    def check_lost(**own):
        reply = mine.send(**{**SMALL, **own})
        assert (refusal(reply)[0], reply.headers["retry-after"], "keep failing" in reply.text) == (
            503,
            "30",
            True,
        )

    cpu, names = ModelOptions(device="cpu", dtype="float32"), {name: name for name in REWARDS}
    engines, other = (
        ManyDevices(one_device(pipe, *REWARDS), cpu, names, pool),
        {"reward": "brightness", "report": "scenes"},
    )
    with serve(engines, offer, ServiceLimits(drain=0.1, idle=1)) as mine:
        check_lost()
        for own in ({}, other):
            told, alone = mine.made(**own), caller.made(**own)
            assert (*best(told), told["usage"]["nfe"]) == (*best(alone), alone["usage"]["nfe"])
        assert len(pools) == 4, "that which was made ready, and those of requests"
        networks = {
            id(actor.engine.denoiser.pipe.transformer)
            for pool in pools[2:]
            for actor in pool.actors
        }
        assert len(networks) == 1, "a process loads the model once"
        assert mine.metric("nfe_total") == 32
        assert 0 < mine.metric("batch_fill") <= 1
        assert mine.metric("batch_places_total") >= 32
        pools[-1].hopeless = True
        check_lost(**other)
        until(lambda: mine.metric("configurations") <= 1)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ClusterEngine, "tick", lost)  # during a search, not before it
            check_lost(**other)
        assert mine.made(**other)


# --- the end under load: every request that was taken has an answer, an image or one sentence -----


CLIENTS, STREAMS = 24, 6


def ask(pool, caller):
    """Many clients at once, of which the first few want streams."""
    more = [{"steps": 10, "stream": number < STREAMS, "seed": number} for number in range(CLIENTS)]
    return [pool.submit(caller.send, IMAGES, **{**LARGE, **own}) for own in more]


def last_of(reply):
    """How a request ended, and what it was told then: "image", or the code of an error in OpenAI's
    shape."""
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
def loaded(slow, offer, drain):
    """A server at which many searches are under way."""
    limits, offer = ServiceLimits(drain=drain, per_key=99), replace(offer, rewards=("brightness",))
    with ThreadPoolExecutor(CLIENTS + 1) as pool, serve(slow, offer, limits) as caller:
        asked = ask(pool, caller)
        until(lambda: caller.metric("active") == CLIENTS and caller.metric("nfe_total") > 0)
        yield caller, pool, asked


def test_searches_wind_up_early_enough_to_finish_an_image_each(slow, offer, monkeypatch):
    early, stop = list[float](), PooledEngine.stop

    def watched(searches):
        early.append(server.worker._deadline - time.monotonic())
        stop(searches)

    monkeypatch.setattr(PooledEngine, "stop", watched)
    with loaded(slow, offer, 3) as (server, _, asked):
        server.__exit__()
        ends = [last_of(reply.result()) for reply in asked]
    assert early[0] > 0.5, "24 images of 10 steps, in batches of 16 that take 0.05 s at least"
    assert [end for end, _ in ends] == ["image"] * CLIENTS
    assert all("stopped early" in " ".join(told["warnings"]) for _, told in ends)


def test_who_comes_late_is_told_so_until_the_last_answer(slow, offer):
    slow.left, limits = 1, ServiceLimits(drain=30)
    with (
        ThreadPoolExecutor(2) as pool,
        serve(slow, replace(offer, rewards=("brightness",)), limits) as caller,
    ):
        first = pool.submit(caller.send, IMAGES, **{**LARGE, "budget": "64nfe"})
        until(lambda: slow.left < 0)
        ending = pool.submit(caller.__exit__)
        until(lambda: caller.worker.draining)
        time.sleep(0.3)
        assert last_of(caller.send(**LARGE))[0] == "stopping"
        assert caller.get("/ready").json() == {"status": "stopping"}
        slow.left = 10**6
        slow.go.set()
        assert last_of(first.result())[0] == "image"
        ending.result(timeout=30)
        with pytest.raises(httpx.ConnectError):
            caller.send()


@pytest.mark.parametrize(
    ("late", "drain", "left", "ok"),
    [
        (0.5, 0.5, 0, range(1)),  # what cannot be finished is told so
        # the oldest finish: of batches of 16, the first 16 images take 11, and all take 20
        (5, 0.01, 15, range(12, 23)),
    ],
)
def test_where_time_is_short_the_rest_is_told_so(
    slow,
    offer,
    monkeypatch,
    late,
    drain,
    left,
    ok,
):
    monkeypatch.setattr("ttsnap.service.worker.LATE", late)
    with loaded(slow, offer, drain) as (server, pool, asked):
        slow.left = left
        ending = pool.submit(server.__exit__)
        ends = Counter(last_of(reply.result(timeout=30))[0] for reply in asked)
        slow.go.set()
        ending.result(timeout=30)
    assert ends["image"] + ends["stopping"] == CLIENTS
    assert ends["image"] in ok


# --- clients: OpenAI's own, which ask again by themselves, and those of its older models, of vLLM-O


OWN = {**SMALL, "budget": "8nfe", "seed": 5}
COLOURS, SHAPES = ("red", "green", "blue", "yellow"), ("circle", "square", "triangle", "cross")
CAPTIONS = [
    caption(parse(f"a {colour} {shape}")) for colour, shape in itertools.product(COLOURS, SHAPES)
]
"""None is part of another."""
PATHS = re.compile(r"/(tmp|home|root|work|usr|var|opt)/|site-packages|\.py\b|0x[0-9a-f]{6}")


def test_streams_end_with_an_image_or_raise_in_openai_s_client(editing):
    own = {"prompt": PROMPT, "stream": True}
    with closing(client_of(editing)) as client:
        *_, last = client.images.generate(**own, extra_body=OWN)
        assert (last.type, best({"data": [last.to_dict()]})) == (
            "image_generation.completed",
            best(editing.made(**OWN)),
        )
        with pytest.raises(openai.APIError) as error:
            list(client.images.generate(**own, extra_body=OWN | {"require": "brightness>1"}))
    assert (error.value.param, error.value.code) == ("require", "requirement_not_met")


def test_ctrl_c_before_it_listens_ends_it_as_well(editor, monkeypatch):
    server = serve(one_device(editor), EDITS)
    monkeypatch.setattr(server._server, "run", Mock(side_effect=KeyboardInterrupt))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()


def test_health_tells_of_a_thread_that_has_ended(editor):
    server = serve(one_device(editor), EDITS)
    server._socket.close()  # never begun, and so without the thread of searches

    app = TestClient(server._server.config.app)
    assert [app.get(path).status_code for path in ("/health", "/ready")] == [503, 503]
    refused = app.post(IMAGES, json={"prompt": PROMPT})
    assert (*refusal(refused), refused.headers["retry-after"]) == (503, None, "stopping", "5")


# --- clients that ask again -----------------------------------------------------------------------


def test_every_request_of_a_crowd_is_answered_by_clients_that_ask_again(editor, monkeypatch):
    monkeypatch.setattr("ttsnap.service.worker.AGAIN", 1)
    with serve(
        one_device(editor), EDITS, ServiceLimits(active=2, queue=2, per_key=99, drain=0.1)
    ) as caller:
        alone = {seed: best(caller.made(**OWN | {"seed": seed})) for seed in (0, 7)}
        until(lambda: caller.metric('requests_total{outcome="done"}') == 2)

        async def asked():
            async with AsyncOpenAI(
                base_url=f"{caller.url}/v1", api_key="none", max_retries=20
            ) as client:
                own = [OWN | {"seed": seed} for seed in range(12)]
                replies = [client.images.generate(prompt=PROMPT, extra_body=each) for each in own]
                return [best(reply.to_dict()) for reply in await asyncio.gather(*replies)]

        found = asyncio.run(asked())
        assert caller.metric('requests_total{outcome="refused"}') > 0
        until(lambda: caller.metric('requests_total{outcome="done"}') == 14)  # none is done twice
        assert {seed: found[seed] for seed in alone} == alone


# --- secrets --------------------------------------------------------------------------------------


def test_nobody_sees_another_s_prompt_or_the_server_s_places(editor, drawn):
    """Searches, streams, edits and mistakes of sixteen callers at once, which share batches."""
    names = [f"caller-{i:02}" for i in range(len(CAPTIONS))]
    keys = Keys(
        tuple(
            itertools.chain.from_iterable(Keys.of(f"{name}-key-of-many").callers for name in names)
        )
    )

    def ask(i):
        """All that a reply says, metadata of its images included."""
        body = {
            "negative_prompt": f"{names[i]} hates it",
            "user": names[i],
            **OWN,
            "prompt": CAPTIONS[i],
        }
        body |= [{}, {"stream": True, "partial_images": 1}, {}, {"size": "17x33"}][i % 4]
        caller, files = (
            server.by(f"{names[i]}-key-of-many"),
            {"image": ("a.png", drawn[i % len(drawn)])},
        )
        reply = (
            caller.send(**body)
            if i % 4 != 2
            else caller.ask("POST", EDITED, data=body, files=files)
        )
        data = re.findall(r'"b64_json": ?"([^"]+)"', reply.text)
        return (
            str(reply.headers)
            + reply.text
            + "".join(base64.b64decode(each).decode("latin-1") for each in data)
        )

    with serve(one_device(editor), EDITS, keys=keys) as server:
        with ThreadPoolExecutor(len(CAPTIONS)) as pool:
            replies = list(pool.map(ask, range(len(CAPTIONS))))
        open_to_all = server.get("/metrics").text
    for i, reply in enumerate(replies):
        assert not PATHS.search(re.sub(r'"b64_json": ?"[^"]+"', "", reply)), (
            "no path, no address of memory"
        )
        for secret in (CAPTIONS, names):
            seen = {j for j, each in enumerate(secret) if each in reply}
            assert seen <= {i}, reply[:300]
            assert i % 4 == 3 or seen == {i}, "its own is in the metadata of its image"
    assert not any(secret in open_to_all for secret in (*CAPTIONS, *names))
    assert "at most 32 x 32" in replies[3]


# --- other clients --------------------------------------------------------------------------------


def test_other_names_of_fields_mean_what_ours_do(caller):
    ours = caller.made(size="32x32", guidance_scale=2.5)
    theirs = {
        "steps": None,
        "num_inference_steps": 4,
        "width": 32,
        "height": 32,
        "true_cfg_scale": 2.5,
    }
    unused = {"user": "u-1", "style": "vivid"}
    reply = caller.made(**theirs, **unused, lora=None, moderation="low")
    assert [image["b64_json"] for image in reply["data"]] == [
        image["b64_json"] for image in ours["data"]
    ]
    assert ours["warnings"] == []
    assert reply["warnings"] == [f"not used here: {', '.join((*unused, 'moderation'))}"]
    sizes = {"prompt": PROMPT, "width": "64", "height": "32", "user": "u-1"}
    wanted = validated(Generation, {**sizes, "num_inference_steps": 4})
    assert (wanted.size, wanted.options["num_inference_steps"]) == ("64x32", 4)
    assert wanted.ignored == ("user",)


def test_the_client_of_hugging_face_gets_an_image(caller, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    client = InferenceClient(caller.url + IMAGES, timeout=60)
    own = {"budget": "16nfe", "search": "best-of-n"}
    image = client.text_to_image(PROMPT, num_inference_steps=4, seed=3, extra_body=own)
    assert image.tobytes() == picture(caller.made()["data"][0]["b64_json"]).tobytes()
    assert "ttsnap" in image.info
    for wrong in ({"parameters": [1]}, {"prompt": PROMPT}):
        assert refusal(caller.ask("POST", IMAGES, json={"inputs": PROMPT, **wrong}))[0] == 400


def test_a_model_has_the_names_that_its_operator_gives_it(pipe, offer):
    named = replace(offer, rewards=("brightness",), aliases=("gpt-image-1", "dall-e-3"))
    with serve(one_device(pipe), named) as server:
        client = client_of(server)
        assert [model.id for model in client.models.list()] == list(named.names)
        assert client.models.retrieve("dall-e-3").id == "dall-e-3"
        assert server.made(model="gpt-image-1")["data"]
        assert refusal(server.send(model="dall-e-2"))[2] == "model_not_found"


def test_a_model_with_two_guidances_gets_each_under_its_own_name(offer):
    own = {"guidance_scale": 2.0, "true_cfg_scale": 3.0}
    wanted = validated(Generation, {"prompt": "a red circle", **own})
    call = prepared_of(wanted, replace(offer, true_cfg=True), ServiceLimits()).call
    assert (call["guidance_scale"], call["true_cfg_scale"]) == (2.0, 3.0)


def test_a_reply_may_be_the_file_or_addresses(caller):
    told = caller.made(n=2)
    reply = caller.send(**SMALL, output_format="PNG", response_format="file")
    assert reply.headers["content-type"] == "image/png"
    best = picture(told["data"][0]["b64_json"])
    assert Image.open(io.BytesIO(reply.content)).tobytes() == best.tobytes()
    addressed = caller.made(n=2, response_format="url")["data"]
    for address, image in zip(addressed, told["data"], strict=True):
        assert address["url"] == f"data:image/png;base64,{image['b64_json']}"
        assert "b64_json" not in address


@pytest.mark.parametrize("form", ["jpeg", "webp"])
def test_compression_makes_files_smaller(form):
    pixels = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    given = {"prompt": "x", "output_format": form}
    sizes = [
        len(file_of(pixels, validated(Generation, {**given, "output_compression": quality})))
        for quality in (0, 50, 100)
    ]
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize(
    ("quality", "effort", "images"),
    [
        ("standard", "medium", 20),
        ("hd", "high", 80),
        ("xhigh", "high", 80),
        ("max", "high", 80),
        ("low", "low", 5),
    ],
)
def test_older_and_newer_qualities_are_efforts(offer, quality, effort, images):
    wanted = validated(Generation, {"prompt": "a red circle", "quality": quality})
    assert wanted.effort == effort
    assert (
        prepared_of(wanted, offer, ServiceLimits()).budget
        == Budget.of_effort(effort)
        == Budget(images=images)
    )


def test_what_limits_take_away_is_told(offer):
    limits = ServiceLimits(nfe=100, seconds=5)

    def notes(**given):
        wanted = validated(Generation, {"prompt": "a red circle", **given})
        return notes_of(wanted, prepared_of(wanted, offer, limits), limits)

    (few,), (short,) = notes(quality="high"), notes(budget="60s")
    assert re.findall(r"\d+", few) == ["100", "5", "80"], (
        "evaluations here, images' worth of those that were asked for"
    )
    assert re.findall(r"\d+", short) == ["5", "60"]
    assert notes(quality="low") == ()


# --- partial images -------------------------------------------------------------------------------


class Heard(list[tuple[int, float]]):
    """A ticket that notes how much of the search had arrived when it was told of a partial
    image."""

    partials, nfe, job, seconds = 0, 0, False, 100.0

    def tell(self, news):
        self.append((news.index, self.nfe))

    def fetch(self):
        return torch.zeros(3, 1, 1)


@pytest.mark.parametrize(
    ("most", "allowance", "moves", "together", "seconds", "safe", "told"),
    [
        # A move is charged at once: not (0, 4), (1, 8), (2, 12), as when all 80 count from the
        # start.
        (3, 100.0, [(20, 80), (2, 20)], 1, 0.0, 0, [(0, 4), (1, 36), (2, 68)]),
        # Best-of-N, whose candidates are scored when they are finished, all at once: the best, one
        # in a third.
        (3, 100.0, [(20, 100)], 16, 0.0, 0, [(0, 80)]),
        # A budget in seconds is shared out by the clock.
        (2, 4000.0, [(10, 10)], 1, 10.0, 0, [(0, 1), (1, 6)]),
        # What the safety checker flags is not shown.
        (3, 100.0, [(20, 100)], 1, 0.0, 41, [(0, 45), (1, 70), (2, 100)]),
    ],
)
def test_partial_images_come_evenly_over_a_search(
    most,
    allowance,
    moves,
    together,
    seconds,
    safe,
    told,
):
    """moves: rows and evaluations. together: scores of a batch. seconds: of a batch. safe: only
    after so many."""
    heard, uid = Heard(), 0
    heard.partials = most
    progress = Progress(heard, allowance, safe=lambda image: heard.nfe >= safe)  # type: ignore[arg-type]
    for rows, nfe in moves:
        progress(Event("move", uids=tuple(range(uid, uid + rows)), nfe=nfe))
        for row in range(rows):
            progress(Event("score", uids=(uid,), scores=(float(uid),), picture=heard))  # type: ignore[arg-type]
            if (row + 1) % together == 0:
                progress(Event("tick", seconds=seconds * row))
            uid += 1
    assert heard == told


@pytest.mark.parametrize("unsafe", [False, True])
def test_partial_images_pass_the_safety_checker(pipe, offer, unsafe):
    judged, model = list[int](), copied(pipe, type(pipe))

    def checker(images, *_):
        judged.append(len(images))
        return 0 * images, [unsafe] * len(images)

    vars(model).update(safety_checker=torch.nn.Identity(), run_safety_checker=checker)
    with serve(one_device(model), replace(offer, rewards=("brightness",))) as caller:
        told = caller.send(stream=True, partial_images=2, steps=4, budget="16nfe").text
    assert ("image_generation.partial_image" in told) is not unsafe
    assert "image_generation.completed" in told
    assert ("1 of 1 images" in told) is unsafe
    assert len(judged) > 1, "what is shown on the way, too"


# --- the access log -------------------------------------------------------------------------------


def test_a_request_is_a_line_without_its_query(serving, caplog, two_keys):
    anybody = serving(keys=two_keys)
    alice = anybody.by(ALICE)
    with caplog.at_level(logging.INFO, "ttsnap.service.access"):
        alice.made()
        assert "completed" in alice.send(**SMALL, stream=True).text
        named = [
            alice.send(**own).headers["x-request-id"] for own in ({"size": "17x33"}, {"steps": 0})
        ]
        assert anybody.by(BOB[1:]).send().status_code == 401
        anybody.get(f"/health?key={ALICE}")
        anybody.get("/no%0athing%20here")
        alice.left()
        anybody.__exit__()
    lines = [
        record.getMessage() for record in caplog.records if record.name == "ttsnap.service.access"
    ]
    generations = "POST /v1/images/generations"
    expected = [
        *[(f"{generations} 200", r"alice nfe=16")] * 2,
        (f"{generations} 400", "alice nfe=0"),
        (f"{generations} 400", "alice nfe=-"),
        (f"{generations} 401", "- nfe=-"),
        ("GET /health 200", "- nfe=-"),
        ("GET /no%0Athing%20here 404", "- nfe=-"),
        (f"{generations} 499", r"alice nfe=\d+"),
    ]
    for line, (request, key) in zip(lines, expected, strict=True):
        assert re.fullmatch(rf"{request} \d+\.\d{{3}} s key={key} id=req_[0-9a-f]{{16}}", line), (
            line,
            request,
        )
    assert [line.rpartition("id=")[2] for line in lines[2:4]] == named
    assert ALICE not in caplog.text
