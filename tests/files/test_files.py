"""The border to strangers' files: what is read, and the one sentence for everything that is not."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from safetensors.numpy import save

from ttsnap.files import reading as files
from ttsnap.files.hub import require_repository
from ttsnap.files.pictures import texts_in
from ttsnap.files.plain_yaml import parse_yaml, read_yaml


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int = 2, height: int = 2, *between: bytes, pixels: bytes | None = None) -> bytes:
    """An RGB PNG, whose header may lie about its size."""
    pixels = zlib.compress(bytes((3 * width + 1) * height)) if pixels is None else pixels
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(between) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100 + "1" + "}" * 100, "nested too deeply"),
        ('{"a": 1, "b": 2, "a": 3}', "'a' stands twice"),
        ("[NaN]", "NaN is no number"),
        ("[-Infinity]", "-Infinity is no number"),
        ("[1e999]", "too large a number"),
        ("[" + "9" * 400 + "]", "too large a number"),
        ("[" + "9" * 5000 + "]", "too large a number"),
        ("[18446744073709551616]", "too large a number"),
        ('["\\ud800"]', "surrogates not allowed"),
        ("", "Expecting value"),
        (b"\xff\xfe\xff", "decode"),
        ("{", "damaged"),
    ],
)
def test_damaged_json_is_one_sentence(text: str | bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why) as caught:
        files.parse_json(text, "x.json")
    assert str(caught.value).startswith("x.json is damaged: ")
    assert "\n" not in str(caught.value)


plain = st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False)
keys = st.text(st.characters(codec="utf-8"), max_size=80)  # YAML has keys of 1024 characters at most, escapes counted
values = st.recursive(
    plain | st.text(st.characters(codec="utf-8")),
    lambda v: st.lists(v) | st.dictionaries(keys, v),
)


@given(values)
@settings(max_examples=60, deadline=None)
def test_whole_json_is_read_as_it_is(value: Any) -> None:
    assert files.parse_json(json.dumps(value), "x") == value
    assert files.parse_json(json.dumps(value, ensure_ascii=False).encode(), "x") == value


def test_nan_passes_where_it_may() -> None:
    assert np.isnan(files.parse_json("[NaN]", "x", nan=True)[0])
    assert files.parse_json("[-Infinity]", "x", nan=True)[0] == -np.inf
    with pytest.raises(ValueError, match="too large a number"):
        files.parse_json("[1e999]", "x", nan=True)


def test_many_keys_of_which_the_last_stands_twice_are_refused_at_once() -> None:
    text = "{" + ",".join(f'"{i}":0' for i in range(200_000)) + ',"199999":0}'
    with pytest.raises(ValueError, match="'199999' stands twice"):
        files.parse_json(text, "x")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a: &x [1]\nb: *x", "aliases"),
        ("a: !!python/object/apply:os.system ['true']", "the tag .*python/object/apply:os.system"),
        ("a:\n  !!set {b: null}", "line 2 holds a value with the tag .*:set"),
        ("a: !!omap [b: 1]", "the tag .*:omap"),
        ("a: !!pairs [b: 1]", "the tag .*:pairs"),
        ("a: !!binary aGk=", "the tag .*:binary"),
        ("a: !!timestamp 2001-01-01", "the tag .*:timestamp"),
        ("a: {<<: {b: 1}}", "the tag .*:merge"),
        ("a: =", "the tag .*:value"),
        ("a: !mine 1", "the tag !mine"),
        ("a: !!str {b: 1}", "the tag .*:str"),
        ("a: !!map [1]", "the tag .*:map"),
        ("a: !!bool maybe", "line 1: 'maybe'"),
        ("a: .inf", "no finite number"),
        ("a: .NaN", "no finite number"),
        ("a: 1e999", "no finite number"),
        ("a: 18446744073709551616", "no finite number of 64 bits"),
        ("a: " + "9" * 400, "no finite number of 64 bits"),
        ("a: 1\nb: 2\na: 3", "'a' stands twice"),
        ("1: 2", "line 1 has the key 1, which is no text"),
        ("? [a]\n: 1", "which is no text"),
        ('a: "\\ud800"', "codec can't decode"),
        ("--- 1\n--- 2", "expected a single document"),
        ("[" * 5000 + "]" * 5000, "nested too deeply"),
        ("a: [" + "[" * 100 + "]" * 100 + "]", "nested too deeply"),
        ("a: b: c", "mapping values"),
        ("a: " + "9" * 5000, "integer string conversion"),
    ],
)
def test_damaged_yaml_is_one_sentence(text: str, why: str, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=why) as caught:
        read_yaml(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


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


BAD_PICTURES: dict[str, tuple[bytes, str | None]] = {
    "empty": (b"", "it is no PNG, or it is damaged"),
    "postscript": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
        "it is no PNG, or it is damaged",
    ),
    "bomb": (png(12_000, 12_000, pixels=b""), "more than 67,108,864 pixels"),
    "larger bomb": (png(2**31 - 1, 2**31 - 1, pixels=b""), "decompression bomb"),
    "text bomb": (png(2, 2, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**26)))), "too large"),
    "truncated": (png(64, 64)[:-30], None),
    "no pixels": (png(64, 64, pixels=b""), None),
    "wrong chunk": (png(2, 2, chunk(b"tRNS", b"x")), None),
}


@pytest.mark.parametrize("name", BAD_PICTURES)
@pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning")
def test_bad_pictures_are_one_sentence(name: str) -> None:
    data, why = BAD_PICTURES[name]
    with pytest.raises(ValueError, match=why) as caught:
        files.picture_pixels(data, "x.png")
    assert str(caught.value).startswith("cannot read x.png as an image: ")
    assert not set("\n<>") & set(str(caught.value))


def test_a_hub_that_cannot_be_reached_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub import errors

    def nothing(*_: object, **__: object) -> None:
        raise errors.LocalEntryNotFoundError("none")

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", nothing)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
    with pytest.raises(
        ValueError, match=r"no copy of a/b is in the cache, and https?://\S+ cannot be reached: no route"
    ):
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


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_pictures_with_any_bytes_changed_are_read_or_refused(data: st.DataObject) -> None:
    whole = bytearray(png(5, 4, chunk(b"tEXt", b"ttsnap\0{}")))
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(8, len(whole) - 1))] = data.draw(st.integers(0, 255))
    for read in (texts_in, files.picture_pixels):
        try:
            read(bytes(whole), "x")
        except ValueError as error:
            assert str(error).startswith("cannot read x as an image: ")  # noqa: PT017


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_tensors_with_any_bytes_changed_are_read_or_refused(tmp_path_factory: Any, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("t") / "x.safetensors"
    whole = bytearray(save({"a": np.arange(6.0).reshape(2, 3)}, {"k": "v"}))
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    try:
        files.read_tensors(path)
    except ValueError as error:
        assert str(path) in str(error)  # noqa: PT017


def test_text_from_files_cannot_steer_a_terminal() -> None:
    assert files.printable("a\x1b[2Jb\u202e") == "a\\x1b[2Jb\\u202e"
    assert files.reason(KeyError()) == "KeyError"
