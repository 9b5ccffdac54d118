"""What is refused, in OpenAI's shape, before anything is counted, computed or kept; and what
hostile clients send."""

from __future__ import annotations

import asyncio
import base64
import logging
import socket
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image, ImageFile

from tests.bombs import HUGE, STILLS
from tests.pipelines.modular.tiny import picture
from tests.service.asking import EDITED, IMAGES, PROMPT, VIDEOS, png, received, refusal, until
from tests.service.conftest import ALICE, EDITS, one_device, serve
from ttsnap.files.pictured import Blank, Picture
from ttsnap.service.forms import Sent, sent_in
from ttsnap.service.limits import Keys, RequestError, ServiceLimits
from ttsnap.service.server import offer_of

PICTURE = png(Image.new("RGB", (32, 32)))
URI = f"data:image/png;base64,{base64.b64encode(PICTURE).decode()}"
CODES = (
    "invalid_value",
    "unknown_parameter",
    "unsupported_parameter",
    "missing_parameter",
    "invalid_image",
)
SIZES = (
    "",
    "1024x",
    "1024.5x768",
    "-64x64",
    "64x64\n",
    "64X64",
    "0x64",
    "64x0",
    "15x32",
    "1025x64",
    "32x99999",
)
# The parameter at fault, its value or all that is changed of a small request, and a word of the
# message.
ROWS = {
    "caller": (
        ("prompt", {"prompt": None}),
        ("prompt", 7),
        ("prompt", "   "),
        ("prompt", "three pink elephants", "elephants"),
        ("negative_prompt", ["noise"]),
        ("n", 0),
        ("n", 11, "10"),
        ("n", 1.5),
        ("seed", "1", "integer"),
        ("seed", -1),
        *(("size", size) for size in SIZES),
        (None, {"size": "17x33"}, "17"),
        (None, {"size": "64x64"}, "draws"),
        ("steps", 0),
        ("steps", {"num_inference_steps": 201}, "201"),
        ("num_inference_steps", "many", "many"),
        ("num_inference_steps", {"steps": 4, "num_inference_steps": 5}, "both"),
        ("num_inference_step", 3),
        ("qualty", "low"),
        ("guidance_scale", "high"),
        ("true_cfg_scale", 1e9),
        ("negative_promt", "x"),
        ("true_cfg_scale", {"guidance_scale": 2, "true_cfg_scale": 3}),
        ("width", {"size": "32x32", "width": 32, "height": 32}, "both"),
        ("height", {"width": 32}, "no height"),
        *(
            ("width", {"width": width, "height": 32})
            for width in ("wide", -32, 32.5, 10**9, "9" * 5000)
        ),
        ("lora", {"lora": {"name": "x", "local_path": "../x"}}),
        ("guidance_scale_2", 2.5, "not offered"),
        ("image", URI, "not offered"),
        ("f0", {f"f{i}": i for i in range(99)}, "99"),
        ("lora", "x", "no LoRAs"),
        ("quality", "mediun"),
        ("response_format", "raw"),
        ("output_format", "gif"),
        ("output_compression", 101),
        ("background", "transparent"),
        ("partial_images", 1, "stream"),
        ("stream", "yes"),
        ("partial_images", {"stream": True, "partial_images": 4}),
        ("draft", True, "no drafter"),
        ("response_format", {"stream": True, "response_format": "file"}),
        ("response_format", {"n": 2, "response_format": "file"}),
        (None, {"stream": True, "size": "17x33"}, "17"),
        ("kernel", {"stream": True, "kernel": "x:y"}),
        ("budget", {"stream": True, "budget": "3nfe"}, "one image"),
        ("reward", "my_reward.py:score"),
        ("report", ["http://127.0.0.1:1"]),
        ("require", "my_reward.py:score>1"),
        ("require", "scenes>=high", "high"),
        ("kernel", "my.py:kernel"),
        ("kernel", "sde:square:1e308", "overflow in 20"),
        ("kernel", "ddim:nan", "ddim:nan"),
        (None, {"kernel": "ode", "search": "svdd"}, "noise"),
        ("budget", "many"),
        ("budget", "3nfe", "one image"),
        ("budget", "1e9flop", "one image"),
        ("budget", "1000images", "4000"),
        ("budget", {"budget": "9nfe", "quality": "low"}, "both"),
        ("search", "tuned.json"),
        ("search", {"search": {"n": 3}}, "'None'"),
        ("search", {"search": {"name": "noise-ascent"}}, "no search 'noise-ascent'"),
        (
            "search",
            {"search": {"name": "nested", "first": "/etc/tuned.json"}},
            "no file, got '/etc",
        ),
        (
            "search",
            {"search": {"name": "nested", "first": {"name": "refined"}}},
            "no file, got 'refined'",
        ),
        ("search", {"search": {"name": "best-of-n", "n": 10**9}}, "4000 here, got 1000000000"),
        ("search", {"search": {"name": "svdd", "n": 100, "streams": 100}}, "got 10000"),
        ("search", {"search": {"name": "best-of-n", "n": "x"}}, "n must"),
        ("search", {"search": {"name": "best-of-n", "m": 3}}, "['m']"),
        ("search", {"search": {"name": "seed-pruning", "keep": [2.0]}}, "keep"),
        (None, {"search": {"name": "seed-pruning", "steps": [50]}}, "[50]"),
    ),
    "jobs": (
        ("reward", "none"),
        ("prompt", "three pink elephants"),
        ("background", {"stream": True}),
        ("response_format", "file"),
    ),
    "editing": (
        ("image", {"image": None}, "form"),
        ("image", b"no picture"),
        ("image", png(Image.new("RGB", (65, 8))), "65 x 8"),
        ("image", [PICTURE] * 17, "17"),
        ("markup", PICTURE),
        ("picture", b"x"),
        ("n", "many"),
        ("n", "0"),
        ("strength", "2"),
        ("prompt", {"prompt": None}),
        ("prompt", " "),
        ("size", "128x128"),
        ("lora", "{"),
        ("mask_image", PICTURE, "mask"),
        ("reference_image", PICTURE),
        ("mask", URI.replace("data", "text"), "not offered"),
        (None, {"size": "17x33"}, "33"),
        (None, {"image": [PICTURE] * 2}, "got 2"),
        (None, {"image": [PICTURE] * 2, "stream": "true"}, "got 2"),
        (None, {"mask": PICTURE}, "mask"),
    ),
    "videos": (
        ("size", "64x99"),
        ("seconds", "100"),
        ("seconds", "-1"),
        ("seconds", "abc"),
        ("prompt", {"prompt": None}),
        ("num_frames", {"seconds": "4", "num_frames": 5}, "both"),
        ("num_frames", 999),
        ("fps", 0),
        ("frames", 33),
        ("reward", "clip"),
        ("output_format", "gif"),
        ("quality", "4k"),
        ("response_format", "b64_json"),
        ("image_reference", {"image_reference": {"image_url": URI}}, "input_reference"),
        ("input_reference", {"input_reference": {"file_id": "file-1"}}),
        ("input_reference", "a.png"),
        ("input_reference", URI),
        (
            "input_reference",
            {"input_reference": {"image_url": "http://127.0.0.1:1/a.png"}},
            "base64",
        ),
        ("input_reference", {"input_reference": {"image_url": URI}}, "no first frame"),
        ("search", {"search": {"name": "svdd", "streams": -1}}),
    ),
}


def form(**fields):
    """What is given, as files where it is bytes."""
    parts = [
        (name, one)
        for name, given in fields.items()
        for one in (given if isinstance(given, list) else [given])
    ]
    return [
        (name, (f"{name}.png" if isinstance(one, bytes) else None, one))
        for name, one in parts
        if one is not None
    ]


@pytest.mark.parametrize(
    ("door", "row"), [(door, row) for door, rows in ROWS.items() for row in rows]
)
def test_what_cannot_be_honoured_is_refused_by_name(request, monkeypatch, door, row):
    """Seeds are not counted either, which may take 17 s in which no other search goes on."""

    def counted(*_):
        raise AssertionError("seeds were counted for nothing")

    monkeypatch.setattr("ttsnap.loop.search.fit", counted)
    caller, (param, given, word) = request.getfixturevalue(door), (*row, "")[:3]
    change, spent = given if isinstance(given, dict) else {param: given}, caller.metric("nfe_total")
    path = {"editing": EDITED, "videos": VIDEOS}.get(door, IMAGES)
    kept = caller.get(path).json()
    if door == "editing":
        reply = caller.ask(
            "POST", EDITED, files=form(**{"image": PICTURE, "prompt": PROMPT, **change})
        )
    else:
        reply = caller.send(path, **{"background": door == "jobs" or None, **change})
    error = reply.json()["error"]
    assert refusal(reply)[:2] == (400, param), error
    assert error["code"] in CODES
    assert error["type"] == "invalid_request_error"
    assert word in error["message"]
    assert caller.metric("nfe_total") == spent
    assert caller.get(path).json() == kept


NO_MODEL, NO_JOBS, ELSEWHERE = (
    (404, "model", "model_not_found"),
    (404, None, "no_jobs"),
    (404, "model", None),
)


@pytest.mark.parametrize(
    ("door", "method", "path", "body", "told"),
    [
        *(
            ("caller", "POST", IMAGES, b, (400, None, "invalid_json"))
            for b in (b"{", b"[1]", b"[" * 10**4, b"\xff")
        ),
        ("caller", "POST", IMAGES, b" " * 2**17, (413, None, "too_large")),
        ("caller", "GET", "/no", b"", (404, None, None)),
        ("caller", "PUT", IMAGES, b"", (405, None, None)),
        ("caller", "GET", "/v1/models/dall-e-3", b"", NO_MODEL),
        ("caller", "POST", IMAGES, b'{"prompt": "a red circle", "model": "dall-e-3"}', NO_MODEL),
        ("caller", "POST", IMAGES, b'{"prompt": "a red circle", "background": true}', NO_JOBS),
        ("caller", "GET", IMAGES, b"", NO_JOBS),
        ("caller", "GET", f"{EDITED}/edit_1", b"", NO_JOBS),
        ("caller", "DELETE", f"{VIDEOS}/video_1", b"", NO_JOBS),
        ("caller", "POST", VIDEOS, b"{}", ELSEWHERE),
        ("caller", "POST", EDITED, b"{}", ELSEWHERE),
        ("videos", "POST", IMAGES, b"{}", ELSEWHERE),
        ("videos", "POST", EDITED, b"{}", ELSEWHERE),
        ("videos", "POST", f"{VIDEOS}/video_1/edits", b"{}", (404, None, None)),
        ("videos", "POST", f"{VIDEOS}/video_1/remix", b"{}", (404, None, None)),
        ("videos", "POST", VIDEOS, b'{"prompt": "a cat", "model": "sora-2"}', NO_MODEL),
    ],
)
def test_what_is_no_request_here_is_told_so(
    request,
    door,
    method,
    path,
    body,
    told,
):
    kind = {"Content-Type": "application/json"}
    asker = request.getfixturevalue(door)
    reply = asker.ask(method, path, headers=kind, content=body)
    assert refusal(reply) == told, reply.text
    assert told != NO_JOBS or ("/sync" in reply.text) == path.startswith(VIDEOS)
    assert ("--task" in reply.text) == ((door, told) == ("caller", ELSEWHERE))
    assert reply.status_code != 404 or reply.json()["error"]["type"] == "not_found_error"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Host": "evil.example"}, 403),
        ({"Host": "evil.example:80", "Origin": "http://evil.example:80"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Host": "[::1]", "Origin": "http://[::1]"}, 200),
        ({"Host": "localhost:1", "Origin": "http://localhost:1"}, 200),
        ({"Host": "service:8000"}, 200),
    ],
)
def test_a_page_elsewhere_asks_nothing_of_a_service_without_keys(jobs, strict, headers, status):
    """A browser sends what any page wants to addresses that its visitor alone can reach."""
    assert jobs.ask("GET", IMAGES, headers=headers).status_code == status
    sent = jobs.ask("POST", IMAGES, headers=headers, json={"prompt": PROMPT, "background": True})
    assert sent.status_code == status
    if status == 200:
        jobs.ask("DELETE", f"{IMAGES}/{sent.json()['id']}", headers=headers)
    keyed = strict.by(ALICE).ask("GET", "/v1/models", headers=headers)
    assert keyed.status_code == 200, "no page has a key"


@pytest.mark.parametrize("kind", ["text/plain", "text/plain; charset=application/json", ""])
def test_a_body_has_a_type_that_pages_elsewhere_must_ask_for(caller, kind):
    body = b'{"prompt": "a red circle"}'
    reply = caller.ask("POST", IMAGES, headers={"Content-Type": kind}, content=body)
    assert refusal(reply) == (415, None, "unsupported_media_type")


# --- hostile clients, on sockets of 127.0.0.1, of which each is refused within bounds, while others


@pytest.mark.parametrize("kind", STILLS)
@pytest.mark.parametrize("param", ["image", "mask"])
def test_a_picture_that_is_a_bomb_is_refused_undecoded(editing, monkeypatch, kind, param):
    bomb, decoded, load = STILLS[kind](), [0], ImageFile.ImageFile.load
    assert len(bomb) < 300_000
    assert kind == "gif" or Picture(bomb).size == (HUGE, HUGE)

    def watched(picture):
        decoded.extend(picture.size)
        return load(picture)

    monkeypatch.setattr(ImageFile.ImageFile, "load", watched)
    files = {"image": ("a", PICTURE)} | {param: ("a", bomb)}
    reply = editing.ask("POST", EDITED, data={"prompt": PROMPT}, files=files)
    assert refusal(reply)[:2] == (400, param)
    assert max(decoded) <= 32


def test_pictures_that_are_refused_are_not_drawn(editing, monkeypatch):
    """A form of 50 kB may hold 16 of a megapixel."""
    monkeypatch.setattr(Blank, "opened", lambda self: int("it was drawn"))
    reply = editing.ask("POST", EDITED, files=form(image=[PICTURE] * 16, prompt=PROMPT))
    assert (reply.status_code, "got 16" in reply.text) == (400, True)


def test_more_pictures_than_the_model_takes_are_not_decoded(editor, monkeypatch):
    engines = one_device(editor)
    offer = offer_of("embedded", engines, None, {}, "none", edits=True)
    with serve(engines, offer) as server:
        monkeypatch.setattr(Picture, "opened", lambda *_: int("it was decoded"))
        reply = server.ask("POST", EDITED, files=form(image=[PICTURE] * 2, prompt=PROMPT))
        assert refusal(reply) == (400, "image", "invalid_value")


# --- connections ----------------------------------------------------------------------------------

HEAD = (
    f"POST {EDITED} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ALICE}\r\nContent-Type:"
    " multipart/form-data; "
)
SLOW = {
    "nothing": b"",
    "half a head": HEAD.encode(),
    "half a body": (HEAD + "boundary=x\r\nContent-Length: 999\r\n\r\n--x\r\n").encode(),
    "half a chunk": (HEAD + "boundary=x\r\nTransfer-Encoding: chunked\r\n\r\nfff\r\n--x").encode(),
}


@pytest.fixture(scope="module")
def strict(editor):
    """Has little patience and few places."""
    limits = ServiceLimits(drain=0.1, body_seconds=0.7, connections=6, held=2**20, form_bytes=2**20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ttsnap.service.server.IDLE", 1)
        server = serve(one_device(editor), EDITS, limits, Keys.of(ALICE))
    with server:
        yield server


def connected(server):
    return socket.create_connection(("127.0.0.1", server.port), timeout=10)


def gone(server):
    return not server._server.server_state.connections


@pytest.mark.parametrize("kind", SLOW)
def test_clients_that_send_nothing_more_or_drip_are_let_go(strict, kind):
    until(lambda: gone(strict))
    clients, begin = [connected(strict) for _ in range(6)], time.monotonic()
    for client in clients:
        client.sendall(SLOW[kind])
    until(lambda: len(strict._server.server_state.connections) == 6)
    assert strict.get("/health").status_code == 503, "all places are taken"
    while not gone(strict):
        assert time.monotonic() - begin < 30
        for client in clients[::2]:
            try:
                client.sendall(b"x")  # every second one drips
            except OSError:
                client.close()
        time.sleep(0.1)
    assert strict.get("/health").status_code == 200
    for client in clients:
        client.close()


def test_what_is_read_at_a_time_is_bounded(strict):
    until(lambda: gone(strict))
    part = '--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
    head = HEAD + f"boundary=x\r\nContent-Length: {2**20}\r\n\r\n"
    large = (head + part).encode() + bytes(2**19 + 2**17)
    with connected(strict) as first, connected(strict) as second:
        first.sendall(large)
        second.sendall(large)
        replies = sorted(client.recv(4096)[9:12] for client in (first, second))
    assert replies == [b"408", b"503"]


def test_keys_in_addresses_open_nothing_and_are_not_logged(strict, caplog):
    until(lambda: gone(strict))
    caplog.set_level(logging.DEBUG)
    for name in ("api_key", "key", "authorization", "token"):
        for path in (
            "/v1/models",
            EDITED,
            "/v1/images/generations",
            "/docs",
            "/nothing",
            "/metrics",
        ):
            reply = strict.ask("POST" if "images" in path else "GET", f"{path}?{name}={ALICE}")
            assert reply.status_code == {"/nothing": 404, "/metrics": 200}.get(path, 401)
            assert ALICE not in reply.text + str(reply.headers)
    assert ALICE not in "".join(
        record.getMessage() for record in caplog.records if not record.name.startswith("http")
    )


# --- bodies: read within bounds, and outside the event loop ---------------------------------------


SIZE = 3 * 2**20
URLENCODED, MULTIPART = "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"


def read(body, kind="application/json"):
    return asyncio.run(sent_in(received(body, kind), ServiceLimits()))


def bounded(body, kind, times):
    """The status and the message of a refusal, which takes few seconds, and at most so many times
    the bytes of a body; 200 without one."""
    tracemalloc.start()
    begin = time.process_time()  # of all threads, however busy the machine is
    try:
        read(body, kind)
        told = 200, ""
    except RequestError as refused:
        told = refused.status, str(refused)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < times * len(body) + 2**20
    assert time.process_time() - begin < 10
    return told


def filled(start, item):
    return start + item * (SIZE // len(item))


@pytest.mark.parametrize("name", [b"user", b"input_reference"])
@pytest.mark.parametrize(
    "item",
    [
        b"[],",
        b"1,",
        b'{"a":1},',
        b'"",',
        b"[",
        b" ",
        b"a",
        b'\\u00e9"',
        b'"\xf0\x9f\x98\x80",',
        b'{"a":',
    ],
)
def test_megabytes_of_json_are_refused_unparsed(name, item):
    """Python needs 35 times their bytes, and seconds, also under names that are ignored."""
    for quote in (b"", b'"', b"["):
        body = filled(b'{"prompt":"a cat","%b":%b' % (name, quote), item)
        status, said = bounded(body, "application/json", 1.75)
        assert (status, str(len(body)) in said) == (413, True)


def multipart(*parts):
    lines = [
        f'--x\r\nContent-Disposition: form-data; name="{name.format(number)}"\r\n\r\n{value}\r\n'
        for number, (name, value) in enumerate(parts)
    ]
    return "".join([*lines, "--x--\r\n"]).encode()


@pytest.mark.parametrize(
    ("body", "kind", "status", "said"),
    [
        (filled(b"prompt=a+cat&user=", b"%41"), URLENCODED, 415, "multipart"),
        (filled(b'{"prompt=a+cat&user=', b"%41"), URLENCODED, 413, "beside"),
        (multipart(*[("f{}", "x")] * 10_000), MULTIPART, 400, "Too many fields"),
        (multipart(*[('f{}"; filename="a', "x")] * 10_000), MULTIPART, 400, "Too many files"),
        (multipart(("prompt", "x" * (2**16 + 1))), MULTIPART, 413, "maximum size"),
        (multipart(*[("a", "x" * 2**12)] * 17), MULTIPART, 413, "maximum size"),
        (multipart(("prompt", "9" * 80_000)), f"{MULTIPART}; charset=punycode", 400, "UTF-8"),
        (multipart(("prompt", "x")), f"{MULTIPART}; charset*=utf-8''punycode", 400, "UTF-8"),
        (multipart(("prompt", "x")), f"{MULTIPART}; charset=utf-8", 200, ""),
        (multipart(("prompt", "x")), f'{MULTIPART}; charset="UTF-8"', 200, ""),
        (multipart(("x" * 2**19, "x")), MULTIPART, 400, "cannot be read"),
    ],
    ids=lambda value: None if isinstance(value, bytes) else str(value),
)
def test_forms_are_bounded(body, kind, status, said):
    told = bounded(body, kind, 16)
    assert told[0] == status
    assert said in told[1]


def test_a_body_is_read_by_what_it_is():
    body = multipart(("prompt", "a cat"), ("search[name]", "svdd"), ("x", "é+&="))
    assert read(body, MULTIPART).fields == {
        "prompt": "a cat",
        "search": {"name": "svdd"},
        "x": "é+&=",
    }
    for kind in ("application/json", "application/json; charset=utf-8", URLENCODED):
        assert read(b' {"prompt": "a cat", "n": 2}', kind) == Sent({"prompt": "a cat", "n": 2})
    text = base64.b64encode(bytes(3 * 2**20))
    body = (
        b'{"prompt": "a cat", "input_reference": {"image_url": "data:image\\/png;base64,%b"}}'
        % text
    )
    frame = read(body).fields["input_reference"]
    assert frame == {"image_url": f"data:image/png;base64,{text.decode()}"}
    uri = "data:image/png;base64," + base64.b64encode(png(picture()) + bytes(2**17)).decode()
    with pytest.raises(RequestError, match="65536 beside"):
        read(b'{"prompt": "%b"}' % uri.encode())


PICTURED = {"data": {"prompt": PROMPT}, "files": {"image": ("a", PICTURE)}}


@pytest.mark.parametrize(
    ("door", "path", "work", "body"),
    [
        *(
            ("editing", path, "service.forms.pictures_in", {kind: {"prompt": PROMPT}})
            for path in (IMAGES, EDITED)
            for kind in ("json", "files")
        ),
        *(
            ("videos", path, "service.forms.pictures_in", {"json": {}})
            for path in (VIDEOS, f"{VIDEOS}/sync")
        ),
        ("editing", EDITED, "files.pictured.Picture.opened", PICTURED),
    ],
)
def test_bodies_are_read_and_pictures_decoded_beside_the_event_loop(
    request,
    monkeypatch,
    door,
    path,
    work,
    body,
):
    begun, go, caller = threading.Event(), threading.Event(), request.getfixturevalue(door)

    def slow(*_):
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
