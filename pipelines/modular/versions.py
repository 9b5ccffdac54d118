"""The versions of diffusers whose blocks are known: their documentation says that the interface may change."""

from __future__ import annotations

import diffusers

TESTED = ("0.42", "0.43")
"""From the first of these versions on, and before the second."""


def check_version(version: str = diffusers.__version__) -> None:
    """ValueError for a version of diffusers whose blocks were not tested."""
    first, end = (_numbers(text) for text in TESTED)
    if not first <= _numbers(version) < end:
        raise ValueError(f"searches over modular pipelines were tested with diffusers {TESTED[0]} and later, before "
                         f"{TESTED[1]}, and this is {version}, whose blocks may differ: pip install "
                         f"'diffusers>={TESTED[0]},<{TESTED[1]}'")  # fmt: skip


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
