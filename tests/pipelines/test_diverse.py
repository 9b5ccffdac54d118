"""Images that differ, through every door, on the embedded model."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.shallow import shallow
from ttsnap import BestOfN
from ttsnap.cli import main, parse
from ttsnap.demo.form import DemoLimits, read
from ttsnap.demo.snippet import command_line, python_lines
from ttsnap.pipelines import load
from ttsnap.request.limits import SearchLimits
from ttsnap.request.offer import SearchFields, ServingCatalog, request_of
from ttsnap.request.request import ModelDefaults, Prepared, prepare
from ttsnap.results.record import read_record

PROMPT = "two green crosses"
SEARCH: dict[str, Any] = {"search": BestOfN(10), "reward": "scenes", "seed": 0, "num_inference_steps": 6}
OFFER = ServingCatalog("embedded", ("scenes",), lambda model: ModelDefaults())


@pytest.fixture(scope="module")
def pipe() -> Any:
    with shallow():
        made = load(dtype=torch.float32)
    made.set_progress_bar_config(disable=True)
    return made


def seeds(out: Any) -> list[int]:
    return [candidate.seed for candidate in out.search[0].images]


def test_the_call(pipe: Any) -> None:
    plain = pipe(PROMPT, num_images_per_prompt=4, **SEARCH)
    found = pipe(PROMPT, num_images_per_prompt=4, diverse=True, diversity=8.0, **SEARCH)
    assert len(found.images) == 4
    assert seeds(found)[0] == seeds(plain)[0]
    assert set(seeds(found)) != set(seeds(plain))
    assert found.search[0].spent.cost.features == 10
    assert plain.search[0].spent.cost.features == 0
    nothing = pipe(PROMPT, num_images_per_prompt=4, diverse=True, diversity=0.0, **SEARCH)
    assert seeds(nothing) == seeds(plain)
    told = json.loads(found.images[0].info["ttsnap"])["search"]
    assert (told["diversity"], told["likeness"]) == (8.0, "auto")
    assert not {"diversity", "likeness"} & set(json.loads(plain.images[0].info["ttsnap"])["search"])


@pytest.mark.parametrize("own", [{"diversity": 2.0}, {"likeness": "pixels"}])
def test_what_is_for_images_that_differ_alone_is_refused(pipe: Any, own: dict[str, Any]) -> None:
    ((name, value),) = own.items()
    words = f"{name} {value} is for images that differ: ask for these by diverse .* or leave {name} out"
    with pytest.raises(ValueError, match=words):
        pipe(PROMPT, num_images_per_prompt=4, **own, **SEARCH)


def test_one_image_is_the_winner_to_the_bit(pipe: Any) -> None:
    for search in ("best-of-n", "seed-pruning"):
        own = {**SEARCH, "search": search, "budget": "60nfe"}
        plain, found = pipe(PROMPT, **own), pipe(PROMPT, diverse=True, **own)
        assert np.array_equal(np.asarray(plain.images[0]), np.asarray(found.images[0]))
        assert plain.search[0].spent.cost == found.search[0].spent.cost


def test_a_function_of_the_user_s(pipe: Any) -> None:
    def red(images: torch.Tensor) -> torch.Tensor:
        return images[:, :1].flatten(1)

    out = pipe(PROMPT, num_images_per_prompt=3, diverse=True, likeness=red, **SEARCH)
    assert json.loads(out.images[0].info["ttsnap"])["search"]["likeness"] == "red"


@pytest.mark.usefixtures("shallow_model")
def test_the_command_line_and_replay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    how = ["--budget", "60nfe", "--steps", "6", "--algorithm", "best-of-n", "--dtype", "float32"]
    differ = ["--keep", "4", "--diverse", "--diversity", "4", "--likeness", "pixels"]
    assert main(["generate", PROMPT, *how, *differ, "--out", str(tmp_path / "out")]) == 0
    assert "10 images described" in capsys.readouterr().out
    images = sorted((tmp_path / "out").glob("0*.png"))
    assert len(images) == 4
    search = read_record(images[2]).to_json()["search"]
    assert (search["diversity"], search["likeness"], search["rank"]) == (4.0, "pixels", 3)
    assert json.loads((tmp_path / "out" / "trace.json").read_text())["results"][0]["spent"]["features"] == 10
    assert main(["replay", str(images[2])]) == 0
    again = images[2].parent / "replays" / images[2].name
    assert abs(np.asarray(Image.open(again), int) - np.asarray(Image.open(images[2]), int)).max() <= 1


def test_a_recording_is_refused_with_a_sentence(tmp_path: Path, pipe: Any) -> None:
    from ttsnap import search
    from ttsnap.options.record import RecordOptions
    from ttsnap.recordings.record import record
    from ttsnap.recordings.replay import ReplayEngine

    made = record(pipe.engine("scenes", num_inference_steps=4), [PROMPT], tmp_path / "r", RecordOptions(seeds=4))
    with pytest.raises(ValueError, match="takes no features by which to compare them"):
        search([PROMPT], BestOfN(4), ReplayEngine(made), keep=2, diversity=1.0)


def test_what_strangers_may_ask_for() -> None:
    def asked(**fields: Any) -> Prepared:
        given = SearchFields.of({"prompt": PROMPT, **fields})
        return prepare(request_of(given, OFFER, SearchLimits()), ModelDefaults())

    search, plain, single = asked(n=4, diverse=True), asked(n=4), asked(diverse=True)
    assert (search.diversity, search.request.likeness, search.engine.batch.features) == (1.0, None, "auto")
    assert plain.engine == single.engine != search.engine
    for name in ("likeness", "diversity"):
        with pytest.raises(ValueError, match=f"unknown key.* {name}"):
            SearchFields.of({"prompt": PROMPT, name: "dino"})


def test_the_demo_s_lines_repeat_it() -> None:
    fields = {"prompt": PROMPT, "model": "embedded", "algorithm": "seed-pruning", "rewards": ["scenes"], "steps": 10,
              "budget": "60nfe", "seed": 0, "keep": 4, "size": None, "diverse": True, "draft": False}  # fmt: skip
    search, best = (prepare(read({**fields, "diverse": diverse}, OFFER, DemoLimits()), ModelDefaults())
                    for diverse in (True, False))  # fmt: skip
    a = parse(shlex.split(command_line(search))[1:])[1]
    assert (a.keep, a.diverse, a.diversity) == (4, True, search.request.diversity)
    assert "diverse=True" in python_lines(search)
    assert "diverse" not in python_lines(best)
