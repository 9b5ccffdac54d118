"""The stage as HTML: best image, meters, kept images, chart and boards; and a stage without a
search."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from ttsnap.demo.board_html import render_board
from ttsnap.demo.chart import render_chart
from ttsnap.demo.html import answered, figure, line, picture, shaped, short, verdict
from ttsnap.demo.view import View
from ttsnap.results.course import Tracked

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
    said = answered(score)
    words = f"{'best' if view.course.over else 'best so far'}: seed {best.name}"
    words += "" if best.rank == -math.inf else f", reward {short(best.rank)}"
    shown = picture(view.best, words + said)
    asked = view.course.asked
    lines = "".join(
        f"<div>{verdict(met)} {escape(item if met or item in asked else f'not {item}')}</div>"
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
