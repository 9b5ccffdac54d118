"""`comfy` for tests that use ComfyUI itself: they are skipped where COMFYUI_PATH names no checkout."""

from __future__ import annotations

import pytest

from tests.comfyui.real import import_comfy


@pytest.fixture(scope="session")
def comfy() -> None:
    import_comfy()
