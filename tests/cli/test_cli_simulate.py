"""`ttsnap simulate` and `tune` as a new user meets them, and what they write in
use."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from ttsnap import SeedPruning, make_algorithm
from ttsnap.cli import main
from ttsnap.core.looks import estimates
from ttsnap.recordings.folder import load_recording, save_recording
from ttsnap.recordings.header import Header
from ttsnap.recordings.replay import Recording

PROMPTS = ["two red circles and a blue square", "a green cross above a yellow triangle"]
PRICED = ["--policy", "price-of-compute", "--out", "priced.json"]
FEW = ["--budgets", "8nfe", "16nfe", "40nfe"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A recording of 12 prompts x 20 seeds on the embedded model's grid of four steps, with random
    scores."""
    from ttsnap.pipelines import defaults, load

    grid = load().denoiser(**{**defaults(), "num_inference_steps": 4}).grid
    rng = np.random.default_rng(0)
    known, final = np.array([0.1, 0.6, 0.8, 0.9, 1.0]), rng.normal(size=(12, 20, 1))
    scores = (
        rng.normal(size=(12, 1, 1))
        + known * final
        + np.sqrt(1 - known**2) * rng.normal(size=(12, 20, 5))
    )
    out = tmp_path_factory.mktemp("recordings") / "r"
    save_recording(
        Recording(tuple(f"prompt {i}" for i in range(12)), scores[..., None], grid, ("scenes",)),
        out,
    )
    return out


@pytest.fixture
def inside(tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    return str(folder)


def cells(line):
    """Of a row of a Markdown table."""
    return re.split(r" *\| *", line)[1:-1]


@pytest.mark.usefixtures("few_prices")
def test_from_a_recording_to_images(inside, tmp_path, capsys):
    assert main(["tune", inside, "--trials", "5", "--checks", "2", *FEW]) == 0
    out = capsys.readouterr().out
    assert re.search(r"checks at steps \[.*\] \(noise levels \[.*\]\), keeping \[", out)
    assert re.search(
        r"than seed pruning as it is by default: its omega is [\d.]+ ± [\d.]+ (higher|lower)", out
    ), out
    # What it prints of the prompts kept out is what `simulate` prints of them, to the last digit.
    assert (
        "the prompts that were kept out of the fit, 9:12 of the recording:\n3 prompts x 20 seeds"
        in out
    )
    assert (
        main(
            [
                "simulate",
                inside,
                "--prompts",
                "9:12",
                "--algorithms",
                "seed-pruning",
                "tuned.json",
                *FEW,
            ]
        )
        == 0
    )
    table = capsys.readouterr().out
    assert len(table.splitlines()) == 9
    assert table in out
    assert main(["tune", inside, *PRICED, "--check-at", "[1, 2, 4]"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"explain, within a prompt: step 1: \d+%, step 2: \d+%, step 4: 100%", out), (
        out
    )
    assert "counts as 0 evaluations" in out
    assert isinstance(make_algorithm("tuned.json"), SeedPruning)
    priced = make_algorithm("priced.json", width=4)
    assert priced.forecast.checks == estimates(1, 2, 4)

    Path("best-of-n.json").write_text(
        '{"name": "seed-pruning", "n": 16, "keep": [0.5], "levels": [0.5]}'
    )
    assert main(["simulate", inside, "--algorithms", "best-of-n.json", "--repeats", "2", *FEW]) == 0
    out = capsys.readouterr().out
    assert cells(out.splitlines()[1]) == ["budget", "best-of-n", "best-of-n.json"]
    assert "does not pay for the 16 seeds that best-of-n.json was given" in out

    argv = [
        "simulate",
        inside,
        "--algorithms",
        "best-of-n",
        "tuned.json",
        "priced.json",
        "--repeats",
        "4",
        *FEW,
    ]
    for shared in ([], ["--shared"]):
        assert main([*argv, *shared, "--out", f"curves{len(shared)}"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == "12 prompts x 20 seeds, honest ledger, the winner's score: scenes"
        assert cells(lines[1]) == ["budget", "best-of-n", "tuned", "priced"]
        assert [cells(line)[0] for line in lines[3:6]] == ["8nfe", "16nfe", "40nfe"]
        label, base, *others = cells(lines[6])
        assert (label, base) == ("omega, %", "0")
        assert all(re.fullmatch(r"-?[\d.]+ ± [\d.]+", cell) for cell in others)
        assert cells(lines[7])[:2] == ["equals N", "10"]
        assert cells(lines[8])[0] == "equals best-of-n at 40nfe from"
        with Path(f"curves{len(shared)}/curves.csv").open() as file:
            table = list(csv.DictReader(file))
        assert [row["algorithm"] for row in table] == ["best-of-n"] * 3 + ["tuned"] * 3 + [
            "priced"
        ] * 3
        assert all(float(row["spent_mean"]) <= float(row["budget"][:-3]) for row in table)
        assert Path(f"curves{len(shared)}/curves.png").read_bytes()[:4] == b"\x89PNG"

    call = ["--device", "cpu", "--budget", "12nfe"]
    runs = [
        ["tuned.json"],  # with the four steps that it says
        ["priced.json", "--shared", "--steps", "4"],
        ["priced.json", "--options.width", "4", "--steps", "4"],
    ]
    for i, extra in enumerate(runs):
        assert main(["generate", *PROMPTS, *call, "--out", f"o{i}", "--algorithm", *extra]) == 0
        spent = [int(n) for n in re.findall(r"spent (\d+) nfe", capsys.readouterr().out)]
        assert 4 <= min(spent) <= sum(spent) <= 24
        assert "--shared" in extra or max(spent) <= 12
        assert len(list((tmp_path / f"o{i}").rglob("*.png"))) >= 2


@pytest.mark.usefixtures("few_prices")
def test_nothing_is_overwritten_unless_asked(inside, capsys):
    commands = [
        (["tune", inside, "--trials", "2", *FEW], "tuned.json"),
        (["tune", inside, *PRICED], "priced.json"),
        (["simulate", inside, *FEW, "--repeats", "1", "--out", "curves"], "curves/curves.csv"),
    ]
    for argv, name in commands:
        file = Path(name)
        file.parent.mkdir(exist_ok=True)
        file.write_text("mine")
        refuse(argv, "--overwrite", capsys)
        assert file.read_text() == "mine"
        assert main([*argv, "--overwrite"]) == 0
        assert file.read_text() != "mine"


def test_published_tensors_and_levels(inside, capsys):
    from safetensors.numpy import save_file

    rng = np.random.default_rng(0)
    save_file(
        {k: rng.normal(size=(5, 30, 20)).astype(np.float32) for k in ("base", "noise_aware")},
        "t.safetensors",
    )
    Path("steps.json").write_text(json.dumps({"name": "seed-pruning", "keep": [0.5], "steps": [4]}))
    argv = [
        "simulate",
        "t.safetensors",
        "--budgets",
        "400:1200:400tflop",
        "--repeats",
        "2",
        "--ledger",
        "published",
    ]
    assert main([*argv, "--algorithms", "steps.json", "--prompts", "1:5", "--scores", "base"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("4 prompts x 30 seeds, published ledger")
    assert re.search(r"^\| 800tflop +\| +-?[\d.]+ ± [\d.]+ ", out, re.MULTILINE)
    refuse([*argv, "--algorithms", "seed-pruning"], "in steps only", capsys)


REFUSED = [
    ("simulate R --prompts 3", "cannot read range '3'; write it like 0:20"),
    ("tune R --seeds a:b", "cannot read range 'a:b'"),
    (
        "tune R --policy price-of-compute --prompts 12:20",
        "leaves nothing of the recorded 12 prompts x 20 seeds",
    ),
    ("simulate R --utility magic", "unknown utility 'magic'"),
    ("tune R --utility '[1, 2]'", "2 weights for 1 rewards"),
    ("tune R --policy price-of-compute --utility '[1, 2]'", "2 weights for 1 rewards"),
    ("tune nowhere --policy price-of-compute", "nowhere"),
    ("simulate R --budgets magic", "cannot read budget 'magic'"),
    ("simulate R --budgets 3nfe", "too small for one image, which takes 4 NFE;"),
    ("simulate R --budgets 40:20:5nfe", "cannot read budgets '40:20:5nfe'; write them like"),
    ("simulate R --budgets 1:1000000000:1nfe", "at most 1000 at once"),
    (f"simulate R --budgets 1:{'9' * 400}:1nfe", "at most 1000 at once"),
    ("simulate R --budgets 1e308nfe", "must be a number above 0, at most"),
    (
        "simulate R --algorithms price-of-compute",
        "`ttsnap tune RECORDING --policy price-of-compute --out priced.json`",
    ),
    ("simulate R --algorithms none.json", "cannot read algorithm file none.json"),
    ("simulate R --ledger magic", "--ledger must be 'honest' or 'published', got 'magic'"),
    ("simulate R --repeats 0", "repeats must be greater than or equal to 1, got 0"),
    ("simulate R --workers 0", "workers must be greater than or equal to 1, got 0"),
    ("tune R --trials 0", "trials must be greater than or equal to 1, got 0"),
    ("tune R --checks 0", "checks must be greater than or equal to 1, got 0"),
    ("tune R --holdout 1", "holdout 1.0 of 12 prompts leaves 0"),
    ("tune R --out no/t.json", "no folder no to write t.json to"),
    (
        "tune R --policy price-of-compute --check-at '[1, 3]'",
        r"checks must rise and end at the last grid step 4, got \[1, 3\]",
    ),
    ("tune R --score-cost -1", "--score-cost must be greater than or equal to 0, got -1"),
    (
        "tune R --policy price-of-compute --prompts 0:2",
        "at least 3 prompts of 5 seeds to calibrate, got 2 of 20",
    ),
    ("tune R --policy price-of-compute --trials 9 --holdout 0.2", "--trials and --holdout"),
    ("tune R --policy price-of-compute --utility rank_sum", "rank_sum scores no image by itself"),
]


@pytest.mark.parametrize(("words", "said"), REFUSED)
def test_what_cannot_be_is_one_line(words, said, inside, capsys):
    refuse(shlex.split(words.replace(" R", f" {inside}", 1)), said, capsys)
    assert not list(Path().iterdir())


def test_recordings_that_are_unfinished_do_not_vary_or_failed(inside, capsys):
    whole = load_recording(inside)
    scores = {"do not vary": np.full_like(whole.scores, 0.3), "failed": whole.scores.copy()}
    scores["failed"][0, 0, 1] = np.nan
    for name, values in scores.items():
        save_recording(dataclasses.replace(whole, scores=values), name)
    Path("unfinished").mkdir()
    Path("unfinished/recording.json").write_text(json.dumps(Header.of(whole).to_json()))
    for name in (*scores, "unfinished"):
        for command in ("simulate", "tune", "tune --policy price-of-compute"):
            refuse([*command.split(), name], name, capsys)
    # Prompts that were kept out do not vary: the schedule is written, and nothing is said of it.
    half = whole.scores.copy()
    half[9:] = 0.3
    save_recording(dataclasses.replace(whole, scores=half), "half")
    assert main(["tune", "half", "--trials", "2", *FEW]) == 0
    assert "do not vary within any prompt that was kept out" in capsys.readouterr().out
    assert (
        main(["tune", "half", "--trials", "2", "--holdout", "0", "--out", "whole.json", *FEW]) == 0
    )
    assert "no prompt was kept out" in capsys.readouterr().out
    assert isinstance(make_algorithm("tuned.json"), SeedPruning)


def test_one_prompt_budgets_that_buy_the_same_and_names_that_meet(inside, capsys):
    assert main(["simulate", inside, "--prompts", "0:1", *FEW]) == 0
    out = capsys.readouterr()
    assert out.out.startswith("1 prompt x 20 seeds, honest ledger")
    assert "±" not in out.out
    assert "Warning" not in out.err
    assert main(["simulate", inside, "--budgets", "8nfe", "9nfe", "10nfe"]) == 0
    out = capsys.readouterr()
    assert re.search(r"omega, % +\| +- +\| +- \|\n", out.out), out.out
    assert (
        "omega is not defined: best-of-n gains nothing from the smallest budget to the largest"
        in out.out
    )
    for name, keep in (("a", 0.5), ("b", 0.2)):  # names that meet are told apart
        Path(name).mkdir()
        Path(name, "t.json").write_text(
            json.dumps({"name": "seed-pruning", "keep": [keep], "levels": [0.6]})
        )
    assert (
        main(["simulate", inside, "--algorithms", "a/t.json", "b/t.json", "--repeats", "1", *FEW])
        == 0
    )
    assert cells(capsys.readouterr().out.splitlines()[1]) == [
        "budget",
        "best-of-n",
        "a/t.json",
        "b/t.json",
    ]
    assert main(["tune", inside, "--holdout", "0.1", "--trials", "2", *FEW]) == 0
    assert "a single prompt gives no error; record more prompts" in capsys.readouterr().out


def refuse(argv, message, capsys):
    capsys.readouterr()
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert re.search(rf"(^|\s)ttsnap: error: .*{message}.*\n\Z", error), error
