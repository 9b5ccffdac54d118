"""The HTTP reward's client: equal scores through the wire, and servers that fail, stall, or reply
nonsense."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import struct
import sys
import threading
import time
import traceback
from base64 import b64encode
from collections.abc import Callable
from contextlib import contextmanager

import pytest
import torch

from ttsnap.cli import main
from ttsnap.distill.config import DistillConfig
from ttsnap.distill.run import distill
from ttsnap.files.settings import build
from ttsnap.reward_models import http
from ttsnap.reward_models.closed_form import Brightness
from ttsnap.reward_models.http import HttpReward
from ttsnap.reward_models.registry import check_names, make_reward
from ttsnap.rewards.reward_model import FunctionReward
from ttsnap.rewards.scoring import score_images
from ttsnap.service.server import offered

from .test_serve import IMAGES, PROMPTS, serving

Act = Callable[[socket.socket], None]


def head_of(connection):
    """The head of a request, which is read to its end: closing with something unread would reset
    the connection."""
    head, _, rest = connection.recv(65536).partition(b"\r\n\r\n")
    lengths = [
        int(line.split(b":")[1])
        for line in head.split(b"\r\n")
        if line.lower().startswith(b"content-length")
    ]
    while lengths and len(rest) < lengths[0]:
        rest += connection.recv(65536)
    return head


HEARD = []
"""Heads of requests."""


def reply(body, status="200 OK", fields="", head="HTTP/1.1"):
    """Read the whole request, and send this."""
    text = body if isinstance(body, str) else json.dumps(body)

    def act(connection):
        HEARD.append(head_of(connection))
        connection.sendall(f"{head} {status}\r\nConnection: close\r\n{fields}\r\n{text}".encode())

    return act


def reset(connection):
    """Close so that the other side sees a reset connection."""
    connection.recv(65536)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def drip(connection):
    """A byte now and then, so that no single read waits for long."""
    connection.recv(65536)
    for byte in b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100:
        connection.sendall(bytes([byte]))
        time.sleep(0.05)


def flood(connection):
    connection.recv(65536)
    connection.sendall(b'HTTP/1.1 200 OK\r\n\r\n{"scores": [' + b"1," * 2**22)


def kill(connection):
    """Send SIGINT to this process as soon as the client waits."""
    while (
        sys._current_frames()[threading.main_thread().ident or 0].f_code.co_filename
        != threading.__file__
    ):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)
    while connection.recv(65536):  # Until the client closes the connection.
        pass


ABOUT = reply({"name": "mine"})


@contextmanager
def scripted(*acts):
    """A server that does one thing for each connection."""

    def play():
        for act in acts:
            connection, _ = listener.accept()
            with connection:
                try:
                    act(connection)
                except OSError:  # The client went away, as it should.
                    continue

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)
        thread = threading.Thread(target=play, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join(10)
        assert not thread.is_alive(), "the client made fewer connections than the script has"


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(http, "PAUSES", (0.01, 0.01))


def test_scores_prompts_and_levels_survive_the_wire():
    seen = []

    def reward(images, prompts, level):
        seen.append((prompts, [round(x, 3) for x in level.tolist()]))
        scores = Brightness()(images, prompts)
        scores[[p == "d" for p in prompts]] = float("nan")
        return scores

    prompts = ["a", "b 😀", "c", "d", "e"]
    with serving(FunctionReward(reward, "mine"), max_images=3) as url:
        client = make_reward(url)
        assert client.name == "mine"

        async def in_a_notebook():
            return client(IMAGES, prompts, torch.linspace(0, 1, 5))

        scores = asyncio.run(in_a_notebook())
        assert len(client(IMAGES[:0], [], None)) == 0
        del seen[2:]
    expected = Brightness()(IMAGES, prompts)
    assert scores.isnan().tolist() == [False, False, False, True, False]
    torch.testing.assert_close(scores[:3], expected[:3])
    assert seen == [(["a", "b 😀", "c"], [0.0, 0.25, 0.5]), (["d", "e"], [0.75, 1.0])]


def test_a_failing_reward_costs_its_batch_only_and_tells_clients_nothing(
    caplog,
):
    def broken(images, prompts):
        raise RuntimeError("no memory left")

    with serving(FunctionReward(broken)) as url:
        scores, reason = score_images(HttpReward(url), IMAGES, PROMPTS, torch.zeros(5), "served")
        assert reason is not None
        assert "refused with status 500: the reward failed; the server's log says why" in reason
    assert len(scores) == 5
    assert "broken: RuntimeError: no memory left" in caplog.text


def test_servers_that_do_not_answer_are_explained():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ValueError, match=rf"{address}: cannot connect"):
            HttpReward(address)
        silent.listen()
        with pytest.raises(ValueError, match=r"within 0\.1 s"):
            HttpReward(address, timeout=0.1)
    wrong = ("ftp://x", "http://", "http:///x", "http://127.0.0.1:99999", "http://x:http")
    for url, timeout in (
        *((url, 1) for url in wrong),
        *(("http://x", x) for x in (0, -1, float("nan"))),
    ):
        with pytest.raises(ValueError, match="http" if url in wrong else "timeout"):
            HttpReward(url, timeout=timeout)


CREDENTIALS = [
    "http://me:sk-secret@host:8765",
    "http://sk-secret@host",
    "https://me:sk-/secret@host",
    "HTTP://me:sk-secret@host",
    "ftp://me:sk-secret@host",
    "http://me:sk-se@cret@host",
    "http://me:sk-,a=secret@host",
    "clip then http://me:sk-secret@host",
    "judge:yes:model=x,base_url=http://me:sk-,secret@host/v1",
    "noise-aware:folder on http://me:sk-secret@host",
    "http:/user:secret@127.0.0.1:9",
    "https:user:secret@127.0.0.1:9",
]
QUERIES = [
    "http://127.0.0.1:1/score?key=hidden",
    "http://127.0.0.1:99999999/score?key=hidden",
    "http:///score?key=hidden",
    "http://[::1/score?key=hidden",
    "HTTP://127.0.0.1:1/score?key=hidden",
    "https:127.0.0.1/score?key=hidden",
    "x=http://127.0.0.1:1/score?key=hidden",
    "brightness then http://127.0.0.1:1/score?key=hidden",
    "brightness:http://127.0.0.1:1/score?key=hidden",
    "judge:base_url=http://127.0.0.1:1/v1?key=hidden,model=x",
]


@pytest.mark.parametrize("spec", [*CREDENTIALS, *QUERIES])
def test_what_an_address_hides_is_refused_unseen(spec, tmp_path, capsys):
    """By the registry, by the service's offer, and by commands, before anything is written."""
    told, out, config, prompts = [], tmp_path / "out", tmp_path / "c.json", tmp_path / "p.txt"
    config.write_text(json.dumps({"reward": spec}))
    prompts.write_text("a red circle")
    options = build(DistillConfig, {"recordings": ["r"], "reward": spec})
    doors = (
        make_reward,
        check_names,
        lambda spec: offered([spec], "m"),
        lambda spec: offered([f"x={spec}"], "m"),
    )
    for door in (*doors, lambda spec: distill(options, out)):
        try:
            door(spec)
        except ValueError as error:
            told.append("".join(traceback.format_exception_only(error)))
    assert told
    assert main(["serve-reward", spec]) == 2
    if spec in (CREDENTIALS[0], QUERIES[0]):
        bench = ["bench", "--prompts-file", str(prompts), "--budget", "8nfe"]
        for command in (["generate", "a red circle"], bench):
            assert main([*command, "--reward", spec, "--out", str(out)]) == 2
        for command in (
            ["generate", "a", "--config", str(config)],
            ["serve", "embedded", "--rewards", spec],
        ):
            assert main(command) == 2
    assert spec in QUERIES or not out.exists()
    printed = capsys.readouterr()
    for text in (*told, printed.out, printed.err):
        assert not [part for part in ("sk-", "secret", "hidden") if part in text]
    if spec in CREDENTIALS:
        assert "address" in told[0]
        assert "TTSNAP_REWARD_KEY" in told[0] or "base_url" in told[0]


@pytest.mark.parametrize(
    ("key", "sent"),
    [
        ("me:pass/word@1", f"Basic {b64encode(b'me:pass/word@1').decode()}"),
        (" sk-secret-0123456\n", "Bearer sk-secret-0123456"),
    ],
)
def test_a_key_comes_by_the_environment_and_is_not_shown(monkeypatch, key, sent):
    """Whatever the server says that it was sent."""
    monkeypatch.setenv("TTSNAP_REWARD_KEY", key)
    HEARD.clear()
    replies = [
        reply({"error": sent}, "401 Unauthorized"),
        reply(sent, f"403 {sent}"),
        *(reply(json.dumps(answer)) for answer in ({"scores": sent}, {"scores": [sent]}, sent)),
        reply(json.dumps({sent: 1})[:-1] + "," + json.dumps({sent: 2})[1:]),
        *[reply("", head=sent)] * 3,
        *[reply(sent, "503 Busy")] * 3,
    ]
    told = []
    with scripted(ABOUT, *replies, reply({"name": 1, "max_images": sent})) as url:
        client = HttpReward(f"{url}/?token=sk-secret-0123456")
        for ask in (*[lambda: client(IMAGES[:1], ["a"])] * 8, lambda: HttpReward(url)):
            with pytest.raises((RuntimeError, ValueError)) as caught:
                ask()
            told.append("".join(traceback.format_exception(caught.value)))
    assert "as name" in told[-1]
    assert all(f"authorization: {sent}".encode().lower() in head.lower() for head in HEARD)
    for text in told:
        for secret in (key.strip(), sent.split()[1]):
            assert not [
                secret[at : at + 8] for at in range(len(secret) - 7) if secret[at : at + 8] in text
            ]


@pytest.mark.parametrize(
    ("name", "value"),
    [("TTSNAP_REWARD_KEY", "sk-a\nsecret"), ("ALL_PROXY", "http://me:sk-a/word@host")],
)
def test_no_key_and_no_proxy_are_refused_unseen(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=name) as caught:
        HttpReward("http://127.0.0.1:9")
    assert "sk-a" not in "".join(traceback.format_exception_only(caught.value))


FULL = reply({"error": "full \x1b[2J"}, "503 Busy")


@pytest.mark.parametrize(
    "failures", [[reset, reset], [FULL, FULL], [lambda connection: None, reset]]
)
def test_two_failed_attempts_are_made_up_for(failures):
    with scripted(*failures, ABOUT, *failures, reply({"scores": [0.5]})) as url:
        assert HttpReward(url)(IMAGES[:1], ["a"]).tolist() == [0.5]


@pytest.mark.parametrize(
    ("acts", "pauses", "timeout", "message"),
    [
        ([reset] * 3, 0.01, 10, r"the connection to .* broke before its reply was whole: \S+"),
        ([FULL] * 3, 0.01, 10, r"refused with status 503: full \\x1b\[2J"),
        ([reset], 60, 0.3, r"within 0\.3 s; before that, \w+"),
        ([drip], 0.01, 0.4, r"within 0\.4 s$"),
        ([reply({"error": "no"}, "400 Bad")], 60, 10, "status 400: no"),
        (
            [reply({"error": "no"}, "302 Found", "Location: http://127.0.0.1:9/\r\n")],
            60,
            10,
            "status 302: no",
        ),
        ([flood], 60, 10, "1,048,640 bytes"),
    ],
)
def test_failures_are_told_in_time(
    acts,
    pauses,
    timeout,
    message,
    monkeypatch,
):
    """The slow server would have gone on for 6 s; a refusal is not repeated, nor a redirect
    followed."""
    with scripted(ABOUT, *acts) as url:
        client = HttpReward(url, timeout=timeout)
        monkeypatch.setattr(http, "PAUSES", (pauses, pauses))
        begin = time.monotonic()
        with pytest.raises(RuntimeError, match=message):
            client(IMAGES[:1], ["a"])
        assert time.monotonic() - begin < 2


ABOUTS = [
    *(
        ({"name": "x", "max_images": n}, "at least 1, as max_images, got ")
        for n in (0, -1, True, "3", 2.5, None)
    ),
    ('{"name": "x", "max_images": 1e999}', "too large"),
    ({"max_images": 3}, "at most 200 characters as name, got None"),
    ({"name": "x\x1b[2J"}, r"as name, got 'x\\x1b\[2J'"),
    ("[" * 100_000, "recursion limit"),
    ([1], r"JSON object, got \[1\]"),
]
SCORES = [
    *((x, "is too large") for x in ("[1e999]", "[1" + "0" * 400 + "]")),
    ("[NaN]", "damaged"),
    *(
        (f"[{x}]", "finite numbers or null .* got " + told)
        for x, told in (("1e300", r"1e\+300"), ("true", "True"))
    ),
    ('["1"]', "finite numbers or null .* got '1'"),
    ("[1, 2]", r"must reply 1 scores, got \[1, 2\]"),
    ("null", "must reply 1 scores, got None"),
    ("[" * 100_000, "recursion limit"),
    ("[1", "did not answer with JSON"),
]


@pytest.mark.parametrize(
    ("acts", "message"),
    [
        *([[reply(about)], message] for about, message in ABOUTS),
        *([[ABOUT, reply('{"scores": ' + scores + "}")], message] for scores, message in SCORES),
    ],
)
def test_what_a_server_says_of_itself_and_its_scores_are_checked(acts, message):
    with scripted(*acts) as url, pytest.raises((ValueError, RuntimeError), match=message) as caught:
        HttpReward(url)(IMAGES[:1], ["a"])
    assert caught.type is (ValueError if len(acts) == 1 else RuntimeError)


@pytest.mark.usefixtures("ctrl_c")
def test_control_c_ends_the_wait():
    with scripted(kill) as url, pytest.raises(KeyboardInterrupt):
        HttpReward(url)


@pytest.mark.skipif(sys.platform == "win32", reason="no fork there")
def test_a_forked_process_asks_as_well():
    with scripted(ABOUT, ABOUT) as url:
        HttpReward(url)
        child = os.fork()
        if child == 0:
            try:
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.alarm(60)  # other threads of this process may have held a lock
                HttpReward(url, timeout=10)
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
