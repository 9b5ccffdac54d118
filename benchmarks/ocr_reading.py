"""How often the reward `ocr` reads a drawn word right, and how much time of a core that takes.

    python benchmarks/ocr_reading.py --words 100

Random words of 3 to 8 capitals in eight fonts and six colours: as signs that they fill (96 x 32
pixels, plain and with noise), and small in square pictures. Errors are standard errors of a share.
"""

from __future__ import annotations

import argparse
import random
import string
import time
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ttsnap.files.writing import markdown
from ttsnap.reward_models.ocr import OCR

FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSansMono",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSans-Oblique",
    "cmr10",
    "STIXGeneral",
)
COLOURS = ("#c81e1e", "#148c28", "#1e32c8", "black", "white", "#fadc28")
FOLDER = Path(matplotlib.get_data_path()) / "fonts/ttf"


def drawn(rng: random.Random, width: int, height: int, letters: int | None) -> tuple[str, Tensor]:
    """A word, and a picture of it (3, H, W). letters: their size in pixels; None: as large as
    fits."""
    word = "".join(rng.choices(string.ascii_uppercase, k=rng.randint(3, 8)))
    ink, ground = rng.sample(COLOURS, 2)
    file, size = str(FOLDER / f"{rng.choice(FONTS)}.ttf"), letters or round(0.8 * height)
    while letters is None and ImageFont.truetype(file, size).getlength(word) > width - 6:
        size -= 1
    picture = Image.new("RGB", (width, height), ground)
    place = (width / 2, height / 2)
    ImageDraw.Draw(picture).text(
        place, word, fill=ink, font=ImageFont.truetype(file, size), anchor="mm"
    )
    return word, torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--words", type=int, default=100, help="of each kind")
    p.add_argument("--seed", type=int, default=0)
    a = p.parse_args()
    kinds = [
        ("line", 96, 32, None, 0.0),
        ("line", 96, 32, None, 0.1),
        ("picture", 96, 32, None, 0.0),
    ]
    kinds += [
        ("picture", side, side, size, 0.0)
        for side in (64, 256, 512, 1024)
        for size in (10, 16, 24, 60)
        if size <= side / 6
    ]
    rows = []
    for reads, width, height, letters, noise in kinds:
        rng, reward = random.Random(a.seed), OCR(reads)
        words, pictures = zip(
            *(drawn(rng, width, height, letters) for _ in range(a.words)), strict=True
        )
        images = torch.stack(pictures)
        images = (
            images
            + noise * torch.randn(images.shape, generator=torch.Generator().manual_seed(a.seed))
        ).clamp(0, 1)
        reward(images[:1], ['"A"'])  # loads the networks
        start = time.process_time()
        right = float((reward(images, [f'"{word}"' for word in words]) == 1).float().mean())
        seconds, error = (
            (time.process_time() - start) / a.words,
            (right * (1 - right) / a.words) ** 0.5,
        )
        name = "ocr:line" if reads == "line" else "ocr"
        size = "fills it" if letters is None else f"{letters}"
        rows.append(
            [
                name,
                f"{width} x {height}",
                size,
                f"{noise:g}",
                f"{right:.2f} ± {error:.2f}",
                f"{seconds:.3f}",
            ]
        )
        print(rows[-1], flush=True)
    print(markdown(["reward", "picture", "letters", "noise", "right", "s of a core"], rows))


if __name__ == "__main__":
    main()
