"""What clients and the log are told where the operator's rewards fail: offered names and our own sentences only."""

from __future__ import annotations

import base64
import json
import logging
import re
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.cluster.local import LocalPool
from tests.service.conftest import PROMPT, command, serve
from ttsnap.options.model import ModelOptions
from ttsnap.pipelines import recommended
from ttsnap.request.offer import ServingCatalog
from ttsnap.reward_models.registry import make_rewards
from ttsnap.rewards.reward_model import RewardModel
from ttsnap.service.engines import ManyDevices, OneDevice
from ttsnap.service.monitoring import Discreet, JsonLines
from ttsnap.service.server import GenerationServer

ADDRESS = "http://user:secret@127.0.0.1:9/score?key=hidden"
SECRETS = ("user", "secret", "127.0.0.1", "hidden", "refused to serve", "vault")
OWN = {"budget": "16nfe", "search": "best-of-n", "steps": 4, "seed": 3}


class Vault(RewardModel):
    """A reward whose own name is its address, which it tells whenever it fails: on all images, and some prompts."""

    name = ADDRESS

    def __call__(self, images: Any, prompts: Sequence[str], level: Any = None) -> Any:
        raise OSError(f"the vault at {ADDRESS} refused to serve")

    def check(self, prompts: Sequence[str]) -> None:
        if "circle" in prompts[0]:
            raise ValueError(f"the vault at {ADDRESS} refused to serve")


class Patchy(Vault):
    """Fails after its first batch."""

    begun = False

    def __call__(self, images: Any, prompts: Sequence[str], level: Any = None) -> Any:
        before, self.begun = self.begun, True
        if before:
            raise OSError(f"the vault at {ADDRESS} refused to serve")
        return images.mean((1, 2, 3))


@pytest.fixture
def guarded(pipe: Any) -> Iterator[GenerationServer]:
    rewards: dict[str, Any] = {"vault-a": Patchy(), "vault-b": Vault(), "scenes": make_rewards("scenes")[0]}
    offer = ServingCatalog("embedded", tuple(rewards), recommended)
    with serve(OneDevice(pipe, rewards), offer) as server:
        yield server


def sent(server: GenerationServer, **own: object) -> httpx.Response:
    body = {"prompt": PROMPT, **OWN, **own}
    return httpx.post(f"{server.url}/v1/images/generations", json=body, timeout=60)


def shown(reply: httpx.Response) -> str:
    """All that a reply says, with the metadata of its PNGs, but for the offered names."""
    text = str(reply.headers) + reply.text
    for data in re.findall(r'"b64_json": ?"([^"]+)"', reply.text):
        text += base64.b64decode(data).decode("latin-1")
    return re.sub(r"vault-[ab]", "", text)


def check(reply: httpx.Response) -> None:
    host = str(reply.request.url.host)
    assert not [secret for secret in SECRETS if secret in shown(reply).replace(f"host: {host}", "")]


@pytest.mark.parametrize("stream", [False, True])
def test_a_reward_that_fails_in_part_is_told_by_its_offered_name(guarded: GenerationServer, stream: bool) -> None:
    reply = sent(guarded, reward="vault-a", report=["vault-b", "scenes"], budget="96nfe", stream=stream)
    check(reply)
    assert reply.status_code == 200
    text = reply.text if not stream else reply.text.rpartition("data: ")[2]
    told = json.loads(text)
    warnings = " / ".join(told["warnings"])
    assert "no score for particle" in warnings
    assert "the reported reward vault-b did not score every image" in warnings
    image = told if stream else told["data"][0]
    assert list(image["scores"]) == ["vault-a"]
    assert list(image["metrics"]) == ["vault-b", "scenes"]


def test_what_fails_from_the_start_or_cannot_be_read_is_told_by_its_offered_name(guarded: GenerationServer) -> None:
    failed = sent(guarded, reward=["scenes", "vault-b"])
    assert (failed.status_code, failed.json()["error"]["code"]) == (503, "reward_failed")
    refused = sent(guarded, reward="vault-b", prompt="a red circle")
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "prompt")
    assert "the reward vault-b cannot score this prompt" in refused.json()["error"]["message"]
    both = sent(guarded, reward=["vault-a", "vault-b"])  # which call themselves alike
    for reply in (failed, refused, both):
        check(reply)


@pytest.mark.usefixtures("shallow_model")
def test_what_a_device_cannot_load_is_told_without_its_address(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rewards = {name: make_rewards("scenes")[0] for name in ("vault-a", "vault-b")}
    specs = {"vault-a": "scenes", "vault-b": "scenes"}
    engines = ManyDevices(
        OneDevice(pipe, rewards), ModelOptions(device="cpu"), specs, lambda recipe: LocalPool(recipe, 1)
    )
    offer = ServingCatalog("embedded", tuple(rewards), recommended)
    with serve(engines, offer) as server:
        assert list(sent(server).json()["data"][0]["scores"]) == ["vault-a"]
        assert list(sent(server, reward=["vault-b", "vault-a"]).json()["data"][0]["scores"]) == ["vault-b", "vault-a"]

        def gone(*_: object, **__: object) -> None:
            raise ValueError(f"no reward server: cannot connect to {ADDRESS}")

        monkeypatch.setattr("ttsnap.service.engines._reward", gone)
        reply = sent(server, reward="vault-b")
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "reward_failed")
        check(reply)
        monkeypatch.setattr("ttsnap.service.engines._loras", gone)
        reply = sent(server, reward="vault-b")
        assert (reply.status_code, reply.json()["error"]["message"]) == (
            500,
            "the search could not begin: RuntimeError",
        )


def test_the_log_holds_no_credentials() -> None:
    try:
        raise OSError(f"cannot reach {ADDRESS}, Authorization: Bearer sk-hidden")
    except OSError as error:
        record = logging.makeLogRecord({"msg": "at %s", "args": (ADDRESS,), "exc_info": (OSError, error, None)})
    text = Discreet().format(record)
    assert "at http://127.0.0.1:9/score?...\n" in text
    assert not [secret for secret in ("user", "secret", "hidden") if secret in text]


def test_lines_of_json_hold_no_credentials_either() -> None:
    record = logging.makeLogRecord({"msg": "at %s\nand on", "args": (ADDRESS,), "levelname": "ERROR", "created": 0.25})
    assert json.loads(JsonLines().format(record)) == {
        "time": "1970-01-01T00:00:00.250+00:00",
        "level": "error",
        "logger": record.name,
        "message": "at http://127.0.0.1:9/score?...\nand on",
    }


@pytest.mark.slow
def test_the_log_of_the_command_holds_no_credentials(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(f"def vault(images, prompts):\n    raise OSError('no {ADDRESS}')\n")
    given = "embedded", "--drain", "1", "--rewards", "scenes", f"offered={tmp_path / 'mine.py'}:vault"
    with command(*given, stderr=subprocess.PIPE) as (process, url):
        body = {"prompt": PROMPT, **OWN, "reward": ["scenes", "offered"]}
        reply = httpx.post(f"{url}/v1/images/generations", json=body, timeout=60)
        assert reply.status_code == 503
        assert "mine" not in reply.text
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=60)
    assert "OSError: no http://127.0.0.1:9/score?..." in log
    assert not [secret for secret in ("user:", "secret", "hidden") if secret in log]


class Quoting(Vault):
    """Fails on all images, and quotes its prompt."""

    tokenizer, max_tokens = None, None

    def __call__(self, images: Any, prompts: Sequence[str], level: Any = None) -> Any:
        if self.name == "patchy" and not getattr(self, "begun", False):
            self.begun = True
            return images.mean((1, 2, 3))
        raise OSError(f"cannot score {prompts[0]!r} on http://10.0.0.7")

    def check(self, prompts: Sequence[str]) -> None:
        if self.name == "strict":
            raise ValueError(f"cannot read {prompts[0]!r}")


@pytest.mark.parametrize("reward", ["patchy", "failing", "strict", "scenes"])
def test_no_line_of_the_log_holds_a_prompt(pipe: Any, caplog: pytest.LogCaptureFixture, reward: str) -> None:
    rewards: dict[str, Any] = {name: Quoting() for name in ("patchy", "failing", "strict")}
    for name, made in rewards.items():
        made.name = name
    rewards["scenes"] = make_rewards("scenes")[0]
    offer = ServingCatalog("embedded", tuple(rewards), recommended)
    caplog.set_level(logging.INFO)
    with serve(OneDevice(pipe, rewards), offer) as server:
        prompt = "a secretive zebra" if reward == "scenes" else PROMPT
        report = ["failing"] if reward != "strict" else None
        sent(server, prompt=prompt, reward=reward, report=report, budget="96nfe", negative_prompt="a blurry yak")
    records = [record for record in caplog.records if not record.name.startswith(("httpx", "httpcore"))]
    assert records
    for form in (Discreet(), JsonLines()):
        lines = "\n".join(map(form.format, records))
        assert not [text for text in (prompt, "blurry yak", "zebra") if text in lines]
        assert "cannot" in lines or reward == "scenes"  # whose prompt is refused at the door
