"""The interpreter watched: what is imported, opened, started and asked; and code and files that
nothing may touch."""

from __future__ import annotations

import importlib
import os
import sys
import sysconfig
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

import ttsnap

MODULE = "ttsnap_canary"
PROGRAMS = (
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "os.startfile",
)
OURS = tuple(
    os.path.realpath(p)
    for p in (
        Path(ttsnap.__file__).parents[1],
        sys.prefix,
        sys.base_prefix,
        *sysconfig.get_paths().values(),
        *filter(None, sys.path),
        "/proc",
        "/sys",
        "/dev/null",
    )
)


@dataclass
class Watch:
    """What happened meanwhile, outside of `folder`."""

    folder: Path
    seen: list[str] = field(default_factory=list)

    def audit(self, event, arguments):
        if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
            path = os.path.realpath(os.fsdecode(arguments[0]))
            if not f"{path}{os.sep}".startswith((os.path.realpath(self.folder) + os.sep, *OURS)):
                self.seen.append(f"opened {path}")
        elif (event.startswith("socket.") and event != "socket.gethostname") or event in PROGRAMS:
            self.seen.append(f"{event} {arguments}")
        elif event == "import" and MODULE in str(arguments[0]):
            self.seen.append(f"imported {arguments[0]}")


WATCHES = []  # the one that is on, if any: an audit hook cannot be taken away again
sys.addaudithook(lambda event, arguments: WATCHES[-1].audit(event, arguments) if WATCHES else None)


@contextmanager
def watched(folder):
    watch = Watch(folder)
    WATCHES.append(watch)
    try:
        yield watch
    finally:
        WATCHES.pop()


def planted(outside, monkeypatch):
    """What strangers name: code, addresses, models, and files in a folder `outside`; all of it is
    there to be found."""
    outside.mkdir()
    (outside / f"{MODULE}.py").write_text(
        "def score(*_, **__):\n    return [0.0]\nclass Thing: ...\n"
    )
    (outside / "secret.json").write_text('{"name": "best-of-n", "n": 1}')
    Image.new("RGB", (2, 2)).save(outside / "secret.png")
    monkeypatch.chdir(outside)
    monkeypatch.syspath_prepend(str(outside))
    real = importlib.import_module

    def recorded(name, package=None):
        if WATCHES and MODULE in name:
            WATCHES[-1].seen.append(f"imported {name}")
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", recorded)
    return [
        f"{MODULE}:score",
        f"brightness then {outside}/{MODULE}.py:score",
        "http://127.0.0.1:9/score",
        "someone/model",
        f"clip:{outside}",
        str(outside / "secret.json"),
        f"../{outside.name}/secret.json",
        {"class_path": f"{MODULE}.Thing"},
    ]
