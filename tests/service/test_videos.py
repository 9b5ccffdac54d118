"""Videos as OpenAI's client asks for them, over tiny random pipelines."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from diffusers import WanPipeline
from openai import AsyncOpenAI, OpenAI
from PIL import Image

from tests.pipelines.modular import tiny_videos
from tests.pipelines.modular.tiny import CASES, built, picture
from tests.service.conftest import Slow, client_of, command, metric, one_device, serve, until
from tests.service.conftest import png as png_of
from ttsnap.files.pictures import video_pixels
from ttsnap.pipelines import upgrade
from ttsnap.request.request import ModelDefaults
from ttsnap.results.record import read_record
from ttsnap.service.engines import OneDevice
from ttsnap.service.job_store import JobStore
from ttsnap.service.limits import RequestError, ServiceLimits
from ttsnap.service.opening import offer_of
from ttsnap.service.requests import Video, notes_of, prepared_of, validated
from ttsnap.service.server import GenerationServer

pytestmark = pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")
OWN = {"budget": "4images", "search": "best-of-n", "seed": 3}
CALL = {"num_inference_steps": 4, "height": 16, "width": 32, "num_frames": 5, "max_sequence_length": 16}


def png(seed: int = 0) -> bytes:
    return png_of(picture(seed))


def twin(name: str) -> Any:
    pipe = upgrade(built(CASES[name].pipeline, CASES[name].parts))
    pipe.set_progress_bar_config(disable=True)
    pipe.own_defaults = ModelDefaults(CALL)
    return pipe


@contextmanager
def serving(engines: OneDevice, folder: Path) -> Iterator[GenerationServer]:
    offer, limits = offer_of("tiny", engines, "tiny", {}, "none"), ServiceLimits(drain=0.1, side=16, video_side=64)
    offer = replace(offer, defaults=lambda _: ModelDefaults(CALL))
    with (
        closing(JobStore(folder, limits)) as store,
        serve(engines, offer, limits, store=store) as server,
    ):
        yield server


@pytest.fixture(scope="module")
def wan() -> Any:
    return twin("wan")


@pytest.fixture(scope="module")
def server(wan: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GenerationServer]:
    with serving(one_device(wan), tmp_path_factory.mktemp("videos")) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: GenerationServer) -> Iterator[OpenAI]:
    with closing(client_of(server)) as client:
        yield client


def test_a_video_is_what_the_pipeline_gives(client: OpenAI, wan: Any, tmp_path: Path) -> None:
    own = {**OWN, "n": 2, "report": "brightness", "output_format": "png", "fps": 8}
    video = client.videos.create_and_poll(prompt="a cat", poll_interval_ms=50, extra_body=own)
    told = video.to_dict()
    assert (video.object, video.status, video.progress, video.model) == ("video", "completed", 100, "tiny")
    assert (video.size, video.seconds, video.prompt, video.error) == ("32x16", "0.625", "a cat", None)
    assert video.completed_at is not None
    assert video.expires_at == video.completed_at + 24 * 3600
    out = wan(prompt="a cat", search="best-of-n", reward="brightness", budget="4images", seed=3,
              num_videos_per_prompt=2, **CALL)  # fmt: skip
    best = out.search[0].images
    assert [each["seed"] for each in told["data"]] == [candidate.seed for candidate in best]
    for each, candidate in zip(told["data"], best, strict=True):
        assert each["reward"] == pytest.approx(candidate.reward, abs=1e-5)
        assert each["metrics"]["brightness"] == pytest.approx(candidate.reward, abs=1e-5)
    path = tmp_path / "video.png"
    client.videos.download_content(video.id).write_to_file(path)
    theirs = np.stack([np.asarray(frame) for frame in out.frames[0]])
    assert np.abs(video_pixels(path.read_bytes(), path, ("PNG",)).astype(int) - theirs).max() <= 1
    payload = read_record(path).to_json()
    assert (payload["seed"], payload["model"], payload["call"]["num_frames"]) == (best[0].seed, "tiny", 5)


def test_files_and_stills(client: OpenAI) -> None:
    video = client.videos.create_and_poll(prompt="a cat", poll_interval_ms=50, extra_body=OWN)
    reply = client.videos.download_content(video.id)
    assert reply.response.headers["content-type"] == "video/mp4"
    assert reply.read()[4:8] == b"ftyp"
    for variant, size in {"thumbnail": (32, 16), "spritesheet": (65, 33)}.items():
        still = Image.open(io.BytesIO(client.videos.download_content(video.id, variant=variant).read()))  # type: ignore[arg-type]
        assert (still.format, still.size) == ("WEBP", size)
    with pytest.raises(openai.BadRequestError) as error:
        client.videos.download_content(video.id, variant="poster")  # type: ignore[arg-type]
    assert error.value.param == "variant"


def test_a_remix_is_the_same_request_with_another_prompt(client: OpenAI) -> None:
    own = {**OWN, "n": 2, "fps": 8}
    first = client.videos.create_and_poll(prompt="a cat", poll_interval_ms=50, extra_body=own)
    again = client.videos.poll(client.videos.remix(first.id, prompt="a dog").id, poll_interval_ms=50)
    assert (again.prompt, again.status, again.remixed_from_video_id) == ("a dog", "completed", first.id)
    assert (first.remixed_from_video_id, again.seconds) == (None, first.seconds)
    dog = client.videos.create_and_poll(prompt="a dog", poll_interval_ms=50, extra_body=own)
    assert again.to_dict()["data"] == dog.to_dict()["data"], "its seeds, its budget, its length"
    with pytest.raises(openai.BadRequestError) as error:
        client.videos.remix(first.id, prompt=" ")
    assert error.value.param == "prompt"
    with pytest.raises(openai.NotFoundError, match="no video"):
        client.videos.remix("video_0", prompt="a dog")


@pytest.mark.parametrize(
    ("before", "given", "same"),
    [
        ({"steps": 3, "size": "32x16"}, {"num_inference_steps": 2, "width": 16, "height": 32}, "steps,size"),
        ({"num_inference_steps": 3}, {"num_inference_steps": 2}, "steps"),
        ({"seconds": 1}, {"num_frames": 5}, "num_frames"),
        ({"num_frames": 5}, {"seconds": 1}, "seconds"),
        ({}, {"quality": "low", "user": "u"}, "quality"),
    ],
)
def test_a_remix_may_name_fields_as_other_servers_do(
    server: GenerationServer, before: dict[str, Any], given: dict[str, Any], same: str
) -> None:
    url = f"{server.url}/v1/videos"
    first = httpx.post(url, json={"prompt": "a cat", **OWN, **before}, timeout=60).json()["id"]
    for form in (False, True):
        body = {"data": {"prompt": "a dog", **given}} if form else {"json": {"prompt": "a dog", **given}}
        reply = httpx.post(f"{url}/{first}/remix", **body, timeout=60)
        assert reply.status_code == 200, reply.text
        name = reply.json()["id"]
        fields = server._server.jobs.store.get("anybody", "video", name).body["fields"]  # type: ignore[attr-defined]
        assert {"steps": 2, "size": "16x32", "num_frames": 5, "seconds": 1.0, "quality": "low"}.items() >= {
            (field, fields[field]) for field in same.split(",")
        }
        assert ("seconds" in fields) + ("num_frames" in fields) <= 1
        assert ("quality" in fields) + ("budget" in fields) == 1
        httpx.delete(f"{url}/{name}")


def test_lists_come_in_pages_and_deleted_videos_are_gone(client: OpenAI) -> None:
    before = [video.id for video in client.videos.list(limit=100)]
    made = [client.videos.create(prompt=f"cat {i}", extra_body=OWN).id for i in range(5)]
    assert [video.id for video in client.videos.list(limit=2)] == [*reversed(made), *before]
    assert [video.id for video in client.videos.list(limit=3, order="asc", after=made[1])] == made[2:]
    assert client.videos.delete(made[2]).to_dict() == {"id": made[2], "object": "video.deleted", "deleted": True}
    with pytest.raises(openai.NotFoundError, match="no video"):
        client.videos.retrieve(made[2])
    nothing = client.videos.list(limit=0)
    assert (nothing.data, nothing.has_more) == ([], True)
    for query in ({"limit": -1}, {"limit": 101}, {"limit": "many"}, {"order": "up"}, {"after": made[2]}):
        with pytest.raises(openai.BadRequestError) as error:
            client.videos.list(extra_query=query)
        assert error.value.param == next(iter(query))
    for name in made[:2] + made[3:]:
        assert client.videos.poll(name, poll_interval_ms=50).status == "completed"


def test_the_asynchronous_client(server: GenerationServer) -> None:
    async def made() -> None:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            own = {**OWN, "fps": 1}
            video = await client.videos.create_and_poll(
                prompt="a cat", seconds="4", poll_interval_ms=50, extra_body=own
            )
            assert (video.status, video.seconds) == ("completed", "5"), "the model makes odd numbers of frames"
            assert (await client.videos.download_content(video.id)).read()[4:8] == b"ftyp"

    asyncio.run(made())


def test_a_video_at_once(server: GenerationServer) -> None:
    url = f"{server.url}/v1/videos/sync"
    form = httpx.post(url, files={"prompt": (None, "a cat"), "budget": (None, "4images")}, timeout=60)
    plain = httpx.post(url, json={"prompt": "a cat", **OWN, "output_format": "webp", "seconds": "1"}, timeout=60)
    encoded = httpx.post(url, data={"prompt": "a cat", "budget": "4images", "output_format": "PNG"}, timeout=60)
    assert (encoded.status_code, encoded.headers["content-type"], encoded.content[1:4]) == (200, "image/png", b"PNG")
    assert (form.status_code, form.headers["content-type"], form.content[4:8]) == (200, "video/mp4", b"ftyp")
    assert (plain.status_code, plain.headers["content-type"], plain.content[8:12]) == (200, "image/webp", b"WEBP")
    assert httpx.post(url, json={"prompt": ""}).json()["error"]["param"] == "prompt"


@pytest.mark.parametrize(("body", "param"), [
    ({"size": "64x99"}, "size"), ({"seconds": "100"}, "seconds"), ({"seconds": "-1"}, "seconds"),
    ({"seconds": "abc"}, "seconds"), ({"prompt": None}, "prompt"), ({"seconds": "4", "num_frames": 5}, "num_frames"),
    ({"num_frames": 999}, "num_frames"), ({"fps": 0}, "fps"), ({"frames": 33}, "frames"),
    ({"reward": "clip"}, "reward"), ({"output_format": "gif"}, "output_format"), ({"quality": "4k"}, "quality"),
    ({"flow_shift": 5}, "flow_shift"), ({"generate_sound": True}, "generate_sound"),
    ({"response_format": "b64_json"}, "response_format"),
    ({"image_reference": {"file_id": "file-1"}}, "image_reference"),
    ({"image_reference": {}, "input_reference": {}}, "image_reference"),
    ({"input_reference": "a.png"}, "input_reference"), ({"input_reference": {"file_id": "file-1"}}, "input_reference"),
    ({"input_reference": {"image_url": "http://127.0.0.1:1/a.png"}}, "input_reference"),
    ({"search": {"name": "svdd", "streams": -1}}, "search"),
])  # fmt: skip
def test_what_cannot_be_honoured_is_refused_by_name(server: GenerationServer, body: dict[str, Any], param: str) -> None:
    before, spent = httpx.get(f"{server.url}/v1/videos").json()["data"], metric(server, "ttsnap_nfe_total")
    reply = httpx.post(f"{server.url}/v1/videos", json={"prompt": "a cat", **body}, timeout=30)
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (400, param), error
    assert httpx.get(f"{server.url}/v1/videos").json()["data"] == before
    assert metric(server, "ttsnap_nfe_total") == spent


def test_each_model_has_its_address(server: GenerationServer, client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="POST /v1/videos"):
        client.images.generate(prompt="a cat")
    with pytest.raises(openai.NotFoundError, match=r"'sora-2' .*'tiny'"):
        client.videos.create(prompt="a cat", model="sora-2")
    with pytest.raises(openai.BadRequestError, match="no first frame") as error:
        client.videos.create(prompt="a cat", input_reference=("a.png", png()))
    assert error.value.param == "input_reference"
    for path in ("remix", "edits"):
        assert httpx.post(f"{server.url}/v1/videos/video_1/{path}").json()["error"]["type"] == "not_found_error"


@pytest.mark.parametrize("name", ["wan image2video", "ltx image2video"])
def test_a_first_frame(name: str, tmp_path: Path) -> None:
    engines = one_device(twin(name))
    own = {**OWN, "budget": "1images"}
    with serving(engines, tmp_path) as server, closing(client_of(server)) as client:

        def made(**more: Any) -> Any:
            return client.videos.create_and_poll(prompt="a cat", poll_interval_ms=50, extra_body=own, **more).to_dict()

        one, other = (made(input_reference=("a.png", png(i))) for i in range(2))
        assert one["status"] == other["status"] == "completed", one["error"]
        (first,), (second,) = one["data"], other["data"]
        assert first["reward"] != pytest.approx(second["reward"], abs=2e-6)
        uri = f"data:image/png;base64,{base64.b64encode(png()).decode()}"
        url, form = f"{server.url}/v1/videos", {key: (None, str(value)) for key, value in own.items()}
        body = {"prompt": "a cat", **own, "input_reference": {"image_url": uri}}
        fields = {**form, "prompt": (None, "a cat"), "input_reference[image_url]": (None, uri)}
        for reply in (httpx.post(url, json=body, timeout=30), httpx.post(url, files=fields, timeout=30)):
            again = client.videos.poll(reply.json()["id"], poll_interval_ms=50).to_dict()
            assert again["data"][0]["reward"] == pytest.approx(first["reward"], abs=1e-6)  # in a batch, or alone
        with pytest.raises(openai.BadRequestError, match="cannot read") as error:
            made(input_reference=("a.png", b"no picture"))
        assert error.value.param == "input_reference"
        if name.startswith("wan"):
            with pytest.raises(openai.BadRequestError, match="needs a first frame") as error:
                made()
            assert error.value.param == "input_reference"
        else:
            assert made()["status"] == "completed"


def ended(url: str) -> dict[str, Any]:
    """A job, once it is completed."""
    until(lambda: httpx.get(url).json()["completed_at"], 60)
    told: dict[str, Any] = httpx.get(url).json()
    return told


def test_what_clients_of_vllm_omni_send_is_read(server: GenerationServer) -> None:
    """A form without a file, which is urlencoded."""
    sent = {"prompt": "a cat & 50 % more + é", "num_inference_steps": "3", "width": "32", "height": "16", **OWN}
    more = {"guidance_scale_2": "2.5", "boundary_ratio": "0.9", "generate_sound": "False", "bot_task": "think"}
    url = f"{server.url}/v1/videos"
    made = httpx.post(url, data={**sent, **more, "response_format": "file"}, timeout=60)
    assert made.status_code == 200, made.text
    job = ended(f"{url}/{made.json()['id']}")
    assert job["prompt"] == sent["prompt"]
    assert job["warnings"] == ["not used here: bot_task, generate_sound, guidance_scale_2, boundary_ratio"]
    same = httpx.post(url, json={"prompt": sent["prompt"], "steps": 3, "size": "32x16", **OWN}, timeout=60).json()
    assert ended(f"{url}/{same['id']}")["data"] == job["data"]
    typed = {"Content-Type": "application/x-www-form-urlencoded"}  # which curl -d says of anything
    assert httpx.post(url, content=json.dumps({"prompt": "a cat", **OWN}), headers=typed).status_code == 200


def test_a_first_frame_in_a_form_without_files_may_be_large(tmp_path: Path) -> None:
    data = png() + bytes(10**6)  # which a decoder does not read
    uri = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    engines = one_device(twin("ltx image2video"))
    own: dict[str, Any] = {"prompt": "a cat", **OWN, "budget": "1images"}
    with serving(engines, tmp_path) as server:
        url = f"{server.url}/v1/videos/sync"
        reference = json.dumps({"image_url": uri})
        replies = [
            httpx.post(url, data={**own, "image_reference": reference}, timeout=60),
            httpx.post(url, files={k: (None, str(v)) for k, v in {**own, "image_reference": reference}.items()}),
            httpx.post(url, json={**own, "image_reference": {"image_url": uri}}, timeout=60),
            httpx.post(url, content=json.dumps({**own, "input_reference": {"image_url": uri}}).replace("/", "\\/")),
            httpx.post(url, data=own, files={"input_reference": ("a.png", data)}, timeout=60),
        ]
        assert [reply.status_code for reply in replies] == [200] * 5, [reply.text[:200] for reply in replies]
        assert len({reply.content for reply in replies}) == 1
        for name in ("prompt", "user"):
            reply = httpx.post(url, json={**own, name: uri}, timeout=60)
            assert (reply.status_code, reply.json()["error"]["code"]) == (413, "too_large")


def test_a_model_of_two_networks_reads_the_guidance_of_both(tmp_path: Path) -> None:
    pipe = twin("wan22")
    engines = OneDevice(pipe, {})
    offer = offer_of("tiny", engines, "tiny", {}, "none")
    limits = ServiceLimits(side=16, video_side=64).of_videos
    boundary = pipe.config.boundary_ratio
    assert offer.boundary == boundary
    offer = replace(offer, rewards=("brightness",), defaults=lambda _: ModelDefaults(CALL))
    wanted = validated(Video, {"prompt": "a cat", "guidance_scale_2": 2.5, "boundary_ratio": boundary})
    request = prepared_of(wanted, offer, limits)
    assert request.call["guidance_scale_2"] == 2.5
    assert notes_of(wanted, request, limits) == ("not used here: boundary_ratio",)
    with pytest.raises(RequestError, match=f"{boundary:g}, got 0.1"):
        prepared_of(replace(wanted, boundary_ratio=0.1), offer, limits)


def test_a_size_without_pixels_in_its_latents_is_told_of(tmp_path: Path) -> None:
    pipe = twin("ltx image2video")
    pipe.vae.spatial_compression_ratio = 32  # as of the real LTX-Video
    with serving(one_device(pipe), tmp_path) as server:
        for files in ({}, {"input_reference": ("a.png", png())}):
            form: dict[str, Any] = {"prompt": (None, "a cat"), "size": (None, "16x32"), **files}
            reply = httpx.post(f"{server.url}/v1/videos/sync", files=form, timeout=30)
            assert reply.status_code == 500
            assert "leave size out, or give another" in reply.json()["error"]["message"]


def test_nothing_is_tried_but_what_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A first frame of the model's own size takes its VAE minutes."""
    pipe, sizes = twin("wan image2video"), list[tuple[object, ...]]()
    made = type(pipe).sampling_denoiser

    def counted(self: Any, sampler: Any, **call: Any) -> Any:
        sizes.append((call.get("width"), call.get("height"), call.get("num_frames")))
        return made(self, sampler, **call)

    monkeypatch.setattr(type(pipe), "sampling_denoiser", counted)
    with serving(one_device(pipe), tmp_path) as server:
        until(lambda: server.worker.loaded)
        sizes.clear()
        for kernel, status in (("pipeline", 200), ("x:y", 400)):
            form: dict[str, Any] = {"prompt": (None, "a cat"), "size": (None, "16x32"), "budget": (None, "1images")}
            files = {**form, "kernel": (None, kernel), "input_reference": ("a.png", png())}
            reply = httpx.post(f"{server.url}/v1/videos/sync", files=files, timeout=60)
            assert reply.status_code == status, reply.text[:300]
    assert set(sizes) == {(16, 32, 5)}


def under_way(client: OpenAI, name: str) -> None:
    """Returns once some of a video's budget is spent."""
    until(lambda: client.videos.retrieve(name).progress > 0, 60)


def test_the_best_estimate_so_far_is_a_still(wan: Any, tmp_path: Path) -> None:
    with serving(Slow(wan), tmp_path) as server, closing(client_of(server)) as client:
        own = {"budget": "200images", "search": "seed-pruning", "steps": 8}
        video = client.videos.create(prompt="a cat", extra_body=own)
        under_way(client, video.id)
        until(lambda: httpx.get(f"{server.url}/v1/videos/{video.id}/content?variant=thumbnail").status_code == 200)
        still = Image.open(io.BytesIO(client.videos.download_content(video.id, variant="thumbnail").read()))
        assert still.size == (32, 16)
        with pytest.raises(openai.NotFoundError, match="in_progress"):
            client.videos.download_content(video.id)
        told = client.videos.retrieve(video.id)
        assert (told.status, told.completed_at) == ("in_progress", None)
        assert 0 < told.progress < 100
        client.videos.delete(video.id)
        until(lambda: metric(server, "ttsnap_active") == 0)
        assert metric(server, "ttsnap_nfe_total") < 1600


def test_videos_survive_sigkill(tmp_path: Path) -> None:
    """The whole command, from a folder, with a database of its own address."""
    WanPipeline(**{**tiny_videos.wan().components, "transformer_2": None}).save_pretrained(tmp_path / "wan")
    (tmp_path / "wan" / "ttsnap.json").write_text(json.dumps(CALL))
    given = [str(tmp_path / "wan"), "--rewards", "brightness", "--state", str(tmp_path / "state")]
    given += ["--database", f"sqlite:///{tmp_path / 'rows.sqlite'}"]
    with command(*given) as (process, url), closing(OpenAI(base_url=f"{url}/v1", api_key="none")) as client:
        name = client.videos.create(prompt="a cat", extra_body={"budget": "200images"}).id
        under_way(client, name)
        process.send_signal(signal.SIGKILL)
        assert process.wait(60) == -signal.SIGKILL
    with command(*given) as (process, url), closing(OpenAI(base_url=f"{url}/v1", api_key="none")) as client:
        told = client.videos.poll(name, poll_interval_ms=100).to_dict()
        assert client.videos.download_content(name).read()[4:8] == b"ftyp"
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert told["status"] == "completed"
    assert 0 < told["usage"]["nfe"] <= 800
    assert str(tmp_path) not in json.dumps(told)
