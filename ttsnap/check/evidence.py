"""Evidence: a check as a file that others can read and send in. It holds listed fields only."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ttsnap.check.ladder import Rung
from ttsnap.check.titles import title
from ttsnap.check.verdict import Verdict
from ttsnap.files.settings import build, to_json
from ttsnap.files.writing import markdown, write_bytes, write_json, write_text
from ttsnap.options.model import PACKAGED
from ttsnap.pipelines import located
from ttsnap.pipelines.drafting.known_drafters import KNOWN
from ttsnap.results.outputs import slug
from ttsnap.reward_models.registry import CHOSEN

FORMAT = 3
LISTED = ("format", "device", "dtype", "date", "versions", "rewards", "command", "use")
"""What of a check is written as it is."""


def public_model(model: str | Path) -> str:
    """A hub id as it is; of a folder its own name."""
    return str(model) if located(model) is None else Path(model).name


def public_spec(spec: object, kind: str) -> str:
    """A reward or a drafter that comes with ttsnap as it is; of another one only that it is one."""
    return str(spec) if spec in (*CHOSEN, *PACKAGED, *KNOWN, "none") else kind


def listed(about: Mapping[str, Any], found: Mapping[str, Rung], judged: Verdict) -> dict[str, Any]:
    """What is written. Nothing else is, so that no path, address, error or prompt can be in it."""
    call = about["call"].items()
    return {
        **{name: about[name] for name in LISTED},
        "model": public_model(about["model"]),
        "call": {name: value for name, value in call if isinstance(value, int | float)},
        "verdict": judged.word,
        "why": list(judged.why),
        "rungs": {
            name: to_json(replace(rung, missing=dict.fromkeys(rung.missing, "")))
            for name, rung in found.items()
        },
    }


def shown(text: str) -> str:
    """A text as Markdown shows it: in a code span where it holds marks."""
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

    about: LISTED, model and call; command and use (the command that searches) name nothing of the
    user's own."""
    whole = listed(about, found, judged)
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
        lines += [f"- not measured: {title(name)}" for name in rung.missing]
    lines += ["", f"![What a search of this check scored and finished]({sheet})"] if sheet else []
    return "\n".join([*lines, ""])
