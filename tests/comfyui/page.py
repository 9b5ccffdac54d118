"""ComfyUI's page in a browser: a workflow loaded, run, and photographed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.comfyui.server import ComfyServer, Graph

WAIT = 120_000


@dataclass(frozen=True)
class ComfyPage:
    page: Any
    errors: list[str]
    """What its scripts threw."""

    def load(self, workflow: Graph | dict[str, Any]) -> None:
        """A workflow as the page saves it, or a graph, whose nodes the page then lays out. All of it is in view."""
        if isinstance(workflow, Graph):
            self.page.evaluate("nodes => window.app.loadApiJson(nodes, 'graph')", workflow.nodes)
        else:
            self.page.evaluate("workflow => window.app.loadGraphData(workflow)", workflow)
        self.fit()

    def fit(self) -> None:
        self.page.evaluate("window.app.extensionManager.command.execute('Comfy.Canvas.FitView')")
        self.page.wait_for_timeout(1000)  # the view glides there

    def workflow(self) -> dict[str, Any]:
        """The workflow as the page would save it."""
        saved: dict[str, Any] = json.loads(self.page.evaluate("JSON.stringify(window.app.graph.serialize())"))
        return saved

    def prompt(self) -> dict[str, Any]:
        """What the page would send to the server."""
        sent: dict[str, Any] = self.page.evaluate("async () => (await window.app.graphToPrompt()).output")
        return sent

    def troubles(self) -> list[str]:
        """Errors, alerts, and nodes that the page does not know or has marked."""
        marked = "node => node.has_errors || !(node.constructor.nodeData || node.isVirtualNode)"  # notes are virtual
        nodes: list[str] = self.page.evaluate(f"window.app.graph.nodes.filter({marked}).map(node => node.type)")
        return self.errors + nodes + self.page.locator(".p-toast-message, .p-dialog").all_inner_texts()

    def run(self) -> None:
        """As the button does, until the server is idle and the pictures are there."""
        self.page.evaluate("window.app.queuePrompt(0, 1)")
        idle = "async () => (await (await fetch('/prompt')).json()).exec_info.queue_remaining === 0"
        self.page.wait_for_function(idle)
        self.page.wait_for_timeout(1500)

    def save(self, path: Path) -> None:
        self.page.screenshot(path=path)


@contextmanager
def opened(server: ComfyServer, browser: Any, width: int = 1440, height: int = 900) -> Iterator[ComfyPage]:
    """The page, without the greeting and the map that a first visit has."""
    # The stock page throws an error while it sets up a mode of navigation, but not for "custom".
    settings = {
        "Comfy.TutorialCompleted": True,
        "Comfy.Minimap.Visible": False,
        "Comfy.Canvas.NavigationMode": "custom",
    }
    for name, value in settings.items():
        server.client.post(f"/api/settings/{name}", json=value).raise_for_status()
    errors: list[str] = []
    context = browser.new_context(viewport={"width": width, "height": height})
    page = context.new_page()
    page.set_default_timeout(WAIT)
    page.on("pageerror", lambda error: errors.append(str(error.stack)))
    page.goto(server.address)
    page.wait_for_function("window.app?.vueAppReady && window.app.graph")
    yield ComfyPage(page, errors)
    context.close()
