"""A copy of the package, changed as a how-to says, in which a trial is run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import ttsnap

ROOT = Path(__file__).parents[1]


def copy_package(to):
    """Lay a copy of ttsnap, whole but for weights, into this folder. Files that are as they were
    when Python compiled them are not compiled again."""
    left_out = shutil.ignore_patterns("*.safetensors", "*.json", "*.png")
    shutil.copytree(Path(ttsnap.__file__).parent, to / "ttsnap", ignore=left_out)


def recipe(title):
    """The section of docs/howto/extend.md under this heading."""
    page = (ROOT / "docs" / "howto" / "extend.md").read_text(encoding="utf-8")
    (found,) = re.findall(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", page, re.S | re.M)
    return str(found)


def change_package(to, diff):
    """Make the changes of a diff, or of a file of tests/recipes, in the copy; the names of the
    files, in order.

    A diff names a file ("+++ ttsnap/core/looks.py") and has parts that begin with "@@". What a part
    shows as there must be in the file once; a part that shows nothing as there is added at the end,
    or is the whole of a new file.
    """
    text = (
        (ROOT / "tests" / "recipes" / diff).read_text(encoding="utf-8")
        if diff.endswith(".diff")
        else diff
    )
    touched = []
    for change in re.split(r"^\+\+\+ ", text, flags=re.M)[1:]:
        name, *lines = change.splitlines()
        touched.append(name)
        path = to / (name if name.startswith("ttsnap/") else f"ttsnap/{name}")
        found = path.read_text(encoding="utf-8") if path.exists() else ""
        for part in "\n".join(lines).split("@@")[1:]:
            rows = part.splitlines()[1:]
            old, new = (
                "".join(f"{row[1:]}\n" for row in rows if row[:1] in (" ", sign) or not row)
                for sign in "-+"
            )
            if old:
                assert found.count(old) == 1, (
                    f"{name} has this {found.count(old)} times, not once:\n{old}"
                )
                found = found.replace(old, new)
            else:
                found += new
        path.write_text(found, encoding="utf-8")
    return touched


def run_trial(trial, where):
    """Run this program on the copy in a process of its own; what it printed. It may import `tests`,
    too."""
    # its end takes no seconds in which garbage is looked for
    begin = "import atexit, gc; atexit.register(gc.freeze)\n"
    (where / "trial.py").write_text(begin + trial, encoding="utf-8")
    ran = subprocess.run(
        [sys.executable, "trial.py"],
        cwd=where,
        env=os.environ | {"PYTHONPATH": f"{where}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout
