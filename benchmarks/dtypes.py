"""--dtype of the benchmarks on the embedded model, which run on a CPU: by default what is fast there."""

from __future__ import annotations

import argparse

from ttsnap.pipelines.opening import placement

HELP = "auto (bfloat16; float32 on a CPU without its instructions), bfloat16 or float32"


def add_dtype(p: argparse.ArgumentParser) -> None:
    """The option. Its value is the name of a dtype of torch, so that what is written says which one it was."""
    p.add_argument("--dtype", type=_named, default="auto", help=HELP)


def _named(text: str) -> str:
    return str(placement("cpu", text)[1]).removeprefix("torch.")
