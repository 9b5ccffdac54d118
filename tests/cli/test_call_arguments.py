"""Arguments of a stock call that no option names: given, printed, replayed."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tests.pipelines.calls.tiny import stock
from ttsnap.cli import main
from ttsnap.files.pictured import digest_of
from ttsnap.results.record import read_record

HOW = ["--device", "cpu", "--dtype", "float32"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with a pipeline under a ControlNet."""
    folder = tmp_path_factory.mktemp("model")
    stock("StableDiffusionControlNetPipeline").save_pretrained(folder)
    return str(folder)


def test_numbers_and_pictures_are_checked_written_and_replayed(
    model, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    for name in ("red", "blue"):
        Image.new("RGB", (24, 16), name).save(f"{name}.png")
    asked = ["generate", "a fox", "--model", model, "--steps", "2", "--reward", "brightness", *HOW]
    asked += ["--budget", "2images", "--out", "o"]
    given = ["--call.image", "red.png", "--call.controlnet_conditioning_scale", "0.5"]
    for wrong, said in (
        (
            ["--call.controlnet_condtioning_scale", "1"],
            "did you mean controlnet_conditioning_scale",
        ),
        (["--call", "eta=0.5"], "write it as --call.eta 0.5"),
        (["--call.image", "gone.png"], "gone.png"),
        (["--call.image", "red"], "image takes a picture"),
    ):
        assert main([*asked, *wrong]) == 2
        assert said in capsys.readouterr().err
    assert main([*asked, *given]) == 0
    said = capsys.readouterr().out
    assert "controlnet_conditioning_scale=0.5, image=load_image('red.png'), generator=" in said
    (found,) = Path("o").glob("01-*.png")
    record = read_record(found)
    assert record.call["controlnet_conditioning_scale"] == 0.5
    assert record.pictures == {"image": digest_of(Image.open("red.png"))}
    again = ["replay", str(found), "--model", model, *HOW]
    for wrong, why in (
        ([], "--image: it notes"),
        (["--call.image", "blue.png"], "other pictures"),
        (["--call.image", "red.png", "--call.eta", "0.5"], "eta: it notes"),
    ):
        assert main([*again, *wrong]) == 2
        assert why in capsys.readouterr().err
    assert main([*again, "--call.image", "red.png"]) == 0
    assert "largest difference from 01-seed" in (said := capsys.readouterr().out)
    assert int(said.split(": ")[1].split(" of ")[0]) <= 1
