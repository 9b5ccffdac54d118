"""What the site makes of commands, figures and docstrings (docs/_ext)."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ttsnap.cli import COMMANDS

pytest.importorskip("sphinx")
ROOT = Path(__file__).parents[1]


@pytest.fixture
def extension(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "_ext"))
    return importlib.import_module


@pytest.mark.parametrize("name", COMMANDS)
def test_a_commands_page_has_every_option_of_its_help(extension, name):
    made = extension("command_line")
    found = made.read(made.help_of(name))
    terms = [entry.term for options in found.sections.values() for entry in options]
    for action in COMMANDS[name].parser()._actions:
        for option in action.option_strings:
            if option.startswith("--"):
                assert sum(option in term.replace(",", " ").split() for term in terms) == 1, (
                    name,
                    option,
                )
    assert found.usage.startswith(f"ttsnap {name}")
    assert found.prose
    assert all(
        line.startswith(("ttsnap ", "accelerate ", "    ")) for line in found.examples.splitlines()
    )
    assert all(entry.text for options in found.sections.values() for entry in options)


def test_every_command_gets_a_page_and_those_that_are_gone_lose_theirs(extension, tmp_path):
    made = extension("command_line")
    folder = tmp_path / made.PAGES
    folder.mkdir(parents=True)
    (folder / "gone.md").write_text("# ttsnap gone\n")
    made.write_pages(SimpleNamespace(srcdir=str(tmp_path)))
    assert {page.stem for page in folder.iterdir()} == set(COMMANDS)
    assert (folder / "tune.md").read_text().startswith("# ttsnap tune\n\nFit a pruning schedule")
    assert (ROOT / "docs" / "reference" / "cli.md").read_text().count("commands/*") == 1


@pytest.fixture
def dark(extension):
    return extension("dark_figures")


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 256, (50, 50, 3)).astype(np.uint8)


def test_dark_plots_keep_hues_and_turn_lightness_round(dark, picture):
    paper = np.array([[[255, 255, 255], [0, 0, 0], [26, 127, 55], [235, 242, 253]]], np.uint8)
    white, black, green, pale = dark.dark_plot(paper)[0].astype(int)
    assert (white.tolist(), black.tolist()) == (dark.BACKGROUND.tolist(), dark.TEXT.tolist())
    assert (green.argmax(), pale.argmax()) == (1, 2)
    assert green.sum() > 26 + 127 + 55  # lighter on dark than on paper
    assert pale.sum() < 200
    plot = np.full((50, 50, 3), 255, np.uint8)
    plot[25] = 30
    assert dark.darken_of("a.png", "notebooks/01_quick_start", plot) is dark.dark_plot
    assert dark.darken_of("a.png", "notebooks/01_quick_start", picture) is None
    assert dark.darken_of("a.png", "demo", plot) is None
    assert dark.darken_of("sheet.png", "index", picture) is dark.dark_sheet


def test_options_in_docstrings_become_a_list(extension):
    listed = extension("plain_docstrings").listed
    block = ["n: seeds; None for", "    as many as fit.", "keep: shares."]
    assert listed(block, ("n", "keep")) == [
        "`n`",
        "   seeds; None for",
        "   as many as fit.",
        "`keep`",
        "   shares.",
    ]
    for other in (["n: seeds", "and more."], ["n: seeds."], ["Note: none.", "Other: none."]):
        assert listed(other, ("n",)) == []


def test_every_algorithm_has_its_options_in_one_table(extension):
    from ttsnap.algorithms import ALGORITHMS
    from ttsnap.algorithms.options import options_of

    made = extension("algorithm_options")
    text = "\n".join(
        page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "algorithms").glob("*.md")
    )
    tables = [found.split() for found in re.findall(r"^```{algorithm-options} (.*)$", text, re.M)]
    assert sorted(name for names in tables for name in names) == sorted(ALGORITHMS)
    for names in tables:
        lines = made.lines_of(names)
        for name in names:
            shown = {line.name: line for line in lines if name in line.defaults}
            for option in options_of(name):
                assert shown[option.name].text == option.text
                assert shown[option.name].defaults[name] == made.default_of(option)


def test_what_differs_between_algorithms_is_said(extension):
    made = extension("algorithm_options")
    smc = {line.name: line for line in made.lines_of(["smc", "fk-steering"])}
    assert [made.by_algorithm(smc[name].defaults) for name in ("n", "lam")] == [
        "fk-steering: `4`",
        "`10.0`",
    ]
    linked = made.linked("as in arXiv 2505.23614")
    assert (linked.astext(), linked.children[1]["refuri"][-10:]) == (
        "as in arXiv 2505.23614",
        "2505.23614",
    )
    assert (
        made.of_which(made.lines_of(["code", "svdd"])[-1], ["code", "svdd"]).astext()
        == "alpha (svdd)"
    )
    with pytest.raises(ValueError, match="unknown algorithm 'sdd'"):
        made.lines_of(["sdd"])
