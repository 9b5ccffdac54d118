"""Twenty other seeds: both searches of a comparison from random first seeds, and their wins, pair by pair."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from html import escape

from ttsnap.core.results import Candidate
from ttsnap.demo.form import DemoLimits, baseline, title_of
from ttsnap.demo.html import line, picture, short, thumbnail_uri, verdict
from ttsnap.demo.stream import check_comparable
from ttsnap.demo.worker import Models, SearchThread, found, opened
from ttsnap.request.request import SearchRequest

PAIRS = 20
EQUAL = 1e-9
"""The least difference of rewards that is no tie: below it both searches mostly found the same image."""
OUTCOMES = ("won", "tied", "lost")


@dataclass(frozen=True)
class Side:
    """The best image of one search."""

    seed: int
    reward: float
    right: bool | None
    """Whether it is strictly right; None where nobody can tell."""
    picture: str
    """A small copy as a data URI."""


@dataclass(frozen=True)
class Pair:
    """Best-of-N and the chosen algorithm from the same first seed."""

    first: int
    """The first seed."""
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
        self, asked: SearchRequest, firsts: Sequence[int], models: Models, limits: DemoLimits, stop: threading.Event
    ) -> None:
        super().__init__([baseline(asked), asked], models, limits, stop)
        self.firsts = firsts
        self.pairs: list[Pair] = []

    def work(self) -> None:
        self.start_clock(len(self.asked))
        judge = self.models.judge(self.asked[0].prompt.text, self.asked[0].model)
        searches = [opened(self.pipe, asked, self.limits).asked for asked in self.asked]

        def side(best: Candidate) -> Side:
            return Side(best.seed, best.reward, judge(best.pixels), thumbnail_uri(best.pixels))

        for first in self.firsts:
            results = [found(self.pipe, replace(asked, seed=first), self.should_stop)[0] for asked in searches]
            if self.should_stop():  # both searches of a pair must have had the same budget
                return
            self.news.put(partial(self.pairs.append, Pair(first, *(side(result.best) for result in results))))


def tally(
    asked: SearchRequest, firsts: Sequence[int], models: Models, limits: DemoLimits, stop: threading.Event
) -> Iterator[tuple[str, str]]:
    """HTML of the tally after each pair, and a line of progress. Closing the iterator stops it.

    ValueError for a request that the model or the search refuses.
    """
    check_comparable(asked)
    asked = asked.worded(models.canonical(asked.prompt.text, asked.model))
    work, wanted = Tallying(asked, firsts, models, limits, stop), len(firsts)
    pairs = work.pairs
    with work:
        yield render_tally(asked, pairs, wanted), "waiting for the first pair"
        for _ in work.changes():
            yield render_tally(asked, pairs, wanted), f"{len(pairs)} of {wanted} other seeds"
        ended = "done" if len(pairs) == wanted else "stopped"
        if work.late:
            ended = f"stopped after {2 * limits.seconds:g} seconds, the most that this demo allows"
        yield render_tally(asked, pairs, wanted), f"{ended}: {len(pairs)} of {wanted} other seeds"


def render_tally(asked: SearchRequest, pairs: Sequence[Pair], wanted: int) -> str:
    """Wins, ties and losses, and every pair of images. All text is escaped."""
    name, base = escape(title_of(asked)), escape(title_of(baseline(asked)))
    counts = {outcome: sum(pair.outcome == outcome for pair in pairs) for outcome in OUTCOMES}
    words = "".join(f'<b class="tt-p-{outcome}">{count}</b> {outcome} ' for outcome, count in counts.items())
    bar = "".join(f'<i class="tt-p-{outcome}" style="flex:{count}"></i>' for outcome, count in counts.items() if count)
    rest = f'<i style="flex:{wanted - len(pairs)}"></i>' if len(pairs) < wanted else ""
    judged = [pair for pair in pairs if pair.base.right is not None and pair.chosen.right is not None]
    right = ""
    if judged:
        ours, theirs = sum(bool(pair.chosen.right) for pair in judged), sum(bool(pair.base.right) for pair in judged)
        right = (
            f"<p>Strictly right, by a check that neither search sees: {name} <b>{ours}</b>, {base} <b>{theirs}</b> of "
            f"{len(judged)}.</p>"
        )
    figures = "".join(_figure(pair) for pair in pairs)
    return (
        f'<div class="tt-stage tt-tally">{line("prompt", asked.prompt.text)}'
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
