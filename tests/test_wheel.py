"""The package as it is built: a wheel of an sdist holds all files, and makes an image without the checkout."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = {"ttsnap": "ttsnap", **{name: f"ttsnap/{name}" for name in ("pipelines", "reward_models", "distill")}}
"""Folders that are packaged, and where they stand in the wheel."""


def in_the_tree() -> set[str]:
    """What the wheel should hold, by its name there."""
    return {
        f"{there}/{path.relative_to(ROOT / here).as_posix()}"
        for here, there in PACKAGES.items()
        for path in (ROOT / here).rglob("*")
        if path.is_file() and path.suffix != ".pyc" and "__pycache__" not in path.parts
    }


def build(kind: str, source: Path, to: Path) -> Path:
    """Build an sdist or a wheel of the project in this folder, by the backend that pyproject.toml names."""
    hook = f"from setuptools import build_meta; print(build_meta.build_{kind}({str(to)!r}))"
    built = subprocess.run([sys.executable, "-c", hook], cwd=source, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return to / built.stdout.split()[-1]


def test_a_wheel_of_the_sdist_holds_the_packages_whole_and_runs_alone(tmp_path: Path) -> None:
    source, dist = tmp_path / "source", tmp_path / "dist"
    for name in ("README.md", "LICENSE", "pyproject.toml"):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    for name in PACKAGES:
        (source / name).symlink_to(ROOT / name)
    sdist = build("sdist", source, dist)
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    wheel = build("wheel", tmp_path / sdist.name.removesuffix(".tar.gz"), dist)
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == in_the_tree()
    assert not [name for name in held if "train_worlds" in name]  # what trains the packaged models is not packaged

    alone = tmp_path / "alone"
    venv.create(alone)
    python = next(alone.glob("*/python"), None) or next(alone.glob("*/python.exe"))
    installed = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(installed, check=True, capture_output=True)
    # Its dependencies are those of the tests. The checkout, which is installed beside them as editable, is not found
    # here: no .pth file is read in a folder that a .pth file names.
    site = next(path for path in map(Path, sys.path) if (path / "torch").is_dir())
    (next(alone.rglob("site-packages")) / "dependencies.pth").write_text(f"{site}\n")
    command = ["-m", "ttsnap", "generate", "a red circle", "--budget", "2images", "--steps", "4", "--out", "made"]
    for words in (["-c", "import ttsnap; print(ttsnap.__file__)"], command):
        ran = subprocess.run([python, *words], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
        assert str(alone) in ran.stdout or words is command
    assert list((tmp_path / "made").rglob("*.png"))
