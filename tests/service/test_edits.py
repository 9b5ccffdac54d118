"""Edits as OpenAI's client asks for them, over the embedded model, which redraws pictures."""

from __future__ import annotations

import asyncio
import io
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from starlette.datastructures import Headers

from tests.service.asking import EDITED, PROMPT, SMALL, Caller, apart, best, picture, png, shown
from tests.service.conftest import EDITS, client_of, one_device, serve
from ttsnap.core.protocols import Engine
from ttsnap.files.pictured import Blank, Picture
from ttsnap.pipelines import defaults
from ttsnap.request.request import EngineSpec
from ttsnap.service.bodies import sent
from ttsnap.service.edits import edit_of
from ttsnap.service.engines import OneDevice
from ttsnap.service.job_store import JobStore
from ttsnap.service.limits import ServiceLimits
from ttsnap.service.opening import offer_of
from ttsnap.service.requests import Generation
from ttsnap.service.server import GenerationServer
from ttsnap.service.tickets import RequestParser

OWN: dict[str, Any] = {**SMALL, "strength": 0.75, "negative_prompt": "noise"}
LIMITS = ServiceLimits(drain=0.1, side=64)


@pytest.fixture(scope="module")
def caller(editing: GenerationServer) -> Caller:
    return Caller(editing.url)


def edited(caller: Caller, data: bytes, **own: Any) -> dict[str, Any]:
    """The reply to an edit of a picture, sent as a form."""
    fields, files = {"prompt": PROMPT, **OWN, **own}, {"image": ("drawn.png", data)}
    reply = caller.ask("POST", EDITED, data={name: v for name, v in fields.items() if v is not None}, files=files)
    assert reply.status_code == 200, reply.text
    told: dict[str, Any] = reply.json()
    return told


def test_an_edit_is_what_the_pipeline_gives(editing: GenerationServer, editor: Any, drawn: list[bytes]) -> None:
    edit = client_of(editing).images.edit
    reply = edit(image=("drawn.png", drawn[0]), prompt=PROMPT, n=2, extra_body=OWN).to_dict()
    call = {**defaults(), "num_inference_steps": 4, "strength": 0.75, "negative_prompt": "noise"}
    call |= {"search": "best-of-n", "reward": "brightness", "budget": "16nfe", "seed": 3, "num_images_per_prompt": 2}
    out = editor(prompt=PROMPT, image=Image.open(io.BytesIO(drawn[0])), **call)
    data: Any = reply["data"]
    assert [image["seed"] for image in data] == [c.seed for c in out.search[0].images]
    for image, theirs in zip(data, out.images, strict=True):
        assert apart(picture(image["b64_json"]), theirs) <= 1


def test_edits_of_several_callers_share_an_engine_and_its_batches(editor: Any) -> None:
    made: list[EngineSpec] = []

    class Counting(OneDevice):
        def engine(self, spec: EngineSpec) -> AbstractContextManager[Engine]:
            made.append(spec)
            return super().engine(spec)

    rng = np.random.default_rng(0)
    pictures = [png(Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))) for _ in range(12)]
    with serve(Counting(editor, one_device(editor).rewards), EDITS, LIMITS) as server, ThreadPoolExecutor(12) as pool:
        caller = Caller(server.url)

        def ask(i: int) -> float:
            own = {"seed": i, "budget": "20nfe", "negative_prompt": f"noise {i % 2}"}
            return best(edited(caller, pictures[i], **own))[1]

        assert len(set(pool.map(ask, range(12)))) == 12, "each is of its own picture"
        assert caller.metric("nfe_total") > 0.7 * caller.metric("batch_places_total")
    assert len(made) == 2, "one for the edits, and one that was ready for requests without a picture"
    assert [spec.call["image"] for spec in made if "image" in spec.call] == [Blank((32, 32))]


def test_such_a_server_tells_that_it_drafts_no_seeds(editor: Any) -> None:
    served = one_device(editor)

    async def notes(drafter: str, **own: Any) -> str:
        offer = offer_of("embedded", served, None, {}, drafter, edits=True)
        return " ".join(RequestParser(offer, ServiceLimits()).ticket(Generation(PROMPT, **own), "alice").notes)

    assert "no seeds are drafted" in asyncio.run(notes("auto"))
    quiet: Any = notes("auto", draft=False), notes("auto", search="best-of-n"), notes("none")
    assert list(map(asyncio.run, quiet)) == [""] * 3


def test_an_absent_negative_prompt_leaves_a_request_guided(caller: Caller, drawn: list[bytes]) -> None:
    def rewards(**more: Any) -> list[float]:
        own = {"negative_prompt": None, **more}
        return [told["data"][0]["reward"] for told in (edited(caller, drawn[0], **own), caller.made(**own))]

    absent, empty, unguided = rewards(), rewards(negative_prompt=""), rewards(guidance_scale=1)
    assert absent == pytest.approx(empty, abs=1e-6)
    assert all(abs(a - b) > 1e-4 for a, b in zip(absent, unguided, strict=True))


@pytest.mark.parametrize(("size", "made"), [(None, "32x32"), ("auto", "32x32"), ("24x32", "24x32")])
def test_an_edit_has_the_size_that_is_asked_for(caller: Caller, drawn: list[bytes], size: str, made: str) -> None:
    told = edited(caller, drawn[1], size=size, seed=0, budget="1images", output_format="jpeg")
    resized = ["the picture of 24x32 was taken as one of 32x32"] if made == "32x32" else []
    assert (told["size"], told["warnings"], told["data"][0]["seed"]) == (made, resized, 0)
    image = shown(told)
    assert (f"{image.width}x{image.height}", image.format, told["output_format"]) == (made, "JPEG", "jpeg")


@pytest.mark.parametrize(("size", "drawn", "told"), [("17x31", "16x28", 1), ("16x32", "16x32", 0)])
def test_a_size_whose_sides_do_not_fit_is_told_of(caller: Caller, size: str, drawn: str, told: int) -> None:
    reply = caller.made(size=size)
    assert (reply["size"], len(reply["warnings"])) == (drawn, told)
    assert all(f"{drawn} in place of {size}" in warning for warning in reply["warnings"])


def test_an_edit_may_be_a_job(editor: Any, caller: Caller, drawn: list[bytes], tmp_path: Path) -> None:
    at_once, given = edited(caller, drawn[0]), {"image": Picture(drawn[0])}
    with closing(JobStore(tmp_path, LIMITS)) as store:
        body: Any = {"fields": {"prompt": PROMPT, **OWN}, "ignored": []}
        earlier = store.add("anybody", "image_edit", "embedded", body, given)
        assert store.pictures(earlier) == given
        with serve(one_device(editor), EDITS, LIMITS, store=store) as server:
            mine = Caller(server.url)
            for name in (edited(mine, drawn[0], background="true")["id"], earlier.id):
                assert mine.ended(f"{EDITED}/{name}")["data"] == at_once["data"]
            assert mine.ask("DELETE", f"{EDITED}/{name}").json()["object"] == "image.edit.deleted"


@pytest.mark.parametrize("name", ["image", "image[]"])
def test_pictures_keep_their_order(name: str) -> None:
    pictures = [png(Image.new("RGB", (side, 32))) for side in (16, 32, 24)]
    form = [(name, (f"{i}.png", data)) for i, data in enumerate(pictures)]
    request = httpx.Request("POST", "http://x", files=form, data={"prompt": PROMPT})
    body = sent(bytearray(request.read()), Headers(dict(request.headers)), ServiceLimits())
    wanted, found = asyncio.run(edit_of(body, ServiceLimits()))
    assert (wanted.prompt, found["image"]) == (PROMPT, tuple(map(Picture, pictures)))


def test_a_mask_is_painted_where_it_is_transparent_or_white() -> None:
    clear, white = np.full((2, 2, 4), 255, np.uint8), np.zeros((2, 2, 3), np.uint8)
    clear[0, 1, 3], white[1, 0] = 0, 255
    for pixels, painted in ((clear, [[0, 255], [0, 0]]), (white, [[0, 0], [255, 0]])):
        assert np.asarray(Picture(png(Image.fromarray(pixels)), mask=True).opened()).tolist() == painted
