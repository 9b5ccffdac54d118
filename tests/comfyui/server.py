"""A headless ComfyUI in a folder of its own, spoken to over HTTP as its page does, from the
checkout at COMFYUI_PATH.

It is on no package index, and under the GPL: tests import it, and nothing of it is in this
repository.
"""

from __future__ import annotations

import io
import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
PACKS = {"ttsnap": ROOT / "comfyui", "toy_nodes": Path(__file__).parent / "toy_nodes"}
WAIT = 240.0
"""Seconds that a start or a graph may take on a busy machine."""
LATENT = (1, 8, 8, 8)
"""The shape of one latent of the embedded model."""
Output = tuple[str, int]
"""One output of a node: the node's id, and which."""


@dataclass
class Graph:
    """A workflow in the format of ComfyUI's API.

    graph = Graph()
    model, clip, vae = graph.add("ToyCheckpoint", 3, parametrisation="flow")
    """

    nodes: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, node, outputs=1, /, **inputs):
        """A node of that class, and what of its outputs others take: one, or a list."""
        key = str(len(self.nodes) + 1)
        given = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in inputs.items()
        }
        self.nodes[key] = {"class_type": node, "inputs": given}
        found = [(key, slot) for slot in range(outputs)]
        return found[0] if outputs == 1 else found


@dataclass(frozen=True)
class ComfyServer:
    address: str
    folder: Path
    """Its base folder, with `models`, `input` and `output`."""
    client: httpx.Client
    log: Path

    def run(self, graph):
        """The outputs of a graph, by node."""
        reply = self.client.post("/prompt", json={"prompt": graph.nodes})
        if reply.status_code != 200:
            raise ValueError(reply.text)
        key, end = reply.json()["prompt_id"], time.monotonic() + WAIT
        while time.monotonic() < end:
            if done := self.client.get(f"/history/{key}").json().get(key):
                if done["status"]["status_str"] != "success":
                    raise RuntimeError(done["status"]["messages"])
                outputs = done["outputs"]
                return outputs
            time.sleep(0.05)
        raise TimeoutError(
            f"no result after {WAIT:g} s; the log ends in {self.log.read_text()[-2000:]}"
        )

    def images(self, outputs, node):
        """What a node saved."""
        named = [
            file for files in outputs[node[0]].values() for file in files if "filename" in file
        ]
        return [
            Image.open(io.BytesIO(self.client.get("/view", params=file).read())) for file in named
        ]


def checkout():
    """ComfyUI's folder. Where there is none, the test is skipped."""
    if not os.environ.get("COMFYUI_PATH"):
        pytest.skip("COMFYUI_PATH names no checkout of ComfyUI")
    path = Path(os.environ["COMFYUI_PATH"]).resolve()
    assert (path / "comfy/samplers.py").exists(), (
        f"COMFYUI_PATH is {path}, which is no checkout of ComfyUI"
    )
    return path


@contextmanager
def serving(folder):
    """ComfyUI on a port of its own, with this repository's nodes, and no others but ComfyUI's.
    Previews are shown."""
    path, log = checkout(), folder / "log.txt"
    for name, pack in PACKS.items():
        shutil.copytree(
            pack, folder / "custom_nodes" / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = [sys.executable, "main.py", "--cpu", "--listen", "127.0.0.1", "--port", str(port)]
    command += [
        "--disable-all-custom-nodes",
        "--whitelist-custom-nodes",
        *PACKS,
        "--disable-api-nodes",
    ]
    command += [
        "--base-directory",
        str(folder),
        "--database-url",
        "sqlite:///:memory:",
        "--preview-method",
        "auto",
    ]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    with (
        log.open("w") as told,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client,
    ):
        process = subprocess.Popen(
            command, cwd=path, env=environment, stdout=told, stderr=subprocess.STDOUT
        )
        try:
            _wait_for(client, process, log)
            assert f"Cannot import {folder}" not in log.read_text(), log.read_text()
            yield ComfyServer(str(client.base_url), folder, client, log)
        finally:
            process.terminate()
            process.wait(30)


def _wait_for(client, process, log):
    end = time.monotonic() + WAIT
    while process.poll() is None and time.monotonic() < end:
        try:
            client.get("/system_stats").raise_for_status()
        except httpx.TransportError:
            time.sleep(0.2)
        else:
            return
    raise RuntimeError(f"ComfyUI did not start:\n{log.read_text()[-4000:]}")


@dataclass(frozen=True)
class ComfyPage:
    page: Any
    errors: list[str]
    """What its scripts threw."""

    def load(self, workflow):
        """A workflow as the page saves it. All of it is in view."""
        self.page.evaluate("workflow => window.app.loadGraphData(workflow)", workflow)
        self.page.evaluate("window.app.extensionManager.command.execute('Comfy.Canvas.FitView')")
        self.page.wait_for_timeout(1000)  # the view glides there

    def prompt(self):
        """What the page would send to the server."""
        sent = self.page.evaluate("async () => (await window.app.graphToPrompt()).output")
        return sent

    def troubles(self):
        """Errors, alerts, and nodes that the page does not know or has marked."""
        # notes are virtual
        marked = "node => node.has_errors || !(node.constructor.nodeData || node.isVirtualNode)"
        nodes = self.page.evaluate(
            f"window.app.graph.nodes.filter({marked}).map(node => node.type)"
        )
        return (
            self.errors + nodes + self.page.locator(".p-toast-message, .p-dialog").all_inner_texts()
        )


@contextmanager
def opened(server, browser, width=1440, height=900):
    """The page, without the greeting and the map that a first visit has."""
    # The stock page throws an error while it sets up a mode of navigation, but not for "custom".
    settings = {
        "TutorialCompleted": True,
        "Minimap.Visible": False,
        "Canvas.NavigationMode": "custom",
    }
    for name, value in settings.items():
        server.client.post(f"/api/settings/Comfy.{name}", json=value).raise_for_status()
    errors = []
    context = browser.new_context(viewport={"width": width, "height": height})
    page = context.new_page()
    page.set_default_timeout(120_000)
    page.on("pageerror", lambda error: errors.append(str(error.stack)))
    page.goto(server.address)
    page.wait_for_function("window.app?.vueAppReady && window.app.graph")
    yield ComfyPage(page, errors)
    context.close()
