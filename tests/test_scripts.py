"""What scripts keep as it should be: versions and the changelog, the pack for ComfyUI, pictures of
searches."""

from __future__ import annotations

import datetime
import hashlib
import importlib
import importlib.util
import json
import re
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from ttsnap.algorithms.catalogue import ALGORITHMS
from ttsnap.cli import parse
from ttsnap.version import __version__

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))


@pytest.fixture
def release():
    return importlib.import_module("release")


def test_the_version_is_the_changelogs_newest_or_the_one_that_comes(release):
    unreleased, *titles = release.sections((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))
    assert unreleased == "Unreleased"
    versions, days = zip(*(title.split(" - ") for title in titles), strict=True)
    assert all(map(datetime.date.fromisoformat, days))
    numbers = [tuple(map(int, version.split("."))) for version in versions]
    assert numbers == sorted(numbers, reverse=True)
    assert __version__ in (versions[0], release.following(versions[0]))


def test_a_release_dates_what_was_unreleased(release):
    before = (
        "# Changelog\n\n## Unreleased\n\n### Added\n- New.\n\n## 0.1.0 - 2026-01-02\n\n- Old.\n"
    )
    after = release.dated(before, "0.2.0", datetime.date(2026, 2, 3))
    assert release.sections(after) == {
        "Unreleased": "",
        "0.2.0 - 2026-02-03": "### Added\n- New.",
        "0.1.0 - 2026-01-02": "- Old.",
    }
    assert release.notes(after, "0.2.0") == "### Added\n- New."
    for text, version, said in (
        (after, "0.3.0", "nothing"),
        (before, "0.1.0", r"a section for 0\.1\.0 already"),
    ):
        with pytest.raises(ValueError, match=said):
            release.dated(text, version, datetime.date(2026, 2, 4))
    with pytest.raises(ValueError, match=r"no section for 0\.2"):
        release.notes(after, "0.2")


def test_the_pack_gets_what_comfyuis_registry_asks_of_a_publisher(release):
    pack = release.PACK.read_text(encoding="utf-8")
    told = tomllib.loads(release.filled(pack, "1.2.3", "someone/ttsnap", "some-one"))
    urls = told["project"]["urls"]
    assert urls["Repository"] == "https://github.com/someone/ttsnap"
    assert (ROOT / urls["Documentation"].partition("/blob/v1.2.3/")[2]).is_file()
    assert "" not in urls.values()
    icon = told["tool"]["comfy"]["Icon"]
    assert icon == "https://raw.githubusercontent.com/someone/ttsnap/v1.2.3/comfyui/icon.png"
    assert told["tool"]["comfy"]["PublisherId"] == "some-one"
    # ComfyUI's Manager installs the one, its registry shows the other.
    kept = tomllib.loads(pack)["project"]["dependencies"]
    assert release.REQUIRED.read_text(encoding="utf-8").split() == kept
    assert told["project"]["dependencies"] == [release.requirement("1.2.3")] == ["ttsnap>=1.2.3"]
    with Image.open(ROOT / icon.partition("/v1.2.3/")[2]) as picture:
        assert picture.width == picture.height <= 400
    with pytest.raises(ValueError, match="PublisherId = ''"):
        release.filled(pack, "1.2.3", "someone/ttsnap", "")
    with pytest.raises(ValueError, match="stands 0 times"):
        release.filled("", "1.2.3", "someone/ttsnap", "some-one")


def test_an_index_gets_addresses_and_links_that_lead_there(release):
    project = release.addressed(release.PROJECT.read_text(encoding="utf-8"), "someone/ttsnap")
    told = tomllib.loads(project)["project"]
    assert told["urls"]["Repository"] == "https://github.com/someone/ttsnap"
    assert told["scripts"] == {"ttsnap": "ttsnap.cli:main"}
    page = release.absolute(
        "![A](docs/a.png) [b](docs/b.md#c) [d](https://e.org) [f](#g)", "1.2.3", "someone/ttsnap"
    )
    assert page == (
        "![A](https://raw.githubusercontent.com/someone/ttsnap/v1.2.3/docs/a.png)"
        " [b](https://github.com/someone/ttsnap/blob/v1.2.3/docs/b.md#c)"
        " [d](https://e.org) [f](#g)"
    )
    readme = release.README.read_text(encoding="utf-8")
    assert not re.search(r"\]\((?!https?:|#)", release.absolute(readme, "1.2.3", "someone/t"))
    with pytest.raises(ValueError, match="stands 0 times"):
        release.addressed("", "someone/ttsnap")


def test_a_release_has_a_notebook_that_leads_to_its_tag(release, tmp_path, monkeypatch):
    """Afterwards its badge still does; all else of the notebook is as it was."""
    for name in ("VERSION", "PACK", "NOTEBOOK", "CHANGELOG"):
        path = getattr(release, name)
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(path.read_bytes())
        monkeypatch.setattr(release, name, copy)
    release.CHANGELOG.write_text("# Changelog\n\n## Unreleased\n\n- New.\n")
    monkeypatch.setattr(release, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["release.py", "9.8.7"])
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "someone")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "someone@example.org")
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "All"]):
        release._git(*words)
    with pytest.raises(SystemExit):  # it has no address
        release.main()
    release._git("remote", "add", "origin", "git@github.com:someone/t.git")
    before = release.NOTEBOOK.read_text(encoding="utf-8")
    release.main()
    tagged = release._git("show", "v9.8.7:notebooks/01_quick_start.ipynb")
    home = "https://colab.research.google.com/github/someone/t/blob/v9.8.7/notebooks"
    assert f"({home}/01_quick_start.ipynb)" in tagged
    assert "(https://github.com/someone/t/blob/v9.8.7/docs/drafts.md)" in tagged
    assert "(https://github.com/someone/t/blob/v9.8.7/README.md#limits-so-far)" in tagged
    assert "ttsnap[plot]==9.8.7" in tagged
    cells = [cell for cell in json.loads(tagged)["cells"] if cell["cell_type"] == "markdown"]
    assert not any(re.search(r"\]\((?!https?:|#)", "".join(cell["source"])) for cell in cells)
    assert release.NOTEBOOK.read_text(encoding="utf-8") == before.replace(
        "(01_quick_start.ipynb)", f"({home}/01_quick_start.ipynb)"
    )


def test_conda_installs_what_pip_installs(release):
    recipe = yaml.safe_load(release.built(release.RECIPE.read_text(), "1.2.3", b"an sdist"))
    assert recipe["context"]["version"] == "1.2.3"
    assert recipe["context"]["sha256"] == hashlib.sha256(b"an sdist").hexdigest()
    project = tomllib.loads(release.PROJECT.read_text(encoding="utf-8"))["project"]
    wanted = {re.sub("^torch>=", "pytorch>=", name) for name in project["dependencies"]}
    python, *run = recipe["requirements"]["run"]
    assert {name.replace(" ", "") for name in run} == wanted
    assert python == "python >=${{ python_min }}"
    assert project["requires-python"] == f">={recipe['context']['python_min']}"
    assert recipe["about"]["summary"] == project["description"]
    with pytest.raises(ValueError, match="sha256 stands 0 times"):
        release.built('  version: "1"', "1.2.3", b"")


def test_containers_and_the_space_run_commands_that_there_are():
    composed = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
    lines = [service["command"] for service in composed["services"].values()]
    docker = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    lines.append(json.loads(docker.rpartition("CMD ")[2]))
    for line in lines:
        command, given = parse(line)
        assert command.name == line[0]
        assert given.host == "0.0.0.0"
    extras = set(re.findall(r"/src\[([\w,]+)\]", docker)[0].split(","))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert extras <= set(project["optional-dependencies"])
    sent = (ROOT / ".dockerignore").read_text(encoding="utf-8")
    packaged = {"LICENSE", "README.md", "pyproject.toml", "setup.py", "ttsnap"}
    assert packaged <= set(re.findall("^!(.*)$", sent, re.M))
    spec = importlib.util.spec_from_file_location("space_app", ROOT / "space" / "app.py")
    app = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(app)
    command, given = parse(["demo", *app.HERE, *app.LIMITS])
    assert (given.host, given.port, given.max_budget) == ("0.0.0.0", 7860, 400)


def test_the_icon_is_what_its_script_draws():
    drawing = importlib.import_module("draw_icon")
    with Image.open(drawing.ICON) as kept:
        assert np.abs(np.asarray(kept, int) - np.asarray(drawing.drawn(), int)).max() <= 8


def test_each_group_of_the_catalogue_is_drawn():
    drawing = importlib.import_module("draw_searches")
    groups = {entry.group for entry in ALGORITHMS.values()} - {"study"}
    assert (
        set(drawing.GROUPS)
        == groups
        == {path.stem for path in (ROOT / "docs" / "searches").glob("*.png")}
    )
    assert all(
        ALGORITHMS[p.algorithm["name"]].group == g
        for g, panels in drawing.GROUPS.items()
        for p in panels
    )
