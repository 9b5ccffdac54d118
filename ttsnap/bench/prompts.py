"""Prompt sets as benchmarks publish them. The format is found by contents; anyone may have written
the file.

Formats, and sets that have them (looked up in their repositories in November 2026):

text, a prompt a line     as many packages keep their sets; # starts a comment
JSON Lines                GenEval (djghosh13/geneval), GenEval 2 (facebookresearch/GenEval2)
JSON, a list of prompts   HPDv2, a file a style (tgxs002/HPSv2)
JSON, a list of objects   VBench_full_info.json (Vchitect/VBench)
JSON, an object           prompts by their ids, or lists of them by category
a table with a header     PartiPrompts.tsv (google-research/parti), DrawBench as CSV, DPG (TencentQQGYLab/ELLA)
a folder of .txt files    DPG's prompts/ (a prompt a file), VBench's prompts_per_dimension/ (a prompt a line)
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ttsnap.files.reading import foreign, parse_json, read_bytes
from ttsnap.files.settings import Json

KEYS = ("prompt", "prompts", "prompt_en", "text", "caption", "instruction")
"""Keys, in any case, under which an object or a table has its prompts. The first key that is there
counts."""
MOST = 100_000
"""Prompts of a set: GenEval's folders have numbers of five digits."""
MOST_BYTES = 2**24
MOST_PARTS = 10**6
MOST_HEADER = 2**16
"""Limits of a set: bytes of all files; lines, lists and objects, which take up to forty times the
memory of their text; characters of a table's header."""
KNOWN = (
    "a prompt set is text with a prompt a line, JSON Lines or JSON with prompts or objects that"
    " have one, CSV or TSV with a header, or a folder of .txt files; objects and tables name their"
    f" prompts {', '.join(KEYS)}"
)
LINES = "text, a prompt a line"
JSON_LINES = "JSON Lines"
JSON_FILE = "JSON"
TABLE = "a table with a header"
FOLDER = "a folder of text files"
Records = list[Mapping[str, Json]]


@dataclass(frozen=True)
class PromptRecord:
    """One prompt of a set."""

    index: int
    """Its number in the set, from 0."""
    metadata: Mapping[str, Json]
    """The entry of the set, with the unchanged prompt under "prompt"."""

    @property
    def text(self) -> str:
        """The prompt without spaces around it."""
        return str(self.metadata["prompt"]).strip()


@dataclass(frozen=True)
class PromptSet:
    kind: str
    """The format, in words."""
    prompts: tuple[PromptRecord, ...]


def read_prompt_set(path: Path) -> PromptSet:
    """The prompts of a file, or of a folder of .txt files. ValueError that says what was found and
    what can be read."""
    kind, records = _folder(path) if path.is_dir() else _file(path)
    if not records:
        raise ValueError(f"{path} holds no prompt; {KNOWN}")
    if len(records) > MOST:
        raise ValueError(
            f"{path} holds {len(records):,} prompts; at most {MOST:,} are run as one benchmark"
        )
    for i, record in enumerate(records, 1):
        if not str(record["prompt"]).strip():
            raise ValueError(f"prompt {i} of {path} is empty")
    return PromptSet(
        kind, tuple(PromptRecord(index, record) for index, record in enumerate(records))
    )


def _text(path: Path, most: int = MOST_BYTES) -> str:
    """A file's text. ValueError where it is none, or more than `most` bytes, or of more parts than
    are read."""
    data = read_bytes(path, most, "prompt set")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is no text in UTF-8 ({error}); save it as such; {KNOWN}"
        ) from None
    if strange := re.search(r"[\x00-\x08\x0e-\x1f]", text):
        raise ValueError(f"{path} is no text (it holds the character {strange.group()!r}); {KNOWN}")
    if (parts := sum(map(text.count, "\n\r[{"))) > MOST_PARTS:
        raise ValueError(
            f"{path} holds {parts:,} lines, lists and objects; at most {MOST_PARTS:,} are read"
        )
    return text


def _file(path: Path) -> tuple[str, Records]:
    """A file's kind and its prompts."""
    text = _text(path)
    suffix = path.suffix.lower()
    rows = re.split(r"\r\n|\n|\r", text)
    lines = [(number, line.strip()) for number, line in enumerate(rows, 1) if line.strip()]
    first = lines[0][1] if lines else ""
    if lines and _is_json(first, suffix):
        if suffix == ".jsonl" or (
            len(lines) > 1 and all(line[0] + line[-1] == "{}" for _, line in lines)
        ):
            return JSON_LINES, [
                _record(parse_json(line, f"line {number} of {path}"), f"line {number} of {path}")
                for number, line in lines
            ]
        value = parse_json(text, path)
        if isinstance(value, Mapping) and _key(value) is not None:  # JSON Lines of one line
            return JSON_LINES, [_record(value, str(path))]
        return JSON_FILE, list(_members(value, path))
    for delimiter in "\t" if suffix == ".txt" else "\t,;":
        header = _row(first, delimiter)
        if (len(header) > 1 or suffix in (".csv", ".tsv")) and _key(header) is not None:
            return TABLE, _table(rows, delimiter, path)
    if suffix in (".csv", ".tsv", ".json", ".jsonl"):
        raise ValueError(
            f"{path} starts with {first[:80]!r}, which is no {suffix[1:].upper()} with prompts;"
            f" {KNOWN}"
        )
    return LINES, [{"prompt": line} for _, line in lines if not line.startswith("#")]


def _is_json(first: str, suffix: str) -> bool:
    """Whether a file is JSON or JSON Lines, by its name, else by its first line."""
    if suffix in (".json", ".jsonl", ".csv", ".tsv") or first[:1] not in ("{", "["):
        return suffix in (".json", ".jsonl")
    try:
        parse_json(first, "")
    except ValueError:
        # a value over several lines; else a prompt, as [a|b] in some notations
        return len(first) == 1
    return True


def _key(names: Mapping[str, Json] | Sequence[str]) -> str | None:
    """The name under which the prompts are; None where there is none."""
    lower = {name.strip().lower(): name for name in names}
    return next((lower[key] for key in KEYS if key in lower), None)


def _record(value: Json, where: str) -> Mapping[str, Json]:
    """A prompt, or an object with one, as an object with a "prompt"."""
    if isinstance(value, str):
        return {"prompt": value}
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} is neither a prompt nor an object with one: {str(value)[:60]}")
    key = _key(value)
    prompt = value[key] if key is not None else None
    if not isinstance(prompt, str):
        raise ValueError(
            f"{where} has no prompt: none of {', '.join(KEYS)} is a text in {str(dict(value))[:80]}"
        )
    return value if key == "prompt" else {"prompt": prompt, **value}


def _members(value: Json, path: Path) -> Iterator[Mapping[str, Json]]:
    """The entries of a list, or of an object: entries by id, or lists of entries by category."""
    if isinstance(value, Mapping):
        for name, member in value.items():
            where = f"{name!r:.60} of {path}"
            if isinstance(member, list):
                for i, part in enumerate(member, 1):
                    yield {**_record(part, f"entry {i} of {where}"), "category": name}
            else:
                yield {**_record(member, where), "id": name}
    elif isinstance(value, list):
        for i, member in enumerate(value, 1):
            yield _record(member, f"entry {i} of {path}")
    else:
        raise ValueError(f"{path} holds {str(value)[:60]!r} and no prompts; {KNOWN}")


def _table(rows: Sequence[str], delimiter: str, path: Path) -> Records:
    """The prompts of a table, a row each. Of rows with one item_id (DPG has a row a question), the
    first."""
    with foreign(f"cannot read {path} as a table"):
        # Text separated by tabs has no quoting (IANA, text/tab-separated-values), and PartiPrompts
        # has quotation marks.
        quoting: Literal[0, 3] = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
        lines = (line + "\n" for line in rows)
        table = [
            row
            for row in csv.reader(lines, delimiter=delimiter, quoting=quoting)
            if any(map(str.strip, row))
        ]
    header = [name.strip() for name in table[0]]
    at = next(i for i, name in enumerate(header) if name == _key(header))
    records: Records = []
    items: set[str] = set()
    for number, row in enumerate(table[1:], 1):
        if len(row) != len(header):
            raise ValueError(
                f"row {number} of {path} has {len(row)} cells, its header {len(header)}:"
                f" {str(row)[:80]}"
            )
        cells = dict(zip(header, row, strict=True))
        if (item := cells.get("item_id")) is not None:
            if item in items:
                continue
            items.add(item)
        del cells[header[at]]
        records.append({"prompt": row[at], **cells})
    return records


def _row(line: str, delimiter: str) -> list[str]:
    """The cells of a header; none of a longer line."""
    if len(line) > MOST_HEADER:
        return []
    try:
        return next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error:
        return []


def _folder(path: Path) -> tuple[str, Records]:
    """The prompts of a folder's .txt files: one a file where each has one line, else one a line.

    ValueError for links that lead out of the folder: a file from elsewhere would end up in the
    images' metadata.
    """
    files = sorted((p for p in path.glob("*.txt") if p.is_file()), key=lambda p: _natural(p.stem))
    if len(files) > MOST:
        raise ValueError(f"{path} holds {len(files):,} .txt files; at most {MOST:,} are read")
    texts = []
    left = MOST_BYTES
    for file in files:
        if not file.resolve().is_relative_to(path.resolve()):
            raise ValueError(
                f"{file} is a link that leads out of {path}; put the text itself there"
            )
        text = _text(file, left)
        left -= file.stat().st_size
        texts.append(
            (file.stem, [line.strip() for line in re.split(r"[\r\n]", text) if line.strip()])
        )
    if all(len(lines) <= 1 for _, lines in texts):
        return FOLDER, [{"prompt": line, "id": stem} for stem, lines in texts for line in lines]
    return FOLDER, [{"prompt": line, "category": stem} for stem, lines in texts for line in lines]


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts 2 before 10."""
    return [
        (int(part), "") if part.isdigit() and len(part) < 19 else (-1, part)
        for part in re.split(r"(\d+)", name)
    ]
