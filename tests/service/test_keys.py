"""API keys: read from a file, compared without telling, never shown."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from ttsnap.service.keys import ANYBODY, Keys
from ttsnap.service.limits import RequestError, ServiceLimits

SECRET = "a-long-secret-key-1"


def test_callers_are_known_by_their_keys(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(f"# ours\nalice {SECRET}\n\nbob another-secret-key  # theirs\n")
    keys = Keys.read(tmp_path / "keys")
    assert keys.caller(f"Bearer {SECRET}") == "alice"
    assert keys.caller("bearer another-secret-key") == "bob"
    for header in (None, "", "Bearer", f"Basic {SECRET}", f"Bearer {SECRET}x", SECRET, "Bearer \udcff\u00e9"):
        with pytest.raises(RequestError, match="API key") as error:
            keys.caller(header)
        assert error.value.status == 401
    assert SECRET not in repr(keys)
    assert Keys.of(SECRET).caller(f"Bearer {SECRET}") == "default"
    assert Keys().caller(None) == ANYBODY


def test_a_file_that_changes_is_read_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, other = tmp_path / "keys", "another-secret-key"
    path.write_text(f"alice {SECRET}\n")
    keys = Keys.read(path)
    assert keys.names == {"alice"}
    path.write_text(f"alice {SECRET}\nbob {other}\n")
    assert keys.caller(f"Bearer {SECRET}") == "alice"
    assert keys.caller(f"Bearer {other}") == "bob"
    for broken in ("bob", ""):
        path.write_text(broken)
        assert keys.names == {"alice", "bob"}, "they stay as they were"
    path.unlink()
    os.mkfifo(path)
    assert keys.names == {"alice", "bob"}, "a pipe is not waited for"
    assert caplog.text.count("API keys stay as they were") == 3
    path.unlink()
    for _ in range(2):
        assert keys.names == set(), "without a file nobody is let in"
        with pytest.raises(RequestError, match="no API key"):
            keys.caller(f"Bearer {SECRET}")
    assert caplog.text.count("nobody is let in") == 1
    path.write_text(f"bob {other}\n")
    with pytest.raises(RequestError):
        keys.caller(f"Bearer {SECRET}")
    assert keys.caller(f"Bearer {other}") == "bob"
    assert SECRET not in caplog.text
    assert other not in caplog.text
    fixed = replace(keys, file=None)
    path.write_text(f"alice {SECRET}\n")
    assert fixed.names == {"bob"}


def test_limits_are_positive() -> None:
    with pytest.raises(ValueError, match="1, got 0"):
        ServiceLimits(queue=0)
