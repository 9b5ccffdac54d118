"""Draws comfyui/icon.png, which ComfyUI's registry shows: seeds that begin, most of them dropped,
and the image."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw

ICON = Path(__file__).parents[1] / "comfyui" / "icon.png"
SIDE, FINER = 400, 4
"""Pixels, which the registry takes at most; and how much finer it is drawn."""
ENDS = (150, 215, 150, 320, 215, 150, 215)
"""How far each seed gets. The fourth becomes the image."""
BACK, DIM, BRIGHT = (27, 31, 42), (94, 106, 138), (255, 196, 61)


def drawn() -> Image.Image:
    """The icon, (400, 400)."""
    picture = Image.new("RGB", (SIDE * FINER, SIDE * FINER), BACK)
    draw = ImageDraw.Draw(picture)
    for row, end in enumerate(ENDS):
        y, colour = 65 + 45 * row, BRIGHT if end == max(ENDS) else DIM
        draw.line([55 * FINER, y * FINER, end * FINER, y * FINER], colour, 11 * FINER)
        for x in (55, end):
            draw.circle((x * FINER, y * FINER), 12 * FINER, colour)
    draw.rounded_rectangle([265 * FINER, 140 * FINER, 365 * FINER, 260 * FINER], 18 * FINER, BRIGHT)
    draw.polygon(
        [
            (x * FINER, y * FINER)
            for x, y in ((280, 242), (312, 190), (329, 218), (337, 208), (352, 242))
        ],
        BACK,
    )
    draw.circle((338 * FINER, 172 * FINER), 12 * FINER, BACK)
    return picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    drawn().save(ICON, optimize=True)
