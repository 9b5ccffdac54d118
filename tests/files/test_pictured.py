"""Pictures as files hold them, and prompts that carry theirs."""

from __future__ import annotations

import copy
import io
import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ttsnap.bench import pictures
from ttsnap.bench.pictures import pictured
from ttsnap.bench.prompts import read_prompt_set
from ttsnap.core.prompt import Prompt
from ttsnap.files.pictured import Blank, Picture, blanks, digest_of, digests, opened


def in_file(picture: Image.Image, kind: str, **how: bool) -> Picture:
    file = io.BytesIO()
    picture.save(file, format=kind, **how)
    return Picture(file.getvalue())


RED = Image.new("RGB", (4, 2), "red")


def test_a_digest_is_of_what_is_shown_in_whatever_file() -> None:
    png, webp = in_file(RED, "PNG"), in_file(RED, "WEBP", lossless=True)
    assert png.data != webp.data
    assert png.digest == webp.digest == digest_of(RED)
    assert digest_of(RED.resize((2, 4))) != digest_of(RED) != digest_of(Image.new("RGB", (4, 2), "blue"))


def test_arguments_are_opened_and_noted_by_name() -> None:
    call = {"image": in_file(RED, "PNG"), "references": [in_file(RED, "PNG"), RED], "steps": 3, "sizes": (1, 2)}
    assert digests(call) == {"image": digest_of(RED), "references": [digest_of(RED)] * 2}
    told = opened(call)
    assert told["steps"] == 3
    assert told["sizes"] == (1, 2)
    assert isinstance(told["image"], Image.Image)
    assert [type(each) for each in told["references"]] == [Image.Image] * 2  # type: ignore[attr-defined]


def test_a_prompt_takes_its_pictures_along() -> None:
    prompt = Prompt("make it blue", inputs={"image": in_file(RED, "PNG")})
    for same in (pickle.loads(pickle.dumps(prompt)), copy.deepcopy(prompt)):
        assert same == prompt
        assert hash(same) == hash(prompt)
        assert digests(same.inputs) == {"image": digest_of(RED)}
    assert Prompt.of(prompt) is prompt
    assert prompt.read == "make it blue"
    assert replace(prompt, reward_text="a blue square").read == "a blue square"


def test_an_engine_is_told_of_pictures_their_size_alone() -> None:
    blue = Image.new("RGB", (4, 2), "blue")
    files = [in_file(each, "PNG") for each in (RED, blue)]
    given = [{"image": [file], "mask_image": Picture(file.data, mask=True), "strength": 1} for file in files]
    assert blanks(given[0]) == blanks(given[1])
    assert blanks(given[0]) == {"image": (Blank((4, 2)),), "mask_image": Blank((4, 2), mask=True), "strength": 1}
    told = opened(blanks(given[0]))
    assert [each.size for each in told["image"]] == [(4, 2)]  # type: ignore[attr-defined]
    assert np.asarray(told["mask_image"]).min() == 255
    assert digests(blanks(given[0])) == {}


def a_set(folder: Path, **entry: object) -> Prompt:
    RED.save(folder / "red.png")
    (folder / "set.jsonl").write_text(json.dumps({"instruction": "make it blue", **entry}))
    return pictured(read_prompt_set(folder / "set.jsonl").prompts, folder)[0]


@pytest.mark.parametrize("name", ["image", "input_image"])
def test_a_set_names_pictures_beside_it(name: str, tmp_path: Path) -> None:
    found = a_set(tmp_path, **{name: "red.png", "mask_image": "red.png"})
    assert found.text == "make it blue"
    assert list(digests(found.inputs)) == ["image", "mask_image"]
    assert digests(a_set(tmp_path, image=["red.png", "red.png"]).inputs)["image"] == [digest_of(RED)] * 2
    assert a_set(tmp_path) == Prompt("make it blue")


def test_a_picture_that_many_entries_name_is_read_once_and_all_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    RED.save(tmp_path / "red.png")
    RED.save(tmp_path / "too.png")
    entries = [{"prompt": f"{i}", "image": ["red.png"] * 4} for i in range(100)]
    (tmp_path / "set.json").write_text(json.dumps(entries))
    size = (tmp_path / "red.png").stat().st_size
    monkeypatch.setattr(pictures, "MOST_BYTES", size)
    found = pictured(read_prompt_set(tmp_path / "set.json").prompts, tmp_path)
    assert len({id(picture) for prompt in found for picture in prompt.inputs["image"]}) == 1  # type: ignore[attr-defined]
    (tmp_path / "set.json").write_text(json.dumps([*entries, {"prompt": "x", "image": "too.png"}]))
    with pytest.raises(ValueError, match=f"image of entry 101 of the prompt set have more than {size} bytes"):
        pictured(read_prompt_set(tmp_path / "set.json").prompts, tmp_path)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("../red.png", "leads out of"),
        ("/etc/passwd", "leads out of"),
        ("link.png", "leads out of"),
        ("sub/../red.png", "leads out of"),
        ("gone.png", "no such picture"),
        ("set.jsonl", "cannot read .* as an image"),
        (3, "must be the name of a file, got '3'"),
        ("", "must be the name of a file"),
        ([], "names 0 pictures"),
    ],
)
def test_names_that_are_none_are_refused(name: object, said: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    RED.save(tmp_path / "outside.png")
    (tmp_path / "in" / "link.png").symlink_to(tmp_path / "outside.png")
    with pytest.raises(ValueError, match=said):
        a_set(tmp_path / "in", image=name)
