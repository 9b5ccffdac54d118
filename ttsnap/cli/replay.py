"""`ttsnap replay`: one image again, from its PNG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from ttsnap.cli.common import add_device_arguments, formatter, load_model

HELP = "make one image again from its PNG"
DESCRIPTION = """Make one image again, alone, from the metadata in its PNG.

example:
  ttsnap replay outputs/0001-two-red-circles/01-seed7.png
"""


def parser() -> ArgumentParser:
    """The command's arguments."""
    p = ArgumentParser(description=DESCRIPTION, formatter_class=formatter())
    p.add_argument("image", type=str, help="a PNG written by ttsnap")
    p.add_argument("--model", type=str | None, help="use this model instead of the one named in the PNG")
    p.add_argument("--lora", type=str | None, help="use this LoRA (FOLDER:SCALE) instead of the one named in the PNG")
    p.add_argument("--out", type=str | None, help="where to write (default: NAME.replay.png beside the image)")
    p.add_argument("--overwrite", action="store_true", help="allow --out to exist already")
    add_device_arguments(p)
    return p


def run(a: Namespace) -> int:
    """Make the image again, write it, and say how far it is from the original."""
    import numpy as np
    from PIL import Image

    from ttsnap import BestOfN, outputs

    path = Path(a.image)
    payload = outputs.read_payload(path)
    out = Path(a.out) if a.out else path.with_suffix(".replay.png")
    if out.exists() and not a.overwrite:
        raise ValueError(f"{out} exists; choose another --out, or pass --overwrite")
    if payload.get("branched") or payload.get("guide"):
        how = "came from a branch of its seed" if payload.get("branched") else f"was guided by {payload['guide']}"
        raise ValueError(f"{path} {how}, so the seed alone does not make it again; run "
                         "`ttsnap generate` with the settings in its trace.json")  # fmt: skip
    pipe = load_model(a.model or payload["model"], a.device, a.dtype, lora=a.lora or payload.get("lora"))
    output = pipe(
        payload["prompt"],
        search=BestOfN(1),
        reward=_no_reward,
        kernel=payload["kernel"],
        path=payload.get("path"),
        times=payload.get("times", "pipeline"),
        noises=payload.get("noises", "independent"),
        seed=int(payload["seed"]),
        output_type="pt",
        **payload["call"],
    )
    outputs.save_image(out, output.images[0], payload)
    with Image.open(path) as picture:
        before = np.asarray(picture.convert("RGB"), int)
    after = outputs.to_uint8(output.images[0]).astype(int)
    if before.shape != after.shape:
        raise ValueError(f"{path} has size {before.shape[:2]}, its replay {after.shape[:2]}; is it the original file?")
    print(f"wrote {out}; largest difference from {path.name}: {abs(before - after).max()} of 255")
    return 0


def _no_reward(images: Any, prompts: Any) -> Any:
    return [0.0] * len(prompts)
