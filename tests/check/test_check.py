"""`ttsnap check`: the ladder on tiny models, what it says of models made worse on purpose, and what
it writes."""

from __future__ import annotations

import json
import re
import runpy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from zlib import crc32

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from tests.pipelines.tiny import SIZE, quiet, sd3
from ttsnap.check import environment
from ttsnap.check.cost import cost
from ttsnap.check.evidence import FORMAT, LISTED, page, write
from ttsnap.check.ladder import Figure, Rung, Setup
from ttsnap.check.parity import STOCK, parity
from ttsnap.check.signal import _effective, signal
from ttsnap.check.verdict import GO, NO_GO, UNDECIDED, verdict
from ttsnap.cli import main
from ttsnap.core.grid import Grid
from ttsnap.core.prompt import Prompt
from ttsnap.core.utility import mean
from ttsnap.files.settings import build
from ttsnap.options.engine import EngineOptions
from ttsnap.options.model import EMBEDDED
from ttsnap.options.sampler import SamplerOptions
from ttsnap.pipelines import load, upgrade
from ttsnap.recordings.replay import Recording
from ttsnap.request.request import EngineSpec
from ttsnap.reward_models.registry import make_rewards
from ttsnap.scenes import sample_prompts

ROOT = Path(__file__).parents[2]
RUNGS = {"parity": parity, "cost": cost, "signal": signal}
STEPS = {"num_inference_steps": 6, "guidance_scale": 1.0, **SIZE}
Make = Callable[..., Setup]


@pytest.fixture
def setup(tmp_path):
    def make(reward="brightness", pipe=None, call=STEPS, **more):
        pipe = quiet(upgrade(sd3())) if pipe is None else pipe
        spec = EngineSpec(
            None, make_rewards((reward,)), SamplerOptions(), EngineOptions(batch_size=8), call
        )
        # however fast this machine is
        (tmp_path / "plan.json").write_text('{"prompts": 5, "seeds": 16}')
        prompts = tuple(Prompt(text) for text in sample_prompts(5, 0))
        return Setup(pipe, spec, prompts, tmp_path, say=lambda _: None, **more)

    return make


def climbed(setup, *names):
    for name in names or RUNGS:
        setup.climb(name, RUNGS[name], 600)
    return setup.found


def test_rewards_that_say_the_same_are_named():
    rng = np.random.default_rng(0)
    final = rng.standard_normal((6, 8, 1, 1)) + np.zeros((1, 1, 2, 3))
    final[..., 1] = 2 * final[..., 0] + 1
    final[..., 2] = rng.standard_normal((6, 8, 1))
    whole = Recording(tuple("abcdef"), final, Grid((1.0, 0.0)), ("x", "y", "z"))
    rung, setup = Rung("signal"), SimpleNamespace(utility=mean, judged=False)
    _effective(setup, rung, whole)  # type: ignore[arg-type]
    assert ["rewards 1 and 2 rank images the same" in said for said in rung.said] == [True]
    assert 1 < rung.figures["effective-rewards:3"].value < 3
    assert 1 < rung.figures["effective-seeds:8"].value <= 8


def noise(images, prompts):
    """A reward that is shuffled: of every image a number that says nothing of another one, however
    near."""
    return torch.tensor([crc32(image.numpy().tobytes()) / 2**32 for image in images])


def test_a_model_whose_scores_tell_gets_go_and_the_same_check_goes_on(setup, tmp_path):
    made = setup()
    found = climbed(made)
    assert [rung.missing.get(name) for name, rung in found.items()] == [None] * 3
    assert found["parity"].holds
    assert found["parity"].figures[STOCK].value < 0.1
    seconds = found["cost"].known.seconds
    assert seconds is not None
    assert min(seconds.nfe, seconds.decodes) > 0
    ranks = found["signal"].of("rank").values()
    assert all(figure.low is not None and figure.low <= figure.value for figure in ranks)
    judged = verdict(found)
    assert judged.word == GO, judged.why
    assert judged.schedule["name"] == "seed-pruning"
    calls = []
    made.pipe.transformer.register_forward_hook(lambda *_: calls.append(1))
    assert climbed(made).keys() == RUNGS.keys()
    assert not calls  # all of it was kept


def test_a_reward_that_is_shuffled_gets_no_go(setup):
    judged = verdict(climbed(setup(noise), "parity", "signal"))
    assert judged.word == NO_GO, judged.why


@pytest.mark.usefixtures("shallow_model")
def test_a_search_by_another_scheduler_than_the_models_gets_no_go(setup, monkeypatch):
    made = setup(pipe=quiet(load("embedded", dtype=torch.float32)), call={"num_inference_steps": 4})
    right, engine_of = made.pipe.scheduler, type(made.pipe).engine_of

    def wrongly(pipe, *given, **more):
        pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=30.0)
        try:
            return engine_of(pipe, *given, **more)
        finally:
            pipe.scheduler = right

    monkeypatch.setattr(type(made.pipe), "engine_of", wrongly)
    judged = verdict(climbed(made, "parity"))
    assert judged.word == NO_GO
    assert "another picture" in judged.why[0]


def test_what_could_not_run_says_why_and_the_verdict_knows(setup, tmp_path):
    made = setup()
    climbed(made, "cost")
    (tmp_path / "plan.json").unlink()
    assert not made.climb("signal", signal, 0).done
    judged = verdict(made.found)
    assert judged.word == UNDECIDED
    assert "parity is not known" in judged.why

    made.climb("cost", cost, 0)  # done, so that it is kept
    (tmp_path / "cost.json").unlink()
    assert "search" in made.climb("cost", cost, 0).missing
    # and nothing is recorded
    assert "give more --minutes" in made.climb("signal", signal, 0).missing["signal"]
    assert "do not fit" in made.climb("parity", parity, 0).missing["parity"]

    def broken(_):
        raise RuntimeError("CUDA error: an illegal access")

    assert made.climb("parity", broken, 1).missing == {"parity": "CUDA error: an illegal access"}


def test_an_interval_holds_the_mean_of_most_draws_and_needs_prompts():
    rng = torch.Generator().manual_seed(0)
    found = [Figure.over_prompts(torch.randn(12, generator=rng).numpy()) for _ in range(100)]
    assert 88 <= sum(figure.low <= 0 <= figure.high for figure in found) <= 99
    assert Figure.over_prompts([1.0]) is None
    assert Figure.over_prompts([1.0, 2.0], [0.0, 0.0]) is None


SECRET = "SECRET"
"""In all that a user names, and in all that fails."""


@pytest.mark.usefixtures("shallow_model")
def test_evidence_holds_nothing_that_a_user_names_and_no_words_of_an_error(tmp_path, monkeypatch):
    def broken(_):
        raise RuntimeError(f"no route to gpu8.lab:8000, Bearer {SECRET}")

    def measured(setup):
        return Rung("cost", said=["the best batch is 4"], done=True)

    broken.__name__ = "parity"
    measured.__name__ = "cost"
    monkeypatch.setattr("ttsnap.check.parity.parity", broken)
    monkeypatch.setattr("ttsnap.check.cost.cost", measured)
    reward = tmp_path / f"{SECRET}.py"
    reward.write_text("def score(images, prompts): return images.mean((1, 2, 3))")
    prompts = tmp_path / f"{SECRET}.txt"
    prompts.write_text("a purple circle\n")
    given = {
        "--reward": f"{reward}:score",
        "--prompts-file": str(prompts),
        "--negative-prompt": "a purple cross",
        "--minutes": "0.001",
        "--steps": "3",
        "--out": str(tmp_path / SECRET),
    }
    words = ["check", "embedded", *(word for pair in given.items() for word in pair)]
    assert main(words) in (0, 1)
    (path,) = (tmp_path / SECRET).glob("embedded_*[0-9].json")
    for file in (path, path.with_suffix(".md")):
        text = file.read_text()
        assert SECRET not in text
        assert str(tmp_path) not in text
        assert "gpu8" not in text
        assert "purple" not in text
    whole = json.loads(path.read_text())
    assert whole["command"].startswith("ttsnap check embedded --reward REWARD")
    assert "--steps 3" in whole["command"]
    assert whole["rungs"]["parity"]["missing"] == {"parity": ""}
    assert whole["rungs"]["cost"]["said"] == ["the best batch is 4"]


def test_evidence_shows_words_as_words_and_no_file_elsewhere(tmp_path):
    words = "<img src=//x> ![](//x/y.png) [a](//x) `code` @somebody #1 www.x.org"
    out, secret = tmp_path / "out", tmp_path / "secret"
    secret.write_text("secret")
    (tmp_path / "sheet.png").symlink_to(secret)
    about = {
        **dict.fromkeys(LISTED, ""),
        "model": EMBEDDED,
        "call": {},
        "device": "d",
        "date": "2026-12-01",
        "versions": {},
    }
    found = {"parity": Rung("parity", said=[words], missing={"stock": words})}
    judged = verdict(found)
    made = write(out, about, found, judged, tmp_path / "sheet.png")
    plain = re.sub(r"`[^`]*`", "", made.read_text())
    assert not re.search(r"[<>\[\]@]|www|#\d", plain)
    assert "<img" in made.read_text()
    assert {path.suffix for path in out.iterdir()} == {".json", ".md"}


def test_without_a_model_it_says_what_is_here_and_what_a_minute_buys(capsys, monkeypatch):
    monkeypatch.setattr(environment, "SEEDS", 2)
    assert main(["check", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    told = dict(re.findall(r"^(\w[\w, ]*?)  +(.*)$", out, re.M))
    assert told.keys() >= {"versions", "device", "extras", "attention", "search"}
    found = re.search(
        r"a minute buys about ([\d,]+) evaluations \(nfe\): ([\d,]+) images of 20 steps", out
    )
    assert found is not None, out
    evaluations, images = (int(text.replace(",", "")) for text in found.groups())
    assert evaluations == pytest.approx(20 * images, rel=0.2)
    assert out.endswith("nothing is wrong\n")


def test_what_is_broken_is_a_line_and_the_exit_status_is_1(capsys, monkeypatch):
    monkeypatch.setattr("importlib.metadata.requires", lambda _: ["numpy>=999", "torch>=2"])
    monkeypatch.setattr("shutil.which", lambda _: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(environment, "_measured", lambda *_: iter(()))
    assert main(["check", "--device", "cpu"]) == 1
    wrong = capsys.readouterr().out.partition("wrong:\n")[2]
    assert re.match(r"  versions: numpy \S+ is not >=999; install", wrong)
    assert "torch sees no GPU: install torch for CUDA" in wrong
    given = ["numpy>=1", "nothing-such>=1", "pillow<1; extra == 'demo'"]
    assert environment.unmet(given) == ["nothing-such is missing"]
    assert re.fullmatch(r"pillow \S+ is not <1", *environment.unmet(given, "demo"))


EVIDENCE = sorted(ROOT.glob("docs/evidence/*_*-*-*[0-9].json"))


def test_evidence_files_are_what_their_figures_say_and_their_table_is_current(
    monkeypatch,
):
    """The embedded model gets GO; the page and the table are made of the figures alone, and name
    nobody."""
    for path in EVIDENCE:
        whole = json.loads(path.read_text())
        judged = verdict({name: build(Rung, data) for name, data in whole["rungs"].items()})
        assert (judged.word, list(judged.why)) == (whole["verdict"], whole["why"]), path
        assert judged.word == GO or whole["model"] != EMBEDDED
        assert path.with_suffix(".md").read_text() == page(whole, f"{path.stem}.png")
        assert whole["format"] == FORMAT
        assert whole.keys() == {*LISTED, "model", "call", "verdict", "why", "rungs"}
    assert EVIDENCE
    monkeypatch.setattr("sys.argv", ["evidence.py", "--check"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(str(ROOT / "scripts" / "evidence.py"), run_name="__main__")


@pytest.mark.usefixtures("shallow_model")
def test_the_command_writes_evidence_and_refuses_another_check_in_its_folder(tmp_path, capsys):
    words = [
        "check",
        "embedded",
        "--minutes",
        "0.02",
        "--steps",
        "3",
        "--batch-size",
        "4",
        "--out",
        str(tmp_path),
    ]
    assert main(words) in (0, 1)
    assert re.search(r"^(GO|NO-GO|undecided): ", capsys.readouterr().out, re.M)
    (path,) = (path for path in tmp_path.glob("embedded_*.json") if ".schedule" not in path.name)
    whole = json.loads(path.read_text())
    assert whole["command"] == "ttsnap check embedded --minutes 0.02 --steps 3 --batch-size 4"
    assert list(whole["rungs"]) == ["parity", "cost", "signal"]
    assert str(tmp_path) not in path.read_text() + path.with_suffix(".md").read_text()
    assert main([*words, "--steps", "4"]) == 2
    assert (
        "holds a check with other settings: call.num_inference_steps is 3, not 4"
        in capsys.readouterr().err
    )
