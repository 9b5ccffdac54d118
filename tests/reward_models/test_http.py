"""The HTTP reward against its server: equal scores, limits, failures, many clients."""

from __future__ import annotations

import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from ttsnap.reward_models.closed_form import Brightness
from ttsnap.reward_models.http import HttpReward, encode_image
from ttsnap.reward_models.serve import RewardServer

from ttsnap.rewards import FunctionReward, make_reward
from ttsnap.scoring import score_images

IMAGES = torch.randint(0, 256, (5, 3, 6, 4), generator=torch.Generator().manual_seed(0)) / 255
PROMPTS = ["a", "b", "c", "d", "e"]


@contextmanager
def serving(reward: Any, **options: Any) -> Iterator[str]:
    with RewardServer(reward, port=0, **options) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def post(url: str, body: bytes, **headers: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=10) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())["error"]


def test_scores_prompts_and_levels_survive_the_wire() -> None:
    seen: list[Any] = []

    def reward(images: Any, prompts: Any, level: Any) -> Any:
        seen.append((prompts, [round(x, 3) for x in level.tolist()]))
        scores = Brightness()(images, prompts)
        scores[[p == "d" for p in prompts]] = float("nan")
        return scores

    with serving(FunctionReward(reward, "mine"), max_images=3) as url:
        client = make_reward(url)
        assert client.name == "mine"
        scores = client(IMAGES, PROMPTS, torch.linspace(0, 1, 5))
    expected = Brightness()(IMAGES, PROMPTS)
    assert scores.isnan().tolist() == [False, False, False, True, False]
    torch.testing.assert_close(scores[:3], expected[:3])
    assert seen == [(["a", "b", "c"], [0.0, 0.25, 0.5]), (["d", "e"], [0.75, 1.0])]


def test_many_clients_share_a_reward_that_is_called_alone() -> None:
    busy, most = threading.Semaphore(1), []

    def reward(images: Any, prompts: Any) -> Any:
        most.append(busy.acquire(blocking=False))
        time.sleep(0.005)
        busy.release()
        return [float(p) for p in prompts]

    with serving(FunctionReward(reward)) as url, ThreadPoolExecutor(8) as pool:
        client = HttpReward(url, batch_size=2)
        jobs = [pool.submit(client, IMAGES, [str(j + i) for i in range(5)]) for j in range(8)]
        assert [job.result().tolist() for job in jobs] == [[j + float(i) for i in range(5)] for j in range(8)]
    assert all(most)
    assert len(most) == 24


def test_a_failing_reward_costs_its_batch_only() -> None:
    def broken(images: Any, prompts: Any) -> Any:
        raise RuntimeError("no memory left")

    with serving(FunctionReward(broken)) as url:
        scores, reason = score_images(HttpReward(url), IMAGES, PROMPTS, torch.zeros(5))
        assert reason is not None
        assert "refused with status 500: broken: RuntimeError: no memory left" in reason
    assert len(scores) == 5


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"{", 400, "cannot read the request"),
        (b"[1]", 400, "cannot read the request"),
        (json.dumps({"prompts": ["a"], "images": []}).encode(), 400, "lists of one length"),
        (json.dumps({"prompts": ["a"], "images": ["?"]}).encode(), 400, "not a PNG in base64"),
        (json.dumps({"prompts": ["a"], "images": [3]}).encode(), 400, "not a PNG in base64"),
        (json.dumps({"prompts": ["a"], "images": [encode_image(IMAGES[0])[:60]]}).encode(), 400, "not a PNG"),
        (
            json.dumps({"prompts": ["a"] * 3, "images": ["", "", ""]}).encode(),
            413,
            "3 images in one request; at most 2",
        ),
        (json.dumps({"prompts": ["a"], "images": [encode_image(torch.zeros(3, 20, 20))]}).encode(), 413, "pixels"),
        (b"x" * 5000, 413, "a request of 5000 bytes; at most 4096"),
    ],
)
def test_bad_requests_are_refused_and_the_server_lives_on(body: bytes, status: int, message: str) -> None:
    with serving(Brightness(), max_images=2, max_bytes=4096, max_pixels=100) as url:
        found, reason = post(url, body)
        assert found == status
        assert message in reason
        assert len(HttpReward(url)(IMAGES, PROMPTS)) == 5


def test_images_of_several_sizes_in_one_request() -> None:
    pictures = [torch.full((3, 4, 4), 0.2), torch.full((3, 8, 2), 0.4), torch.full((3, 4, 4), 0.6)]
    body = {"prompts": ["", "", ""], "images": [encode_image(p) for p in pictures]}
    with serving(Brightness()) as url:
        status, reply = post(url, json.dumps(body).encode())
    assert status == 200
    assert json.loads(reply)["scores"] == pytest.approx([0.2, 0.4, 0.6])


def test_servers_that_do_not_answer_are_explained() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ValueError, match=rf"no reward server at {address}: .* start one with ttsnap serve-reward"):
            HttpReward(address)
        silent.listen()
        with pytest.raises(ValueError, match=r"did not answer within 0\.1 s"):
            HttpReward(address, timeout=0.1)
    with pytest.raises(ValueError, match="starts with http"):
        HttpReward("ftp://x")
