"""An OpenAI-compatible server on a local socket that answers as it is told, and fails as servers do."""

from __future__ import annotations

import json
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Body = dict[str, Any]
Act = Callable[["Handler", Body], None]


class Handler(BaseHTTPRequestHandler):
    server: Stub

    def do_POST(self) -> None:
        stub, body = self.server, json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with stub.lock:
            stub.bodies.append(body)
            stub.headers.append({name.lower(): value for name, value in self.headers.items()})
            stub.paths.append(self.path)
            act = stub.planned.popleft() if stub.planned else stub.default
            stub.under_way += 1
            stub.most_at_once = max(stub.most_at_once, stub.under_way)
        try:
            act(self, body)
        except OSError:  # the client went away, as it should
            self.close_connection = True
        finally:
            with stub.lock:
                stub.under_way -= 1

    def log_message(self, *_: Any) -> None:
        """Nothing is printed."""

    def send(self, text: str | bytes, status: int = 200, **fields: str) -> None:
        data = text if isinstance(text, bytes) else text.encode()
        self.send_response(status)
        for name, value in {"Content_Length": str(len(data)), "Content_Type": "application/json", **fields}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)


class Stub(ThreadingHTTPServer):
    """What it was asked, and what it does next: `planned` acts first, then `default` for every request."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url, self.lock = f"http://127.0.0.1:{self.server_port}/v1", threading.Lock()
        self.reset()

    def reset(self) -> None:
        self.planned: deque[Act] = deque()
        self.default: Act = likely({"Yes": 0.6, "No": 0.2})
        self.bodies: list[Body] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.under_way = self.most_at_once = 0

    def serving(self) -> Iterator[Stub]:
        with self:
            threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
            yield self
            self.shutdown()


def reply(choice: Any, usage: Any = (100, 1)) -> Body:
    if isinstance(usage, tuple):
        usage = {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}
    return {"id": "x", "object": "chat.completion", "choices": [{"index": 0, **choice}], "usage": usage}


def tokens(p: dict[str, float]) -> Any:
    return [{"token": token, "logprob": math.log(value) if value else -9999.0} for token, value in p.items()]


def likely(p: dict[str, float], usage: Any = (100, 1)) -> Act:
    """The probabilities of the first token."""
    return said({"logprobs": {"content": [{"token": "Yes", "logprob": 0.0, "top_logprobs": tokens(p)}]}}, usage)


def words(text: str | None, usage: Any = (100, 20), **more: Any) -> Act:
    return said({"message": {"role": "assistant", "content": text}, **more}, usage)


def said(choice: Any, usage: Any = (100, 1)) -> Act:
    return lambda handler, body: handler.send(json.dumps(reply(choice, usage)))


def raw(text: str | bytes, status: int = 200, **fields: str) -> Act:
    return lambda handler, body: handler.send(text, status, **fields)


def slow(seconds: float, then: Act) -> Act:
    def act(handler: Handler, body: Body) -> None:
        time.sleep(seconds)
        then(handler, body)

    return act


def truncated(handler: Handler, body: Body) -> None:
    """Half of what was announced."""
    handler.send(b'{"choices": [{"logprobs"', Content_Length="5000")
    handler.close_connection = True


def drip(handler: Handler, body: Body) -> None:
    """A byte now and then, so that no single read waits for long."""
    handler.send(b"{", Content_Length="5000")
    for _ in range(100):
        handler.wfile.write(b" ")
        time.sleep(0.02)


def flood(handler: Handler, body: Body) -> None:
    """More than any answer takes."""
    handler.send(b"[" + b"1," * 2**21)
