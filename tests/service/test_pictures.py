"""Edits and videos as OpenAI's client asks for them, over the embedded model and tiny random
pipelines."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace

import httpx
import numpy as np
import openai
import pytest
import torch
from PIL import Image

from tests.pipelines.modular.tiny import picture as still
from tests.service.asking import (
    EDITED,
    PROMPT,
    SMALL,
    VIDEOS,
    apart,
    best,
    picture,
    png,
    received,
    refusal,
    shown,
    until,
)
from tests.service.conftest import CALL, EDITS, client_of, filming, one_device, serve, twin
from ttsnap.files.pictured import Blank, Picture, video_pixels
from ttsnap.pipelines import defaults
from ttsnap.request.request import ModelDefaults
from ttsnap.results.record import read_record
from ttsnap.service.engines import OneDevice
from ttsnap.service.forms import body_in
from ttsnap.service.job_store import JobStore
from ttsnap.service.limits import RequestError, ServiceLimits
from ttsnap.service.requests import Edit, Generation, Video, notes_of, prepared_of, validated
from ttsnap.service.server import offer_of
from ttsnap.service.tickets import RequestParser, thumbnail_of

OWN = {**SMALL, "strength": 0.75, "negative_prompt": "noise"}
LIMITS = ServiceLimits(drain=0.1, side=64)


def edited(editing, data, **own):
    """The reply to an edit of a picture, sent as a form."""
    fields, files = {"prompt": PROMPT, **OWN, **own}, {"image": ("drawn.png", data)}
    reply = editing.ask(
        "POST", EDITED, data={name: v for name, v in fields.items() if v is not None}, files=files
    )
    assert reply.status_code == 200, reply.text
    told = reply.json()
    return told


def test_an_edit_is_what_the_pipeline_gives(editing, editor, drawn):
    edit = client_of(editing).images.edit
    reply = edit(image=("drawn.png", drawn[0]), prompt=PROMPT, n=2, extra_body=OWN).to_dict()
    call = {**defaults(), "num_inference_steps": 4, "strength": 0.75, "negative_prompt": "noise"}
    call |= {
        "search": "best-of-n",
        "reward": "brightness",
        "budget": "16nfe",
        "seed": 3,
        "num_images_per_prompt": 2,
    }
    out = editor(prompt=PROMPT, image=Image.open(io.BytesIO(drawn[0])), **call)
    data = reply["data"]
    assert [image["seed"] for image in data] == [c.seed for c in out.search[0].images]
    for image, theirs in zip(data, out.images, strict=True):
        assert apart(picture(image["b64_json"]), theirs) <= 1


def test_edits_of_several_callers_share_an_engine_and_its_batches(editor):
    made = []

    class Counting(OneDevice):
        def engine(self, spec):
            made.append(spec)
            return super().engine(spec)

    rng = np.random.default_rng(0)
    pictures = [
        png(Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))) for _ in range(12)
    ]
    with (
        serve(Counting(editor, one_device(editor).rewards), EDITS, LIMITS) as caller,
        ThreadPoolExecutor(12) as pool,
    ):

        def ask(i):
            own = {"seed": i, "budget": "20nfe", "negative_prompt": f"noise {i % 2}"}
            return best(edited(caller, pictures[i], **own))[1]

        # scores have four digits: two may be equal
        assert len(set(pool.map(ask, range(12)))) >= 11, "each is of its own picture"
        assert caller.metric("nfe_total") > 0.7 * caller.metric("batch_places_total")
    assert len(made) == 2, (
        "one for the edits, and one that was ready for requests without a picture"
    )
    assert [spec.call["image"] for spec in made if "image" in spec.call] == [Blank((32, 32))]


def test_such_a_server_tells_that_it_drafts_no_seeds(editor):
    served = one_device(editor)

    async def notes(drafter, **own):
        offer = offer_of("embedded", served, None, {}, drafter, edits=True)
        return " ".join(
            RequestParser(offer, ServiceLimits())
            .ticket(validated(Generation, {"prompt": PROMPT, **own}), "alice")
            .notes
        )

    assert "no seeds are drafted" in asyncio.run(notes("auto"))
    quiet = notes("auto", draft=False), notes("auto", search="best-of-n"), notes("none")
    assert list(map(asyncio.run, quiet)) == [""] * 3


def test_an_absent_negative_prompt_leaves_a_request_guided(editing, drawn):
    def rewards(**more):
        own = {"negative_prompt": None, **more}
        return [
            told["data"][0]["reward"]
            for told in (edited(editing, drawn[0], **own), editing.made(**own))
        ]

    absent, empty, unguided = rewards(), rewards(negative_prompt=""), rewards(guidance_scale=1)
    assert absent == pytest.approx(empty, abs=1e-5)  # a batch rounds otherwise
    assert all(abs(a - b) > 1e-4 for a, b in zip(absent, unguided, strict=True))


@pytest.mark.parametrize(("size", "made"), [(None, "32x32"), ("auto", "32x32"), ("24x32", "24x32")])
def test_an_edit_has_the_size_that_is_asked_for(editing, drawn, size, made):
    told = edited(editing, drawn[1], size=size, seed=0, budget="1images", output_format="jpeg")
    resized = ["the picture of 24x32 was taken as one of 32x32"] if made == "32x32" else []
    assert (told["size"], told["warnings"], told["data"][0]["seed"]) == (made, resized, 0)
    image = shown(told)
    assert (f"{image.width}x{image.height}", image.format, told["output_format"]) == (
        made,
        "JPEG",
        "jpeg",
    )


def test_a_size_whose_sides_do_not_fit_is_refused(editing):
    assert editing.made(size="16x32")["size"] == "16x32"
    assert refusal(editing.send(size="17x31"))[:2] == (400, None)


def test_an_edit_may_be_a_job(editor, editing, drawn, tmp_path):
    at_once, given = edited(editing, drawn[0]), {"image": Picture(drawn[0])}
    with closing(JobStore(tmp_path, LIMITS)) as store:
        body = {"fields": {"prompt": PROMPT, **OWN}, "ignored": []}
        earlier = store.add("anybody", "image_edit", "embedded", body, given)
        assert store.pictures(earlier) == given
        with serve(one_device(editor), EDITS, LIMITS, store=store) as mine:
            for name in (edited(mine, drawn[0], background="true")["id"], earlier.id):
                for made, before in zip(
                    mine.ended(f"{EDITED}/{name}")["data"], at_once["data"], strict=True
                ):
                    assert made["seed"] == before["seed"]
                    # batches round otherwise
                    assert made["reward"] == pytest.approx(before["reward"], abs=1e-4)
            assert mine.ask("DELETE", f"{EDITED}/{name}").json()["object"] == "image.edit.deleted"


@pytest.mark.parametrize("name", ["image", "image[]"])
def test_pictures_keep_their_order(name):
    pictures = [png(Image.new("RGB", (side, 32))) for side in (16, 32, 24)]
    form = [(name, (f"{i}.png", data)) for i, data in enumerate(pictures)]
    sent = httpx.Request("POST", "http://x", files=form, data={"prompt": PROMPT})
    request = received(sent.read(), sent.headers["content-type"])
    wanted, found = asyncio.run(body_in(Edit, request, ServiceLimits()))
    assert (wanted.prompt, found["image"]) == (PROMPT, tuple(map(Picture, pictures)))


def test_a_mask_is_painted_where_it_is_transparent_or_white():
    clear, white = np.full((2, 2, 4), 255, np.uint8), np.zeros((2, 2, 3), np.uint8)
    clear[0, 1, 3], white[1, 0] = 0, 255
    for pixels, painted in ((clear, [[0, 255], [0, 0]]), (white, [[0, 0], [255, 0]])):
        assert (
            np.asarray(Picture(png(Image.fromarray(pixels)), mask=True).opened()).tolist()
            == painted
        )


# --- videos ---------------------------------------------------------------------------------------


pytestmark = pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")
FRAME = png(still())


@pytest.fixture(scope="module")
def client(videos):
    with closing(client_of(videos)) as client:
        yield client


def polled(client, name):
    return client.videos.poll(name, poll_interval_ms=50)


def test_a_video_is_what_the_pipeline_gives(client, wan, tmp_path):
    own = {**SMALL, "n": 2, "report": "brightness", "output_format": "png", "fps": 8}
    video = client.videos.create_and_poll(prompt="a cat", poll_interval_ms=50, extra_body=own)
    told = video.to_dict()
    assert (video.object, video.status, video.progress, video.model) == (
        "video",
        "completed",
        100,
        "tiny",
    )
    assert (video.size, video.seconds, video.prompt, video.error) == (
        "32x16",
        "0.625",
        "a cat",
        None,
    )
    assert (video.expires_at or 0) - (video.completed_at or 0) == 24 * 3600
    out = wan(
        prompt="a cat",
        search="best-of-n",
        reward="brightness",
        budget="4images",
        seed=3,
        num_videos_per_prompt=2,
        **CALL,
    )
    best = out.search[0].images
    assert [each["seed"] for each in told["data"]] == [candidate.seed for candidate in best]
    for each, candidate in zip(told["data"], best, strict=True):
        assert (
            each["reward"]
            == each["metrics"]["brightness"]
            == pytest.approx(candidate.reward, abs=1e-5)
        )
    path = tmp_path / "video.png"
    client.videos.download_content(video.id).write_to_file(path)
    theirs = np.stack([np.asarray(frame) for frame in out.frames[0]])
    assert np.abs(video_pixels(path.read_bytes(), path, ("PNG",)).astype(int) - theirs).max() <= 1
    payload = read_record(path).to_json()
    assert (payload["seed"], payload["model"], payload["call"]["num_frames"]) == (
        best[0].seed,
        "tiny",
        5,
    )


def test_the_thumbnail_of_a_video_is_its_middle_frame():
    video = torch.linspace(0, 1, 5).view(5, 1, 1, 1).expand(5, 3, 8, 8)
    middle = np.asarray(Image.open(io.BytesIO(thumbnail_of(video))))
    assert middle.mean() == pytest.approx(127.5, abs=2)


def test_a_file_and_its_thumbnail(client):
    own = {**SMALL, "n": 2, "fps": 8}
    first = client.videos.create_and_poll(prompt="a cat", poll_interval_ms=50, extra_body=own)
    reply = client.videos.download_content(first.id)
    assert (reply.response.headers["content-type"], reply.read()[4:8]) == ("video/mp4", b"ftyp")
    small = client.videos.download_content(first.id, variant="thumbnail").read()
    shot = Image.open(io.BytesIO(small))
    assert (shot.format, shot.size) == ("WEBP", (32, 16))
    for variant in ("spritesheet", "poster"):
        with pytest.raises(openai.BadRequestError) as error:
            client.videos.download_content(first.id, variant=variant)  # type: ignore[arg-type]
        assert error.value.param == "variant"


def test_lists_come_in_pages_and_deleted_videos_are_gone(client, videos):
    before = [video.id for video in client.videos.list(limit=100)]
    made = [client.videos.create(prompt=f"cat {i}", extra_body=SMALL).id for i in range(5)]
    assert [video.id for video in client.videos.list(limit=2)] == [*reversed(made), *before]
    page = client.videos.list(limit=3, order="asc", after=made[1])
    assert ([video.id for video in page.data], page.has_more) == (made[2:], False)
    assert client.videos.delete(made[2]).to_dict() == {
        "id": made[2],
        "object": "video.deleted",
        "deleted": True,
    }
    assert refusal(videos.get(f"{VIDEOS}/{made[2]}")) == (404, "id", "not_found")
    nothing = client.videos.list(limit=0)
    assert (nothing.data, nothing.has_more) == ([], True)
    for query in (
        {"limit": -1},
        {"limit": 101},
        {"limit": "many"},
        {"limit": "0000000001000"},
        {"order": "up"},
        {"after": made[2]},
    ):
        assert refusal(videos.get(VIDEOS, **query)) == (400, *query, "invalid_value")
    assert all(polled(client, name).status == "completed" for name in made[:2] + made[3:])


def test_seconds_are_as_many_frames_as_the_model_makes(videos):
    assert videos.ended(videos.begun(VIDEOS, seconds="4", fps=1))["seconds"] == "5", (
        "odd numbers of frames"
    )


@pytest.mark.parametrize(
    ("sent", "form", "media", "magic"),
    [
        ("files", "mp4", "video/mp4", b"ftyp"),
        ("json", "webp", "image/webp", b"WEBP"),
        ("json", "PNG", "image/png", b"\r\n"),
    ],
)
def test_a_video_at_once(videos, sent, form, media, magic):
    body = {"prompt": "a cat", "budget": "4images", "output_format": form}
    more = {name: (None, value) for name, value in body.items()} if sent == "files" else body
    reply = videos.ask("POST", f"{VIDEOS}/sync", **{sent: more})
    assert (reply.status_code, reply.headers["content-type"]) == (200, media)
    assert magic in reply.content[4:12]
    assert refusal(videos.send(f"{VIDEOS}/sync", prompt=""))[:2] == (400, "prompt")


@pytest.mark.parametrize("name", ["wan image2video", "ltx image2video"])
def test_a_first_frame_however_it_is_sent(name, tmp_path):
    own = {"prompt": "a cat", **SMALL, "budget": "1images"}
    data = FRAME + bytes(10**6)  # which a decoder does not read
    uri = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    address, texts = {"image_url": uri}, {key: (None, str(value)) for key, value in own.items()}
    with filming(one_device(twin(name)), tmp_path) as caller:

        def sent(path=f"{VIDEOS}/sync", **more):
            return caller.ask("POST", path, **more)

        replies = [
            sent(files={**texts, "input_reference[image_url]": (None, uri)}),
            sent(json={**own, "input_reference": address}),
            sent(
                content=json.dumps({**own, "input_reference": address}).replace("/", "\\/"),
                headers={"Content-Type": "application/json"},
            ),
            sent(data=own, files={"input_reference": ("a.png", data)}),
        ]
        assert [reply.status_code for reply in replies] == [200] * 4, [
            reply.text[:200] for reply in replies
        ]
        assert len({reply.content for reply in replies}) == 1
        frames = [{"input_reference": ("a.png", png(still(seed)))} for seed in range(2)]
        jobs = [sent(VIDEOS, data=own, files=frame).json()["id"] for frame in frames]
        one, other = (caller.ended(f"{VIDEOS}/{job}")["data"][0]["reward"] for job in jobs)
        assert one != pytest.approx(other, abs=2e-6)
        for field in ("prompt", "user"):
            assert refusal(sent(json={**own, field: uri})) == (413, None, "too_large")
        damaged = sent(data=own, files={"input_reference": ("a.png", b"no picture")})
        assert refusal(damaged) == (400, "input_reference", "invalid_image")
        upright = {"input_reference": ("a.png", png(still(size=(24, 40))))}
        # Wan's blocks give a video its first frame's shape
        size = "32x16" if name.startswith("ltx") else "16x24"
        assert (
            caller.ended(f"{VIDEOS}/{sent(VIDEOS, data=own, files=upright).json()['id']}")["size"]
            == size
        )
        bare = sent(json=own)
        if name.startswith("ltx"):
            assert bare.status_code == 200
        else:
            assert refusal(bare) == (400, "input_reference", "missing_parameter")


def test_other_names_of_fields_are_read_and_unknown_fields_named(videos):
    sides = {"num_inference_steps": 3, "width": 32, "height": 16}
    own = {name: value for name, value in SMALL.items() if name != "steps"}
    unused = {"style": "vivid", "flow_shift": [5], "x" * 100: "", "guidance_scale_2": 2.5}
    reply = videos.send(VIDEOS, **own, **sides, **unused)
    job = videos.ended(f"{VIDEOS}/{reply.json()['id']}")
    assert job["warnings"] == [f"not used here: style, flow_shift, {'x' * 60}, guidance_scale_2"]
    same = videos.begun(VIDEOS, steps=3, size="32x16")
    (one,) = videos.ended(same)["data"]
    (other,) = job["data"]
    assert one["seed"] == other["seed"]
    assert one["reward"] == pytest.approx(other["reward"], abs=1e-6)  # batches may round apart


def test_a_model_of_two_networks_reads_the_guidance_of_both():
    pipe = twin("wan22")
    engines, limits = one_device(pipe), ServiceLimits(side=16, video_side=64).of_videos
    offer, boundary = offer_of("tiny", engines, "tiny", {}, "none"), pipe.config.boundary_ratio
    assert offer.boundary == boundary
    offer = replace(offer, defaults=lambda _: ModelDefaults(CALL))
    wanted = validated(
        Video, {"prompt": "a cat", "guidance_scale_2": 2.5, "boundary_ratio": boundary}
    )
    request = prepared_of(wanted, offer, limits)
    assert request.call["guidance_scale_2"] == 2.5
    assert notes_of(wanted, request, limits) == ("not used here: boundary_ratio",)
    with pytest.raises(RequestError, match=f"{boundary:g}, got 0.1"):
        prepared_of(wanted.model_copy(update={"boundary_ratio": 0.1}), offer, limits)


def test_a_size_without_pixels_in_its_latents_is_told_of(tmp_path, monkeypatch):
    pipe = twin("ltx image2video")
    monkeypatch.setattr(pipe.vae, "spatial_compression_ratio", 32)  # as of the real LTX-Video
    with filming(one_device(pipe), tmp_path) as caller:
        for files in ({}, {"input_reference": ("a.png", FRAME)}):
            form = {"prompt": (None, "a cat"), "size": (None, "16x32"), **files}
            reply = caller.ask("POST", f"{VIDEOS}/sync", files=form)
            assert reply.status_code == 500
            assert "leave size out" in reply.json()["error"]["message"]


def test_nothing_is_tried_but_what_is_asked_for(tmp_path, monkeypatch):
    """A first frame of the model's own size takes its VAE minutes."""
    pipe, sizes = twin("wan image2video"), list[tuple[object, ...]]()
    made = type(pipe).sampling_denoiser

    def counted(self, sampler, **call):
        sizes.append((call.get("width"), call.get("height"), call.get("num_frames")))
        return made(self, sampler, **call)

    monkeypatch.setattr(type(pipe), "sampling_denoiser", counted)
    with filming(one_device(pipe), tmp_path) as caller:
        until(lambda: caller.worker.loaded)
        sizes.clear()
        for kernel, status in (("pipeline", 200), ("x:y", 400)):
            form = {"prompt": "a cat", "size": "16x32", "budget": "1images", "kernel": kernel}
            reply = caller.ask(
                "POST", f"{VIDEOS}/sync", data=form, files={"input_reference": ("a.png", FRAME)}
            )
            assert reply.status_code == status, reply.text[:300]
    assert set(sizes) == {(16, 32, 5)}
