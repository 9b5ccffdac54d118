"""`ttsnap replay`: one image again, from its PNG."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from ttsnap.cli import arguments
from ttsnap.cli.common import check_call, load_model
from ttsnap.cli.help import new_parser
from ttsnap.options.model import PACKAGED, TEXT, ModelOptions
from ttsnap.options.pictures import PictureOptions

WITH_FILES = ("image", "mask_image", "control_image")
"""Arguments of the models' calls that are pictures, and files here."""
HELP = "make one image again from its PNG"
DESCRIPTION = """Make one image again, alone, from the metadata in its PNG.

One that was made of pictures notes their digests: name the pictures again, by --image and the like.

A PNG is data: nothing in it is run. A model or a LoRA that it names, other than the embedded model, is not
loaded until you name one with --model and --lora, or say with --trust that you trust the file.

examples:
  ttsnap replay outputs/0001-two-red-circles/01-seed7.png
  ttsnap replay theirs.png --model stabilityai/stable-diffusion-3.5-medium
  ttsnap replay outputs/0002-a-blue-circle/01-seed3.png --image red.png
"""


def parser() -> ArgumentParser:
    """The command's arguments."""
    p = new_parser(DESCRIPTION)
    p.add_argument("file", type=str, metavar="FILE", help="a PNG, or a video, written by ttsnap")
    arguments.add_options(p, PictureOptions, without=("strength",))
    p.add_argument("--model", type=str | None, help="use this model instead of the one named in the PNG")
    p.add_argument("--lora", type=str | None, help="use this LoRA (FOLDER:SCALE) instead of the one named in the PNG")
    p.add_argument("--trust", action="store_true", help="load the model and the LoRA that the PNG names")
    p.add_argument("--out", type=str | None, help="where to write (default: NAME.replay.png beside the image)")
    p.add_argument("--overwrite", action="store_true", help="allow --out to exist already")
    arguments.add_options(p, ModelOptions, "device", "dtype")
    return p


def run(a: Namespace) -> int:
    """Make the image again, write it, and say how far it is from the original."""
    import numpy as np

    from ttsnap import BestOfN
    from ttsnap.files import reading as files
    from ttsnap.files.pictured import digests
    from ttsnap.files.pictures import video_pixels
    from ttsnap.options.call import MOST_SIDE
    from ttsnap.results import outputs
    from ttsnap.results.folders import new_file
    from ttsnap.results.pixels import to_uint8

    path = Path(a.file)
    payload = outputs.read_payload(path)
    out = new_file(a.out or path.with_suffix(f".replay{path.suffix}"), a.overwrite)
    if payload.get("branched") or payload.get("guide"):
        how = "came from a branch of its seed" if payload.get("branched") else f"was guided by {payload['guide']!r}"
        raise ValueError(f"{path} {how}, so the seed alone does not make it again; run "
                         "`ttsnap generate` with the settings in its trace.json")  # fmt: skip
    task = payload.get("task", TEXT)
    pictures = arguments.read(PictureOptions, a).read(task)
    _check_pictures(path, payload.get("pictures", {}), digests(pictures))
    call = {**payload["call"], **pictures}
    model, lora = _named(payload, a)
    data = files.read_bytes(path, files.PICTURE_BYTES, "image")
    before = video_pixels(data, path, ("PNG", "WEBP"), MOST_SIDE**2).astype(np.int16)
    pipe = load_model(model, a.device, a.dtype, lora=lora, task=task)
    check_call(pipe, call, task)
    output = pipe(
        prompt=payload["prompt"],
        search=BestOfN(1),
        reward=_no_reward,
        **{name: payload[name] for name in outputs.MAKING if name in payload},
        seed=payload["seed"],
        output_type="pt",
        **call,
    )
    made = output.search[0].best.pixels
    outputs.save_made(out, made, payload)
    after = to_uint8(made[None] if made.ndim == 3 else made).astype(np.int16)
    if before.shape != after.shape:
        raise ValueError(f"{path} has size {before.shape[:3]}, its replay {after.shape[:3]}; is it the original file?")
    print(f"wrote {out}; largest difference from {path.name}: {abs(before - after).max()} of 255")
    return 0


def _check_pictures(path: Path, noted: Mapping[str, str | list[str]], given: Mapping[str, str | list[str]]) -> None:
    """ValueError unless the pictures given are those that the file was made of, by their digests."""
    for name in (*noted, *given):
        option = f"--{name.replace('_', '-')}"
        if name not in WITH_FILES or isinstance(noted.get(name), list):
            raise ValueError(f"{path} was made of pictures that this command does not take: {name} is several, or the "
                             "end of a video; make it again in Python, from its seed")  # fmt: skip
        if name not in given:
            raise ValueError(f"{path} was made of a picture with the digest {noted[name]}; give it by {option}")
        if name not in noted:
            raise ValueError(f"{path} notes no picture for {option}, which it would be made of; leave it out, or run "
                             "`ttsnap generate` with the settings in its trace.json")  # fmt: skip
        if noted[name] != given[name]:
            raise ValueError(f"{path} was made of another picture: {option} has the digest {given[name]}, that which "
                             f"was changed had {noted[name]}")  # fmt: skip


def _named(payload: dict[str, Any], a: Namespace) -> tuple[str, str | None]:
    """The model and the LoRA to load: the user's, or the PNG's where it may be. ValueError that says what it asks for.

    Weights are parsed by large libraries, a hub id is fetched over the network, and a path may be any file of this
    machine: a picture from somewhere must not decide on that.
    """
    model, lora = payload["model"], payload.get("lora")
    strange = {"model": model} if a.model is None and model not in PACKAGED else {}
    strange |= {"lora": lora} if a.lora is None and lora is not None else {}
    if strange and not a.trust:
        asked = " and ".join(f"{'LoRA' if kind == 'lora' else kind} {name!r}" for kind, name in strange.items())
        again = " ".join(f"--{kind} {shlex.quote(name)}" for kind, name in strange.items())
        raise ValueError(
            f"{a.file} asks for the {asked}; nothing is loaded because a picture names it. If that is what you want, "
            f"add {again}, name others, or add --trust"
        )
    return a.model or model, a.lora or lora


def _no_reward(images: Any, prompts: Any) -> Any:
    return [0.0] * len(prompts)
