"""The notebooks run from top to bottom, and their committed outputs are shown without noise.

They are run one after the other in one process (`--dist loadscope` keeps a file's tests together), so that kernels with
a model each do not pile up.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("nbclient")
FOLDER = Path(__file__).parents[1] / "notebooks"
NAMES = sorted(path.name for path in FOLDER.glob("[0-9]*.ipynb"))
SLOW = {"03_write_your_own_reward.ipynb", "04_record_simulate_tune.ipynb"}
"""About a minute each on one core: they record, train and tune."""


@pytest.fixture(scope="module")
def execute() -> ModuleType:
    spec = importlib.util.spec_from_file_location("execute_notebooks", FOLDER / "execute.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read(name: str) -> Any:
    import nbformat

    return nbformat.read(FOLDER / name, nbformat.NO_CONVERT)


def test_there_are_notebooks() -> None:
    assert NAMES


@pytest.mark.parametrize("name", NAMES)
def test_committed_outputs_are_fresh_and_without_noise(execute: ModuleType, name: str) -> None:
    assert execute.problems(FOLDER / name) == []


@pytest.mark.parametrize("name", NAMES)
def test_first_cell_says_what_to_expect(name: str) -> None:
    first = read(name).cells[0]
    assert first.cell_type == "markdown"
    assert first.source.startswith("# ")
    assert "You will learn" in first.source
    assert "Time:" in first.source


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in NAMES]
)
@pytest.mark.timeout(900)  # on a busy machine; alone they take half a minute, the slow ones one and a half
def test_runs(execute: ModuleType, name: str) -> None:
    found = execute.cleaned(execute.executed(read(name), threads=1))
    ran = [cell for cell in found.cells if cell.cell_type == "code" and cell.execution_count is not None]
    assert any("image/png" in output.get("data", {}) for cell in ran for output in cell.outputs)


@pytest.mark.parametrize("noise", ["stderr", "path", "stale", "metadata", "error", "empty"])
def test_noise_is_seen(execute: ModuleType, tmp_path: Path, noise: str) -> None:
    import nbformat
    from nbformat import v4

    notebook = read(NAMES[0])
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if noise == "stderr":
        code[0].outputs.append(v4.new_output("stream", name="stderr", text="loading"))
    elif noise == "path":
        code[0].outputs.append(v4.new_output("stream", name="stdout", text="saved to /home/someone/file"))
    elif noise == "stale":
        code[0].source += "\n1 + 1"
    elif noise == "metadata":
        code[0].metadata["execution"] = {"iopub.execute_input": "2026-01-01"}
    elif noise == "error":
        code[0].outputs.append(v4.new_output("error", ename="ValueError", evalue="no", traceback=["no"]))
    else:
        for cell in code:
            cell.outputs = []
    path = tmp_path / NAMES[0]
    nbformat.write(notebook, path)
    assert execute.problems(path)
