"""A release of the last commit, short of publishing: what would stop a user is found here.

python scripts/rehearse.py                 # or make rehearse
python scripts/rehearse.py --keep FOLDER   # keeps what was built, and both environments

1. sdist and wheel, with the addresses and links that PyPI shows; `twine check`; their size
2. the recipe of conda's package, filled in and rendered by rattler-build
3. the wheel with the extras of the README, in an environment of its own
4. the README's commands in an empty folder, each with its seconds

It takes minutes and a few gigabytes of disk, and asks the package registry that pip is set to.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]  # as pytest does

import release  # noqa: E402

from tests.test_docs_run import carry_out  # noqa: E402
from tests.test_wheel import MOST  # noqa: E402
from ttsnap.version import __version__  # noqa: E402

REPOSITORY = "OWNER/NAME"
TOOLS = ("build", "py-rattler-build", "twine")
EXTRAS = "demo,ocr"
"""Of the README's commands: the page, and what reads signs."""
FIRST_PICTURE = 120
"""Most seconds of the README's first command, from the end of the installation."""
RENDER = (
    "import sys; from rattler_build import Stage0Recipe;"
    " (made,) = Stage0Recipe.from_yaml(sys.stdin.read()).render();"
    " print(made.recipe.package.name, made.recipe.package.version, made.recipe.build.string)"
)


def environment(folder: Path, *packages: str) -> Path:
    """The programs of a new environment in which these are installed."""
    began = time.monotonic()
    venv.create(folder, with_pip=True)
    programs = folder / ("Scripts" if sys.platform == "win32" else "bin")
    subprocess.run([programs / "python", "-m", "pip", "install", "-q", *packages], check=True)
    print(f"{time.monotonic() - began:5.0f} s  {folder.name}: {', '.join(packages)}", flush=True)
    return programs


def checkout(folder: Path) -> None:
    """The last commit, as a release would build it."""
    folder.mkdir()
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, check=True, capture_output=True)
    subprocess.run(["tar", "-x"], cwd=folder, input=archive.stdout, check=True)
    project, readme = folder / release.PROJECT.name, folder / release.README.name
    text = release.addressed(project.read_text(encoding="utf-8"), REPOSITORY)
    project.write_text(text, encoding="utf-8")
    text = release.absolute(readme.read_text(encoding="utf-8"), __version__, REPOSITORY)
    readme.write_text(text, encoding="utf-8")


def rehearse(folder: Path) -> None:
    """All of it, in an empty folder. Raises where a step fails."""
    tools = environment(folder / "tools", *TOOLS)
    source, dist = folder / "source", folder / "dist"
    checkout(source)
    build = [tools / "python", "-m", "build", "--outdir", dist, source]
    subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
    (sdist,), (wheel,) = dist.glob("*.tar.gz"), dist.glob("*.whl")
    subprocess.run([tools / "twine", "check", "--strict", sdist, wheel], check=True)
    size = wheel.stat().st_size
    print(f"{wheel.name}: {size / 1e6:.1f} MB", flush=True)
    if size > MOST:
        raise ValueError(f"{wheel.name} has {size} bytes, more than {MOST}")

    recipe = release.built(
        (source / release.RECIPE.relative_to(ROOT)).read_text(encoding="utf-8"),
        __version__,
        sdist.read_bytes(),
    )
    subprocess.run([tools / "python", "-c", RENDER], input=recipe.encode(), check=True)

    alone = environment(folder / "alone", f"{wheel}[{EXTRAS}]")
    empty = folder / "empty"
    empty.mkdir()
    took = carry_out("README.md", empty, alone)
    for command, seconds in took.items():
        print(f"{seconds:5.0f} s  {command}", flush=True)
    first = next(iter(took.values()))
    if first > FIRST_PICTURE:
        raise ValueError(f"the first picture took {first:.0f} s, more than {FIRST_PICTURE}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="a new folder to work in")
    a = parser.parse_args()
    if a.keep is not None:
        a.keep.mkdir(parents=True)
        rehearse(a.keep.resolve())
        return
    with tempfile.TemporaryDirectory() as folder:
        rehearse(Path(folder))


if __name__ == "__main__":
    main()
