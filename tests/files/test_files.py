"""The border to strangers' files: what is read, and the one sentence for everything that is not."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from ttsnap.files import reading as files
from ttsnap.files.hub import require_repository
from ttsnap.files.pictures import texts_in
from ttsnap.files.plain_yaml import parse_yaml

plain = st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False)
keys = st.text(st.characters(codec="utf-8"), max_size=80)  # YAML has keys of 1024 characters at most, escapes counted
values = st.recursive(
    plain | st.text(st.characters(codec="utf-8")),
    lambda v: st.lists(v) | st.dictionaries(keys, v),
)


@given(values)
@settings(max_examples=25, deadline=None)
def test_whole_json_is_read_as_it_is(value: Any) -> None:
    assert files.parse_json(json.dumps(value), "x") == value
    assert files.parse_json(json.dumps(value, ensure_ascii=False).encode(), "x") == value


def test_nan_passes_where_it_may() -> None:
    assert np.isnan(files.parse_json("[NaN]", "x", nan=True)[0])
    assert files.parse_json("[-Infinity]", "x", nan=True)[0] == -np.inf
    with pytest.raises(ValueError, match="too large a number"):
        files.parse_json("[1e999]", "x", nan=True)


def test_yaml_is_plain_values() -> None:
    text = (
        "{a: 1, b: [x, 2.5], c: 2001-01-01, d: 1e-4, e: 0x10, f: yes, g: ~, h: '5', i: 1E+5, j: a*b, k: 12:30, l: 012}"
    )
    assert parse_yaml(text, "x") == {
        "a": 1, "b": ["x", 2.5], "c": "2001-01-01", "d": 1e-4, "e": 16, "f": True, "g": None, "h": "5", "i": 1e5,
        "j": "a*b", "k": "12:30", "l": 12,
    }  # fmt: skip
    assert parse_yaml("", "x") is None
    digits = ":".join(["1"] * 2**12)  # as one number, in base 60, a megabyte of them took ten minutes
    assert parse_yaml(digits, "x") == digits


@given(values)
@settings(max_examples=30, deadline=None)
def test_whole_yaml_is_read_as_it_is(value: Any) -> None:
    assert parse_yaml(json.dumps(value).replace("\x7f", "\\u007f"), "x") == value


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda p: None, "no such file"),
        (lambda p: p.mkdir(), "no such file"),
        (lambda p: p.symlink_to("/dev/zero"), "no such file"),
        (lambda p: p.write_bytes(bytes(101)), "at most 100 bytes"),
    ],
)
def test_only_regular_files_of_bounded_size_are_read(make: Callable[[Path], Any], why: str, tmp_path: Path) -> None:
    make(tmp_path / "x")
    with pytest.raises(ValueError, match=why):
        files.read_bytes(tmp_path / "x", 100)


def test_a_hub_that_cannot_be_reached_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub import errors

    def nothing(*_: object, **__: object) -> None:
        raise errors.LocalEntryNotFoundError("none")

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", nothing)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
    with pytest.raises(ValueError, match=r"https?://\S+ cannot"):
        require_repository("a/b")
    for name in ("name", "./a", "a/b/c", "/a/b", str(tmp_path)):
        require_repository(name)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: "folder")
    require_repository("a/b")


def test_pictures_and_their_text() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_itxt("ttsnap", "{}")
    file = io.BytesIO()
    Image.new("RGBA", (3, 2), (9, 8, 7, 255)).save(file, format="PNG", pnginfo=info)
    assert texts_in(file.getvalue(), "x")["ttsnap"] == "{}"
    pixels = files.picture_pixels(file.getvalue(), "x")
    assert pixels.shape == (2, 3, 3)
    assert pixels[0, 0].tolist() == [9, 8, 7]


def test_text_from_files_cannot_steer_a_terminal() -> None:
    assert files.printable("a\x1b[2Jb\u202e") == "a\\x1b[2Jb\\u202e"
    assert files.reason(KeyError()) == "KeyError"
