"""Where the packaged model lies and how it likes to be called (standard library only)."""

import json
from pathlib import Path
from typing import Any

DEFAULTS_FILE = "ttsnap.json"


def weights_path() -> Path:
    """The packaged diffusers folder with the trained model."""
    return Path(__file__).parent / "weights"


def turbo_path() -> Path:
    """The packaged diffusers folder of its few-step relative, which takes no guidance (docs/embedded_model.md)."""
    return Path(__file__).parent / "turbo"


def draft_path() -> Path:
    """The packaged draft of that model: a LoRA that guesses where its sampler will end (docs/distill_draft.md)."""
    return Path(__file__).parent / "draft"


def defaults(folder: Path | None = None) -> dict[str, Any]:
    """Recommended arguments of the pipeline call, from a folder's `ttsnap.json`."""
    told = json.loads(((folder or weights_path()) / DEFAULTS_FILE).read_text())
    return {name: value for name, value in told.items() if name not in ("reward", "draft")}
