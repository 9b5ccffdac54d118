"""Commands with pictures to start from, over the embedded model."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ttsnap import BestOfN
from ttsnap.cli import common, main
from ttsnap.files.pictured import digest_of
from ttsnap.pipelines import defaults
from ttsnap.recordings.folder import load_recording
from ttsnap.results.record import read_record

COLOURS = ("red", "blue")
HOW = [
    "--task",
    "image-to-image",
    "--strength",
    "0.5",
    "--negative-prompt",
    "",
    "--steps",
    "2",
    "--device",
    "cpu",
]
KEEPS = """
def keeps(images, prompts, *, source):
    return -(images.mean((2, 3)) - source.mean((2, 3))).abs().mean(1)
keeps.needs = {"source"}
"""
LOADED = {}


@pytest.fixture(autouse=True)
def _inside(tmp_path, monkeypatch):
    """In a folder with two pictures, a set of edits of both by the same words, and a reward that
    sees the source."""

    def once(*what, **more):
        if str((what, more)) not in LOADED:
            LOADED[str((what, more))] = load(*what, **more)
        return LOADED[str((what, more))]

    load = common.load_model
    monkeypatch.setattr(common, "load_model", once)
    monkeypatch.chdir(tmp_path)
    for name in COLOURS:
        Image.new("RGB", (32, 32), name).save(f"{name}.png")
    a_set("red.png", "blue.png")
    Path("keep.py").write_text(KEEPS)


def a_set(*names):
    entries = [{"prompt": "a red circle", "image": name} for name in names]
    Path("edits.jsonl").write_text("\n".join(map(json.dumps, entries)))


def test_a_picture_is_changed_and_the_image_made_again_from_it(
    capsys,
):
    argv = [
        "generate",
        "a red circle",
        "--image",
        "red.png",
        *HOW,
        "--algorithm",
        "best-of-n",
        "--budget",
        "3nfe",
    ]
    assert main([*argv, "--out", "o"]) == 0
    (found,) = Path("o").glob("01-*.png")
    payload = read_record(found).to_json()
    assert (payload["task"], payload["call"]["strength"]) == ("image-to-image", 0.5)
    assert "image" not in payload["call"]
    red, blue = (digest_of(Image.open(f"{name}.png")) for name in COLOURS)
    assert payload["pictures"] == {"image": red}
    # stock text to image does not make it
    assert "in plain diffusers" not in capsys.readouterr().out
    replay = ["replay", str(found), "--device", "cpu"]
    for more, said in (
        ([], f"--image: it notes the digest {red}, got no picture"),
        (["--image", "blue.png"], f"--image: it notes the digest {red}, got {blue}"),
        (["--image", "red.png", "--mask-image", "red.png"], "--mask-image: it notes"),
    ):
        assert main([*replay, *more]) == 2
        assert said in capsys.readouterr().err
    assert main([*replay, "--image", "red.png"]) == 0
    assert "largest difference from 01" in (said := capsys.readouterr().out)
    assert int(said.split(": ")[1].split(" of ")[0]) <= 1


def test_a_recording_knows_the_picture_of_each_prompt(capsys):
    argv = [
        "record",
        "--prompts-file",
        "edits.jsonl",
        *HOW,
        "--reward",
        "keep.py:keeps",
        "--seeds",
        "2",
        "--out",
        "r",
    ]
    assert main(argv) == 0
    recording = load_recording("r")
    assert recording.prompts == ("a red circle",) * 2
    pipe = next(pipe for name, pipe in LOADED.items() if "image-to-image" in name)
    for name, scores in zip(COLOURS, recording.final[..., 0], strict=True):
        given = {
            "image": Image.open(f"{name}.png"),
            "strength": 0.5,
            "num_inference_steps": 2,
            "negative_prompt": "",
        }
        how = {
            "search": BestOfN(2),
            "reward": "keep.py:keeps",
            "num_images_per_prompt": 2,
            "seed": 0,
        }
        out = pipe(prompt="a red circle", **how, **defaults() | given)
        by_seed = sorted((image.seed, image.reward) for image in out.search[0].images)
        np.testing.assert_allclose([reward for _, reward in by_seed], scores, atol=2e-6)
    assert abs(np.diff(recording.final[..., 0], axis=0)).min() > 0.01
    digest = {name: digest_of(Image.open(f"{name}.png")) for name in COLOURS}
    assert recording.info["pictures"] == [{"image": digest[name]} for name in COLOURS]
    capsys.readouterr()

    a_set("red.png", "red.png")
    assert main(argv) == 2
    assert f'info.pictures[1].image is "{digest["blue"][:50]}' in capsys.readouterr().err


def test_edits_are_compared_by_what_they_keep_of_their_pictures(
    capsys,
):
    argv = [
        "bench",
        "--prompts-file",
        "edits.jsonl",
        *HOW,
        "--reward",
        "brightness",
        "--report",
        "keep.py:keeps",
    ]
    argv += ["--budget", "2nfe", "--algorithms", "best-of-n", "--out", "b"]
    assert main(argv) == 0
    rows = [json.loads(line) for line in Path("b", "results.jsonl").read_text().splitlines()]
    for name, row in zip(COLOURS, rows, strict=True):
        path = Path("b", row["image"])
        result, source = (
            np.asarray(Image.open(p).convert("RGB")).mean((0, 1)) / 255
            for p in (path, f"{name}.png")
        )
        assert row["metrics"]["keeps"] == pytest.approx(-abs(result - source).mean(), abs=1 / 255)
        assert read_record(path).pictures == {"image": digest_of(Image.open(f"{name}.png"))}
    Image.new("RGB", (32, 32), "green").save("blue.png")
    capsys.readouterr()
    assert main(argv) == 2
    assert "prompts.pictures_sha256 is" in capsys.readouterr().err


def test_several_prompts_end_in_one_table_in_a_folder_named_for_their_set(
    capsys,
):
    argv = [
        "generate",
        "--prompts-file",
        "edits.jsonl",
        *HOW,
        "--algorithm",
        "best-of-n",
        "--budget",
        "3nfe",
    ]
    assert main([*argv, "--keep", "2", "--compare", "keep-all"]) == 0
    said = capsys.readouterr().out
    assert sum(line.startswith("| mean ") for line in said.splitlines()) == 2
    folder = Path("outputs/0001-edits")
    with open(folder / "table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["prompt"], row["algorithm"]) for row in rows} == {
        ("a red circle", n) for n in ("best-of-n", "keep-all")
    }
    assert all((folder / row["file"]).is_file() and float(row["scenes"]) >= 0 for row in rows)
