"""What clients of OpenAI's older models, of vLLM-Omni and of SGLang send, and what operators read of it all."""

from __future__ import annotations

import io
import logging
import re
import urllib.request
import zipfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import Any

import httpx
import openai
import pytest
import torch
from openai import OpenAI
from PIL import Image

from tests.service.conftest import LARGE, PROMPT, client_of, one_device, picture, serve
from ttsnap.core.results import Event
from ttsnap.loop.budget import Budget
from ttsnap.pipelines.pipeline_copy import copied
from ttsnap.request.offer import ServingCatalog
from ttsnap.service.keys import Keys
from ttsnap.service.limits import RequestError, ServiceLimits
from ttsnap.service.requests import Generation, in_our_names, notes_of, prepared_of, validated
from ttsnap.service.server import GenerationServer
from ttsnap.service.tickets import Partial, Progress

SIZES = (
    "",
    "1024",
    "1024x",
    "x1024",
    "1024 1024",
    "abc x def",
    "1024xabc",
    "1024.5x768.5",
    "-64x64",
    "64x64\n",
    "64X64",
)
"""None is one."""
OWN: dict[str, object] = {"seed": 3, "budget": "12nfe", "steps": 4, "search": "best-of-n"}


def made(client: OpenAI, **own: object) -> dict[str, Any]:
    reply: dict[str, Any] = client.images.generate(prompt=PROMPT, extra_body=own).to_dict()
    return reply


def test_fields_of_other_servers_mean_what_ours_do(client: OpenAI) -> None:
    ours = made(client, **OWN, size="32x32", guidance_scale=2.5)
    theirs = {name: value for name, value in OWN.items() if name != "steps"}
    theirs |= {"num_inference_steps": 4, "width": 32, "height": 32, "true_cfg_scale": 2.5}
    unused = {"generator_device": "cuda", "vae_use_tiling": True, "enable_teacache": True, "user": "u-1"}
    unused |= {"style": "vivid", "bot_task": "think"}
    off = {"enable_upscaling": False, "lora": None, "diffusers_kwargs": {}, "layers": 0}
    reply = made(client, **theirs, **unused, **off)
    assert [image["b64_json"] for image in reply["data"]] == [image["b64_json"] for image in ours["data"]]
    assert ours["warnings"] == []
    assert reply["warnings"] == [
        f"not used here: {', '.join((*unused, 'enable_upscaling', 'diffusers_kwargs', 'layers'))}"
    ]


@pytest.mark.parametrize(("fields", "param"), [
    ({"steps": 4, "num_inference_steps": 5}, "num_inference_steps"),
    ({"size": "32x32", "width": 32, "height": 32}, "width"), ({"width": 32}, "height"),
    ({"width": "wide", "height": 32}, "width"), ({"width": -32, "height": 32}, "width"),
    ({"width": 32.5, "height": 32}, "width"), ({"width": 32, "height": 10**9}, "width"),
    ({"width": "9" * 5000, "height": 32}, "width"), ({"num_inference_steps": "many"}, "num_inference_steps"),
    ({"guidance_scale": 2, "true_cfg_scale": 3}, "true_cfg_scale"),
    ({"true_cfg_scale": 1000000000.0}, "true_cfg_scale"), ({"flow_shift": 3.0}, "flow_shift"),
    ({"lora": {"name": "x"}}, "lora"), ({"enable_upscaling": True}, "enable_upscaling"),
    ({"negative_promt": "x"}, "negative_promt"), ({"num_inference_step": 3}, "num_inference_step"),
    ({"qualty": "high"}, "qualty"), ({"response_format": "raw"}, "response_format"),
    ({"response_format": "file", "stream": True}, "response_format"),
    ({"response_format": "file", "background": True}, "response_format"), ({"generate_sound": True}, "generate_sound"),
    ({"quality": "mediun"}, "quality"), ({"prompt": None}, "prompt"), ({"prompt": 7}, "prompt"),
    ({"prompt": "   "}, "prompt"), ({"negative_prompt": ["noise"]}, "negative_prompt"), ({"n": 0}, "n"),
    ({"n": 11}, "n"), ({"n": 1.5}, "n"), ({"seed": -1}, "seed"), ({"steps": 0}, "steps"),
    ({"num_inference_steps": 201}, "steps"), ({"guidance_scale": "high"}, "guidance_scale"),
    ({"output_format": "gif"}, "output_format"), ({"output_compression": 101}, "output_compression"),
    ({"background": "transparent"}, "background"), ({"stream": "yes"}, "stream"),
    ({"stream": True, "partial_images": 4}, "partial_images"), *(({"size": s}, "size") for s in SIZES),
    *(({"size": s}, "size") for s in ("0x1024", "1024x0", "8x8", "2048x64")),
])  # fmt: skip
def test_what_changes_images_and_is_not_known_is_refused_by_name(
    offer: ServingCatalog, fields: dict[str, object], param: str
) -> None:
    with pytest.raises(RequestError, match=r"\w+ \w+") as error:
        prepared_of(validated(Generation, {"prompt": PROMPT, **fields}), offer, ServiceLimits())
    assert (error.value.status, error.value.param) == (400, param)


def test_a_model_with_two_guidances_gets_each_under_its_own_name(offer: ServingCatalog) -> None:
    wanted = Generation(prompt=PROMPT, guidance_scale=2.0, true_cfg_scale=3.0)
    call = prepared_of(wanted, replace(offer, true_cfg=True), ServiceLimits()).call
    assert (call["guidance_scale"], call["true_cfg_scale"]) == (2.0, 3.0)


def test_forms_take_the_same_names() -> None:
    ours, called, unused = in_our_names({"width": "64", "height": "32", "num_inference_steps": "4", "rollout": "false"})
    assert ours == {"size": "64x32", "steps": "4"}
    assert called["steps"] == "num_inference_steps"
    assert unused == ["rollout"]


@pytest.mark.parametrize("n", [1, 2])
def test_a_reply_may_be_the_file_itself(client: OpenAI, n: int) -> None:
    """As vLLM-Omni's is: of one image the image, of several a zip."""
    body = {"prompt": PROMPT, **OWN, "n": n, "output_format": "PNG"}
    told = client.images.generate(prompt=PROMPT, n=n, extra_body=OWN)
    reply = httpx.post(f"{client.base_url}images/generations", json={**body, "response_format": "file"}, timeout=60)
    assert reply.headers["content-type"] == {1: "image/png", 2: "application/zip"}[n]
    files = [reply.content]
    if n > 1:
        with zipfile.ZipFile(io.BytesIO(reply.content)) as archive:
            assert archive.namelist() == ["1.png", "2.png"]
            files = [archive.read(name) for name in archive.namelist()]
    assert told.data is not None
    for file, image in zip(files, told.data, strict=True):
        assert Image.open(io.BytesIO(file)).tobytes() == picture(str(image.b64_json)).tobytes()


def test_an_address_holds_the_image_itself(client: OpenAI) -> None:
    plain = client.images.generate(prompt=PROMPT, extra_body=OWN)
    reply = client.images.generate(prompt=PROMPT, response_format="url", extra_body=OWN)
    assert reply.data is not None
    assert plain.data is not None
    assert reply.data[0].b64_json is None
    url = reply.data[0].url
    assert url is not None
    assert url.startswith("data:image/png;base64,")
    with urllib.request.urlopen(url) as file:
        image = Image.open(io.BytesIO(file.read()))
    assert image.size == (32, 32)
    assert url.partition(",")[2] == plain.data[0].b64_json


@pytest.mark.parametrize(("quality", "effort", "images"), [("standard", "medium", 20), ("hd", "high", 80)])
def test_older_qualities_are_efforts(client: OpenAI, quality: Any, effort: str, images: int) -> None:
    own = {"seed": 3, "steps": 2, "search": "best-of-n"}
    reply = client.images.generate(prompt=PROMPT, quality=quality, moderation="low", extra_body=own)
    assert reply.quality == effort
    assert reply.usage is not None
    assert reply.usage.to_dict()["nfe"] == 2 * images
    assert reply.to_dict()["warnings"] == ["not used here: moderation"]


@pytest.mark.parametrize("quality", ["xhigh", "max"])
def test_newer_qualities_are_the_most_that_there_is(quality: Any, offer: ServingCatalog) -> None:
    wanted = validated(Generation, {"prompt": PROMPT, "quality": quality})
    assert wanted.effort == "high"
    assert prepared_of(wanted, offer, ServiceLimits()).budget == Budget.of_effort("high")


def test_what_limits_take_away_is_told(offer: ServingCatalog) -> None:
    limits = ServiceLimits(nfe=100, seconds=5)

    def notes(**given: Any) -> tuple[str, ...]:
        wanted = Generation(prompt=PROMPT, **given)
        return notes_of(wanted, prepared_of(wanted, offer, limits), limits)

    assert notes(quality="high") == (
        "a request has at most 100 evaluations here, which are 5 of the 80 images' worth that was asked for",
    )
    assert notes(budget="60s") == ("a search ends after 5 s here, not after 60 s",)
    assert notes(quality="low") == ()


# --- partial images -------------------------------------------------------------------------------------------------


class Heard(list[tuple[int, float]]):
    """A ticket that notes how much of the search had arrived when it was told of a partial image."""

    nfe, job = 0, False

    def __init__(self, most: int) -> None:
        self.partials, self.seconds = most, 100.0

    def tell(self, news: Partial) -> None:
        self.append((news.index, self.nfe))


class Picture:
    def fetch(self) -> torch.Tensor:
        return torch.zeros(3, 1, 1)


def test_partial_images_come_evenly_though_a_move_is_charged_at_once() -> None:
    heard = Heard(3)
    progress = Progress(heard, 100.0)  # type: ignore[arg-type]
    progress(Event("move", uids=tuple(range(20)), nfe=80))
    for uid in range(20):
        progress(Event("score", uids=(uid,), scores=(float(uid),), picture=Picture()))  # type: ignore[arg-type]
        progress(Event("tick", nfe=4))
    progress(Event("move", uids=(20, 21), nfe=20))
    progress(Event("score", uids=(21,), scores=(99.0,), picture=Picture()))  # type: ignore[arg-type]
    progress(Event("tick", nfe=4))
    assert list(heard) == [(0, 4), (1, 36), (2, 68)], "not (0, 4), (1, 8), (2, 12), as when all 80 count from the start"
    assert heard.nfe == 90


def test_of_what_a_batch_brought_the_best_is_shown() -> None:
    heard = Heard(3)
    progress = Progress(heard, 100.0)  # type: ignore[arg-type]
    progress(Event("move", uids=tuple(range(20)), nfe=100))
    for uid in range(16):  # as best-of-N, whose candidates are scored when they are finished, all at once
        progress(Event("score", uids=(uid,), scores=(float(uid),), picture=Picture()))  # type: ignore[arg-type]
    progress(Event("tick", nfe=4))
    progress(Event("score", uids=(16,), scores=(99.0,), picture=Picture()))  # type: ignore[arg-type]
    progress(Event("tick", nfe=4))
    assert list(heard) == [(0, 80)], "one third has one"


def test_a_budget_in_seconds_shares_partial_images_out_by_the_clock() -> None:
    heard = Heard(2)
    progress = Progress(heard, 4000.0)  # type: ignore[arg-type]
    progress(Event("move", uids=tuple(range(10)), nfe=10))
    for uid in range(10):
        progress(Event("score", uids=(uid,), scores=(float(uid),), picture=Picture()))  # type: ignore[arg-type]
        progress(Event("tick", seconds=10.0 * uid))
    assert list(heard) == [(0, 1), (1, 6)]


def test_what_the_safety_checker_flags_is_not_shown() -> None:
    heard = Heard(3)
    progress = Progress(heard, 100.0, safe=lambda image: heard.nfe > 40)  # type: ignore[arg-type]
    progress(Event("move", uids=tuple(range(20)), nfe=100))
    for uid in range(20):
        progress(Event("score", uids=(uid,), scores=(float(uid),), picture=Picture()))  # type: ignore[arg-type]
        progress(Event("tick"))
    assert list(heard) == [(0, 45), (1, 70), (2, 100)]


@pytest.mark.parametrize("unsafe", [False, True])
def test_partial_images_pass_the_safety_checker(pipe: Any, offer: ServingCatalog, unsafe: bool) -> None:
    judged, model = list[int](), copied(pipe, type(pipe))

    def checker(images: torch.Tensor, *_: object) -> tuple[torch.Tensor, list[bool]]:
        judged.append(len(images))
        return 0 * images, [unsafe] * len(images)

    vars(model).update(safety_checker=torch.nn.Identity(), run_safety_checker=checker)
    own, offered = {"steps": 4, "budget": "16nfe"}, replace(offer, rewards=("brightness",))
    with serve(one_device(model), offered) as server, closing(client_of(server)) as client:
        stream = client.images.generate(prompt=PROMPT, stream=True, partial_images=2, extra_body=own)
        kinds = [event.type.rpartition(".")[2] for event in stream]
    assert kinds[-1] == "completed"
    assert ("partial_image" in kinds) is not unsafe
    assert len(judged) > 1, "what is shown on the way, too"


# --- the access log -------------------------------------------------------------------------------------------------


def test_a_request_is_a_line_without_its_query(
    serving: Callable[..., GenerationServer], caplog: pytest.LogCaptureFixture, tmp_path: Any
) -> None:
    key = "a" * 20
    (tmp_path / "keys").write_text(f"alice {key}\n")
    server = serving(keys=Keys.read(tmp_path / "keys"))
    with caplog.at_level(logging.INFO, "ttsnap.service.access"):
        alice = client_of(server, key)  # kept, as it closes its connection when it goes
        made(alice, **OWN)
        assert len(list(alice.images.generate(prompt=PROMPT, stream=True, extra_body=OWN))) == 1
        for own in ({"size": "17x33"}, {"steps": 0}):
            with pytest.raises(openai.BadRequestError):
                made(alice, **own)
        with pytest.raises(openai.AuthenticationError):
            made(client_of(server, "b" * 20))
        httpx.get(f"{server.url}/health?key={key}")
        httpx.get(f"{server.url}/no%0athing%20here")
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{server.url}/v1/images/generations", json=LARGE, timeout=0.5,
                       headers={"Authorization": f"Bearer {key}"})  # fmt: skip
        server.__exit__()
    lines = [record.getMessage() for record in caplog.records if record.name == "ttsnap.service.access"]
    seconds = r"\d+\.\d{3} s"
    expected = [
        rf"POST /v1/images/generations 200 {seconds} key=alice nfe=12",
        rf"POST /v1/images/generations 200 {seconds} key=alice nfe=12",
        rf"POST /v1/images/generations 400 {seconds} key=alice nfe=0",
        rf"POST /v1/images/generations 400 {seconds} key=alice nfe=-",
        rf"POST /v1/images/generations 401 {seconds} key=- nfe=-",
        rf"GET /health 200 {seconds} key=- nfe=-",
        rf"GET /no%0Athing%20here 404 {seconds} key=- nfe=-",
        rf"POST /v1/images/generations 499 {seconds} key=alice nfe=\d+",
    ]
    assert len(lines) == len(expected)
    for line, pattern in zip(lines, expected, strict=True):
        assert re.fullmatch(pattern + r" id=req_[0-9a-f]{16}", line), (line, pattern)
    assert key not in caplog.text
