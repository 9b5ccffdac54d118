"""The border to strangers' files, and pictures: what is read, and the one sentence for everything
that is not."""

from __future__ import annotations

import copy
import io
import json
import pickle
from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import pytest
import yaml
from huggingface_hub.errors import LocalEntryNotFoundError
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from ttsnap.bench import pictures
from ttsnap.bench.pictures import pictured
from ttsnap.bench.prompts import read_prompt_set
from ttsnap.core.prompt import Prompt
from ttsnap.files import reading as files
from ttsnap.files.hub import require_repository
from ttsnap.files.pictured import Blank, Picture, blanks, digest_of, digests, opened, texts_in
from ttsnap.files.plain_yaml import dumped, parse_yaml

plain = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
)
texts = st.text(max_size=80)  # YAML has keys of 1024 characters at most, escapes counted
values = st.recursive(
    plain | texts, lambda v: st.lists(v) | st.dictionaries(texts, v), max_leaves=20
)


@given(values)
@settings(max_examples=20, deadline=None)
def test_whole_json_and_yaml_are_read_as_they_are(value):
    assert files.parse_json(json.dumps(value), "x") == value
    assert files.parse_json(json.dumps(value, ensure_ascii=False).encode(), "x") == value
    assert parse_yaml(json.dumps(value).replace("\x7f", "\\u007f"), "x") == value


def test_nan_passes_where_it_may():
    assert np.isnan(files.parse_json("[NaN]", "x", nan=True)[0])
    assert files.parse_json("[-Infinity]", "x", nan=True)[0] == -np.inf
    with pytest.raises(ValueError, match="too large"):
        files.parse_json("[1e999]", "x", nan=True)


def test_yaml_is_plain_values():
    text = "{a: [1, x, 2.5], b: [2001-01-01, 1e-4, true, yes, ~, '5', 1E+5, a*b, 12:30, 012]}"
    held = {
        "a": [1, "x", 2.5],
        "b": ["2001-01-01", 1e-4, True, "yes", None, "5", 1e5, "a*b", "12:30", 12],
    }
    assert parse_yaml(text, "x") == held
    assert parse_yaml("", "x") is None
    texts = ["true", "1e-4", "012", "089", "~", "", "yes", "off", "1.5", "12:30"]
    assert parse_yaml(dumped(texts), "x") == yaml.safe_load(dumped(texts)) == texts
    for bad in ("[.inf, 1e999]", "!!set {a}", "{a: 1, a: 2}", "[&a 1, *a]", "{1: 2}", "[" * 99):
        with pytest.raises(ValueError, match="cannot read x"):
            parse_yaml(bad, "x")
    # as one number, in base 60, a megabyte of them took ten minutes
    digits = ":".join(["1"] * 2**12)
    assert parse_yaml(digits, "x") == digits


def test_only_regular_files_of_bounded_size_are_read(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "device").symlink_to("/dev/zero")
    (tmp_path / "long").write_bytes(bytes(101))
    for name, why in (
        ("gone", "no such"),
        ("folder", "no such"),
        ("device", "no such"),
        ("long", "at most 100 bytes"),
    ):
        with pytest.raises(ValueError, match=why):
            files.read_bytes(tmp_path / name, 100)


def test_a_hub_that_cannot_be_reached_is_said_at_once(tmp_path, monkeypatch):
    nothing = Mock(side_effect=LocalEntryNotFoundError("none"))
    monkeypatch.setattr("huggingface_hub.snapshot_download", nothing)
    monkeypatch.setattr(
        "huggingface_hub.HfApi.model_info", Mock(side_effect=ConnectionError("no route"))
    )
    with pytest.raises(ValueError, match=r"https?://\S+ cannot"):
        require_repository("a/b")
    for name in ("name", "./a", "a/b/c", "/a/b", str(tmp_path)):
        require_repository(name)
    nothing.side_effect = None
    require_repository("a/b")


def test_pictures_and_their_text():
    info = PngImagePlugin.PngInfo()
    info.add_itxt("ttsnap", "{}")
    file = io.BytesIO()
    Image.new("RGBA", (3, 2), (9, 8, 7, 255)).save(file, format="PNG", pnginfo=info)
    assert texts_in(file.getvalue(), "x")["ttsnap"] == "{}"
    assert files.picture_pixels(file.getvalue(), "x").tolist() == [[[9, 8, 7]] * 3] * 2


def test_text_from_files_cannot_steer_a_terminal():
    assert files.printable("a\x1b[2Jb\u202e") == "a\\x1b[2Jb\\u202e"
    assert files.reason(KeyError()) == "KeyError"


# --- pictures of prompts --------------------------------------------------------------------------


def in_file(picture, kind, **how):
    file = io.BytesIO()
    picture.save(file, format=kind, **how)
    return Picture(file.getvalue())


RED = Image.new("RGB", (4, 2), "red")


def test_a_digest_is_of_what_is_shown_in_whatever_file():
    png, webp = in_file(RED, "PNG"), in_file(RED, "WEBP", lossless=True)
    assert png.data != webp.data
    assert png.digest == webp.digest == digest_of(RED)
    assert (
        digest_of(RED.resize((2, 4)))
        != digest_of(RED)
        != digest_of(Image.new("RGB", (4, 2), "blue"))
    )


def test_arguments_are_opened_and_noted_by_name():
    call = {
        "image": in_file(RED, "PNG"),
        "references": [in_file(RED, "PNG"), RED],
        "steps": 3,
        "sizes": (1, 2),
    }
    assert digests(call) == {"image": digest_of(RED), "references": [digest_of(RED)] * 2}
    told = opened(call)
    assert (told["steps"], told["sizes"]) == (3, (1, 2))
    assert [type(each) for each in (told["image"], *told["references"])] == [Image.Image] * 3  # type: ignore[misc]


def test_a_prompt_takes_its_pictures_along():
    prompt = Prompt("make it blue", inputs={"image": in_file(RED, "PNG")})
    for same in (pickle.loads(pickle.dumps(prompt)), copy.deepcopy(prompt)):
        assert (same, hash(same)) == (prompt, hash(prompt))
        assert digests(same.inputs) == {"image": digest_of(RED)}
    assert Prompt.of(prompt) is prompt
    assert [each.read for each in (prompt, replace(prompt, reward_text="blue"))] == [
        "make it blue",
        "blue",
    ]


def test_an_engine_is_told_of_pictures_their_size_alone():
    for file in (in_file(each, "PNG") for each in (RED, Image.new("RGB", (4, 2), "blue"))):
        found = blanks(
            {"image": [file, RED], "mask_image": Picture(file.data, mask=True), "strength": 1}
        )
        assert found == {
            "image": (Blank((4, 2)),) * 2,
            "mask_image": Blank((4, 2), mask=True),
            "strength": 1,
        }
    assert blanks({"mask_image": Image.new("L", (2, 2))}) == {
        "mask_image": Blank((2, 2), mask=True)
    }
    told = opened(found)
    assert [each.size for each in told["image"]] == [(4, 2)] * 2  # type: ignore[attr-defined]
    assert np.asarray(told["mask_image"]).min() == 255
    assert digests(found) == {}


def a_set(folder, **entry):
    RED.save(folder / "red.png")
    (folder / "set.jsonl").write_text(json.dumps({"instruction": "make it blue", **entry}))
    return pictured(read_prompt_set(folder / "set.jsonl").prompts, folder)[0]


@pytest.mark.parametrize("name", ["image", "input_image"])
def test_a_set_names_pictures_beside_it(name, tmp_path):
    found = a_set(tmp_path, **{name: "red.png", "mask_image": "red.png"})
    assert (found.text, list(digests(found.inputs))) == ("make it blue", ["image", "mask_image"])
    assert (
        digests(a_set(tmp_path, image=["red.png", "red.png"]).inputs)["image"]
        == [digest_of(RED)] * 2
    )
    assert a_set(tmp_path) == Prompt("make it blue")


def test_a_picture_that_many_entries_name_is_read_once_and_all_are_bounded(tmp_path, monkeypatch):
    for name in ("red.png", "too.png"):
        RED.save(tmp_path / name)
    entries = [{"prompt": f"{i}", "image": ["red.png"] * 4} for i in range(100)]
    (tmp_path / "set.json").write_text(json.dumps([*entries, {"prompt": "x", "image": "too.png"}]))
    monkeypatch.setattr(pictures, "MOST_BYTES", size := (tmp_path / "red.png").stat().st_size)
    *several, _ = read = read_prompt_set(tmp_path / "set.json").prompts
    found = pictured(several, tmp_path)
    assert len({id(picture) for prompt in found for picture in prompt.inputs["image"]}) == 1  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=f"entry 101 .*{size} bytes"):
        pictured(read, tmp_path)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        *(
            (name, "leads out of")
            for name in ("../red.png", "/etc/passwd", "link.png", "sub/../red.png")
        ),
        ("gone.png", "no such picture"),
        ("set.jsonl", "cannot read .* as an image"),
        (3, "got '3'"),
        ("", "got ''"),
        ([], "names 0"),
    ],
)
def test_names_that_are_none_are_refused(name, said, tmp_path):
    (tmp_path / "in").mkdir()
    RED.save(tmp_path / "outside.png")
    (tmp_path / "in" / "link.png").symlink_to(tmp_path / "outside.png")
    with pytest.raises(ValueError, match=said):
        a_set(tmp_path / "in", image=name)
