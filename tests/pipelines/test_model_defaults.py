"""What a model recommends is what its searches take, from any door; what a user gives wins; a
stranger's file names no code, no address, and no file outside its folder."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace

import pytest
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.shallow import shallow
from ttsnap import BestOfN, SeedPruning, make_algorithm
from ttsnap.cli import main
from ttsnap.options.sampler import AUTO, NOISE, SamplerOptions
from ttsnap.pipelines import load, recommended, upgrade
from ttsnap.pipelines.drafting.own_draft import OwnDraft, drafting, own_draft
from ttsnap.pipelines.model_defaults import defaults_in, defaults_of
from ttsnap.request.request import ModelDefaults
from ttsnap.sampling.drafts import read_draft
from ttsnap.sampling.rng import seeded
from ttsnap.scenes import draft_path, weights_path

from .tiny import quiet

PROMPT = "a red circle"
FULL = {"num_inference_steps": 20, "guidance_scale": 4.0, "max_sequence_length": 1}


@pytest.fixture(scope="module")
def pipe():
    with shallow():
        return quiet(load())


@pytest.fixture
def folder(tmp_path):
    """A model's folder, of which nothing but the defaults is read."""
    made = tmp_path / "model"
    (made / "draft").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    for name in ("link", "draft:3"):
        (made / name).symlink_to(tmp_path / "elsewhere")
    return made


def written(folder, **told):
    (folder / "ttsnap.json").write_text(json.dumps(told))
    return folder


def test_a_folder_names_its_call_its_reward_and_a_draft_inside_it(folder, monkeypatch):
    assert defaults_in(folder) == ModelDefaults()
    found = defaults_in(written(folder, num_inference_steps=8, reward="clip", draft="draft:2"))
    assert found == ModelDefaults(
        {"num_inference_steps": 8}, "clip", f"{(folder / 'draft').resolve()}:2"
    )
    assert defaults_in(written(folder, draft="embedded:2")).draft == "embedded:2"
    monkeypatch.chdir(folder)
    (folder / "embedded:2").symlink_to("../elsewhere")  # which would be opened from here
    with pytest.raises(ValueError, match="the draft of"):
        defaults_in(written(folder, draft="embedded:2"))
    assert recommended("embedded") == ModelDefaults(FULL, "scenes", "embedded")
    assert recommended("scenes-turbo").draft is None


STRANGE = {
    "reward": [
        "evil.py:score",
        "os:system",
        "http://10.0.0.1:80",
        "judge:yes",
        "clip:/etc",
        "clip then scenes",
        "",
        ["clip"],
        3,
        {},
    ],
    "draft": [
        "../elsewhere",
        "/etc",
        "~/draft",
        "link",
        ".",
        "",
        "draft/..",
        "draft/../../elsewhere",
        "owner/name",
        "none",
        "hot",
        "C:\\x",
        "draft\\..",
        "draft:0",
        "draft:17",
        "draft:2:2",
        "http://x/y",
        "draft\n",
        ["draft"],
        3,
        {},
        "draft:3",
        "embedded:evil",
    ],
}


@pytest.mark.parametrize("kind", STRANGE)
def test_a_folder_names_no_reward_but_a_known_one_and_no_draft_outside_itself(folder, kind):
    for value in STRANGE[kind]:
        with pytest.raises(ValueError, match=rf"the {kind} of .*ttsnap\.json must be"):
            defaults_in(written(folder, **{kind: value}))


def test_what_is_given_wins_and_nothing_contradicts_it():
    defaults = ModelDefaults(
        {"num_inference_steps": 8, "negative_prompt": "blurred", "clip_skip": 1}
    )
    assert defaults.completed({"num_inference_steps": 4})["num_inference_steps"] == 4
    assert "num_inference_steps" not in defaults.completed({"sigmas": [1.0, 0.5]})
    assert "negative_prompt" not in defaults.completed({"negative_prompt_embeds": None})
    assert replace(defaults, takes=["clip_skip"]).completed({}) == {"clip_skip": 1}


def test_a_search_takes_them_and_a_stock_call_does_not(pipe):
    search = {"search": BestOfN(1), "seed": 3, "output_type": "pt"}
    out, told = pipe(PROMPT, **search), pipe(PROMPT, reward="scenes", **search, **FULL)
    assert torch.equal(out.images, told.images)
    assert pipe(PROMPT, num_inference_steps=2, **search).search[0].spent.nfe == 2
    assert pipe.engine("scenes").grid.steps == 20
    stock = quiet(DiffusionPipeline.from_pretrained(weights_path()))
    call = {"num_inference_steps": 1, "output_type": "latent"}
    plain, again = (
        each(PROMPT, generator=seeded(0), **call).images for each in (stock, upgrade(stock))
    )
    assert torch.equal(plain, again)
    assert defaults_of(upgrade(stock)).completed({}) == FULL


def test_the_first_search_of_a_newcomer_has_drafts_and_says_so(pipe):
    search = {"search": "seed-pruning", "budget": "25nfe", "seed": 0}
    out = pipe(PROMPT, **search)
    assert out.search[0].spent.cost.draft_calls > 1
    assert not out.search[0].warnings
    told = json.loads(out.images[0].info["ttsnap"])
    assert (told["draft"], told["finish"], told["call"]) == ("embedded", "0.4:3", FULL)
    without = pipe(PROMPT, draft="none", **search)
    assert without.search[0].spent.cost.draft_calls == 0
    assert "draft" not in json.loads(without.images[0].info["ttsnap"])
    search["budget"] = "1image"
    alone = pipe(PROMPT, **search).search[0]  # of the whole call
    assert alone.spent.cost.draft_calls > 1
    assert alone.spent.nfe <= 20
    ranked = pipe(PROMPT, finish="noise", **search).search[0]  # which leaves nothing for drafts
    assert (ranked.spent.nfe, ranked.spent.cost.draft_calls, ranked.warnings) == (20, 0, ())


def brightest(images, prompts):
    return images.mean((1, 2, 3))


class Judge:
    name, estimates, tokens = "judge", "pixels", 100


DRAFTED = [
    {},
    {"algorithm": SeedPruning(draft_share=0.4, draft_calls=2), "reward": [brightest]},
    {"algorithm": make_algorithm("keep-all", n=2, looks=["draft:1@0"])},
    {"reward": "scenes-noise-aware"},
    {"reward": "http://127.0.0.1:9", "call": {"negative_prompt": "", "height": 32, "width": None}},
]
LEFT_OUT = [
    *(
        {"algorithm": SeedPruning(**own)}
        for own in ({"draft_share": 0}, {"n": 8}, {"keep": (0.5,)})
    ),
    *({"algorithm": make_algorithm(name)} for name in ("ttsnap", "best-of-n", "evolution")),
    *(
        {"sampler": told}
        for told in ({"kernel": "ode"}, {"kernel": "sde", "path": "vp"}, {"guide": "dps:1"})
    ),
    *({"reward": reward} for reward in (Judge(), "judge:yes", "brightness then judge:yes")),
    *({"call": {name: 10}} for name in ("num_inference_steps", "guidance_scale", "height")),
    *({"call": call} for call in ({"negative_prompt": "blue"}, {"sigmas": [1.0, 0.5]})),
]


@pytest.mark.parametrize("drafted", [True, False])
def test_it_is_taken_where_it_was_measured_to_help(drafted):
    own = OwnDraft("embedded", read_draft(draft_path()), {**FULL, "height": 32, "width": 32})
    for case in DRAFTED if drafted else LEFT_OUT:
        sampler, call = SamplerOptions(**case.get("sampler", {})), {**FULL, **case.get("call", {})}
        found = own.suits(
            case.get("algorithm", SeedPruning()), sampler, case.get("reward", "scenes"), call
        )
        assert found is drafted, case


def test_it_is_taken_where_the_pipeline_is_as_its_folder_has_it(pipe):
    own = own_draft(pipe)
    assert own is not None
    assert (own.name, own.call) == ("embedded", {**FULL, "height": 32, "width": 32})
    left_open, named = SamplerOptions(), SamplerOptions(draft="hot")
    assert left_open.draft == AUTO
    own_way = drafting(pipe, SeedPruning(), left_open, "scenes", FULL)
    assert (own_way.draft, own_way.finish) == ("embedded", "0.4:3")
    assert drafting(pipe, make_algorithm("svdd"), named, "scenes", {}) == replace(
        named, finish=NOISE
    )
    asked = drafting(
        pipe, make_algorithm("best-of-n"), SamplerOptions(finish="0.6:4"), "scenes", FULL
    )
    assert (asked.draft, asked.finish) == ("embedded", "0.6:4")

    def other(**parts):
        return type(pipe).from_pipe(pipe, **parts)

    lora, said, hooked = (
        other(),
        other(),
        upgrade(DiffusionPipeline.from_pretrained(weights_path())),
    )
    vars(lora)["get_active_adapters"] = lambda: ["style"]
    said.own_defaults = ModelDefaults(FULL, "scenes")
    hooked.enable_sequential_cpu_offload(device="meta")
    shifted = FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config, shift=3.0)
    turbo = load("scenes-turbo").transformer
    redraws = load(task="image-to-image")
    for each in (other(scheduler=shifted), other(transformer=turbo), lora, said, hooked, redraws):
        assert own_draft(each) is None


@pytest.mark.usefixtures("shallow_model")
def test_a_png_says_what_was_used_so_that_it_is_made_again_when_the_folder_has_changed(
    tmp_path, capsys
):
    model, out = tmp_path / "model", tmp_path / "out"
    shutil.copytree(weights_path(), model)
    written(model, **{**FULL, "num_inference_steps": 3}, reward="brightness")
    assert (
        main(["generate", PROMPT, "--model", str(model), "--budget", "1images", "--out", str(out)])
        == 0
    )
    (png,) = out.glob("01-*.png")
    changed = {
        "num_inference_steps": 5,
        "guidance_scale": 1.0,
        "max_sequence_length": 7,
        "negative_prompt": "blue",
    }
    written(model, **changed, draft="embedded")
    capsys.readouterr()
    assert main(["replay", str(png), "--model", str(model)]) == 0
    assert f"{png.name}: 0 of 255" in capsys.readouterr().out


STRANGERS = ("someone/draft", "embedded:evil", "hot:evil.json")


@pytest.mark.usefixtures("shallow_model")
def test_the_command_line_says_which_searches_had_drafts_and_no_strangers_drafter_is_loaded(
    tmp_path, capsys
):
    words = ["generate", PROMPT, "--budget", "25nfe", "--seed", "5", "--compare", "best-of-n"]
    assert main([*words, "--out", str(tmp_path / "with")]) == 0
    said = capsys.readouterr().out
    assert "drafts by embedded were finished" in said
    assert "`ttsnap replay` makes the winner again" in said
    assert re.search(r"\| seed-pruning +\| [1-9]\d* +\|.*\n.*\| best-of-n +\| 0 +\|", said)
    assert said.count("--draft none") == 2
    (png,) = (tmp_path / "with").glob("01-*.png")
    assert main(["replay", str(png)]) == 0
    assert "0 of 255" in capsys.readouterr().out
    image = Image.open(png)
    for drafter, refusal in (
        (None, "no drafter"),
        *((name, f"draft '{name}'") for name in STRANGERS),
    ):
        info = PngInfo()
        info.add_text("ttsnap", json.dumps({**json.loads(image.info["ttsnap"]), "draft": drafter}))
        image.save(tmp_path / "theirs.png", pnginfo=info)
        assert main(["replay", str(tmp_path / "theirs.png")]) != 0
        assert refusal in capsys.readouterr().err
    assert main([*words[:-2], "--draft", "none", "--out", str(tmp_path / "without")]) == 0
    assert "drafts" not in capsys.readouterr().out
