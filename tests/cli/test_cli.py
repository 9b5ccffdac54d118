"""The command line as a new user meets it, on the embedded model."""

from __future__ import annotations

import json
import re
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from ttsnap import BestOfN, search
from ttsnap.cli import main
from ttsnap.options.model import ModelOptions
from ttsnap.options.sampler import SamplerOptions
from ttsnap.pipelines.opening import placement, reward_placement, settled
from ttsnap.results.record import SearchRecord, read_record
from ttsnap.results.report import report_in_full
from ttsnap.scenes import weights_path

PROMPT = "two red circles and a blue square"
QUICK = ["--steps", "6", "--device", "cpu"]


@pytest.fixture(autouse=True)
def _inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_generate_and_replay(tmp_path, capsys):
    how = ["--keep", "2", *QUICK]
    assert main(["generate", PROMPT, "--budget", "60nfe", *how]) == 0
    folder = tmp_path / "outputs" / "0001-two-red-circles-and-a-blue-square"
    images = sorted(folder.glob("0*.png"))
    assert len(images) == 2
    assert (folder / "sheet.png").is_file()
    out = capsys.readouterr().out
    assert " nfe, " in out
    assert "TFLOPs" in out
    assert re.search(r"trace in \S+; [\d.]+ s in all, [\d.]+ s of them loading$", out.strip())
    seed = read_record(images[0]).image.seed
    assert f"manual_seed({seed})" in out
    trace = json.loads((folder / "trace.json").read_text())
    assert trace["results"][0]["spent"]["nfe"] <= 60
    # The command that was printed, in plain diffusers.
    pipe = DiffusionPipeline.from_pretrained(weights_path())
    pipe.set_progress_bar_config(disable=True)
    code = next(line for line in out.splitlines() if line.strip().startswith("pipe("))
    again = eval(code.strip(), {"pipe": pipe, "torch": torch}).images[0]
    assert abs(np.asarray(again, int) - np.asarray(Image.open(images[0]), int)).max() <= 1

    assert main(["replay", str(folder / "sheet.png")]) == 2
    capsys.readouterr()
    assert main(["replay", *map(str, folder.glob("*.png"))]) == 0
    assert capsys.readouterr().out.count("largest difference") == len(images)
    replayed = images[0].parent / "replays" / images[0].name
    assert (
        abs(np.asarray(Image.open(replayed), int) - np.asarray(Image.open(images[0]), int)).max()
        <= 1
    )
    assert main(["replay", str(images[0])]) == 0
    assert main(["replay", str(images[0]), "--out", str(replayed.parent)]) == 2
    assert "exists" in capsys.readouterr().err


def test_images_that_fail_a_requirement_are_not_written(tmp_path, capsys):
    words = [
        "generate",
        PROMPT,
        "--budget",
        "60nfe",
        "--keep",
        "10",
        "--algorithm",
        "best-of-n",
        *QUICK,
        "--reward",
        "brightness",
    ]
    assert main([*words, "--out", "all"]) == 0
    table = json.loads(Path("all/trace.json").read_text())["results"][0]["images"]
    scores = sorted(image["scores"]["brightness"] for image in table)
    middle = (scores[-4] + scores[-3]) / 2
    Path("c.yaml").write_text(f"require: brightness>{middle}\n")
    capsys.readouterr()
    required = ["--require", f"brightness>{middle}", "--require", "colourfulness<999"]
    for n, more in enumerate((required, ["--config", "c.yaml"])):
        assert main([*words, *more, "--out", f"some{n}"]) == 0
        trace = json.loads(Path(f"some{n}/trace.json").read_text())
        (result,) = trace["results"]
        assert [image["scores"]["brightness"] for image in result["images"]] == scores[:-4:-1]
        assert result["spent"]["refused"][f"brightness>{middle:.12g}"] == len(scores) - 3
        assert trace["settings"]["reward"] == ["brightness"]
        assert (
            f"{len(scores) - 3} of {len(scores)} finished images were refused"
            in capsys.readouterr().out
        )
    image = next(Path("some0").glob("0*1.png"))
    assert read_record(image).noted["require"] == [f"brightness>{middle:.12g}", "colourfulness<999"]
    assert main(["replay", str(image)]) == 0
    capsys.readouterr()
    assert main([*words, "--require", "brightness>1", "--out", "none"]) == 1
    assert "no image meets what is required" in capsys.readouterr().out
    assert not list(Path("none").glob("*.png"))
    assert json.loads(Path("none/trace.json").read_text())["results"][0]["spent"]["nfe"] == 60


@pytest.mark.parametrize("variety", [[], ["--variety", "repel:2"]])
def test_half_precision_and_seeds_beyond_2_63(
    variety,
    tmp_path,
    capsys,
    recwarn,
):
    half = ["--device", "cpu", "--dtype", "bfloat16"]
    more = [
        "--steps",
        "3",
        "--algorithm",
        "best-of-n",
        "--budget",
        "7nfe",
        "--keep",
        "3",
        "--seed",
        str(2**64 - 1),
    ]
    assert main(["generate", "a red circle", *more, *half, *variety]) == 0
    assert "2 of the 3 images asked for were finished" in capsys.readouterr().out
    assert not [w for w in recwarn if "fewer images" in str(w.message)]  # it was said
    images = sorted((tmp_path / "outputs" / "0001-a-red-circle").glob("0*.png"))
    assert sorted(read_record(image).image.seed for image in images) == [0, 2**64 - 1]
    assert main(["replay", *map(str, images), *half]) == 0
    off = re.findall(r": (\d+) of 255", capsys.readouterr().out)
    assert len(off) == 2
    assert max(map(int, off)) <= 3


def test_config_file_prompts_file_own_reward_and_options():
    Path("prompts.txt").write_text("# two prompts\na red circle\n\na blue square\n")
    Path("run.yaml").write_text(
        "prompts_file: prompts.txt\nbudget: 32nfe\nsteps: 6\nout: there\nkernel: sde\n"
    )
    Path("mine.py").write_text(
        "def redness(images, prompts):\n    return images[:, 0].mean((1, 2))\n"
    )
    argv = [
        "generate",
        "--config",
        "run.yaml",
        "--seed",
        "3",
        "--reward",
        "mine.py:redness",
        "--options.n",
        "4",
    ]
    assert main([*argv, "--options.steps", "[2]", "--options.keep", "[0.5]"]) == 0
    sheets = sorted(path.name for path in Path("there").glob("*sheet.png"))
    assert sheets == ["000-a-red-circle-sheet.png", "001-a-blue-square-sheet.png"]
    results = json.loads(Path("there/trace.json").read_text())["results"]
    assert [(r["spent"]["seeds"], r["spent"]["finished"]) for r in results] == [(4, 2)] * 2
    assert {m for r in results for m in r["moves"][0]["seeds"]} == {3, 4, 5, 6}
    assert main(argv) == 2  # the folder is taken


def test_auto_is_what_the_cpu_multiplies_and_a_png_is_made_again_in_its_own_dtype(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx512_bf16": True})
    assert placement("cpu", "auto")[1] == torch.bfloat16
    assert reward_placement("cpu", "auto")[1] == torch.float32, "scores differ by little"
    assert settled(ModelOptions(), "cpu") == ModelOptions(device="cpu", dtype="bfloat16"), (
        "on other machines, too"
    )
    assert settled(ModelOptions(), "cuda").dtype == "auto"
    with monkeypatch.context() as patch:
        patch.setattr("torch.cuda.is_available", lambda: True)
        patch.setattr("torch.cuda.device", lambda place: nullcontext())
        for emulates, kind in ((True, torch.float16), (False, torch.bfloat16)):
            there = partial(
                lambda emulates, including_emulation: including_emulation or not emulates, emulates
            )
            patch.setattr("torch.cuda.is_bf16_supported", there)
            assert placement("cuda:1", "auto") == (torch.device("cuda:1"), kind)
    assert main(["generate", PROMPT, "--budget", "12nfe", *QUICK]) == 0
    assert "the winner in plain diffusers, the pipeline in bfloat16:" in capsys.readouterr().out
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx512_bf16": False})
    assert placement("cpu", "auto")[1] == torch.float32
    (image,) = tmp_path.glob("outputs/*/01-*.png")
    assert read_record(image).dtype == "bfloat16"
    assert main(["replay", str(image), "--device", "cpu"]) == 0
    assert "largest difference" in (out := capsys.readouterr().out)
    assert f"from {image.name}: 0 of 255" in out


def test_a_finished_draft_is_made_again_in_the_batch_of_its_search(
    capsys,
):
    """Of other batches, last digits differ in bfloat16. A replay may be made again in its place."""
    drafted = [
        "--draft",
        "embedded",
        "--finish",
        "0.4:3",
        "--dtype",
        "bfloat16",
        "--budget",
        "40nfe",
    ]
    assert main(["generate", PROMPT, "a red circle", *drafted, "--out", "both"]) == 0
    capsys.readouterr()
    images = list(map(str, Path("both").glob("*-01-*.png")))
    for _ in range(2):
        assert main(["replay", *images]) == 0
        assert capsys.readouterr().out.count(": 0 of 255") == len(images) == 2
    assert main(["generate", PROMPT, *drafted, "--out", "found"]) == 0
    capsys.readouterr()
    (image,) = Path("found").glob("01-*.png")
    noted = read_record(image).image.batches
    assert noted
    assert len(set(noted)) > 1
    assert main(["replay", str(image), "--out", "again"]) == 0
    assert ": 0 of 255" in capsys.readouterr().out
    assert [path.name for path in Path("again").iterdir()] == [image.name]


@pytest.mark.parametrize(
    ("budget", "stop", "end"),
    [
        ("24nfe", False, ""),
        ("23nfe", False, "; 23 NFE were used up"),
        ("24nfe", True, "; stopped"),
    ],
)
def test_the_cap_that_ended_a_search_stands_in_the_closing_line(engine, budget, stop, end):
    results = search(["a"], BestOfN(3), engine(), budget, should_stop=lambda: stop)
    record = SearchRecord("x", "x", {}, SamplerOptions(draft=None), "best-of-n", {}, budget)
    told = "\n".join(report_in_full(results, 0, record))
    assert re.search(rf"of a budget of {budget}; \d seeds started, \d finished{end}\n", told)
    assert "% between them; " in told
    assert told.endswith(" s before, to warm up")
