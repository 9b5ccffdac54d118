"""Videos as OpenAI's client asks for them, over tiny random pipelines."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from openai import OpenAI
from PIL import Image

from tests.pipelines.modular.tiny import picture
from tests.service.asking import SMALL, VIDEOS, Caller, png, refusal, until
from tests.service.conftest import CALL, client_of, filming, one_device, twin
from ttsnap.files.pictures import video_pixels
from ttsnap.request.request import ModelDefaults
from ttsnap.results.record import read_record
from ttsnap.service.limits import RequestError, ServiceLimits
from ttsnap.service.opening import offer_of
from ttsnap.service.requests import Video, notes_of, prepared_of, validated

pytestmark = pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")
FRAME = png(picture())


@pytest.fixture(scope="module")
def client(videos: Caller) -> Iterator[OpenAI]:
    with closing(client_of(videos)) as client:
        yield client


def polled(client: OpenAI, name: str) -> Any:
    return client.videos.poll(name, poll_interval_ms=50)


def test_a_video_is_what_the_pipeline_gives(client: OpenAI, wan: Any, tmp_path: Path) -> None:
    own = {**SMALL, "n": 2, "report": "brightness", "output_format": "png", "fps": 8}
    video = client.videos.create_and_poll(prompt="a cat", poll_interval_ms=50, extra_body=own)
    told: dict[str, Any] = video.to_dict()
    assert (video.object, video.status, video.progress, video.model) == ("video", "completed", 100, "tiny")
    assert (video.size, video.seconds, video.prompt, video.error) == ("32x16", "0.625", "a cat", None)
    assert (video.expires_at or 0) - (video.completed_at or 0) == 24 * 3600
    out = wan(prompt="a cat", search="best-of-n", reward="brightness", budget="4images", seed=3,
              num_videos_per_prompt=2, **CALL)  # fmt: skip
    best = out.search[0].images
    assert [each["seed"] for each in told["data"]] == [candidate.seed for candidate in best]
    for each, candidate in zip(told["data"], best, strict=True):
        assert each["reward"] == each["metrics"]["brightness"] == pytest.approx(candidate.reward, abs=1e-5)
    path = tmp_path / "video.png"
    client.videos.download_content(video.id).write_to_file(path)
    theirs = np.stack([np.asarray(frame) for frame in out.frames[0]])
    assert np.abs(video_pixels(path.read_bytes(), path, ("PNG",)).astype(int) - theirs).max() <= 1
    payload = read_record(path).to_json()
    assert (payload["seed"], payload["model"], payload["call"]["num_frames"]) == (best[0].seed, "tiny", 5)


def test_a_file_its_stills_and_its_remix(client: OpenAI) -> None:
    """A remix is the same request with another prompt."""
    own: dict[str, Any] = {**SMALL, "n": 2, "fps": 8}
    first = client.videos.create_and_poll(prompt="a cat", poll_interval_ms=50, extra_body=own)
    reply = client.videos.download_content(first.id)
    assert (reply.response.headers["content-type"], reply.read()[4:8]) == ("video/mp4", b"ftyp")
    for variant, size in {"thumbnail": (32, 16), "spritesheet": (65, 33)}.items():
        still = Image.open(io.BytesIO(client.videos.download_content(first.id, variant=variant).read()))  # type: ignore[arg-type]
        assert (still.format, still.size) == ("WEBP", size)
    again = polled(client, client.videos.remix(first.id, prompt="a dog").id)
    assert (again.prompt, again.status, again.remixed_from_video_id) == ("a dog", "completed", first.id)
    assert (first.remixed_from_video_id, again.seconds) == (None, first.seconds)
    dog: dict[str, Any] = client.videos.create_and_poll(prompt="a dog", poll_interval_ms=50, extra_body=own).to_dict()
    assert again.to_dict()["data"] == dog["data"], "its seeds, its budget, its length"
    for ask, param in (
        (lambda: client.videos.download_content(first.id, variant="poster"), "variant"),  # type: ignore[arg-type]
        (lambda: client.videos.remix(first.id, prompt=" "), "prompt"),
        (lambda: client.videos.remix(first.id, prompt=None), "prompt"),  # type: ignore[arg-type]
    ):
        with pytest.raises(openai.BadRequestError) as error:
            ask()
        assert error.value.param == param


@pytest.mark.parametrize(("before", "given", "same"), [
    ({"steps": 3, "size": "32x16"}, {"num_inference_steps": 2, "width": 16, "height": 32}, "steps,size"),
    ({"steps": None, "num_inference_steps": 3}, {"num_inference_steps": 2}, "steps"),
    ({"seconds": 1}, {"num_frames": 5}, "num_frames"), ({"num_frames": 5}, {"seconds": 1}, "seconds"),
    ({}, {"quality": "low", "user": "u"}, "quality"),
])  # fmt: skip
def test_a_remix_may_name_fields_as_other_servers_do(
    videos: Caller, before: dict[str, Any], given: dict[str, Any], same: str
) -> None:
    first, body = videos.begun(VIDEOS, **before), {"prompt": "a dog", **given}
    for kind in ("json", "data"):
        reply = videos.ask("POST", f"{first}/remix", **{kind: body})
        assert reply.status_code == 200, reply.text
        jobs: Any = videos.server._server.jobs  # type: ignore[union-attr]
        fields = jobs.store.get("anybody", "video", reply.json()["id"]).body["fields"]
        assert {"steps": 2, "size": "16x32", "num_frames": 5, "seconds": 1.0, "quality": "low"}.items() >= {
            (field, fields[field]) for field in same.split(",")
        }
        assert ("seconds" in fields) + ("num_frames" in fields) <= 1
        assert ("quality" in fields) + ("budget" in fields) == 1
        videos.ask("DELETE", f"{VIDEOS}/{reply.json()['id']}")


def test_lists_come_in_pages_and_deleted_videos_are_gone(client: OpenAI, videos: Caller) -> None:
    before = [video.id for video in client.videos.list(limit=100)]
    made = [client.videos.create(prompt=f"cat {i}", extra_body=SMALL).id for i in range(5)]
    assert [video.id for video in client.videos.list(limit=2)] == [*reversed(made), *before]
    assert [video.id for video in client.videos.list(limit=3, order="asc", after=made[1])] == made[2:]
    assert client.videos.delete(made[2]).to_dict() == {"id": made[2], "object": "video.deleted", "deleted": True}
    assert refusal(videos.get(f"{VIDEOS}/{made[2]}")) == (404, "id", "not_found")
    nothing = client.videos.list(limit=0)
    assert (nothing.data, nothing.has_more) == ([], True)
    for query in ({"limit": -1}, {"limit": 101}, {"limit": "many"}, {"order": "up"}, {"after": made[2]}):
        assert refusal(videos.get(VIDEOS, **query)) == (400, *query, "invalid_value")
    assert all(polled(client, name).status == "completed" for name in made[:2] + made[3:])


def test_seconds_are_as_many_frames_as_the_model_makes(videos: Caller) -> None:
    assert videos.ended(videos.begun(VIDEOS, seconds="4", fps=1))["seconds"] == "5", "odd numbers of frames"


@pytest.mark.parametrize(("sent", "form", "media", "magic"), [
    ("files", "mp4", "video/mp4", b"ftyp"), ("json", "webp", "image/webp", b"WEBP"),
    ("data", "PNG", "image/png", b"\r\n"),
])  # fmt: skip
def test_a_video_at_once(videos: Caller, sent: str, form: str, media: str, magic: bytes) -> None:
    body: dict[str, Any] = {"prompt": "a cat", "budget": "4images", "output_format": form}
    more = {name: (None, value) for name, value in body.items()} if sent == "files" else body
    reply = videos.ask("POST", f"{VIDEOS}/sync", **{sent: more})
    assert (reply.status_code, reply.headers["content-type"]) == (200, media)
    assert magic in reply.content[4:12]
    assert refusal(videos.send(f"{VIDEOS}/sync", prompt=""))[:2] == (400, "prompt")


def test_a_model_without_a_first_frame_takes_none(videos: Caller) -> None:
    reply = videos.ask("POST", VIDEOS, data={"prompt": "a cat"}, files={"input_reference": ("a.png", FRAME)})
    assert refusal(reply) == (400, "input_reference", "invalid_value")


@pytest.mark.parametrize("name", ["wan image2video", "ltx image2video"])
def test_a_first_frame_however_it_is_sent(name: str, tmp_path: Path) -> None:
    own: dict[str, Any] = {"prompt": "a cat", **SMALL, "budget": "1images"}
    data = FRAME + bytes(10**6)  # which a decoder does not read
    uri = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    address, texts = {"image_url": uri}, {key: (None, str(value)) for key, value in own.items()}
    with filming(one_device(twin(name)), tmp_path) as caller:

        def sent(path: str = f"{VIDEOS}/sync", **more: Any) -> Any:
            return caller.ask("POST", path, **more)

        replies = [
            sent(data={**own, "image_reference": json.dumps(address)}),
            sent(files={**texts, "image_reference": (None, json.dumps(address))}),
            sent(files={**texts, "input_reference[image_url]": (None, uri)}),
            sent(json={**own, "image_reference": address}),
            sent(content=json.dumps({**own, "input_reference": address}).replace("/", "\\/")),
            sent(data=own, files={"input_reference": ("a.png", data)}),
        ]
        assert [reply.status_code for reply in replies] == [200] * 6, [reply.text[:200] for reply in replies]
        assert len({reply.content for reply in replies}) == 1
        frames = [{"input_reference": ("a.png", png(picture(seed)))} for seed in range(2)]
        jobs = [sent(VIDEOS, data=own, files=frame).json()["id"] for frame in frames]
        one, other = (caller.ended(f"{VIDEOS}/{job}")["data"][0]["reward"] for job in jobs)
        assert one != pytest.approx(other, abs=2e-6)
        for field in ("prompt", "user"):
            assert refusal(sent(json={**own, field: uri})) == (413, None, "too_large")
        damaged = sent(data=own, files={"input_reference": ("a.png", b"no picture")})
        assert refusal(damaged) == (400, "input_reference", "invalid_image")
        bare = sent(json=own)
        if name.startswith("ltx"):
            assert bare.status_code == 200
        else:
            assert refusal(bare) == (400, "input_reference", "missing_parameter")


def test_what_clients_of_vllm_omni_send_is_read(videos: Caller) -> None:
    """A form without a file, which is urlencoded."""
    sent = {**SMALL, "prompt": "a cat & 50 % more + é", "num_inference_steps": "3", "width": "32", "height": "16"}
    more = {"guidance_scale_2": "2.5", "boundary_ratio": "0.9", "generate_sound": "False", "bot_task": "think"}
    sent.pop("steps")
    made = videos.ask("POST", VIDEOS, data={**sent, **more, "response_format": "file"})
    assert made.status_code == 200, made.text
    job = videos.ended(f"{VIDEOS}/{made.json()['id']}")
    assert job["prompt"] == sent["prompt"]
    assert job["warnings"] == ["not used here: bot_task, generate_sound, guidance_scale_2, boundary_ratio"]
    same = videos.begun(VIDEOS, prompt=sent["prompt"], steps=3, size="32x16")
    assert videos.ended(same)["data"] == job["data"]


def test_a_model_of_two_networks_reads_the_guidance_of_both() -> None:
    pipe = twin("wan22")
    engines, limits = one_device(pipe), ServiceLimits(side=16, video_side=64).of_videos
    offer, boundary = offer_of("tiny", engines, "tiny", {}, "none"), pipe.config.boundary_ratio
    assert offer.boundary == boundary
    offer = replace(offer, defaults=lambda _: ModelDefaults(CALL))
    wanted = validated(Video, {"prompt": "a cat", "guidance_scale_2": 2.5, "boundary_ratio": boundary})
    request = prepared_of(wanted, offer, limits)
    assert request.call["guidance_scale_2"] == 2.5
    assert notes_of(wanted, request, limits) == ("not used here: boundary_ratio",)
    with pytest.raises(RequestError, match=f"{boundary:g}, got 0.1"):
        prepared_of(replace(wanted, boundary_ratio=0.1), offer, limits)


def test_a_size_without_pixels_in_its_latents_is_told_of(tmp_path: Path) -> None:
    pipe = twin("ltx image2video")
    pipe.vae.spatial_compression_ratio = 32  # as of the real LTX-Video
    with filming(one_device(pipe), tmp_path) as caller:
        for files in ({}, {"input_reference": ("a.png", FRAME)}):
            form: dict[str, Any] = {"prompt": (None, "a cat"), "size": (None, "16x32"), **files}
            reply = caller.ask("POST", f"{VIDEOS}/sync", files=form)
            assert reply.status_code == 500
            assert "leave size out" in reply.json()["error"]["message"]


def test_nothing_is_tried_but_what_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A first frame of the model's own size takes its VAE minutes."""
    pipe, sizes = twin("wan image2video"), list[tuple[object, ...]]()
    made = type(pipe).sampling_denoiser

    def counted(self: Any, sampler: Any, **call: Any) -> Any:
        sizes.append((call.get("width"), call.get("height"), call.get("num_frames")))
        return made(self, sampler, **call)

    monkeypatch.setattr(type(pipe), "sampling_denoiser", counted)
    with filming(one_device(pipe), tmp_path) as caller:
        until(lambda: caller.server and caller.server.worker.loaded)
        sizes.clear()
        for kernel, status in (("pipeline", 200), ("x:y", 400)):
            form = {"prompt": "a cat", "size": "16x32", "budget": "1images", "kernel": kernel}
            reply = caller.ask("POST", f"{VIDEOS}/sync", data=form, files={"input_reference": ("a.png", FRAME)})
            assert reply.status_code == status, reply.text[:300]
    assert set(sizes) == {(16, 32, 5)}
