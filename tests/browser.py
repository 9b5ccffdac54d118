"""Chromium for tests of pages."""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager

import pytest

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


@contextmanager
def chromium():
    """This machine's. Where there is none, the test is skipped, or fails with
    TTSNAP_BROWSER_TESTS=1."""
    path = next((found for name in NAMES if (found := shutil.which(name))), None)
    must = os.environ.get("TTSNAP_BROWSER_TESTS") == "1"
    if path is None and not must:
        pytest.skip(
            "no Chromium on this machine; install it, or set TTSNAP_BROWSER_TESTS=1 to fail"
            " without it"
        )
    assert path is not None, "TTSNAP_BROWSER_TESTS=1, but there is no Chromium"
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield found
        found.close()
