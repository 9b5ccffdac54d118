"""What OpenAI's clients send, which ask again by themselves, and those of its older models, of vLLM-Omni and SGLang."""

from __future__ import annotations

import asyncio
import base64
import io
import itertools
import logging
import re
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from typing import Any

import openai
import openai._base_client as machinery
import pytest
import torch
from fastapi.testclient import TestClient
from openai import AsyncOpenAI, OpenAI
from PIL import Image

from tests.service.asking import ALICE, BOB, EDITED, IMAGES, PROMPT, SMALL, Caller, best, picture, refusal, until
from tests.service.conftest import EDITS, client_of, one_device, serve
from ttsnap.core.results import Event
from ttsnap.loop.budget import Budget
from ttsnap.pipelines.pipeline_copy import copied
from ttsnap.request.offer import ServingCatalog
from ttsnap.scenes import caption, parse
from ttsnap.service.keys import Keys
from ttsnap.service.limits import ServiceLimits
from ttsnap.service.replies import file_of
from ttsnap.service.requests import Generation, in_our_names, notes_of, prepared_of, validated
from ttsnap.service.server import GenerationServer
from ttsnap.service.tickets import Partial, Progress

OWN: dict[str, Any] = {**SMALL, "budget": "8nfe", "seed": 5}
COLOURS, SHAPES = ("red", "green", "blue", "yellow"), ("circle", "square", "triangle", "cross")
CAPTIONS = [caption(parse(f"a {colour} {shape}")) for colour, shape in itertools.product(COLOURS, SHAPES)]
"""None is part of another."""
PATHS = re.compile(r"/(tmp|home|root|work|usr|var|opt)/|site-packages|\.py\b|0x[0-9a-f]{6}")
Serve = Callable[..., GenerationServer]


@pytest.fixture(scope="module")
def served(editor: Any) -> Serve:
    """Makes servers of images and edits."""
    engines = one_device(editor)
    return lambda *given, **more: serve(engines, EDITS, *given, **more)


@pytest.fixture(scope="module")
def client(editing: GenerationServer) -> Iterator[OpenAI]:
    with closing(client_of(editing)) as client:
        yield client


def told(reply: Any) -> tuple[int, float]:
    return best(reply.to_dict())


def test_the_asynchronous_client_gets_what_the_other_one_gets(client: OpenAI, drawn: list[bytes]) -> None:
    given, own = ("a.png", drawn[0]), dict[str, Any](prompt=PROMPT, extra_body=OWN)
    alone = [told(client.images.generate(**own)), told(client.images.edit(image=given, **own))]

    async def made() -> None:
        async with AsyncOpenAI(base_url=client.base_url, api_key="none", max_retries=0) as other:
            generate, edit = other.images.generate, other.images.edit
            together = await asyncio.gather(generate(**own), edit(image=given, **own))
            assert [told(reply) for reply in together] == alone
            for stream in (await generate(stream=True, **own), await edit(image=given, stream=True, **own)):
                *_, last = [event.to_dict() async for event in stream]
                assert last["type"].endswith(".completed")
            with pytest.raises(openai.BadRequestError):
                await generate(prompt=PROMPT, n=0)
            assert [model.id async for model in other.models.list()] == ["embedded"]

    asyncio.run(asyncio.wait_for(made(), 120))


def test_a_stream_that_fails_later_raises_in_the_client(client: OpenAI) -> None:
    stream = client.images.generate(prompt=PROMPT, stream=True, extra_body=OWN | {"require": "brightness>1"})
    with pytest.raises(openai.APIError) as error:
        list(stream)
    assert (error.value.param, error.value.code) == ("require", "requirement_not_met")


def test_health_tells_of_a_thread_that_has_ended(served: Serve) -> None:
    server = served()
    server._socket.close()  # never begun, and so without the thread of searches

    app = TestClient(server._server.config.app)
    assert [app.get(path).status_code for path in ("/health", "/ready")] == [503, 503]
    refused = app.post(IMAGES, json={"prompt": PROMPT})
    assert (*refusal(refused), refused.headers["retry-after"]) == (503, None, "stopping", "5")


# --- clients that ask again ------------------------------------------------------------------------------------------


def test_every_request_of_a_crowd_is_answered_by_clients_that_ask_again(
    served: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ttsnap.service.worker.AGAIN", 1)
    with served(ServiceLimits(active=2, queue=2, per_key=99, drain=0.1)) as server:
        caller = Caller(server.url)
        alone = {seed: best(caller.made(**OWN | {"seed": seed})) for seed in (0, 7)}
        before = caller.metric('requests_total{outcome="done"}')

        async def asked() -> list[tuple[int, float]]:
            async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=20) as client:
                own = [OWN | {"seed": seed} for seed in range(24)]
                replies = [client.images.generate(prompt=PROMPT, extra_body=each) for each in own]
                return [told(reply) for reply in await asyncio.gather(*replies)]

        found = asyncio.run(asked())
        assert caller.metric('requests_total{outcome="refused"}') > 0
        assert caller.metric('requests_total{outcome="done"}') == before + 24, "none is done twice"
        assert {seed: found[seed] for seed in alone} == alone


def test_a_restart_loses_no_request_of_clients_that_ask_again(served: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    waits, wait = list[float](), machinery.BaseClient._calculate_retry_timeout

    def shorter(client: Any, *given: Any) -> float:
        waits.append(wait(client, *given))
        return waits[-1] / 10

    monkeypatch.setattr(machinery.BaseClient, "_calculate_retry_timeout", shorter)
    limits = ServiceLimits(active=1, per_key=99, drain=0.01)
    with served(limits) as first, ThreadPoolExecutor(8) as pool:
        client = OpenAI(base_url=f"{first.url}/v1", api_key="none", max_retries=100)
        large = [OWN | {"budget": "2000nfe", "seed": seed} for seed in range(8)]  # end early
        asked = [pool.submit(client.images.generate, prompt=PROMPT, extra_body=own) for own in large]
        until(lambda: Caller(first.url).metric("active") == 1 and len(first.worker._waiting) == 7)
        first.__exit__()
        until(lambda: waits)
        with served(ServiceLimits(active=1, per_key=99, drain=0.01, seconds=0.2), port=first.port), closing(client):
            assert all(told(reply.result())[1] > 0 for reply in asked)
    assert 5.0 in waits, "what waited was told when to come again"


# --- secrets ---------------------------------------------------------------------------------------------------------


def test_nobody_sees_another_s_prompt_or_the_server_s_places(served: Serve, drawn: list[bytes]) -> None:
    """Searches, streams, edits and mistakes of sixteen callers at once, which share batches."""
    names = [f"caller-{i:02}" for i in range(len(CAPTIONS))]
    keys = Keys(tuple(itertools.chain.from_iterable(Keys.of(f"{name}-key-of-many").callers for name in names)))

    def ask(i: int) -> str:
        """All that a reply says, metadata of its images included."""
        body = {"negative_prompt": f"{names[i]} hates it", "user": names[i], **OWN, "prompt": CAPTIONS[i]}
        body |= [{}, {"stream": True, "partial_images": 1}, {}, {"size": "17x33"}][i % 4]
        caller, files = Caller(server.url, f"{names[i]}-key-of-many"), {"image": ("a.png", drawn[i % len(drawn)])}
        reply = caller.send(**body) if i % 4 != 2 else caller.ask("POST", EDITED, data=body, files=files)
        data = re.findall(r'"b64_json": ?"([^"]+)"', reply.text)
        return str(reply.headers) + reply.text + "".join(base64.b64decode(each).decode("latin-1") for each in data)

    with served(keys=keys) as server:
        with ThreadPoolExecutor(len(CAPTIONS)) as pool:
            replies = list(pool.map(ask, range(len(CAPTIONS))))
        open_to_all = Caller(server.url).get("/metrics").text
    for i, reply in enumerate(replies):
        assert not PATHS.search(re.sub(r'"b64_json": ?"[^"]+"', "", reply)), "no path, no address of memory"
        for secret in (CAPTIONS, names):
            seen = {j for j, each in enumerate(secret) if each in reply}
            assert seen <= {i}, reply[:300]
            assert i % 4 == 3 or seen == {i}, "its own is in the metadata of its image"
    assert not any(secret in open_to_all for secret in (*CAPTIONS, *names))
    assert "at most 32 x 32" in replies[3]


# --- other clients -------------------------------------------------------------------------------------------------


def test_fields_of_other_servers_mean_what_ours_do(caller: Caller) -> None:
    ours = caller.made(size="32x32", guidance_scale=2.5)
    theirs = {"steps": None, "num_inference_steps": 4, "width": 32, "height": 32, "true_cfg_scale": 2.5}
    unused = {"generator_device": "cuda", "vae_use_tiling": True, "enable_teacache": True, "user": "u-1"}
    unused |= {"style": "vivid", "bot_task": "think", "cache_dit_steps": 3}
    off = {"enable_upscaling": False, "diffusers_kwargs": {}, "layers": 0, "rollout": " None "}
    reply = caller.made(**theirs, **unused, **off, lora=None, moderation="low")
    assert [image["b64_json"] for image in reply["data"]] == [image["b64_json"] for image in ours["data"]]
    assert ours["warnings"] == []
    assert reply["warnings"] == [f"not used here: {', '.join((*unused, *off, 'moderation'))}"]
    mine, called, left = in_our_names({"width": "64", "height": "32", "num_inference_steps": "4", "rollout": "false"})
    assert (mine, called["steps"]) == ({"size": "64x32", "steps": "4"}, "num_inference_steps")
    assert left == ["rollout"]


def test_a_model_with_two_guidances_gets_each_under_its_own_name(offer: ServingCatalog) -> None:
    wanted = Generation(prompt="a red circle", guidance_scale=2.0, true_cfg_scale=3.0)
    call = prepared_of(wanted, replace(offer, true_cfg=True), ServiceLimits()).call
    assert (call["guidance_scale"], call["true_cfg_scale"]) == (2.0, 3.0)


@pytest.mark.parametrize("n", [1, 2])
def test_a_reply_may_be_the_files_or_their_addresses(caller: Caller, n: int) -> None:
    """As vLLM-Omni's is: of one image the image, of several a zip."""
    told = caller.made(n=n)
    reply = caller.send(**{**SMALL, "n": n, "output_format": "PNG", "response_format": "file"})
    assert reply.headers["content-type"] == {1: "image/png", 2: "application/zip"}[n]
    files = [reply.content]
    if n > 1:
        with zipfile.ZipFile(io.BytesIO(reply.content)) as archive:
            assert archive.namelist() == ["1.png", "2.png"]
            files = [archive.read(name) for name in archive.namelist()]
    addressed = caller.made(n=n, response_format="url")["data"]
    for file, address, image in zip(files, addressed, told["data"], strict=True):
        assert Image.open(io.BytesIO(file)).tobytes() == picture(image["b64_json"]).tobytes()
        assert address["url"] == f"data:image/png;base64,{image['b64_json']}"
        assert "b64_json" not in address


@pytest.mark.parametrize("form", ["jpeg", "webp"])
def test_compression_makes_files_smaller(form: Any) -> None:
    pixels = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    sizes = [
        len(file_of(pixels, Generation("x", output_format=form, output_compression=quality)))
        for quality in (0, 50, 100)
    ]
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize(
    ("quality", "effort", "images"),
    [("standard", "medium", 20), ("hd", "high", 80), ("xhigh", "high", 80), ("max", "high", 80), ("low", "low", 5)],
)
def test_older_and_newer_qualities_are_efforts(offer: ServingCatalog, quality: str, effort: str, images: int) -> None:
    wanted = validated(Generation, {"prompt": "a red circle", "quality": quality})
    assert wanted.effort == effort
    assert prepared_of(wanted, offer, ServiceLimits()).budget == Budget.of_effort(effort) == Budget(images=images)


def test_what_limits_take_away_is_told(offer: ServingCatalog) -> None:
    limits = ServiceLimits(nfe=100, seconds=5)

    def notes(**given: Any) -> tuple[str, ...]:
        wanted = Generation(prompt="a red circle", **given)
        return notes_of(wanted, prepared_of(wanted, offer, limits), limits)

    (few,), (short,) = notes(quality="high"), notes(budget="60s")
    assert re.findall(r"\d+", few) == ["100", "5", "80"], "evaluations here, images' worth of those that were asked for"
    assert re.findall(r"\d+", short) == ["5", "60"]
    assert notes(quality="low") == ()


# --- partial images -------------------------------------------------------------------------------------------------


class Heard(list[tuple[int, float]]):
    """A ticket that notes how much of the search had arrived when it was told of a partial image."""

    partials, nfe, job, seconds = 0, 0, False, 100.0

    def tell(self, news: Partial) -> None:
        self.append((news.index, self.nfe))

    def fetch(self) -> torch.Tensor:
        return torch.zeros(3, 1, 1)


@pytest.mark.parametrize(("most", "allowance", "moves", "together", "seconds", "safe", "told"), [
    # A move is charged at once: not (0, 4), (1, 8), (2, 12), as when all 80 count from the start.
    (3, 100.0, [(20, 80), (2, 20)], 1, 0.0, 0, [(0, 4), (1, 36), (2, 68)]),
    # Best-of-N, whose candidates are scored when they are finished, all at once: the best, one in a third.
    (3, 100.0, [(20, 100)], 16, 0.0, 0, [(0, 80)]),
    # A budget in seconds is shared out by the clock.
    (2, 4000.0, [(10, 10)], 1, 10.0, 0, [(0, 1), (1, 6)]),
    # What the safety checker flags is not shown.
    (3, 100.0, [(20, 100)], 1, 0.0, 41, [(0, 45), (1, 70), (2, 100)]),
])  # fmt: skip
def test_partial_images_come_evenly_over_a_search(
    most: int, allowance: float, moves: list[tuple[int, int]], together: int, seconds: float, safe: int,
    told: list[tuple[int, int]],
) -> None:  # fmt: skip
    """moves: rows and evaluations. together: scores of a batch. seconds: of a batch. safe: only after so many."""
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
def test_partial_images_pass_the_safety_checker(pipe: Any, offer: ServingCatalog, unsafe: bool) -> None:
    judged, model = list[int](), copied(pipe, type(pipe))

    def checker(images: torch.Tensor, *_: object) -> tuple[torch.Tensor, list[bool]]:
        judged.append(len(images))
        return 0 * images, [unsafe] * len(images)

    vars(model).update(safety_checker=torch.nn.Identity(), run_safety_checker=checker)
    with serve(one_device(model), replace(offer, rewards=("brightness",))) as server:
        told = Caller(server.url).send(stream=True, partial_images=2, steps=4, budget="16nfe").text
    assert ("image_generation.partial_image" in told) is not unsafe
    assert "image_generation.completed" in told
    assert ("1 of 1 images" in told) is unsafe
    assert len(judged) > 1, "what is shown on the way, too"


# --- the access log -------------------------------------------------------------------------------------------------


def test_a_request_is_a_line_without_its_query(
    serving: Callable[..., GenerationServer], caplog: pytest.LogCaptureFixture, two_keys: Keys
) -> None:
    server = serving(keys=two_keys)
    anybody, alice = Caller(server.url), Caller(server.url, ALICE)
    with caplog.at_level(logging.INFO, "ttsnap.service.access"):
        alice.made()
        assert "completed" in alice.send(**SMALL, stream=True).text
        named = [alice.send(**own).headers["x-request-id"] for own in ({"size": "17x33"}, {"steps": 0})]
        assert anybody.by(BOB[1:]).send().status_code == 401
        anybody.get(f"/health?key={ALICE}")
        anybody.get("/no%0athing%20here")
        alice.left()
        server.__exit__()
    lines = [record.getMessage() for record in caplog.records if record.name == "ttsnap.service.access"]
    generations = "POST /v1/images/generations"
    expected = [
        *[(f"{generations} 200", r"alice nfe=16")] * 2, (f"{generations} 400", "alice nfe=0"),
        (f"{generations} 400", "alice nfe=-"), (f"{generations} 401", "- nfe=-"), ("GET /health 200", "- nfe=-"),
        ("GET /no%0Athing%20here 404", "- nfe=-"), (f"{generations} 499", r"alice nfe=\d+"),
    ]  # fmt: skip
    for line, (request, key) in zip(lines, expected, strict=True):
        assert re.fullmatch(rf"{request} \d+\.\d{{3}} s key={key} id=req_[0-9a-f]{{16}}", line), (line, request)
    assert [line.rpartition("id=")[2] for line in lines[2:4]] == named
    assert ALICE not in caplog.text
