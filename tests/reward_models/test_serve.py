"""The reward server: limits, refusals with a sentence, many clients, and clients that stall or
leave."""

from __future__ import annotations

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
from base64 import b64decode, b64encode
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from http.client import HTTPResponse
from urllib.parse import urlsplit

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.exceptions import HTTPException

from tests import bombs
from ttsnap.cli import main
from ttsnap.reward_models import http, serve
from ttsnap.reward_models.closed_form import Brightness
from ttsnap.reward_models.http import HttpReward, encode_images
from ttsnap.reward_models.registry import make_reward
from ttsnap.reward_models.serve import Limits, RewardServer, parse, score
from ttsnap.rewards.reward_model import FunctionReward

IMAGES = torch.randint(0, 256, (5, 3, 6, 4), generator=torch.Generator().manual_seed(0)) / 255
PROMPTS = ["a", "b", "c", "d", "e"]


@contextmanager
def serving(reward, **limits):
    with RewardServer(reward, port=0, limits=Limits(**limits)) as server:
        yield server.url


def connect(url):
    where = urlsplit(url)
    return socket.create_connection((str(where.hostname), where.port or 80), timeout=10)


def answer(connection):
    """Status and JSON of the reply on a connection."""
    reply = HTTPResponse(connection)
    reply.begin()
    return reply.status, json.loads(reply.read())


def send(url, data):
    with connect(url) as connection:
        connection.sendall(data)
        return answer(connection)


GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


def posted(body, head=None):
    return (
        b"POST / HTTP/1.1\r\nHost: x\r\n%s\r\n\r\n" % (head or b"Content-Length: %d" % len(body))
        + body
    )


def post(url, body):
    return send(url, posted(body))


def asking(*images, **more):
    return json.dumps({"prompts": ["a"] * max(1, len(images)), "images": images, **more}).encode()


def png(width, height):
    return b64encode(bombs.png(width, height, mode=0)).decode()


def never(*_):
    raise AssertionError("the reward was called")


# --- what a request holds -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small():
    """A server with small limits."""
    with serving(Brightness(), max_images=2, max_bytes=32_768, max_pixels=100) as url:
        yield url


ONE = encode_images(IMAGES[:1])[0]


UNREADABLE = (
    *(
        b"{",
        b"",
        b"\xff\xfe{",
        b"[1]",
        b"1" * 1500,
        '{"prompts": ["a"], "images": [""]}'.encode("utf-16"),
    ),
    *(asking(ONE).replace(b"=", escape) for escape in (rb"\x", rb"\ud800")),
)


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        *((body, 400, "cannot read the request") for body in UNREADABLE),
        (b"[" * 1500, 400, "recursion limit"),
        (asking(ONE, more=[]), 400, "more: "),
        *((asking(image), 400, "images.0: .*base64") for image in (f"{ONE}é", "?")),
        (b'{"images": []}', 400, "prompts: "),
        (b'{"prompts": "ab", "images": ["", ""]}', 400, "prompts: .*array"),
        (asking(ONE, prompts=["x" * 20_001]), 413, "prompts.0: .* 20000 characters"),
        (asking(prompts=["a"]), 400, "one length, got 1, 0 and 0"),
        (asking(images=[3]), 400, "images.0: "),
        *(
            (asking(x), 400, "not a PNG")
            for x in ("", ONE[:60], ONE[: len(ONE) // 8 * 4], png(0, 5))
        ),
        *((asking(ONE, levels=[x]), 400, "levels.0: ") for x in ("x", True, float("nan"))),
        (asking("", "", ""), 413, "3 images in one request; at most 2"),
        (asking(*encode_images(torch.zeros(1, 3, 20, 20))), 413, "an image of 400 pixels"),
        (asking(png(8, 8), png(8, 8)), 413, "and 128 in all; at most .* and 100 in a request"),
        (b"x" * 40_000, 413, "a request of 40000 bytes or more; at most 32768"),
    ],
)
def test_bad_requests_are_refused_and_the_server_lives_on(small, body, status, message):
    found, reply = post(small, body)
    assert found == status
    assert list(reply) == ["error"]
    assert re.search(message, reply["error"])
    assert len(HttpReward(small)(IMAGES, PROMPTS)) == 5


LONG = b"8000\r\n%s\r\n1\r\nx\r\n" % bytes(32_768)


@pytest.mark.parametrize(
    ("data", "status", "message"),
    [
        (posted(b"", b"Content-Length: 99999999999999999"), 413, "at most 32768"),
        (posted(b"", b"X: x"), 400, "cannot read the request"),
        (b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", 405, "Method Not Allowed"),
        (posted(LONG, b"Transfer-Encoding: chunked"), 413, "of 32769 bytes or more"),
    ],
)
def test_odd_heads_get_a_sentence(small, data, status, message):
    found, reply = send(small, data)
    assert found == status
    assert message in reply["error"]


def test_a_body_in_chunks_needs_no_length(small):
    whole = b"%x\r\n%s\r\n0\r\n\r\n" % (len(asking(ONE)), asking(ONE))
    expected = pytest.approx(float(Brightness()(IMAGES[:1], ["a"])))
    assert send(small, posted(whole, b"Transfer-Encoding: chunked")) == (
        200,
        {"scores": [expected]},
    )


@contextmanager
def at_most(most):
    """So many bytes of memory are taken within."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "item", [b"[],", b"{},", b"[[[]]],", b"0,", b'"",', b'"\\/",', b"\\", b'{"a":']
)
def test_megabytes_without_an_image_take_no_memory(item):
    """The parser would take 35 times as many for lists, and a second for a megabyte."""
    for start in (
        b"[",
        b'{"prompts": [',
        b'{"levels": [',
        b'{"images": [',
        b'{"more": [',
        b'{"prompts": ["a',
    ):
        body, begin = start + item * (4 * 2**20 // len(item)), time.thread_time()
        with at_most(2 * len(body)), pytest.raises(HTTPException) as refused:
            parse(body, Limits())
        assert refused.value.status_code in (400, 413)
        assert time.thread_time() - begin < 5


def test_a_prompt_takes_no_more_room_than_it_has():
    """One wide character makes a text of four bytes a character; images are not part of that
    text."""
    image = b64encode(
        b"\x89PNG\r\n\x1a\n" + bytes(4) + b"IHDR" + struct.pack(">II", 4, 6) + bytes(4 * 2**20)
    )
    body = asking(image.decode(), prompts=["\U0001f600" * 20_000])
    with at_most(2 * len(body)):
        asked = parse(body, Limits())
    assert asked.prompts == ["\U0001f600" * 20_000]
    assert asked.images == [b64decode(image)]


@pytest.mark.parametrize(
    ("sign", "escape"), [(b"/", rb"\/"), (b"+", rb"\u002B"), (b"A", rb"\u0041")]
)
def test_escapes_of_json_change_neither_prompts_nor_images(sign, escape):
    """What some languages write in the place of signs of base64."""
    image = ONE.encode().rstrip(b"=") + b"/+AA"
    image = image[: len(image) // 4 * 4]
    prompt = r'say "\" or \/, a\\/b' + "\n"
    body = asking("image", prompts=[prompt]).replace(
        b'"image"', b'"%b"' % image.replace(sign, escape)
    )
    assert escape in body
    asked = parse(body, Limits())
    assert asked.prompts == [prompt]
    assert asked.images == [b64decode(image)]


def test_pixels_are_counted_before_any_is_decoded(monkeypatch):
    monkeypatch.setattr(serve, "picture_pixels", never)
    body = asking(*[png(4096, 4096)] * 12)
    assert len(body) < 2**20
    with pytest.raises(
        HTTPException, match="and 201,326,592 in all; at most 16,777,216 in one and 67,108,864"
    ):
        score(Brightness(), parse(body, Limits()), Limits())
    with pytest.raises(HTTPException, match="16,781,312 pixels"):
        score(Brightness(), parse(asking(png(4096, 4097)), Limits()), Limits(max_pixels=2**40))
    for name, value in (("max_images", 0), ("seconds", float("nan"))):
        with pytest.raises(ValueError, match=f"{name} must be .*, got {value}"):
            Limits(**{name: value})


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from([ONE, png(2, 2)]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)
BODY = st.fixed_dictionaries(
    {}, optional={"prompts": JSON, "images": JSON | st.lists(st.just(ONE)), "levels": JSON}
)


@settings(deadline=None)
@given(st.binary(max_size=200) | (BODY | JSON).map(lambda value: json.dumps(value).encode()))
def test_any_body_is_scored_or_refused(body):
    """The reward does not fail, so that no error is the server's."""
    status = 200
    try:
        asked = parse(body, Limits())
        assert len(score(Brightness(), asked, Limits())) == len(asked.prompts)
    except HTTPException as refused:
        status = refused.status_code
    assert status in (200, 400, 413)


def test_images_of_several_sizes_and_fewer_at_a_time_where_memory_runs_out():
    calls = []

    def large(images, prompts):
        calls.append(images.shape[:3])
        if len(images) > 1:
            raise torch.OutOfMemoryError
        return images.mean((1, 2, 3))

    pictures = [
        torch.full((3, *size), x)
        for size, x in (((4, 4), 0.2), ((8, 2), 0.4), ((4, 4), 0.6), ((4, 4), 0.8))
    ]
    sent = [encode_images(picture[None])[0] for picture in pictures]
    scores = score(FunctionReward(large), parse(asking(*sent), Limits()), Limits())
    assert scores == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert calls == [*((n, 3, 4) for n in (3, 1, 2, 1, 1)), (1, 3, 8)]


# --- clients --------------------------------------------------------------------------------------


def test_many_clients_lose_nothing_and_the_reward_is_called_alone():
    busy, alone = threading.Semaphore(1), []

    def reward(images, prompts):
        alone.append(busy.acquire(blocking=False))
        time.sleep(0.002)
        busy.release()
        return [float(p) for p in prompts]

    with serving(FunctionReward(reward)) as url, ThreadPoolExecutor(40) as pool:
        client, together = HttpReward(url, batch_size=2), threading.Barrier(40, timeout=60)

        def ask(j):
            together.wait()
            return client(IMAGES, [str(j + i) for i in range(5)]).tolist()

        assert list(pool.map(ask, range(40))) == [
            [j + float(i) for i in range(5)] for j in range(40)
        ]
    assert all(alone)
    assert len(alone) == 120


def test_half_sent_requests_are_given_up():
    with serving(Brightness(), seconds=0.3) as url, ExitStack() as stack:
        # More than are held at a time.
        half = [stack.enter_context(connect(url)) for _ in range(8)]
        for connection in half:
            connection.sendall(posted(b"{", b"Content-Length: 100"))
        assert answer(half[0]) == (408, {"error": "the request was not whole after 0.3 s"})
        assert len(HttpReward(url)(IMAGES, PROMPTS)) == 5
        assert {answer(connection)[0] for connection in half[1:]} == {408}


def test_too_many_connections_are_told():
    with serving(Brightness(), connections=2) as url, connect(url) as one, connect(url) as two:
        for connection in (one, two):
            connection.sendall(GET)
            assert answer(connection) == (200, {"name": "brightness", "max_images": 64})
        with connect(url) as three:
            three.sendall(GET)
            assert three.recv(4096).startswith(b"HTTP/1.1 503 ")
        one.close()
        # It comes again where it comes too early.
        assert len(HttpReward(url)(IMAGES, PROMPTS)) == 5


class Slow:
    """A reward that waits until it may go on, and the prompts that it saw."""

    name = "slow"

    def __init__(self):
        self.begun, self.go, self.seen = threading.Event(), threading.Event(), list[str]()

    def __call__(self, images, prompts, level):
        self.begun.set()
        self.go.wait(10)
        self.seen.extend(prompts)
        return [0.0] * len(prompts)


def test_a_request_whose_client_has_left_is_not_scored():
    slow = Slow()
    with serving(make_reward(slow)) as url, ThreadPoolExecutor(1) as pool:
        first = pool.submit(post, url, asking(ONE, prompts=["first"]))
        assert slow.begun.wait(10)
        with connect(url) as impatient:
            impatient.sendall(posted(asking(ONE, prompts=["impatient"])))
            send(url, GET)
        for _ in range(3):  # The server sees that the connection is closed before it answers these.
            send(url, GET)
        slow.go.set()
        assert first.result() == (200, {"scores": [0.0]})
        assert post(url, asking(ONE, prompts=["last"]))[0] == 200
    assert slow.seen == ["first", "last"]


def test_who_waits_at_the_end_is_told(monkeypatch, caplog):
    slow = Slow()
    monkeypatch.setattr(serve, "GRACE", 0)
    with ThreadPoolExecutor(3) as pool:
        server = RewardServer(make_reward(slow), port=0).__enter__()
        asked = [pool.submit(post, server.url, asking(ONE)) for _ in range(2)]
        assert slow.begun.wait(10)
        send(server.url, GET)
        stopped = pool.submit(server.__exit__)
        assert [job.result() for job in asked] == [
            (503, {"error": "the server is being stopped"})
        ] * 2
        slow.go.set()
        stopped.result()
    assert not caplog.records


def test_a_failure_of_the_server_is_logged(monkeypatch, caplog):
    monkeypatch.setattr(serve, "parse", never)
    with serving(Brightness()) as url:
        assert post(url, asking(ONE)) == (500, {"error": "the server failed; its log says why"})
    assert [bool(record.exc_info) for record in caplog.records] == [True]


@pytest.mark.usefixtures("ctrl_c")
def test_control_c_ends_the_command(capsys, monkeypatch):
    monkeypatch.setattr(http, "PAUSES", (0.2,) * 100)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    def interrupt():
        HttpReward(f"http://127.0.0.1:{port}")
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    assert main(["serve-reward", "brightness", "--port", str(port)]) == 0
    thread.join()
    assert (
        capsys.readouterr().out
        == f"serving brightness at http://127.0.0.1:{port} (Ctrl-C ends)\nstopped\n"
    )
    with serving(Brightness()) as url:
        assert main(["serve-reward", "brightness", "--port", url.rpartition(":")[2]]) == 2
    assert "choose another --host or --port" in capsys.readouterr().err
    assert main(["serve-reward", "brightness", "--port", "0", "--max-images", "0"]) == 2
    assert "max_images must be greater than or equal to 1, got 0" in capsys.readouterr().err


def test_missing_libraries_are_named(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "ttsnap.reward_models.serve")
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve-reward", "brightness", "--port", "0"]) == 2
    assert "fastapi and uvicorn (import of uvicorn halted" in capsys.readouterr().err
