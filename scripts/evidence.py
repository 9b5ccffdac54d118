"""Write docs/evidence.md, the table of model x device, from the evidence files of `ttsnap check` in docs/evidence/.

python scripts/evidence.py            # with --check: exit with 1 where the page is another one
"""

from __future__ import annotations

import sys
from pathlib import Path

from ttsnap.check.evidence import compare
from ttsnap.files.reading import read_object

DOCS = Path(__file__).parents[1] / "docs"
HEAD = """# What others measured

Look up whether searches pay on a model and a device; what has no row is not verified.
[A run](howto/check.md) makes one:

    ttsnap check MODEL --reward REWARD

Leads are shares of best-of-8's gain, with their intervals.

"""
TAIL = """

```{toctree}
:hidden:
:glob:

evidence/*
```
"""


def main() -> int:
    """0; 1 where --check finds another page."""
    files = {path.stem: read_object(path, what="evidence") for path in DOCS.glob("evidence/*.json")
             if not path.name.endswith(".schedule.json")}  # fmt: skip
    page, text = DOCS / "evidence.md", HEAD + compare(files) + TAIL
    if "--check" in sys.argv:
        return int(page.read_text(encoding="utf-8") != text)
    page.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
