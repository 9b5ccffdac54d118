"""What hostile clients send, on sockets of 127.0.0.1: each is refused within bounds, while others are served."""

from __future__ import annotations

import base64
import ctypes
import logging
import socket
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageFile
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException

from tests.bombs import HUGE, STILLS
from tests.pipelines.modular.tiny import picture
from tests.service.asking import ALICE, EDITED, IMAGES, PROMPT, VIDEOS, Caller, png, refusal, until
from tests.service.conftest import EDITS, one_device, serve
from ttsnap.files.pictured import Picture
from ttsnap.service.bodies import Sent, sent
from ttsnap.service.keys import Keys
from ttsnap.service.limits import RequestError, ServiceLimits
from ttsnap.service.server import GenerationServer

WHITE = png(Image.new("RGB", (32, 32)))


@pytest.mark.parametrize("kind", STILLS)
@pytest.mark.parametrize("param", ["image", "mask"])
def test_a_picture_that_is_a_bomb_is_refused_undecoded(
    editing: GenerationServer, monkeypatch: pytest.MonkeyPatch, kind: str, param: str
) -> None:
    bomb, decoded, load = STILLS[kind](), [0], ImageFile.ImageFile.load
    assert len(bomb) < 300_000
    assert kind == "gif" or Picture(bomb).size == (HUGE, HUGE)

    def watched(picture: ImageFile.ImageFile) -> Any:
        decoded.extend(picture.size)
        return load(picture)

    monkeypatch.setattr(ImageFile.ImageFile, "load", watched)
    files = {"image": ("a", WHITE)} | {param: ("a", bomb)}
    reply = Caller(editing.url).ask("POST", EDITED, data={"prompt": PROMPT}, files=files)
    assert refusal(reply)[:2] == (400, param)
    assert max(decoded) <= 32


# --- connections --------------------------------------------------------------------------------------------------

HEAD = f"POST {EDITED} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ALICE}\r\nContent-Type: multipart/form-data; "
SLOW = {
    "half a body": (HEAD + "boundary=x\r\nContent-Length: 999\r\n\r\n--x\r\n").encode(),
    "half a chunk": (HEAD + "boundary=x\r\nTransfer-Encoding: chunked\r\n\r\nfff\r\n--x").encode(),
}


@pytest.fixture(scope="module")
def strict(editor: Any) -> Iterator[GenerationServer]:
    """Has little patience and few places."""
    limits = ServiceLimits(drain=0.1, body_seconds=0.7, connections=6, held=2**20, form_bytes=2**20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ttsnap.service.server.IDLE", 1)
        server = serve(one_device(editor), EDITS, limits, Keys.of(ALICE))
    with server:
        yield server


def connected(server: GenerationServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=10)


def gone(server: GenerationServer) -> bool:
    return not server._server.server_state.connections


@pytest.mark.parametrize("kind", SLOW)
def test_clients_that_send_nothing_more_or_drip_are_let_go(strict: GenerationServer, kind: str) -> None:
    until(lambda: gone(strict))
    clients, begin, caller = [connected(strict) for _ in range(6)], time.monotonic(), Caller(strict.url)
    for client in clients:
        client.sendall(SLOW[kind])
    until(lambda: len(strict._server.server_state.connections) == 6)
    assert caller.get("/health").status_code == 503, "all places are taken"
    while not gone(strict):
        assert time.monotonic() - begin < 8
        for client in clients[::2]:
            try:
                client.sendall(b"x")  # every second one drips
            except OSError:
                client.close()
        time.sleep(0.1)
    assert caller.get("/health").status_code == 200
    for client in clients:
        client.close()


def test_what_is_read_at_a_time_is_bounded(strict: GenerationServer) -> None:
    until(lambda: gone(strict))
    large = (HEAD + f"boundary=x\r\nContent-Length: {2**20}\r\n\r\n").encode() + bytes(2**19 + 2**17)
    with connected(strict) as first, connected(strict) as second:
        first.sendall(large)
        second.sendall(large)
        replies = sorted(client.recv(4096)[9:12] for client in (first, second))
    assert replies == [b"408", b"503"]


def test_keys_in_addresses_open_nothing_and_are_not_logged(
    strict: GenerationServer, caplog: pytest.LogCaptureFixture
) -> None:
    until(lambda: gone(strict))
    caplog.set_level(logging.DEBUG)
    for name in ("api_key", "key", "authorization", "token"):
        for path in ("/v1/models", EDITED, "/v1/images/generations", "/docs", "/nothing", "/metrics"):
            reply = Caller(strict.url).ask("POST" if "images" in path else "GET", f"{path}?{name}={ALICE}")
            assert reply.status_code == {"/nothing": 404, "/metrics": 200}.get(path, 401)
            assert ALICE not in reply.text + str(reply.headers)
    assert ALICE not in "".join(record.getMessage() for record in caplog.records if not record.name.startswith("http"))


# --- bodies: read within bounds, and outside the event loop --------------------------------------------------------


SIZE = 4 * 2**20
URLENCODED, MULTIPART = "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"


def read(body: bytes, kind: str = "application/json") -> Sent:
    return sent(bytearray(body), Headers({"content-type": kind}), ServiceLimits())


def bounded(body: bytes, kind: str, times: float) -> tuple[int, str]:
    """The status and the message of a refusal, which takes few seconds, and at most so many times the bytes of a body;
    200 without one."""
    tracemalloc.start()
    begin = time.monotonic()
    try:
        read(body, kind)
        told = 200, ""
    except RequestError as refused:
        told = refused.status, str(refused)
    except HTTPException as refused:
        told = refused.status_code, refused.detail
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < times * len(body) + 2**20
    assert time.monotonic() - begin < 10
    return told


def filled(start: bytes, item: bytes) -> bytes:
    return start + item * (SIZE // len(item))


@pytest.mark.parametrize("name", [b"user", b"input_reference"])
@pytest.mark.parametrize(
    "item", [b"[],", b"1,", b'{"a":1},', b'"",', b"[", b" ", b"a", b'\\u00e9"', b'"\xf0\x9f\x98\x80",', b'{"a":']
)
def test_megabytes_of_json_are_refused_unparsed(name: bytes, item: bytes) -> None:
    """Python needs 35 times their bytes, and seconds, also under names that are ignored."""
    for quote in (b"", b'"', b"["):
        body = filled(b'{"prompt":"a cat","%b":%b' % (name, quote), item)
        status, said = bounded(body, "application/json", 1.75)
        assert (status, str(len(body)) in said) == (413, True)


def multipart(*parts: tuple[str, str]) -> bytes:
    lines = [
        f'--x\r\nContent-Disposition: form-data; name="{name.format(number)}"\r\n\r\n{value}\r\n'
        for number, (name, value) in enumerate(parts)
    ]
    return "".join([*lines, "--x--\r\n"]).encode()


@pytest.mark.parametrize(("body", "kind", "status", "said"), [
    (filled(b"prompt=a+cat&user=", b"%41"), URLENCODED, 413, "maximum size"),
    (filled(b"prompt=a+cat&user=%F0%9F%98%80", b"a"), URLENCODED, 400, "no ASCII"),
    (filled(b"prompt=a+cat", b"&a=1"), URLENCODED, 400, "Too many fields"),
    (filled(b"prompt=a+cat&image_reference=", b"%41"), URLENCODED, 200, ""),
    (filled(b"prompt=a+cat&image_reference=%7B%22image_url%22:", b"%5B%5D,"), URLENCODED, 413, "beside"),
    (b"prompt=%ff", URLENCODED, 400, "UTF-8"),
    (multipart(*[("f{}", "x")] * 10_000), MULTIPART, 400, "Too many fields"),
    (multipart(*[('f{}"; filename="a', "x")] * 10_000), MULTIPART, 400, "Too many files"),
    (multipart(("prompt", "x" * (2**16 + 1))), MULTIPART, 413, "maximum size"),
    (multipart(*[("a", "x" * 2**12)] * 17), MULTIPART, 413, "maximum size"),
    (multipart(("prompt", "9" * 80_000)), f"{MULTIPART}; charset=punycode", 400, "UTF-8"),
    (multipart(("prompt", "x")), f"{MULTIPART}; charset*=utf-8''punycode", 400, "UTF-8"),
    (multipart(("prompt", "x")), f"{MULTIPART}; charset=utf-8", 200, ""),
    (multipart(("prompt", "x")), f'{MULTIPART}; charset="UTF-8"', 200, ""),
    (multipart(("x" * 2**19, "x")), MULTIPART, 400, "cannot be read"),
], ids=lambda value: None if isinstance(value, bytes) else str(value))  # fmt: skip
def test_forms_are_bounded(body: bytes, kind: str, status: int, said: str) -> None:
    told = bounded(body, kind, 8)
    assert told[0] == status
    assert said in told[1]


def test_a_body_is_read_by_what_it_is() -> None:
    assert read(b"prompt=a+cat&search%5Bname%5D=svdd&x=%C3%A9%2B%26%3D", URLENCODED).fields == {
        "prompt": "a cat", "search": {"name": "svdd"}, "x": "é+&=",
    }  # fmt: skip
    for kind in ("application/json", "text/plain", URLENCODED):
        assert read(b' {"prompt": "a cat", "n": 2}', kind) == Sent({"prompt": "a cat", "n": 2})
    for name in ("input_reference", "image_reference"):
        text = base64.b64encode(bytes(3 * 2**20))
        body = b'{"prompt": "a cat", "%b": {"image_url": "data:image\\/png;base64,%b"}}' % (name.encode(), text)
        assert read(body).fields[name] == {"image_url": f"data:image/png;base64,{text.decode()}"}
    uri = "data:image/png;base64," + base64.b64encode(png(picture()) + bytes(2**17)).decode()
    with pytest.raises(HTTPException, match="65536 beside"):
        read(b'{"prompt": "%b"}' % uri.encode())


PICTURED = {"data": {"prompt": PROMPT}, "files": {"image": ("a", WHITE)}}


@pytest.mark.parametrize(("door", "path", "work", "body"), [
    *(("editing", path, "service.bodies.sent", {kind: {"prompt": PROMPT}})
      for path in (IMAGES, EDITED) for kind in ("json", "data", "files")),
    *(("videos", path, "service.bodies.sent", {"json": {}}) for path in (VIDEOS, f"{VIDEOS}/sync", "remix")),
    ("editing", EDITED, "files.pictured.Picture.opened", PICTURED),
])  # fmt: skip
def test_bodies_are_read_and_pictures_decoded_beside_the_event_loop(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, door: str, path: str, work: str, body: Any
) -> None:
    begun, go, caller = threading.Event(), threading.Event(), Caller(request.getfixturevalue(door).url)
    if path == "remix":
        path = f"{caller.begun(VIDEOS)}/remix"

    def slow(*_: object) -> object:
        begun.set()
        assert go.wait(20)
        raise RequestError(400, "slow")

    monkeypatch.setattr(f"ttsnap.{work}", slow)
    with ThreadPoolExecutor(1) as pool:
        reply = pool.submit(caller.ask, "POST", path, **body)
        assert begun.wait(20)
        assert caller.ask("GET", "/health", timeout=5).status_code == 200
        go.set()
        assert reply.result().json()["error"]["message"] == "slow"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_refused_forms_give_their_memory_back(editing: GenerationServer) -> None:
    """The C library would keep hundreds of megabytes of them."""
    if not hasattr(ctypes.CDLL(None), "malloc_trim"):
        pytest.skip("another C library")

    def resident() -> float:
        pages = Path("/proc/self/statm").read_text().split()[1]
        return int(pages) * 4096 / 2**20

    before, taken, caller = resident(), list[float](), Caller(editing.url)
    form: dict[str, Any] = {"data": {"prompt": PROMPT}, "files": {"image": ("a", bytes(12 * 2**20))}}
    with ThreadPoolExecutor(12) as pool:
        replies = [pool.submit(caller.ask, "POST", EDITED, **form) for _ in range(24)]
        while not all(reply.done() for reply in replies):
            taken.append(resident() - before)
            time.sleep(0.05)
        assert {reply.result().status_code for reply in replies} == {400}
    until(lambda: resident() - before < max(taken) / 2, 20)
