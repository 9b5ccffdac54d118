"""A headless ComfyUI in a folder of its own, spoken to over HTTP as its page does."""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.comfyui.real import checkout

ROOT = Path(__file__).parents[2]
PACKS = {"ttsnap": ROOT / "comfyui", "toy_nodes": Path(__file__).parent / "toy_nodes"}
WAIT = 240.0
"""Seconds that a start or a graph may take on a busy machine."""

CLIENT = "tests"
PREVIEW = (1).to_bytes(4, "big")
"""How messages with a preview begin: what they are, the picture's format in four bytes, the picture."""

Output = tuple[str, int]
"""One output of a node: the node's id, and which."""


@dataclass
class Graph:
    """A workflow in the format of ComfyUI's API.

    graph = Graph()
    model, clip, vae = graph.add("ToyCheckpoint", 3, parametrisation="flow")
    """

    nodes: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, node: str, outputs: int = 1, /, **inputs: Any) -> Any:
        """A node of that class, and what of its outputs others take: one, or a list."""
        key = str(len(self.nodes) + 1)
        given = {name: list(value) if isinstance(value, tuple) else value for name, value in inputs.items()}
        self.nodes[key] = {"class_type": node, "inputs": given}
        found = [(key, slot) for slot in range(outputs)]
        return found[0] if outputs == 1 else found


@dataclass
class Heard:
    messages: list[dict[str, Any]] = field(default_factory=list)
    previews: list[Image.Image] = field(default_factory=list)

    def take(self, message: str | bytes) -> None:
        if isinstance(message, str):
            self.messages.append(json.loads(message))
        elif message[:4] == PREVIEW:
            self.previews.append(Image.open(io.BytesIO(message[8:])))

    def progress(self, node: Output) -> list[tuple[float, float]]:
        """Of a node: (done, of how many), as often as it said so."""
        said = [message["data"] for message in self.messages if message["type"] == "progress"]
        return [(data["value"], data["max"]) for data in said if data["node"] == node[0]]


@dataclass(frozen=True)
class ComfyServer:
    address: str
    folder: Path
    """Its base folder, with `models`, `input` and `output`."""
    client: httpx.Client
    log: Path

    def run(self, graph: Graph, workflow: Any = None) -> dict[str, Any]:
        """The outputs of a graph, by node. `workflow` is its page's form, which goes into pictures."""
        extra = {"extra_pnginfo": {"workflow": workflow}} if workflow else {}
        body = {"prompt": graph.nodes, "extra_data": extra, "client_id": CLIENT}
        reply = self.client.post("/prompt", json=body)
        if reply.status_code != 200:
            raise ValueError(reply.text)
        key, end = reply.json()["prompt_id"], time.monotonic() + WAIT
        while time.monotonic() < end:
            if done := self.client.get(f"/history/{key}").json().get(key):
                if done["status"]["status_str"] != "success":
                    raise RuntimeError(done["status"]["messages"])
                outputs: dict[str, Any] = done["outputs"]
                return outputs
            time.sleep(0.05)
        raise TimeoutError(f"no result after {WAIT:g} s; the log ends in {self.log.read_text()[-2000:]}")

    @contextmanager
    def listening(self) -> Iterator[Heard]:
        """What the page would hear of graphs that run meanwhile."""
        sync = pytest.importorskip("websockets.sync.client")
        heard = Heard()
        with sync.connect(f"ws{self.address.removeprefix('http')}/ws?clientId={CLIENT}", max_size=None) as socket:
            thread = threading.Thread(target=lambda: [heard.take(message) for message in socket])
            thread.start()
            yield heard
            time.sleep(0.5)  # what has been sent arrives
            socket.close()
            thread.join()

    def files(self, outputs: dict[str, Any], node: Output) -> list[bytes]:
        """The files that a node saved."""
        named = [file for files in outputs[node[0]].values() for file in files if "filename" in file]
        return [self.client.get("/view", params=file).read() for file in named]

    def images(self, outputs: dict[str, Any], node: Output) -> list[Image.Image]:
        return [Image.open(io.BytesIO(content)) for content in self.files(outputs, node)]


@contextmanager
def serving(folder: Path) -> Iterator[ComfyServer]:
    """ComfyUI on a port of its own, with this repository's nodes, and no others but ComfyUI's. Previews are shown."""
    path, log = checkout(), folder / "log.txt"
    packs = {name: pack for name, pack in PACKS.items() if pack.exists()}
    for name, pack in packs.items():
        shutil.copytree(pack, folder / "custom_nodes" / name, ignore=shutil.ignore_patterns("__pycache__"))
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = [sys.executable, "main.py", "--cpu", "--listen", "127.0.0.1", "--port", str(port)]
    command += ["--disable-all-custom-nodes", "--whitelist-custom-nodes", *packs, "--disable-api-nodes"]
    command += ["--base-directory", str(folder), "--database-url", "sqlite:///:memory:", "--preview-method", "auto"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    with log.open("w") as told, httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        process = subprocess.Popen(command, cwd=path, env=environment, stdout=told, stderr=subprocess.STDOUT)
        try:
            _wait_for(client, process, log)
            assert f"Cannot import {folder}" not in log.read_text(), log.read_text()
            yield ComfyServer(str(client.base_url), folder, client, log)
        finally:
            process.terminate()
            process.wait(30)


def _wait_for(client: httpx.Client, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + WAIT
    while process.poll() is None and time.monotonic() < end:
        try:
            client.get("/system_stats").raise_for_status()
        except httpx.TransportError:
            time.sleep(0.2)
        else:
            return
    raise RuntimeError(f"ComfyUI did not start:\n{log.read_text()[-4000:]}")
