"""`comfy` for tests that use ComfyUI itself, and a server: both are skipped where COMFYUI_PATH
names no checkout."""

from __future__ import annotations

import sys

import pytest

from tests.comfyui.server import checkout, serving


@pytest.fixture(scope="package")
def comfy():
    """`comfy` can be imported from here on, for the CPU. It reads the process's arguments once, as
    it is imported."""
    sys.path.append(str(checkout()))  # last, since it has a package `tests`, too
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["main.py", "--cpu"])
        import comfy.options

        comfy.options.enable_args_parsing()
        import comfy.cli_args
    assert comfy.cli_args.args.cpu


@pytest.fixture(scope="package")
def server(comfy, tmp_path_factory):
    """ComfyUI with this repository's nodes, and the embedded model. Its cache knows what ran
    before."""
    with serving(tmp_path_factory.mktemp("comfyui")) as running:
        yield running
