"""Files in data/ that an earlier state of ttsnap wrote: they open for ever.

Each was written by a command, with `--device cpu --dtype float32 --steps 8`: images by `generate`
(from noise, from a draft, in a group, from a branch, of a picture, drawn large), recordings by
`record` (one of them interrupted), a benchmark by `bench`, a schedule by `tune`. A file is added
where a format gains something, and none is changed.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from ttsnap.algorithms import make_algorithm
from ttsnap.algorithms.seed_pruning import SeedPruning
from ttsnap.cli import main
from ttsnap.core.cost import Cost
from ttsnap.recordings.folder import load_recording, read_images
from ttsnap.results.record import read_record

DATA = Path(__file__).parent / "data"
ON = ("--device", "cpu", "--dtype", "float32")
RECORD = (
    *("record", "--prompts-file", "prompts.txt", "--seeds", "8", "--draft", "embedded"),
    *("--score-steps", "[0, 3]", "--steps", "8", *ON, "--out"),
)
BENCH = (
    *("bench", "--prompts-file", "prompts.txt", "--algorithms", "best-of-n", "seed-pruning"),
    *("--budget", "20nfe", "--steps", "8", *ON, "--out", "bench"),
)


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """A folder with copies of the files, in which the test runs."""
    shutil.copytree(DATA, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    written = json.loads((DATA / "bench/bench.json").read_text())["versions"]
    for module in ("ttsnap.cli.bench", "ttsnap.recordings.record"):
        monkeypatch.setattr(f"{module}.versions", lambda *_: written)
    return tmp_path


def test_images_say_how_they_were_made():
    records = {path.stem: read_record(path) for path in DATA.glob("*.png")}
    assert {name: record.image.seed for name, record in records.items()} == {
        "noise": 4,
        "draft": 10,
        "group": 3,
        "branch": 1,
        "edit": 7,
        "large": 0,
    }
    for name, record in records.items():
        assert record.model == "embedded", name
        assert record.dtype == "float32", name
        assert record.call["num_inference_steps"] in (4, 8), name
        assert record.image.branched is (name == "branch"), name
    assert records["draft"].sampler.finishes
    assert records["group"].image.first_seed == 0
    assert records["group"].sampler.variety == "repel:4"
    assert set(records["edit"].pictures or {}) == {"image"}
    assert records["large"].image.drawn == 4
    assert records["branch"].options == {"n": 2}
    assert records["branch"].sampler.kernel == "sde"
    assert records["noise"].image.nfe == 16
    assert records["noise"].image.batches


def test_images_are_made_again(copied, capsys):
    assert main(["replay", *(f"{name}.png" for name in ("noise", "draft", "group"))]) == 0
    assert main(["replay", "edit.png", "--image", "noise.png"]) == 0
    apart = re.findall(r"largest difference from \w+\.png: (\d+) of 255", capsys.readouterr().out)
    assert len(apart) == 4
    # last digits depend on the processor
    assert max(map(int, apart)) <= 2
    assert main(["replay", "large.png"]) == 0
    capsys.readouterr()
    assert main(["replay", "branch.png"]) == 2
    assert "branch of its seed" in capsys.readouterr().err


def test_a_trace_and_a_schedule_are_read():
    trace = json.loads((DATA / "trace.json").read_text())
    assert trace["settings"]["algorithm"] == "seed-pruning"
    tuned = json.loads((DATA / "tuned.json").read_text())
    made = make_algorithm(tuned.pop("name"), **tuned)
    assert isinstance(made, SeedPruning)
    assert made.draft_share == 0.218


def test_recordings_are_read():
    recording = load_recording(DATA / "recording")
    assert recording.prompts == ("two red circles", "a green cross")
    assert recording.scored == (True, False, False, True, *[False] * 4, True)
    assert list(map(str, recording.looks)) == ["draft:1@0"]
    assert recording.price.flops.nfe == 765401088.0
    assert recording.price.passes_per_draft == 1
    assert not np.isnan(recording.scores[..., list(recording.scored), :]).any()
    start = load_recording(DATA / "images").price.start
    assert (start.size, start.first) == (4, 1)
    assert start.cost == Cost(4, coupled=4)
    images = list(read_images(DATA / "images"))
    assert {(image.seed, image.step) for image in images} == {
        (seed, step) for seed in range(4) for step in (3, 7)
    }


def test_what_was_begun_is_gone_on_with(copied, capsys):
    unit = (copied / "begun/unit-00000.safetensors").stat().st_mtime_ns
    assert unit
    assert main([*RECORD, "begun"]) == 0
    begun = load_recording("begun")
    whole = load_recording(DATA / "recording")
    np.testing.assert_array_equal(begun.columns[0], whole.columns[0])
    np.testing.assert_allclose(begun.columns, whole.columns, atol=1e-3)
    # finished, so that nothing is recorded again
    before = (copied / "recording/scores.safetensors").read_bytes()
    assert main([*RECORD, "recording"]) == 0
    assert (copied / "recording/scores.safetensors").read_bytes() == before


def test_a_benchmark_is_gone_on_with(copied):
    kept = copied / "bench/best-of-n/00000/samples/00000.png"
    before = kept.stat().st_mtime_ns
    gone = copied / "bench/seed-pruning/00001/found-00000.json"
    seed = json.loads(gone.read_text())["seed"]
    gone.unlink()
    assert main(BENCH) == 0
    assert kept.stat().st_mtime_ns == before
    assert json.loads(gone.read_text())["seed"] == seed
    rows = (copied / "bench/results.jsonl").read_text().splitlines()
    assert len(rows) == 4
