"""Pictures from strangers: what of their metadata is taken, and that nothing of it is run or loaded
unasked."""

from __future__ import annotations

import copy
import json
from types import SimpleNamespace

import pytest
import torch
from PIL import Image, PngImagePlugin

from ttsnap.cli import main, replay
from ttsnap.core.prompt import Prompt
from ttsnap.options.sampler import SamplerOptions
from ttsnap.results.record import read_record

PLAIN = {
    "ttsnap": "0.1.0",
    "model": "embedded",
    "sampler": "FlowMatchEulerDiscreteScheduler",
    "kernel": "pipeline",
    "call": {"num_inference_steps": 4, "guidance_scale": 4.5},
    "prompt": "a red circle",
    "seed": 7,
    "branched": False,
    "search": {
        "algorithm": "best-of-n",
        "options": {},
        "budget": "8nfe",
        "rank": 1,
        "reward": 0.5,
        "scores": {"scenes": 0.5},
        "metrics": {},
        "nfe": 8,
        "seeds": 2,
    },
}


def forged(folder, text=None, picture=None, **values):
    """A PNG whose metadata is that of PLAIN, with changes: keys such as call__report, or a text in
    its place."""
    found = copy.deepcopy(PLAIN)
    for name, value in values.items():
        inner, _, key = name.rpartition("__")
        (found[inner] if inner else found)[key] = value
    info = PngImagePlugin.PngInfo()
    info.add_itxt("ttsnap", text or json.dumps(found))
    folder.mkdir(exist_ok=True)
    (picture or Image.new("RGB", (32, 32))).save(folder / "theirs.png", pnginfo=info)
    return folder / "theirs.png"


REFUSED = [
    {"search__place": 10**9},
    {"call__report": "evil.py:score"},
    {"call__reward": "http://host"},
    {"call__search": "evil.json"},
    {"call__callback_on_step_end": "x"},
    {"call__generator": 1},
    {"call__on_event": 1},
    {"call__should_stop": 1},
    {"report": "evil.py:score"},
    {"search__reward_file": "x"},
    {"call__num_inference_steps": 10**7},
    {"call__num_inference_steps": 2.5},
    {"call__num_inference_steps": True},
    {"call__height": 10**6},
    {"call__guidance_scale": "4"},
    {"call__sigmas": [1.0, [0.5]]},
    {"call__sigmas": [0.5] * 1001},
    {"call__negative_prompt": "x" * 10001},
    {"pictures": {"Size": "a" * 64}},
    {"pictures": {"image": "a" * 63}},
    {"pictures": {"image": []}},
    {"call__negative_prompt": {"a": 1}},
    {"call__joint_attention_kwargs": {"ip_adapter_masks": 1}},
    {"prompt": "x" * 10001},
    {"prompt": None},
    {"seed": -1},
    {"seed": "7"},
    {"model": ["x"]},
    {"model": "a\x1b[2J"},
    {"noises": ["a"]},
    {"kernel": 3},
    {"search__reward": "high"},
    {"call": [1]},
]


@pytest.mark.parametrize("values", REFUSED, ids=lambda values: str(values)[:40])
def test_what_a_picture_may_not_say_is_refused_by_name(values, tmp_path):
    with pytest.raises(ValueError, match=r"theirs\.png") as caught:
        read_record(forged(tmp_path, **values))
    # The folder's name has digits, which are values here.
    message = str(caught.value).replace(str(tmp_path), "")
    for name, value in values.items():
        parts = (name.rpartition("__")[2], *str(value).split(":"))
        assert any(part in message for part in parts)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p.write_bytes(b"no image"), "as an image"),
        (lambda p: Image.new("RGB", (2, 2)).save(p), "no ttsnap metadata"),
        (lambda p: forged(p.parent, "{"), "damaged"),
        (lambda p: forged(p.parent, "[1]"), "lacks"),
        (
            lambda p: forged(p.parent, '{"prompt": "a"}'),
            "lacks search",
        ),
        (lambda p: None, "no such image"),
    ],
)
def test_foreign_and_broken_images_are_explained(make, message, tmp_path):
    make(tmp_path / "theirs.png")
    with pytest.raises(ValueError, match=message):
        read_record(tmp_path / "theirs.png")


def test_what_ttsnap_writes_is_read_and_every_plain_argument_of_every_family_known(
    tmp_path,
):
    assert read_record(forged(tmp_path)).to_json() == {**PLAIN, "times": "pipeline"}
    more = {
        "call__height": 512,
        "call__sigmas": [1.0, 0.5],
        "call__prompt_2": None,
        "lora": "a/b:0.5",
    }
    assert read_record(forged(tmp_path, **more)).call["sigmas"] == [1.0, 0.5]
    pictures = {"image": ["a" * 64, "b" * 64], "mask_image": "0" * 64}
    assert read_record(forged(tmp_path, pictures=pictures)).pictures == pictures


def test_arguments_that_no_option_names_are_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    others = {
        "pag_scale": 2.5,
        "boxes": [[0, 0.5], [1, 1]],
        "phrases": ["a cat", "b"],
        "guess_mode": True,
    }
    forged(tmp_path, **{f"call__{name}": value for name, value in others.items()})
    assert read_record(tmp_path / "theirs.png").call.items() >= others.items()
    for strange in (
        {"font": "theirs.png"},
        {"fonts": ["a", str(tmp_path)]},
        {"image": "https://host/a.png"},
        {"kwargs": {"a": 1}},
        {"frames": 10**9},
        {"rows": [[[1]]]},
        {"Private": 1},
        {"latents": 1},
        {f"a{i}": 1 for i in range(101)},
    ):
        forged(tmp_path, **{f"call__{name}": value for name, value in strange.items()})
        with pytest.raises(ValueError, match=r"theirs\.png"):
            read_record(tmp_path / "theirs.png")


@pytest.fixture
def loaded(monkeypatch):
    """What `ttsnap replay` loaded, and what it searched for with it: model, LoRA and requests."""
    models = []

    def load(model, device, dtype, *, loras, task):
        models.append((model, loras, []))
        arguments = {"num_inference_steps", "guidance_scale", "negative_prompt"}
        return SimpleNamespace(
            dtype=torch.float32,
            call_arguments=lambda: arguments,
            split_prompt_inputs=lambda prompts, call: (prompts, call),
        )

    def run(request, pipe):
        models[-1][2].append(request)
        seeds = range(request.seed, request.seed + request.selection.keep)
        images = [SimpleNamespace(pixels=torch.zeros(3, 32, 32), seed=seed) for seed in seeds]
        return SimpleNamespace(results=[SimpleNamespace(images=images)])

    monkeypatch.setattr(replay, "load_model", load)
    monkeypatch.setattr("ttsnap.pipelines.replay.run", run)
    return models


@pytest.fixture
def said(capsys):
    """What `ttsnap replay` says where it refuses."""

    def said(*argv):
        assert main(["replay", *map(str, argv)]) == 2
        return capsys.readouterr().err

    return said


def test_nothing_is_loaded_because_a_picture_names_it(loaded, tmp_path, said):
    path = str(forged(tmp_path, model="someone/their model", lora="someone/lora:2"))
    error = said(path)
    assert "asks for the model 'someone/their model' and lora 'someone/lora:2'" in error
    assert (
        "add --model 'someone/their model' --lora someone/lora:2, name others, or add --trust"
        in error
    )
    assert "asks for the lora 'someone/lora:2'" in said(path, "--model", "someone/mine")
    assert "asks for the model 'someone/their model';" in said(path, "--lora", "mine")
    assert not loaded
    assert main(["replay", path, "--model", "someone/mine", "--lora", "too"]) == 0
    assert main(["replay", path, "--trust", "--overwrite"]) == 0
    theirs = ("someone/their model", ("someone/lora:2",))
    assert [(model, loras) for model, loras, _ in loaded] == [("someone/mine", ("too",)), theirs]
    loaded.clear()
    path = str(forged(tmp_path / "two", lora=["ink:0.6", "fog"]))
    assert "add --lora ink:0.6 --lora fog, name others, or add --trust" in said(path)
    assert "2 LoRAs together, ink:0.6, fog;" in said(path, "--lora", "ink:0.6")
    for more in (["--lora", "f/fog", "--lora=f/ink:0.6"], ["--trust"]):
        assert main(["replay", path, *more, "--overwrite"]) == 0
    assert [loras for _, loras, _ in loaded] == [("f/fog", "f/ink:0.6"), ("ink:0.6", "fog")]
    assert (
        'ttsnap LoRA: "ink:0.6, fog"'
        in Image.open(tmp_path / "two/replays/theirs.png").info["parameters"]
    )


def test_plain_arguments_reach_the_pipeline_and_no_drafter_which_only_chose_the_seed(
    loaded, tmp_path
):
    path = str(
        forged(
            tmp_path,
            draft="someone/draft:2",
            search__nfe=95.5,
        )
    )
    assert main(["replay", path]) == 0
    ((_, _, [request]),) = loaded
    assert request.engine.call == PLAIN["call"]
    assert (request.prompts, request.seed) == ((Prompt("a red circle"),), 7)
    assert request.engine.sampler == SamplerOptions(draft=None)
    assert read_record(tmp_path / "replays" / "theirs.png").sampler.draft == "someone/draft:2"


@pytest.mark.parametrize(
    ("values", "advice"),
    [
        (
            {"search__algorithm": "svdd"},
            "run `ttsnap generate` with the settings in its trace.json",
        ),
        (
            {"search__algorithm": "svdd", "search__shared": True},
            "only all of its prompts together find it again",
        ),
        ({"search__by_hand": {"finish": [1]}}, "a person led its search"),
    ],
)
def test_an_image_from_a_branch_is_made_again_by_its_search(values, advice, loaded, tmp_path, said):
    assert advice in said(forged(tmp_path, branched=True, **values))
    assert not loaded
    led = {"n": 4, "taken": [[2, "drop", 3, -1, 0]]}  # as commands were noted at first
    for noted in ({"search__shared": True}, {"search__by_hand": led}):
        assert main(["replay", str(forged(tmp_path, **noted))]) == 0, "its seed makes it"


def test_a_replay_is_found_by_no_pattern_that_found_the_image(loaded, tmp_path, said):
    paths = [
        forged(tmp_path / name, lora=lora)
        for name, lora in (("a", "x:1"), ("b", "x:1"), ("c", "y:1"))
    ]
    assert main(["replay", *map(str, paths), "--trust"]) == 0
    assert [loras for _, loras, _ in loaded] == [("x:1",), ("y:1",)], (
        "once for files that follow each other"
    )
    assert sorted(tmp_path.glob("*/*.png")) == paths
    assert sorted(tmp_path.glob("*/replays/*.png")) == [
        path.parent / "replays" / path.name for path in paths
    ]
    assert "several of the files are named theirs.png" in said(
        *paths, "--trust", "--out", tmp_path / "all"
    )
    one = ["replay", str(paths[0]), "--trust", "--out", str(tmp_path / "one")]
    assert main(one) == 0
    assert "exists" in said(*one[1:])
    assert main([*one, "--overwrite"]) == 0
    assert main(["replay", str(paths[0]), "--trust"]) == 0
    assert {path.name for path in tmp_path.rglob("*.png")} == {"theirs.png"}


def test_all_files_are_looked_at_before_a_model_is_loaded(loaded, tmp_path, said):
    path, other = forged(tmp_path), tmp_path / "other.png"
    other.write_bytes(path.read_bytes()[:-20])
    assert "other.png" in said(path, other)
    # it says so, and is not decoded
    other = forged(tmp_path / "huge", picture=Image.new("1", (4097, 4097)))
    assert "4097 x 4097 are more than 16,777,216 pixels" in said(path, other)
    assert not loaded
    assert not (tmp_path / "replays").exists()
    assert "['true_cfg_scale']" in said(forged(tmp_path, call__true_cfg_scale=2.0)), (
        "of another family"
    )
    assert not loaded[0][2]
