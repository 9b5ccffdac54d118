"""`comfy` for tests that use ComfyUI itself, and a server: both are skipped where COMFYUI_PATH names no checkout."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.comfyui.real import import_comfy, tiny_sd3
from tests.comfyui.server import ComfyServer, serving


@pytest.fixture(scope="session")
def comfy() -> None:
    import_comfy()


@pytest.fixture(scope="session")
def server(comfy: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """ComfyUI with this repository's nodes, the embedded model (Toy Checkpoint), and a checkpoint tiny_sd3.safetensors.

    One for all tests: its cache knows what ran before.
    """
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("comfyui")
    models = folder / "models/diffusion_models"
    models.mkdir(parents=True)
    save_file(tiny_sd3(), models / "tiny_sd3.safetensors")
    with serving(folder) as running:
        yield running
