"""A demo server on the embedded model, and what one search of it leaves behind."""

from __future__ import annotations

import shutil

import pytest

from tests.shallow import shallow
from ttsnap.cli import demo
from ttsnap.demo.form import DemoLimits

QUEUE = 12
"""Visitors who may wait."""
PROMPT = "two red circles and a blue square"
FIELDS = {
    "prompt": PROMPT,
    "algorithm": "seed-pruning",
    "rewards": ["scenes"],
    "budget": "60nfe",
    "steps": 10,
    "seed": 3,
    "keep": 1,
    "size": 0,
    "model": "embedded",
    "negative": "",
    "guidance": None,
    "draft": False,
    "picture": None,
    "strength": 0.7,
    "diverse": False,
}


@pytest.fixture(scope="package")
def server(tmp_path_factory):
    """Its address and its own folder."""
    pytest.importorskip("gradio")
    root = tmp_path_factory.mktemp("demo")
    a = demo.parser().parse_args(["--device", "cpu", "--queue-size", str(QUEUE)])
    limits = DemoLimits(nfe=6400)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        patch.setenv("GRADIO_TEMP_DIR", str(root / "cache"))
        with shallow():
            page = demo.load_page(a, demo.catalog_of(a), limits, root)
        from ttsnap.demo.app import serve

        _, address, _ = serve(
            page, limits, server_name="127.0.0.1", prevent_thread_lock=True, quiet=True
        )
        yield address, root
        page.close(verbose=False)
    shutil.rmtree(root, ignore_errors=True)
