"""Configuration files are settings: what they may not say, and how the user says that they may."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from ttsnap import cli
from ttsnap.cli import generate, main
from ttsnap.cli.configs import check_configs

MODULE = "ttsnap_evil"


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / f"{MODULE}.py").write_text("class Thing: ...\ndef score(images, prompts):\n    return [0.0]\n")


def config(**values: Any) -> list[str]:
    Path("c.yaml").write_text(yaml.safe_dump(values))
    return ["generate", "a red circle", "--config", "c.yaml"]


def test_no_configuration_imports_a_class(capsys: pytest.CaptureFixture[str]) -> None:
    for values in (
        {"options": {"a": {"class_path": f"{MODULE}.Thing"}}},
        {"call": {"class_path": f"{MODULE}.Thing"}},
        {"call": {"a": [{"b": {"class_path": f"{MODULE}.Thing", "init_args": {}}}]}},
    ):
        assert main([*config(**values), "--trust"]) == 2
        assert "class_path, which would import code; there is no such setting" in capsys.readouterr().err
        assert MODULE not in sys.modules


@pytest.mark.parametrize(
    "values",
    [
        {"reward": f"{MODULE}.py:score"},
        {"reward": [f"{MODULE}:score", "scenes"]},
        {"reward": f"scenes then {MODULE}:score"},
        {"report": "http://127.0.0.1:9"},
        {"reward": "clip:someone/model"},
        {"model": "someone/model"},
        {"lora": "someone/lora:0.5"},
        {"draft": "someone/draft:2"},
        {"model": "hot"},
        {"preview_vae": "someone/vae"},
        {"preview-vae": "someone/vae"},
        {"attention": "flash_hub"},
        {"algorithm": "/etc/tuned.json"},
        {"prompts_file": "../secret.txt"},
        {"prompts_file": "~/secret.txt"},
    ],
    ids=str,
)
def test_what_a_configuration_names_must_be_confirmed(values: dict[str, Any]) -> None:
    ((name, value),) = values.items()
    argv = config(**values)
    with pytest.raises(ValueError, match=r"c.yaml names .* because a configuration says so") as caught:
        check_configs(argv)
    named = value[0] if isinstance(value, list) else value
    assert f"{name} {named!r}" in str(caught.value)
    option = f"--{name.replace('_', '-')}"
    assert f"Give {option} yourself, or add --trust" in str(caught.value)
    check_configs([*argv, "--trust"])
    check_configs([*argv, option, "x"])
    check_configs([*argv, f"{option}=x"])
    with pytest.raises(ValueError, match="names"):
        check_configs(config(**values, trust=True))


def test_inner_sections_count_too() -> None:
    argv = config(record={"model": "someone/model"}, student={"kind": f"{MODULE}.py:Thing"})
    with pytest.raises(ValueError, match=r"record\.model 'someone/model', student\.kind"):
        check_configs(argv)
    check_configs([*argv, "--record.model", "x", "--student.kind=lora"])


def test_plain_settings_need_no_word() -> None:
    rewards = ["scenes", "clip then imagereward"]
    check_configs(config(prompts=["/a red circle", "~ ../x"], model="embedded", reward=rewards, budget="5nfe"))
    for draft in ("hot", "hot:2", "embedded:2"):
        check_configs(config(draft=draft))
    check_configs(config(algorithm="tuned.json", prompts_file="prompts.txt", call={"a": "../x"}))
    check_configs(["generate", "--config", "{model: someone/model}"])  # the user's own words


@pytest.mark.parametrize("text", ["3", "[1, 2]", "words", '"' + "x" * 10_000 + '"'])
def test_a_configuration_is_keys_and_values(text: str) -> None:
    Path("c.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"c\.yaml holds no configuration: expected keys and values") as caught:
        check_configs(["generate", "--config", "c.yaml"])
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("name", ["options", "call", "seed", "keep", "kernel", "model", "algorithm"])
def test_null_is_no_value(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(config(**{name: None})) == 2
    assert f"{name} is null; leave it out for its default" in capsys.readouterr().err


def test_no_other_way_to_a_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    argv = config(reward=f"{MODULE}:score")
    assert main(argv) == 2
    Path("outer.yaml").write_text("config: c.yaml\n")
    assert main(["generate", "a red circle", "--config", "outer.yaml"]) == 2
    assert "names another configuration" in capsys.readouterr().err
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
