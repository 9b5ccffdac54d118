"""Those who ask a service, and what tests read of its answers."""

from __future__ import annotations

import base64
import io
import re
import time
from contextlib import contextmanager

import httpx
import numpy as np
import pytest
from PIL import Image
from starlette.requests import Request

PROMPT = "two green crosses"
IMAGES, EDITED, VIDEOS = "/v1/images/generations", "/v1/images/edits", "/v1/videos"
SMALL = {"seed": 3, "budget": "16nfe", "search": "best-of-n", "steps": 4}
LARGE = {**SMALL, "budget": "2000nfe"}
HTTP = httpx.Client(timeout=60, limits=httpx.Limits(max_keepalive_connections=0))


def picture(data):
    return Image.open(io.BytesIO(base64.b64decode(data)))


def png(picture):
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return file.getvalue()


def received(body, kind):
    """A request with this body, of this type, as an application gets it."""

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    headers = [(b"content-type", kind.encode())]
    scope = {"type": "http", "method": "POST", "headers": headers, "app": None}
    return Request({**scope, "state": {"let_go": lambda: None}}, receive)


def apart(one, other):
    """The largest difference of two pictures, of 255."""
    return int(np.abs(np.asarray(one, int) - np.asarray(other, int)).max())


def until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.02)


class Caller:
    """Asks a server by plain HTTP."""

    key = ""

    def __init__(self, url, key=""):
        self.url, self.key = url, key

    def by(self, key):
        """Another one, who has this key."""
        return Caller(self.url, key)

    @property
    def headers(self):
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}

    def ask(self, method, path, headers=None, **more):
        return HTTP.request(
            method, self.url + path, headers={**self.headers, **(headers or {})}, **more
        )

    def get(self, path, **query):
        return self.ask("GET", path, params=query or None)

    def send(self, path=IMAGES, /, **body):
        return self.ask("POST", path, json={"prompt": PROMPT, **body})

    def made(self, path=IMAGES, /, **body):
        """The reply to a small request, which is answered with images or a job."""
        reply = self.send(path, **{**SMALL, **body})
        assert reply.status_code == 200, reply.text
        told = reply.json()
        return told

    def begun(self, path=IMAGES, /, **body):
        """The address of a new job."""
        return f"{path}/{self.made(path, **({'background': True} if path == IMAGES else {}), **body)['id']}"

    def job(self, address):
        told = self.get(address).json()
        return told

    def ended(self, address, seconds=60.0):
        """A job, once it has ended."""
        until(lambda: self.job(address)["status"] in ("completed", "failed"), seconds)
        return self.job(address)

    def left(self, **body):
        """A request whose client goes away before its answer."""
        with pytest.raises(httpx.ReadTimeout):
            self.ask("POST", IMAGES, json={"prompt": PROMPT, **LARGE, **body}, timeout=0.4)

    @contextmanager
    def running(self):
        """A large search is under way, until its client goes away."""
        body = {"prompt": PROMPT, **LARGE, "stream": True, "partial_images": 1}
        with HTTP.stream("POST", self.url + IMAGES, json=body, headers=self.headers) as reply:
            lines = reply.iter_lines()  # kept, as it closes the connection when it goes
            next(lines)
            yield

    def metric(self, name):
        """One line of /metrics, of `ttsnap_`; 0 where nothing was counted yet."""
        found = re.search(rf"^ttsnap_{re.escape(name)} (\S+)$", self.get("/metrics").text, re.M)
        return float(found[1]) if found else 0.0


def refusal(reply):
    """Status, parameter and code of an error, which has OpenAI's shape."""
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return reply.status_code, error["param"], error["code"]


def best(told):
    """The seed and the reward of the best image of a reply."""
    image = told["data"][0]
    return image["seed"], round(image["reward"], 4)


def shown(told):
    """The best image of a reply."""
    return picture(told["data"][0]["b64_json"])
