"""Write docs/evidence.md, the table of model x device, from the evidence files of `ttsnap check` in
docs/evidence/.

python scripts/evidence.py            # with --check: exit with 1 where the page is another one
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ttsnap.check.evidence import shown
from ttsnap.check.ladder import Rung
from ttsnap.check.titles import title
from ttsnap.files.reading import read_object
from ttsnap.files.settings import build
from ttsnap.files.writing import markdown

DOCS = Path(__file__).parents[1] / "docs"
HEAD = """# What others measured

Look up whether searches pay on a model and a device; what has no row is not verified.
[A run](howto/check.md) makes one:

    ttsnap check MODEL --reward REWARD

Leads are shares of best-of-8's gain, with their intervals.

"""
WANTED = """

## Wanted

"""
CLAIM = """

**To claim an open cell**, open an issue named `evidence: MODEL on CARD`; it is yours for two weeks. Run
`ttsnap check MODEL` (`--dry-run` says what fits), and [send what it wrote](contributing.md).
GO, NO-GO and undecided count alike.

**A maintainer looks** at the sheet, the parity rung and the versions. Tests ask whether the verdict follows from the
figures, and whether the files hold listed fields only.
"""
MODELS = {
    "SDXL": "stabilityai/stable-diffusion-xl-base-1.0",
    "SD3.5 medium": "stabilityai/stable-diffusion-3.5-medium",
    "FLUX.1 dev": "black-forest-labs/FLUX.1-dev",
    "FLUX.2 klein": "black-forest-labs/FLUX.2-klein-4B",
    "Qwen-Image": "Qwen/Qwen-Image",
    "Z-Image": "Tongyi-MAI/Z-Image-Turbo",
    "Krea 2": "",
    "Wan 2.2": "Wan-AI/Wan2.2-TI2V-5B-Diffusers",
    "LTX-2.5": "Lightricks/LTX-2.5-Diffusers",
}
"""Models people run, by their names on the hub; Krea 2 is converted to a folder of one's own."""
CARDS = ("RTX 3060", "RTX 4090", "RTX 5090", "L40S", "A100", "H100", "MPS")
"""Words in the names that devices give themselves."""
TAIL = """

```{toctree}
:hidden:
:glob:

evidence/*
```
"""


def compare(files: dict[str, Any]) -> str:
    """The table of model x device of evidence files by their names: the verdict, and what tells
    most."""
    rows = []
    for stem, whole in sorted(files.items()):
        rungs = {name: build(Rung, data) for name, data in whole["rungs"].items()}
        cost, signal = (rungs.get(name, Rung(name)) for name in ("cost", "signal"))
        leads = signal.of("lead")
        best = max(leads, key=lambda name: leads[name].low or 0.0, default=None)
        lead = "" if best is None else f"{title(best)} {leads[best]}"
        link = f"[{shown(whole['model'])}](evidence/{stem}.md)"
        measured = [
            cost.figures.get(name, "") for name in ("evaluation-in-search", "share-of-loop")
        ]
        about = (whole["device"], whole["date"], whole["verdict"])
        rows.append((link, *about, lead, *map(str, measured)))
    head = (
        "model",
        "device",
        "date",
        "verdict",
        "lead over best-of-N",
        "an evaluation",
        "the loop's share",
    )
    return markdown(head, rows, range(len(head)))


def wanted(files: dict[str, Any]) -> str:
    """The table of models that people run x cards: the verdict of a file, or that nobody has
    measured it."""
    rows = []
    for name, model in MODELS.items():
        cells = [_cell(files, model or name, card) for card in CARDS]
        rows.append((f"{name} (`{model}`)" if model else name, *cells))
    head = ("model", *CARDS)
    return markdown(head, rows, range(len(head)))


def _cell(files: dict[str, Any], model: str, card: str) -> str:
    for stem, whole in sorted(files.items()):
        if (
            whole["model"] in (model, model.rpartition("/")[2])
            and card.lower() in whole["device"].lower()
        ):
            return f"[{whole['verdict']}](evidence/{stem}.md)"
    return "open"


def main() -> int:
    """0; 1 where --check finds another page."""
    files = {
        path.stem: read_object(path, what="evidence")
        for path in DOCS.glob("evidence/*.json")
        if not path.name.endswith(".schedule.json")
    }
    page, text = DOCS / "evidence.md", HEAD + compare(files) + WANTED + wanted(files) + CLAIM + TAIL
    if "--check" in sys.argv:
        return int(page.read_text(encoding="utf-8") != text)
    page.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
