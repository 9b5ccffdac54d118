"""Videos on disk: what is written comes back, metadata and all; what strangers wrote is read or
refused."""

from __future__ import annotations

import json
import sys
import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from tests import bombs
from ttsnap import SeedPruning, search
from ttsnap.algorithms.keep_all import KeepAll
from ttsnap.core import utility
from ttsnap.core.selection import Selection
from ttsnap.engine.live import LiveEngine
from ttsnap.files.pictured import exif_with, texts_in, video_pixels
from ttsnap.options.call import VideoOptions
from ttsnap.options.engine import EngineOptions
from ttsnap.options.record import RecordOptions
from ttsnap.options.sampler import SamplerOptions
from ttsnap.recordings.record import record
from ttsnap.results import Sound, outputs, save_video
from ttsnap.results.media import durations, still, to_uint8
from ttsnap.results.rank import find_images, find_prompts, rank, read_source, write_ranking
from ttsnap.results.record import SearchRecord, read_record
from ttsnap.reward_models.registry import make_reward

from ..clips import Clips, Mean, Motion, Near  # noqa: TID252

FORMATS = ["webp", "png", *(["mp4"] if bombs.AV else [])]
READ = ("PNG", "WEBP")
RECORD = SearchRecord(
    "toy", "Ode", {"num_inference_steps": 6}, SamplerOptions(), "seed-pruning", {}, "60nfe"
)


@pytest.fixture(scope="module")
def finished():
    recorder, live = (
        outputs.Recorder(),
        LiveEngine(Clips(6, size=(32, 48)), [Mean(), Motion()], EngineOptions(4)),
    )
    algorithm = SeedPruning(5, (0.6, 0.5), steps=(2, 4))
    return search(
        ["a bear 🐻 dances", "b: c/d"],
        algorithm,
        live,
        selection=Selection(keep=2),
        on_event=recorder,
    ), recorder


@pytest.mark.parametrize("ending", FORMATS)
def test_what_is_written_comes_back_and_is_ranked_by_its_frames(finished, tmp_path, ending):
    results, _ = finished
    written = outputs.write_results(tmp_path, results, RECORD, VideoOptions(8.0, ending))
    assert {"trace.json", "000-a-bear-dances-sheet.png", "001-b-c-d-sheet.png"} < {
        p.name for p in tmp_path.iterdir()
    }
    for paths, result in zip(written, results, strict=True):
        for path, found in zip(paths, result.images, strict=True):
            assert path.suffix == f".{ending}"
            told, data = read_record(path).image, path.read_bytes()
            assert (told.prompt, told.seed, told.fps) == (result.prompt, found.seed, 8.0)
            assert told.scores == pytest.approx(found.scores)
            text = texts_in(data, path, READ)["parameters"]
            assert text.splitlines()[0] == result.prompt
            assert f"Seed: {found.seed}, Size: 48x32" in text
            made, shown = (
                to_uint8(found.pixels).astype(int),
                video_pixels(data, path, READ).astype(int),
            )
            assert shown.shape == made.shape == (6, 32, 48, 3)
            off = abs(made - shown)[:, :, 4:]  # the bar's edge at the left loses its colour first
            assert off.max() <= {"png": 0, "webp": 24, "mp4": 24}[ending]
            assert off.mean() <= {"png": 0, "webp": 3, "mp4": 3}[ending]
    entry = json.loads((tmp_path / "trace.json").read_text())["results"][0]
    assert entry["images"][0]["file"] == written[0][0].name
    Image.new("RGB", (8, 8)).save(
        jpeg := tmp_path / "tool.jpeg", exif=exif_with({"parameters": "a cat\nSteps: 20"})
    )
    assert list(find_prompts([*written[0], jpeg]).values()) == [results[0].prompt] * 2 + ["a cat"]
    jpeg.unlink()
    Image.new("RGB", (48, 32), "white").save(tmp_path / "white.jpg")
    ranked = rank(
        dict.fromkeys(find_images(tmp_path), "x"), [Mean(), Motion()], utility.make([1.0, 0.0])
    )
    scores = {entry.path: entry.scores for entry in ranked}
    for path, candidate in zip(written[0], results[0].images, strict=True):
        assert scores[path] == pytest.approx(
            list(candidate.scores.values()), abs=2e-3 if ending == "png" else 0.02
        )
    assert ranked[-1].path.name == "white.jpg"
    assert "reward 'motion' scores videos" in ranked[-1].error
    assert all(
        path.stat().st_size > 0
        for path in write_ranking(tmp_path / "ranked", ranked, ["mean", "motion"])
    )


@pytest.mark.parametrize("ending", ["webp", "png"])
def test_frames_stay_as_long_as_they_should(tmp_path, ending):
    save_video(path := tmp_path / f"a.{ending}", pictures(5), fps=24)
    with Image.open(path) as picture:
        shown = [frame.copy().info["duration"] for frame in ImageSequence.Iterator(picture)]
    assert shown == pytest.approx(durations(5, 24))
    assert (sum(durations(240, 24)), set(durations(240, 24))) == (10_000, {41, 42})


def pictures(number=3):
    return [Image.new("RGB", (8, 8), (40 * i, 0, 0)) for i in range(number)]


def test_an_mp4_is_one_that_players_read_with_its_sound(tmp_path):
    """The colours come back, and a tone of 500 Hz on the left alone: at its frequency, as loud."""
    av = pytest.importorskip("av")
    colours = [(200, 30, 30), (30, 200, 30), (30, 30, 200), (128, 128, 128)]
    wave = 0.5 * np.sin(2 * np.pi * 500 * np.arange(8000) / 16000).astype(np.float32)
    sound = Sound(np.stack([wave, np.zeros_like(wave)]), 16000)
    frames = [Image.new("RGB", (33, 18), colour) for colour in colours]
    save_video(path := tmp_path / "a.mp4", frames, fps=23.976, sound=sound)
    with av.open(str(path)) as container:
        (stream,), (heard,) = container.streams.video, container.streams.audio
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (stream.width, stream.height, stream.frames) == (32, 18, 4)
        assert float(stream.average_rate) == pytest.approx(23.976, abs=1e-3)
        assert stream.codec_context.colorspace == 1
        assert (heard.rate, heard.layout.name) == (16000, "stereo")
        shown = [
            frame.to_ndarray(format="rgb24").mean((0, 1)) for frame in container.decode(video=0)
        ]
        container.seek(0)
        waves = np.concatenate([frame.to_ndarray() for frame in container.decode(audio=0)], axis=1)
    assert np.abs(np.array(shown) - colours).max() < 4  # so that the matrix is the one that it says
    assert waves.shape[0] == 2
    # whole frames of AAC, and one that only begins
    assert 8000 <= waves.shape[1] <= 8000 + 2 * 1024
    tone = np.abs(np.fft.rfft(waves[0, 2048 : 2048 + 4096]))
    assert np.argmax(tone) == 500 * 4096 // 16000
    assert 2 * tone.max() / 4096 == pytest.approx(0.5, abs=0.03)
    assert np.abs(waves[1]).max() < 0.02


@pytest.mark.parametrize(
    ("name", "number", "more", "message"),
    [
        ("a.gif", 1, {}, r"'a\.gif'"),
        ("a.webp", 1, {"fps": 0.0}, "1 frames and fps 0"),
        ("a.webp", 0, {}, "0 frames"),
        ("a.webp", 1, {"sound": Sound(np.zeros((2, 9), np.float32), 8000)}, r"sound.*'a\.webp'"),
        ("a.mp4", 1, {"sound": Sound(np.zeros((3, 9), np.float32), 8000)}, r"channel.*\(3, 9\)"),
    ],
)
def test_what_cannot_be_written_is_refused(name, number, more, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        save_video(tmp_path / name, pictures(number), **more)
    assert not list(tmp_path.iterdir())


def test_without_pyav_an_mp4_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    for refused in (
        lambda: save_video(tmp_path / "a.mp4", pictures()),
        lambda: texts_in(b"\0\0\0\x20ftypisom", "a.mp4"),
    ):
        with pytest.raises(ValueError, match=r"a\.mp4.*PyAV"):
            refused()
    assert not list(tmp_path.iterdir())


def test_a_still_of_a_video_shows_its_frames_in_their_order():
    video = torch.arange(8.0)[:, None, None, None].expand(8, 3, 32, 64) / 8
    for columns, size, places in (
        (2, (130, 66), [(0, 0), (66, 0), (0, 34), (66, 34)]),
        (4, (262, 32), None),
    ):
        picture = still(video, columns)
        assert picture.size == size
        corners = places or [(66 * i, 0) for i in range(4)]
        assert [picture.getpixel(at)[0] for at in corners] == [
            round(255 * t / 8) for t in (1, 3, 5, 7)
        ]
        assert picture.getpixel((64, 0)) == (255, 255, 255)
    assert still(video[:1]).size == (64, 32)
    assert np.array_equal(np.asarray(still(video[3])), to_uint8(video[3]))


def test_sheets_and_pages_show_frames(finished, tmp_path):
    results, recorder = finished
    assert {thumbnail.size for thumbnail in recorder.thumbnails[0].values()} == {(96, 65)}
    assert "<img" in results[0]._repr_html_()
    assert outputs.write_enlarged(tmp_path / "best.png", results[0].best.pixels)
    with Image.open(tmp_path / "best.png") as large:
        assert large.height == 32 * outputs.TIMES
        assert large.width > 4 * 48 * outputs.TIMES


def test_recordings_keep_no_pictures_of_videos_and_edits_have_none_as_their_source(
    tmp_path,
):
    live = LiveEngine(Clips(5), [Mean(), Motion()], EngineOptions(4, frames=2))
    made = record(live, ["a"], tmp_path / "scores", RecordOptions(seeds=3))
    (result,) = search(["a"], KeepAll(3), live)
    assert np.array_equal(made.scores[0], result.particles.scores)
    assert made.price.calls(2) == 3
    with pytest.raises(ValueError, match="recordings keep pictures"):
        record(live, ["a"], tmp_path / "pictures", RecordOptions(seeds=3, images=True))
    save_video(path := tmp_path / "a.webp", pictures())
    with pytest.raises(ValueError, match=r"--source .*a\.webp"):
        read_source(path, [make_reward(Near())])


@pytest.mark.parametrize("make", [bombs.animated_webp, *([bombs.mp4] if bombs.AV else [])])
def test_a_video_is_decoded_as_far_as_its_limit(make, monkeypatch):
    data = make(40, 256)
    pixels = video_pixels(data, "x", READ)
    assert pixels.shape == (40, 256, 256, 3)
    with monkeypatch.context() as patched:
        patched.setattr("ttsnap.files.pictured.FRAMES", 39)
        with pytest.raises(ValueError, match="256 x 256"):
            video_pixels(data, "x", READ)
    monkeypatch.setattr("ttsnap.files.pictured.ALL_PIXELS", 10 * 256 * 256)
    tracemalloc.start()
    with pytest.raises(ValueError, match="256 x 256"):
        video_pixels(data, "x", READ)
    assert tracemalloc.get_traced_memory()[1] < pixels.nbytes / 2
    tracemalloc.stop()
