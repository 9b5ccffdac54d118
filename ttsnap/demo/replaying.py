"""Functions of the tab of finished searches: uploads are read, boards drawn move by move."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr

from ttsnap.demo.board_html import render_board
from ttsnap.demo.folder import Folder, UploadedPicture, read_folder, render_settings
from ttsnap.demo.guard import uploaded
from ttsnap.demo.handlers import RESTORED, Handlers, refusals
from ttsnap.demo.html import figure, line, picture, shaped
from ttsnap.demo.traces import board_at
from ttsnap.request.limits import whole

FRAMES = 60
"""The most frames of a replay."""
NONE = "That cannot be shown"


@dataclass
class Replays:
    """The tab's functions. Uploads are read anew each time: the server keeps nothing of its visitors."""

    handlers: Handlers

    @refusals(NONE)
    def open_files(self, payload: Any) -> tuple[Any, ...]:
        """Open uploaded files, at the end of the first prompt's search.

        Values, in order: the choice of prompts, the slider of moves, the play button, the stage; the settings, and the
        button for another search.
        """
        folder = self._folder(payload)
        trace = folder.trace if folder is not None else None
        names = [f"{i + 1}. {search.prompt[:80]}" for i, search in enumerate(trace.results)] if trace else []
        moves = len(trace.results[0].moves) if trace else 0
        chooser = gr.update(choices=[(n, i) for i, n in enumerate(names)], value=0 if names else None,
                            visible=len(names) > 1)  # fmt: skip
        slider = gr.update(maximum=max(2, moves), value=max(1, moves), interactive=moves > 1, visible=moves > 1)
        images = folder.images if folder is not None else []
        settings = render_settings(images[0].settings or {}) if images else ""
        play, again = gr.update(interactive=moves > 1), gr.update(visible=bool(images))
        return chooser, slider, play, render_folder(folder, 0, moves) if folder else "", settings, again

    @refusals(NONE)
    def choose_result(self, payload: Any, which: Any) -> tuple[Any, str]:
        """Choose another prompt of the trace."""
        folder, which, moves = self._known(payload, which)
        return gr.update(maximum=max(2, moves), value=max(1, moves)), render_folder(folder, which, moves)

    @refusals(NONE)
    def draw_trace(self, payload: Any, which: Any, move: Any) -> str:
        """The board after so many moves."""
        folder, which, moves = self._known(payload, which)
        return render_folder(folder, which, whole("move", move, 0, max(2, moves)))

    def play_trace(self, payload: Any, which: Any) -> Iterator[tuple[Any, str]]:
        """The board after every move in turn, in at most FRAMES frames."""
        with refusals(NONE):
            folder, which, moves = self._known(payload, which)
            frames = min(moves, FRAMES)
            for frame in range(1, frames + 1):
                move = round(frame * moves / frames)
                yield move, render_folder(folder, which, move)
                time.sleep(min(0.6, 8 / frames))

    @refusals(NONE)
    def search_again(self, payload: Any) -> tuple[Any, ...]:
        """The settings of the first uploaded image, as of `Handlers.restore`, and the other tab."""
        folder = self._folder(payload)
        if folder is None or not folder.images:
            return (gr.skip(),) * (len(RESTORED) + 2)
        return *self.handlers.filled(dict(folder.images[0].settings or {})), gr.update(selected="search")

    def _folder(self, payload: Any) -> Folder | None:
        payloads = payload if isinstance(payload, list) else [payload]
        paths = [path for each in payloads if (path := uploaded(each, self.handlers.cache)) is not None]
        most = self.handlers.limits.upload
        return read_folder([(path.name, path) for path in paths], most) if paths else None

    def _known(self, payload: Any, which: Any) -> tuple[Folder, int, int]:
        """The folder, the number of a prompt in it, and the number of its moves."""
        folder = self._folder(payload)
        if folder is None or folder.trace is None:
            raise ValueError("upload a trace.json, or the folder that holds it as a zip, first")
        which = whole("prompt", which or 0, 0, len(folder.trace.results) - 1)
        return folder, which, len(folder.trace.results[which].moves)


def render_folder(folder: Folder, which: int, move: int) -> str:
    """The stage: the board after so many moves, with images of the folder. All text is escaped."""
    sheet = folder.sheet(which)
    sheets = "" if sheet is None else _shown(sheet, "contact sheet", "tt-sheet")
    if folder.trace is None:
        images = "".join(_shown(image, image.name, "tt-shown") for image in folder.images)
        return f'<div class="tt-stage"{shaped(folder.aspect)}><div class="tt-shelf">{images}</div>{sheets}</div>'
    search = folder.trace.results[which]
    board = board_at(folder.trace, search, move)
    for (uid, step), uri in (sheet.looks if sheet is not None else {}).items():
        if (lane := board.lanes.get(uid)) is not None and step in lane.scores:
            lane.pictures[step] = uri
    shelf = ""
    for uid, image in folder.kept(search).items():
        lane = board.lanes.get(uid)
        if lane is not None and board.steps in lane.scores:
            lane.pictures[board.steps] = image.uri
            shelf += _shown(image, f"seed {lane.name}", "tt-shown" + (" tt-won" if uid == search.winner else ""))
    shelf = f'<div class="tt-shelf">{shelf}</div>' if shelf else ""
    title = f"move {min(move, len(search.moves))} of {len(search.moves)}, {board.spent.nfe:,} evaluations"
    title += f" and {drafts:,} draft calls" if (drafts := board.spent.draft_calls) else ""
    drawn = render_board(board, title, search.winner if board.over else None)
    head, foot = line("prompt", search.prompt[:400]), sheets if board.over else ""
    return f'<div class="tt-stage tt-past"{shaped(folder.aspect)}>{head}{shelf}{drawn}{foot}</div>'


def _shown(image: UploadedPicture, text: str, kind: str) -> str:
    return figure(picture(image.uri, text[:120]), escape(text[:120]), kind)
