"""Commands that take long, really interrupted: by Ctrl-C, by a scheduler, and killed; each then
ends its work."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ttsnap.algorithms import make_algorithm
from ttsnap.recordings.folder import load_recording

pytestmark = pytest.mark.slow
WORLD = Path(__file__).parents[1] / "distill" / "world.py"
PROMPTS = [
    f"{count} {colour} {shapes}"
    for count in ("two", "three")
    for colour in ("red", "green", "blue")
    for shapes in ("circles", "crosses", "squares")
]
ENDS = ((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL))
DRAFT = """
record: {prompts_file: draft.txt, steps: 6, seeds: 4}
rank: 2
updates: 30
batch: 4
validation: 0.2
validate_every: 30
checkpoint_every: 0
prompts: 2
seeds: 3
estimates: [0, 3]
"""


@pytest.fixture(scope="module")
def inside(tmp_path_factory):
    return tmp_path_factory.mktemp("interrupts")


def interrupted(inside, argv, progress):
    """What the command prints in the end that is interrupted thrice, each time after some progress,
    and resumed.

    progress: how much is done, by what lies in the folder. What is said to be safe is there."""
    said, env = inside / "said.txt", {**os.environ, "OMP_NUM_THREADS": "1"}

    def start():
        command = [sys.executable, "-m", "ttsnap", *argv]
        with said.open("w") as file:
            return subprocess.Popen(
                command,
                cwd=inside,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                env=env,
                start_new_session=True,
            )

    for number, status in ENDS:
        there, process, begun = progress(), start(), time.monotonic()
        while progress() <= there:
            assert process.poll() is None, (
                f"it ended before it was interrupted:\n{said.read_text()}"
            )
            assert time.monotonic() - begun < 300
            time.sleep(0.01)
        at = progress()
        if number == signal.SIGINT:  # as a terminal does, to all processes
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        process.communicate(timeout=200)
        assert process.returncode == status, said.read_text()
        assert progress() >= at
        if number != signal.SIGKILL:
            last = said.read_text().strip().splitlines()[-1]
            assert re.fullmatch(
                r"interrupted; .* safe in .*; run the same command again to resume", last
            ), last
    process = start()
    out, _ = process.communicate(timeout=400)
    assert process.returncode == 0, said.read_text()
    return out


def files(folder, pattern):
    return lambda: len(list(folder.glob(pattern)))


@pytest.fixture(scope="module")
def recording(inside):
    """Recorded by a command that was interrupted."""
    sizes = ["--seeds", "8", "--steps", "6", "--batch-size", "4", "--images", "--device", "cpu"]
    argv = ["record", *PROMPTS, *sizes, "--out", "recording"]
    interrupted(inside, argv, files(inside / "recording", "unit-*.safetensors"))
    return inside / "recording"


def test_record(recording):
    assert load_recording(recording).final.shape == (18, 8, 1)


def test_distill(inside, recording):
    settings = {
        "recordings": [str(recording)],
        "reward": "scenes",
        "student": {"kind": f"{WORLD}:TinyStudent"},
        "steps_per_level": 60,
        "groups": 2,
        "group_size": 4,
        "checkpoint_every": 0,
        "workers": 1,
        "device": "cpu",
    }
    (inside / "recipe.json").write_text(json.dumps(settings))
    metrics = inside / "aware" / "metrics.jsonl"
    argv = ["distill", "--config", "recipe.json", "--trust", "--out", "aware"]
    out = interrupted(
        inside, argv, lambda: metrics.read_bytes().count(b"\n") if metrics.exists() else 0
    )
    assert "the reward is in aware/reward" in out
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps == list(range(1, len(steps) + 1))


def test_distill_draft(inside):
    (inside / "draft.yaml").write_text(DRAFT)
    (inside / "draft.txt").write_text("\n".join(PROMPTS))
    folder = inside / "mine"

    def progress():
        """Units of the recording that are kept, then optimiser steps."""
        kept = [path for path in folder.glob("checkpoints/*") if path.name.isdigit()]
        return len(list(folder.glob("recording/images/*.tar"))) + max(
            (int(path.name) for path in kept), default=0
        )

    out = interrupted(
        inside, ["distill-draft", "--config", "draft.yaml", "--out", "mine"], progress
    )
    assert "the draft is in mine/draft" in out


def test_bench(inside):
    (inside / "set.txt").write_text("\n".join(PROMPTS[:9]))
    argv = [
        "bench",
        "--prompts-file",
        "set.txt",
        "--budget",
        "24nfe",
        "--steps",
        "6",
        "--device",
        "cpu",
    ]
    out = interrupted(
        inside, [*argv, "--out", "bench"], files(inside / "bench", "*/*/samples/*.png")
    )
    assert "9 prompts x 1 image" in out


def test_tune(inside, recording):
    tried, said = inside / "tuned.json.tried", inside / "said.txt"

    def progress():
        """Schedules tried, as the bar says."""
        shown = re.findall(r" (\d+)/80 ", said.read_text()) if said.exists() else []
        return max(map(int, shown), default=0)

    said.unlink(missing_ok=True)
    interrupted(
        inside, ["tune", str(recording), "--trials", "80", "--budgets", "12:48:12nfe"], progress
    )
    assert make_algorithm(str(inside / "tuned.json")).n is None
    assert not tried.exists()
