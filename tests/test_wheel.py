"""The package as it is built and installed: whole, alone, editable, and of a checkout without
links."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("pipelines", "reward_models", "distill")
"""Rooms with folders of their own, which stand within ttsnap in the wheel."""
MOST = 30_000_000
"""Bytes of a wheel."""
MISSPELT = """
from ttsnap.distill.config import DistillConfig
from ttsnap.pipelines import downgrade, load, upgrade
from ttsnap.reward_models.registry import make_reward

pipe = load()
out = pipe("two green crosses", search="seed-pruning", reward="scenes", budget="50nfe", num_inference_steps=20)
out.images[0].save("best.png")
print(out.search[0].best.seed, out.search[0].spent)
pipe("two green crosses", search="seed-pruning", bugdet="50nfe")  # wrong


class Stock: ...


twin = upgrade(Stock())
twin.enable_model_cpu_offload()
twin("two green crosses", num_inference_step=20)  # wrong
stock: Stock = downgrade(twin)
config: int = DistillConfig  # wrong
reward: int = make_reward  # wrong
"""


def in_the_tree():
    """What the wheel should hold, by its name there."""
    folders = {"ttsnap": "ttsnap", **{room: f"ttsnap/{room}" for room in ROOMS}}
    found = [
        (ROOT / here, there, path)
        for here, there in folders.items()
        for path in (ROOT / here).rglob("*")
    ]
    return {
        f"{there}/{path.relative_to(here).as_posix()}"
        for here, there, path in found
        if path.is_file() and path.suffix != ".pyc" and "__pycache__" not in path.parts
    }


STORED = "import zlib; made = zlib.compressobj; zlib.compressobj = lambda _, *how: made(0, *how);"
"""Weights take seconds to compress, and stay as large."""


def build(kind, source, to, *, stored=True):
    """Build an sdist, a wheel or an editable of the project in this folder, by the backend that it
    names. stored: not compressed."""
    hook = f"from setuptools import build_meta; print(build_meta.build_{kind}({str(to)!r}))"
    hook = STORED + hook if stored else hook
    built = subprocess.run(
        [sys.executable, "-c", hook], cwd=source, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    return to / built.stdout.split()[-1]


def installed(wheel, alone):
    """Install a wheel in an environment of its own; its Python.

    Its dependencies are those of the tests. The checkout, which is installed beside them as
    editable, is not found there: no .pth file is read in a folder that a .pth file names.
    """
    venv.create(alone)
    python = next(alone.glob("*/python"), None) or next(alone.glob("*/python.exe"))
    install = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "--no-deps",
        "--no-index",
        str(wheel),
    ]
    subprocess.run(install, check=True, capture_output=True)
    site = next(path for path in map(Path, sys.path) if (path / "torch").is_dir())
    (next(alone.rglob("site-packages")) / "dependencies.pth").write_text(f"{site}\n")
    return python


def checkout(to, *, links):
    """The project's folder as git lays it out, with links or with the small files that stand for
    them."""
    (to / "ttsnap").mkdir(parents=True)
    for path in (
        *(ROOT / name for name in ("README.md", "LICENSE", "pyproject.toml", "setup.py", *ROOMS)),
        *(path for path in (ROOT / "ttsnap").iterdir() if not path.is_symlink()),
    ):
        (to / path.relative_to(ROOT)).symlink_to(path)
    for link in (path for path in (ROOT / "ttsnap").iterdir() if path.is_symlink()):
        here = to / link.relative_to(ROOT)
        here.symlink_to(link.readlink()) if links else here.write_text(str(link.readlink()))
    return to


@pytest.mark.parametrize("links", [True, False])
def test_a_wheel_of_the_sdist_holds_the_packages_whole_and_runs_alone(links, tmp_path):
    dist = tmp_path / "dist"
    sdist = build("sdist", checkout(tmp_path / "source", links=links), dist)
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    unpacked = tmp_path / sdist.name.removesuffix(".tar.gz")
    wheel = build("wheel", unpacked, dist, stored=not links)
    assert wheel.stat().st_size < MOST or not links
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    held = {name for name in names if ".dist-info/" not in name}
    assert held == in_the_tree()
    assert "ttsnap/py.typed" in held
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    # what trains the packaged models is not packaged
    assert not [name for name in held if "train_worlds" in name]
    if not links:
        return  # the same files

    python = installed(wheel, alone := tmp_path / "alone")
    command = [
        "-m",
        "ttsnap",
        "generate",
        "a red circle",
        "--budget",
        "2images",
        "--steps",
        "4",
        "--out",
        "made",
    ]
    for words in (["-c", "import ttsnap; print(ttsnap.__file__)"], command):
        ran = subprocess.run(
            [python, *words], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert ran.returncode == 0, ran.stderr
        assert str(alone) in ran.stdout or words is command
    assert list((tmp_path / "made").rglob("*.png"))


@pytest.mark.parametrize("links", [True, False])
def test_an_editable_install_finds_every_room_once(links, tmp_path):
    source = checkout(tmp_path / "source", links=links)
    python = installed(build("editable", source, tmp_path), tmp_path / "alone")
    code = (
        "import sys; from ttsnap import pipelines, reward_models, distill;"
        " print(*sorted(sys.modules))"
    )
    ran = subprocess.run(
        [python, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    found = {name for name in ran.stdout.split() if name.endswith(ROOMS)}
    assert found == {f"ttsnap.{room}" for room in ROOMS}, ran.stderr


@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_type_checkers_find_misspelt_arguments_after_an_editable_install(checker, tmp_path):
    pytest.importorskip(checker)
    if checker == "pyright" and shutil.which("node") is None:
        pytest.skip("pyright runs on Node, which is not here; without it, it would download it")
    python = installed(
        build("editable", checkout(tmp_path / "source", links=True), tmp_path), tmp_path / "alone"
    )
    (tmp_path / "user.py").write_text(MISSPELT)
    (tmp_path / "mypy.ini").write_text(
        "[mypy]\n[mypy-torch.*,diffusers.*,transformers.*]\nfollow_imports = skip\n"
    )
    command = {
        "mypy": ["--python-executable", str(python), "--cache-dir", "cache", "user.py"],
        "pyright": ["--pythonpath", str(python), "user.py"],
    }[checker]
    ran = subprocess.run(
        [sys.executable, "-m", checker, *command], cwd=tmp_path, capture_output=True, text=True
    )
    wrong = [number for number, line in enumerate(MISSPELT.splitlines(), 1) if "# wrong" in line]
    found = re.findall(r"user\.py:(\d+):.*error", ran.stdout)
    assert [int(number) for number in found] == wrong, ran.stdout + ran.stderr
