"""Execute the notebooks in place and leave no noise in them: what `make notebooks` does.

    python notebooks/execute.py                                   # all of them
    python notebooks/execute.py notebooks/01_quick_start.ipynb

Cells that are tagged `needs-weights` are not run. Notebooks run in an empty folder, so what they
write is gone after.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import os
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parent
SKIPPED = "needs-weights"
INSTALLS = "install"
"""The tag of a cell that does nothing where ttsnap is installed; a release writes its version
there."""
MOST_BYTES = 1_000_000
# Bars and warnings go to stderr, which is not kept; what they would print in vain is not made at
# all.
QUIET = {
    "TQDM_DISABLE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_OFFLINE": "1",
    "PYTHONWARNINGS": "ignore",
}
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
KEPT = {"tags", "jupyter"}
"""Of a cell's metadata; the rest is of the editor, or when it ran."""
NOISE = {
    "a path of this machine": re.compile(r"(?<![\w.:/~])/(?:[\w.-]+/)+[\w.-]+|\b[A-Z]:\\\w"),
    "an address": re.compile(r"\b0x[0-9a-f]{6,}\b"),
    "a progress bar": re.compile(r"\d(?:it|nfe|step)/s\b|\d+%\|"),
    "a warning": re.compile(r"Warning\b"),
}


def notebooks() -> list[Path]:
    """All of them, in order."""
    return sorted(HERE.glob("[0-9]*.ipynb"))


def executed(notebook: Any, threads: int | None = None) -> Any:
    """A copy with the outputs of a new kernel. Raises nbclient's CellExecutionError where a cell
    fails."""
    found = copy.deepcopy(notebook)
    environment = {**os.environ, **QUIET}
    if threads is not None:
        environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    with tempfile.TemporaryDirectory() as empty:
        client = NotebookClient(
            found,
            timeout=600,
            kernel_name="python3",
            resources={"metadata": {"path": empty}},
            skip_cells_with_tag=SKIPPED,
            coalesce_streams=True,
        )
        client.execute(env=environment)
    return found


def sources(notebook: Any) -> list[str]:
    """The code that runs, cell by cell, but for what installs."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    apart = {SKIPPED, INSTALLS}
    return [cell.source for cell in cells if apart.isdisjoint(cell.metadata.get("tags", ()))]


def cleaned(notebook: Any) -> Any:
    """A copy without what differs from run to run or machine to machine; ids and sources stay as
    they are."""
    found, count = copy.deepcopy(notebook), 0
    found.metadata = nbformat.from_dict({**METADATA, "ttsnap": {"executed": fingerprint(found)}})
    for cell in found.cells:
        cell.metadata = nbformat.from_dict(
            {key: cell.metadata[key] for key in sorted(KEPT & set(cell.metadata))}
        )
        if cell.cell_type != "code":
            continue
        skipped = SKIPPED in cell.metadata.get("tags", ())
        count += not skipped
        cell.execution_count = None if skipped else count
        cell.outputs = (
            []
            if skipped
            else [_cleaned(output, count) for output in cell.outputs if _shown(output)]
        )
    return found


def _shown(output: Any) -> bool:
    """Not a stream of errors (bars, warnings), nor a widget, which a file does not show."""
    return output.get("name") != "stderr" and not any(
        "widget" in kind for kind in output.get("data", {})
    )


def _cleaned(output: Any, count: int) -> Any:
    if "data" in output:
        output.metadata = nbformat.from_dict({})
        if "image/png" in output.data:  # PIL images come as JPEG, too, and with a line of text
            output.data = nbformat.from_dict({"image/png": output.data["image/png"]})
    if "execution_count" in output:
        output.execution_count = count
    return output


def fingerprint(notebook: Any) -> str:
    """Of the code that runs: outputs that were made by other code are stale."""
    return hashlib.sha256(json.dumps(sources(notebook)).encode()).hexdigest()[:16]


def problems(path: Path) -> list[str]:
    """What is wrong with a committed notebook; nothing where `make notebooks` has just run."""
    notebook = nbformat.read(path, nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    found = (
        []
        if path.stat().st_size < MOST_BYTES
        else [f"{path.stat().st_size} bytes: at most {MOST_BYTES}"]
    )
    if notebook.metadata.get("ttsnap", {}).get("executed") != fingerprint(notebook):
        found.append("its code has changed since it ran")
    elif notebook != cleaned(notebook):
        found.append("its metadata, counts or outputs are not those that `make notebooks` leaves")
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if not any("image/png" in output.get("data", {}) for cell in code for output in cell.outputs):
        found.append("it shows no picture: its outputs are missing")
    for cell in code:
        for output in cell.outputs:
            text = output.get("text", "") + output.get("data", {}).get("text/plain", "")
            found += [
                f"cell {cell.id} prints {what}: {text[:80]!r}"
                for what, seen in NOISE.items()
                if seen.search(text)
            ]
            if output.output_type == "error":
                found.append(f"cell {cell.id} shows an error")
    return [f"{path.name}: {problem}; run `make notebooks`" for problem in found]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("notebooks", nargs="*", type=Path, help="all of them by default")
    for path in parser.parse_args().notebooks or notebooks():
        began = time.monotonic()
        nbformat.write(cleaned(executed(nbformat.read(path, nbformat.NO_CONVERT))), path)
        size = path.stat().st_size // 1000
        print(f"{path.name}: {time.monotonic() - began:.0f} s, {size} kB", flush=True)
        for problem in problems(path):
            print(f"  {problem}")


if __name__ == "__main__":
    main()
