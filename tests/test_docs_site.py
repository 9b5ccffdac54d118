"""What the site makes of commands, figures and docstrings (docs/_ext)."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ttsnap.cli import COMMANDS

pytest.importorskip("sphinx")
ROOT = Path(__file__).parents[1]


@pytest.fixture
def extension(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "_ext"))
    return importlib.import_module


@pytest.mark.parametrize("name", COMMANDS)
def test_a_commands_page_has_every_option_of_its_help(extension: Any, name: str) -> None:
    made = extension("command_line")
    found = made.read(made.help_of(name))
    terms = [entry.term for options in found.sections.values() for entry in options]
    for action in COMMANDS[name].parser()._actions:
        for option in action.option_strings:
            if option.startswith("--"):
                assert sum(option in term.replace(",", " ").split() for term in terms) == 1, (name, option)
    assert found.usage.startswith(f"ttsnap {name}")
    assert found.prose
    assert all(line.startswith(("ttsnap ", "accelerate ", "    ")) for line in found.examples.splitlines())
    assert all(entry.text for options in found.sections.values() for entry in options)


def test_every_command_gets_a_page_and_those_that_are_gone_lose_theirs(extension: Any, tmp_path: Path) -> None:
    made = extension("command_line")
    folder = tmp_path / made.PAGES
    folder.mkdir(parents=True)
    (folder / "gone.md").write_text("# ttsnap gone\n")
    made.write_pages(SimpleNamespace(srcdir=str(tmp_path)))
    assert {page.stem for page in folder.iterdir()} == set(COMMANDS)
    assert (folder / "tune.md").read_text().startswith("# ttsnap tune\n\nFit a pruning schedule")
    assert (ROOT / "docs" / "reference" / "cli.md").read_text().count("commands/*") == 1


def test_dark_plots_keep_hues_and_turn_lightness_round(extension: Any) -> None:
    made = extension("dark_figures")
    paper = np.array([[[255, 255, 255], [0, 0, 0], [26, 127, 55], [235, 242, 253]]], np.uint8)
    white, black, green, pale = made.dark_plot(paper)[0].astype(int)
    assert white.tolist() == made.BACKGROUND.tolist()
    assert black.tolist() == made.TEXT.tolist()
    assert green.argmax() == 1
    assert green.sum() > 26 + 127 + 55  # lighter on dark than on paper
    assert pale.argmax() == 2
    assert pale.sum() < 200


def test_dark_sheets_keep_pictures_and_fade_dropped_ones_to_the_background(extension: Any) -> None:
    made = extension("dark_figures")
    (y, x), (down, _) = made.FIRST, made.PITCH
    paper = np.full((y + 2 * down, x + 110, 3), 255, np.uint8)
    picture = np.random.default_rng(0).integers(0, 256, (made.CELL, made.CELL, 3)).astype(np.uint8)
    paper[y : y + made.CELL, x : x + made.CELL] = picture
    faded = picture * (1 - made.FADED) + 255 * made.FADED
    paper[y + down : y + down + made.CELL, x : x + made.CELL] = faded.round()
    dark = made.dark_sheet(paper)
    np.testing.assert_array_equal(dark[y : y + made.CELL, x : x + made.CELL], picture)
    expected = picture * (1 - made.FADED) + made.BACKGROUND * made.FADED
    assert np.abs(dark[y + down : y + down + made.CELL, x : x + made.CELL] - expected).max() <= 1
    assert dark[0, 0].tolist() == made.BACKGROUND.tolist()


def test_the_sheet_of_the_landing_page_has_its_pictures_where_they_are_looked_for(extension: Any) -> None:
    """Around every picture that is kept, the paper is white but for lines and frames."""
    made = extension("dark_figures")
    paper = np.asarray(Image.open(ROOT / "docs" / "sheet.png").convert("RGB"))
    (y, x), (down, right) = made.FIRST, made.PITCH
    rows = range(y, paper.shape[0] - made.CELL, down)
    assert len(rows) == 4
    for top in rows:
        picture, above = paper[top : top + made.CELL, x : x + made.CELL], paper[top - 1, x : x + made.CELL]
        assert (picture[[0, -1]].min(-1) < 255).mean() > 0.5, "cut in full height"
        assert (above.min(-1) == 255).mean() > 0.9 or top == rows[-1]  # the winner is framed
        assert (paper[top : top + made.CELL, x + made.CELL + 3].min(-1) == 255).all()
    assert right == made.CELL + 8


def test_plots_of_notebooks_are_darkened_and_pictures_are_not(extension: Any) -> None:
    made = extension("dark_figures")
    plot = np.full((50, 50, 3), 255, np.uint8)
    plot[25] = 30
    picture = np.random.default_rng(0).integers(0, 256, (50, 50, 3)).astype(np.uint8)
    assert made.darken_of("a.png", "notebooks/01_quick_start", plot) is made.dark_plot
    assert made.darken_of("a.png", "notebooks/01_quick_start", picture) is None
    assert made.darken_of("a.png", "demo", plot) is None
    assert made.darken_of("sheet.png", "index", picture) is made.dark_sheet


def test_options_in_docstrings_become_a_list(extension: Any) -> None:
    listed = extension("plain_docstrings").listed
    block = ["n: seeds; None for", "    as many as fit.", "keep: shares."]
    assert listed(block, ("n", "keep")) == ["`n`", "   seeds; None for", "   as many as fit.", "`keep`", "   shares."]
    assert listed(["n: seeds", "and more."], ("n",)) == []
    assert listed(["n: seeds."], ("n",)) == []
    assert listed(["Note: none.", "Other: none."], ("n",)) == []


def test_every_algorithm_has_its_options_in_one_table(extension: Any) -> None:
    from ttsnap.algorithms import ALGORITHMS
    from ttsnap.algorithms.options import options_of

    made = extension("algorithm_options")
    text = "\n".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "algorithms").glob("*.md"))
    tables = [found.split() for found in re.findall(r"^```{algorithm-options} (.*)$", text, re.M)]
    assert sorted(name for names in tables for name in names) == sorted(ALGORITHMS)
    for names in tables:
        lines = made.lines_of(names)
        for name in names:
            shown = {line.name: line for line in lines if name in line.defaults}
            for option in options_of(name):
                assert shown[option.name].text == option.text
                assert shown[option.name].defaults[name] == made.default_of(option)


def test_what_differs_between_algorithms_is_said(extension: Any) -> None:
    made = extension("algorithm_options")
    smc = {line.name: line for line in made.lines_of(["smc", "fk-steering"])}
    assert made.by_algorithm(smc["n"].defaults) == "fk-steering: `4`"
    assert made.by_algorithm(smc["lam"].defaults) == "`10.0`"
    assert made.linked("as in arXiv 2505.23614").astext() == "as in arXiv 2505.23614"
    assert made.linked("as in arXiv 2505.23614").children[1]["refuri"] == "https://arxiv.org/abs/2505.23614"
    assert made.of_which(made.lines_of(["code", "svdd"])[-1], ["code", "svdd"]).astext() == "alpha (svdd)"
    with pytest.raises(ValueError, match="unknown algorithm 'sdd'"):
        made.lines_of(["sdd"])
