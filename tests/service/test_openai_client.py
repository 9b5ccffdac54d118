"""OpenAI's own clients, which ask again by themselves, at a service that is busy, restarted, or asked for nonsense."""

from __future__ import annotations

import asyncio
import base64
import itertools
import re
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import httpx
import openai
import openai._base_client as machinery
import pytest
from openai import AsyncOpenAI, OpenAI
from PIL import Image

from tests.service.conftest import EDITS, PROMPT, client_of, metric, one_device, picture, png, serve, until
from ttsnap.scenes import caption, parse
from ttsnap.service.keys import Keys
from ttsnap.service.limits import ServiceLimits
from ttsnap.service.server import GenerationServer

OWN: dict[str, Any] = {"budget": "8nfe", "search": "best-of-n", "steps": 4}
COLOURS, SHAPES = ("red", "green", "blue", "yellow"), ("circle", "square", "triangle", "cross")
CAPTIONS = [caption(parse(f"a {colour} {shape}")) for colour, shape in itertools.product(COLOURS, SHAPES)]
"""None is part of another."""
PATHS = re.compile(r"/(tmp|home|root|work|usr|var|opt)/|site-packages|\.py\b|0x[0-9a-f]{6}")
Serve = Callable[..., GenerationServer]


@pytest.fixture(scope="module")
def drawn(drawn: list[Image.Image]) -> list[bytes]:
    return list(map(png, drawn))


@pytest.fixture(scope="module")
def served(editor: Any) -> Serve:
    """Makes servers of images and edits."""
    engines = one_device(editor)
    return lambda *given, **more: serve(engines, EDITS, *given, **more)


@pytest.fixture(scope="module")
def server(editing: GenerationServer) -> GenerationServer:
    return editing


@pytest.fixture(scope="module")
def client(server: GenerationServer) -> Iterator[OpenAI]:
    with closing(client_of(server)) as client:
        yield client


def told(reply: Any) -> tuple[int, float]:
    """The seed and the reward of the best image."""
    best = reply.to_dict()["data"][0]
    return best["seed"], round(best["reward"], 4)


def run(made: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(made, 120))


# --- images and edits ----------------------------------------------------------------------------------------------


def test_the_asynchronous_client_gets_what_the_other_one_gets(
    server: GenerationServer, client: OpenAI, drawn: list[bytes]
) -> None:
    given, own = ("a.png", drawn[0]), {**OWN, "seed": 5}
    alone = [
        told(client.images.generate(prompt=PROMPT, extra_body=own)),
        told(client.images.edit(image=given, prompt=PROMPT, extra_body=own)),
    ]

    async def made() -> None:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as other:
            generate, edit = other.images.generate, other.images.edit
            together = await asyncio.gather(
                generate(prompt=PROMPT, extra_body=own), edit(image=given, prompt=PROMPT, extra_body=own)
            )
            assert [told(reply) for reply in together] == alone
            for stream in (
                await generate(prompt=PROMPT, stream=True, extra_body=own),
                await edit(image=given, prompt=PROMPT, stream=True, extra_body=own),
            ):
                *_, last = [event.to_dict() async for event in stream]
                assert last["type"].endswith(".completed")
            for wrong, kind in ((own | {"steps": 0}, openai.BadRequestError), ({"model": "x"}, openai.NotFoundError)):
                with pytest.raises(kind) as error:
                    await generate(prompt=PROMPT, extra_body=wrong)
                assert error.value.param in wrong
            assert [model.id async for model in other.models.list()] == ["embedded"]

    run(made())


def test_an_edit_has_the_size_that_is_asked_for(client: OpenAI, drawn: list[bytes]) -> None:
    made = [
        client.images.edit(image=("a.png", drawn[1]), prompt=PROMPT, output_format="jpeg", extra_body=OWN | size)
        for size in ({}, {"size": "auto"}, {"size": "24x32"})
    ]
    assert [reply.size for reply in made] == ["32x32", "32x32", "24x32"]
    resized = ["the picture of 24x32 was taken as one of 32x32"]
    assert [reply.to_dict()["warnings"] for reply in made] == [resized, resized, []]
    for reply in made:
        image = picture(reply.to_dict()["data"][0]["b64_json"])
        assert f"{image.width}x{image.height}" == reply.size
        assert (image.format, image.mode, reply.output_format) == ("JPEG", "RGB", "jpeg")


def test_zero_is_a_seed(client: OpenAI, drawn: list[bytes]) -> None:
    own = {**OWN, "budget": "1images", "seed": 0}
    assert told(client.images.generate(prompt=PROMPT, extra_body=own))[0] == 0
    assert told(client.images.edit(image=("a.png", drawn[0]), prompt=PROMPT, extra_body=own))[0] == 0


@pytest.mark.parametrize("form", ["jpeg", "webp"])
def test_compression_makes_files_smaller(client: OpenAI, form: Any) -> None:
    own = {**OWN, "budget": "1images", "seed": 1}
    sizes = [
        len(client.images.generate(
            prompt=PROMPT, output_format=form, output_compression=quality, extra_body=own
        ).to_dict()["data"][0]["b64_json"])
        for quality in (10, 50, 100)
    ]  # fmt: skip
    assert sizes == sorted(set(sizes))


def test_images_of_several_sizes_at_once(client: OpenAI) -> None:
    sizes = ["32x32", "16x32", "32x16", "24x24"] * 2

    def size_of(size: str) -> str:
        reply = client.images.generate(prompt=PROMPT, size=size, extra_body=OWN).to_dict()
        image = picture(reply["data"][0]["b64_json"])
        return f"{image.width}x{image.height}"

    with ThreadPoolExecutor(len(sizes)) as pool:
        assert list(pool.map(size_of, sizes)) == sizes


# --- errors ----------------------------------------------------------------------------------------------------------


def test_a_stream_that_cannot_begin_is_refused_as_any_other_request(client: OpenAI, drawn: list[bytes]) -> None:
    for own, param in (({"size": "17x33"}, None), ({"budget": "3nfe"}, "budget"), ({"kernel": "x:y"}, "kernel")):
        with pytest.raises(openai.BadRequestError) as error:
            client.images.generate(prompt=PROMPT, stream=True, extra_body=OWN | own)
        assert error.value.param == param
    two = [(f"{i}.png", drawn[i]) for i in range(2)]
    with pytest.raises(openai.BadRequestError, match="takes one image"):
        client.images.edit(image=two, prompt=PROMPT, stream=True, extra_body=OWN | {"strength": 0.5})


def test_a_stream_that_fails_later_raises_in_the_client(client: OpenAI) -> None:
    stream = client.images.generate(prompt=PROMPT, stream=True, extra_body=OWN | {"require": "brightness>1"})
    with pytest.raises(openai.APIError, match="no image meets") as error:
        list(stream)
    assert (error.value.param, error.value.code) == ("require", "requirement_not_met")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_openai_s_api_has_and_this_service_lacks_is_refused_in_openai_s_shape(
    client: OpenAI, drawn: list[bytes]
) -> None:
    given = ("a.png", drawn[0])
    videos: Any = client.videos
    lacks: list[Callable[[], object]] = [
        lambda: client.images.create_variation(image=given),
        lambda: videos.create(prompt=PROMPT),
        lambda: videos.remix("video_1", prompt=PROMPT),
        lambda: client.images.generate(prompt=PROMPT, background="transparent"),
        lambda: client.images.generate(prompt=PROMPT, output_format="svg"),
        lambda: client.images.edit(image=given, prompt=PROMPT, input_fidelity="high"),
        lambda: client.images.edit(image=given, prompt=PROMPT, markup=given),
        lambda: client.embeddings.create(input="x", model="embedded"),
    ]
    params = []
    for ask in lacks:
        with pytest.raises((openai.BadRequestError, openai.NotFoundError)) as error:
            ask()
        assert set(error.value.body) == {"message", "type", "param", "code"}  # type: ignore[call-overload]
        params.append(error.value.param)
    named = ["background", "output_format", "input_fidelity", "markup"]
    assert params == [None, "model", None, *named, None]


def test_answers_have_ids_of_their_own(client: OpenAI) -> None:
    reply = client.images.generate(prompt=PROMPT, extra_body=OWN)
    with pytest.raises(openai.BadRequestError) as error:
        client.images.generate(prompt=PROMPT, n=0)
    assert reply._request_id != error.value.request_id
    for name in (reply._request_id, error.value.request_id):
        assert re.fullmatch("req_[0-9a-f]{16}", str(name))


def test_health_tells_of_a_thread_that_has_ended(served: Serve) -> None:
    server = served()
    server._socket.close()  # never begun, and so without the thread of searches

    async def made() -> None:
        app = httpx.ASGITransport(app=server._server.config.app)
        async with httpx.AsyncClient(transport=app, base_url="http://x") as client:
            health, ready = await client.get("/health"), await client.get("/ready")
            refused = await client.post("/v1/images/generations", json={"prompt": PROMPT})
        assert (health.status_code, ready.status_code, refused.status_code) == (503, 503, 503)
        assert (refused.json()["error"]["code"], refused.headers["retry-after"]) == ("stopping", "5")

    run(made())


# --- clients that ask again ------------------------------------------------------------------------------------------


def test_every_prepared_of_a_crowd_is_answered_by_clients_that_ask_again(
    served: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ttsnap.service.worker.AGAIN", 1)
    limits = ServiceLimits(active=2, queue=2, per_key=99, drain=0.1)
    with served(limits) as server, closing(client_of(server)) as patient:
        alone = {seed: told(patient.images.generate(prompt=PROMPT, extra_body=OWN | {"seed": seed})) for seed in (0, 7)}
        before = metric(server, 'ttsnap_requests_total{outcome="done"}')
        address: dict[str, Any] = {"base_url": f"{server.url}/v1", "api_key": "none", "max_retries": 20}

        def ask(seed: int) -> tuple[int, float]:
            with OpenAI(**address) as client:
                return told(client.images.generate(prompt=PROMPT, extra_body=OWN | {"seed": seed}))

        async def asked(seeds: range) -> list[tuple[int, float]]:
            async with AsyncOpenAI(**address) as client:
                own = [OWN | {"seed": seed} for seed in seeds]
                replies = [client.images.generate(prompt=PROMPT, extra_body=each) for each in own]
                return [told(reply) for reply in await asyncio.gather(*replies)]

        with ThreadPoolExecutor(13) as pool:
            others = pool.submit(lambda: asyncio.run(asked(range(12, 24))))
            found = list(pool.map(ask, range(12))) + others.result()
        assert metric(server, 'ttsnap_requests_total{outcome="refused"}') > 0
        assert metric(server, 'ttsnap_requests_total{outcome="done"}') == before + 24, "none is done twice"
        assert {seed: found[seed] for seed in alone} == alone


def test_a_restart_loses_no_prepared_of_clients_that_ask_again(served: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    waits, wait = list[float](), machinery.BaseClient._calculate_retry_timeout

    def shorter(client: Any, *given: Any) -> float:
        waits.append(wait(client, *given))
        return waits[-1] / 10

    monkeypatch.setattr(machinery.BaseClient, "_calculate_retry_timeout", shorter)
    limits = ServiceLimits(active=1, per_key=99, drain=0.01)
    with served(limits) as first, ThreadPoolExecutor(8) as pool:
        client = OpenAI(base_url=f"{first.url}/v1", api_key="none", max_retries=100)
        large = OWN | {"budget": "2000nfe"}  # ends early
        asked = [
            pool.submit(client.images.generate, prompt=PROMPT, extra_body=large | {"seed": seed}) for seed in range(8)
        ]
        until(lambda: metric(first, "ttsnap_active") == 1 and len(first.worker._waiting) == 7)
        first.__exit__()
        until(lambda: waits)
        with served(ServiceLimits(active=1, per_key=99, drain=0.01, seconds=0.2), port=first.port), closing(client):
            assert all(told(reply.result())[1] > 0 for reply in asked)
    assert 5.0 in waits, "what waited was told when to come again"


# --- secrets ---------------------------------------------------------------------------------------------------------


def whole(reply: httpx.Response) -> str:
    """All that a reply says, metadata of its images included."""
    text = str(reply.headers) + reply.text
    for data in re.findall(r'"b64_json": ?"([^"]+)"', reply.text):
        text += base64.b64decode(data).decode("latin-1")
    return text


def test_nobody_sees_another_s_prompt_or_the_server_s_places(served: Serve, drawn: list[bytes]) -> None:
    """Searches, streams, edits and mistakes of sixteen callers at once, which share batches."""
    names = [f"caller-{i:02}" for i in range(len(CAPTIONS))]
    keys = Keys(tuple(itertools.chain.from_iterable(Keys.of(f"{name}-key-of-many").callers for name in names)))

    def ask(i: int) -> str:
        body = {"prompt": CAPTIONS[i], "negative_prompt": f"{names[i]} hates it", "user": names[i], **OWN, "seed": i}
        body |= [{}, {"stream": True, "partial_images": 1}, {}, {"size": "17x33"}][i % 4]
        own: dict[str, Any] = {"timeout": 120, "headers": {"Authorization": f"Bearer {names[i]}-key-of-many"}}
        if i % 4 != 2:
            return whole(httpx.post(f"{server.url}/v1/images/generations", json=body, **own))
        files = {"image": ("a.png", drawn[i % len(drawn)])}
        return whole(httpx.post(f"{server.url}/v1/images/edits", data=body, files=files, **own))

    with served(keys=keys) as server:
        with ThreadPoolExecutor(len(CAPTIONS)) as pool:
            replies = list(pool.map(ask, range(len(CAPTIONS))))
        open_to_all = httpx.get(f"{server.url}/metrics").text
    for i, reply in enumerate(replies):
        assert not PATHS.search(re.sub(r'"b64_json": ?"[^"]+"', "", reply)), "no path, no address of memory"
        for secret in (CAPTIONS, names):
            seen = {j for j, each in enumerate(secret) if each in reply}
            assert seen <= {i}, reply[:300]
            assert i % 4 == 3 or seen == {i}, "its own is in the metadata of its image"
    assert not any(secret in open_to_all for secret in (*CAPTIONS, *names))
    assert "at most 32 x 32 pixels" in replies[3]
