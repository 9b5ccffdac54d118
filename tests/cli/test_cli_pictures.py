"""`ttsnap generate` with pictures to start from, over the embedded model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ttsnap.cli import main
from ttsnap.results.outputs import read_payload


@pytest.fixture
def drawn(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "drawn.png")
    return tmp_path / "drawn.png"


def test_a_picture_is_changed(drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = ["--task", "image-to-image", "--image", str(drawn), "--strength", "0.75", "--negative-prompt", ""]
    how = ["--algorithm", "best-of-n", "--budget", "6nfe", "--steps", "4", "--out", str(tmp_path / "out")]
    assert main(["generate", "two green circles", *pictures, *how]) == 0
    (found,) = (tmp_path / "out").glob("01-*.png")
    payload = read_payload(found)
    assert (payload["task"], payload["call"]["strength"]) == ("image-to-image", 0.75)
    assert "image" not in payload["call"]
    assert "in plain diffusers" not in capsys.readouterr().out  # stock text to image does not make it
    assert main(["replay", str(found)]) != 0
    assert "made by image-to-image of a picture that it does not hold" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--image", "drawn.png"], "--image: say by --task what is done with it"),
        (["--task", "image-to-image", "--strength", "1.5"], "strength must be above 0 and at most 1, got 1.5"),
        (
            ["--task", "inpainting", "--image", "{drawn}"],
            "no modular pipeline does inpainting with the parts of a Stable",
        ),
        (["--task", "image-to-image", "--image", "nowhere.png"], "nowhere.png"),
        (["--task", "image-to-image", "--image", "{text}"], "cannot read"),
        (["--task", "image-to-image", "--devices", "2"], "is done on one device"),
    ],
)
def test_what_does_not_fit_is_refused(
    given: list[str], words: str, drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.png").write_text("no picture")
    named = [part.format(drawn=drawn, text=tmp_path / "text.png") for part in given]
    assert main(["generate", "a red circle", "--out", str(tmp_path / "out"), "--budget", "8nfe", *named]) != 0
    assert words in capsys.readouterr().err
