"""Random access into tars: the right entries, and refusals that name the file."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from ttsnap.distill import data
from ttsnap.distill.data import FrameAt, Frames

from .kills import calls
from .world import LEVELS, estimate, write_recording


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "r"
    return write_recording(folder, prompts=6, seeds=3, steps=(0, 2, 4), latents=True)


def rounded(*at):
    return torch.from_numpy((estimate(*at) * 255).round() / 255).float()


@pytest.mark.parametrize("cache", [0, 10_000, 10**6])
def test_entries_are_what_was_written(recording, cache):
    frames = Frames([recording], cache=cache)
    assert frames.prompts == tuple(f"prompt {p}" for p in range(6))
    assert (frames.steps, frames.last, frames.levels) == ((0, 2), 4, LEVELS)
    entries = [FrameAt(5, 0, 2), FrameAt(0, 2, 4), FrameAt(3, 1, 0), FrameAt(4, 1, 0)]
    for _ in range(2):
        pixels = frames.load(entries, "pixels")
        torch.testing.assert_close(
            pixels, torch.stack([rounded(*e) for e in entries]), rtol=0, atol=1e-6
        )
        latents = frames.load(entries, "latents")
        expected = np.stack([2 * estimate(*e)[:2] - 1 for e in entries])
        torch.testing.assert_close(latents, torch.from_numpy(expected).float(), rtol=0, atol=1e-3)
    assert frames.named(FrameAt(0, 2, 0)) == "prompt 'prompt 0', seed 7"
    again = pickle.loads(pickle.dumps(frames))  # as to a spawned worker
    torch.testing.assert_close(again.load(entries, "pixels"), pixels)


def test_steps_and_levels(recording):
    frames = Frames([recording])
    assert frames.select() == (0, 2)
    assert frames.select(steps=[2]) == (2,)
    assert frames.select(levels=[0.5, 1.0]) == (0, 2)
    for wrong, said in (
        ({"steps": [0, 3]}, r"step 3 was not recorded; these were: \[0, 2\]"),
        ({"steps": [4]}, "step 4 was not"),  # the final image is no estimate
        ({"levels": [0.6]}, r"level 0\.6 was not recorded; these were: 1\.000, 0\.500"),
    ):
        with pytest.raises(ValueError, match=said):
            frames.select(**wrong)
    frames.check_stored("latents", [0, 2, 4])
    with pytest.raises(ValueError, match=r"\('prompt 0'\), seed 5, step 1, .*17"):
        frames.check_stored("pixels", [1])


def test_recordings_are_joined_and_told_apart(recording, tmp_path):
    more = write_recording(tmp_path / "more", prompts=2, seeds=2, offset=20, first_seed=0)
    joined = Frames([recording, more])
    assert joined.prompts[-2:] == ("prompt 20", "prompt 21")
    assert joined.seeds.tolist() == [3] * 6 + [2] * 2
    assert joined.steps == (0, 2)  # what both have
    torch.testing.assert_close(
        joined.load([FrameAt(7, 1, 2)], "pixels")[0], rounded(21, 1, 2), rtol=0, atol=1e-6
    )
    with pytest.raises(ValueError, match=r"more .*latents"):
        joined.check_stored("latents", [0])
    copy = write_recording(tmp_path / "moved", prompts=6, seeds=3, steps=(0, 2, 4), latents=True)
    assert joined.identity != Frames([recording]).identity == Frames([copy]).identity
    other = write_recording(tmp_path / "other", prompts=1, levels=(1.0, 0.6, 0.0), steps=(0, 1, 2))
    with pytest.raises(ValueError, match=r"other .*noise levels .*r;"):
        Frames([recording, other])


def test_damaged_shards_are_named_and_left_as_they_are(tmp_path):
    folder, verified = (
        write_recording(tmp_path / "r", prompts=5, seeds=2, steps=(1, 4)),
        tmp_path / "verified.json",
    )
    with calls(data, "sha256") as hashed:
        for _ in range(2):  # each is checked once
            Frames([folder], verified=verified)
    assert [path.name for (path,) in hashed] == ["unit-00000.tar", "unit-00001.tar"]
    shard = folder / "images" / "unit-00001.tar"
    whole = shard.read_bytes()
    flipped = bytearray(whole)
    flipped[700] ^= 1
    for broken in (whole[:-512], whole[: len(whole) // 2], bytes(flipped), b""):
        shard.write_bytes(broken)
        with pytest.raises(ValueError, match=r"unit-00001\.tar .*SHA-256"):
            Frames([folder], verified=verified)
        assert shard.read_bytes() == broken
        verified.write_text("{")
    shard.unlink()
    with pytest.raises(ValueError, match=r"unit-00001\.tar .*missing"):
        Frames([folder])
    shard.write_bytes(whole)
    frames = Frames([folder])
    shard.write_bytes(whole[:600])
    with pytest.raises(ValueError, match=r"unit-00001\.tar .*cut"):
        frames.load([FrameAt(4, 1, 4)], "pixels")


def test_folders_that_hold_no_images(tmp_path):
    (tmp_path / "empty").mkdir()
    write_recording(tmp_path / "scores", prompts=1, images=False)
    (write_recording(tmp_path / "unfinished", prompts=1) / "scores.safetensors").unlink()
    with pytest.raises(ValueError, match="no recordings"):
        Frames([])
    for name, said in (
        ("nowhere", r"no such recording: .*nowhere"),
        ("empty", r"no readable recording\.json"),
        ("scores", "without images"),
        ("unfinished", "unfinished: 0 of 1 units"),
    ):
        with pytest.raises(ValueError, match=said):
            Frames([tmp_path / name])
    only_final = Frames([write_recording(tmp_path / "final", prompts=1, steps=(4,))])
    with pytest.raises(ValueError, match="no estimate before"):
        only_final.select()
