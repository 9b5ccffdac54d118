"""What is read of a body, whatever its kind and route: within bounds, and outside the event loop."""

from __future__ import annotations

import base64
import ctypes
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException

from tests.service.conftest import PROMPT, one_device, until
from tests.service.test_videos import OWN, png, serving, twin
from ttsnap.service import bodies
from ttsnap.service.bodies import Sent, sent
from ttsnap.service.limits import RequestError, ServiceLimits
from ttsnap.service.server import GenerationServer

SIZE = 8 * 2**20
URLENCODED = "application/x-www-form-urlencoded"


def read(body: bytes, kind: str = "application/json") -> Sent:
    return sent(bytearray(body), Headers({"content-type": kind}), ServiceLimits())


def filled(start: bytes, item: bytes) -> bytes:
    return start + item * (SIZE // len(item))


@pytest.mark.parametrize("name", [b"user", b"prompt", b"enable_teacache", b"input_reference"])
@pytest.mark.parametrize(
    "item",
    [b"[],", b"1,", b'{"a":1},', b'"a",', b'"",', b"[", b" ", b"a", b'\\u00e9"', b'"\xf0\x9f\x98\x80",', b'{"a":'],
)
def test_megabytes_of_json_are_refused_unparsed(name: bytes, item: bytes) -> None:
    """Python needs 35 times their bytes, and seconds, also under names that are ignored."""
    for quote in (b"", b'"', b"["):
        body = filled(b'{"prompt":"a cat","%b":%b' % (name, quote), item)
        tracemalloc.start()
        begin = time.monotonic()
        with pytest.raises(HTTPException, match=r"beside|more than") as refused:
            read(body)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert refused.value.status_code == 413
        assert most < 2 * len(body)
        assert time.monotonic() - begin < 5


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (filled(b"prompt=a+cat&user=", b"%41"), "maximum size"),
        (filled(b"prompt=a+cat&user=%F0%9F%98%80", b"a"), "no ASCII"),
        (filled(b"prompt=a+cat", b"&a=1"), "Too many fields"),
        (filled(b"prompt=a+cat&image_reference=", b"%41"), None),
        (filled(b"prompt=a+cat&image_reference=%7B%22image_url%22:", b"%5B%5D,"), "beside"),
        (b"prompt=%ff", "UTF-8"),
    ],
)
def test_megabytes_of_a_urlencoded_form_take_no_more_memory(body: bytes, error: str | None) -> None:
    tracemalloc.start()
    try:
        read(body, URLENCODED)
        said = None
    except RequestError as refused:
        said = str(refused)
    except HTTPException as refused:
        said = refused.detail
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 8 * len(body) + 2**20
    assert error == said if error is None else error in str(said)


def test_a_body_is_read_by_what_it_is() -> None:
    assert read(b"prompt=a+cat&search%5Bname%5D=svdd&x=%C3%A9%2B%26%3D", URLENCODED).fields == {
        "prompt": "a cat", "search": {"name": "svdd"}, "x": "é+&=",
    }  # fmt: skip
    plain = {"prompt": "a cat", "n": 2}
    for kind in ("application/json", "text/plain", URLENCODED):
        assert read(b' {"prompt": "a cat", "n": 2}', kind) == Sent(plain)
    for name in ("input_reference", "image_reference"):
        text = base64.b64encode(bytes(3 * 2**20))
        body = b'{"prompt": "a cat", "%b": {"image_url": "data:image\\/png;base64,%b"}}' % (name.encode(), text)
        assert read(body).fields[name] == {"image_url": f"data:image/png;base64,{text.decode()}"}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GenerationServer]:
    with serving(one_device(twin("wan")), tmp_path_factory.mktemp("videos")) as server:
        yield server


def check_beside(server: GenerationServer, path: str, monkeypatch: pytest.MonkeyPatch, **body: Any) -> None:
    """That a body of this route is read while others are served."""
    begun, go, thread = threading.Event(), threading.Event(), list[str]()

    def slow(*_: object) -> Sent:
        thread.append(threading.current_thread().name)
        begun.set()
        assert go.wait(20)
        raise HTTPException(400, "slow")

    monkeypatch.setattr(bodies, "sent", slow)
    with ThreadPoolExecutor(1) as pool:
        reply = pool.submit(httpx.post, server.url + path, timeout=30, **body)
        assert begun.wait(20)
        assert httpx.get(f"{server.url}/health", timeout=5).status_code == 200
        go.set()
        assert reply.result().json()["error"]["message"] == "slow"


@pytest.mark.parametrize("path", ["/v1/images/generations", "/v1/images/edits"])
@pytest.mark.parametrize("kind", ["json", "data", "files"])
def test_bodies_of_images_are_read_beside_the_event_loop(
    editing: GenerationServer, monkeypatch: pytest.MonkeyPatch, path: str, kind: str
) -> None:
    check_beside(editing, path, monkeypatch, **{kind: {"prompt": PROMPT}})


@pytest.mark.parametrize("path", ["", "/sync", "/{}/remix"])
def test_bodies_of_videos_are_read_beside_the_event_loop(
    videos: GenerationServer, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    url = f"{videos.url}/v1/videos"
    name = httpx.post(url, json={"prompt": "a cat", **OWN}, timeout=60).json()["id"] if "remix" in path else ""
    check_beside(videos, f"/v1/videos{path.format(name)}", monkeypatch, json={"prompt": "a cat"})


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_refused_forms_give_their_memory_back(editing: GenerationServer) -> None:
    """The C library would keep hundreds of megabytes of them."""
    if not hasattr(ctypes.CDLL(None), "malloc_trim"):
        pytest.skip("another C library")

    def resident() -> float:
        pages = Path("/proc/self/statm").read_text().split()[1]
        return int(pages) * 4096 / 2**20

    before, taken = resident(), list[float]()
    files, url = {"image": ("a", bytes(12 * 2**20))}, f"{editing.url}/v1/images/edits"
    with ThreadPoolExecutor(12) as pool:
        replies = [pool.submit(httpx.post, url, data={"prompt": PROMPT}, files=files, timeout=60) for _ in range(24)]
        while not all(reply.done() for reply in replies):
            taken.append(resident() - before)
            time.sleep(0.05)
        assert {reply.result().status_code for reply in replies} == {400}
    until(lambda: resident() - before < max(taken) / 2, 20)


def test_a_first_frame_of_json_is_no_prompt() -> None:
    uri = "data:image/png;base64," + base64.b64encode(png() + bytes(2**17)).decode()
    with pytest.raises(HTTPException, match="65536 beside"):
        read(b'{"prompt": "%b"}' % uri.encode())
