"""`generate --compare`: another algorithm at the same budget; copies of small images for the eye;
`make demo`."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ttsnap.cli import main
from ttsnap.core.prompt import Prompt
from ttsnap.loop.budget import Budget
from ttsnap.options.model import ModelOptions
from ttsnap.pipelines import defaults
from ttsnap.pipelines.packaged import MODELS, showcase_of
from ttsnap.request.request import EngineSpec, ModelDefaults, SearchRequest, prepare
from ttsnap.results.outputs import write_enlarged
from ttsnap.results.rank import find_images
from ttsnap.results.record import read_record

QUICK = ["--steps", "4", "--device", "cpu", "--budget", "24nfe", "--out", "o"]


def test_another_algorithm_searches_with_the_same_budget_and_seeds(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shown = MODELS["embedded"].showcase
    assert shown is not None
    monkeypatch.setattr("ttsnap.pipelines.packaged.showcase_of", lambda *_: shown)
    prompts = ["a red circle", "a blue square"]
    argv = [
        "generate",
        *prompts,
        "--seed",
        "7",
        "--compare",
        "best-of-n",
        "--options.keep",
        "[0.5]",
        *QUICK,
    ]
    assert main(argv) == 0
    out = capsys.readouterr().out
    main_trace, other = (
        json.loads(Path(p).read_text()) for p in ("o/trace.json", "o/best-of-n/trace.json")
    )
    for key in ("budget", "reward", "seed", "call", "kernel"):
        assert main_trace["settings"][key] == other["settings"][key]
    assert (main_trace["settings"]["algorithm"], other["settings"]["algorithm"]) == (
        "seed-pruning",
        "best-of-n",
    )
    assert other["settings"]["options"] == {}
    assert other["results"][0]["spent"]["finished"] == 6
    assert {seed for move in other["results"][0]["moves"] for seed in move["seeds"]} == set(
        range(7, 13)
    )
    for stem in ("000-a-red-circle", "001-a-blue-square"):
        assert Path(f"o/best-of-n/{stem}-sheet.png").exists()
        (image,) = Path("o/best-of-n").glob(f"{stem}-01-seed*.png")
        assert read_record(image).algorithm == "best-of-n"
        reward = f"{read_record(image).image.reward:.4g}"
        assert re.search(rf"\| best-of-n +\| .*scenes {reward}.* {image} ", out)
        assert f"contact sheet: o/{stem}-sheet.png" in out
    winners = [
        [result["images"][0]["reward"] for result in trace["results"]]
        for trace in (main_trace, other)
    ]
    beaten = winners[0][0] > winners[1][0]
    assert out.count(shown.words) == beaten, "only where the difference shows"
    (image,) = Path("o").glob("000-a-red-circle-01-seed*.png")
    large = Path("o/000-a-red-circle-best-8x.png")
    assert f"the best, 8 times as large: {large}" in out
    assert np.array_equal(np.asarray(Image.open(large))[::8, ::8], np.asarray(Image.open(image)))
    assert Image.open(large).size == (256, 256)
    assert not [path for path in find_images(Path("o")) if "8x" in path.name], (
        "a copy is not another image"
    )
    for width in (128, 127):  # large images get none
        assert (
            write_enlarged(Path("x.png"), np.zeros((3, 64, width)))
            == Path("x.png").exists()
            == (width < 128)
        )
    assert Image.open("x.png").size == (127 * 8, 64 * 8)


def test_make_demo_shows_what_was_measured():
    makefile = (Path(__file__).parents[2] / "Makefile").read_text()
    values = dict(re.findall(r"^(DEMO|PROMPT|BUDGET|SEED) \?= (.*)$", makefile, re.M))
    shown = MODELS[values["DEMO"]].showcase
    assert shown is not None
    assert (values["PROMPT"], int(values["SEED"])) == (shown.prompt, shown.seed)
    assert Budget.parse(values["BUDGET"]) == Budget.parse(shown.budget)
    assert "--seed $(SEED) --compare best-of-n --dtype float32" in makefile


@pytest.mark.parametrize("model", ["embedded", "signs"])
def test_the_odds_are_told_of_the_showcase_alone(model):
    shown = MODELS[model].showcase
    assert shown is not None
    assert all(
        f"{name} {share} ± {error} %" in shown.words for name, (share, error) in shown.odds.items()
    )
    assert shown.shows({"seed-pruning": 1.0, "best-of-n": 0.9})
    for winners in ({"seed-pruning": 0.9, "best-of-n": 0.9}, {"best-of-n": 0.9}, {}):
        assert not shown.shows(winners)
    call = defaults(model)
    engine = EngineSpec(ModelOptions(model), ("scenes",), call=call)
    asked = SearchRequest(
        (Prompt(shown.prompt),), engine, "seed-pruning", Budget.parse(shown.budget), shown.seed
    )
    search = prepare(asked, ModelDefaults())
    assert showcase_of(search, call) is shown
    engines = (
        replace(engine, call={**call, "num_inference_steps": 7}),
        replace(engine, model=ModelOptions("scenes-turbo")),
    )
    others = [
        {"seed": shown.seed + 1},
        {"budget": Budget(nfe=7)},
        {"prompts": (Prompt("b"),)},
    ]
    others += [{"engine": other} for other in engines]
    for other in others:
        search = prepare(replace(asked, **other), ModelDefaults())
        assert showcase_of(search, call) is None
