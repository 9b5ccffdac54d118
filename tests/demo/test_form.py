"""What visitors ask for: good fields are read, everything else is refused with a message, and
nothing runs."""

from __future__ import annotations

import re
import shlex
import time
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from tests import bombs
from ttsnap.cli import arguments, demo, parse
from ttsnap.demo.form import (
    DemoLimits,
    baseline,
    budget_words,
    command_line,
    examples,
    group_css,
    hint,
    python_lines,
    read,
)
from ttsnap.pipelines.packaged import MODELS
from ttsnap.request.limits import PUBLIC_ALGORITHMS
from ttsnap.request.offer import ServingCatalog
from ttsnap.request.request import ModelDefaults, prepare
from ttsnap.reward_models.registry import parts
from ttsnap.scenes import parse as parse_scene
from ttsnap.scenes import render

from .conftest import FIELDS

REWARDS = ("scenes", "brightness", "compressibility", "colourfulness")
OFFER = ServingCatalog("embedded", REWARDS, lambda model: ModelDefaults({"guidance_scale": 4.0}))
PICTURE = bytes(bombs.saved("PNG"))
BOMBS = (*list(bombs.PICTURES.values())[7:], bombs.STILLS["png"], bombs.STILLS["gif"])
HOSTILE = [
    *(
        {"prompt": p}
        for p in (
            "",
            "   ",
            None,
            5,
            ["a"],
            "a" * 401,
            "a\0b",
            "\x1b[31mred",
            "\ud800",
            "x\u0085\ue000",
        )
    ),
    *(
        {"algorithm": a}
        for a in ("keep-all", "../x.json", "/etc/passwd.json", None, {"name": "smc"})
    ),
    *(
        {"rewards": r}
        for r in (
            [],
            None,
            3,
            ["os:system"],
            ["a.py:f"],
            ["http://169.254.169.254"],
            ["scenes"] * 4,
        )
    ),
    *(
        {"budget": b}
        for b in (
            "",
            None,
            "-5nfe",
            "0",
            "nan",
            "inf",
            "1e999nfe",
            "1e99images",
            "2001nfe",
            "5000images",
            "9" * 100,
            "1;ls",
            True,
            ["5nfe"],
            "high,3000s",
            "121s",
            "1e400",
            float("nan"),
        )
    ),
    *(
        {"steps": s}
        for s in (-1, 0, 1, 101, 1e9, float("nan"), float("inf"), "ten", None, 3.5, True, [10])
    ),
    *({"seed": s} for s in (-1, 2**31, 1e300, float("nan"), "0; DROP", None, 0.5)),
    *({"keep": k} for k in (0, -3, 9, 1e9, None, "1")),
    *({"size": s} for s in (-32, 8, 1025, 1e9, "big", float("nan"))),
    *({"negative": n} for n in (5, ["a"], "a" * 401, "a\0b", "\ud800")),
    *({"picture": p} for p in (*BOMBS, "x.png", 5, [PICTURE])),
    *(
        {"picture": PICTURE, "strength": s}
        for s in (0, -1, 1.1, float("nan"), None, "0.5", True, [1])
    ),
    *({"guidance": g} for g in (-1, 31, 1e300, float("nan"), float("inf"), "4; DROP", True, [4])),
]


def none(model):
    return ModelDefaults()


def wanted(offer, **changes):
    return read({**FIELDS, **changes}, offer, DemoLimits())


def asked(offer=OFFER, **changes):
    request = wanted(offer, **changes)
    return prepare(request, offer.defaults(request.model))


@pytest.mark.parametrize("changes", HOSTILE)
def test_hostile_fields_are_refused(changes):
    made = {name: value() if callable(value) else value for name, value in changes.items()}
    begin = time.thread_time()  # however busy the machine is
    with pytest.raises(ValueError, match=r"\w{3}") as caught:
        asked(**made)
    assert len(str(caught.value)) < 1000
    assert "got None" not in str(caught.value), "which is no word of a form"
    assert time.thread_time() - begin < 5  # pictures are refused before they are decoded


def test_good_fields_are_read():
    found = asked(prompt=" a  red\ncircle ", rewards=["scenes", "brightness", "scenes"], seed=7.0)
    assert (found.prompt.text, found.engine.rewards, found.seed) == (
        "a red circle",
        ("scenes", "brightness"),
        7,
    )
    assert found.call == {"guidance_scale": 4.0, "num_inference_steps": 10}
    assert str(found.budget) == "60nfe"
    assert str(asked(budget="medium").budget) == "20images"
    assert asked(budget="5s").budget.nfe == 2000  # the demo's cap holds beside one in seconds
    assert str(asked(budget="5images").budget) == str(asked(budget="5 Images").budget) == "5images"
    call = {"guidance_scale": 7.0, "num_inference_steps": 10, "negative_prompt": "a circle"}
    assert asked(guidance=7, negative=" a  circle ").call == call
    assert asked(prompt="ein Fuchs 🦊 <b>&").prompt.text == "ein Fuchs 🦊 <b>&"


@pytest.mark.parametrize("missing", FIELDS)
def test_a_field_that_is_missing_is_as_one_that_is_empty(missing):
    fields = {name: value for name, value in FIELDS.items() if name != missing}
    try:
        wanted = read({**fields, missing: None}, OFFER, DemoLimits())
    except ValueError as error:
        with pytest.raises(ValueError, match=re.escape(str(error))):
            read(fields, OFFER, DemoLimits())
    else:
        assert read(fields, OFFER, DemoLimits()) == wanted


def test_drafts_are_for_algorithms_that_look_at_them_and_of_the_operators_drafter():
    offer = ServingCatalog(
        "embedded", ("scenes", "brightness"), none, draft="my_draft:2", any_model=True
    )
    found = wanted(offer, draft=True)
    assert found.engine.sampler.draft == "my_draft:2"
    assert baseline(found).engine.sampler.draft is None
    assert wanted(offer).engine.sampler.draft is None
    assert wanted(offer, draft=True, algorithm="best-of-n").engine.sampler.draft is None
    for changes in (
        {"draft": "evil/weights"},
        {"draft": [1]},
        {"draft": True, "model": "some/model"},
    ):
        with pytest.raises(ValueError, match=r"drafter|boolean"):
            wanted(offer, rewards=["brightness"], **changes)
    with pytest.raises(ValueError, match="no drafter"):
        asked(draft=True)


def test_the_models_own_draft_is_preset_and_left_to_the_model():
    offer = ServingCatalog(
        "embedded", REWARDS[:2], none, draft="embedded", drafts_first=True, any_model=True
    )
    assert wanted(offer, draft=True).engine.sampler.draft == "auto"
    left_out = asked(offer, draft=False)
    assert left_out.engine.sampler.draft is None
    assert "draft=None" in python_lines(left_out)
    assert "--draft none" in command_line(left_out)
    for algorithm in ("best-of-n", "svdd"):
        other = asked(offer, draft=True, algorithm=algorithm)
        assert other.engine.sampler.draft is None
        assert "draft" not in python_lines(other) + command_line(other)
    free = wanted(offer, draft=True, model="some/model", rewards=["brightness"])
    assert free.engine.sampler.draft == "auto"


def test_visitors_choose_models_only_where_they_may():
    assert asked(model="evil/weights").request.model == "embedded"
    free = ServingCatalog("embedded", ("brightness", "scenes"), none, any_model=True)
    assert wanted(free, model="some/model", rewards=["brightness"]).model == "some/model"
    for model in ("a" * 201, "a\nb", 5):
        with pytest.raises(ValueError, match="model"):
            wanted(free, model=model, rewards=["brightness"])
    with pytest.raises(ValueError, match="captions"):
        wanted(free, model="some/model")


def offered(*words):
    found = demo.catalog_of(demo.parser().parse_args(list(words)))
    return found


@pytest.mark.parametrize(
    "words", ["", "--share", "--host 0.0.0.0", "--model embedded", "--share --any-model"]
)
def test_strangers_do_not_choose_models_by_default(words):
    assert offered(*words.split()).any_model is (words in ("", "--share --any-model"))


def test_a_page_that_may_take_any_model_begins_with_each_packaged_one():
    free = offered()
    first, second, *plain = examples(free)
    assert (first["model"], first["rewards"]) == ("embedded", ["scenes"])
    assert (second["model"], second["rewards"]) == ("signs", ["ocr:line"])
    assert all(set(example) == {"prompt", "model", "rewards"} for example in plain)
    for example in (first, second, *plain):
        found = wanted(free, **example)
        assert MODELS[found.model].canonical(found.prompt.text) == found.prompt.text
    assert {example["model"] for example in examples(offered("--share"))} == {"embedded"}
    assert {example["model"] for example in examples(offered("--model", "signs"))} == {"signs"}
    assert [
        set(example) for example in examples(ServingCatalog("some/model", ("clip",), none))
    ] == [{"prompt"}] * 3


def test_images_of_packaged_models_are_right_by_what_the_table_says():
    pytest.importorskip("rapidocr")
    wide = Image.new("RGB", (96, 32), "navy")
    ImageDraw.Draw(wide).text((10, 2), "EXIT", fill="white", font=ImageFont.load_default(24))
    sign = torch.from_numpy(np.asarray(wide).copy()).permute(2, 0, 1) / 255
    assert demo.judge_of('a blue sign that says "EXIT"', "signs")(sign) is True
    assert demo.judge_of('a blue sign that says "EXITS"', "signs")(sign) is False
    scene = torch.from_numpy(render([parse_scene("a red circle")], np.random.default_rng(0))[0])
    for model in ("embedded", "scenes-turbo"):
        assert demo.judge_of("a red circle", model)(scene) is True
        assert demo.judge_of("a blue circle", model)(scene) is False
        assert demo.judge_of("a red circle", model)(sign) is None, "not the size that is judged"
    assert demo.judge_of("a red circle", "some/model")(scene) is None


def test_the_operator_chooses_rewards_and_limits():
    a = demo.parser().parse_args(
        ["--reward", "brightness", "scenes", "--max-budget", "50", "--max-seconds", "5"]
    )
    assert demo.catalog_of(a).rewards == ("brightness", "scenes")
    limits = arguments.read(DemoLimits, a)
    assert (limits.nfe, limits.seconds, limits.side) == (50, 5.0, 1024)
    for flag in ("--max-budget", "--max-size", "--queue-size"):
        with pytest.raises(ValueError, match=f"{flag} .*1"):
            demo.parser().parse_args([flag, "0"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("5images", "At most 50 evaluations.* as 5 whole images take"),
        ("5 images", "At most 50 evaluations.* as 5 whole images take"),
        ("150nfe", "150 evaluations"),
        ("10s", "At most 10 seconds, and 2,000 evaluations"),  # its own cap, then the page's
        ("1 image", "1 whole image take"),
        ("x", "cannot read"),
        ("999images", "at most 2000 evaluations"),
        ("12", "12nfe.*12images"),  # as everywhere, a number without a unit is neither
    ],
)
def test_budgets_are_put_into_words(text, words):
    assert re.search(words, budget_words(text, 10, DemoLimits()))


def test_an_edit_takes_the_steps_that_its_strength_leaves():
    assert "14 evaluations" in budget_words("1 image", 20, DemoLimits(), 0.7)
    assert "as many as 3 whole images" in budget_words("12nfe", 9, DemoLimits(), 0.35)
    assert "strength" in budget_words("1 image", 20, DemoLimits(), "a")


def test_algorithms_are_grouped_with_a_hint_on_each():
    assert 'li[data-index="0"]::before { content: "Choose among seeds"; }' in group_css()
    assert f'li[data-index="{PUBLIC_ALGORITHMS.index("svdd")}"]' in group_css()
    assert ["Adds noise" in hint(name) for name in ("svdd", "seed-pruning")] == [True, False]


@pytest.mark.parametrize("prompt", ["a red circle", "--help", 'it\'s "quoted" $(rm -rf) `x` \\ ;'])
def test_lines_to_repeat_a_search_say_what_was_asked(prompt):
    search = asked(
        prompt=prompt,
        algorithm="svdd",
        rewards=["scenes", "brightness"],
        keep=3,
        size=64,
        guidance=2.5,
        negative='it\'s "blurred"',
    )
    line = shlex.split(command_line(search))
    a = parse(line[1:])[1]
    assert (a.prompts, a.algorithm, a.kernel, a.reward) == (
        [prompt],
        "svdd",
        "sde",
        ["scenes", "brightness"],
    )
    assert (a.budget, a.steps, a.seed, a.keep, a.height, a.width) == ("60nfe", 10, 3, 3, 64, 64)
    assert (a.guidance, a.negative_prompt) == (2.5, 'it\'s "blurred"')
    code = compile(python_lines(search, "cuda:0", "bfloat16"), "snippet", "exec")
    assert prompt in code.co_consts


def test_lines_to_repeat_a_search_name_a_checklist_not_its_items():
    itemised = ModelDefaults(parts=partial(parts, packaged=True))
    offer = ServingCatalog("embedded", ("checklist",), lambda model: itemised)
    search = asked(offer, rewards=["checklist"])
    assert len(search.engine.rewards) > 1
    line = shlex.split(command_line(search))
    assert parse(line[1:])[1].reward == "checklist"
    assert "reward='checklist'" in python_lines(search)
