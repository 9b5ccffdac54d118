"""What hostile clients send, on sockets of 127.0.0.1: each is refused within bounds, while others are served."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from PIL import Image, ImageFile

from tests.bombs import HUGE, STILLS
from tests.service.conftest import EDITS, PROMPT, one_device, png, serve, until
from ttsnap.files.pictured import Picture
from ttsnap.service.keys import Keys
from ttsnap.service.limits import ServiceLimits
from ttsnap.service.server import GenerationServer


@pytest.mark.parametrize("kind", STILLS)
@pytest.mark.parametrize("param", ["image", "mask"])
def test_a_picture_that_is_a_bomb_is_refused_undecoded(
    editing: GenerationServer, monkeypatch: pytest.MonkeyPatch, kind: str, param: str
) -> None:
    bomb = STILLS[kind]()
    assert len(bomb) < 300_000
    assert kind == "gif" or Picture(bomb).size == (HUGE, HUGE)
    decoded: list[Any] = []
    load = ImageFile.ImageFile.load

    def watched(picture: ImageFile.ImageFile) -> Any:
        decoded.append(picture.size)
        return load(picture)

    monkeypatch.setattr(ImageFile.ImageFile, "load", watched)
    files = {"image": ("a", png(Image.new("RGB", (32, 32))))} | {param: ("a", bomb)}
    reply = httpx.post(f"{editing.url}/v1/images/edits", data={"prompt": PROMPT}, files=files)
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == param
    assert max((side for size in decoded for side in size), default=0) <= 32


def test_pictures_are_decoded_beside_the_event_loop(editing: GenerationServer, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go = threading.Event(), threading.Event()

    def slow(picture: Picture, where: object = "") -> Image.Image:
        begun.set()
        assert go.wait(20)
        raise ValueError("it is damaged")

    monkeypatch.setattr(Picture, "opened", slow)
    url, files = f"{editing.url}/v1/images/edits", {"image": ("a", png(Image.new("RGB", (32, 32))))}
    with ThreadPoolExecutor(1) as pool:
        reply = pool.submit(httpx.post, url, data={"prompt": PROMPT}, files=files, timeout=30)
        assert begun.wait(20)
        assert httpx.get(f"{editing.url}/health", timeout=5).status_code == 200
        go.set()
        assert reply.result().json()["error"]["message"] == "it is damaged"


@pytest.mark.parametrize(
    ("own", "param"), [({"kernel": "my.py:x"}, "kernel"), ({"size": "17x33"}, None), ({"budget": "3nfe"}, "budget")]
)
def test_what_is_refused_is_refused_at_once(
    editing: GenerationServer, monkeypatch: pytest.MonkeyPatch, own: dict[str, str], param: str | None
) -> None:
    """Counting the seeds of a search takes up to 17 s, in which no other search goes on."""

    def slow(*_: object) -> None:
        raise AssertionError("seeds were counted for nothing")

    monkeypatch.setattr("ttsnap.loop.search.fit", slow)
    body = {"prompt": PROMPT, "search": "epsilon-greedy", "budget": "4000nfe", "steps": 20, **own}
    reply = httpx.post(f"{editing.url}/v1/images/generations", json=body, timeout=60)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)


# --- connections --------------------------------------------------------------------------------------------------

KEY = "k" * 20
HEAD = (
    f"POST /v1/images/edits HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Type: multipart/form-data; "
)
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
        server = serve(one_device(editor), EDITS, limits, Keys.of(KEY))
    with server:
        yield server


def connected(server: GenerationServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=10)


def gone(server: GenerationServer) -> bool:
    return not server._server.server_state.connections


@pytest.mark.parametrize("kind", SLOW)
def test_clients_that_send_nothing_more_or_drip_are_let_go(strict: GenerationServer, kind: str) -> None:
    until(lambda: gone(strict))
    clients = [connected(strict) for _ in range(6)]
    begin = time.monotonic()
    for client in clients:
        client.sendall(SLOW[kind])
    until(lambda: len(strict._server.server_state.connections) == 6)
    assert httpx.get(f"{strict.url}/health").status_code == 503, "all places are taken"
    while not gone(strict):
        assert time.monotonic() - begin < 8
        for client in clients[::2]:
            try:
                client.sendall(b"x")  # every second one drips
            except OSError:
                client.close()
        time.sleep(0.1)
    assert httpx.get(f"{strict.url}/health").status_code == 200
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


@pytest.mark.parametrize(
    ("parts", "more", "said"),
    [
        ([("f{}", "x")] * 10_000, "", "Too many fields"),
        ([('f{}"; filename="a', "x")] * 10_000, "", "Too many files"),
        ([("prompt", "x" * (2**16 + 1))], "", "maximum size"),
        ([("a", "x" * 2**12)] * 17, "", "maximum size"),
        ([("prompt", "9" * 80_000)], "; charset=punycode", "must be UTF-8"),
        ([("prompt", "x")], "; charset*=utf-8''punycode", "must be UTF-8"),
        ([("prompt", "x")], "; charset=utf-8", "needs a picture"),
        ([("prompt", "x")], '; charset="UTF-8"', "needs a picture"),
        ([("x" * 2**19, "x")], "", "cannot be read"),
    ],
)
def test_forms_are_bounded(editing: GenerationServer, parts: list[tuple[str, str]], more: str, said: str) -> None:
    lines = [
        f'--x\r\nContent-Disposition: form-data; name="{name.format(number)}"\r\n\r\n{value}\r\n'
        for number, (name, value) in enumerate(parts)
    ]
    headers = {"Content-Type": f"multipart/form-data; boundary=x{more}"}
    begin = time.monotonic()
    body = "".join([*lines, "--x--\r\n"])
    reply = httpx.post(f"{editing.url}/v1/images/edits", content=body, headers=headers, timeout=30)
    assert time.monotonic() - begin < 10
    assert reply.status_code == (413 if said == "maximum size" else 400)
    assert said in reply.json()["error"]["message"]


def test_keys_in_addresses_open_nothing_and_are_not_logged(
    strict: GenerationServer, caplog: pytest.LogCaptureFixture
) -> None:
    until(lambda: gone(strict))
    caplog.set_level(logging.DEBUG)
    for name in ("api_key", "key", "authorization", "token"):
        for path in ("/v1/models", "/v1/images/edits", "/v1/images/generations", "/docs", "/nothing", "/metrics"):
            ask = f"POST {path}?{name}={KEY} HTTP/1.1" if "images" in path else f"GET {path}?{name}={KEY} HTTP/1.1"
            with connected(strict) as client:
                client.sendall(f"{ask}\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
                reply = b"".join(iter(lambda: client.recv(65536), b""))
            assert reply[9:12] == {"/nothing": b"404", "/metrics": b"200"}.get(path, b"401")
            assert KEY.encode() not in reply
    assert KEY not in caplog.text
