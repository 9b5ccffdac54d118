"""Commands of README, tour, tutorials and how-tos, carried out as pasted, a page from top to bottom
in an empty folder.

A block whose first line is a comment that names a file (`# my_reward.py`) is that file, or goes on
with it. A command that a page shows twice is run where it stands last. Python that begins with the
embedded model is run as one program. Blocks marked `sh` are for another program's environment.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.test_docs import ROOT, split

ROOMS = ("docs/tutorials", "docs/howto")
PAGES = sorted(f"{room}/{page.name}" for room in ROOMS for page in (ROOT / room).glob("*.md"))
PAGES += ["README.md", "docs/index.md", "docs/tour.md"]
QUICK = ("docs/howto/low_memory.md",)
"""Pages that run with the system tests, in ten seconds; all others are slow."""
NOT_HERE = {
    "an installation": r"(\S*pip|make|ln|python3? -m (pip|venv)) ",
    "a cluster": r"(ray|serve) |.* --ray-address ",
    "released weights": (
        r".*(--model| check| serve| serve-reward) (\w+:)?([\w.-]+/[\w.-]+|MODEL)( |$)"
    ),
}
"""What a command needs that is not here, and how such a command is written. All others are run."""
MOST = {"an installation": 12, "a cluster": 6, "released weights": 20}
"""How many commands may be left out: write a new one so that it runs where it can."""
FILE, OWN = re.compile(r"# ([\w-]+\.(?:py|txt))\b"), re.compile(r"\b(load|weights_path)\(\)")


def needs(command):
    return next((what for what, written in NOT_HERE.items() if re.match(written, command)), None)


def read(page):
    """A page's commands, in order, and its files by name."""
    files, commands, program = dict[str, str](), list[str](), list[str]()
    for language, text in split(ROOT / page)[1]:
        if match := FILE.match(text):
            files[match[1]] = f"{files.get(match[1], '')}{text}\n\n"
        elif language in ("", "bash", "console"):
            commands += [
                line.strip() for line in text.replace("\\\n", " ").splitlines() if line.strip()
            ]
        elif language == "python":
            program.append(text)
    own = program if program and OWN.search(program[0]) else list(filter(OWN.search, program))
    if own:
        files["page.py"] = "\n\n".join(own)
        commands.append("python page.py")
    return [line for i, line in enumerate(commands) if line not in commands[i + 1 :]], files


def test_what_cannot_run_here_is_counted():
    every = [needs(command) for page in PAGES for command in read(page)[0]]
    assert all(every.count(what) <= most for what, most in MOST.items()), Counter(every)
    assert needs("ttsnap generate x --model SDXL/base --reward clip") == "released weights"
    assert needs('ttsnap generate "a/b" --model scenes-turbo --out a/b') is None


@pytest.mark.timeout(7200)
@pytest.mark.parametrize(
    "page", [p if p in QUICK else pytest.param(p, marks=pytest.mark.slow) for p in PAGES]
)
def test_a_page_runs_as_pasted(page, tmp_path):
    carry_out(page, tmp_path, Path(sys.executable).parent)


def carry_out(page, folder, programs):
    """Run a page's commands in an empty folder, by the programs of an environment; the seconds that
    each took. Servers end with it."""
    commands, files = read(page)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    (folder / ".venv").mkdir()
    (folder / ".venv/bin").symlink_to(programs)
    environment = os.environ | {
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "XDG_STATE_HOME": str(folder),
    }
    servers = []
    took = {}
    try:
        for command in filter(lambda command: not needs(command), commands):
            began = time.monotonic()
            where = {"cwd": folder, "env": environment}
            if re.match(r"\S*ttsnap (serve|serve-reward|demo)\b", command):
                servers.append(subprocess.Popen(["bash", "-euc", f"exec {command}"], **where))
                port = re.search(
                    r"--port (\d+)", f"{command} --port {7860 if ' demo' in command else 8000}"
                )
                wait_for(servers[-1], int(port[1]))
            else:
                ran = subprocess.run(
                    ["bash", "-euc", command], **where, capture_output=True, text=True
                )
                assert ran.returncode == 0, (
                    f"{page}: {command}\n{ran.stdout[-2000:]}\n{ran.stderr[-2000:]}"
                )
            took[command] = time.monotonic() - began
    finally:
        for server in servers:
            server.terminate()
            try:
                server.wait(60)
            except subprocess.TimeoutExpired:
                server.kill()
                raise
    return took


def wait_for(server, port):
    """Until it is up."""
    while True:
        with socket.socket() as caller:
            if not caller.connect_ex(("127.0.0.1", port)):
                return
        assert server.poll() is None, f"it ended with {server.returncode}"
        time.sleep(0.2)
