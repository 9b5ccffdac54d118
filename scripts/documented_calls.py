"""Whether pyright takes the Python of the documentation, as it would in a user's editor.

Each page is one file, with its prose left blank, so that lines are those of the page. What
diffusers and openai say of their own types is left out.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]
UNTYPED = (
    "typings/diffusers/__init__.pyi",
    "typings/diffusers/pipelines/pipeline_utils.pyi",
    "typings/diffusers/utils.pyi",
    "typings/openai.pyi",
)
"""Modules of others whose names are taken as of any type."""
OF_ANY_TYPE = "from typing import Any\ndef __getattr__(name: str) -> Any: ...\n"
GIVEN = """
from typing import Any
from ttsnap.pipelines.search_pipeline import SearchPipeline
pipe: SearchPipeline[Any]
"""
"""What pages take as there."""
WRONG = """# pyright: reportUnnecessaryTypeIgnoreComment=true
pipe("a cat", bugdet="1nfe")  # pyright: ignore
"""
"""A mistake that must be found: elsewhere a `pipe` of any type would pass unread."""
OFF = (
    "reportUndefinedVariable",
    "reportMissingImports",
    "reportRedeclaration",
    "reportFunctionMemberAccess",
    "reportUnusedExpression",
)
"""What is said of examples that begin in the middle, or of functions that have attributes."""


def code_of(page: Path) -> str:
    """The Python of a page, at its lines."""
    lines, inside, indent = [], False, 0
    for line in page.read_text(encoding="utf-8").splitlines():
        text = line.strip()
        if text.startswith("```"):
            inside, indent = text == "```python", line.index("`")
            lines.append("")
        else:
            kept = inside and not text.startswith("from __future__")
            lines.append(line[indent:] if kept else "")
    return "\n".join(lines) + "\n"


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        there = Path(folder)
        for page in PAGES:
            name = page.relative_to(ROOT).with_suffix("").as_posix().replace("/", "_")
            (there / f"{name}.py").write_text(code_of(page), encoding="utf-8")
        for name in UNTYPED:
            (there / name).parent.mkdir(parents=True, exist_ok=True)
            (there / name).write_text(OF_ANY_TYPE)
        (there / "__builtins__.pyi").write_text(GIVEN)
        (there / "wrong.py").write_text(WRONG)
        (there / "pyrightconfig.json").write_text(json.dumps(dict.fromkeys(OFF, False)))
        command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "-p", folder]
        return subprocess.run(command).returncode


if __name__ == "__main__":
    sys.exit(main())
