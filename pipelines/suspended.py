"""A stock program under way for one candidate, which stops wherever it asks for something.

    call = Suspended(program)    # program(ask) runs until it asks
    call.question                # what it asks
    call.answer(value)           # it goes on, until its next question

The program runs alone, in a thread of its own, and waits there at every question. So code that was
written as one loop, a sampler or the call of a pipeline, is carried on step by step from outside.
Of the threads one runs at a time: whoever answers waits for the next question.
"""

from __future__ import annotations

import contextvars
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, TypeAlias

Ask: TypeAlias = Callable[[Any], Any]
"""A question -> its answer, as the program sees it."""
NAME = "suspended program"
"""Of its thread."""


class Ended(BaseException):
    """Raised in a program at its questions: what it makes is wanted no longer."""


END = object()
"""The answer to all questions of a program that is ended."""
PATIENCE = 10.0
"""Seconds to wait for a program to end, which may ask again where it cleans up, or never end."""


@dataclass(frozen=True)
class Returned:
    """A program has come to its end."""

    value: Any


class Suspended:
    """A program under way. It ends with the last reference to it, and its thread with it.

    program: is called with what it asks by, and must not hold this object.
    """

    def __init__(self, program: Callable[[Ask], Any]) -> None:
        self._questions: SimpleQueue[Any] = SimpleQueue()
        self._answers: SimpleQueue[Any] = SimpleQueue()
        run = contextvars.copy_context().run
        args = (_run, program, self._questions, self._answers)
        thread = threading.Thread(target=run, args=args, name=NAME, daemon=True)
        self.close = weakref.finalize(self, _end, thread, self._answers)
        """Ends the program where it waits, and waits until its thread is gone."""
        thread.start()
        self.question: Any = None
        """What it waits for; `Returned` at its end."""
        self.answer(None)

    def answer(self, value: Any) -> None:
        """Let it go on with this answer, until its next question; raises what the program does."""
        self._answers.put(value)
        self.question = self._next()

    def _next(self) -> Any:
        come = self._questions.get()
        try:
            if isinstance(come, BaseException):
                raise come
            return come
        finally:
            del come  # an error's traceback holds this frame, and all tensors of the program


def _run(
    program: Callable[[Ask], Any],
    questions: SimpleQueue[Any],
    answers: SimpleQueue[Any],
) -> None:
    """The work of the thread."""

    def answer() -> Any:
        value = answers.get()
        if value is END:
            answers.put(END)  # to its next question, which it may ask in `finally`
            raise Ended
        return value

    def ask(question: Any) -> Any:
        questions.put(question)
        return answer()

    try:
        answer()  # END, where Ctrl-C came while the thread started
        questions.put(Returned(program(ask)))
    except Ended:
        pass
    except BaseException as error:
        questions.put(error)


def _end(thread: threading.Thread, answers: SimpleQueue[Any]) -> None:
    answers.put(END)
    if thread is not threading.current_thread() and thread.is_alive():
        thread.join(PATIENCE)
