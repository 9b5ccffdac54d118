"""What happens when a visitor presses something: fields are checked, searches streamed, traces drawn."""

from __future__ import annotations

import logging
import random
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from ttsnap.demo import asked as forms
from ttsnap.demo.asked import Limits, Offer
from ttsnap.demo.board_html import render_board
from ttsnap.demo.border import uploaded
from ttsnap.demo.models import Models
from ttsnap.demo.panels import render_settings
from ttsnap.demo.stream import Frame, stream
from ttsnap.demo.traces import Trace, board_at, read_trace
from ttsnap.outputs import read_payload

logger = logging.getLogger(__name__)
FIELDS = ("prompt", "algorithm", "rewards", "budget", "steps", "seed", "keep", "size", "model")
PROMPTS = (
    "a photo of a red bicycle leaning on a blue door",
    "three ceramic cups on a wooden shelf, soft morning light",
    "a fox reading a newspaper in a train, watercolour",
    "an isometric cutaway of a small bakery",
)
FRAMES = 60
"""The most pictures of a replay that plays by itself."""


@dataclass
class Handlers:
    """The page's functions. `root` holds this server's files: uploads and downloads in `cache`, runs beside it."""

    offer: Offer
    limits: Limits
    models: Models
    root: Path
    stops: dict[str, set[threading.Event]] = field(default_factory=dict)

    @property
    def cache(self) -> Path:
        """Where gradio keeps uploads and what visitors may download."""
        return self.root / "cache"

    # --- searching ------------------------------------------------------------------------------------------------

    def search(self, request: gr.Request, *values: Any) -> Iterator[tuple[Any, ...]]:
        """Search for the best image under the budget; streams the board, and ends with files and lines to repeat it."""
        yield from self._run(request, values, compare=False)

    def compare(self, request: gr.Request, *values: Any) -> Iterator[tuple[Any, ...]]:
        """Best-of-N first, then the chosen algorithm on the same budget and seeds."""
        yield from self._run(request, values, compare=True)

    def _run(self, request: gr.Request, values: tuple[Any, ...], *, compare: bool) -> Iterator[tuple[Any, ...]]:
        session, stop = str(request.session_hash), threading.Event()
        self.stops.setdefault(session, set()).add(stop)
        folder = Path(tempfile.mkdtemp(prefix="run-", dir=self.root))
        try:
            fields = dict(zip(FIELDS, values, strict=True))
            wanted = forms.read(fields, self.offer, self.limits, self.models.defaults)
            for frame in stream(wanted, self.models, self.limits, stop, folder, compare=compare):
                yield _shown(frame)
        except ValueError as error:
            raise refusal(error) from None
        except Exception as error:
            logger.exception("a search failed")
            raise gr.Error(f"The search failed ({type(error).__name__}); the server's log says why.") from None
        finally:
            stop.set()
            self.stops[session].discard(stop)
            if not self.stops[session]:
                self.stops.pop(session, None)
            shutil.rmtree(folder, ignore_errors=True)  # what visitors may download has been copied to the cache

    def stop(self, request: gr.Request) -> None:
        """End this visitor's search with its best finished image."""
        for event in list(self.stops.get(str(request.session_hash), ())):
            event.set()

    def surprise(self) -> tuple[str, int]:
        """A prompt and a seed that nobody chose."""
        draw = random.SystemRandom()
        if self.offer.model != "embedded":
            return draw.choice(PROMPTS), draw.randrange(100_000)
        from ttsnap.scenes import sample_prompts

        return sample_prompts(1, draw.randrange(2**31), [draw.choice(("relation", "combo", "triple"))])[
            0
        ], draw.randrange(100_000)

    # --- replaying ------------------------------------------------------------------------------------------------

    def open_trace(self, payload: Any) -> tuple[Any, Any, str]:
        """A trace was uploaded: which prompts it holds, how many moves the first has, and the end of that."""
        try:
            trace = self._trace(payload)
            names = [f"{i + 1}. {told.prompt[:80]}" for i, told in enumerate(trace.results)] if trace else []
            moves = len(trace.results[0].moves) if trace else 1
            chooser = gr.update(choices=[(n, i) for i, n in enumerate(names)], value=0 if names else None,
                                visible=len(names) > 1)  # fmt: skip
            slider = gr.update(maximum=max(1, moves), value=max(1, moves), interactive=trace is not None)
            return chooser, slider, _trace_html(trace, 0, moves) if trace else ""
        except ValueError as error:
            raise refusal(error) from None

    def choose_result(self, payload: Any, which: Any) -> tuple[Any, str]:
        """Another prompt of the trace."""
        try:
            trace, which = self._known(payload, which)
            moves = len(trace.results[which].moves)
            return gr.update(maximum=max(1, moves), value=max(1, moves)), _trace_html(trace, which, moves)
        except ValueError as error:
            raise refusal(error) from None

    def draw_trace(self, payload: Any, which: Any, move: Any) -> str:
        """The board after so many moves."""
        try:
            trace, which = self._known(payload, which)
            most = len(trace.results[which].moves)
            return _trace_html(trace, which, forms.whole("move", move, 0, max(1, most)))
        except ValueError as error:
            raise refusal(error) from None

    def play_trace(self, payload: Any, which: Any) -> Iterator[tuple[Any, str]]:
        """Every move in turn, or 60 of them."""
        try:
            trace, which = self._known(payload, which)
            most = len(trace.results[which].moves)
            frames = min(most, FRAMES)
            for frame in range(1, frames + 1):
                move = round(frame * most / frames)
                yield move, _trace_html(trace, which, move)
                time.sleep(min(0.6, 8 / frames))
        except ValueError as error:
            raise refusal(error) from None

    def read_picture(self, payload: Any) -> str:
        """The settings in a PNG that ttsnap wrote."""
        from PIL import Image

        try:
            path = uploaded(payload, self.cache)
            return "" if path is None else render_settings(read_payload(path))
        except (ValueError, Image.DecompressionBombError, RecursionError) as error:
            text = str(error).replace(str(self.cache), "")
            raise refusal(ValueError(text if isinstance(error, ValueError) else "that picture is too large")) from None

    def _trace(self, payload: Any) -> Trace | None:
        path = uploaded(payload, self.cache)
        return None if path is None else read_trace(path, self.limits.upload)

    def _known(self, payload: Any, which: Any) -> tuple[Trace, int]:
        trace = self._trace(payload)
        if trace is None:
            raise ValueError("upload a trace.json first")
        return trace, forms.whole("prompt", which or 0, 0, len(trace.results) - 1)


def refusal(error: ValueError) -> gr.Error:
    """The core's message for the visitor, as text: it may quote what the visitor wrote."""
    text = escape(str(error)[:1500]).replace("\n", "<br>")
    return gr.Error(text, duration=20, title="That cannot be searched", print_exception=False)


def _shown(frame: Frame) -> tuple[Any, ...]:
    """A frame as values of stage, status, winner, files, Python and command line."""
    status = f'<div class="tt-word">{escape(frame.status)}</div>'
    if not frame.files:
        return frame.stage or gr.skip(), status, *[gr.skip()] * 4
    files = [str(path) for path in frame.files]
    winner = gr.update(value=files[0], interactive=True, visible=True)
    return frame.stage, status, winner, files, frame.python, frame.command


def _trace_html(trace: Trace, which: int, move: int) -> str:
    told = trace.results[which]
    board = board_at(trace, told, move)
    title = f"move {min(move, len(told.moves))} of {len(told.moves)}, {board.spent.nfe:,} evaluations"
    winner = told.winner if board.over else None
    head = f'<div class="tt-prompt">{escape(told.prompt[:400])}</div>'
    return f'<div class="tt-stage">{head}{render_board(board, title, winner)}</div>'
