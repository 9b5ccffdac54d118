"""What commands say of what cannot be: at once, a sentence with what was probably meant; nothing is
left behind."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import httpx
import pytest
import torch
from huggingface_hub.errors import RepositoryNotFoundError
from PIL import Image

from ttsnap.cli import common, main, serve, serve_reward
from ttsnap.cli.parser import Arguments
from ttsnap.core.prompt import Prompt
from ttsnap.loop.budget import Budget
from ttsnap.options.model import ModelOptions
from ttsnap.options.sampler import SamplerOptions
from ttsnap.pipelines.opening import check_here, placement
from ttsnap.request.request import EngineSpec, ModelDefaults, SearchRequest, prepare
from ttsnap.reward_models.registry import named

from ..said import error_of  # noqa: TID252

A = "generate 'a red circle'"
UNREAD = [
    ("genrate x", r"unknown command 'genrate'; did you mean generate\? Choose one of generate, "),
    ("", "no command is given"),
    ("generate x --budget 50 nfe", "argument nfe; a number and its unit are one word, as 50nfe"),
    ("generate x --buget 5nfe", "unknown arguments --buget 5nfe; did you mean --budget?"),
    ("generate x --num-inference-steps 4", "--num-inference-steps 4; it is --steps here"),
    (
        "generate x --offload modell",
        r"--offload must be 'none', .*, got 'modell'; did you mean model\?",
    ),
    ("generate x --steps a", "--steps must be a valid integer, got 'a'"),
    (
        "generate x --call 5",
        "--call must be a valid dictionary, got 5; write it as --call.clip_skip 1",
    ),
    ("generate x --keep", "--keep: a value has to follow"),
    ("generate x --budget --seed 3", r"begins with - as --option=-VALUE \(ttsnap generate --help"),
    ("generate x --seed " + "9" * 23, r"whole number in \[-2\^63, 2\^64\), .*, got 9{23}"),
    ("record x --out o --score-steps a", r"must be .*, got 'a'; write it as '\[2, 6\]'"),
    ("tune", "RECORDING must be given"),
    ("record x --out o --seed -3", "seed must be .* 0, got -3"),
    ("tune r --seed -3", "--seed must be .* 0, got -3"),
    ("serve embedded --port 99999", "--port must be .* 65535, got 99999"),
]
"""Command lines that are no command's."""
UNLOADED = [
    (
        f"{A} --budget 19nfe --finish noise",
        "19nfe is too small for one image, which takes 20 NFE at 20",
    ),
    (f"{A} --budget 9nfe,1h --steps 10", "takes 10 NFE at 10 steps; raise the"),
    (f"{A} --budget -50nfe", "budget nfe must be a number above 0, .*, got -50"),
    (f"{A} --budget 0.5images", "too small for one image; give 1images or more"),
    (f"{A} --budget 20", "does not say of what; write 20nfe .* or 20images"),
    ("bench --prompts-file p.txt --out o --budget 5nfe", "too small for one image, which takes 20"),
    ("generate x --model embeded", "no diffusers pipeline at embeded: .*; did you mean embedded?"),
    (
        "generate x --model x.safetensors",
        r"StableDiffusionXLPipeline.from_single_file\('x.safetensors'\)",
    ),
    ("serve scene-turbo", "did you mean scenes-turbo?"),
    ("generate x --task img2img", "unknown task 'img2img'; did you mean image-to-image?"),
    ("generate x --algorithm prunning", "did you mean seed-pruning?"),
    (f"{A} --options.kep 1", "did you mean keep?"),
    ("generate x --reward imagerewrd", "unknown reward 'imagerewrd'; did you mean imagereward?"),
    ("generate x --report '[scenes, pick-score]'", "did you mean pickscore?"),
    ("record x --out o --reward 'scens then clip'", "did you mean scenes?"),
    ("score . --reward gone.py:score", "cannot load reward 'gone.py:score': no such file: gone.py"),
    ("score . --reward halving.py:Halvin", "halving.py has no Halvin; did you mean Halving?"),
    ("score . --reward pikscore:folder", "no module named 'pikscore'; did you mean pickscore?"),
    (
        "serve embedded --rewards best=pikscore",
        "unknown reward 'pikscore'; did you mean pickscore?",
    ),
    ("generate x --dry-run", "it is ttsnap check MODEL --dry-run"),
    ("bench --preset dogtrim --dry-run", "PROMPTS_FILE must be given"),
    ("tune p.txt", "p.txt is no recording"),
    ("demo --reward brightnes", "did you mean brightness?"),
    ("serve-reward hpsv4", "did you mean hpsv"),
    (f"{A} --image gone.png", "no such picture: gone.png"),
    (f"{A} --height 64", "draws at most 32 x 32 pixels, got width 32 and height 64"),
    (
        """generate 'a red sign that says "EXIT"' --model signs --width 104""",
        "at most 96 x 96 pixels",
    ),
    (f"{A} --require 'scene>0.5'", "unknown reward 'scene'; did you mean scenes?"),
    (f"{A} --check 'a red fox'", "unknown word in 'a red fox': 'fox'"),
    (f"{A} --budget 0s", "budget seconds must be a number above 0, at most 1,000,000,000, got 0"),
    (f"{A} --compare seed-pruning", "--compare seed-pruning is the algorithm itself; name another"),
]
"""What is refused before anything is loaded."""
BENCH = "bench --prompts-file set.jsonl --budget 4nfe --steps 2 --device cpu --out b"
RECORD = "record 'a red circle' --device cpu --out r"
EDIT = f"{A} --out out --budget 8nfe --task"
REFUSED = [
    ("generate", "no prompt"),
    ("generate ' '", "prompt 1 of 1 is empty"),
    ("generate 'a photo of a cat'", "unknown word.*'photo'.*knows only: .*circle"),
    (f"{A} --device toaster", "unknown device 'toaster'"),
    (f"{A} --dtype int4", "unknown dtype 'int4'"),
    (f"{A} --steps 0", "must be .* 1, got 0"),
    (f"{A} --call.colour red", "unknown argument.*colour"),
    (f"{A} --keep 0", "keep must be at least 1"),
    ("generate --prompts-file missing.txt", "no such prompt set: missing.txt"),
    ("replay missing.png", "no such image: missing.png"),
    ("record --device cpu --out r", 'no prompt: ttsnap record "a red circle"'),
    (f"{RECORD} --seeds 0", "seeds must be .* 1, got 0"),
    (f"{RECORD} --steps 4 --score-steps [9]", "do not fit a grid of 4 steps"),
    # needs a reward, and here has no hub to come from
    (f"{RECORD} --model some/model", "some/model"),
    (f"{A} --image red.png", "--image: say by --task what is done with it"),
    (f"{EDIT} image-to-image --strength 1.5", "strength must be .* 1, got 1.5"),
    (
        f"{EDIT} editing --image red.png",
        "no pipeline class of diffusers does editing with the parts of a",
    ),
    (f"{EDIT} image-to-image --image p.txt", "cannot read"),
    (
        f"{BENCH} --algorithms 'svdd magic=3'",
        r"svdd: unknown .*\['magic'\].*; of the sampler, .* kernel, path",
    ),
    (f"{BENCH} --algorithms 'best-of-n n=two'", "best-of-n: n must be a valid integer, got 'two'"),
    (
        f"{BENCH} --algorithms 'best-of-n n'",
        "cannot read 'n' in .* 'best-of-n n'; write NAME OPTION=VALUE",
    ),
    (
        f"{BENCH} --algorithms best-of-n svdd best-of-n",
        "best-of-n and best-of-n would go to the same folder",
    ),
    (
        f"{BENCH} --algorithms 'best-of-n kernel=sde' svdd",
        "svdd .* deterministic .* choose a kernel that draws noise",
    ),
    (f"{BENCH} --prompts 5:9", "--prompts 5:9 leaves none of the 2 prompts of set.jsonl"),
    (f"{BENCH} --effort low", "give a budget or an effort, not both"),
    (f"{A} --algorithm gone.py:Mine", "no such file: gone.py"),
    (f"{A} --algorithm halving.py:Halvin", "halving.py has no Halvin; did you mean Halving?"),
    (f"{A} --algorithm json.py:Mine", "another module has the name json; rename json.py"),
    (
        f"{A} --algorithm halving.py:Odd",
        "Odd must be a dataclass with n, needs, lockstep, init and step",
    ),
    (
        f"{A} --algorithm halving.py:Halving --options.levle 1",
        r"\['levle'\].*\['n', 'level'\]; did you mean level?",
    ),
]


@pytest.fixture(autouse=True)
def _inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "halving", raising=False)
    Path("p.txt").write_text("a red circle\n")
    Path("set.jsonl").write_text('{"prompt": "two red circles"}\n{"prompt": "a green cross"}\n')
    Image.new("RGB", (32, 32), "red").save("red.png")
    Path("json.py").write_text("class Mine: ...\n")
    Path("halving.py").write_text(
        "from dataclasses import dataclass\nclass Odd:\n    n, needs, lockstep = None, frozenset(),"
        " False\n    def init(self): ...\n    def step(self, state): ...\n@dataclass\nclass"
        " Halving(Odd):\n    n: int | None = None\n    level: float = 0.5\n"
    )


def said_of(words, capsys):
    """The error of a command that is refused, and leaves nothing in its folder."""
    before = {path.name for path in Path().iterdir()}
    try:
        status = main(shlex.split(words))
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    assert {path.name for path in Path().iterdir()} - {"__pycache__"} == before
    return error_of(capsys)


@pytest.mark.parametrize(("words", "said"), UNREAD)
def test_what_cannot_be_parsed(words, said, capsys):
    error = said_of(words, capsys)
    assert re.search(said, error), error
    assert not words or error.count("\n") == 1
    assert not re.search(r"<class|typing\.|Union|subtypes", error), error


@pytest.mark.parametrize(("words", "said"), UNLOADED)
def test_what_cannot_be_is_refused_before_anything_is_loaded(words, said, capsys, monkeypatch):
    for module in (common, serve, serve_reward):
        monkeypatch.setattr(module, "load_torch", lambda: pytest.fail("torch was loaded"))
    error = said_of(words, capsys)
    assert re.search(said, error), error


@pytest.mark.parametrize(("words", "said"), REFUSED)
def test_what_cannot_be_is_one_sentence(words, said, capsys):
    error = said_of(words, capsys)
    assert "\nttsnap: error: " in f"\n{error}"
    assert re.search(said, error, re.DOTALL), error


@pytest.mark.parametrize(
    ("device", "said"), [("cuda", "'cuda'"), ("gpu", "'cuda'"), ("cuda:3", "'cuda:3'")]
)
def test_a_device_that_is_not_there(device, said, capsys, monkeypatch):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    for command in (A, RECORD, "serve-reward scenes"):
        assert f"there is no device {said} here: torch sees no GPU" in said_of(
            f"{command} --device {device}", capsys
        )


def test_a_misspelt_hub_id_is_said_before_the_reward_that_is_missing(capsys, monkeypatch, tmp_path):
    def unknown(self, name, **how):
        answer = httpx.Response(401, request=httpx.Request("GET", "https://huggingface.co"))
        raise RepositoryNotFoundError(name, response=answer)

    (tmp_path / "models--some--diffusion-model").mkdir()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", unknown)
    said = (
        "the hub has no some/difusion-model, or none that HF_TOKEN may see; did you mean"
        " some/diffusion-model?"
    )
    assert said in said_of(f"{A} --model some/difusion-model", capsys)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda self, name, **how: None)
    said = said_of(f"{A} --model some/model", capsys)
    assert re.search("model some/model needs a reward: .*--reward", said), said


@pytest.mark.parametrize(
    ("names", "more", "words"),
    [
        (["red.png", None], "", "some prompts have image and others no picture"),
        (
            ["red.png"],
            "--image red.png",
            "['image'] for all prompts, and one of its own for each in edits.jsonl",
        ),
        (
            [None],
            "",
            "the task is image-to-image, and a call with these pictures does text-to-image",
        ),
        (["../x.png"], "", "image of entry 1 of the prompt set is '../x.png', which leads out of"),
    ],
)
def test_sets_of_pictures_that_do_not_fit(names, more, words, capsys):
    entries = [{"prompt": "a red circle", "image": name} for name in names]
    Path("edits.jsonl").write_text("\n".join(map(json.dumps, entries)))
    how = (
        "--prompts-file edits.jsonl --task image-to-image --strength 0.5 --steps 2 --device cpu"
        f" {more} --out out"
    )
    for command in ("record --seeds 2", "bench --budget 2nfe"):
        assert words in said_of(f"{command} {how}", capsys)


def test_the_address_of_an_offered_reward_may_hold_an_equals_sign():
    common.check_names(Arguments(rewards=["mine=http://127.0.0.1:9/?kind=theirs", "clip"]))
    assert named("mine=http://127.0.0.1:9/?kind=theirs") == (
        "mine",
        "http://127.0.0.1:9/?kind=theirs",
    )
    assert named("a/b=c.py:score") == ("a/b=c.py:score", "a/b=c.py:score")


def test_budgets_that_may_pay_for_an_image_pass():
    """Fewer steps are taken than named where a picture is redrawn, and where the call gives the
    points itself."""
    five = Budget(nfe=5)

    def asked(budget, call, **how):
        engine = EngineSpec(ModelOptions(), ("brightness",), SamplerOptions(**how), call=call)
        return prepare(SearchRequest((Prompt("x"),), engine, "best-of-n", budget), ModelDefaults())

    whole = {"num_inference_steps": 20}
    for call in ({}, {"num_inference_steps": 5}, {**whole, "image": 1}, {**whole, "sigmas": 1}):
        common.check_affordable(asked(five, call, draft=None))
    common.check_affordable(asked(Budget(seconds=1.0, flops=1.0), whole))
    common.check_affordable(asked(five, whole))  # the model's own drafts may be finished
    with pytest.raises(ValueError, match="takes 20 NFE"):
        common.check_affordable(asked(five, whole, finish="noise"))


def test_gpu_is_the_accelerator_that_there_is(monkeypatch):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    monkeypatch.setattr("torch.accelerator.current_accelerator", lambda: torch.device("mps"))
    monkeypatch.setattr("torch.accelerator.device_count", lambda: 1)
    assert (
        placement("gpu", "auto")
        == placement("auto", "auto")
        == (torch.device("mps"), torch.bfloat16)
    )
    check_here(torch.device("mps:0"))
    with pytest.raises(ValueError, match="device 'mps:1'"):
        check_here(torch.device("mps:1"))
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    with pytest.raises(ValueError, match="no GPU"):
        check_here(torch.device("mps:0"))
