"""The reward server: limits, refusals with a sentence, many clients, and clients that stall or leave."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import socket
import struct
import sys
import threading
import time
import tracemalloc
import zlib
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from http.client import HTTPResponse
from typing import Any
from urllib.parse import urlsplit

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.exceptions import HTTPException

from ttsnap.cli import main
from ttsnap.reward_models import http, serve
from ttsnap.reward_models.closed_form import Brightness
from ttsnap.reward_models.http import HttpReward, encode_image
from ttsnap.reward_models.serve import Limits, RewardServer, parse, score
from ttsnap.rewards.reward_model import FunctionReward

IMAGES = torch.randint(0, 256, (5, 3, 6, 4), generator=torch.Generator().manual_seed(0)) / 255
PROMPTS = ["a", "b", "c", "d", "e"]


@contextmanager
def serving(reward: Any, **limits: Any) -> Iterator[str]:
    with RewardServer(reward, port=0, limits=Limits(**limits)) as server:
        yield server.url


def connect(url: str) -> socket.socket:
    where = urlsplit(url)
    assert where.hostname is not None
    return socket.create_connection((where.hostname, where.port or 80), timeout=10)


def answer(connection: socket.socket) -> tuple[int, Any]:
    """Status and JSON of the reply on a connection."""
    reply = HTTPResponse(connection)
    reply.begin()
    return reply.status, json.loads(reply.read())


def send(url: str, data: bytes) -> tuple[int, Any]:
    with connect(url) as connection:
        connection.sendall(data)
        return answer(connection)


def post(url: str, body: bytes) -> tuple[int, Any]:
    return send(url, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


def asking(*images: str, **more: Any) -> bytes:
    return json.dumps({"prompts": ["a"] * len(images), "images": images, **more}).encode()


def png(*sizes: tuple[int, int]) -> str:
    """A PNG in base64 that says these sizes, one head after the other; the last is that of its black pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    heads = b"".join(chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, 8, 0, 0, 0, 0)) for w, h in sizes)
    width, height = sizes[-1]
    pixels = zlib.compress(bytes((width + 1) * height))
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + heads + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")).decode()


def never(images: Any, prompts: Any) -> Any:
    raise AssertionError("the reward was called")


# --- what a request holds -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small() -> Iterator[str]:
    """A server with small limits."""
    with serving(Brightness(), max_images=2, max_bytes=32_768, max_pixels=100) as url:
        yield url


ONE = encode_image(IMAGES[0])


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"{", 400, "cannot read the request"),
        (b"", 400, "cannot read the request"),
        (b"\xff\xfe{", 400, "cannot read the request"),
        (b"[1]", 400, "cannot read the request"),
        (b"[" * 1500, 400, "recursion limit"),
        (b"1" * 1500, 400, "cannot read the request"),
        ('{"prompts": ["a"], "images": [""]}'.encode("utf-16"), 400, "cannot read the request"),
        (asking(ONE, more=[]), 400, "more: "),
        (asking(ONE + "é"), 400, "images.0: .*base64"),
        (asking(ONE).replace(b"=", rb"\x"), 400, "cannot read the request"),
        (asking(ONE).replace(b"=", rb"\ud800"), 400, "cannot read the request"),
        (b'{"images": []}', 400, "prompts: "),
        (b'{"prompts": "ab", "images": ["", ""]}', 400, "prompts: .*array"),
        (asking(ONE, prompts=["x" * 20_001]), 413, "prompts.0: .* 20000 characters"),
        (json.dumps({"prompts": ["a"], "images": []}).encode(), 400, "lists of one length"),
        (asking("?"), 400, "images.0: .*base64"),
        (asking(""), 400, "not a PNG in base64"),
        (json.dumps({"prompts": ["a"], "images": [3]}).encode(), 400, "images.0: "),
        (asking(ONE[:60]), 400, "not a PNG"),
        (asking(ONE[: len(ONE) // 8 * 4]), 400, "not a PNG"),
        (asking(png((0, 5))), 400, "not a PNG"),
        (asking(ONE, levels=["x"]), 400, "levels.0: "),
        (asking(ONE, levels=[True]), 400, "levels.0: "),
        (asking(ONE, levels=[float("nan")]), 400, "levels.0: "),
        (asking("", "", ""), 413, "3 images in one request; at most 2"),
        (asking(encode_image(torch.zeros(3, 20, 20))), 413, "an image of 400 pixels"),
        (asking(png((8, 8)), png((8, 8))), 413, "and 128 in all; at most .* and 100 in a request"),
        (b"x" * 40_000, 413, "a request of 40000 bytes or more; at most 32768"),
    ],
)
def test_bad_requests_are_refused_and_the_server_lives_on(small: str, body: bytes, status: int, message: str) -> None:
    found, reply = post(small, body)
    assert found == status
    assert list(reply) == ["error"]
    assert re.search(message, reply["error"])
    assert len(HttpReward(small)(IMAGES, PROMPTS)) == 5


@pytest.mark.parametrize(
    ("head", "status", "message"),
    [
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999\r\n\r\n", 413, "at most 32768"),
        (b"POST / HTTP/1.1\r\nHost: x\r\n\r\n", 400, "cannot read the request"),
        (b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", 405, "Method Not Allowed"),
    ],
)
def test_odd_heads_get_a_sentence(small: str, head: bytes, status: int, message: str) -> None:
    found, reply = send(small, head)
    assert found == status
    assert message in reply["error"]


def test_a_body_in_chunks_needs_no_length(small: str) -> None:
    head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    body = asking(ONE)
    whole = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    assert send(small, head + whole) == (200, {"scores": [pytest.approx(float(Brightness()(IMAGES[:1], ["a"])))]})
    found, reply = send(small, head + b"8000\r\n%s\r\n1\r\nx\r\n" % bytes(32_768))
    assert found == 413
    assert "a request of 32769 bytes or more" in reply["error"]


@pytest.mark.parametrize("item", [b"[],", b"{},", b"[[[]]],", b"0,", b'"",', b'"\\/",', b"\\", b'{"a":'])
def test_megabytes_without_an_image_take_no_memory(item: bytes) -> None:
    """The parser would take 35 times as many for lists, and a second for a megabyte."""
    for start in (b"[", b'{"prompts": [', b'{"levels": [', b'{"images": [', b'{"more": [', b'{"prompts": ["a'):
        body = start + item * (8 * 2**20 // len(item))
        tracemalloc.start()
        begin = time.monotonic()
        with pytest.raises(HTTPException) as refused:
            parse(body, Limits())
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert refused.value.status_code in (400, 413)
        assert most < 2 * len(body)
        assert time.monotonic() - begin < 5


def test_a_prompt_takes_no_more_room_than_it_has() -> None:
    """One wide character makes a text of four bytes a character; images are not part of that text."""
    image = b64encode(b"\x89PNG\r\n\x1a\n" + bytes(4) + b"IHDR" + struct.pack(">II", 4, 6) + bytes(4 * 2**20))
    body = asking(
        image.decode(),
        prompts=[
            "\U0001f600" * 20_000,
        ],
    )
    tracemalloc.start()
    asked = parse(body, Limits())
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert asked.prompts == ["\U0001f600" * 20_000]
    assert asked.images == [base64.b64decode(image)]
    assert most < 2 * len(body)


@pytest.mark.parametrize(("sign", "escape"), [(b"/", rb"\/"), (b"+", rb"\u002B"), (b"A", rb"\u0041")])
def test_escapes_of_json_change_neither_prompts_nor_images(sign: bytes, escape: bytes) -> None:
    """What some languages write in the place of signs of base64."""
    image = ONE.encode().rstrip(b"=") + b"/+AA"
    image = image[: len(image) // 4 * 4]
    prompt = r'say "\" or \/, a\\/b' + "\n"
    body = asking("image", prompts=[prompt]).replace(b'"image"', b'"%b"' % image.replace(sign, escape))
    assert escape in body
    asked = parse(body, Limits())
    assert asked.prompts == [prompt]
    assert asked.images == [base64.b64decode(image)]


def test_pixels_are_counted_before_any_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "picture_pixels", never)
    body = asking(*[png((4096, 4096))] * 12)
    assert len(body) < 2**20
    with pytest.raises(HTTPException, match="and 201,326,592 in all; at most 16,777,216 in one and 67,108,864"):
        score(Brightness(), parse(body, Limits()), Limits())
    with pytest.raises(HTTPException, match="an image of 16,781,312 pixels"):
        score(Brightness(), parse(asking(png((4096, 4097))), Limits()), Limits(max_pixels=2**40))
    with pytest.raises(ValueError, match=r"max_images must be at least 1, got 0"):
        Limits(max_images=0)
    with pytest.raises(ValueError, match=r"seconds must be .*, got nan"):
        Limits(seconds=float("nan"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from([ONE, png((2, 2))]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
BODY = st.fixed_dictionaries({}, optional={"prompts": JSON, "images": JSON | st.lists(st.just(ONE)), "levels": JSON})


def status(body: bytes) -> int:
    """Of the answer to a body. The reward does not fail, so that no error is the server's."""
    try:
        asked = parse(body, Limits())
        assert len(score(Brightness(), asked, Limits())) == len(asked.prompts)
    except HTTPException as refused:
        return refused.status_code
    return 200


@settings(deadline=None)
@given(st.binary(max_size=200) | (BODY | JSON).map(lambda value: json.dumps(value).encode()))
def test_any_body_is_scored_or_refused(body: bytes) -> None:
    assert status(body) in (200, 400, 413)


@settings(deadline=None)
@given(st.data())
def test_any_damage_to_a_png_is_refused_or_survived(data: st.DataObject) -> None:
    whole = bytearray(base64.b64decode(ONE))
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.none() | st.integers(0, len(whole)))
    assert status(asking(base64.b64encode(whole[:cut]).decode())) in (200, 400, 413)


def test_images_of_several_sizes_in_one_request() -> None:
    pictures = [torch.full((3, 4, 4), 0.2), torch.full((3, 8, 2), 0.4), torch.full((3, 4, 4), 0.6)]
    with serving(Brightness()) as url:
        status, reply = post(url, asking(*map(encode_image, pictures)))
    assert status == 200
    assert reply["scores"] == pytest.approx([0.2, 0.4, 0.6])


def test_fewer_images_at_a_time_where_memory_runs_out() -> None:
    calls = []

    def large(images: Any, prompts: Any) -> Any:
        calls.append(len(images))
        if len(images) > 1:
            raise torch.OutOfMemoryError
        return images.mean((1, 2, 3))

    asked = parse(asking(*map(encode_image, IMAGES[:3])), Limits())
    assert score(FunctionReward(large), asked, Limits()) == pytest.approx(IMAGES[:3].mean((1, 2, 3)).tolist())
    assert calls == [3, 1, 2, 1, 1]


# --- clients ------------------------------------------------------------------------------------------------------


def test_many_clients_lose_nothing_and_the_reward_is_called_alone() -> None:
    busy, alone = threading.Semaphore(1), []

    def reward(images: Any, prompts: Any) -> Any:
        alone.append(busy.acquire(blocking=False))
        time.sleep(0.002)
        busy.release()
        return [float(p) for p in prompts]

    with serving(FunctionReward(reward)) as url, ThreadPoolExecutor(40) as pool:
        client, together = HttpReward(url, batch_size=2), threading.Barrier(40)

        def ask(j: int) -> list[float]:
            together.wait()
            return client(IMAGES, [str(j + i) for i in range(5)]).tolist()

        assert list(pool.map(ask, range(40))) == [[j + float(i) for i in range(5)] for j in range(40)]
    assert all(alone)
    assert len(alone) == 120


def test_half_sent_requests_are_given_up() -> None:
    with serving(Brightness(), seconds=0.3) as url, ExitStack() as stack:
        half = [stack.enter_context(connect(url)) for _ in range(8)]  # More than are held at a time.
        for connection in half:
            connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert answer(half[0]) == (408, {"error": "the request was not whole after 0.3 s"})
        assert len(HttpReward(url)(IMAGES, PROMPTS)) == 5
        assert {answer(connection)[0] for connection in half[1:]} == {408}


def test_too_many_connections_are_told() -> None:
    with serving(Brightness(), connections=2) as url, connect(url) as one, connect(url) as two:
        for connection in (one, two):
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert answer(connection) == (200, {"name": "brightness", "max_images": 64})
        with connect(url) as three:
            three.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert three.recv(4096).startswith(b"HTTP/1.1 503 ")
        one.close()
        assert len(HttpReward(url)(IMAGES, PROMPTS)) == 5  # It comes again where it comes too early.


def test_a_request_whose_client_has_left_is_not_scored() -> None:
    begun, go, seen = threading.Event(), threading.Event(), []

    def slow(images: Any, prompts: Any) -> Any:
        begun.set()
        go.wait(10)
        seen.extend(prompts)
        return [0.0] * len(prompts)

    with serving(FunctionReward(slow)) as url, ThreadPoolExecutor(1) as pool:
        first = pool.submit(post, url, asking(ONE, prompts=["first"]))
        assert begun.wait(10)
        with connect(url) as impatient:
            body = asking(ONE, prompts=["impatient"])
            impatient.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            send(url, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        for _ in range(3):  # The server sees that the connection is closed before it answers these.
            send(url, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        go.set()
        assert first.result() == (200, {"scores": [0.0]})
        assert post(url, asking(ONE, prompts=["last"]))[0] == 200
    assert seen == ["first", "last"]


def test_who_waits_when_the_server_stops_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    begun, go = threading.Event(), threading.Event()

    def slow(images: Any, prompts: Any) -> Any:
        begun.set()
        go.wait(10)
        return [0.0] * len(prompts)

    monkeypatch.setattr(serve, "GRACE", 0)
    with ThreadPoolExecutor(3) as pool:
        server = RewardServer(FunctionReward(slow), port=0).__enter__()
        asked = [pool.submit(post, server.url, asking(ONE)) for _ in range(2)]
        assert begun.wait(10)
        send(server.url, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        stopped = pool.submit(server.__exit__)
        assert [job.result() for job in asked] == [(503, {"error": "the server is being stopped"})] * 2
        go.set()
        stopped.result()
    assert not caplog.records


def test_a_failure_of_the_server_itself_is_logged_and_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(serve, "parse", never)
    with serving(Brightness()) as url:
        assert post(url, asking(ONE)) == (500, {"error": "the server failed; its log says why"})
    (record,) = caplog.records
    assert record.exc_info


@pytest.mark.usefixtures("ctrl_c")
def test_control_c_ends_the_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "PAUSES", (0.2,) * 100)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    def interrupt() -> None:
        HttpReward(f"http://127.0.0.1:{port}")
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    assert main(["serve-reward", "brightness", "--port", str(port)]) == 0
    thread.join()
    assert capsys.readouterr().out == f"serving brightness at http://127.0.0.1:{port} (Ctrl-C ends)\nstopped\n"
    with serving(Brightness()) as url:
        assert main(["serve-reward", "brightness", "--port", url.rpartition(":")[2]]) == 2
    assert "choose another --host or --port" in capsys.readouterr().err
    assert main(["serve-reward", "brightness", "--port", "0", "--max-images", "0"]) == 2
    assert "max_images must be at least 1, got 0" in capsys.readouterr().err


def test_without_its_libraries_the_command_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "ttsnap.reward_models.serve")
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve-reward", "brightness", "--port", "0"]) == 2
    assert "serving needs fastapi and uvicorn (import of uvicorn halted" in capsys.readouterr().err
