"""Arguments that benchmarks on the packaged models share. They run on a CPU, in the dtype that is
fast there."""

from __future__ import annotations

import argparse
from pathlib import Path

from ttsnap.pipelines.opening import placement

HELP = "auto (bfloat16; float32 on a CPU without its instructions), bfloat16 or float32"


def add_dtype(p: argparse.ArgumentParser) -> None:
    """The option. Its value is the name of a dtype of torch, so that what is written says which one
    it was."""
    p.add_argument("--dtype", type=_named, default="auto", help=HELP)


def add_recording(
    p: argparse.ArgumentParser, prompts: int, seeds: int, steps: int | None = None
) -> None:
    """What a benchmark records before it searches, and where it writes. Its defaults: so many
    prompts, and seeds of each. steps: of an image by default, for benchmarks that take one number
    of them."""
    p.add_argument("--prompts", type=int, default=prompts, help="how many")
    p.add_argument(
        "--seeds", type=int, default=seeds, help="recorded per prompt; no search can start more"
    )
    if steps is not None:
        p.add_argument("--steps", type=int, default=steps)
    p.add_argument("--batch-size", type=int, default=64)
    add_dtype(p)
    p.add_argument(
        "--recordings", type=Path, help="folder to keep recordings in, and to go on from"
    )
    p.add_argument("--json", type=Path)


def _named(text: str) -> str:
    return str(placement("cpu", text)[1]).removeprefix("torch.")
