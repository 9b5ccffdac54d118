"""The text in images, on pictures that are drawn here."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ttsnap.reward_models.ocr import OCR, quoted, similarity
from ttsnap.reward_models.registry import make_reward

FONTS = Path(matplotlib.get_data_path()) / "fonts/ttf"


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ('a sign that says "OPEN" and one that says "Closed now"', ["OPEN", "Closed now"]),
        ("a poster “Grand Opening”, «oui, merci» and „Guten Tag“", ["Grand Opening", "oui, merci", "Guten Tag"]),
        ("the dog's bowl says 'REX'", ["REX"]),
        ("a wall with ‘DON’T PANIC’ on it, or 'ISN'T IT'", ["DON’T PANIC", "ISN'T IT"]),
        ("""rock 'n' roll, it says "HELLO," in red""", ["HELLO"]),
        ("「春」", ["春"]),
        ("""the dogs' bowl of the '90s, 6" wide""", []),
        ('an empty sign, "" or " , "', []),
    ],
)
def test_quotes_of_a_prompt(prompt: str, texts: list[str]) -> None:
    assert quoted(prompt) == texts


@pytest.mark.parametrize(
    ("wanted", "read", "part", "whole"),
    [
        ("HELLO", "hello", 1, 1),
        ("HELLO", "HEL LO", 1, 1),
        ("HELLO", "HELO", 0.8, 0.8),
        ("HELLO", "HALLO", 0.8, 0.8),
        ("HELLO", "HELLOO", 0.8, 0.8),
        ("HELLO", "XXHELLOXX", 0.6, 0.2),  # an edit on each side
        ("HELLO", "SALE HELO NOW", 0.8, 0),
        ("HELLO", "", 0, 0),
        ("HELLO", "123456", 0, 0),
        ("Grand Opening", "the GRAND OPENINC today", 11 / 12, 3 / 12),
        ("ＡＢＣ", "abc", 1, 1),
    ],
)
def test_similarity_of_a_part_and_of_the_whole(wanted: str, read: str, part: float, whole: float) -> None:
    assert similarity([wanted], read.split()) == pytest.approx(part)
    assert similarity([wanted], read.split(), whole=True) == pytest.approx(whole)


def test_several_texts_share_the_letters() -> None:
    assert similarity(["OPEN", "TO ALL"], ["open", "ta", "all"]) == pytest.approx(1 - 1 / 9)
    assert similarity(["OPEN", "TO ALL"], ["open", "ta", "all"], whole=True) == pytest.approx(1 - 1 / 9)


@pytest.fixture(scope="module", params=["ocr", "ocr:line"])
def reward(request: pytest.FixtureRequest) -> OCR:
    pytest.importorskip("rapidocr")
    made = make_reward(request.param)
    assert isinstance(made, OCR)
    return made


def drawn(
    *texts: str,
    size: tuple[int, int],
    letters: int,
    font: str = "DejaVuSans",
    ink: str = "black",
    ground: str = "white",
) -> Tensor:
    """Lines of text one below the other in the middle of a picture, (1, 3, H, W)."""
    picture = Image.new("RGB", size, ground)
    draw, face = ImageDraw.Draw(picture), ImageFont.truetype(str(FONTS / f"{font}.ttf"), letters)
    for n, text in enumerate(texts):
        middle = size[1] / 2 + 2 * letters * (n - (len(texts) - 1) / 2)
        draw.text((size[0] / 2, middle), text, fill=ink, font=face, anchor="mm")
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 255


@pytest.mark.parametrize(
    ("font", "ink", "ground"),
    [
        ("DejaVuSans", "black", "white"),
        ("DejaVuSerif-Bold", "yellow", "blue"),
        ("DejaVuSansMono", "white", "red"),
        ("STIXGeneral", "darkgreen", "lightgrey"),
    ],
)
def test_signs_of_one_line(font: str, ink: str, ground: str) -> None:
    pytest.importorskip("rapidocr")

    def sign(text: str) -> Tensor:
        return drawn(text, size=(96, 32), letters=19, font=font, ink=ink, ground=ground)

    signs = torch.cat([sign("HELLO"), sign("HALLO"), sign("BAKERY")])
    scores = OCR("line")(signs, ['a sign that says "Hello"'] * 3)
    assert scores.tolist() == pytest.approx([1, 0.8, 0], abs=1e-6)


@pytest.mark.parametrize(
    ("side", "letters", "font", "ink", "ground"),
    [
        (64, 12, "DejaVuSans", "black", "white"),
        (512, 40, "STIXGeneral", "red", "white"),
    ],
)
def test_text_in_pictures(side: int, letters: int, font: str, ink: str, ground: str) -> None:
    pytest.importorskip("rapidocr")
    reward = make_reward("ocr")
    look = {"letters": letters, "font": font, "ink": ink, "ground": ground}
    images = torch.cat([drawn(text, "RIVER", size=(side, side), **look) for text in ("STONE", "STORE")])
    scores = reward(images, ['a sign "STONE" by a sign "RIVER"'] * 2)
    assert torch.as_tensor(scores).tolist() == pytest.approx([1, 0.9], abs=1e-6)


def test_a_word_that_fills_the_picture_is_read_where_none_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rapidocr")
    reward = OCR()
    seen = reward._reader  # a real one, whose detection finds nothing
    monkeypatch.setattr(
        type(seen), "__call__", lambda self, picture: SimpleNamespace(txts=None, boxes=None), raising=False
    )
    sign = drawn("HELLO", size=(96, 32), letters=20)
    (line,) = reward.read(sign)[0]
    assert (line.text, line.box) == ("HELLO", (0, 0, 96, 32))
    assert reward.read(torch.full((1, 3, 64, 64), 0.4)) == [[]], "nothing that it is not sure of"


def test_lines_say_where_they_are() -> None:
    pytest.importorskip("rapidocr")
    lines = OCR().read(drawn("STONE", "RIVER", size=(256, 256), letters=30))[0]
    assert [line.text for line in lines] == ["STONE", "RIVER"]
    (_, top, left, bottom), (_, below, _, _) = (line.box for line in lines)
    assert 0 < left < 256
    assert top < 128 - 30 < bottom < below < 128 + 30


def test_an_image_without_text_and_a_prompt_without_a_quote(reward: OCR) -> None:
    gray = torch.full((2, 3, 64, 64), 0.4)
    scores = reward(gray, ['"STONE"', "a stone"])
    assert scores[0] == 0
    assert scores[1].isnan()
    reward.check(['"STONE"', ""])
    with pytest.raises(ValueError, match="prompt 'a stone' quotes no text"):
        reward.check(["a stone"])


def test_a_batch_changes_nothing(reward: OCR) -> None:
    images = torch.cat([drawn(text, size=(64, 64), letters=18) for text in ("ab", "cd")])
    prompts = ['"ab"', '"cd"']
    assert reward(images, prompts).tolist() == [reward(images[i : i + 1], prompts[i : i + 1]).item() for i in (0, 1)]


def test_the_reader_sees_blue_first_as_opencv_does(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rapidocr")
    seen: list[list[int]] = []

    class Reader:
        def recognize_txt(self, pictures: list[np.ndarray]) -> SimpleNamespace:
            seen.extend(picture[0, 0].tolist() for picture in pictures)
            return SimpleNamespace(txts=("",), scores=(0.0,))

    reward = OCR("line")
    monkeypatch.setattr(reward, "_reader", Reader())
    reward(torch.tensor([1.0, 0.5, 0.0]).view(1, 3, 1, 1).expand(1, 3, 4, 4), ['"a"'])
    assert seen == [[0, 128, 255]]


def test_nothing_is_downloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("rapidocr")
    from rapidocr.utils import download_file

    def refuse(*_: object) -> None:
        raise AssertionError("a download")

    monkeypatch.setattr(download_file.DownloadFile, "run", refuse)
    sign = drawn("HELLO", size=(96, 32), letters=20)
    assert OCR("picture")(sign, ['"HELLO"']).item() == 1
    without = OCR()
    monkeypatch.setattr(without, "_folder", tmp_path)
    with pytest.raises(ValueError, match=r"rapidocr has 0 networks 'det' .* install it again"):
        without(sign, ['"HELLO"'])


def test_what_cannot_be_read_is_refused() -> None:
    with pytest.raises(ValueError, match="reads a picture or a line, got 'words'; write 'ocr' or 'ocr:line'"):
        make_reward("ocr:words")
