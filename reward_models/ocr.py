"""How well the text in an image is the text that its prompt quotes: 1 - edits / letters, in [0, 1].

The measure is that of Flow-GRPO's OCR reward (Liu et al., arXiv 2505.05470): case and blanks do not
count, and edits are at most the letters asked for. It differs in two respects. Flow-GRPO takes the
first quoted text only; here all count. There a text is right wherever it is contained, HELLOO being
HELLO, and else is compared with all text in the image, so that a second sign spoils the score. Here
the most similar part counts, and letters that run on cost an edit on each side.

The reader is rapidocr. Its wheel holds the weights (PP-OCR, Apache-2.0). They are given to it as
files, so that it never downloads any.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from ttsnap.extras import install
from ttsnap.profiling.flops import count_onnx
from ttsnap.reward_models.preprocess import check_images, to_levels
from ttsnap.rewards.reward_model import RewardModel

_DOUBLE = re.compile('["“”„]([^"“”„]*)["“”„]|[«»]([^«»]*)[«»]|「([^「」]*)」')
_SINGLE = re.compile(r"(?<!\w)['‘‚]([^'‘’‚]*(?:(?<=\w)['’]\w[^'‘’‚]*)*)['’‘](?!\w)")
"""Texts in single quotes. An apostrophe stands within a word or after one, where no such quote
begins or ends."""
_READS = ("picture", "line")
_LINE = (48, 320)
_PICTURE = 736
"""What rapidocr brings images to: height and width of a line, which is wider where the text is
longer; and the shorter side of a picture at least."""


class TextLine(NamedTuple):
    """A line of text that was read in an image."""

    text: str
    box: tuple[float, float, float, float]
    """Left, top, right, bottom in pixels."""


def quoted(prompt: str) -> list[str]:
    """The texts that a prompt quotes: in double quotes of any kind, and where there are none, in
    single ones."""
    found = ["".join(groups) for groups in _DOUBLE.findall(prompt)] or _SINGLE.findall(prompt)
    return [text for text in (one.strip(" ,") for one in found) if _plain(text)]


def similarity(wanted: Sequence[str], words: Sequence[str], *, whole: bool = False) -> float:
    """1 - edits / letters, in [0, 1], of the texts `wanted` in the words that were read.

    Each text is compared with the part of the words that is most like it; with `whole`, all texts
    with all words.
    """
    texts = [_plain(text) for text in wanted]
    read = [_plain(word) for word in words]
    if whole:
        texts = ["".join(texts)]
        read = ["".join(read)]
    most = sum(map(len, texts))
    return 1 - sum(min(len(text), _edits(text, read, whole)) for text in texts) / most


def _plain(text: str) -> str:
    """A text without case, blanks and widths of letters."""
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


def _edits(wanted: str, words: Sequence[str], whole: bool) -> int:
    """The fewest edits between a text and a part of the words, or all of them (Sellers'
    algorithm)."""
    letters = np.array([ord(letter) for word in words for letter in word], dtype=np.int64)
    at = np.arange(len(letters) + 1)
    outside = np.isin(at, [0, *accumulate(map(len, words))], invert=True).astype(np.int64)
    row = at if whole else outside
    for letter in map(ord, wanted):
        new = row + 1
        new[1:] = np.minimum(new[1:], row[:-1] + (letters != letter))
        row = np.minimum.accumulate(new - at) + at
    return int(row[-1] if whole else (row + outside).min())


class OCR(RewardModel):
    """The similarity of the text that is read in an image with the text that its prompt quotes, in
    [0, 1].

    reads: "picture" finds lines of text and reads each, "line" reads the whole image as one line.
    Images are read on the processor, one after the other, by as many threads as torch has.
    """

    name = "ocr"
    runs_on = "cpu"
    example = 'a sign that says "HELLO"'

    def __init__(self, reads: str = "picture") -> None:
        if reads not in _READS:
            raise ValueError(
                f"reward 'ocr' reads a {' or a '.join(_READS)}, got {reads!r}; write 'ocr' or"
                " 'ocr:line'"
            )
        try:
            import rapidocr
        except ImportError as error:
            raise ValueError(f"reward 'ocr' needs {install('ocr')} ({error})") from error
        self.reads = reads
        self._folder = Path(rapidocr.__file__).parent / "models"

    @classmethod
    def from_pretrained(
        cls, reads: str = "picture", *, device: Any = None, dtype: Any = None
    ) -> Self:
        """`ocr:line`: what is read takes the place of weights. The reader runs on the processor, in
        float32."""
        return cls(reads)

    def check(self, prompts: Sequence[str]) -> None:
        """ValueError for a prompt that quotes nothing. An empty prompt passes: it measures the time
        of a call."""
        for prompt in prompts:
            if prompt and not quoted(prompt):
                raise ValueError(
                    f"prompt {prompt!r} quotes no text for ocr to look for; quote it, as in"
                    f" {self.example!r}"
                )

    def __call__(
        self, images: Tensor, prompts: Sequence[str], level: Tensor | None = None
    ) -> Tensor:
        """images (N, 3, H, W) in [0, 1] -> (N,) float32; nan where a prompt quotes nothing."""
        check_images(images, prompts)
        scores = map(self._score, self.read(images), prompts)
        return torch.tensor(list(scores), dtype=torch.float32)

    def _score(self, lines: Sequence[TextLine], prompt: str) -> float:
        wanted = quoted(prompt)
        if not wanted:
            return float("nan")
        words = [word for line in lines for word in line.text.split()]
        return similarity(wanted, words, whole=self.reads == "line")

    def read(self, images: Tensor) -> list[list[TextLine]]:
        """images (N, 3, H, W) in [0, 1] -> the lines of text in each, from top to bottom."""
        check_images(images)
        # blue first, as OpenCV
        colours = to_levels(images.flip(1)).byte().permute(0, 2, 3, 1).cpu().numpy()
        return [self._lines(picture) for picture in colours]

    @cached_property
    def flops(self) -> float:
        """Of a line that is at most 20/3 times as wide as high; or of a square picture of up to 736
        pixels a side, with such a line in it. What rapidocr computes besides its networks is not
        counted."""
        line = count_onnx(Path(self._weights("rec")), (1, 3, *_LINE))
        small = 192  # the FLOPs of the network that finds lines are by pixels
        found = (
            count_onnx(Path(self._weights("det")), (1, 3, small, small)) * (_PICTURE / small) ** 2
        )
        return line if self.reads == "line" else line + found

    def _lines(self, picture: Any) -> list[TextLine]:
        """The lines in levels (H, W, 3). Detection misses a text that fills the picture: it is read
        as a line then."""
        found = self._reader(picture) if self.reads == "picture" else None
        if found is not None and found.txts:
            corners = [(*box.min(0).tolist(), *box.max(0).tolist()) for box in found.boxes]
            return [TextLine(text, box) for text, box in zip(found.txts, corners, strict=True)]
        line = self._reader.recognize_txt([picture])
        sure = found is None or line.scores[0] >= self._reader.text_score
        if not (sure and line.txts[0].strip()):
            return []
        height, width = picture.shape[:2]
        return [TextLine(line.txts[0], (0.0, 0.0, float(width), float(height)))]

    @cached_property
    def _reader(self) -> Any:
        from rapidocr import RapidOCR

        engine = "EngineConfig.onnxruntime"
        return RapidOCR(
            params={
                "Global.log_level": "error",
                "Global.use_cls": False,  # whether a line is upside down
                f"{engine}.intra_op_num_threads": torch.get_num_threads(),
                f"{engine}.inter_op_num_threads": 1,
                "Det.model_path": self._weights("det"),
                "Rec.model_path": self._weights("rec"),
            }
        )

    def _weights(self, task: str) -> str:
        """The file of the wheel's network for a task. Without it, rapidocr would download one."""
        files = sorted(self._folder.glob(f"*_{task}_*.onnx"))
        if len(files) != 1:
            raise ValueError(
                f"rapidocr has {len(files)} networks {task!r} in {self._folder}, not 1; install it"
                " again"
            )
        return str(files[0])
