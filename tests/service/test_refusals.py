"""What the service cannot honour: refused by name, in OpenAI's shape, before anything is counted, computed or kept."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from PIL import Image

from tests.service.asking import EDITED, IMAGES, PROMPT, VIDEOS, Caller, png, refusal

PICTURE = png(Image.new("RGB", (32, 32)))
SIZES = ("", "1024x", "1024.5x768", "-64x64", "64x64\n", "64X64", "0x64", "64x0", "15x32", "1025x64", "32x99999")
# The parameter at fault, its value or all that is changed of a small request, and a word of the message.
IMAGE: tuple[tuple[Any, ...], ...] = (
    ("prompt", {"prompt": None}), ("prompt", 7), ("prompt", "   "), ("prompt", "three pink elephants", "elephants"),
    ("negative_prompt", ["noise"]), ("n", 0), ("n", 11, "10"), ("n", 1.5), ("seed", "1", "whole"), ("seed", -1),
    *(("size", size) for size in SIZES), (None, {"size": "17x33"}, "17"), (None, {"size": "64x64"}, "draws"),
    ("steps", 0), ("steps", {"num_inference_steps": 201}, "201"), ("num_inference_steps", "many", "many"),
    ("num_inference_steps", {"steps": 4, "num_inference_steps": 5}, "both"), ("num_inference_step", 3),
    ("qualty", "low"), ("guidance_scale", "high"), ("true_cfg_scale", 1e9), ("negative_promt", "x"),
    ("true_cfg_scale", {"guidance_scale": 2, "true_cfg_scale": 3}),
    ("width", {"size": "32x32", "width": 32, "height": 32}, "both"), ("height", {"width": 32}, "no height"),
    *(("width", {"width": width, "height": 32}) for width in ("wide", -32, 32.5, 10**9, "9" * 5000)),
    ("flow_shift", 3.0), ("enable_upscaling", True), ("generate_sound", True), ("lora", "x", "no LoRAs"),
    ("quality", "mediun"), ("response_format", "raw"), ("output_format", "gif"), ("output_compression", 101),
    ("background", "transparent"), ("partial_images", 1, "stream"), ("stream", "yes"),
    ("partial_images", {"stream": True, "partial_images": 4}), ("draft", True, "no drafter"),
    ("response_format", {"stream": True, "response_format": "file"}), (None, {"stream": True, "size": "17x33"}, "17"),
    ("kernel", {"stream": True, "kernel": "x:y"}), ("budget", {"stream": True, "budget": "3nfe"}, "one image"),
    ("reward", "my_reward.py:score"), ("report", ["http://127.0.0.1:1"]), ("require", "my_reward.py:score>1"),
    ("require", "scenes>=high", "high"), ("kernel", "my.py:kernel"), ("kernel", "sde:square:1e308", "overflow in 20"),
    ("kernel", "ddim:nan", "ddim:nan"), (None, {"kernel": "ode", "search": "svdd"}, "noise"),
    ("budget", "many"), ("budget", "3nfe", "one image"), ("budget", "1e9flop", "one image"),
    ("budget", "1000images", "4000"), ("budget", {"budget": "9nfe", "quality": "low"}, "both"),
    ("search", "tuned.json"), ("search", {"search": {"n": 3}}, "'None'"),
    ("search", {"search": {"name": "noise-ascent"}}, "no search 'noise-ascent'"),
    ("search", {"search": {"name": "nested", "first": "/etc/tuned.json"}}, "no file, got '/etc"),
    ("search", {"search": {"name": "nested", "first": {"name": "refined"}}}, "no file, got 'refined'"),
    ("search", {"search": {"name": "best-of-n", "n": 10**9}}, "4000 here, got 1000000000"),
    ("search", {"search": {"name": "svdd", "n": 100, "streams": 100}}, "got 10000"),
    ("search", {"search": {"name": "best-of-n", "n": "x"}}, "n must"),
    ("search", {"search": {"name": "best-of-n", "m": 3}}, "['m']"),
    ("search", {"search": {"name": "seed-pruning", "keep": [2.0]}}, "keep"),
    (None, {"search": {"name": "seed-pruning", "steps": [50]}}, "[50]"),
)  # fmt: skip
EDIT: tuple[tuple[Any, ...], ...] = (
    ("image", {"image": None}, "form"), ("image", b"no picture"), ("image", png(Image.new("RGB", (65, 8))), "65 x 8"),
    ("image", [PICTURE] * 17, "17"), ("markup", PICTURE), ("picture", b"x"), ("n", "many"), ("n", "0"),
    ("strength", "2"), ("colour", "red"), ("prompt", {"prompt": None}), ("prompt", " "), ("size", "128x128"),
    ("layers", "4"), ("input_fidelity", "high"), ("lora", "{"), (None, {"size": "17x33"}, "33"),
    (None, {"image": [PICTURE] * 2}, "got 2"), (None, {"image": [PICTURE] * 2, "stream": "true"}, "got 2"),
    (None, {"mask": PICTURE}, "image-to-image"),
)  # fmt: skip
VIDEO: tuple[tuple[Any, ...], ...] = (
    ("size", "64x99"), ("seconds", "100"), ("seconds", "-1"), ("seconds", "abc"), ("prompt", {"prompt": None}),
    ("num_frames", {"seconds": "4", "num_frames": 5}, "both"), ("num_frames", 999), ("fps", 0), ("frames", 33),
    ("reward", "clip"), ("output_format", "gif"), ("quality", "4k"), ("flow_shift", 5), ("generate_sound", True),
    ("response_format", "b64_json"), ("image_reference", {"image_reference": {"file_id": "file-1"}}),
    ("image_reference", {"image_reference": {}, "input_reference": {}}), ("input_reference", "a.png"),
    ("input_reference", {"input_reference": {"image_url": "http://127.0.0.1:1/a.png"}}, "base64"),
    ("search", {"search": {"name": "svdd", "streams": -1}}),
)  # fmt: skip


def form(**fields: Any) -> list[tuple[str, Any]]:
    """What is given, as files where it is bytes."""
    parts = [(name, one) for name, given in fields.items() for one in (given if isinstance(given, list) else [given])]
    return [(name, (f"{name}.png" if isinstance(one, bytes) else None, one)) for name, one in parts if one is not None]


@pytest.mark.parametrize(
    ("door", "row"),
    [(door, row) for door, rows in (("server", IMAGE), ("editing", EDIT), ("videos", VIDEO)) for row in rows],
)
def test_what_cannot_be_honoured_is_refused_by_name(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, door: str, row: tuple[Any, ...]
) -> None:
    """Seeds are not counted either, which may take 17 s in which no other search goes on."""

    def counted(*_: object) -> None:
        raise AssertionError("seeds were counted for nothing")

    monkeypatch.setattr("ttsnap.loop.search.fit", counted)
    caller, (param, given, word) = Caller(request.getfixturevalue(door).url), (*row, "")[:3]
    change, spent = given if isinstance(given, dict) else {param: given}, caller.metric("nfe_total")
    kept = caller.get(VIDEOS).json()
    if door == "editing":
        reply = caller.ask("POST", EDITED, files=form(**{"image": PICTURE, "prompt": PROMPT, **change}))
    else:
        reply = caller.send(IMAGES if door == "server" else VIDEOS, **change)
    error = reply.json()["error"]
    assert refusal(reply)[:2] == (400, param), error
    assert error["code"] in ("invalid_value", "unknown_parameter", "missing_parameter", "invalid_image")
    assert error["type"] == "invalid_request_error"
    assert word in error["message"]
    assert caller.metric("nfe_total") == spent
    assert caller.get(VIDEOS).json() == kept


NO_MODEL, NO_JOBS, ELSEWHERE = (404, "model", "model_not_found"), (404, None, "no_jobs"), (404, "model", None)


@pytest.mark.parametrize(("door", "method", "path", "body", "told"), [
    *(("server", "POST", IMAGES, b, (400, None, "invalid_json")) for b in (b"{", b"[1]", b"[" * 10**4, b"\xff")),
    ("server", "POST", IMAGES, b" " * 2**17, (413, None, "too_large")),
    ("server", "GET", "/no", b"", (404, None, None)), ("server", "PUT", IMAGES, b"", (405, None, None)),
    ("server", "GET", "/v1/models/dall-e-3", b"", NO_MODEL),
    ("server", "POST", IMAGES, b'{"prompt": "a red circle", "model": "dall-e-3"}', NO_MODEL),
    ("server", "POST", IMAGES, b'{"prompt": "a red circle", "background": true}', NO_JOBS),
    ("server", "GET", IMAGES, b"", NO_JOBS), ("server", "GET", f"{EDITED}/edit_1", b"", NO_JOBS),
    ("server", "DELETE", f"{VIDEOS}/video_1", b"", NO_JOBS), ("server", "POST", VIDEOS, b"{}", ELSEWHERE),
    ("server", "POST", f"{VIDEOS}/video_1/remix", b"{}", NO_JOBS), ("server", "POST", EDITED, b"{}", ELSEWHERE),
    ("videos", "POST", IMAGES, b"{}", ELSEWHERE), ("videos", "POST", EDITED, b"{}", ELSEWHERE),
    ("videos", "POST", f"{VIDEOS}/video_1/edits", b"{}", (404, None, None)),
    ("videos", "POST", f"{VIDEOS}/video_1/remix", b"{}", (404, "id", "not_found")),
    ("videos", "POST", VIDEOS, b'{"prompt": "a cat", "model": "sora-2"}', NO_MODEL),
])  # fmt: skip
def test_what_is_no_request_here_is_told_so(
    request: pytest.FixtureRequest, door: str, method: str, path: str, body: bytes, told: tuple[Any, ...]
) -> None:
    reply: httpx.Response = Caller(request.getfixturevalue(door).url).ask(method, path, content=body)
    assert refusal(reply) == told, reply.text
    assert reply.status_code != 404 or reply.json()["error"]["type"] == "not_found_error"
