"""Evidence: a check as a file that others can read and send in, without a path, a host's or a
user's name."""

from __future__ import annotations

import getpass
import json
import os
import platform
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ttsnap.check.ladder import Rung
from ttsnap.check.titles import title
from ttsnap.check.verdict import Verdict
from ttsnap.files.settings import build, to_json
from ttsnap.files.writing import markdown, write_bytes, write_json, write_text
from ttsnap.results.folders import slug

FORMAT = 2
_WORD = r"[^\s'\"`,;:\\/]+"
_FOLDER = rf"[\\/](?:{_WORD}(?: {_WORD}){{0,3}})?"
_PATH = re.compile(rf"(?<![\w.)\]-])(?:[A-Za-z]:|~\w*|\.{{1,2}})?(?:{_FOLDER})+[\\/](?={_WORD})")
"""A path but for its last name. Names of its folders may hold a few spaces."""
_URL = re.compile(r"\b[a-z][a-z\d+.-]*://[^\s'\"]+", re.I)
_ADDRESS = re.compile(
    rf"{_URL.pattern}"
    r"|[\w.+*-]+@[a-z][\w.-]*\w"  # of a person, or of a user on a machine
    r"|\b(?:\d{1,3}\.){3}\d{1,3}(?::\d+)?|\[[\da-f.:%]*:[\da-f.:%]*\](?::\d+)?"
    r"|\b[a-z][\w-]*(?:(?:\.[\w-]+)+:\d{2,5}|:\d{4,5})\b",
    re.I,
)
_KEY = re.compile(r"(?<=bearer )[^\s,;'\"]{6,}|\b(?:sk|hf|gh[opsu])[-_][\w-]{20,}", re.I)
_HOLDS_KEY = re.compile(r"(?:^|_)(?:KEY|TOKEN|SECRET|PASSWORD)$", re.I)
"""How variables of the environment are called that hold one."""


def cleaned(value: Any) -> Any:
    """JSON whose texts name no folder, address, host, user or key: of a path its last name
    stays."""
    return _cleaned(value, _names(json.dumps(value)))


def _cleaned(value: Any, names: Collection[str]) -> Any:
    if isinstance(value, Mapping):
        return {key: _cleaned(each, names) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_cleaned(each, names) for each in value]
    if not isinstance(value, str):
        return value
    for name in names:
        value = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", "***", value, flags=re.I)
    return _PATH.sub("", _ADDRESS.sub("ADDRESS", _KEY.sub("***", value)))


def _names(text: str) -> list[str]:
    """Keys of the environment, this machine and its user, and hosts of addresses in a text.

    The longest ones come first.
    """
    names = {key for name, key in os.environ.items() if _HOLDS_KEY.search(name) and len(key) > 5}
    names |= {platform.node(), platform.node().partition(".")[0]}
    with suppress(OSError, KeyError, ImportError):
        names.add(getpass.getuser())
    for address in _URL.findall(text):
        with suppress(ValueError):
            host = urlsplit(address).hostname or ""
            # no word, as of http://service
            names |= {host} if re.search(r"[\d.-]", host) else set()
    return sorted(names - {""}, key=len, reverse=True)


def shown(text: str) -> str:
    """A text as Markdown shows it: in a code span where it holds marks, as the words of a service
    may."""
    line = " ".join(text.split())
    marked = re.search(r"[`<>\[\]@#]|www\.|://", line)
    return f"`{line.replace('`', chr(39))}`" if marked else line


def write(
    out: Path,
    about: Mapping[str, Any],
    found: Mapping[str, Rung],
    judged: Verdict,
    sheet: Path | None = None,
) -> Path:
    """Write the .json, the .md, the sheet and the schedule of a check into a folder; the path of
    the .md.

    about: model, device, date, dtype, versions, command, use (the command that searches)."""
    whole: dict[str, Any] = cleaned(
        {
            "format": FORMAT,
            **about,
            "verdict": judged.word,
            "why": list(judged.why),
            "rungs": {name: to_json(rung) for name, rung in found.items()},
        }
    )
    stem = "_".join([slug(Path(whole["model"]).name), slug(whole["device"]), whole["date"]])
    out.mkdir(parents=True, exist_ok=True)
    if judged.schedule:
        write_json(out / f"{stem}.schedule.json", dict(judged.schedule))
        whole["use"] = f"{whole['use']} --algorithm {stem}.schedule.json"
    write_json(out / f"{stem}.json", whole)
    pictured = sheet is not None and sheet.is_file() and not sheet.is_symlink()
    if sheet is not None and pictured:  # no file elsewhere, which a link would have shown
        write_bytes(out / f"{stem}.png", sheet.read_bytes())
    write_text(out / f"{stem}.md", page(whole, f"{stem}.png" if pictured else None))
    return out / f"{stem}.md"


def page(whole: Mapping[str, Any], sheet: str | None) -> str:
    """The page of an evidence file."""
    versions = ", ".join(f"{name} {version}" for name, version in whole["versions"].items())
    lines = [f"# {shown(whole['model'])} on {whole['device']}: {whole['verdict']}", ""]
    lines += [
        ", ".join(filter(None, [whole["date"], whole["dtype"], versions])) + ".",
        "",
        *(f"- {shown(why)}" for why in whole["why"]),
    ]
    lines += ["", "Checked by", "", f"    {whole['command']}"]
    if whole["use"]:
        lines += ["", "What measured best", "", f"    {whole['use']}"]
    for heading, data in whole["rungs"].items():
        rung = build(Rung, data)
        rows = [(title(name), *figure.cells()) for name, figure in rung.figures.items()]
        lines += ["", f"## {heading.capitalize()} ({rung.seconds:.0f} s)", ""]
        lines += [markdown(("figure", "value", "interval"), rows), ""] if rows else []
        lines += [f"- {shown(said)}" for said in rung.said]
        for name, why in rung.missing.items():
            lines.append(f"- not measured: {title(name)}: {shown(why)}")
    lines += ["", f"![What a search of this check scored and finished]({sheet})"] if sheet else []
    return "\n".join([*lines, ""])
