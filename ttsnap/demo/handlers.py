"""Functions of the page: fields are checked, searches streamed."""

from __future__ import annotations

import inspect
import logging
import random
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from html import escape
from pathlib import Path
from typing import Any, TypeVar

import gradio as gr

from ttsnap.core.names import unknown
from ttsnap.core.results import DROP, FINISH
from ttsnap.demo import form
from ttsnap.demo.html import line
from ttsnap.demo.live import Frame, stream
from ttsnap.demo.panels import Hand, render_plain
from ttsnap.demo.worker import Models
from ttsnap.files import reading as files
from ttsnap.pipelines.packaged import MODELS
from ttsnap.request.limits import whole
from ttsnap.request.offer import ServingCatalog
from ttsnap.request.request import SearchRequest

logger = logging.getLogger(__name__)
Handler = TypeVar("Handler", bound=Callable[..., Any])
MOST_COMMANDS = 1000
"""Candidates that a visitor may drop or finish in one search."""


def _box(text: str, title: str, *, visible: bool = True) -> gr.Error:
    """An error as gradio takes it. Its text is escaped: it may quote the visitor."""
    text = escape(text[:1500]).replace("\n", "<br>")
    return gr.Error(text, duration=20, visible=visible, title=title, print_exception=False)


def _of_the_form(run: Handler) -> Handler:
    """Gives a handler a signature with the form's fields, of which gradio makes the API's
    arguments."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    # what the page has goes first
    named = [inspect.Parameter(name, kind, default=None) for name in form.FIELDS]
    handler, request, *_ = inspect.signature(run).parameters.values()
    vars(run)["__signature__"] = inspect.Signature([handler, request, *named])
    return run


@dataclass
class Handlers:
    """The page's functions, and the running searches of each session."""

    offer: ServingCatalog
    limits: form.DemoLimits
    models: Models
    root: Path
    """The folder of this server's files: the cache, and one folder for each running search."""
    running: dict[str, Hand] = field(default_factory=dict)
    """By session."""

    @_of_the_form
    def search(self, request: gr.Request, *values: Any) -> Iterator[tuple[Any, ...]]:
        """Search for the best image under the budget; streams the board, and ends with files and
        lines to repeat it."""
        yield from self._run(request, values, self._searched)

    @_of_the_form
    def compare(self, request: gr.Request, *values: Any) -> Iterator[tuple[Any, ...]]:
        """Best-of-N and the chosen algorithm on the same budget and seeds, evaluation by
        evaluation."""
        yield from self._run(request, values, partial(self._searched, compare=True))

    def _run(
        self,
        request: gr.Request,
        values: tuple[Any, ...],
        frames: Callable[..., Iterator[Any]],
    ) -> Iterator[tuple[Any, ...]]:
        """Stream frames(request, hand)."""
        session = str(request.session_hash)
        mine = self.running[session] = Hand()
        try:
            yield from frames(self._read(values), mine)
        except Exception as error:
            stage, raised = _failed(error)
            yield stage, line("word", ""), *_NOTHING, gr.update(interactive=False)
            raise raised from None
        finally:
            mine.stop.set()
            if self.running.get(session) is mine:
                del self.running[session]

    def _searched(self, wanted: SearchRequest, hand: Hand, **how: Any) -> Iterator[tuple[Any, ...]]:
        # downloads are copied to the cache
        with tempfile.TemporaryDirectory(prefix="run-", dir=self.root) as folder:
            for frame in stream(wanted, self.models, self.limits, hand, Path(folder), **how):
                yield _shown(frame)

    def _read(self, values: tuple[Any, ...]) -> SearchRequest:
        """The search request. ValueError for fields that are not allowed."""
        fields = dict(zip(form.FIELDS, values, strict=True))
        if fields["picture"] is not None:
            fields["picture"] = files.read_bytes(fields["picture"], self.limits.upload, "picture")
        return form.read(fields, self.offer, self.limits)

    def stop(self, request: gr.Request) -> None:
        """End this visitor's search with its best finished image; one is finished where there is
        none."""
        if (hand := self.running.get(str(request.session_hash))) is not None:
            hand.stop.set()

    def lead(self, request: gr.Request, event: gr.EventData) -> None:
        """Drop a candidate of this visitor's search, or finish it at once, as the board's button
        says."""
        data = vars(event)["_data"]
        command = data if isinstance(data, dict) else {}
        hand = self.running.get(str(request.session_hash))
        verb = command.get("verb")
        try:
            uid = whole("candidate", command.get("uid"), 0, form.MOST_SEED)
            if verb not in (DROP, FINISH):
                raise ValueError(unknown("command", verb, (DROP, FINISH)))
            if hand is None or hand.led is None:
                raise ValueError("no search of yours is running; press Search first")
            if len(hand.asked) >= MOST_COMMANDS:
                raise ValueError(f"a search takes {MOST_COMMANDS} commands at most")
        except ValueError as error:
            raise _box(str(error), "That cannot be done") from None
        hand.asked[uid] = verb
        (hand.led.drop if verb == DROP else hand.led.finish)(uid)

    def surprise(self, model: Any) -> tuple[str, int]:
        """A random prompt for the model of the form, and a random seed."""
        draw = random.SystemRandom()
        ours = MODELS.get(str(model).strip() if self.offer.any_model else self.offer.model)
        if ours is None:
            return draw.choice(form.EXAMPLE_PROMPTS), draw.randrange(100_000)
        kind = draw.choice(ours.world.HARD_KINDS)
        return ours.world.sample_prompts(1, draw.randrange(2**31), [kind])[0], draw.randrange(
            100_000
        )

    def budget_hint(self, text: Any, steps: Any, picture: Any = None, strength: Any = 1) -> str:
        """The line below the budget."""
        redrawn = 1 if picture is None else strength
        return line("hint", form.budget_words(text, steps, self.limits, redrawn)[:300])


def _shown(frame: Frame) -> tuple[Any, ...]:
    """A frame as values of stage, status, winner, files, Python, command line, and the stop
    button."""
    first = frame.stage, line("word", frame.status)
    if frame.files:
        paths = [str(path) for path in frame.files]
        winner = gr.update(value=paths[0], interactive=True, visible=True)
        stop = gr.update(interactive=False)
        return *first, winner, paths, frame.python, frame.command, stop
    if frame.fresh:
        return *first, *_NOTHING, gr.update(interactive=True)
    return *first, *[gr.skip()] * 5


def _failed(error: Exception) -> tuple[str, gr.Error]:
    """A stage of the error, and the error for callers of the API. Of a failure inside only the kind
    is said, as its text may tell too much; it is logged."""
    title = "That cannot be searched"
    text = str(error)[:1500]
    if not isinstance(error, ValueError):
        logger.error("a search failed", exc_info=error)
        title = "The search failed"
        text = f"{title} ({type(error).__name__}); the server's log says why."
    return render_plain(title, text, error=True), _box(text, title, visible=False)


_NOTHING = (gr.update(value=None, visible=False), None, "", "")
"""No winner, files, Python or command line."""
