"""Configuration files are settings: what they may not say, and how the user says that they may."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

from ttsnap.cli import COMMANDS, generate, main, record
from ttsnap.core.memory import NotEnoughMemoryError

MODULE = "ttsnap_evil"


@pytest.fixture(autouse=True)
def _inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / f"{MODULE}.py").write_text(
        "class Thing: ...\ndef score(images, prompts):\n    return [0.0]\n"
    )


def config(**values):
    Path("c.yaml").write_text(yaml.safe_dump(values))
    return ["generate", "a red circle", "--config", "c.yaml"]


PARSERS = {name: command.parser() for name, command in COMMANDS.items()}
WORDS = {
    "record": ["--out", "x"],
    "bench": ["--out", "x", "--prompts-file", "x"],
    "distill": ["--out", "x"],
}


def parsed(argv):
    """What a command is given."""
    return PARSERS[argv[0]].parse_args(argv[1:])


SCORE = f"{MODULE}.py:score"
NAMED = [
    *(
        ("generate", {name: value}, f"{name.replace('-', '_')} {value!r}")
        for name, value in [
            ("reward", SCORE),
            ("algorithm", "/etc/tuned.json"),
            ("reward", f"scenes then {MODULE}:score"),
            ("report", "http://127.0.0.1:9"),
            ("reward", "clip:someone/model"),
            ("require", SCORE),
            ("model", "someone/model"),
            ("model", "hot"),
            ("lora", "someone/lora:0.5"),
            ("draft", "someone/draft:2"),
            ("draft", "embedded:evil"),
            ("draft", "embedded:2:2"),
            ("draft", "hot:x.json"),
            ("draft", "hot:\u00b2"),
            ("draft", "auto:2"),
            ("draft", "none:2"),
            ("preview_vae", "someone/vae"),
            ("preview-vae", "someone/vae"),
            ("attention", "flash_hub"),
            ("algorithm", f"{MODULE}.py:Thing"),
            ("compare", f"{MODULE}.py:Thing"),
            ("prompts_file", "../secret.txt"),
            ("prompts_file", "~/secret.txt"),
            ("ray_address", "elsewhere:6379"),
        ]
    ),
    ("generate", {"reward": [SCORE, "scenes"]}, f"reward {SCORE!r}"),
    ("generate", {"require": ["scenes>=0.5", f"{SCORE}>=1"]}, SCORE),
    ("generate", {"require": ["scenes>=0.5", f"scenes then {MODULE}:score > 0.5"]}, MODULE),
    ("distill", {"record": {"model": "someone/model"}}, "record.model 'someone/model'"),
    ("distill", {"student": {"kind": SCORE}}, SCORE),
    ("record", {"ray_address": "elsewhere:6379"}, "ray_address"),
    *(
        ("bench", {"algorithms": [f"{text} n=4"]}, "algorithms")
        for text in (
            "ttsnap_evil.p'y:Thing'",
            " /etc/x.json",
            "'../x.json'",
            r"\/etc/x.json",
            "nested first=~/x.json",
            r"""nested 'first="\x2fx.json"'""",
        )
    ),
]
"""Settings that load or open something, also later."""


@pytest.mark.parametrize(("command", "values", "named"), NAMED, ids=str)
def test_what_a_configuration_names_must_be_confirmed(command, values, named):
    config(**values)
    argv = [command, *WORDS.get(command, ["a"]), "--config", "c.yaml"]
    with pytest.raises(ValueError, match="configuration says") as caught:
        parsed(argv)
    assert named in str(caught.value)
    parsed([*argv, "--trust"])
    if command == "generate":
        # the last one is a prompt
        for words in (config(**values, trust=True), [*argv, "--", "--trust"]):
            with pytest.raises(ValueError, match="names"):
                parsed(words)
    assert MODULE not in sys.modules


def test_plain_settings_need_no_word():
    rewards = ["scenes", "clip then imagereward"]
    parsed(
        config(prompts=["/a red circle", "~ ../x"], model="embedded", reward=rewards, budget="5nfe")
    )
    for draft in ("hot", "hot:2", "embedded:2"):
        parsed(config(draft=draft))
    Path("embedded:2").mkdir()  # which would be opened
    with pytest.raises(ValueError, match="names draft 'embedded:2'"):
        parsed(config(draft="embedded:2"))
    parsed(
        config(
            algorithm="tuned.json",
            prompts_file="prompts.txt",
            call={"a": "../x"},
            ray_address="auto",
        )
    )
    parsed(config(require=["scenes>=0.5", "brightness"]))
    assert parsed(config(**{"negative-prompt": "a circle"})).negative_prompt == "a circle"
    config(algorithms=["nested first=x.json", "best-of-n n=4"])
    parsed(["bench", *WORDS["bench"], "--config", "c.yaml"])


BILLION = "seed: '{a: &a [x, x], b: [*a, *a]}'"
REFUSED = [
    *(
        ("generate", f"seed: {quote}{':'.join(['1'] * 2**16)}{quote}", "integer, got '1:1:1")
        for quote in ("", "'")
    ),
    *(
        ("generate", text, "expected keys")
        for text in ("3", "[1, 2]", "words", '"' + "x" * 10_000 + '"')
    ),
    ("generate", "kep: 2", r"c\.yaml: .* 'kep'; did you mean keep\? Choose one of .*budget"),
    ("generate", "generate: {keep: 2}", r"c\.yaml: unknown option 'generate'; choose one of"),
    ("generate", "help: true", r"c\.yaml: unknown option 'help'"),
    ("generate", "config: d.yaml", "unknown option 'config'"),
    ("generate", f"require: scenes>{SCORE}>=1", "cannot read requirement"),
    ("distill", "recrod: {seeds: 2}", r"c\.yaml: unknown option 'recrod'; did you mean record\?"),
    *(
        ("generate", text, r"c\.yaml: ")
        for text in (f"reward+: [{SCORE}]", f"record: {{reward+: [{SCORE}]}}", BILLION)
    ),
    *(
        (command, f"reward: !!set {{{SCORE}: null}}", "the tag")
        for command in (
            "generate",
            "record",
            "bench",
            "simulate",
            "distill",
            "distill-draft",
        )
    ),
    ("generate", f"call: '{{class_path: {MODULE}.Thing}}'", "dictionary, got '"),
    ("distill", "record: '{model: someone/model}'", "dictionary, got '"),
    *(
        ("generate", f"{name}: null", f"{name} is null")
        for name in ("options", "call", "seed", "keep", "kernel", "model", "algorithm")
    ),
]


@pytest.mark.parametrize(("command", "text", "said"), REFUSED, ids=range(len(REFUSED)))
def test_what_no_configuration_says(command, text, said):
    Path("c.yaml").write_text(text)
    with pytest.raises(ValueError, match=said) as caught:
        parsed([command, *WORDS.get(command, []), "--config", "c.yaml", "--trust"])
    assert "x" * 200 not in str(caught.value)
    assert MODULE not in sys.modules


def test_text_in_a_configuration_stays_text_and_classes_data():
    """What is typed is read as YAML: so read, a text could name what nobody has looked at."""
    named = {"class_path": f"{MODULE}.Thing"}
    hidden = f"{{class_path: {MODULE}.Thing}}"
    texts = {
        "a": hidden,
        "b": "photo: a cat",
        "c": [hidden],
        "d": {"e": hidden},
        "f": [{"g": {**named}}],
        **named,
    }
    for name in ("call", "options"):
        given = parsed([*config(**{name: texts, "negative_prompt": hidden}), "--trust"])
        assert (given[name], given.negative_prompt) == (texts, hidden)
    with pytest.raises(ValueError, match="record section does"):
        record.run_with({"out": "x", "call": hidden})
    assert MODULE not in sys.modules


def test_an_option_of_a_list_may_be_given_again():
    typed = parsed(["generate", "a red circle", "--reward", "scenes", "--reward", "ocr"])
    assert typed["reward"] == ["scenes", "ocr"]
    assert parsed(["generate", "x", "--reward", "scenes"])["reward"] == "scenes"
    assert parsed(["generate", "x", "--seed", "1", "--seed", "2"])["seed"] == 2


def test_what_is_typed_is_read_as_yaml_once():
    typed = ["--call.b", "2", "--call.c", "[1, 0.5]", "--call.d", "words", "--call.e=true"]
    given = parsed([*config(call={"a": 1}), *typed])
    assert given.call == {"a": 1, "b": 2, "c": [1, 0.5], "d": "words", "e": True}
    assert parsed([*config(), "--call", "{a: {class_path: os.path}}"]).call == {
        "a": {"class_path": "os.path"}
    }


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("{seed: 1}", r"no such configuration file: \{seed: 1\}"),
        (".", r"no such configuration file: \."),
        ("/dev/zero", "no such configuration file: /dev/zero"),
    ],
)
def test_a_configuration_is_a_file(path, said):
    with pytest.raises(ValueError, match=said):
        parsed(["generate", "a", "--config", path])


def test_neither_the_environment_nor_a_prompt_gives_a_configuration(
    monkeypatch,
):
    monkeypatch.setenv("JSONARGPARSE_DEFAULT_ENV", "true")
    monkeypatch.setenv("TTSNAP_GENERATE__SEED", "5")
    monkeypatch.setenv("TTSNAP_GENERATE__CONFIG", "absent.yaml")
    given = []
    monkeypatch.setattr(generate, "run", lambda a: given.append((a.seed, a.prompts)) or 0)
    assert main(["generate", "a"]) == 0
    assert main(["generate", "--seed", "1", "--", "--config", "--config=absent.yaml"]) == 0
    assert given == [(0, ["a"]), (1, ["--config", "--config=absent.yaml"])]
    with pytest.raises(SystemExit, match="2"):
        main(["generate", "a", "--conf", "c.yaml"])


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("bad\x1b[2J"), "bad\\x1b[2J"),
        (
            OSError(28, "No space left on device", "x.png"),
            "[Errno 28] No space left on device: 'x.png'",
        ),
        (MemoryError(), "not enough memory"),
        (MemoryError("Unable to allocate 8 EiB"), "not enough memory: Unable to allocate 8 EiB"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(error, said, monkeypatch, capsys):
    def fail(_):
        raise error

    monkeypatch.setattr(generate, "run", fail)
    assert main(["generate", "a"]) == 2
    assert capsys.readouterr().err == f"ttsnap: error: {said}\n"
    for short in (
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB. Of"),
        NotEnoughMemoryError("2.00 GiB"),
    ):
        error = short
        assert main(["generate", "a", "--offload", "model", "--decode-batch-size", "1"]) == 2
        told = capsys.readouterr().err
        assert (told.count("\n"), "2.00 GiB" in told, "--offload group" in told) == (1, True, True)
        assert main(["generate", "a"]) == 2
        told = capsys.readouterr().err
        assert "--offload model" in told
        assert "--decode-batch-size 1" in told
    error = KeyError("a mistake of ours stays visible")
    with pytest.raises(KeyError):
        main(["generate", "a"])


def test_files_win_over_a_preset_and_what_is_typed_over_both():
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
