"""Draws docs/architecture.svg from the imports: every room of the code, and an arrow to each room
that it rests on.

    python scripts/draw_architecture.py          # rewrites docs/architecture.svg
    python scripts/draw_architecture.py --check  # fails where the drawing is not what the imports say

An arrow that follows from two others is left out: the engine imports the core, but its arrow to
sampling leads there. Rooms that import no torch are drawn light.
"""

from __future__ import annotations

import graphlib
import re
import sys
from collections import Counter
from html import escape
from pathlib import Path

import imports
from imports import APART, ROOT, between_rooms, modules

PICTURE = ROOT / "docs" / "architecture.svg"
WIDTH, HEIGHT, GAP_X, GAP_Y, MARGIN = 152, 40, 44, 54, 40


def folder_of(room: str) -> Path:
    return ROOT / "ttsnap" / room


def without_torch(room: str) -> bool:
    """Whether no file of this room imports torch, or what rests on it, anywhere."""
    heavy = re.compile(r"^\s*(import|from) (torch|diffusers|transformers)\b", re.M)
    return not any(
        heavy.search(path.read_text(encoding="utf-8")) for path in folder_of(room).rglob("*.py")
    )


def reach(room: str, arrows: dict[str, set[str]]) -> set[str]:
    """Every room that can be reached from this one by arrows."""
    return arrows[room].union(*(reach(below, arrows) for below in arrows[room]))


def levels(arrows: dict[str, set[str]]) -> dict[str, int]:
    """How high each room stands: one above the highest that it rests on."""

    def height(room: str) -> int:
        return 1 + max((height(below) for below in arrows[room]), default=-1)

    return {room: height(room) for room in arrows}


def above(room: str, shown: dict[str, set[str]]) -> set[str]:
    """The rooms that an arrow leads from to this one."""
    return {upper for upper, below in shown.items() if room in below}


def port(
    room: str, others: set[str], place: dict[str, tuple[float, float]], down: float
) -> dict[str, tuple[float, float]]:
    """Where the arrows between a room and these others touch its edge, side by side in the others'
    order."""
    x, y = place[room]
    order = sorted(others, key=lambda other: (place[other][0], place[other][1]))
    return {
        other: (x + WIDTH * (i + 1) / (len(order) + 1), y + down) for i, other in enumerate(order)
    }


def around(
    start: tuple[float, float],
    end: tuple[float, float],
    between: list[list[tuple[float, float]]],
    used: Counter[tuple[float, float]],
) -> list[tuple[float, float]]:
    """Points by which an arrow passes the rows of rooms between its ends, through gaps that are
    little out of the way.

    `used` counts the arrows through each gap, so that they pass beside one another.
    """
    points = []
    for row in between:
        y = row[0][1]
        straight = start[0] + (end[0] - start[0]) * (y - start[1]) / (end[1] - start[1])
        lefts = sorted(x for x, _ in row)
        gaps = [lefts[0] - GAP_X / 2, *(x + WIDTH + GAP_X / 2 for x in lefts)]
        gap = min(gaps, key=lambda gap: abs(gap - straight))
        x = gap + 10 * used[gap, y]
        used[gap, y] += 1
        points += [(x, y - 6), (x, y + HEIGHT + 6)]
    return points


def draw() -> str:
    arrows = between_rooms(imports.arrows(without=modules()))  # names in texts are left out
    # CycleError where rooms rest on each other in a circle
    graphlib.TopologicalSorter(arrows).prepare()
    shown = {
        room: {b for b in below if not any(b in reach(other, arrows) for other in below - {b})}
        for room, below in arrows.items()
    }
    level = levels(arrows)
    rows = [
        sorted(room for room in arrows if level[room] == k) for k in range(max(level.values()) + 1)
    ]
    place: dict[str, tuple[float, float]] = {}
    widest = max(map(len, rows)) * (WIDTH + GAP_X) - GAP_X
    for k, row in enumerate(rows):
        # Rooms stand over the middle of what they rest on, so that arrows cross seldom.
        row.sort(
            key=lambda room: (
                sum(place[b][0] for b in shown[room]) / max(1, len(shown[room])),
                room,
            )
        )
        left = MARGIN + (widest - len(row) * (WIDTH + GAP_X) + GAP_X) / 2
        y = MARGIN + (len(rows) - 1 - k) * (HEIGHT + GAP_Y)
        place |= {room: (left + i * (WIDTH + GAP_X), y) for i, room in enumerate(row)}
    width, height = widest + 2 * MARGIN, len(rows) * (HEIGHT + GAP_Y) - GAP_Y + 2 * MARGIN
    lines = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}"'
            ' font-family="sans-serif">'
        ),
        "<title>The rooms of ttsnap, and which rests on which</title>",
        (
            '<defs><marker id="head" markerWidth="7" markerHeight="7" refX="6" refY="3"'
            ' orient="auto"><path d="M0,0 L6,3 L0,6 z" fill="#7a8699"/></marker></defs>'
        ),
        f'<rect width="{width:g}" height="{height:g}" rx="8" fill="#ffffff"/>',
    ]
    used: Counter[tuple[float, float]] = Counter()
    for upper in sorted(shown):
        for lower in sorted(shown[upper]):
            between = [
                [place[room] for room in rows[k]] for k in range(level[upper] - 1, level[lower], -1)
            ]
            ends = (
                port(upper, shown[upper], place, HEIGHT),
                port(lower, above(lower, shown), place, -2),
            )
            start, end = (ends[0][lower], ends[1][upper])
            points = " ".join(
                f"{x:g},{y:g}" for x, y in [start, *around(start, end, between, used), end]
            )
            lines.append(
                f'<polyline points="{points}" fill="none" stroke="#7a8699" stroke-width="1.2"'
                ' stroke-linejoin="round" marker-end="url(#head)"/>'
            )
    for room, (x, y) in sorted(place.items()):
        name = f"{room}/" if room in APART else f"ttsnap/{room}/"
        fill = "#f6f9ff" if without_torch(room) else "#d3e0f5"
        lines.append(
            f'<rect x="{x:g}" y="{y:g}" width="{WIDTH}" height="{HEIGHT}" rx="6" fill="{fill}"'
            f' stroke="#4a6fa5"/><text x="{x + WIDTH / 2:g}" y="{y + HEIGHT / 2 + 5:g}"'
            f' font-size="14" text-anchor="middle" fill="#1c2b41">{escape(name)}</text>'
        )
    return "\n".join([*lines, "</svg>", ""])


def main() -> int:
    picture = draw()
    if "--check" in sys.argv[1:]:
        if PICTURE.is_file() and PICTURE.read_text(encoding="utf-8") == picture:
            return 0
        print(
            f"{PICTURE.relative_to(ROOT)} is not what the imports say; run"
            " scripts/draw_architecture.py"
        )
        return 1
    PICTURE.write_text(picture, encoding="utf-8")
    print(f"wrote {PICTURE.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
