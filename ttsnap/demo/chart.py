"""The chart as HTML: every score against the evaluations spent, and the best so far as a step
line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from html import escape

from ttsnap.demo.html import short, verdict
from ttsnap.results.course import Course, Score

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


def render_chart(searches: Sequence[tuple[str, Course]], allowed: int) -> str:
    """One line for each search, of a title and its course. allowed: evaluations, to which the axis
    goes at least."""
    curves = [best_so_far(course) for _, course in searches]
    dots = [in_order(course)[-MOST_MARKS:] for _, course in searches]
    marks = [mark for each in (*curves, *dots) for mark in each]
    xs = ticks(0, max([float(mark.nfe) for mark in marks] + [float(allowed), 1.0]), 6)
    values = [mark.value for mark in marks if math.isfinite(mark.value)]
    ys = ticks(min(values), max(values), 4) if values else [0.0, 1.0]
    scale = Scale(xs[-1], ys[0], ys[-1])
    paths = ends = ""
    for i, (_, course) in reversed([*enumerate(searches)]):  # the first on top
        plot = Plot(i, course.steps, scale)
        paths += plot.dots(dots[i])
        if curves[i]:
            ends += plot.line(curves[i]) + plot.end(curves[i][-1])
    grid = "".join(f'<path class="tt-rule" d="M0 {scale.y(y):.2f}H100"/>' for y in ys)
    labels = "".join(
        f'<span class="tt-ytick" style="top:{scale.y(y):.2f}%">{tick(y)}</span>' for y in ys
    )
    labels += "".join(
        f'<span class="tt-xtick" style="left:{scale.x(x):.2f}%">{x:,.0f}</span>' for x in xs
    )
    known = any(mark.right is not None for mark in marks)
    return (
        f'<div class="tt-curve"><div class="tt-curvehead">{_keys(searches)}'
        f'<span class="tt-legend">{LEGEND_RIGHT if known else LEGEND_PLAIN}</span></div>'
        f'<div class="tt-axes"><span class="tt-ylabel">reward</span><div class="tt-plot"'
        f' role="img" '
        f'aria-label="{escape(_about(searches))}"><svg viewBox="0 0 100 100"'
        f' preserveAspectRatio="none">{grid}'
        f"{paths}{ends}</svg>{labels}</div></div>"
        f'<div class="tt-xlabel">evaluations of the model</div></div>'
    )


def in_order(course: Course) -> list[Score]:
    """Every score, as they came."""
    scores = [score for one in course.candidates.values() for score in one.scores.values()]
    return sorted(scores, key=lambda score: score.nfe)


def best_so_far(course: Course) -> list[Score]:
    """The best score at each number of evaluations: of estimates until an image is finished, then
    of finished images."""
    points: list[Score] = []
    for score in in_order(course):
        known = points[-1:]
        best = max([*known, score], key=lambda one: (one.step == course.steps, one.rank))
        if score.rank == -math.inf or (best in known and score.step < course.steps):
            continue
        if known and known[0].nfe == score.nfe:
            points.pop()  # scores of one batch are one point
        points.append(replace(best, nfe=score.nfe))
    if course.over and points:
        points.append(replace(points[-1], nfe=max(course.nfe, points[-1].nfe)))
    return points


class Scale:
    """Values to percent of the plot, with room for dots at its edges: x from 0, y from the bottom
    tick to the top."""

    def __init__(self, right: float, low: float, high: float) -> None:
        self.right = right
        self.low = low
        self.high = high

    def x(self, value: float) -> float:
        """Percent from the left."""
        return 1.5 + 97 * value / self.right

    def y(self, value: float) -> float:
        """Percent from the top."""
        return 4 + 92 * (self.high - value) / (self.high - self.low)

    def at(self, mark: Score) -> tuple[float, float]:
        return self.x(mark.nfe), self.y(mark.value)


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers at equal distances that enclose `low` and `high`: 2 to about `most` of them."""
    span = high - low if high > low else abs(high) or 1.0
    raw = span / most
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(times * unit for times in (1, 2, 2.5, 5, 10) if times * unit >= raw * (1 - 1e-9))
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, max(last, first + 1) + 1)]


def tick(value: float) -> str:
    """A tick's label: as many digits as it needs."""
    return f"{value:.4g}" if abs(value) > 1e-12 else "0"


class Plot:
    """The marks of one search. kind: its colour's number. steps: K of its grid."""

    def __init__(self, kind: int, steps: int, scale: Scale) -> None:
        self.kind = kind
        self.steps = steps
        self.scale = scale

    def stroke(self, mark: Score) -> str:
        """The class of a dot."""
        finished = mark.step == self.steps
        return STROKES[finished, mark.right if finished else None]

    def dots(self, marks: Sequence[Score]) -> str:
        parts: dict[str, list[str]] = {}
        for mark in marks:
            if math.isfinite(mark.value):
                x, y = self.scale.at(mark)
                parts.setdefault(self.stroke(mark), []).append(f"M{x:.2f} {y:.2f}h0")
        markup = ""
        for name in filter(parts.__contains__, STROKES.values()):
            markup += f'<path class="tt-{name} tt-c{self.kind}" d="{"".join(parts[name])}"/>'
        hollow = "".join(parts.get("hollow", ()))
        return markup + (f'<path class="tt-hole" d="{hollow}"/>' if hollow else "")

    def end(self, mark: Score) -> str:
        """The dot at the end of a line: larger than others, with the same meaning."""
        (x, y), stroke = self.scale.at(mark), self.stroke(mark)
        at = f'd="M{x:.2f} {y:.2f}h0"'
        hole = f'<path class="tt-hole tt-large" {at}/>' if stroke == "hollow" else ""
        return f'<path class="tt-end tt-{stroke} tt-c{self.kind}" {at}/>{hole}'

    def line(self, curve: Sequence[Score]) -> str:
        """The step line: dashed while there are only estimates."""
        done = [mark for mark in curve if mark.step == self.steps]
        hoped = curve[: len(curve) - len(done) + 1]
        markup = ""
        for name, part in (("tt-hope", hoped), ("tt-step", done)):
            if len(part) > 1:
                (x0, y0), *points = map(self.scale.at, part)
                path = f"M{x0:.2f} {y0:.2f}" + "".join(f"H{x:.2f}V{y:.2f}" for x, y in points)
                markup += f'<path class="{name} tt-c{self.kind}" d="{path}"/>'
        return markup


def _keys(searches: Sequence[tuple[str, Course]]) -> str:
    if len(searches) == 1:
        return "<span>every score, and the best so far (dashed: of unfinished estimates)</span>"
    markup = ""
    for i, (title, course) in enumerate(searches):
        score = ""
        if (best := course.best) is not None:
            score = f" <b>{short(best.rank)}</b>{verdict(best.scores[best.reached].right)}"
        markup += f'<span class="tt-key tt-c{i}">{escape(title)}{score}</span>'
    return markup


def _about(searches: Sequence[tuple[str, Course]]) -> str:
    """The chart in words."""
    bests = [
        f"{title}: {'none yet' if course.best is None else short(course.best.rank)}"
        for title, course in searches
    ]
    return f"Reward against evaluations; best finished image of {', of '.join(bests)}"
