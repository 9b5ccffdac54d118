"""Twenty other seeds: both searches of a comparison from random first seeds, and their wins, pair by pair."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from html import escape
from typing import NamedTuple

from ttsnap.core.results import Candidate
from ttsnap.demo.form import DemoLimits, aspect_of, baseline, title_of
from ttsnap.demo.html import line, picture, shaped, short, thumbnail_uri, verdict
from ttsnap.demo.stream import PERIOD, check_comparable
from ttsnap.demo.worker import Models, SearchThread, prepare, run_search
from ttsnap.request.request import SearchRequest

PAIRS = 20
EQUAL = 1e-9
"""The least difference of rewards that is no tie: below it both searches mostly found the same image."""
OUTCOMES = ("won", "tied", "lost")


class Side(NamedTuple):
    """The best image of one search: seed, reward, whether it is strictly right, and a small copy as a data URI."""

    seed: int
    reward: float
    right: bool | None
    picture: str


class Pair(NamedTuple):
    """Best-of-N and the chosen algorithm from the same first seed."""

    first: int
    base: Side
    chosen: Side

    @property
    def outcome(self) -> str:
        """The outcome for the chosen algorithm, by the reward: won, tied or lost."""
        gain = self.chosen.reward - self.base.reward
        return OUTCOMES[1] if abs(gain) <= EQUAL else OUTCOMES[0] if gain > 0 else OUTCOMES[2]


class Tallying(SearchThread):
    """Runs both searches from each first seed; `pairs` grows. All together may take as long as one comparison."""

    def __init__(
        self, request: SearchRequest, firsts: Sequence[int], models: Models, limits: DemoLimits, stop: threading.Event
    ) -> None:
        super().__init__([baseline(request), request], models, limits, stop)
        self.firsts = firsts
        self.pairs: list[Pair] = []

    def work(self) -> None:
        judge = self.models.judge(self.requests[0].prompt.text, self.requests[0].model)
        searches = [prepare(self.pipe, request, self.limits).request for request in self.requests]

        def side(best: Candidate) -> Side:
            return Side(best.seed, best.reward, judge(best.pixels), thumbnail_uri(best.pixels))

        for first in self.firsts:
            results = [run_search(self.pipe, replace(request, seed=first), self.should_stop)[0] for request in searches]
            if self.should_stop():  # both searches of a pair must have had the same budget
                return
            pair = Pair(first, *(side(result.best) for result in results))
            with self.lock:
                self.pairs.append(pair)


def tally(
    request: SearchRequest, firsts: Sequence[int], models: Models, limits: DemoLimits, stop: threading.Event
) -> Iterator[tuple[str, str]]:
    """HTML of the tally after each pair, and a line of progress. Closing the iterator stops it.

    ValueError for a request that the model or the search refuses.
    """
    check_comparable(request)
    work, wanted = Tallying(request, firsts, models, limits, stop), len(firsts)
    pairs = work.pairs
    with work:
        yield render_tally(request, pairs, wanted), "waiting for the first pair"
        yield from work.frames(
            lambda: (render_tally(request, pairs, wanted), f"{len(pairs)} of {wanted} other seeds"), PERIOD
        )
        ended = "done" if len(pairs) == wanted else "stopped"
        if work.late:
            ended = f"stopped after {2 * limits.seconds:g} seconds, the most that this demo allows"
        yield render_tally(request, pairs, wanted), f"{ended}: {len(pairs)} of {wanted} other seeds"


def render_tally(request: SearchRequest, pairs: Sequence[Pair], wanted: int) -> str:
    """Wins, ties and losses, and every pair of images. All text is escaped."""
    name, base = escape(title_of(request)), escape(title_of(baseline(request)))
    counts = {outcome: sum(pair.outcome == outcome for pair in pairs) for outcome in OUTCOMES}
    words = "".join(f'<b class="tt-p-{outcome}">{count}</b> {outcome} ' for outcome, count in counts.items())
    bar = "".join(f'<i class="tt-p-{outcome}" style="flex:{count}"></i>' for outcome, count in counts.items() if count)
    rest = f'<i style="flex:{wanted - len(pairs)}"></i>' if len(pairs) < wanted else ""
    judged = [pair for pair in pairs if pair.base.right is not None and pair.chosen.right is not None]
    right = ""
    if judged:
        ours, theirs = sum(bool(pair.chosen.right) for pair in judged), sum(bool(pair.base.right) for pair in judged)
        right = f"<p>Strictly right: {name} <b>{ours}</b>, {base} <b>{theirs}</b> of {len(judged)}.</p>"
    figures = "".join(_figure(pair) for pair in pairs)
    return (
        f'<div class="tt-stage tt-tally"{shaped(aspect_of(request))}>{line("prompt", request.prompt.text)}'
        f"<p>{name} (right) against {base} (left), by the reward, from first seeds drawn at random: {words}</p>"
        f'<div class="tt-score">{bar}{rest}</div>{right}<div class="tt-pairs">{figures}</div></div>'
    )


def _figure(pair: Pair) -> str:
    images = "".join(
        f"<span>{picture(side.picture, f'{who}: seed {side.seed}, reward {short(side.reward)}')}"
        f"{short(side.reward)}{verdict(side.right)}</span>"
        for who, side in (("best-of-N", pair.base), ("the chosen algorithm", pair.chosen))
    )
    return (
        f'<figure class="tt-pair2 tt-p-{pair.outcome}" title="seeds from {pair.first}">{images}'
        f"<figcaption>from {pair.first}: {pair.outcome}</figcaption></figure>"
    )
