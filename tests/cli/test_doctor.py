"""`ttsnap doctor`: a line for each thing that is here, and an exit status that scripts can read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ttsnap.cli import doctor, main


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor, "SEEDS", 2)


def test_it_says_what_is_here_and_what_a_minute_buys(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["doctor", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    told = dict(re.findall(r"^(\w[\w, ]*?)  +(.*)$", out, re.M))
    assert told.keys() >= {"versions", "device", "bfloat16", "extras", "attention", "edits, video", "model"}
    assert re.match(r"ttsnap \S+, torch \S+, diffusers ", told["versions"])
    assert re.match(r"cpu, \d+ threads, \d+ GiB of memory", told["device"])
    assert re.search(r"take \d+\.\d\d of float32's time; --dtype auto is \w+", told["bfloat16"])
    assert not list(tmp_path.iterdir())
    found = re.search(r"a minute buys about ([\d,]+) evaluations \(nfe\): ([\d,]+) images of 20 steps", out)
    assert found is not None, out
    evaluations, images = (int(text.replace(",", "")) for text in found.groups())
    assert evaluations == pytest.approx(20 * images, rel=0.2)
    assert out.endswith("nothing is wrong\n")


def test_what_is_broken_is_a_line_and_the_exit_status_is_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def untested() -> None:
        raise ValueError("diffusers 9.0 was not tested")

    monkeypatch.setattr("ttsnap.pipelines.modular.workflows.check_version", untested)
    monkeypatch.setattr("importlib.metadata.requires", lambda _: ["numpy>=999", "torch>=2"])
    monkeypatch.setattr("shutil.which", lambda _: "/usr/bin/nvidia-smi")
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    monkeypatch.setattr(doctor, "_measured", lambda *_: iter(()))
    assert main(["doctor"]) == 1
    wrong = capsys.readouterr().out.partition("wrong:\n")[2]
    assert re.match(r"  versions: numpy \S+ is not >=999; install", wrong)
    assert "  edits, video: diffusers 9.0 was not tested\n" in wrong
    assert "torch sees no GPU: install torch for CUDA" in wrong


def test_requirements_are_held_against_what_is_installed() -> None:
    given = ["numpy>=1", "nothing-such>=1", "pillow<1; extra == 'demo'", "torch>=1; extra == 'demo'"]
    assert doctor.unmet(given) == ["nothing-such is missing"]
    (wrong,) = doctor.unmet(given, "demo")
    assert re.fullmatch(r"pillow \S+ is not <1", wrong)
