"""Pictures as files hold them, and prompts that carry theirs."""

from __future__ import annotations

import copy
import io
import json
import pickle
from pathlib import Path

import pytest
from PIL import Image

from ttsnap.bench import pictures
from ttsnap.bench.pictures import pictured
from ttsnap.bench.prompts import read_prompt_set
from ttsnap.files.pictured import Picture, Pictured, digest_of, digests, opened, own_of, reworded


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
    prompt = Pictured("make it blue", {"image": in_file(RED, "PNG")})
    assert prompt == "make it blue"
    assert json.dumps([prompt]) == '["make it blue"]'
    for same in (pickle.loads(pickle.dumps(prompt)), copy.deepcopy(prompt), reworded(prompt, "make it green")):
        assert digests(own_of(same)) == {"image": digest_of(RED)}
    assert own_of(prompt.strip()) == own_of("make it blue") == {}
    assert type(reworded("a text", "another")) is str


def a_set(folder: Path, **entry: object) -> str:
    RED.save(folder / "red.png")
    (folder / "set.jsonl").write_text(json.dumps({"instruction": "make it blue", **entry}))
    return pictured(read_prompt_set(folder / "set.jsonl").prompts, folder)[0]


@pytest.mark.parametrize("name", ["image", "input_image"])
def test_a_set_names_pictures_beside_it(name: str, tmp_path: Path) -> None:
    found = a_set(tmp_path, **{name: "red.png", "mask_image": "red.png"})
    assert found == "make it blue"
    assert list(digests(own_of(found))) == ["image", "mask_image"]
    assert digests(own_of(a_set(tmp_path, image=["red.png", "red.png"])))["image"] == [digest_of(RED)] * 2
    assert type(a_set(tmp_path)) is str


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
    assert len({id(picture) for prompt in found for picture in own_of(prompt)["image"]}) == 1  # type: ignore[attr-defined]
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
