"""Draws docs/cluster.svg: how a row travels when a search runs on several devices.

    python scripts/draw_cluster.py          # rewrites docs/cluster.svg
    python scripts/draw_cluster.py --check  # fails where the drawing is not what this script draws

The numbers are those of the list in docs/architecture.md. Thick arrows carry images, thin ones rows
and scores alone.
"""

from __future__ import annotations

import sys
from html import escape
from pathlib import Path

PICTURE = Path(__file__).parents[1] / "docs" / "cluster.svg"
INK, EDGE, ARROW, IMAGES = "#1c2b41", "#4a6fa5", "#7a8699", "#c2703d"
LIGHT, DARK = "#f6f9ff", "#d3e0f5"


def box(x: float, y: float, width: float, height: float, text: str, fill: str = LIGHT) -> str:
    """A process or a part of one; lines of `text` in the middle."""
    lines = text.split("\n")
    first = y + height / 2 + 5 - 9 * (len(lines) - 1)
    words = "".join(
        f'<tspan x="{x + width / 2:g}" y="{first + 18 * i:g}">{escape(line)}</tspan>'
        for i, line in enumerate(lines)
    )
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6" fill="{fill}"'
        f' stroke="{EDGE}"/><text font-size="14" text-anchor="middle" fill="{INK}">{words}</text>'
    )


def frame(x: float, y: float, width: float, height: float, title: str) -> str:
    """A process, with its title above what it holds."""
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="8" fill="{DARK}"'
        f' stroke="{EDGE}"/><text x="{x + 12:g}" y="{y + 22:g}" font-size="14" font-weight="bold"'
        f' fill="{INK}">{escape(title)}</text>'
    )


def arrow(points: str, kind: str = "rows") -> str:
    """Along these points, "x,y x,y"."""
    color, width = (IMAGES, 3) if kind == "images" else (ARROW, 1.6)
    marker = "images" if kind == "images" else "rows"
    return (
        f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="{width:g}" '
        f'stroke-linejoin="round" marker-end="url(#{marker})"/>'
    )


def mark(x: float, y: float, number: int) -> str:
    """A number on an arrow."""
    return (
        f'<circle cx="{x:g}" cy="{y:g}" r="10" fill="#ffffff" stroke="{EDGE}"/><text x="{x:g}"'
        f' y="{y + 4.5:g}" font-size="12" text-anchor="middle" fill="{INK}">{number}</text>'
    )


def head(name: str, color: str, size: float) -> str:
    """The head of an arrow."""
    return (
        f'<marker id="{name}" markerUnits="userSpaceOnUse" markerWidth="{size:g}"'
        f' markerHeight="{size:g}" refX="{size - 1:g}" refY="{size / 2:g}" orient="auto"><path'
        f' d="M0,0 L{size:g},{size / 2:g} L0,{size:g} z" fill="{color}"/></marker>'
    )


def draw() -> str:
    """The whole picture."""
    shapes = [
        frame(30, 30, 230, 450, "Your process"),
        box(46, 66, 198, 60, "the loop: asks, charges,\ncollects"),
        box(46, 166, 198, 60, "which rows go where"),
        box(46, 266, 198, 60, "job log: how to make\nparticles again"),
        box(46, 400, 198, 56, "the kept images"),
        frame(390, 30, 320, 150, "Actor 0, a device"),
        box(406, 66, 128, 96, "particles\nat rest"),
        box(546, 66, 148, 96, "batches: evaluate,\nstep, decode,\nscore"),
        frame(390, 236, 320, 150, "Actor 1, a device"),
        box(406, 272, 128, 96, "particles\nat rest"),
        box(546, 272, 148, 96, "batches: evaluate,\nstep, decode,\nscore"),
        frame(390, 420, 320, 60, "Object store: images"),
    ]
    arrows = [
        arrow("145,126 145,166"),
        arrow("244,186 325,186 325,100 390,100"),
        arrow("325,186 325,306 390,306"),
        arrow("640,180 640,208 750,208 750,436 710,436", "images"),
        arrow("660,386 660,420", "images"),
        arrow("710,50 790,50 790,18 180,18 180,66"),
        arrow("390,440 244,440", "images"),
    ]
    marks = [
        mark(145, 144, 1),
        mark(325, 146, 2),
        mark(640, 194, 3),
        mark(660, 401, 3),
        mark(790, 34, 3),
        mark(330, 440, 4),
    ]
    return "\n".join(
        [
            (
                '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 820 510"'
                ' font-family="sans-serif">'
            ),
            "<title>How a row travels when a search runs on several devices</title>",
            f"<defs>{head('rows', ARROW, 9)}{head('images', IMAGES, 12)}</defs>",
            '<rect width="820" height="510" rx="8" fill="#ffffff"/>',
            *shapes,
            *arrows,
            *marks,
            "</svg>",
            "",
        ]
    )


def main() -> int:
    picture = draw()
    if "--check" in sys.argv[1:]:
        if PICTURE.is_file() and PICTURE.read_text(encoding="utf-8") == picture:
            return 0
        print("docs/cluster.svg is not what is drawn; run scripts/draw_cluster.py")
        return 1
    PICTURE.write_text(picture, encoding="utf-8")
    print("wrote docs/cluster.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main())
