"""What the command line says of names, budgets and devices that cannot be: at once, with what was probably meant."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from huggingface_hub.errors import RepositoryNotFoundError

from ttsnap.cli import common, evaluate, loading, main, serve, serve_reward
from ttsnap.cli.parser import Arguments
from ttsnap.core.prompt import Prompt
from ttsnap.loop.budget import Budget
from ttsnap.options.model import ModelOptions
from ttsnap.options.sampler import SamplerOptions
from ttsnap.request.request import EngineSpec, ModelDefaults, Prepared, SearchRequest, prepare
from ttsnap.reward_models.registry import named

from ..said import error_of  # noqa: TID252


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["generate", "a red circle", "--budget", "19nfe", "--finish", "noise"],
            "19nfe is too small for one image, which takes 20 NFE at 20",
        ),
        (["generate", "a red circle", "--budget", "9nfe,1h", "--steps", "10"], "takes 10 NFE at 10 steps; raise the"),
        (["generate", "a red circle", "--budget", "0.5images"], "too small for one image; give 1images or more"),
        (["generate", "a red circle", "--budget", "20"], "does not say of what; write 20nfe .* or 20images"),
        (
            ["bench", "--prompts-file", "p.txt", "--out", "o", "--budget", "5nfe"],
            "too small for one image, which takes 20",
        ),
        (["generate", "x", "--model", "embeded"], "no diffusers pipeline at embeded: .*; did you mean embedded?"),
        (
            ["generate", "x", "--model", "x.safetensors"],
            r"StableDiffusionXLPipeline.from_single_file\('x.safetensors'\)",
        ),
        (["serve", "scene-turbo"], "did you mean scenes-turbo?"),
        (["generate", "x", "--task", "img2img"], "unknown task 'img2img'; did you mean image-to-image?"),
        (["generate", "x", "--task", "text2image"], "unknown task 'text2image'; did you mean text-to-image?"),
        (["record", "x", "--out", "o", "--task", "t2v"], "did you mean text-to-video?"),
        (["generate", "x", "--algorithm", "prunning"], "did you mean seed-pruning?"),
        (["generate", "a red circle", "--options.kep", "1"], "did you mean keep?"),
        (["generate", "x", "--reward", "imagerewrd"], "unknown reward 'imagerewrd'; did you mean imagereward?"),
        (["generate", "x", "--report", "[scenes, pick-score]"], "did you mean pickscore?"),
        (["record", "x", "--out", "o", "--reward", "scens then clip"], "did you mean scenes?"),
        (["score", ".", "--reward", "gone.py:score"], "cannot load reward 'gone.py:score': no such file: gone.py"),
        (["score", ".", "--reward", "pikscore:folder"], "no module named 'pikscore'; did you mean pickscore?"),
        (["serve", "embedded", "--rewards", "best=pikscore"], "unknown reward 'pikscore'; did you mean pickscore?"),
        (["demo", "--reward", "brightnes"], "did you mean brightness?"),
        (["serve-reward", "hpsv4"], "did you mean hpsv"),
        (["evaluate", "--recordings", "r", "--reward", "scenes", "--base", "scens"], "did you mean scenes?"),
        (["generate", "a red circle", "--image", "gone.png"], "no such picture: gone.png"),
        (["generate", "a red circle", "--height", "64"], "draws at most 32 x 32 pixels, got width 32 and height 64"),
        (["generate", 'a red sign that says "EXIT"', "--model", "signs", "--width", "104"], "at most 96 x 96 pixels"),
        (["generate", "a red circle", "--require", "scene>0.5"], "unknown reward 'scene'; did you mean scenes?"),
    ],
    ids=lambda v: " ".join(v)[:50] if isinstance(v, list) else "",
)
def test_what_cannot_be_is_refused_before_anything_is_loaded(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "p.txt").write_text("a red circle\n")
    for module in (loading, common, serve, serve_reward, evaluate):
        monkeypatch.setattr(module, "load_torch", lambda: pytest.fail("torch was loaded"))
    assert main(argv) == 2
    assert re.search(message, error_of(capsys)), message


def test_a_misspelt_hub_id_is_said_before_the_reward_that_is_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def unknown(self: object, name: str, **how: object) -> None:
        answer = httpx.Response(401, request=httpx.Request("GET", "https://huggingface.co"))
        raise RepositoryNotFoundError(name, response=answer)

    (tmp_path / "models--some--diffusion-model").mkdir()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", unknown)
    assert main(["generate", "a red circle", "--model", "some/difusion-model"]) == 2
    said = "the hub has no some/difusion-model, or none that HF_TOKEN may see; did you mean some/diffusion-model?"
    assert said in error_of(capsys)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda self, name, **how: None)
    assert main(["generate", "a red circle", "--model", "some/model"]) == 2
    assert "model some/model needs a --reward" in error_of(capsys)


def test_the_help_of_a_budget_shows_its_units(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for command in ("generate", "bench"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("  --budget"))
        assert all(unit in line for unit in ("400nfe", "20images", "30s", "pflop"))


def test_the_address_of_an_offered_reward_may_hold_an_equals_sign() -> None:
    common.check_names(Arguments(rewards=["mine=http://127.0.0.1:9/?kind=theirs", "clip"]))
    assert named("mine=http://127.0.0.1:9/?kind=theirs") == ("mine", "http://127.0.0.1:9/?kind=theirs")
    assert named("a/b=c.py:score") == ("a/b=c.py:score", "a/b=c.py:score")


def test_budgets_that_may_pay_for_an_image_pass() -> None:
    """Fewer steps are taken than named where a picture is redrawn, and where the call gives the points itself."""
    five = Budget(nfe=5)

    def asked(budget: Budget, call: dict[str, Any], **how: Any) -> Prepared:
        engine = EngineSpec(ModelOptions(), ("brightness",), SamplerOptions(**how), call=call)
        return prepare(SearchRequest((Prompt("x"),), engine, "best-of-n", budget), ModelDefaults())

    for call in (
        {},
        {"num_inference_steps": 5},
        *({"num_inference_steps": 20, name: 1} for name in ("image", "sigmas")),
    ):
        common.check_affordable(asked(five, call, draft=None))
    whole = {"num_inference_steps": 20}
    common.check_affordable(asked(Budget(seconds=1.0, flops=1.0), whole))
    common.check_affordable(asked(five, whole))  # the model's own drafts may be finished
    with pytest.raises(ValueError, match="takes 20 NFE"):
        common.check_affordable(asked(five, whole, finish="noise"))


@pytest.mark.parametrize(("device", "said"), [("cuda", "'cuda'"), ("gpu", "'cuda'"), ("cuda:3", "'cuda:3'")])
def test_a_device_that_is_not_there_is_a_sentence(
    device: str, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    for command in (["generate", "a red circle"], ["record", "a red circle", "--out", "o"], ["serve-reward", "scenes"]):
        assert main([*command, "--device", device]) == 2
        assert error_of(capsys).endswith(f"there is no device {said} here: torch sees no GPU; choose cpu\n")


def test_gpu_is_the_accelerator_that_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    from ttsnap.pipelines.opening import check_here, placement

    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    monkeypatch.setattr("torch.accelerator.current_accelerator", lambda: torch.device("mps"))
    monkeypatch.setattr("torch.accelerator.device_count", lambda: 1)
    assert placement("gpu", "auto") == placement("auto", "auto") == (torch.device("mps"), torch.bfloat16)
    check_here(torch.device("mps:0"))
    with pytest.raises(ValueError, match="device 'mps:1'"):
        check_here(torch.device("mps:1"))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["genrate", "x"], r"unknown command 'genrate'; did you mean generate\? Choose one of generate, "),
        ([], "no command is given"),
        (["generate", "x", "--budget", "50", "nfe"], "argument nfe; a number and its unit are one word, as 50nfe"),
        (["generate", "x", "--buget", "5nfe"], "unknown arguments --buget 5nfe; did you mean --budget?"),
        (["generate", "x", "--num-inference-steps", "4"], "--num-inference-steps 4; it is --steps here"),
        (
            ["generate", "x", "--offload", "modell"],
            r"unknown --offload 'modell'; did you mean model\? Choose one of none, ",
        ),
        (["generate", "x", "--seed", "a"], "--seed must be a whole number, got 'a'"),
        (["generate", "x", "--steps", "a"], "--steps must be a whole number, got 'a'"),
        (["generate", "x", "--strength", "a"], "--strength must be a number, got 'a'"),
        (["generate", "x", "--batch-size", "a"], "--batch-size must be a whole number, got 'a'"),
        (["generate", "x", "--call", "5"], "--call must be keys and values, got 5; write it as --call.clip_skip 1"),
        (["generate", "x", "--keep"], "--keep: a value has to follow"),
        (["generate", "x", "--budget", "-5nfe"], r"begins with - as --option=-VALUE \(ttsnap generate --help"),
        (["generate", "x", "--seed", "9" * 23], r"whole number in \[-2\^63, 2\^64\), .*, got 9{23}"),
        (
            ["record", "x", "--out", "o", "--score-steps", "a"],
            r"must be a list, got 'a'; write it as '\[2, 6\]'",
        ),
        (["record", "x", "--out", "o", "--looks", "a"], "must be a list"),
        (["tune"], "RECORDING must be given"),
    ],
    ids=lambda v: " ".join(v)[:50] if isinstance(v, list) else "",
)
def test_what_cannot_be_parsed_is_said_in_words(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status: Any = main(argv)
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert not argv or error.count("\n") == 1
    assert not re.search(r"<class|typing\.|Union|subtypes", error), error
