"""What people get of a result: a line, a page in notebooks, files, and images that know how they
were made."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from ttsnap import SeedPruning, make_algorithm, search
from ttsnap.algorithms.nested import Nested
from ttsnap.algorithms.refined import Refined
from ttsnap.algorithms.smc.smc import SMC
from ttsnap.algorithms.top_noises import TopNoises
from ttsnap.algorithms.zero_order import ZeroOrder
from ttsnap.cli import main
from ttsnap.core.prompt import Prompt
from ttsnap.core.selection import Selection
from ttsnap.loop.budget import Budget
from ttsnap.options.model import ModelOptions
from ttsnap.options.sampler import SamplerOptions
from ttsnap.pipelines import defaults, load
from ttsnap.pipelines.output import with_thumbnails
from ttsnap.pipelines.record import record_of
from ttsnap.request.request import EngineSpec, ModelDefaults, SearchRequest, prepare
from ttsnap.results.media import png_info, still, to_uint8
from ttsnap.results.outputs import Recorder, save_made, thumbnail, write_results
from ttsnap.results.rank import rank
from ttsnap.results.record import FoundImage, SearchRecord, read_record
from ttsnap.reward_models.registry import make_reward
from ttsnap.rewards.reward_model import FunctionReward

CALL = {"num_inference_steps": 8, "guidance_scale": 4.0, "negative_prompt": "fog"}
RECORD = SearchRecord("toy, v1", "Ode", CALL, SamplerOptions(), "seed-pruning", {}, "60nfe")


@pytest.fixture(scope="module")
def pipe():
    """The embedded model."""
    loaded = load()
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.fixture(scope="module")
def found(pipe):
    """Two prompts with two images each."""
    call = {
        **defaults(),
        "num_inference_steps": 4,
        "negative_prompt": ["a blue cross", "a red cross"],
    }
    how = {
        "search": "seed-pruning",
        "reward": "scenes",
        "budget": "16nfe",
        "num_images_per_prompt": 2,
        "seed": 5,
    }
    return pipe(["a red circle", "a green square"], **how, **call)


def pictures(page):
    data = re.findall(r'src="data:image/\w+;base64,([^"]+)"', page)
    return [Image.open(io.BytesIO(base64.b64decode(text))) for text in data]


def test_a_result_and_an_output_are_a_line(engine, found):
    prompt = "a very long prompt " * 20
    results = search(
        ["a", prompt], SeedPruning(6, (0.5,), steps=(2,)), engine(), selection=Selection(keep=2)
    )
    for result in results:
        assert len(line := repr(result)) < 200
        assert (
            f"2 images, the best of seed {result.best.seed} with reward {result.best.reward:.4g}"
            in line
        )
        assert f"{result.spent.nfe} NFE, 6 seeds" in line
        assert "tensor" not in repr(result.images)
    assert repr(results[0]).startswith("Result('a': ")
    assert repr(found).startswith(
        "SearchStableDiffusion3PipelineOutput(4 images, search=[Result('a red circle': "
    )
    assert not re.search("\n|tensor", repr(results) + repr(found))


def test_notebooks_show_images_and_the_sheet(found, engine):
    shown = pictures(found.search[0]._repr_html_())
    assert [picture.size for picture in shown[:2]] == [(32, 32)] * 2
    assert np.array_equal(np.asarray(shown[0]), np.asarray(still(found.search[0].best.pixels)))
    assert shown[2].size[0] >= 480, "the contact sheet"
    assert len(pictures(found._repr_html_())) == 6
    recorder = Recorder()
    (result,) = search(
        ["<script>"], SeedPruning(2, (0.5,), steps=(2,)), engine(), on_event=recorder
    )
    page = result._repr_html_()
    assert ("<script>" in page, "&lt;script&gt;" in page) == (False, True)
    assert len(pictures(page)) == 1, "no sheet, where nobody kept thumbnails"


def test_images_carry_what_made_them(found, tmp_path, capsys):
    for index, picture in enumerate(found.images):
        result, rank = found.search[index // 2], index % 2
        payload = json.loads(picture.info["ttsnap"])
        assert (payload["prompt"], payload["seed"]) == (result.prompt, result.images[rank].seed)
        assert (payload["model"], payload["search"]["algorithm"]) == ("embedded", "seed-pruning")
        assert payload["call"]["negative_prompt"] == ["a blue cross", "a red cross"][index // 2]
        assert picture.info["parameters"].startswith(f"{result.prompt}\nNegative prompt: a ")
        assert (
            f"Seed: {payload['seed']}, Size: 32x32, Model: embedded" in picture.info["parameters"]
        )
    path = tmp_path / "saved.png"
    assert not png_info(Image.new("RGB", (2, 2))).chunks
    found.images[2].save(path, pnginfo=png_info(found.images[2]))
    assert read_record(path).to_json() == json.loads(found.images[2].info["ttsnap"])
    assert main(["replay", str(path)]) == 0
    assert (
        int(re.search(r"largest difference from saved.png: (\d+)", capsys.readouterr().out)[1]) <= 1
    )  # type: ignore[index]


def test_files_that_earlier_versions_drew_large_are_replayed_and_scored(found, tmp_path, capsys):
    small, large = tmp_path / "small.png", tmp_path / "large.png"
    picture = found.images[2]
    picture.save(small, pnginfo=png_info(picture))
    drawn = picture.resize((128, 128), Image.Resampling.NEAREST)
    drawn.info = {"ttsnap": json.dumps({**json.loads(picture.info["ttsnap"]), "drawn": 4})}
    drawn.save(large, pnginfo=png_info(drawn))
    assert main(["replay", str(large)]) == 0
    assert (
        int(re.search(r"largest difference from large.png: (\d+)", capsys.readouterr().out)[1]) <= 1
    )  # type: ignore[index]
    replayed = tmp_path / "replays" / "large.png"
    assert Image.open(replayed).size == (32, 32)
    assert read_record(replayed).to_json() == read_record(small).to_json()
    ranked = rank(
        dict.fromkeys([small, large], "a red circle"), [make_reward("scenes")], lambda s: s[:, 0]
    )
    assert ranked[0].value == pytest.approx(ranked[1].value)


NESTED = [
    make_algorithm("ttsnap-rbf", n=9),
    Nested(TopNoises(3), SMC(4), n=5),
    Refined(SeedPruning(6, (0.5,), (0.8,)), ZeroOrder(2, rounds=3)),
    {"name": "nested", "first": {"name": "top-noises", "n": 7}, "second": "code"},
    {"name": "nested", "first": TopNoises(7), "second": {"name": "code", "n": 3}},
]


@pytest.mark.parametrize("asked", NESTED)
def test_an_algorithm_in_a_picture_is_read_again_with_its_options(asked, pipe, tmp_path):
    record = told(pipe, asked, SamplerOptions(), {"num_inference_steps": 2}, Budget(nfe=3))
    save_made(
        tmp_path / "x.png", np.zeros((3, 8, 8)), replace(record, found=FoundImage("a", 3, 1.0))
    )
    found = read_record(tmp_path / "x.png")
    assert make_algorithm(found.algorithm, **(found.options or {})) == make_algorithm(asked)


def told(pipe, search, sampler, call, budget):
    spec = EngineSpec(ModelOptions(), ("brightness",), sampler, call=call)
    asked = SearchRequest((Prompt("a"),), spec, search, budget)
    search = prepare(asked, ModelDefaults())
    return record_of(pipe, search, search.engine, search.prompts, ["brightness"])


def test_what_is_not_plain_is_left_out_or_named(pipe, monkeypatch):
    sampler = SamplerOptions(kernel=object())
    call = {"guidance_scale": 2.0, "callback": print, "latents": np.zeros(3)}
    found = told(pipe, SeedPruning(4, (0.5,), steps=(2,)), sampler, call, Budget(nfe=3))
    assert found.call == {"guidance_scale": 2.0}
    assert (found.algorithm, found.to_json()["kernel"], found.budget) == (
        "seed-pruning",
        "object",
        "3nfe",
    )
    assert (found.options or {})["keep"] == (0.5,)
    assert told(pipe, {"name": "svdd", "n": 2}, sampler, {}, Budget()).options == {"n": 2}
    # Without peft, which diffusers asks for where it is asked for adapters.
    monkeypatch.setattr("ttsnap.pipelines.record.USE_PEFT_BACKEND", False)
    monkeypatch.setattr("diffusers.loaders.lora_base.USE_PEFT_BACKEND", False)
    assert told(pipe, "svdd", sampler, {}, Budget()).lora is None
    json.dumps(found.to_json())


def test_thumbnails_of_large_images_are_near_those_of_all_pixels():
    y, x = np.mgrid[0:1024, 0:768] / 1024
    image = np.stack([x, y, np.sin(300 * x) ** 2])
    whole = Image.fromarray(to_uint8(image)).resize((72, 96), Image.Resampling.LANCZOS)
    assert thumbnail(still(image)).size == (72, 96)
    assert np.abs(np.asarray(thumbnail(still(image)), int) - np.asarray(whole, int)).max() <= 6


def test_what_a_safety_checker_flags_has_no_sheet(engine):
    results = search(
        ["a", "b", "c"], SeedPruning(4, (0.5,), steps=(2,)), engine(), selection=Selection(keep=2)
    )
    seen = {job: {(0, 2): Image.new("RGB", (9, 9))} for job in range(3)}
    flags = [False, False, False, True, False, False]
    assert [bool(r.thumbnails) for r in with_thumbnails(results, seen, flags)] == [
        True,
        False,
        True,
    ]
    assert all(r.thumbnails for r in with_thumbnails(results, seen, None))


def test_files_and_metadata(engine, tmp_path):
    results = search(
        ["a", "b: c/d"],
        SeedPruning(6, (0.5, 0.5), steps=(2, 5)),
        engine(),
        selection=Selection(keep=2),
    )
    written = write_results(tmp_path, results, RECORD)
    names = {p.name for p in tmp_path.iterdir()}
    assert (
        len(names - {"trace.json", "000-a-sheet.png", "001-b-c-d-sheet.png"}) == len(names) - 3 == 4
    )
    best, path = results[1].best, written[1][0]
    assert path.name == f"001-b-c-d-01-seed{best.seed}.png"
    told = read_record(path)
    assert (told.call, told.image.seed, told.image.reward) == (
        CALL,
        best.seed,
        pytest.approx(best.reward),
    )
    text = Image.open(path).info["parameters"]
    assert text.splitlines()[:2] == ["b: c/d", "Negative prompt: fog"]
    assert (
        f'Steps: 8, Sampler: Ode, CFG scale: 4.0, Seed: {best.seed}, Size: 1x1, Model: "toy, v1"'
        in text
    )
    assert np.array_equal(np.asarray(Image.open(path)), to_uint8(best.image))
    entry = json.loads((tmp_path / "trace.json").read_text())["results"][1]
    assert (
        sum(m["cost"]["nfe"] for m in entry["moves"])
        == entry["spent"]["nfe"]
        == results[1].spent.nfe
    )
    assert entry["images"][0]["file"] == path.name


def test_images_without_a_score_are_written(engine, tmp_path):
    """A reward that breaks down after its first batch: all images are unscored, and none of them is
    lost."""
    scores = iter([1.0])
    reward = FunctionReward(lambda images, _: [next(scores, float("nan"))] * len(images), "mine")
    results = search(
        ["a"],
        SeedPruning(4, (0.5,), steps=(2,)),
        engine(rewards=[reward]),
        selection=Selection(keep=2),
    )
    (paths,) = write_results(tmp_path, results, RECORD)
    assert [read_record(path).image.reward for path in paths] == [None] * 2
    assert "ttsnap reward" not in Image.open(paths[0]).info["parameters"]
    assert "no image has a score: which of them is the best is not known" in results[0].warnings
