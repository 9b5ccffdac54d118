"""`ttsnap score`: ranks what is there and leaves it alone."""

from __future__ import annotations

import csv
import errno
import hashlib
import os
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from ttsnap.cli import main
from ttsnap.core.utility import mean
from ttsnap.results.rank import rank, write_ranking
from ttsnap.reward_models.registry import make_rewards

EDIT = """
def change(images, prompts, level, source):
    assert source.shape == (len(images), 3, 4, 5)
    return images.mean((1, 2, 3)) - source.mean((1, 2, 3))
change.needs = {"source"}
"""


@pytest.fixture
def folder(tmp_path):
    """Four grey images of two sizes with infotext, one of them a JPEG without, and a truncated
    one."""
    where = tmp_path / "images"
    where.mkdir()
    for name, grey, size in (("b.png", 200, 8), ("a.png", 50, 8), ("d.png", 120, 12)):
        info = PngImagePlugin.PngInfo()
        info.add_text(
            "parameters", f"a grey\nsquare {name}\nNegative prompt: blur\nSteps: 4, Seed: 1"
        )
        Image.fromarray(np.full((size, size, 3), grey, np.uint8)).save(where / name, pnginfo=info)
    (where / "c.png").write_bytes((where / "d.png").read_bytes()[:120])
    (where / "notes.txt").write_text("not an image")
    return where


@pytest.fixture
def refused(folder, tmp_path, capsys):
    """What `ttsnap score` says where it refuses, and writes nothing."""

    def refused(*more, where=folder, reward="brightness"):
        assert (
            main(
                [
                    "score",
                    str(where),
                    "--reward",
                    reward,
                    "--out",
                    str(tmp_path / "none"),
                    *map(str, more),
                ]
            )
            == 2
        )
        assert not (tmp_path / "none").exists()
        return capsys.readouterr().err

    return refused


def state(folder):
    return {
        p.name: (hashlib.sha256(p.read_bytes()).hexdigest(), p.stat().st_mtime_ns)
        for p in folder.iterdir()
    }


def table(out):
    with open(out / "scores.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_ranks_with_prompts_from_metadata_and_touches_nothing(folder, tmp_path):
    before, out = state(folder), tmp_path / "ranked"
    assert (
        main(["score", str(folder), "--reward", "brightness", "compressibility", "--out", str(out)])
        == 0
    )
    assert main(["score", str(folder), "--reward", "brightness", "--out", str(folder)]) == 2
    assert state(folder) == before
    rows = table(out)
    assert [Path(r["file"]).name for r in rows] == ["b.png", "d.png", "a.png", "c.png"]
    assert rows[0]["prompt"] == "a grey\nsquare b.png"
    assert float(rows[0]["brightness"]) == pytest.approx(200 / 255)
    assert "cannot be read" in rows[3]["error"]
    assert Image.open(out / "sheet.png").width > 500


def test_files_of_a_ranking_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    with monkeypatch.context() as disk:
        disk.setattr(
            os, "fsync", Mock(side_effect=OSError(errno.ENOSPC, "No space left on device"))
        )
        with pytest.raises(OSError, match="No space left"):
            write_ranking(tmp_path / "ranked", [], ["mean"])
    assert not list((tmp_path / "ranked").iterdir())
    first = write_ranking(tmp_path / "ranked", [], ["mean"])[0]
    with pytest.raises(OSError, match=r"already: .*scores\.csv"):
        write_ranking(tmp_path / "ranked", [], ["mean"])
    assert first.read_text().startswith("rank,file,mean,")


def test_a_reward_that_takes_one_image_and_writes_into_it_changes_no_other(folder):
    def vandal(images, prompts):
        if len(images) > 1:
            raise torch.OutOfMemoryError
        prompts.clear()
        return images.zero_().mean((1, 2, 3))

    paths, rewards = [folder / "a.png", folder / "b.png"], make_rewards([vandal, "brightness"])
    found = {r.path: r.scores for r in rank(dict.fromkeys(paths, ""), rewards, mean)}
    assert found == {
        paths[0]: (0.0, pytest.approx(50 / 255)),
        paths[1]: (0.0, pytest.approx(200 / 255)),
    }
    Image.new("RGBA", (8, 8), (200, 200, 200, 30)).save(paths[0])
    assert rank({paths[0]: ""}, rewards, mean)[0].scores == (0.0, pytest.approx(200 / 255))


def test_few_bytes_wait_for_images_of_their_size(folder, monkeypatch):
    """A folder of pictures of many sizes, or of large ones, is not held in memory as a whole."""
    for size in range(20, 30):
        for copy in "xy":
            Image.new("RGB", (size, size), (size, size, size)).save(folder / f"{size}{copy}.png")
    paths, sizes = sorted(folder.glob("2*.png")), []

    def brightness(images, prompts):
        sizes.append(len(images))
        return images.mean((1, 2, 3))

    found = []
    for most in (10**9, 3 * 29**2 - 1):
        monkeypatch.setattr("ttsnap.results.rank.MOST_BYTES", most)
        found.append(
            [r.path for r in rank(dict.fromkeys(paths, ""), make_rewards(brightness), mean)]
        )
    assert sizes[:10] == [2] * 10
    assert 1 in sizes[10:]
    assert found[0] == found[1]


def test_edits_are_compared_with_their_source(folder, tmp_path, refused):
    edit, before = tmp_path / "edit.py", tmp_path / "before.png"
    edit.write_text(EDIT)
    Image.new("RGB", (5, 4), (100, 100, 100)).save(before)
    common = ["score", str(folder), "--reward", f"{edit}:change", "brightness"]
    assert main([*common, "--source", str(before), "--out", str(tmp_path / "out")]) == 0
    rows = table(tmp_path / "out")
    found = {Path(r["file"]).name: float(r["change"]) * 255 for r in rows if not r["error"]}
    assert found == pytest.approx({"b.png": 100, "d.png": 20, "a.png": -50}, abs=1e-3)
    assert float(rows[0]["brightness"]) == pytest.approx(200 / 255)
    assert "give --source FILE" in refused(reward=f"{edit}:change")
    assert "no such image: nowhere.png" in refused(
        "--source", "nowhere.png", reward=f"{edit}:change"
    )
    assert f"(brightness); leave --source {before} out" in refused("--source", before)


def test_prompts_and_arguments_must_fit(folder, tmp_path, refused):
    Image.new("RGB", (4, 4)).save(folder / "e.jpg")
    assert "give --prompt or --prompts-file" in refused()
    prompts, out, empty = tmp_path / "prompts.txt", tmp_path / "1", tmp_path / "empty"
    prompts.write_text("a\nb\n")
    for more, said in (
        (["--prompts-file", prompts], "2 prompts for 5 images"),
        (["--prompts-file", prompts, "--prompt", "x"], "not both"),
        (["--prompts-file", "nowhere.txt"], "nowhere.txt"),
        (["--prompts-file", "/dev/zero"], "/dev/zero: no such"),
        (["--utility", "lovely"], "utility 'lovely'"),
        (["--batch-size", "0", "--prompt", "x"], "batch size must be at least 1"),
    ):
        assert said in refused(*more)
    assert (
        main(["score", str(folder), "--reward", "brightness", "--out", str(out), "--prompt", "x"])
        == 0
    )
    assert {r["prompt"] for r in table(out)} == {"x"}
    assert refused(where=out / "scores.csv")
    empty.mkdir()
    assert "holds no image" in refused(where=empty)
