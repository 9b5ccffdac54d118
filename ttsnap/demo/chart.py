"""The chart as HTML: every score against the evaluations spent, and the best so far as a step
line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from ttsnap.demo.board import Board, Mark
from ttsnap.demo.html import short, verdict

MOST_MARKS = 600
LEGEND_RIGHT = (
    '<i class="tt-full"></i>strictly right <i class="tt-hollow"></i>wrong <i'
    ' class="tt-faint"></i>unfinished'
)
LEGEND_PLAIN = '<i class="tt-full"></i>finished <i class="tt-faint"></i>unfinished'
STROKES = {
    (False, None): "faint",
    (True, True): "full",
    (True, False): "hollow",
    (True, None): "plain",
}
"""Classes of dots, by whether they are of finished images and whether these are strictly right;
later ones on top."""


def render_chart(boards: Sequence[tuple[str, Board]], allowed: int) -> str:
    """One line for each search, of a title and a board. allowed: evaluations, to which the axis
    goes at least."""
    marks = [mark for _, board in boards for mark in (*board.curve, *board.marks[-MOST_MARKS:])]
    xs = ticks(0, max([float(mark.nfe) for mark in marks] + [float(allowed), 1.0]), 6)
    values = [mark.score for mark in marks if math.isfinite(mark.score)]
    ys = ticks(min(values), max(values), 4) if values else [0.0, 1.0]
    scale = Scale(xs[-1], ys[0], ys[-1])
    paths: list[str] = []
    ends: list[str] = []
    for i, (_, board) in enumerate(boards):
        kind = i if len(boards) > 1 else 1
        paths.append(_dots(board.marks[-MOST_MARKS:], kind, scale))
        if board.curve:
            ends += [_line(board.curve, kind, scale), _end(board.curve[-1], kind, scale)]
    grid = "".join(f'<path class="tt-rule" d="M0 {scale.y(y):.2f}H100"/>' for y in ys)
    labels = "".join(
        f'<span class="tt-ytick" style="top:{scale.y(y):.2f}%">{tick(y)}</span>' for y in ys
    )
    labels += "".join(
        f'<span class="tt-xtick" style="left:{scale.x(x):.2f}%">{x:,.0f}</span>' for x in xs
    )
    known = any(mark.right is not None for mark in marks)
    return (
        f'<div class="tt-curve"><div class="tt-curvehead">{_keys(boards)}'
        f'<span class="tt-legend">{LEGEND_RIGHT if known else LEGEND_PLAIN}</span></div>'
        f'<div class="tt-axes"><span class="tt-ylabel">reward</span><div class="tt-plot"'
        f' role="img" '
        f'aria-label="{escape(_about(boards))}"><svg viewBox="0 0 100 100"'
        f' preserveAspectRatio="none">{grid}'
        f"{''.join(paths)}{''.join(ends)}</svg>{labels}</div></div>"
        f'<div class="tt-xlabel">evaluations of the model</div></div>'
    )


class Scale:
    """Values to percent of the plot, with room for dots at its edges: x from 0, y from the bottom
    tick to the top."""

    def __init__(self, right: float, low: float, high: float) -> None:
        self.right, self.low, self.high = right, low, high

    def x(self, value: float) -> float:
        """Percent from the left."""
        return 1.5 + 97 * value / self.right

    def y(self, value: float) -> float:
        """Percent from the top."""
        return 4 + 92 * (self.high - value) / (self.high - self.low)

    def at(self, mark: Mark) -> tuple[float, float]:
        return self.x(mark.nfe), self.y(mark.score)


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers at equal distances that enclose `low` and `high`: 2 to about `most` of them."""
    span = high - low if high > low else abs(high) or 1.0
    raw = span / most
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(times * unit for times in (1, 2, 2.5, 5, 10) if times * unit >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, max(last, first + 1) + 1)]


def tick(value: float) -> str:
    """A tick's label: as many digits as it needs."""
    return f"{value:.4g}" if abs(value) > 1e-12 else "0"


def _dots(marks: Sequence[Mark], kind: int, scale: Scale) -> str:
    parts: dict[str, list[str]] = {}
    for mark in marks:
        if math.isfinite(mark.score):
            x, y = scale.at(mark)
            parts.setdefault(STROKES[mark.finished, mark.right], []).append(f"M{x:.2f} {y:.2f}h0")
    drawn = [(name, "".join(parts[name])) for name in STROKES.values() if name in parts]
    holes = "".join(
        f'<path class="tt-hole" d="{path}"/>' for name, path in drawn if name == "hollow"
    )
    return (
        "".join(f'<path class="tt-{name} tt-c{kind}" d="{path}"/>' for name, path in drawn) + holes
    )


def _end(mark: Mark, kind: int, scale: Scale) -> str:
    """The dot at the end of a line: larger than others, with the same meaning."""
    (x, y), stroke = scale.at(mark), STROKES[mark.finished, mark.right]
    dot = f'<path class="tt-end tt-{stroke} tt-c{kind}" d="M{x:.2f} {y:.2f}h0"/>'
    hole = f'<path class="tt-hole tt-large" d="M{x:.2f} {y:.2f}h0"/>' if stroke == "hollow" else ""
    return dot + hole


def _line(curve: Sequence[Mark], kind: int, scale: Scale) -> str:
    """The step line: dashed while there are only estimates."""
    first = next((i for i, mark in enumerate(curve) if mark.finished), len(curve) - 1)
    markup = ""
    for name, part in (
        ("tt-hope", curve[: first + 1]),
        ("tt-step", curve[first:] if curve[first].finished else ()),
    ):
        points = [scale.at(mark) for mark in part]
        if len(points) > 1:
            path = f"M{points[0][0]:.2f} {points[0][1]:.2f}" + "".join(
                f"H{x:.2f}V{y:.2f}" for x, y in points[1:]
            )
            markup += f'<path class="{name} tt-c{kind}" d="{path}"/>'
    return markup


def _keys(boards: Sequence[tuple[str, Board]]) -> str:
    if len(boards) == 1:
        return "<span>every score, and the best so far (dashed: of unfinished estimates)</span>"
    markup = ""
    for i, (title, board) in enumerate(boards):
        best = (
            ""
            if board.best is None
            else f" <b>{short(board.best.value)}</b>{verdict(board.best.right)}"
        )
        markup += f'<span class="tt-key tt-c{i}">{escape(title)}{best}</span>'
    return markup


def _about(boards: Sequence[tuple[str, Board]]) -> str:
    """The chart in words."""
    bests = [
        f"{title}: {'none yet' if b.best is None else short(b.best.value)}" for title, b in boards
    ]
    return f"Reward against evaluations; best finished image of {', of '.join(bests)}"
