"""What the documentation says is there: links, anchors, commands, options, scripts and names in Python."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from ttsnap.cli import COMMANDS, parse

ROOT = Path(__file__).parents[1]
MADE = (ROOT / "docs" / "notebooks", ROOT / "docs" / "reference" / "commands")  # by the build of the site
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(p for p in ROOT.glob("docs/**/*.md") if not set(MADE) & set(p.parents)),
]
FENCE = re.compile(r"^(?P<indent> *)(?P<fence>`{3,}|:{3,})(?P<info>.*)$")
LINK = re.compile(r"\[(?:[^\[\]]|\[[^\]]*\])*\]\(<?([^()\s>]+)>?\)")
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))


@cache
def split(page: Path) -> tuple[str, tuple[tuple[str, str], ...]]:
    """A page's prose, and its blocks of code as (language, text); indented ones have no language."""
    prose: list[str] = []
    blocks: list[tuple[str, str]] = []
    inside: list[str] | None = None
    fence = info = ""
    indented: list[str] = []
    for line in [*page.read_text(encoding="utf-8").splitlines(), ""]:
        match = FENCE.match(line)
        if inside is not None:
            if match and match["fence"].startswith(fence) and not match["info"].strip():
                blocks.append((info, "\n".join(inside)))
                inside = None
            else:
                inside.append(line)
        elif match and match["fence"][0] == "`":
            if indented:
                blocks.append(("", "\n".join(indented)))
                indented = []
            inside, fence, info = [], match["fence"], match["info"].strip()
        elif line.startswith("    ") and (indented or not prose or not prose[-1].strip()):
            indented.append(line[4:])
        else:
            if indented and line.strip():
                blocks.append(("", "\n".join(indented)))
                indented = []
            prose.append(line)
    assert inside is None, f"{page}: a fence is not closed"
    if indented:
        blocks.append(("", "\n".join(indented)))
    return "\n".join(prose), tuple(blocks)


@cache
def anchors(page: Path) -> frozenset[str]:
    """The slugs of a page's headings, as GitHub and MyST make them."""
    headings = re.findall(r"^#{1,6} +(.+?) *$", split(page)[0], re.M)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", h).replace("`", "") for h in headings]
    return frozenset(re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in plain)


@cache
def help_of(command: str) -> str:
    return COMMANDS[command].parser().format_help()


def commands(page: Path) -> Iterator[list[str]]:
    """Command lines in blocks of code, as words, without comments and the virtual environment's folder."""
    for language, text in split(page)[1]:
        if language not in ("", "text", "bash", "console"):
            continue
        for line in text.replace("\\\n", " ").splitlines():
            if re.match(r"(\$ )?(\.venv/bin/)?(ttsnap|python|make|accelerate) ", line.strip()):
                words = shlex.split(line, comments=True)
                yield [words[0].removeprefix(".venv/bin/"), *words[1:]] if words[0] != "$" else words[1:]


def refusal(given: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What the parser says against these arguments; nothing where it takes them."""
    try:
        parse(given)
    except SystemExit:
        return capsys.readouterr().err
    return ""


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    prose = re.sub(r"`[^`\n]*`", "", split(page)[0])
    for target in LINK.findall(prose):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{page.name} links to {target}, which is not there"
        if anchor:
            assert anchor in anchors(found), f"{page.name} links to {target}; {found.name} has {sorted(anchors(found))}"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_tour_runs_as_pasted(tmp_path: Path) -> None:
    lines = [
        line for language, text in split(ROOT / "docs" / "tour.md")[1] if not language for line in text.splitlines()
    ]
    assert [line.split()[1] for line in lines if "serve" in line] == ["serve"]  # it would not end
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    pasted = "set -e\n" + "\n".join(line for line in lines if "serve" not in line)
    subprocess.run(["bash", "-c", pasted], cwd=tmp_path, env=os.environ | {"PATH": path}, check=True)
    assert len(list((tmp_path / "outputs").iterdir())) == sum("generate" in line for line in lines)


@each_page
def test_commands_parse(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for words in commands(page):
        program, *given = words
        if program == "make":
            assert re.search(rf"^{given[0]}:", makefile, re.M), f"{page.name}: no target {given[0]}"
        elif program == "ttsnap":
            if "--config" in given and not (ROOT / given[given.index("--config") + 1]).is_file():
                at = given.index("--config")
                del given[at : at + 2]  # a file that the reader makes
            refused = refusal(given, capsys)
            assert not refused, f"{page.name}: {shlex.join(words)}\n{refused}"
        elif program == "python" and given[0] == "-m":
            assert importlib.util.find_spec(given[1]), f"{page.name}: no module {given[1]}"
        elif program == "python" and "/" in given[0]:
            script = ROOT / given[0]
            assert script.is_file() or (script / "__main__.py").is_file(), f"{page.name}: no script {given[0]}"


@each_page
def test_options_in_prose_exist(page: Path) -> None:
    for span in re.findall(r"`([^`]+)`", split(page)[0]):
        words = span.split()
        if words[:1] != ["ttsnap"] or len(words) < 2 or words[1].startswith("-") or words[1].isupper():
            continue
        assert words[1] in COMMANDS, f"{page.name} tells of a command that is not there: {span!r}"
        known = help_of(words[1])
        for option in re.findall(r"(?<!\S)--[a-z-]+", span):
            assert option in known, f"{page.name}: ttsnap {words[1]} has no {option}"


@each_page
def test_python_compiles_and_imports_what_is_there(page: Path) -> None:
    for language, text in split(page)[1]:
        if language != "python":
            continue
        for node in ast.walk(ast.parse(text, filename=str(page))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ttsnap":
                module = importlib.import_module(str(node.module))
                missing = [a.name for a in node.names if not hasattr(module, a.name)]
                assert not missing, f"{page.name}: {node.module} has no {missing}"


TERMS = {"omega", "nfe", "level", "equals-n", "report", "honest-ledger", "pot", "x0-estimate", "check", "draft", "ess"}


def test_the_glossary_explains_the_words_and_is_linked() -> None:
    glossary = ROOT / "docs" / "explanation" / "glossary.md"
    assert anchors(glossary) >= TERMS
    for page in ("README.md", "docs/index.md", "docs/algorithms.md", "docs/journal/index.md", "docs/architecture.md"):
        assert "glossary.md" in (ROOT / page).read_text(encoding="utf-8"), f"{page} does not link the glossary"


def test_what_is_wrong_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    block = "    ttsnap generate x --no-such 1\n\n```python\nx =\n```\n"
    page.write_text(f"# A b\n[x](#a-b) [y](gone.md) [z](#c)\n\n{block}")
    assert LINK.findall(split(page)[0]) == ["#a-b", "gone.md", "#c"]
    assert anchors(page) == {"a-b"}
    assert list(commands(page)) == [["ttsnap", "generate", "x", "--no-such", "1"]]
    assert "--no-such" in refusal(["generate", "x", "--no-such", "1"], capsys)
    assert split(page)[1][-1] == ("python", "x =")
