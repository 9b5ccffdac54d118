"""Images that differ, through every door, on the embedded model."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from ttsnap import BestOfN
from ttsnap.cli import main
from ttsnap.pipelines import load
from ttsnap.request.limits import SearchLimits
from ttsnap.request.offer import SearchFields, ServingCatalog, request_of
from ttsnap.request.request import ModelDefaults, prepare
from ttsnap.results.record import read_record

PROMPT = "two green crosses"
SEARCH = {
    "search": BestOfN(10),
    "reward": "scenes",
    "seed": 0,
    "num_inference_steps": 6,
}
OFFER = ServingCatalog("embedded", ("scenes",), lambda model: ModelDefaults())


def red(images):
    return images[:, :1].flatten(1)


@pytest.mark.usefixtures("shallow_model")
def test_the_call():
    pipe = load(dtype=torch.float32)
    plain = pipe(PROMPT, num_images_per_prompt=4, **SEARCH)
    found = pipe(
        PROMPT, num_images_per_prompt=4, diverse=True, diversity=8.0, likeness=red, **SEARCH
    )
    seeds = [[candidate.seed for candidate in out.search[0].images] for out in (plain, found)]
    assert [len(images) for images in seeds] == [4, 4]
    assert seeds[1][0] == seeds[0][0]
    assert set(seeds[1]) != set(seeds[0])
    assert [out.search[0].spent.cost.features for out in (plain, found)] == [0, 10]
    assert not {"diversity", "likeness"} & set(json.loads(plain.images[0].info["ttsnap"])["search"])
    for name, value in {"diversity": 2.0, "likeness": "pixels"}.items():
        with pytest.raises(ValueError, match=f"{name} {value} .*diverse .* leave {name} out"):
            pipe(PROMPT, num_images_per_prompt=4, **{name: value}, **SEARCH)


@pytest.mark.usefixtures("shallow_model")
def test_the_command_line_and_replay(tmp_path, capsys):
    how = ["--budget", "60nfe", "--steps", "6", "--algorithm", "best-of-n", "--dtype", "float32"]
    differ = ["--keep", "4", "--diverse", "--diversity", "4", "--likeness", "pixels"]
    assert main(["generate", PROMPT, *how, *differ, "--out", str(tmp_path / "out")]) == 0
    assert "10 images described" in capsys.readouterr().out
    images = sorted((tmp_path / "out").glob("0*.png"))
    search = read_record(images[2]).to_json()["search"]
    assert (len(images), search["diversity"], search["likeness"], search["rank"]) == (
        4,
        4.0,
        "pixels",
        3,
    )
    assert main(["replay", str(images[2])]) == 0
    again = images[2].parent / "replays" / images[2].name
    assert (
        abs(np.asarray(Image.open(again), int) - np.asarray(Image.open(images[2]), int)).max() <= 1
    )


def test_what_strangers_may_ask_for():
    def asked(**fields):
        given = SearchFields.of({"prompt": PROMPT, **fields})
        return prepare(request_of(given, OFFER, SearchLimits()), ModelDefaults())

    search, plain = asked(n=4, diverse=True), asked(n=4)
    assert (
        search.selection.diversity,
        search.request.selection.likeness,
        search.engine.batch.features,
    ) == (
        1.0,
        None,
        "auto",
    )
    assert plain.engine == asked(diverse=True).engine != search.engine
    with pytest.raises(ValueError, match="likeness is unknown"):
        asked(likeness="dino")
