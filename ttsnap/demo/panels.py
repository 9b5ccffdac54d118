"""The stage as HTML: best image, meters, kept images, chart and boards; and a stage without a
search."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from html import escape

from ttsnap.core.results import Led
from ttsnap.demo.html import answers_in_words, figure, line, picture, shaped, short, token, verdict
from ttsnap.loop.budget import Budget
from ttsnap.results.course import Cell, Course, Drawing, Score, Tracked, drawn

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


@dataclass(eq=False)
class Hand:
    """A visitor's hand on a search."""

    stop: threading.Event = field(default_factory=threading.Event)
    """Ends it."""
    led: Led | None = None
    """The search as it runs; None before, and of a comparison."""
    asked: dict[int, str] = field(default_factory=dict)
    """What was last asked of each candidate."""


@dataclass
class View:
    """One search on the page. Its note and what it kept come at its end."""

    title: str
    course: Course
    allowed: Budget
    seconds: float
    """Time that the search may take."""
    pictures: dict[tuple[int, int], str] = field(default_factory=dict)
    """What was scored, by candidate and step, as data URIs."""
    best: str = ""
    """The best finished image, large."""
    note: str = ""
    """Warnings."""
    kept: tuple[tuple[str, str], ...] = ()
    """The other kept images, best first: a data URI and a caption each."""
    source: str = ""
    """The picture that the search changes, as a data URI."""
    aspect: float = 1.0
    """Width of the images by their height."""
    hand: Hand | None = None
    """The visitor's; None where nobody leads the search."""


BOARD_COLUMNS = 18
"""Of pictures on the board, at most, in one band: what is not in sight is reached by scrolling."""


def render_board(view: View, title: str = "") -> str:
    """The board. All text is escaped."""
    drawing = drawn(view.course, BOARD_COLUMNS, 1)
    name = f"<b>{escape(title)}</b>" if title else ""
    head = f'<div class="tt-boardhead">{name}<span>{escape(drawing.words)}</span></div>'
    head += _items(view)
    if not drawing.cells:
        idle = line("idle", "waiting for the first scores")
        return f'<div class="tt-board">{head}{idle}</div>'
    table = Table(view, drawing)
    labels = '<div class="tt-row tt-corner" style="grid-row:1"><small>seed</small></div>'
    labels += "".join(map(table.row_label, drawing.bands[0]))
    seeds = "".join(table.seed(column, one) for (_, column), one in drawing.heads.items())
    cells = "".join(map(table.cell, drawing.cells.values()))
    style = f"--n:{drawing.columns};--r:{len(drawing.bands[0])}"
    kind = "tt-grid tt-answered" if view.course.asked else "tt-grid"
    grid = f'<div class="{kind}" style="{style}">{labels}{seeds}{cells}</div>'
    return f'<div class="tt-board">{head}<div class="tt-scroll" tabindex="0">{grid}</div></div>'


def _items(view: View) -> str:
    """The items of a checklist as buttons, which light the images that have them; and how many of
    the finished ones that are."""
    items = (
        f'<button type="button" class="tt-item" data-item="{escape(token(words))}">'
        f"{escape(words)} <small>{had}</small></button>"
        for words, had in view.course.answers.items()
    )
    about = "light the images that have it; the number of finished ones that do"
    inner = "".join(items)
    return f'<div class="tt-items" title="{about}">{inner}</div>' if inner else ""


class Table:
    """The parts of a board as HTML: the one band of a drawing."""

    def __init__(self, view: View, drawing: Drawing) -> None:
        self.view = view
        self.drawing = drawing
        shown = sorted(drawing.cells.values(), key=lambda cell: cell.row)
        self.feet = {cell.led: cell.look for cell in shown}

    def row_label(self, step: int) -> str:
        name, noise = self.drawing.names[step]
        row = self.drawing.bands[0].index(step) + 2
        small = f"<small>{noise}</small>" if noise else ""
        return f'<div class="tt-row" style="grid-row:{row}">{name}{small}</div>'

    def seed(self, column: int, best: Tracked) -> str:
        """The seed of a column, which stands out above the best image."""
        kind = " tt-crown" * (best is self.view.course.best)
        return f'<div class="tt-col{kind}" style="grid-column:{column + 2}">{best.seed}</div>'

    def cell(self, cell: Cell) -> str:
        """A picture with its score below."""
        uri = self.view.pictures.get(cell.look)
        about, text = self.words(cell)
        kinds = {
            "tt-cell": True,
            "tt-pending": cell.score is None,
            "tt-pruned": cell.dim,
            "tt-winner": cell.place == 0,
            "tt-failed": uri is None and cell.score is not None and math.isnan(cell.score.value),
        }
        kind = " ".join(name for name, holds in kinds.items() if holds)
        inner = "<i></i>" if uri is None else picture(uri, about)
        style = f"grid-area:{cell.row + 2}/{cell.column + 2}"
        return (
            f'<div class="{kind}" style="{style}" title="{escape(about)}"{self.led(cell)}>'
            f"{inner}<span>{text}</span>{self.answers(cell)}</div>"
        )

    def words(self, cell: Cell) -> tuple[str, str]:
        """What a cell shows in words, and what stands below its picture, as HTML."""
        about = f"seed {cell.candidate.name}"
        if cell.score is None:
            return about, "&nbsp;"
        score = "failed" if math.isnan(cell.score.value) else short(cell.score.value)
        about += f", step {cell.look[1]}: {score}{answers_in_words(cell.score)}"
        items = self.view.course.asked
        answers = cell.score.answers
        marks = (verdict(met) for name, met in answers.items() if name not in items)
        return about + " · pruned here" * cell.dim, score + "".join(marks)

    def answers(self, cell: Cell) -> str:
        """Ticks and crosses for the items of a checklist, and which of them a picture has."""
        items = self.view.course.asked
        if cell.score is None or not items:
            return ""
        met = {name: yes for name, yes in cell.score.answers.items() if name in items}
        has = " ".join(token(name) for name, yes in met.items() if yes)
        marks = "".join(map(verdict, met.values()))
        return f'<span class="tt-marks" data-has="{escape(has)}">{marks}</span>'

    def led(self, cell: Cell) -> str:
        """The attributes by which a click on a picture finds the candidate that it belongs to
        (page.js)."""
        hand = self.view.hand
        if cell.led is None or hand is None or self.view.course.over:
            return ""
        foot = cell.look == self.feet[cell.led]
        command = f' data-asked="{hand.asked.get(cell.led, "")}"' if foot else ""
        return f' data-uid="{cell.led}"{command}'


INTRO = """<div class="tt-stage tt-empty"><div class="tt-ghosts">{ghosts}</div>
<h2>Watch a search decide where compute goes</h2>
<p>Many seeds start. Each is scored while it is still noise, from the image that the model already expects. Poor ones
are dropped, good ones go on or branch, and the best finished image wins. Every evaluation of the model counts against
one budget.</p></div>"""
PLAIN = '<div class="tt-stage tt-empty{kind}"><h2>{head}</h2><p>{text}</p></div>'
METERS = {
    "evaluations": "runs of the denoising network, the unit of the budget",
    "decodes": "images decoded from latents, to be scored or returned",
    "reward calls": "images scored",
    "seconds": "time since the search began",
}


def intro() -> str:
    """The stage before the first search."""
    fates = [3, 3, 3, 2, 2, 1, 1, 1, 1, 1]
    ghosts = "".join(f"<span>{'<i></i>' * fate}</span>" for fate in fates)
    return INTRO.format(ghosts=ghosts)


def render_plain(head: str, text: str, *, error: bool = False) -> str:
    """A stage of words. All text is escaped."""
    lines = escape(text).replace("\n", "<br>")
    return PLAIN.format(kind=" tt-error" if error else "", head=escape(head), text=lines)


def render_stage(prompt: str, views: Sequence[View], status: str = "") -> str:
    """The whole stage; of a comparison what is compared comes first. All text is escaped."""
    many = len(views) > 1
    best = _wipe(views[0].source, views) + "".join(_best(view, many) for view in views)
    meters = "".join(_meters(view, i if many else None) for i, view in enumerate(views))
    boards = "".join(render_board(v, v.title if many else "") for v in views)
    allowed = max(1 if view.allowed.seconds else view.allowed.nfe or 1 for view in views)
    chart = render_chart([(view.title, view.course) for view in views], allowed)
    head = line("prompt", prompt) + line("status", status)
    kept = "".join(_kept(view, many) for view in views)
    notes = "".join(line("note", view.note) for view in views if view.note)
    return (
        f'<div class="tt-stage{" tt-two" if many else ""}"{shaped(views[0].aspect)}>'
        f'<div class="tt-top"><div class="tt-bests">{best}</div>'
        f'<div class="tt-side">{head}{meters}{chart}</div></div>{notes}{kept}{boards}</div>'
    )


def _wipe(source: str, views: Sequence[View]) -> str:
    """The picture before, and over it the best image of the first view, with a wipe between."""
    if not source:
        return ""
    before = f'<img src="{source}" alt="before">'
    after = views[0].best
    if not after:
        return figure(f"<div>{before}</div>", "<span>before</span>", "tt-best tt-wipe")
    over = f'<img class="tt-after" src="{after}" alt="after">'
    wipe = '<input type="range" value="100" aria-label="how much of the image before is shown">'
    words = "<span>before, and after: move the slider</span>"
    return figure(f"<div>{before}{over}</div>{wipe}", words, "tt-best tt-wipe")


def _best(view: View, named: bool) -> str:
    """The best image so far, large; before the first the most promising candidate."""
    name = f"<b>{escape(view.title)}</b> " if named else ""
    best = view.course.best
    if best is None or not view.best:
        hoped = next((one for one in view.course.ranked() if _seen(view, one)), None)
        if hoped is None:
            return figure(line("none", "no finished image yet"), name, "tt-best")
        words = f"most promising: seed {hoped.name}, still noisy"
        shown = picture(_seen(view, hoped), words)
        return figure(shown, f"{name}<span>{words}</span>", "tt-best tt-hoped")
    score = best.scores[best.reached]
    said = answers_in_words(score)
    words = f"{'best' if view.course.over else 'best so far'}: seed {best.name}"
    words += "" if best.rank == -math.inf else f", reward {short(best.rank)}"
    shown = picture(view.best, words + said)
    items = view.course.asked
    lines = "".join(
        f"<div>{verdict(met)} {escape(item if met or item in items else f'not {item}')}</div>"
        for item, met in score.answers.items()
    )
    return figure(shown, f"{name}<span>{words}</span>{lines}", "tt-best")


def _seen(view: View, candidate: Tracked) -> str:
    """The last picture of a candidate, "" before the first."""
    return view.pictures.get((candidate.uid, candidate.reached), "")


def _kept(view: View, named: bool) -> str:
    name = f"<b>{escape(view.title)}</b>" if named else ""
    figures = "".join(figure(picture(uri, text), escape(text)) for uri, text in view.kept)
    return f'<div class="tt-kept">{name}{figures}</div>' if figures else ""


def _meters(view: View, place: int | None) -> str:
    """The spending: as meters, or as a line with the search's name where it is one of two.

    Two searches have one clock, the evaluations: seconds would say which of them ran while the
    machine was busy.
    """
    course = view.course
    caps = view.allowed
    nfe = round(course.nfe)
    if place is not None:
        cap = "" if caps.nfe is None else f" of {caps.nfe:,}"
        words = f"{nfe:,}{cap} evaluations, {course.reward_calls:,} scored"
        return (
            f'<div class="tt-line tt-c{place}"><b>{escape(view.title)}</b>'
            f" {words}{_bar(nfe, caps.nfe)}</div>"
        )
    rows = [
        ("evaluations", nfe, caps.nfe),
        ("decodes", course.decodes, caps.decodes),
        ("reward calls", course.reward_calls, caps.reward_calls),
        ("seconds", course.seconds, view.seconds),
    ]
    return f'<div class="tt-meters">{"".join(_meter(*row) for row in rows)}</div>'


def _meter(name: str, spent: float, cap: float | None) -> str:
    text = f"{spent:,.1f}" if isinstance(spent, float) else f"{spent:,}"
    limit = "" if cap is None else f"<small> / {cap:,.0f}</small>"
    inside = f"<span>{name}</span><b>{text}{limit}</b>{_bar(spent, cap)}"
    return f'<div class="tt-meter" title="{METERS[name]}">{inside}</div>'


def _bar(spent: float, cap: float | None) -> str:
    if not cap:
        return '<div class="tt-bar tt-free"></div>'
    return f'<div class="tt-bar"><i style="width:{100 * min(1.0, spent / cap):.1f}%"></i></div>'
