"""`ttsnap record` as a new user meets it, on the embedded model, and its recordings replayed
against live searches."""

from __future__ import annotations

import os
import re
import signal

import numpy as np
import pytest

from ttsnap import BestOfN, SeedPruning, search
from ttsnap.cli import common, main
from ttsnap.pipelines import defaults, load
from ttsnap.recordings.folder import load_recording, read_images
from ttsnap.recordings.replay import ReplayEngine
from ttsnap.reward_models.scenes import ScenesReward

MEASURED = (
    "seconds",
    "peak",
    "reserved",
    "memory",
    "energy",
    "verifier",
    "calibration",
)  # of live runs only
PROMPTS = ["two red circles and a blue square", "a green cross above a yellow triangle"]
SIZES = ["--seeds", "6", "--seed", "3", "--steps", "4", "--batch-size", "1", "--device", "cpu"]
"""Four units, of a prompt and three seeds each."""


@pytest.fixture(autouse=True)
def _inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_interrupted_resumed_and_replayed(tmp_path, capsys, monkeypatch):
    argv = ["record", *PROMPTS, *SIZES, "--images", "--out"]
    assert main([*argv, "whole"]) == 0
    out = capsys.readouterr().out
    assert "noise | scenes" in out
    assert len(re.findall(r"^\| +\d \| [01]\.\d{3} \|", out, re.MULTILINE)) == 4
    assert "2 prompts x 6 seeds recorded in whole, their images in images/" in out

    score, calls = ScenesReward.__call__, 0

    def interrupted(*args):
        nonlocal calls
        calls += 1
        if calls == 25:
            os.kill(os.getpid(), signal.SIGINT)
        return score(*args)

    monkeypatch.setattr(ScenesReward, "__call__", interrupted)
    assert main([*argv, "part"]) == 130
    error = capsys.readouterr().err
    assert "interrupted; 2 of 4 units of work are safe in part; run the same command again" in error
    with pytest.raises(ValueError, match=r"unfinished: 2 of 4 units"):
        load_recording("part")
    assert main([*argv, "part"]) == 0
    assert contents(tmp_path / "part") == contents(tmp_path / "whole")
    assert len(list(read_images("part"))) == 2 * 6 * 5
    # Finished already: nothing is computed.
    calls = 0
    assert main([*argv, "part"]) == 0
    assert calls == 0

    recording = load_recording("part")
    assert not np.isnan(recording.scores).any()
    pipe = load()
    pipe.set_progress_bar_config(disable=True)
    call = {**defaults(), "num_inference_steps": 4, "reward": "scenes", "seed": 3}
    for algorithm in (BestOfN(5), SeedPruning(6, (0.5, 0.5), steps=(0, 2))):
        live = pipe(PROMPTS, search=algorithm, budget="21nfe", **call).search
        again = search(recording.prompts, algorithm, ReplayEngine(recording), "21nfe", seed=3)
        for a, b in zip(live, again, strict=True):
            assert a.best.seed == b.best.seed
            assert a.best.reward == pytest.approx(b.best.reward, abs=1e-6)
            for key in ("uids", "stop", "drop"):
                assert [move[key] for move in a.trace] == [move[key] for move in b.trace]
            told, again_told = a.spent.to_json(), b.spent.to_json()
            timeless = [k for k in told if not k.startswith(MEASURED)]
            assert {k: told[k] for k in timeless} == {k: again_told[k] for k in timeless}


@pytest.mark.parametrize(("gpus", "dtype"), [(True, "auto"), (False, "bfloat16")])
def test_workers_on_cpus_have_one_dtype_and_those_on_gpus_their_own(gpus, dtype, monkeypatch):
    asked = []

    def record(builder, *_, **__):
        asked.append(builder.spec.model.dtype)
        raise KeyboardInterrupt

    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx512_bf16": True})
    monkeypatch.setattr("ttsnap.cluster.devices.connect", lambda *_: None)
    monkeypatch.setattr("ttsnap.cluster.recorders.on_gpus", lambda *_: gpus)
    monkeypatch.setattr("ttsnap.cluster.recorders.record", record)
    assert main(["record", PROMPTS[0], "--workers", "2", "--out", "o"]) == 130
    assert asked == [dtype]


def test_settings_that_differ_are_refused(tmp_path, capsys, monkeypatch):
    argv = ["record", PROMPTS[0], "--seeds", "2", "--steps", "2", "--device", "cpu", "--out", "r"]
    assert main([*argv, "--score-steps", "[1]"]) == 0
    assert load_recording("r").scored == (False, True, True)
    before = contents(tmp_path / "r")
    capsys.readouterr()
    for extra, message in [
        ([], "steps has 2 entries, not 3"),
        (["--seed", "4"], "first_seed is 0, not 4"),
        (
            ["--score-steps", "[1]", "--guidance", "3"],
            r"info\.call\.guidance_scale is 4\.0, not 3\.0",
        ),
        (["--score-steps", "[1]", "--kernel", "sde"], 'info.kernel is "pipeline", not "sde"'),
        (
            ["--score-steps", "[1]", "--dtype", "bfloat16"],
            'info.dtype is "float32", not "bfloat16"',
        ),
    ]:
        assert main([*argv, *extra]) == 2
        error = capsys.readouterr().err
        assert re.search(message, error), error
    monkeypatch.setattr(common, "load_model", lambda *_: pytest.fail("the model was loaded"))
    assert main([*argv, "--score-steps", "[1]", "--reward", "brightness"]) == 2
    assert "brightness" in capsys.readouterr().err
    assert contents(tmp_path / "r") == before
