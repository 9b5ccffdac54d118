"""Counts the code that one live search of the embedded model enters, once everything is imported
and has run before.

python scripts/trace_search.py          # the figures
python scripts/trace_search.py --list   # and each file with its functions and lines that ran

A file, a function or a line counts once, however often it runs; a file's lines are all that it has.
What a search reads to be understood is about as much.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import io
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType

from imports import ROOT, modules

sys.path.insert(0, str(ROOT))  # the package beside this script, whichever is installed

PROMPT = "two red circles and a blue square"
HOW = {"search": "seed-pruning", "reward": "scenes", "budget": "3images", "seed": 0}
"""The call of a user who wants a good image: the default algorithm, within a few images' time."""


def searched() -> None:
    """Load the embedded model and search, as `ttsnap generate` does."""
    from ttsnap.pipelines import load

    pipe = load()
    pipe.set_progress_bar_config(disable=True)
    with contextlib.redirect_stderr(io.StringIO()):
        pipe(PROMPT, **HOW)


class Trace:
    """The functions of these files that ran in this thread while it was on, and the lines in
    them."""

    def __init__(self, files: set[str]) -> None:
        self.files = files
        self.functions: set[CodeType] = set()
        self.lines: dict[str, set[int]] = defaultdict(set)

    def __enter__(self) -> Trace:
        sys.settrace(self._called)
        return self

    def __exit__(self, *exception: object) -> None:
        sys.settrace(None)

    def _called(self, frame: FrameType, event: str, arg: object) -> Callable[..., object] | None:
        code = frame.f_code
        # Bodies of modules and classes have no local variables of their own, and belong to an
        # import.
        if code.co_filename not in self.files or not code.co_flags & inspect.CO_OPTIMIZED:
            return None
        if not code.co_name.startswith("<"):
            self.functions.add(code)
        return self._line

    def _line(self, frame: FrameType, event: str, arg: object) -> Callable[..., object]:
        self.lines[frame.f_code.co_filename].add(frame.f_lineno)
        return self._line


def traced() -> dict[str, tuple[int, int, int]]:
    """Of each file that a search enters: its functions and lines that ran, and all its lines."""
    searched()  # imports, and fills what is kept for the next search
    files = {str(path) for path in modules().values()}
    with Trace(files) as trace:
        searched()
    return {
        str(Path(file).relative_to(ROOT)): (
            sum(code.co_filename == file for code in trace.functions),
            len(lines),
            len(Path(file).read_text(encoding="utf-8").splitlines()),
        )
        for file, lines in sorted(trace.lines.items())
    }


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument(
        "--list", action="store_true", help="every file with its functions and lines that ran"
    )
    found = traced()
    functions, ran, lines = (sum(column) for column in zip(*found.values(), strict=True))
    if p.parse_args().list:
        for file, (of_file, ran_there, of_all) in found.items():
            print(f"{of_file:>5} functions {ran_there:>5} of {of_all:>5} lines  {file}")
    print(
        f"{ROOT / 'ttsnap'}: {len(found)} files, {functions} functions, {ran} lines that ran,"
        f" {lines} lines in these files"
    )


if __name__ == "__main__":
    main()
