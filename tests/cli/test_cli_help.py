"""What a newcomer reads: help that fits a terminal, algorithms and their options, settings that
come back whole."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
from pathlib import Path

import pytest

from ttsnap.algorithms import ALGORITHMS, GROUPS, make_algorithm
from ttsnap.cli import COMMANDS, main, parse
from ttsnap.cli.algorithms import algorithm_in_full
from ttsnap.cli.arguments import read_prompts
from ttsnap.extras import install

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _terminal(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.chdir(tmp_path)


def printed(argv, capsys):
    """What a command line that only tells something prints."""
    with contextlib.suppress(SystemExit):
        assert main(argv) == 0
    out, error = capsys.readouterr()
    assert not error
    return out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_a_page_that_fits_a_terminal_and_all_of_it_is_free_of_noise(command, capsys):
    page, whole = printed([command, "--help"], capsys), printed([command, "--help-all"], capsys)
    assert len(page.splitlines()) <= 30
    for text in (page, whole, printed(["--help"], capsys)):
        assert max(map(len, text.splitlines())) <= 80
        assert not re.search(
            r"type: |default: (null|None|False|\[\]|\{\})|default: \)|==SUPPRESS==", text
        )
        assert len(text.split("\n\n")[0].splitlines()) <= 2, "the usage is a line or two"
    assert f"ttsnap {command} --help-all" in page
    options = re.findall(r"^  (--[\w.-]+)", page, re.M)
    assert set(options) <= set(re.findall(r"^  (?:-h, )?(--[\w.-]+)", whole, re.M))
    assert "  ttsnap" in page, "an example"
    assert not re.search(r"\\\n\n", page), "whole commands"


def test_options_of_generate_come_in_groups_the_ones_most_people_need_first(capsys):
    page = printed(["generate", "--help"], capsys)
    for option in (
        "PROMPT",
        "--budget",
        "--algorithm",
        "--reward",
        "--model",
        "--keep",
        "--seed",
        "--device",
        "--out",
    ):
        assert f"\n  {option} " in page
    assert "--decode-batch-size" not in page
    assert re.search(r"^  --budget .*400nfe.*20images.*30s.*pflop", page, re.M)
    text = printed(["generate", "--help-all"], capsys)
    titles = ["what to make:", "search:", "sampler:", "model and memory:", "output:", "algorithms:"]
    places = [text.index(f"\n{title}\n") for title in titles]
    assert places == sorted(places)
    parts = dict(zip(titles, re.split("\n(?:" + "|".join(titles) + ")\n", text)[1:], strict=True))
    for title, option in zip(
        titles, ["--prompts-file", "--budget", "--kernel", "--offload", "--out"], strict=False
    ):
        assert f"\n  {option} " in f"\n{parts[title]}"
    assert "(default: 0)" in parts["what to make:"]
    for name, entry in ALGORITHMS.items():
        assert re.search(rf"^  {name} +{re.escape(entry.summary)}$", parts["algorithms:"], re.M)


def test_algorithms_are_listed_by_group_and_told_about_one_by_one(
    capsys,
):
    text = printed(["algorithms"], capsys)
    assert all(f"  {name} " in text for name in ALGORITHMS)
    assert all(title[:30] in text for title in GROUPS.values())
    text = printed(["algorithms", "svdd"], capsys)
    flat = " ".join(text.split())
    assert (
        "streams Particles, at least as many as images are asked for. Default: 2 (as compared in"
        " arXiv" in flat
    )
    assert "needs: a kernel that draws noise" in flat
    assert "source: arXiv 2408.08252" in flat
    assert main(["algorithms", "svd"]) == 2
    assert (
        "unknown algorithm 'svd'; did you mean svdd? Choose one of best-of-n"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_command_and_the_file_that_are_shown_are_accepted(name):
    text = algorithm_in_full(name)
    command = next(line for line in text.splitlines() if line.startswith("  ttsnap generate"))
    parse(shlex.split(command)[1:])
    if name == "price-of-compute":  # whose file is made by ttsnap tune --policy price-of-compute
        assert "as a file" not in text
    else:
        make_algorithm(json.loads(text.splitlines()[-1]))


@pytest.mark.parametrize(
    "words",
    [
        "generate 'a red circle' 'two blue squares: big' --options.n 4 --budget 40nfe --keep 2",
        "record 'a red circle' --out o --score-steps '[2, 6]'",
        "simulate 'a red circle' --budgets 10nfe 20nfe",
        "tune 'a red circle'",
        "tune 'a red circle' --policy price-of-compute --check-at '[3, 9]'",
        "distill --out o --recordings 'a red circle' --reward scenes",
    ],
)
def test_printed_settings_given_back_are_the_same_settings(words, capsys):
    argv = shlex.split(words)
    text = printed([*argv, "--print_config"], capsys)
    Path("run.yaml").write_text(text)
    assert printed([argv[0], "--config", "run.yaml", "--print_config"], capsys) == text
    assert "a red circle" in text


def test_prompts_of_a_config_file_are_read_and_what_is_typed_wins_wherever_it_stands():
    for written, typed, expected in (
        ("[a red circle, a blue square]", [], ["a red circle", "a blue square"]),
        ("[a red circle]", ["a green cross"], ["a green cross"]),
    ):
        Path("run.yaml").write_text(f"prompts: {written}\nseed: 5\nkeep: 2\n")
        for argv in (
            [*typed, "--config", "run.yaml", "--seed", "3"],
            ["--seed=3", "--config=run.yaml", *typed],
        ):
            a = parse(["generate", *argv])[1]
            assert [prompt.text for prompt in read_prompts(a, "generate")] == expected
            assert (a.seed, a.keep) == (3, 2)
    for written in ("[1, 2]", "a red circle"):
        Path("run.yaml").write_text(f"prompts: {written}\n")
        with pytest.raises(ValueError, match=r"run\.yaml: prompts"):
            parse(["generate", "--config", "run.yaml"])


def test_what_is_said_about_installing_works():
    assert re.fullmatch(r"pip install 'gradio>=[\d.]+'", install("demo"))
    assert re.fullmatch(r"pip install 'xformers>=[\d.]+'", install("xformers"))
    rooms = [
        ROOT / name
        for name in ("ttsnap", "pipelines", "docs", "notebooks", "benchmarks", "scripts")
    ]
    files = [
        path
        for room in rooms
        for path in room.rglob("*")
        if path.suffix in (".py", ".md", ".ipynb")
    ]
    # a notebook's %pip is for Colab, which has no clone
    told = r"(?<!%)pip install [^`\n]*ttsnap\["
    for path in (ROOT / "README.md", *files):
        assert not re.search(told, path.read_text(encoding="utf-8")), path
