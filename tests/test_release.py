"""Versions and the changelog agree, and scripts/release.py keeps them so."""

from __future__ import annotations

import datetime
import importlib
from pathlib import Path
from typing import Any

import pytest

from ttsnap.version import __version__

ROOT = Path(__file__).parents[1]


@pytest.fixture
def release(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module("release")


def test_the_version_is_the_changelogs_newest_or_the_one_that_comes(release: Any) -> None:
    titles = list(release.sections((ROOT / "CHANGELOG.md").read_text(encoding="utf-8")))
    assert titles[0] == "Unreleased"
    versions = []
    for title in titles[1:]:
        version, day = title.split(" - ")
        datetime.date.fromisoformat(day)
        versions.append(tuple(map(int, version.split("."))))
    assert versions == sorted(versions, reverse=True)
    newest = ".".join(map(str, versions[0]))
    assert __version__ in (newest, release.following(newest))


def test_a_release_dates_what_was_unreleased(release: Any) -> None:
    before = "# Changelog\n\n## Unreleased\n\n### Added\n- New.\n\n## 0.1.0 - 2026-01-02\n\n- Old.\n"
    after = release.dated(before, "0.2.0", datetime.date(2026, 2, 3))
    assert release.sections(after) == {
        "Unreleased": "", "0.2.0 - 2026-02-03": "### Added\n- New.", "0.1.0 - 2026-01-02": "- Old."
    }  # fmt: skip
    assert release.notes(after, "0.2.0") == "### Added\n- New."
    with pytest.raises(ValueError, match="nothing stands under Unreleased"):
        release.dated(after, "0.3.0", datetime.date(2026, 2, 4))
    with pytest.raises(ValueError, match=r"a section for 0\.1\.0 already"):
        release.dated(before, "0.1.0", datetime.date(2026, 2, 4))
    with pytest.raises(ValueError, match=r"no section for 0\.2"):
        release.notes(after, "0.2")
