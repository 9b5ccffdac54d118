"""Edits as OpenAI's client asks for them, over the embedded model, which redraws pictures."""

from __future__ import annotations

import asyncio
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from openai import OpenAI
from PIL import Image
from starlette.datastructures import Headers

from tests.service.conftest import EDITS, PROMPT, apart, client_of, one_device, picture, png, serve, until
from ttsnap.algorithms.best_of_n import BestOfN
from ttsnap.core.prompt import Prompt
from ttsnap.core.protocols import Engine
from ttsnap.files.pictured import Blank, Picture
from ttsnap.loop.search import search
from ttsnap.pipelines import defaults
from ttsnap.request.request import EngineSpec
from ttsnap.service.bodies import sent
from ttsnap.service.edits import Edit, edit_of
from ttsnap.service.engines import OneDevice
from ttsnap.service.job_store import JobStore
from ttsnap.service.limits import ServiceLimits
from ttsnap.service.monitoring import Metrics
from ttsnap.service.opening import offer_of
from ttsnap.service.requests import Generation, plain, prepared_of
from ttsnap.service.server import GenerationServer
from ttsnap.service.tickets import Done, News, Passed, PendingRequest, RequestParser
from ttsnap.service.worker import Worker

OWN = {"seed": 3, "budget": "16nfe", "search": "best-of-n", "steps": 4, "strength": 0.75, "negative_prompt": "noise"}


@pytest.fixture(scope="module")
def client(editing: GenerationServer) -> OpenAI:
    return client_of(editing)


def test_an_edit_is_what_the_pipeline_gives(client: OpenAI, editor: Any, drawn: list[Image.Image]) -> None:
    reply = client.images.edit(image=("drawn.png", png(drawn[0])), prompt=PROMPT, n=2, extra_body=OWN)
    call = {**defaults(), "num_inference_steps": 4, "strength": 0.75, "negative_prompt": "noise", "image": drawn[0]}
    out = editor(
        prompt=PROMPT, search="best-of-n", reward="brightness", budget="16nfe", seed=3, num_images_per_prompt=2, **call
    )
    assert reply.data is not None
    assert [image.to_dict()["seed"] for image in reply.data] == [c.seed for c in out.search[0].images]
    for image, theirs in zip(reply.data, out.images, strict=True):
        assert apart(picture(str(image.b64_json)), theirs) <= 1


def test_edits_of_several_callers_share_an_engine_and_its_batches(editor: Any) -> None:
    made: list[EngineSpec] = []

    class Counting(OneDevice):
        def engine(self, spec: EngineSpec) -> AbstractContextManager[Engine]:
            made.append(spec)
            return super().engine(spec)

    served, limits = Counting(editor, one_device(editor).rewards), ServiceLimits(drain=0.1, side=64)
    worker = Worker(served, limits, Metrics(), plain(EDITS, limits))
    rng, loop = np.random.default_rng(0), asyncio.new_event_loop()
    tickets: list[PendingRequest] = []
    worker.start()
    for i in range(20):
        own = png(Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)))
        fields = Edit(prompt=PROMPT, **{**OWN, "seed": i, "budget": "20nfe", "negative_prompt": f"noise {i % 2}"})
        asked = prepared_of(fields, EDITS, limits, {"image": Picture(own)})
        tickets.append(PendingRequest(asked, f"caller {i % 5}", loop))
        worker.submit(tickets[-1])

    async def ended(ticket: PendingRequest) -> News:
        while isinstance(news := await ticket.news.get(), Passed):  # its search begins
            pass
        return news

    found = [loop.run_until_complete(asyncio.wait_for(ended(ticket), 120)) for ticket in tickets]
    worker.drain(now=True)
    worker.join(60)
    loop.close()
    assert all(isinstance(news, Done) for news in found)
    assert len(made) == 2, "one for the edits, and one that was ready for requests without a picture"
    edits = [spec for spec in made if "image" in spec.call]
    assert [spec.call["image"] for spec in edits] == [Blank((32, 32))]
    registry = worker.metrics.registry
    nfe, places = (registry.get_sample_value(name) or 0 for name in ("ttsnap_nfe_total", "ttsnap_batch_places_total"))
    assert nfe > 0.8 * places
    rewards = {news.result.best.reward for news in found if isinstance(news, Done)}
    assert len(rewards) == 20, "each is of its own picture"


def test_prompts_with_negative_ones_of_their_own_find_what_each_finds_alone(pipe: Any) -> None:
    own = ["noise", "a red circle", ""]
    prompts = [Prompt(PROMPT, negative=own[0]), Prompt(PROMPT, negative=own[1]), Prompt(PROMPT)]
    call = {"num_inference_steps": 4, "batch_size": 6}
    together = search(prompts, BestOfN(2), pipe.engine("brightness", negative_prompt="", **call))
    for negative, result in zip(own, together, strict=True):
        (alone,) = search([PROMPT], BestOfN(2), pipe.engine("brightness", negative_prompt=negative, **call))
        assert [c.reward for c in result.images] == pytest.approx([c.reward for c in alone.images], abs=1e-5)
    assert len({result.best.reward for result in together}) == 3


def test_such_a_server_tells_that_it_drafts_no_seeds(editor: Any) -> None:
    served = one_device(editor)

    async def notes(drafter: str, **own: Any) -> tuple[str, ...]:
        offer = offer_of("embedded", served, None, {}, drafter, edits=True)
        return RequestParser(offer, ServiceLimits()).ticket(Generation(PROMPT, **own), "alice").notes

    told = [asyncio.run(notes("auto", **own)) for own in ({}, {"draft": False}, {"search": "best-of-n"})]
    assert ["no seeds are drafted" in " ".join(each) for each in told] == [True, False, False]
    assert asyncio.run(notes("none")) == ()


def test_an_absent_negative_prompt_leaves_a_request_guided(client: OpenAI, drawn: list[Image.Image]) -> None:
    def rewards(**more: object) -> list[object]:
        own = {**{name: value for name, value in OWN.items() if name != "negative_prompt"}, **more}
        edited = client.images.edit(image=("drawn.png", png(drawn[0])), prompt=PROMPT, extra_body=own)
        own.pop("strength")
        made = client.images.generate(prompt=PROMPT, extra_body=own)
        return [reply.to_dict()["data"][0]["reward"] for reply in (edited, made)]  # type: ignore[index]

    absent, empty, unguided = rewards(), rewards(negative_prompt=""), rewards(guidance_scale=1)
    assert absent == pytest.approx(empty, abs=1e-6)
    assert all(abs(a - b) > 1e-4 for a, b in zip(absent, unguided, strict=True))


def test_a_size_whose_sides_do_not_fit_is_told_of(client: OpenAI) -> None:
    for size, drawn in (("17x31", "16x28"), ("16x32", "16x32")):
        reply = client.images.generate(prompt=PROMPT, size=size, extra_body={"budget": "8nfe", "steps": 4})  # type: ignore[arg-type]
        assert reply.size == drawn
        assert ("16x28 in place of 17x31" in " ".join(reply.to_dict()["warnings"])) == (size != drawn)  # type: ignore[arg-type]


def test_an_edit_may_be_a_job(editor: Any, client: OpenAI, drawn: list[Image.Image], tmp_path: Path) -> None:
    limits = ServiceLimits(drain=0.1, side=64)
    asked = {"image": ("drawn.png", png(drawn[0])), "prompt": PROMPT}
    at_once = client.images.edit(**asked, extra_body=OWN).to_dict()
    with closing(JobStore(tmp_path, limits)) as store:
        given = {"image": Picture(png(drawn[0]))}
        fields = {"fields": {"prompt": PROMPT, **OWN}, "ignored": []}
        earlier = store.add("anybody", "image_edit", "embedded", fields, given)
        assert store.pictures(earlier) == given
        with serve(one_device(editor), EDITS, limits, store=store) as server:
            mine = client_of(server)
            names = [mine.images.edit(**asked, extra_body={**OWN, "background": "true"}).to_dict()["id"], earlier.id]
            for name in names:
                address = f"{server.url}/v1/images/edits/{name}"
                until(lambda address=address: httpx.get(address).json()["status"] == "completed")
                assert httpx.get(address).json()["data"] == at_once["data"]
            assert httpx.delete(f"{server.url}/v1/images/edits/{names[0]}").json()["object"] == "image.edit.deleted"


@pytest.mark.parametrize(("files", "fields", "param"), [
    ({"image": None}, {}, "image"), ({"image": b"no picture"}, {}, "image"),
    ({"image": png(Image.new("RGB", (65, 8)))}, {}, "image"),
    ({"markup": png(Image.new("RGB", (32, 32)))}, {}, "markup"), ({"picture": b"x"}, {}, "picture"),
    ({}, {"n": "many"}, "n"), ({}, {"n": "0"}, "n"), ({}, {"strength": "2"}, "strength"),
    ({}, {"colour": "red"}, "colour"), ({}, {"prompt": None}, "prompt"), ({}, {"prompt": " "}, "prompt"),
    ({}, {"size": "17x33"}, None), ({}, {"size": "128x128"}, "size"), ({}, {"layers": "4"}, "layers"),
])  # fmt: skip
def test_what_is_no_edit_is_refused_by_name(
    editing: GenerationServer,
    files: dict[str, bytes | None],
    fields: dict[str, str | None],
    param: str | None,
) -> None:
    sent = {"image": png(Image.new("RGB", (32, 32))), **files}
    texts = {name: (None, value) for name, value in {"prompt": PROMPT, **fields}.items() if value is not None}
    form: Any = texts | {name: (f"{name}.png", data) for name, data in sent.items() if data is not None}
    reply = httpx.post(f"{editing.url}/v1/images/edits", files=form, timeout=60)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize("name", ["image", "image[]"])
def test_pictures_keep_their_order(name: str) -> None:
    pictures = [png(Image.new("RGB", (side, 32))) for side in (16, 32, 24)]
    form = [(name, (f"{i}.png", data)) for i, data in enumerate(pictures)]
    request = httpx.Request("POST", "http://x", files=form, data={"prompt": PROMPT})
    body = sent(bytearray(request.read()), Headers(dict(request.headers)), ServiceLimits())
    wanted, found = asyncio.run(edit_of(body, ServiceLimits()))
    assert wanted.prompt == PROMPT
    assert found["image"] == tuple(map(Picture, pictures))


def test_two_pictures_a_mask_and_json_are_refused_where_the_model_takes_one(
    editing: GenerationServer, client: OpenAI, drawn: list[Image.Image]
) -> None:
    with pytest.raises(openai.BadRequestError, match=r"one image .*got 2"):
        client.images.edit(image=[("a.png", png(drawn[0])), ("b.png", png(drawn[0]))], prompt=PROMPT, extra_body=OWN)
    with pytest.raises(openai.BadRequestError, match="image-to-image"):
        client.images.edit(image=("a.png", png(drawn[0])), mask=("m.png", png(drawn[0])), prompt=PROMPT, extra_body=OWN)
    reply = httpx.post(f"{editing.url}/v1/images/edits", json={"prompt": PROMPT})
    assert "send it as the file image of multipart/form-data" in reply.json()["error"]["message"]


def test_a_model_that_changes_nothing_says_so(server: GenerationServer, drawn: list[Image.Image]) -> None:
    with pytest.raises(openai.NotFoundError, match="changes no pictures"):
        client_of(server).images.edit(image=("a.png", png(drawn[0])), prompt=PROMPT)


def test_a_mask_is_painted_where_it_is_transparent_or_white() -> None:
    clear = np.full((2, 2, 4), 255, np.uint8)
    clear[0, 1, 3] = 0
    assert np.asarray(Picture(png(Image.fromarray(clear)), mask=True).opened()).tolist() == [[0, 255], [0, 0]]
    white = np.zeros((2, 2, 3), np.uint8)
    white[1, 0] = 255
    assert np.asarray(Picture(png(Image.fromarray(white)), mask=True).opened()).tolist() == [[0, 0], [255, 0]]
