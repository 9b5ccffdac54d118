"""Configuration files are settings: what they may not say, and how the user says that they may."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from ttsnap import cli
from ttsnap.cli import COMMANDS, generate, main, record

MODULE = "ttsnap_evil"


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / f"{MODULE}.py").write_text("class Thing: ...\ndef score(images, prompts):\n    return [0.0]\n")


def config(**values: Any) -> list[str]:
    Path("c.yaml").write_text(yaml.safe_dump(values))
    return ["generate", "a red circle", "--config", "c.yaml"]


PARSERS = {name: command.parser() for name, command in COMMANDS.items()}


def parsed(argv: list[str]) -> Any:
    """What a command is given."""
    return PARSERS[argv[0]].parse_args(argv[1:])


def test_no_configuration_imports_a_class() -> None:
    for values in (
        {"options": {"a": {"class_path": f"{MODULE}.Thing"}}},
        {"call": {"class_path": f"{MODULE}.Thing"}},
        {"call": {"a": [{"b": {"class_path": f"{MODULE}.Thing", "init_args": {}}}]}},
    ):
        given = parsed([*config(**values), "--trust"])
        assert {name: given[name] for name in values} == values, "what it says is data"
        assert MODULE not in sys.modules


NAMED: list[dict[str, Any]] = [
    {"reward": f"{MODULE}.py:score"}, {"reward": [f"{MODULE}:score", "scenes"]}, {"algorithm": "/etc/tuned.json"},
    {"reward": f"scenes then {MODULE}:score"}, {"report": "http://127.0.0.1:9"}, {"reward": "clip:someone/model"},
    {"require": f"{MODULE}.py:score"}, {"model": "someone/model"}, {"model": "hot"}, {"lora": "someone/lora:0.5"},
    {"draft": "someone/draft:2"}, {"preview_vae": "someone/vae"}, {"preview-vae": "someone/vae"},
    {"attention": "flash_hub"}, {"algorithm": f"{MODULE}.py:Thing"}, {"compare": f"{MODULE}.py:Thing"},
    {"prompts_file": "../secret.txt"}, {"prompts_file": "~/secret.txt"},
]  # fmt: skip
"""Settings that load or open something."""


@pytest.mark.parametrize("values", NAMED, ids=str)
def test_what_a_configuration_names_must_be_confirmed(values: dict[str, Any]) -> None:
    ((name, value),) = values.items()
    argv = config(**values)
    with pytest.raises(ValueError, match="configuration says") as caught:
        parsed(argv)
    named = value[0] if isinstance(value, list) else value
    assert f"{name.replace('-', '_')} {named!r}" in str(caught.value)
    parsed([*argv, "--trust"])
    for words in (config(**values, trust=True), [*argv, "--", "--trust"]):  # the last one is a prompt
        with pytest.raises(ValueError, match="names"):
            parsed(words)


def test_the_reward_of_a_requirement_must_be_confirmed() -> None:
    for text in (f"{MODULE}.py:score>=1", f"scenes then {MODULE}:score > 0.5"):
        with pytest.raises(ValueError, match="configuration says"):
            parsed(config(require=["scenes>=0.5", text]))
    with pytest.raises(ValueError, match="cannot read requirement"):
        parsed(config(require=f"scenes>{MODULE}.py:score>=1"))
    parsed(config(require=["scenes>=0.5", "brightness"]))
    assert MODULE not in sys.modules


def test_inner_sections_count_too() -> None:
    config(record={"model": "someone/model"}, student={"kind": f"{MODULE}.py:Thing"})
    argv = ["distill", "--out", "x", "--config", "c.yaml"]
    with pytest.raises(ValueError, match="'someone/model'"):
        parsed(argv)
    parsed([*argv, "--trust"])


@pytest.mark.parametrize(
    ("command", "name", "value"),
    [
        ("record", "ray_address", "elsewhere:6379"),
        ("generate", "ray_address", "elsewhere:6379"),
        *(
            ("bench", "algorithms", f"{text} n=4")
            for text in ("ttsnap_evil.p'y:Thing'", " /etc/x.json", "'../x.json'", r"\/etc/x.json",
                         "nested first=~/x.json", r"""nested 'first="\x2fetc/x.json"'""")
        ),
    ],
)  # fmt: skip
def test_addresses_and_files_that_are_read_later_must_be_confirmed(command: str, name: str, value: str) -> None:
    config(**{name: [value] if name == "algorithms" else value})
    words = {"record": ["--out", "x"], "generate": ["a"], "bench": ["--out", "x", "--prompts-file", "x"]}[command]
    with pytest.raises(ValueError, match=f"names {name} .* because a configuration says so"):
        parsed([command, *words, "--config", "c.yaml"])
    parsed([command, *words, "--config", "c.yaml", "--trust"])
    config(ray_address="auto") if name == "ray_address" else config(algorithms=["nested first=x.json", "best-of-n n=4"])
    parsed([command, *words, "--config", "c.yaml"])


def test_plain_settings_need_no_word() -> None:
    rewards = ["scenes", "clip then imagereward"]
    parsed(config(prompts=["/a red circle", "~ ../x"], model="embedded", reward=rewards, budget="5nfe"))
    for draft in ("hot", "hot:2", "embedded:2"):
        parsed(config(draft=draft))
    parsed(config(algorithm="tuned.json", prompts_file="prompts.txt", call={"a": "../x"}))
    assert parsed(config(**{"negative-prompt": "a circle"})).negative_prompt == "a circle"


@pytest.mark.parametrize("quote", ["", "'"])
def test_a_number_of_many_parts_is_refused_unread(quote: str) -> None:
    Path("c.yaml").write_text(f"seed: {quote}{':'.join(['1'] * 2**16)}{quote}")
    with pytest.raises(ValueError, match="number, got '1:1:1"):
        parsed(["generate", "a red circle", "--config", "c.yaml"])


@pytest.mark.parametrize("text", ["3", "[1, 2]", "words", '"' + "x" * 10_000 + '"'])
def test_a_configuration_is_keys_and_values(text: str) -> None:
    Path("c.yaml").write_text(text)
    with pytest.raises(ValueError, match="configuration: expected keys") as caught:
        parsed(["generate", "--config", "c.yaml"])
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("command", "values", "said"),
    [
        ("generate", {"kep": 2}, r"c\.yaml: unknown option 'kep'; did you mean keep\? Choose one of .*budget"),
        ("generate", {"generate": {"keep": 2}}, r"c\.yaml: unknown option 'generate'; choose one of"),
        ("generate", {"help": True}, r"c\.yaml: unknown option 'help'"),
        ("distill", {"recrod": {"seeds": 2}}, r"c\.yaml: unknown option 'recrod'; did you mean record\?"),
    ],
    ids=str,
)
def test_what_a_configuration_misspells_is_said(command: str, values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parsed([command, *config(**values)[1:]])


SCORE = f"{MODULE}.py:score"


@pytest.mark.parametrize("command", ["generate", "record", "bench", "simulate", "evaluate", "distill", "distill-draft"])
def test_only_plain_values_are_read(command: str) -> None:
    Path("c.yaml").write_text(f"reward: !!set {{{SCORE}: null}}")
    with pytest.raises(ValueError, match="with the tag"):
        parsed([command, "--config", "c.yaml"])
    assert MODULE not in sys.modules


@pytest.mark.parametrize(
    "values",
    [{"reward+": [SCORE]}, {"record": {"reward+": [SCORE]}}, {"config": []}, {"seed": "{a: &a [x, x], b: [*a, *a]}"}],
    ids=str,
)
def test_keys_that_say_more_than_they_name_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"c\.yaml: "):
        parsed([*config(**values), "--trust"])


def test_text_in_a_configuration_stays_text() -> None:
    """What is typed is read as YAML: so read, a text could name what nobody has looked at."""
    hidden = f"{{class_path: {MODULE}.Thing}}"
    texts = {"a": hidden, "b": "photo: a cat", "c": [hidden], "d": {"e": hidden}}
    for name in ("call", "options"):
        given = parsed(config(**{name: texts, "negative_prompt": hidden}))
        assert (given[name], given.negative_prompt) == (texts, hidden)
    assert MODULE not in sys.modules
    for values in ({"call": hidden}, {"record": "{model: someone/model}"}):
        config(**values)
        with pytest.raises(ValueError, match="values, got '"):
            parsed(["generate" if "call" in values else "distill", "--out", "x", "--config", "c.yaml"])
    with pytest.raises(ValueError, match="record section does"):
        record.run_with({"out": "x", "call": hidden})
    assert MODULE not in sys.modules


def test_what_is_typed_is_read_as_yaml_once() -> None:
    typed = ["--call.b", "2", "--call.c", "[1, 0.5]", "--call.d", "words", "--call.e=true"]
    given = parsed([*config(call={"a": 1}), *typed])
    assert given.call == {"a": 1, "b": 2, "c": [1, 0.5], "d": "words", "e": True}
    assert parsed([*config(), "--call", "{a: {class_path: os.path}}"]).call == {"a": {"class_path": "os.path"}}


@pytest.mark.parametrize("kind", ["pipe", "standard input", "fifo"])
def test_what_can_be_read_once_is_checked_and_used(kind: str) -> None:
    def given(text: bytes) -> Any:
        ours, theirs = os.pipe()
        os.write(theirs, text)
        os.close(theirs)
        before = os.dup(0)
        os.dup2(ours, 0)
        path = {"pipe": f"/dev/fd/{ours}", "standard input": "-", "fifo": "/dev/stdin"}[kind]
        try:
            return parsed(["generate", "a", "--config", path])
        finally:
            os.dup2(before, 0)
            os.close(before)
            os.close(ours)

    assert given(b"seed: 5").seed == 5
    with pytest.raises(ValueError, match="configuration says"):
        given(f"reward: {SCORE}".encode())
    with pytest.raises(ValueError, match="with the tag"):
        given(f"reward: !!set {{{SCORE}: null}}".encode())


def test_a_configuration_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    argv = config(seed=5)
    opened: list[str] = []
    real = open

    def counted(path: Any, *how: Any, **more: Any) -> Any:
        opened.append(str(path))
        return real(path, *how, **more)

    monkeypatch.setattr("builtins.open", counted)
    assert parsed(argv).seed == 5
    assert [path for path in opened if "c.yaml" in path] == ["c.yaml"]


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("{seed: 1}", r"no such configuration file: \{seed: 1\}"),
        (".", r"cannot read \.: Is a directory"),
        ("/dev/zero", "/dev/zero is too large: at most 1,048,576 bytes are read of a configuration file"),
    ],
)
def test_a_configuration_is_a_file(path: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parsed(["generate", "a", "--config", path])


def test_neither_the_environment_nor_a_prompt_gives_a_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JSONARGPARSE_DEFAULT_ENV", "true")
    monkeypatch.setenv("TTSNAP_GENERATE__SEED", "5")
    monkeypatch.setenv("TTSNAP_GENERATE__CONFIG", "absent.yaml")
    given: list[Any] = []
    monkeypatch.setattr(generate, "run", lambda a: given.append((a.seed, a.prompts)) or 0)
    assert main(["generate", "a"]) == 0
    assert main(["generate", "--seed", "1", "--", "--config", "--config=absent.yaml"]) == 0
    assert given == [(0, ["a"]), (1, ["--config", "--config=absent.yaml"])]


@pytest.mark.parametrize("name", ["options", "call", "seed", "keep", "kernel", "model", "algorithm"])
def test_null_is_no_value(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(config(**{name: None})) == 2
    assert f"{name} is null; leave it out for its default" in capsys.readouterr().err


def test_no_other_way_to_a_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    argv = config(reward=f"{MODULE}:score")
    assert main(argv) == 2
    Path("outer.yaml").write_text("config: c.yaml\n")
    assert main(["generate", "a red circle", "--config", "outer.yaml"]) == 2
    assert "unknown option 'config'" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        main(["generate", "a red circle", "--conf", "c.yaml"])
    assert caught.value.code == 2
    assert MODULE not in sys.modules


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("bad\x1b[2J"), "bad\\x1b[2J"),
        (OSError(28, "No space left on device", "x.png"), "[Errno 28] No space left on device: 'x.png'"),
        (MemoryError(), "not enough memory"),
        (MemoryError("Unable to allocate 8 EiB"), "not enough memory: Unable to allocate 8 EiB"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    error: Exception, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: Any) -> int:
        raise error

    monkeypatch.setattr(generate, "run", fail)
    assert main(["generate", "a"]) == 2
    assert capsys.readouterr().err == f"ttsnap: error: {said}\n"


def test_mistakes_of_ours_stay_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli.generate, "run", lambda _: {}["missing"])
    with pytest.raises(KeyError):
        main(["generate", "a"])


def test_files_win_over_a_preset_and_what_is_typed_over_both() -> None:
    config(clip=2.0, warmup=3, student={"per_level": False})
    words = ["distill", "--out", "x", "--recordings", "r", "--config", "c.yaml"]
    given = parsed([*words, "--preset", "dogtrim-pickscore", "--warmup", "5"])
    assert (given.reward, given.group_size, given.clip, given.warmup) == ("pickscore", 2, 2.0, 5)
    assert (given["student.kind"], given["student.per_level"]) == ("full", False)
    config(preset="dogtrim", clip=2.0)
    given = parsed([*words, "--reward", "clip"])
    assert (given.group_size, given.clip, given.reward) == (2, 2.0, "clip")
    config(preset="dogtrin")
    with pytest.raises(ValueError, match="unknown preset 'dogtrin'; did you mean dogtrim"):
        parsed(words)
