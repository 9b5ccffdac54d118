"""What the documentation says is there, and what is there has a line in it."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import itertools
import re
import shlex
from functools import cache
from pathlib import Path
from unittest.mock import MagicMock

import pytest

from tests.comfyui.double_nodes import nodes_of_comfyui
from ttsnap.algorithms import ALGORITHMS
from ttsnap.cli import COMMANDS, parse
from ttsnap.request.offer import names_of
from ttsnap.reward_models.judge.options import JudgeOptions
from ttsnap.reward_models.registry import JUDGE, REWARDS
from ttsnap.sampling.kernels import KERNELS

ROOT = Path(__file__).parents[1]
# by the build of the site
MADE = (ROOT / "docs" / "notebooks", ROOT / "docs" / "reference" / "commands")
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(p for p in ROOT.glob("docs/**/*.md") if not set(MADE) & set(p.parents)),
]
FENCE = re.compile(r"^ *(?P<fence>`{3,}|:{3,})(?P<info>.*)$")
LINK = re.compile(r"\[(?:[^\[\]]|\[[^\]]*\])*\]\(<?([^()\s>]+)>?\)")
OF_OTHERS = {"--mirrored", "--preview-method", "--recipe"}
"""Options of ComfyUI, of a script, and the one that a how-to adds."""
OUTER = [ROOT / "docs" / f"{name}.md" for name in ("index", "changelog", "contributing")]
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))


@cache
def split(page):
    """A page's prose, and its blocks of code as (language, text); indented ones have no
    language."""
    prose = []
    blocks = []
    inside = None
    indented = []
    fence = info = ""
    # which ends an indented block
    for line in [*page.read_text(encoding="utf-8").splitlines(), "", "."]:
        match = FENCE.match(line)
        if inside is not None:
            if match and match["fence"].startswith(fence) and not match["info"].strip():
                blocks.append((info, "\n".join(inside)))
                inside = None
            else:
                inside.append(line)
            continue
        opens = match is not None and match["fence"][0] == "`"
        if (
            not opens
            and line.startswith("    ")
            and (indented or not prose or not prose[-1].strip())
        ):
            indented.append(line[4:])
            continue
        if indented and line.strip():
            blocks.append(("", "\n".join(indented)))
            indented = []
        if opens:
            inside, fence, info = [], match["fence"], match["info"].strip()
        else:
            prose.append(line)
    assert inside is None, f"{page}: a fence is not closed"
    return "\n".join(prose[:-1]), tuple(blocks)


@cache
def anchors(page):
    """The slugs of a page's headings, as GitHub and MyST make them."""
    headings = re.findall(r"^#{1,6} +(.+?) *$", split(page)[0], re.M)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", h).replace("`", "") for h in headings]
    return frozenset(re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in plain)


help_of = cache(lambda command: COMMANDS[command].parser().format_help())


def commands(page):
    """Command lines in blocks of code, as words, without comments and the virtual environment's
    folder."""
    for language, text in split(page)[1]:
        if language not in ("", "text", "bash", "console"):
            continue
        for line in text.replace("\\\n", " ").splitlines():
            if re.match(r"(\$ )?(\.venv/bin/)?(ttsnap|python|make|accelerate) ", line.strip()):
                words = shlex.split(line, comments=True)
                yield (
                    [words[0].removeprefix(".venv/bin/"), *words[1:]]
                    if words[0] != "$"
                    else words[1:]
                )


def refusal(given, capsys):
    """What the parser says against these arguments; nothing where it takes them."""
    try:
        parse(given)
    except SystemExit:
        return capsys.readouterr().err
    return ""


@each_page
def test_links_lead_somewhere(page):
    prose = re.sub(r"`[^`\n]*`", "", split(page)[0])
    for target in LINK.findall(prose):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{page.name} links to {target}, which is not there"
        if anchor:
            assert anchor in anchors(found), (
                f"{page.name} links to {target}; {found.name} has {sorted(anchors(found))}"
            )


@each_page
def test_a_page_begins_with_a_command(page):
    first = re.split(r"^## ", page.read_text(encoding="utf-8"), flags=re.M)[0]
    study = page.parent.name in ("journal", "evidence")
    assert study or page in OUTER or re.search(r"^    \S|^```\w", first, re.M)


@each_page
def test_commands_parse(page, capsys):
    makefile = (ROOT / "Makefile").read_text()
    for words in commands(page):
        program, *given = words
        wrong = ""
        if program == "make":
            wrong = not re.search(rf"^{given[0]}:", makefile, re.M)
        elif program == "ttsnap":
            if (
                "--config" in given
                and not (ROOT / given[(at := given.index("--config")) + 1]).is_file()
            ):
                del given[at : at + 2]  # a file that the reader makes
            wrong = refusal(given, capsys)
        elif program == "python" and given[0] == "-m":
            wrong = not importlib.util.find_spec(given[2] if given[1] == "pydoc" else given[1])
        elif program == "python" and "/" in given[0]:
            wrong = not any((ROOT / given[0] / name).is_file() for name in ("", "__main__.py"))
        assert not wrong, f"{page.name}: {shlex.join(words)}\n{wrong}"


def test_all_answers_to_the_three_questions_make_a_command(
    capsys,
):
    prose = split(ROOT / "docs" / "explanation" / "which_algorithm.md")[0].split("## Why")[0]
    _, *asked = re.split(r"^\*\*\d\. ", prose, flags=re.M)
    tables = [re.findall(r"\| `(--[^`]*)` \|$", part, re.M) for part in asked]
    assert len(tables) == 3
    assert all(len(rows) >= 4 for rows in tables)
    for answers in itertools.product(*tables):
        words = shlex.split(" ".join(answers))
        prompt = [] if "--prompts-file" in words else ["two red circles"]
        assert not refusal(["generate", *prompt, *words], capsys), answers


@each_page
def test_options_in_prose_exist(page):
    every = "\n".join(map(help_of, COMMANDS))
    of_scripts = page.parent.name == "journal" or page.name == "CONTRIBUTING.md"
    for span in re.findall(r"`([^`]+)`", split(page)[0]):
        words = span.split()
        told = words[:1] == ["ttsnap"] and len(words) > 1 and words[1] in COMMANDS
        if not told and (not span.startswith("--") or of_scripts or words[0] in OF_OTHERS):
            continue
        for option in re.findall(r"(?<!\S)--[a-z-]+", span):
            assert option in (help_of(words[1]) if told else every), (
                f"{page.name}: no {option} ({span!r})"
            )


@each_page
def test_python_compiles_and_imports_what_is_there(page):
    for language, text in split(page)[1]:
        if language != "python":
            continue
        for node in ast.walk(ast.parse(text, filename=str(page))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ttsnap":
                module = importlib.import_module(str(node.module))
                missing = [a.name for a in node.names if not hasattr(module, a.name)]
                assert not missing, f"{page.name}: {node.module} has no {missing}"


def named(page, *sections):
    """What lines of tables and lists begin with, in these sections ("": what stands before the
    first), or in all."""
    text = re.sub(r"\n  +", " ", (ROOT / "docs" / page).read_text(encoding="utf-8"))
    under = {
        part.partition("\n")[0]: part
        for part in re.split(r"^## ", re.sub(r"^# .*", "", text), flags=re.M)
    }
    lines = [line for section in sections or under for line in under[section].splitlines()]
    begins = [
        match[1] for line in lines if (match := re.match(r"(?:- |\| )((?:`[^`]+`(?:, )?)+)", line))
    ]
    return {name.partition(":")[0] for begin in begins for name in re.findall(r"`([^`]+)`", begin)}


def variables():
    """Those that modules name which read the environment."""
    rooms = ("ttsnap", "pipelines", "reward_models", "distill")
    texts = [
        path.read_text(encoding="utf-8") for room in rooms for path in (ROOT / room).rglob("*.py")
    ]
    nodes = [node for text in texts if "os.environ" in text for node in ast.walk(ast.parse(text))]
    constants = {
        node.value
        for node in nodes
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    return set(filter(re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)+").fullmatch, constants))


@cache
def api():
    app = pytest.importorskip("ttsnap.service.app", reason="needs fastapi")
    return app.make_app(MagicMock(), MagicMock(), MagicMock(), MagicMock()).openapi()["paths"]


def addresses():
    shown = {f"{method.upper()} {path}" for path, methods in api().items() for method in methods}
    return shown | {"GET /docs", "GET /openapi.json"}  # which do not describe themselves


def fields():
    """Of all bodies, and other names for them."""
    bodies = [
        way["requestBody"]["content"]
        for ways in api().values()
        for way in ways.values()
        if "requestBody" in way
    ]
    ours = {
        name for body in bodies for kind in body.values() for name in kind["schema"]["properties"]
    }
    body = importlib.import_module("ttsnap.service.requests")
    taken = {name for kind in body.KINDS.values() for name in names_of(kind)}
    return ours | taken | {*body.SIDES}


def asked():
    return set(
        pytest.importorskip("ttsnap.reward_models.serve", reason="needs fastapi").Asked.model_fields
    )


@cache
def nodes():
    with nodes_of_comfyui():
        made = importlib.import_module("ttsnap.comfyui.nodes").nodes_of(Path("none"))
        schemas = [node.define_schema() for node in made]
    return {
        schema.node_id.removeprefix("Ttsnap"): {given.id for given in schema.inputs}
        for schema in schemas
    }


IN_HTTP = ("Fields of OpenAI's API", "Our fields", "Other names of fields")
NODES = (
    *("Search Sampler", "Reward", "Reward by Node", "Checklist", "Budget", "Drafter"),
    "Pick Best",
)
CONTRACT = {
    "algorithms": (lambda: set(ALGORITHMS), "algorithms.md", ("All of them",)),
    "rewards": (lambda: {*REWARDS, JUDGE, "http"}, "rewards.md", ("",)),
    "options of a judge": (
        lambda: set(JudgeOptions.__dataclass_fields__),
        "howto/judge.md",
        ("Options",),
    ),
    "kernels": (lambda: set(KERNELS), "howto/kernels_and_paths.md", ("",)),
    "variables": (variables, "reference/environment.md", ()),
    "addresses": (addresses, "reference/http.md", ("Addresses",)),
    "fields": (fields, "reference/http.md", IN_HTTP),
    "fields of a reward server": (asked, "reference/http.md", ("A reward server",)),
}
"""What there is of each kind, and the page and sections that have a line for each. Options of
commands and algorithms get theirs by the build (tests/test_docs_site.py)."""


def same(told, there):
    assert told == there, f"without a line: {sorted(there - told)}; gone: {sorted(told - there)}"


@pytest.mark.parametrize("kind", CONTRACT)
def test_the_reference_has_a_line_for_each_and_for_nothing_else(kind):
    there, page, sections = CONTRACT[kind]
    same(named(page, *sections), there())


@pytest.mark.parametrize("node", NODES)
def test_the_inputs_of_a_node(node):
    same(named("reference/nodes.md", node), nodes()[node.replace(" ", "")])
    assert len(nodes()) == len(NODES)


def test_each_command_is_shown_somewhere():
    spans = [span for page in PAGES for span in re.findall(r"`([^`]+)`", split(page)[0])]
    lines = [
        line.strip() for page in PAGES for _, text in split(page)[1] for line in text.splitlines()
    ]
    found = [re.match(r"(?:\.venv/bin/)?ttsnap ([a-z][a-z-]+)", text) for text in spans + lines]
    same({match[1] for match in found if match}, set(COMMANDS))


def test_what_is_wrong_is_found(tmp_path, capsys):
    page = tmp_path / "page.md"
    block = "    ttsnap generate x --no-such 1\n\n```python\nx =\n```\n"
    page.write_text(f"# A b\n[x](#a-b) [y](gone.md) [z](#c)\n\n{block}")
    assert LINK.findall(split(page)[0]) == ["#a-b", "gone.md", "#c"]
    assert anchors(page) == {"a-b"}
    assert list(commands(page)) == [["ttsnap", "generate", "x", "--no-such", "1"]]
    assert "--no-such" in refusal(["generate", "x", "--no-such", "1"], capsys)
    assert split(page)[1][-1] == ("python", "x =")
