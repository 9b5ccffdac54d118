"""Cuts a release: the version, its section of the changelog, a commit and a tag. Pushing the tag
publishes it.

python scripts/release.py 0.2.0           # or make release VERSION=0.2.0
python scripts/release.py 0.2.0 --notes   # prints the section of the changelog, for the page of the release
python scripts/release.py 0.2.0 --pack OWNER/NAME PUBLISHER   # fills in what ComfyUI's registry asks of a publisher
python scripts/release.py 0.2.0 --index OWNER/NAME   # fills in what PyPI shows: addresses, and links of the README
python scripts/release.py 0.2.0 --conda SDIST   # fills in what conda-forge builds: the version, and the sdist's sha256
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import posixpath
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
VERSION = ROOT / "ttsnap" / "version.py"
PACK = ROOT / "comfyui" / "pyproject.toml"
"""Of the nodes for ComfyUI, whose registry takes three numbers."""
REQUIRED = ROOT / "comfyui" / "requirements.txt"
"""What ComfyUI's Manager installs with the nodes: it does not read the dependencies in PACK."""
PROJECT = ROOT / "pyproject.toml"
README = ROOT / "README.md"
NOTEBOOK = ROOT / "notebooks" / "01_quick_start.ipynb"
"""What its badge opens in Colab."""
RECIPE = ROOT / "recipe" / "recipe.yaml"
"""Of conda-forge's package, in the form of rattler-build."""
CHANGELOG = ROOT / "CHANGELOG.md"
NEXT = "Unreleased"


def sections(changelog: str) -> dict[str, str]:
    """Text of each section by its heading ("Unreleased", "0.1.0 - 2026-11-28"), newest first."""
    parts = re.split(r"^## (.+)\n", changelog, flags=re.M)
    return {title: body.strip() for title, body in zip(parts[1::2], parts[2::2], strict=True)}


def notes(changelog: str, version: str) -> str:
    """What the changelog says of a version."""
    for title, body in sections(changelog).items():
        if title.split(" - ")[0] == version:
            return body
    raise ValueError(f"CHANGELOG.md has no section for {version}")


def dated(changelog: str, version: str, day: datetime.date) -> str:
    """The changelog in which what was unreleased is this version of this day."""
    known = sections(changelog)
    if not known.get(NEXT):
        raise ValueError(f"nothing stands under {NEXT} in CHANGELOG.md")
    if any(title.split(" - ")[0] == version for title in known):
        raise ValueError(f"CHANGELOG.md has a section for {version} already")
    return changelog.replace(f"## {NEXT}\n", f"## {NEXT}\n\n## {version} - {day.isoformat()}\n", 1)


def filled(pack: str, version: str, repository: str, publisher: str) -> str:
    """The pack's pyproject.toml, as ComfyUI's registry takes it. repository: its OWNER/NAME on
    GitHub, where the tag of this version has the icon. publisher: the name there, which cannot be
    changed later."""
    home = f"https://github.com/{repository}"
    fields = {
        "Repository": home,
        "Documentation": f"{home}/blob/v{version}/docs/howto/comfyui.md",
        "Issues": f"{home}/issues",
        "PublisherId": publisher,
        "Icon": f"https://raw.githubusercontent.com/{repository}/v{version}/comfyui/icon.png",
    }
    for field, value in fields.items():
        pack, found = re.subn(rf'(?m)^{field} = ".*"$', f'{field} = "{value}"', pack)
        if not value or found != 1:
            raise ValueError(
                f"{field} = {value!r} cannot be filled in: it stands {found} times in {PACK.name}"
            )
    needed, found = '["ttsnap"]', pack.count('["ttsnap"]')
    if found != 1:
        raise ValueError(f"dependencies = {needed} stands {found} times in {PACK.name}")
    return pack.replace(needed, f'["{requirement(version)}"]')


def requirement(version: str) -> str:
    """What the pack of a version requires. Its nodes are in there, so an update of the pack must
    update them."""
    return f"ttsnap>={version}"


def addressed(project: str, repository: str) -> str:
    """The project's pyproject.toml with its addresses, which an index shows. repository: its
    OWNER/NAME on GitHub."""
    before = "[project.scripts]\n"
    if project.count(before) != 1:
        raise ValueError(f"[project.scripts] stands {project.count(before)} times")
    home = f"https://github.com/{repository}"
    urls = {
        "Repository": home,
        "Documentation": f"{home}/tree/main/docs",
        "Changelog": f"{home}/blob/main/CHANGELOG.md",
        "Issues": f"{home}/issues",
    }
    lines = [f'{name} = "{url}"' for name, url in urls.items()]
    table = "\n".join(["[project.urls]", *lines])
    return project.replace(before, f"{table}\n\n{before}")


def absolute(page: str, version: str, repository: str, folder: str = ".") -> str:
    """A page whose links and pictures lead to the tag of this version: an index and Colab have
    neither. folder: where the page lies in the repository."""
    pages = f"https://github.com/{repository}/blob/v{version}/"
    files = f"https://raw.githubusercontent.com/{repository}/v{version}/"
    local = r"(!?\[[^\]]*\])\((?!https?:|#)([^)]+)\)"

    def lead(found: re.Match[str]) -> str:
        shown, target = found.groups()
        path = posixpath.normpath(posixpath.join(folder, target))
        return f"{shown}({files if shown.startswith('!') else pages}{path})"

    return re.sub(local, lead, page)


def badged(page: str, version: str, repository: str) -> str:
    """A page whose badge opens the notebook of this version in Colab."""
    home = f"https://colab.research.google.com/github/{repository}/blob/v{version}"
    opens = f"({home}/notebooks/{NOTEBOOK.name})"
    page, found = re.subn(r"(?<=/colab-badge\.svg\)\])\([^)]*\)", opens, page)
    if found != 1:
        raise ValueError(f"a page must have one badge of Colab, not {found}")
    return page


def portable(notebook: str, version: str, repository: str) -> str:
    """A notebook for Colab, which has no other file of the repository. Its links are absolute, and
    it installs this version."""
    told = json.loads(notebook)
    for cell in told["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            text = absolute(text, version, repository, "notebooks")
        elif "install" in cell["metadata"].get("tags", ()):
            text = re.sub(r'(?<=ttsnap\[plot\])(?=")', f"=={version}", text)
        cell["source"] = text.splitlines(keepends=True)
    return json.dumps(told, indent=1, ensure_ascii=False) + "\n"


def built(recipe: str, version: str, sdist: bytes) -> str:
    """The recipe of conda's package, of this version, whose sdist holds these bytes."""
    for name, value in (("version", version), ("sha256", hashlib.sha256(sdist).hexdigest())):
        recipe, found = re.subn(rf'(?m)^  {name}: ".*"$', f'  {name}: "{value}"', recipe)
        if found != 1:
            raise ValueError(f"{name} stands {found} times in {RECIPE.name}")
    return recipe


def following(version: str) -> str:
    """What the code is called after a version: the next minor one, in development."""
    major, minor, _ = version.split(".")
    return f"{major}.{int(minor) + 1}.0.dev0"


def _git(*words: str) -> str:
    return subprocess.run(
        ["git", *words], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.strip()


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _commit(version: str, message: str) -> None:
    for path, now in ((VERSION, version), (PACK, version.partition(".dev")[0])):
        text = path.read_text(encoding="utf-8")
        _write(path, re.sub(r'(?m)^((?:__)?version(?:__)? = ").*"$', rf'\g<1>{now}"', text))
    _git("commit", "-q", "-a", "-m", message)


def repository_of(address: str) -> str | None:
    """OWNER/NAME of a remote on GitHub, None for one elsewhere."""
    found = re.fullmatch(r"(?:https://|git@|ssh://git@)github\.com[:/](.+?)(?:\.git)?/?", address)
    return None if found is None else found[1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("version", help="such as 0.2.0")
    parser.add_argument(
        "--notes", action="store_true", help="print its section of the changelog and change nothing"
    )
    parser.add_argument(
        "--pack",
        nargs=2,
        metavar=("OWNER/NAME", "PUBLISHER"),
        help="fill in the pack and do no more",
    )
    parser.add_argument(
        "--index",
        metavar="OWNER/NAME",
        help="fill in what a package index shows and do no more",
    )
    parser.add_argument(
        "--conda",
        type=Path,
        metavar="SDIST",
        help="fill in what conda-forge builds and do no more",
    )
    a = parser.parse_args()
    changelog = CHANGELOG.read_text(encoding="utf-8")
    if a.notes:
        print(notes(changelog, a.version))
        return
    if a.pack:
        _write(PACK, filled(PACK.read_text(encoding="utf-8"), a.version, *a.pack))
        _write(REQUIRED, requirement(a.version) + "\n")
        return
    if a.index:
        _write(PROJECT, addressed(PROJECT.read_text(encoding="utf-8"), a.index))
        readme = README.read_text(encoding="utf-8")
        _write(README, absolute(readme, a.version, a.index))
        return
    if a.conda:
        recipe = RECIPE.read_text(encoding="utf-8")
        _write(RECIPE, built(recipe, a.version, a.conda.read_bytes()))
        return
    if not re.fullmatch(r"\d+\.\d+\.\d+", a.version):
        parser.error(f"a version is three numbers such as 0.2.0, not {a.version!r}")
    if _git("status", "--porcelain"):
        parser.error("there are changes that are not committed")
    repository = repository_of(_git("config", "--default", "", "--get", "remote.origin.url"))
    if repository is None:
        parser.error("the remote `origin` is not on GitHub, where badges and tags lead")
    notebook = badged(NOTEBOOK.read_text(encoding="utf-8"), a.version, repository)
    _write(NOTEBOOK, portable(notebook, a.version, repository))
    _write(CHANGELOG, dated(changelog, a.version, datetime.datetime.now(datetime.UTC).date()))
    _commit(a.version, f"Release {a.version}")
    _git("tag", "-a", f"v{a.version}", "-m", f"ttsnap {a.version}")
    _write(NOTEBOOK, notebook)
    _commit(following(a.version), f"Begin {following(a.version)}")
    print(
        f"tagged v{a.version}; `git push --follow-tags` publishes it"
        " (.github/workflows/release.yml)"
    )


if __name__ == "__main__":
    main()
