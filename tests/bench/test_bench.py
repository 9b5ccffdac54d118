"""`ttsnap bench` as a new user meets it, on the embedded model, and its folder as scorers read
it."""

from __future__ import annotations

import functools
import io
import json
import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ttsnap.cli import common, main
from ttsnap.results.record import read_record
from ttsnap.reward_models.scenes import ScenesReward

from ..said import error_of  # noqa: TID252

SET = [
    {"tag": "counting", "prompt": "two red circles"},
    {"tag": "colors", "prompt": "a green cross", "include": []},
]
ARMS = ["best-of-n", "svdd kernel=sde n=2"]
QUICK = [
    "--prompts-file",
    "set.jsonl",
    "--budget",
    "4nfe",
    "--steps",
    "2",
    "--device",
    "cpu",
    "--together",
    "1",
]
ARGV = ["bench", *QUICK, "--repeats", "2", "--algorithms", *ARMS]


LOAD = common.load_model


@functools.cache
def once(whole, *what):
    return LOAD(*what)


@pytest.fixture(autouse=True)
def _inside(shallow_model, request, tmp_path, monkeypatch):
    whole = "ray_session" in request.fixturenames  # as in `shallow_model`
    monkeypatch.setattr(common, "load_model", functools.partial(once, whole))
    monkeypatch.chdir(tmp_path)
    Path("set.jsonl").write_text("\n".join(map(json.dumps, SET)))


def images(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in Path(folder).glob("*/*/samples/*.png")
    }


def as_geneval(folder):
    """The images that GenEval's evaluate_images.py would score, with their metadata."""
    return {
        (prompt.name, image.name): json.loads((prompt / "metadata.jsonl").read_text())
        for prompt in folder.iterdir()
        if prompt.is_dir() and prompt.name.isdigit()
        for image in (prompt / "samples").iterdir()
        if re.match(r"\d+\.png", image.name)
    }


def test_interrupted_gone_on_with_and_read_by_scorers(capsys, monkeypatch):
    assert main([*ARGV, "--out", "whole"]) == 0
    out, error = capsys.readouterr()
    assert "2 of 2 prompts of set.jsonl (JSON Lines), 8 images" in error
    assert "2 prompts x 2 images, a budget of 4nfe each" in out
    assert [
        len(row.split("|")) for row in out.splitlines() if row.startswith("| svdd kernel=sde")
    ] == [10, 5]

    score, calls = ScenesReward.__call__, 0

    def interrupted(*args):
        nonlocal calls
        calls += 1
        if calls == 10:
            os.kill(os.getpid(), signal.SIGTERM)
        return score(*args)

    monkeypatch.setattr(ScenesReward, "__call__", interrupted)
    assert main([*ARGV, "--out", "part"]) == 143
    there = images("part")
    assert 0 < len(there) < 8
    said = (
        f"interrupted; {len(there)} of 8 images are safe in part; run the same command again to"
        " resume"
    )
    assert said in capsys.readouterr().err
    monkeypatch.setattr(ScenesReward, "__call__", score)
    gone = "best-of-n/00001/samples/00000.png"
    Path("part", gone).write_bytes(b"cut off")
    # may be asked for on the way: they decide nothing
    assert main([*ARGV, "--sheets", "--out", "part"]) == 0
    assert images("part") == images("whole")
    sheets = {(path.parts[0], path.name) for path in Path().glob("*/*/*/sheet-*.png")}
    assert sheets == {("part", "sheet-00000.png"), ("part", "sheet-00001.png")}
    assert len(images("whole")) == 8
    assert read_record(Path("whole", gone)).dtype == "float32"
    # Finished already: no model is asked for.
    monkeypatch.setattr(common, "load_model", None)
    assert main([*ARGV, "--out", "part"]) == 0
    capsys.readouterr()

    rows = [json.loads(line) for line in Path("whole", "results.jsonl").read_text().splitlines()]
    assert [(row["algorithm"], row["index"], row["repeat"]) for row in rows] == [
        (arm, index, repeat) for arm in ARMS for index in range(2) for repeat in range(2)
    ]
    assert all(row["spent"]["nfe"] <= 4 and Path("whole", row["image"]).is_file() for row in rows)
    assert [row["seed"] // 10**6 for row in rows] == [row["repeat"] for row in rows]
    summary = json.loads(Path("whole", "summary.json").read_text())
    values = {
        name: np.array([row["scores"]["scenes"] for row in rows if row["algorithm"] == name])
        for name in ARMS
    }
    for line in summary["algorithms"]:
        by_prompt = values[line["name"]].reshape(2, 2).mean(1)
        paired = by_prompt - values["best-of-n"].reshape(2, 2).mean(1)
        for told, by in (
            (line["scores"]["scenes"], by_prompt),
            (line["differences"]["scenes"], paired),
        ):
            assert (told["mean"], told["error"]) == pytest.approx(
                (by.mean(), by.std(ddof=1) / 2**0.5)
            )

    for arm in ("best-of-n", "svdd-kernel-sde-n-2"):
        folder = Path("whole", arm)
        assert as_geneval(folder) == {
            (f"{i:05d}", f"{n:05d}.png"): SET[i] for i in range(2) for n in range(2)
        }
        lines = [json.loads(line) for line in (folder / "evalscope.jsonl").read_text().splitlines()]
        assert [(line["prompt"], line["category"]) for line in lines[::2]] == [
            (p["prompt"], p["tag"]) for p in SET
        ]
        assert all(
            Path(line["image_path"]).is_absolute() and Path(line["image_path"]).is_file()
            for line in lines
        )
        assert len({line["id"] for line in lines}) == 4
        paths = json.loads((folder / "image_paths.json").read_text())
        assert paths == {line["prompt"]: line["image_path"] for line in lines[::2]}

    for extra, said in [
        (["--seed", "4"], "seed is 0, not 4"),
        (["--algorithms", "best-of-n"], "algorithms has 2 entries, not 1"),
        (["--guidance", "3"], r"call\.guidance_scale is 4\.0, not 3\.0"),
    ]:
        assert main([*ARGV, *extra, "--out", "whole"]) == 2
        assert re.search(said, error_of(capsys))


def test_each_algorithm_takes_the_steps_that_it_was_tuned_for(
    capsys,
):
    Path("tuned.json").write_text(
        '{"name": "seed-pruning", "keep": [0.5], "levels": [0.5], "denoising_steps": 2}'
    )
    bench = [
        "bench",
        "--prompts-file",
        "set.jsonl",
        "--prompts",
        "0:1",
        "--device",
        "cpu",
        "--algorithms",
    ]
    assert main([*bench, "best-of-n", "tuned.json", "--budget", "20nfe", "--out", "own"]) == 0
    made = {
        name.split("/")[0]: read_record(Path("own", name)).call["num_inference_steps"]
        for name in images("own")
    }
    assert made == {"best-of-n": 20, "tuned": 2}
    capsys.readouterr()
    assert main([*bench, "tuned.json", "--budget", "6nfe", "--steps", "3", "--out", "given"]) == 0
    assert (
        "tuned: the schedule was tuned for 2 denoising steps, and this search takes 3"
        in capsys.readouterr().err
    )
    (image,) = images("given")
    assert read_record(Path("given", image)).call["num_inference_steps"] == 3
    assert main([*bench, "best-of-n", "tuned.json", "--budget", "2images", "--out", "unfair"]) == 2
    assert "give a --budget as 400nfe" in error_of(capsys)


@pytest.mark.slow
def test_two_devices_make_the_same_images(ray_session):
    one = ["bench", *QUICK, "--algorithms", "best-of-n", "--out"]
    assert main([*one, "one"]) == 0
    assert main([*one, "two", "--devices", "2"]) == 0
    assert images("two").keys() == images("one").keys()
    for name, data in images("one").items():
        a, b = (np.asarray(Image.open(io.BytesIO(png)), int) for png in (data, images("two")[name]))
        assert abs(a - b).max() <= 1
