"""The notebooks run from top to bottom, and their committed outputs are shown without noise."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("nbclient")
FOLDER = Path(__file__).parents[1] / "notebooks"
NAMES = sorted(path.name for path in FOLDER.glob("[0-9]*.ipynb"))
SLOW = {"03_write_your_own_reward.ipynb", "04_record_simulate_tune.ipynb"}
"""About a minute each on one core: they record, train and tune."""
SMALLER = {
    "01_quick_start.ipynb": {
        ', "four red squares on a black background"]': "]",
        "repeats=300": "repeats=30",
    },
    "02_write_your_own_algorithm.ipynb": {
        "range(8, 120, 7)": "range(8, 120, 35)",
        ', "a purple cross left of an orange circle"]': "]",
        "(replayed, _)": "(replayed,)",
    },
    "05_particles_and_interpolants.ipynb": {
        "1500": "100",
        "Watched(300": "Watched(100",
        "100nfe": "50nfe",
    },
    "06_sdxl_and_flux.ipynb": {
        '"num_inference_steps": 10': '"num_inference_steps": 4',
        "100nfe": "16nfe",
        "60nfe": "24nfe",
        "(1, 2, 10), 128": "(1, 1, 1), 128",
        "(guidance_embeds=True)": "(guidance_embeds=True, num_layers=1, num_single_layers=1)",
    },
}
"""What is written in place of what, to run through all cells in less time."""


@pytest.fixture(scope="module")
def execute():
    spec = importlib.util.spec_from_file_location("execute_notebooks", FOLDER / "execute.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read(name):
    import nbformat

    return nbformat.read(FOLDER / name, nbformat.NO_CONVERT)


def test_readme_installs_what_the_notebooks_import():
    readme = (FOLDER.parent / "README.md").read_text()
    assert "notebooks" in re.findall(r"pip install -e '\.\[([\w,]+)\]'", readme)[0].split(",")


@pytest.mark.parametrize("name", NAMES)
def test_committed_outputs_are_fresh_and_without_noise(execute, name):
    assert execute.problems(FOLDER / name) == []


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in NAMES]
)
@pytest.mark.timeout(900)  # on a busy machine
@pytest.mark.usefixtures("shallow_model")
def test_cells_run(execute, name, tmp_path, monkeypatch):
    """In this process, which has imported the libraries already; as they are, they run in kernels
    of their own."""
    import IPython.display
    import matplotlib
    import matplotlib.pyplot as plt

    matplotlib.use("agg")
    shown = []

    def show():
        for number in plt.get_fignums():
            plt.figure(number).canvas.draw()
            shown.append(number)
        plt.close("all")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plt, "show", show)
    monkeypatch.setattr(IPython.display, "display", shown.append)
    module = ModuleType("notebook")
    monkeypatch.setitem(sys.modules, "notebook", module)
    cells = execute.sources(read(name))
    for large, small in SMALLER.get(name, {}).items():
        assert any(large in cell for cell in cells), large
        cells = [cell.replace(large, small) for cell in cells]
    for source in cells:
        exec(compile(source, name, "exec"), vars(module))
    assert shown


def test_executing_runs_all_cells_in_an_empty_folder_but_those_that_need_weights(execute, tmp_path):
    import nbformat
    from nbformat import v4

    first = (
        "import os, sys\nimport matplotlib.pyplot as plt\nprint(os.listdir(),"
        " os.environ['OMP_NUM_THREADS'])"
    )
    cells = [
        v4.new_code_cell(first),
        v4.new_code_cell("raise SystemError", metadata={"tags": [execute.SKIPPED]}),
        v4.new_code_cell("print('loading', file=sys.stderr)\nplt.plot([1, 2])\nplt.show()"),
    ]
    found = execute.cleaned(execute.executed(v4.new_notebook(cells=cells), threads=1))
    assert [cell.execution_count for cell in found.cells] == [1, None, 2]
    assert found.cells[0].outputs[0].text == "[] 1\n"
    assert [list(output.data) for output in found.cells[2].outputs] == [["image/png"]]
    path = tmp_path / "small.ipynb"
    nbformat.write(found, path)
    assert execute.problems(path) == []


@pytest.mark.parametrize(
    "outputs",
    [
        [{"output_type": "stream", "name": "stderr", "text": "loading"}],
        [{"output_type": "stream", "name": "stdout", "text": "saved to /home/someone/file"}],
        [{"output_type": "error", "ename": "ValueError", "evalue": "no", "traceback": ["no"]}],
        [],
    ],
)
def test_noise_is_seen(execute, tmp_path, outputs):
    import nbformat

    notebook = read(NAMES[0])
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [nbformat.from_dict(output) for output in outputs]
    nbformat.write(notebook, tmp_path / NAMES[0])
    assert execute.problems(tmp_path / NAMES[0])
