"""The service as its callers meet it: OpenAI's own client, on a real socket, over the embedded model."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from openai import OpenAI

from tests.service.conftest import LARGE, PROMPT, apart, client_of, metric, picture, until
from ttsnap.service.keys import Keys
from ttsnap.service.limits import ServiceLimits
from ttsnap.service.server import GenerationServer


def test_a_generation_is_what_the_pipeline_gives(client: OpenAI, pipe: Any) -> None:
    own = {"seed": 3, "budget": "60nfe", "search": "seed-pruning", "reward": "scenes", "report": "brightness"}
    reply = client.images.generate(prompt=PROMPT, n=2, extra_body=own)
    out = pipe(PROMPT, num_images_per_prompt=2, draft=None, **own)
    assert reply.data is not None
    found = [image.to_dict() for image in reply.data]
    best = out.search[0].images
    assert [image["seed"] for image in found] == [candidate.seed for candidate in best]
    assert [image["reward"] for image in found] == pytest.approx([candidate.reward for candidate in best], abs=1e-5)
    assert found[0]["metrics"] == {"brightness": pytest.approx(best[0].metrics["brightness"], abs=1e-5)}
    for image, theirs in zip(found, out.images, strict=True):
        mine = picture(str(image["b64_json"]))
        assert apart(mine, theirs) <= 1, "rounding may differ with the batch"
        told, ours = json.loads(mine.info["ttsnap"]), json.loads(theirs.info["ttsnap"])
        assert (told["seed"], told["call"], told["model"]) == (ours["seed"], ours["call"], ours["model"])
    assert reply.usage is not None
    usage, spent = reply.usage.to_dict(), out.search[0].spent
    assert (usage["nfe"], usage["seeds"], usage["total_tokens"]) == (spent.nfe, spent.seeds, 0)
    assert (reply.size, reply.output_format, reply.quality) == ("32x32", "png", "medium")


def test_searches_that_share_batches_find_what_they_find_alone(client: OpenAI) -> None:
    asked = [
        {"search": search, "seed": seed, "budget": budget, "steps": steps}
        for seed, (search, budget, steps) in enumerate(
            [("best-of-n", "24nfe", 6), ("seed-pruning", "30nfe", 6), ("svdd", "24nfe", 6), ("best-of-n", "15nfe", 5)]
        )
    ]

    def run(own: dict[str, object]) -> tuple[object, object]:
        reply = client.images.generate(prompt=PROMPT, extra_body=own).to_dict()
        image = reply["data"][0]
        return (image["seed"], round(image["reward"], 4)), reply["usage"]["nfe"]

    alone = [run(own) for own in asked]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(run, asked))
    assert together == alone


def test_a_stream_shows_estimates_and_ends_with_the_images(client: OpenAI) -> None:
    own = {"seed": 3, "budget": "60nfe"}
    stream = client.images.generate(
        prompt=PROMPT, n=2, stream=True, partial_images=2, output_format="jpeg", extra_body=own
    )
    events = [event.to_dict() for event in stream]
    kinds = [event["type"].removeprefix("image_generation.") for event in events]
    assert kinds == ["partial_image"] * kinds.count("partial_image") + ["completed"] * 2
    assert [event["partial_image_index"] for event in events[:-2]] == list(range(len(events) - 2))
    assert 1 <= len(events) - 2 <= 2
    assert all(picture(event["b64_json"]).format == "JPEG" for event in events)
    whole = client.images.generate(prompt=PROMPT, n=2, extra_body=own).to_dict()
    assert [event["seed"] for event in events[-2:]] == [image["seed"] for image in whole["data"]]
    assert events[-1]["usage"]["nfe"] == whole["usage"]["nfe"]


def test_images_that_fail_a_requirement_are_not_returned(client: OpenAI, server: GenerationServer) -> None:
    own = {"seed": 3, "budget": "100nfe", "search": "best-of-n", "reward": "brightness"}
    reply = client.images.generate(prompt=PROMPT, n=5, extra_body=own).to_dict()
    rewards = [image["reward"] for image in reply["data"]]
    asked = {**own, "require": [f"brightness>{(rewards[1] + rewards[2]) / 2}", "scenes<2"]}
    some = client.images.generate(prompt=PROMPT, n=5, extra_body=asked).to_dict()
    assert [image["reward"] for image in some["data"]] == pytest.approx(rewards[:2], abs=1e-5)
    assert any("3 of 5 finished images were refused (by brightness>" in warning for warning in some["warnings"])
    spent = metric(server, "ttsnap_nfe_total")
    with pytest.raises(openai.UnprocessableEntityError, match="no image meets") as error:
        client.images.generate(prompt=PROMPT, extra_body={**own, "require": "brightness>1"})
    assert (error.value.param, error.value.code) == ("require", "requirement_not_met")
    assert metric(server, "ttsnap_nfe_total") == spent + 100
    stream = client.images.generate(
        prompt=PROMPT,
        stream=True,
        partial_images=3,
        extra_body={**own, "search": "seed-pruning", "require": "brightness>0"},
    )
    *partials, last = [event.to_dict() for event in stream]
    shown = [np.asarray(picture(event["b64_json"])) for event in partials]
    assert all((one == np.asarray(picture(last["b64_json"]))).all() for one in shown[-1:]), "no estimate is shown"


@pytest.mark.parametrize(("body", "param", "said"), [
    ({"prompt": "three pink elephants"}, "prompt", "elephants"), ({"size": "32x99999"}, "size", "16 to 1024 pixels"),
    ({"search": "tuned.json"}, "search", "no search 'tuned.json' here"),
    ({"reward": "my_reward.py:score"}, "reward", "choose one of scenes, brightness"),
    ({"report": ["http://127.0.0.1:1"]}, "report", "choose one of scenes, brightness"),
    ({"require": "my_reward.py:score>1"}, "require", "choose one of scenes, brightness"),
    ({"require": ["scenes>=high"]}, "require", "cannot read requirement"),
    ({"budget": "many"}, "budget", "cannot read budget 'many'"),
    ({"budget": "1000images"}, "budget", "at most 4000 evaluations"),
    ({"budget": "9nfe", "quality": "low"}, "budget", "not both"), ({"seed": "1"}, "seed", "whole number"),
    ({"partial_images": 1}, "partial_images", "stream"), ({"budget": "3nfe"}, "budget", "too small for one image"),
    ({"budget": "1e9flop"}, "budget", "too small for one image"),
    ({"kernel": "my.py:kernel"}, "kernel", "my.py:kernel"),
    ({"kernel": "sde:square:1e308"}, "kernel", "so much noise that latents overflow in 20 steps"),
    ({"kernel": "ddim:nan"}, "kernel", "unknown kernel 'ddim:nan'"),
    ({"kernel": "ode", "search": "svdd"}, None, "choose a kernel that draws noise"), ({"size": "17x33"}, None, "17"),
    ({"size": "64x64"}, None, "draws"),
    ({"search": {"name": "seed-pruning", "steps": [50]}}, None, "steps [50] do not fit"),
])  # fmt: skip
def test_what_cannot_be_honoured_is_refused_by_name(
    server: GenerationServer, client: OpenAI, body: dict[str, Any], param: str | None, said: str
) -> None:
    spent = metric(server, "ttsnap_nfe_total")
    with pytest.raises(openai.BadRequestError) as error:
        client.images.generate(prompt=PROMPT, extra_body=body)
    assert said in error.value.message
    assert error.value.param == param
    assert error.value.type == "invalid_request_error"
    assert metric(server, "ttsnap_nfe_total") == spent, "nothing was computed"


def test_a_budget_that_evaluations_need_not_use_up_is_capped_in_evaluations(client: OpenAI) -> None:
    own = {"search": "best-of-n", "steps": 4}
    for budget in ("1tokens", "1gradients", "3images,1tokens"):
        nfe = client.images.generate(prompt=PROMPT, extra_body={**own, "budget": budget}).to_dict()["usage"]["nfe"]
        assert nfe == 4 * (3 if "images" in budget else 20)


def test_bodies_that_are_no_requests(server: GenerationServer) -> None:
    url = f"{server.url}/v1/images/generations"
    bodies = {b"{": "the request is damaged", b"[1]": "must be a JSON object", b"[" * 10**4: "nested", b"\xff": ""}
    for body, said in bodies.items():
        reply = httpx.post(url, content=body)
        assert reply.status_code in (400, 413), body[:9]
        assert said in reply.json()["error"]["message"]
    assert httpx.post(url, content=b" " * 2**17).status_code == 413
    assert httpx.put(url).status_code == 405
    assert httpx.get(f"{server.url}/nothing").json()["error"]["type"] == "not_found_error"


def test_without_jobs_whoever_asks_for_one_is_told(server: GenerationServer, client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="leave background out") as error:
        client.images.generate(prompt=PROMPT, extra_body={"background": True})
    assert error.value.code == "no_jobs"
    for path in ("images/generations", "images/edits/edit_1", "videos", "videos/video_1/content"):
        assert httpx.get(f"{server.url}/v1/{path}").json()["error"]["code"] == "no_jobs"
    told = httpx.delete(f"{server.url}/v1/videos/video_1").json()["error"]["message"]
    assert "ask POST /v1/videos/sync" in told


def test_models_health_and_what_is_ready(server: GenerationServer, client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["embedded"]
    assert client.models.retrieve("embedded").owned_by == "ttsnap"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("dall-e-3")
    with pytest.raises(openai.NotFoundError):
        client.images.generate(prompt=PROMPT, model="dall-e-3")
    assert httpx.get(f"{server.url}/health").status_code == 200
    assert httpx.get(f"{server.url}/ready").json() == {"status": "ready"}
    assert httpx.get(server.url, follow_redirects=True).url.path == "/docs"
    before = metric(server, "ttsnap_nfe_total")
    client.images.generate(prompt=PROMPT, extra_body={"budget": "20nfe"})
    assert before < metric(server, "ttsnap_nfe_total") <= before + 20
    assert metric(server, 'ttsnap_phase_seconds_total{phase="denoise"}') > 0
    assert 0 < metric(server, "ttsnap_batch_fill") <= 1


def test_a_client_that_goes_away_cancels_its_search(server: GenerationServer) -> None:
    url, body = f"{server.url}/v1/images/generations", LARGE
    cancelled, nfe = metric(server, 'ttsnap_requests_total{outcome="cancelled"}'), metric(server, "ttsnap_nfe_total")
    with httpx.stream("POST", url, json={**body, "stream": True, "partial_images": 1}, timeout=60) as reply:
        lines = reply.iter_lines()  # kept, as it closes the connection when it goes
        next(lines)
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(url, json=body, timeout=0.3)
    until(lambda: metric(server, 'ttsnap_requests_total{outcome="cancelled"}') == cancelled + 2)
    until(lambda: metric(server, "ttsnap_active") == 0)
    spent = metric(server, "ttsnap_nfe_total")
    assert spent < nfe + 3000, "neither search went on to its end"
    time.sleep(0.2)
    assert metric(server, "ttsnap_nfe_total") == spent


def test_a_large_request_does_not_keep_a_small_one_waiting(server: GenerationServer, client: OpenAI) -> None:
    large = {**LARGE, "stream": True, "partial_images": 1}
    small = {"budget": "4nfe", "search": "best-of-n", "seed": 1, "steps": 4}
    with httpx.stream("POST", f"{server.url}/v1/images/generations", json=large, timeout=60) as reply:
        lines = reply.iter_lines()  # kept, as it closes the connection when it goes
        next(lines)
        before = metric(server, "ttsnap_nfe_total")
        client.images.generate(prompt="a red circle", extra_body=small)
        # 4 steps, one in each batch of 16 rows at most; and a few batches while the requests are on their way.
        assert metric(server, "ttsnap_nfe_total") - before <= 40 * 16
        assert metric(server, "ttsnap_active") == 1, "the large one still runs"
    until(lambda: metric(server, "ttsnap_active") == 0)


def test_limits_on_the_queue_and_on_each_key(serving: Callable[..., GenerationServer], tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(f"alice {'a' * 20}\nbob {'b' * 20}\n")
    server = serving(ServiceLimits(active=1, queue=1, per_key=2, drain=0.1, seconds=60), Keys.read(tmp_path / "keys"))
    alice, bob = client_of(server, "a" * 20), client_of(server, "b" * 20)
    large = {**LARGE, "stream": True, "partial_images": 1}
    url, headers = f"{server.url}/v1/images/generations", {"Authorization": f"Bearer {'a' * 20}"}
    small = {**LARGE, "budget": "8nfe"}
    with ThreadPoolExecutor(1) as pool:
        with httpx.stream("POST", url, json=large, headers=headers, timeout=60) as running:
            lines = running.iter_lines()
            next(lines)
            waiting = pool.submit(httpx.post, url, json=small, headers=headers, timeout=60)
            until(lambda: metric(server, "ttsnap_queue") == 1)
            with pytest.raises(openai.RateLimitError, match="2 requests of yours") as error:
                alice.images.generate(prompt=PROMPT)
            assert error.value.response.headers["retry-after"] == "5"
            with pytest.raises(openai.RateLimitError, match="1 requests wait already") as error:
                bob.images.generate(prompt=PROMPT)
            assert error.value.code == "queue_full"
        assert waiting.result().status_code == 200
    until(lambda: metric(server, "ttsnap_active") == metric(server, "ttsnap_queue") == 0)
    assert alice.images.generate(prompt=PROMPT, extra_body={"budget": "20nfe"}).data
    for key in ("c" * 20, "", "a" * 19):
        with pytest.raises(openai.OpenAIError) as refused:
            client_of(server, key).images.generate(prompt=PROMPT)
        if key:
            assert isinstance(refused.value, openai.AuthenticationError)
            assert refused.value.code == "invalid_api_key"
            assert key not in str(refused.value)
    assert httpx.get(f"{server.url}/v1/models").status_code == 401
    assert httpx.get(f"{server.url}/health").status_code == 200


@pytest.mark.parametrize(("open_docs", "without_key"), [(False, 401), (True, 200)])
def test_the_documentation_asks_for_a_key_unless_it_is_opened(
    serving: Callable[..., GenerationServer], open_docs: bool, without_key: int
) -> None:
    key = "a" * 20
    server = serving(keys=replace(Keys.of(key), open_docs=open_docs))
    for path in ("/openapi.json", "/docs"):
        assert httpx.get(server.url + path).status_code == without_key
        assert httpx.get(server.url + path, headers={"Authorization": f"Bearer {key}"}).status_code == 200
    schema = httpx.get(f"{server.url}/openapi.json", headers={"Authorization": f"Bearer {key}"}).json()
    for path, kind in (("generations", "application/json"), ("edits", "multipart/form-data")):
        operation = schema["paths"][f"/v1/images/{path}"]["post"]
        assert "prompt" in operation["requestBody"]["content"][kind]["schema"]["properties"]
        assert operation["security"] == [{"HTTPBearer": []}]
    assert httpx.get(f"{server.url}/v1/models").status_code == 401, "all else asks for a key as before"


def test_where_no_key_is_needed_the_documentation_needs_none(server: GenerationServer) -> None:
    page = httpx.get(f"{server.url}/docs")
    assert page.status_code == 200
    assert "text/html" in page.headers["content-type"]
    assert "/v1/images/generations" in page.text


def test_a_search_ends_in_time_with_its_best_image(client: OpenAI) -> None:
    begin = time.monotonic()
    reply = client.images.generate(prompt=PROMPT, extra_body={"budget": "0.5s", "search": "best-of-n"}).to_dict()
    assert time.monotonic() - begin < 15
    assert len(reply["data"]) == 1
    assert not any("stopped early" in warning for warning in reply["warnings"])  # it had all the time that it asked for
