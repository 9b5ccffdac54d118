"""Evidence: a check as a file that others can read and send in, without a path, a host's or a user's name."""

from __future__ import annotations

import getpass
import platform
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ttsnap.check.ladder import Rung
from ttsnap.check.verdict import Verdict
from ttsnap.files.settings import build, to_json
from ttsnap.files.writing import markdown, write_json, write_text
from ttsnap.results.folders import slug

FORMAT = 1
_PATH = re.compile(r"(?:[A-Za-z]:)?(?:[\\/~][^\s'\"`,;:\\/]*)+[\\/](?=[^\s'\"`,;:\\/])")
_ADDRESS = re.compile(r"\b[a-z]+://[^\s'\"]+")


def cleaned(value: Any) -> Any:
    """JSON whose texts name no folder, address, host or user: of a path its last name stays."""
    if isinstance(value, Mapping):
        return {cleaned(key): cleaned(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [cleaned(each) for each in value]
    if not isinstance(value, str):
        return value
    text = _PATH.sub("", _ADDRESS.sub("ADDRESS", value))
    names = [platform.node(), platform.node().partition(".")[0]]
    with suppress(OSError, KeyError, ImportError):
        names.append(getpass.getuser())
    for name in filter(None, names):
        text = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", "***", text)
    return text


def write(
    out: Path, about: Mapping[str, Any], found: Mapping[str, Rung], judged: Verdict, sheet: Path | None = None
) -> Path:
    """Write the .json, the .md, the sheet and the schedule of a check into a folder; the path of the .md.

    about: model, device, date, dtype, versions, command, use (the command that searches)."""
    stem = "_".join([slug(Path(str(about["model"])).name), slug(str(about["device"])), str(about["date"])])
    out.mkdir(parents=True, exist_ok=True)
    if judged.schedule:
        write_json(out / f"{stem}.schedule.json", dict(judged.schedule))
    whole: dict[str, Any] = cleaned({
        "format": FORMAT, **about, "verdict": judged.word, "why": list(judged.why),
        "rungs": {name: to_json(rung) for name, rung in found.items()},
    })  # fmt: skip
    if judged.schedule:
        whole["use"] = f"{whole['use']} --algorithm {stem}.schedule.json"
    write_json(out / f"{stem}.json", whole)
    pictured = sheet is not None and sheet.is_file()
    if sheet is not None and pictured:
        (out / f"{stem}.png").write_bytes(sheet.read_bytes())
    write_text(out / f"{stem}.md", page(whole, f"{stem}.png" if pictured else None))
    return out / f"{stem}.md"


def page(whole: Mapping[str, Any], sheet: str | None) -> str:
    """The page of an evidence file."""
    versions = ", ".join(f"{name} {version}" for name, version in whole["versions"].items())
    lines = [f"# {whole['model']} on {whole['device']}: {whole['verdict']}", ""]
    lines += [
        ", ".join(filter(None, [whole["date"], whole["dtype"], versions])) + ".",
        "",
        *(f"- {why}" for why in whole["why"]),
    ]
    lines += ["", "Checked by", "", f"    {whole['command']}"]
    if whole["use"]:
        lines += ["", "What measured best", "", f"    {whole['use']}"]
    for name, data in whole["rungs"].items():
        rung = build(Rung, data)
        rows = [(title, f"{f.value:.3g} {f.unit}".strip(), "" if f.low is None else f"{f.low:.3g} to {f.high:.3g}")
                for title, f in rung.figures.items()]  # fmt: skip
        lines += ["", f"## {name.capitalize()} ({rung.seconds:.0f} s)", ""]
        lines += [markdown(("figure", "value", "interval"), rows), ""] if rows else []
        lines += [f"- {said}" for said in rung.said]
        lines += [f"- not measured: {title}: {why}" for title, why in rung.missing.items()]
    lines += ["", f"![What a search of this check scored and finished]({sheet})"] if sheet else []
    return "\n".join([*lines, ""])
