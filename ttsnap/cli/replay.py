"""`ttsnap replay`: images again, each from its PNG."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ttsnap.cli import arguments
from ttsnap.cli.common import load_model
from ttsnap.cli.parser import Arguments, Parser
from ttsnap.options.call import PictureOptions, pictured_call
from ttsnap.options.model import PACKAGED, TEXT, ModelOptions
from ttsnap.options.option import option, options_of
from ttsnap.options.sampler import comes_along
from ttsnap.options.selection import listed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ttsnap.results.record import SearchRecord

REPLAYS = "replays"
"""The folder beside an image that its replay goes to, where no pattern that found the image finds
the replay."""
DESCRIPTION = """Make images again, each alone, from the metadata in its PNG.

One that was made of pictures notes their digests: name the pictures again, by --image and the like.

A PNG is data: nothing in it is run. A model or a LoRA that it names, other than the embedded model, is not
loaded until you name one with --model and --lora, or say with --trust that you trust the file.

examples:
  ttsnap replay outputs/0001-two-red-circles/01-seed7.png
  ttsnap replay outputs/0001-*/0*.png
  ttsnap replay theirs.png --model stabilityai/stable-diffusion-3.5-medium
  ttsnap replay outputs/0002-a-blue-circle/01-seed3.png --image red.png
"""


@dataclass(frozen=True)
class ReplayOptions:
    """What a replay takes in place of what a PNG names, and where it goes."""

    model: str | None = option(None, "use this model instead of the one named in the PNG")
    lora: str | list[str] = option(
        (),
        "use this LoRA (FOLDER:SCALE) instead of the one named in the PNG; where that names several,"
        " the option again for each",
        metavar="FOLDER",
    )
    draft: str | None = option(
        None, "where a draft was finished, use this drafter instead of the PNG's"
    )
    trust: bool = option(False, "load the model, LoRAs and drafter that the PNG names")
    out: str | None = option(
        None, "where to write", unset=f"{REPLAYS}/ beside the image", metavar="FOLDER"
    )
    overwrite: bool = option(False, "replace what --out has of that name")


def parser() -> Parser:
    """The command's arguments."""
    p = Parser(DESCRIPTION)
    p.add_argument(
        "files", type=str, nargs="+", metavar="FILE", help="PNGs, or videos, written by ttsnap"
    )
    arguments.add_options(p, PictureOptions, without=("strength",))
    p.add_argument(
        "--call",
        type=arguments.Values,
        default={},
        metavar="JSON",
        help=(
            "other pictures that it was made of, by argument of the pipeline's call, as "
            "--call.ip_adapter_image face.png"
        ),
    )
    arguments.add_options(p, ReplayOptions)
    arguments.add_options(p, ModelOptions, "device", "dtype")
    return p


class ReplayFile(NamedTuple):
    """An image to make again: what its file holds, and what it is made of here."""

    path: Path
    record: SearchRecord
    pixels: NDArray[np.uint8]
    """(T, H, W, 3) of the file, one frame where it is an image."""
    pictures: dict[str, Any]
    model: ModelOptions
    loras: tuple[str, ...]
    draft: str | None


def run(a: Arguments) -> int:
    """Make the images again, write them, and say how far each is from its original."""
    from ttsnap.results.outputs import is_extra

    paths = [Path(name) for name in a.files]
    if extras := [path for path in paths if is_extra(path)]:
        said = f"no image of a search, but a contact sheet or a copy: {', '.join(map(str, extras))}"
        if extras == paths:
            raise ValueError(f"{said}; give the images beside it, as {paths[0].parent}/*seed*")
        print(f"left out as {said}", file=sys.stderr)
    wanted = [_read(path, a) for path in paths if path not in extras]
    places = _places([file.path for file in wanted], a)
    pipe = None
    there = None
    for file, place in zip(wanted, places, strict=True):
        model = file.model
        if there != (model, file.loras):
            pipe = None  # one model at a time
            pipe = load_model(
                model.model, model.device, model.dtype, loras=file.loras, task=model.task
            )
            there = model, file.loras
        _replay(file, place, pipe)
    return 0


def _read(path: Path, a: Arguments) -> ReplayFile:
    """A file, and what it is made of again. ValueError where its seed alone does not make it, it
    takes other pictures than given, or names what may not be loaded."""
    from ttsnap.files import reading as files
    from ttsnap.files.pictured import video_pixels
    from ttsnap.options.call import MOST_SIDE
    from ttsnap.results.record import parse_record

    data = files.read_bytes(path, files.PICTURE_BYTES, "image")
    record = parse_record(data, path)
    task = record.task or TEXT
    pictures = arguments.read(PictureOptions, a).read(task) | pictured_call(a.call)
    try:
        record.require_seed_alone()
        _check_pictures(record.pictures or {}, pictures)
        named = _named(record, a)
    except ValueError as error:
        raise ValueError(f"{path} {error}") from None
    dtype = a.dtype if a.dtype != "auto" else record.dtype or "auto"
    model = ModelOptions(named["model"][0], task=task, device=a.device, dtype=dtype)
    # which refuses a damaged or a huge picture before a model is loaded
    pixels = video_pixels(data, path, ("PNG", "WEBP"), MOST_SIDE**2)
    draft = next(iter(named["draft"]), None)
    return ReplayFile(path, record, pixels, pictures, model, named["lora"], draft)


def _check_pictures(noted: Any, pictures: dict[str, Any]) -> None:
    """ValueError unless the pictures are those that a file was made of, by their digests."""
    from ttsnap.files.pictured import digests

    ours = {**dict.fromkeys(pictures, "no picture"), **digests(pictures)}
    options = [option.name for option in options_of(PictureOptions)]
    for name in {**noted, **ours}:
        if noted.get(name) != ours.get(name):
            option = f"--{name.replace('_', '-')}" if name in options else f"--call.{name}"
            raise ValueError(
                f"was made of other pictures for {option}: it notes the digest"
                f" {noted.get(name, 'of none')}, got {ours.get(name, 'no picture')}"
            )


def _named(record: SearchRecord, a: Arguments) -> dict[str, tuple[str, ...]]:
    """The model, the LoRAs and the drafter to load: the user's, or the file's where it may be.
    ValueError that says what it asks for, and for another number of LoRAs.

    Weights are parsed by large libraries, a hub id is fetched over the network, and a path may be
    any file of this machine: a picture from somewhere must not decide on that.
    """
    finishes = record.sampler.finishes
    noted: dict[str, tuple[str, ...]] = {
        "model": (record.model,),
        "lora": listed(record.lora),
        "draft": listed(record.sampler.draft) if finishes else (),
    }
    typed = {kind: listed(a[kind]) for kind in noted}
    if len(typed["lora"]) not in (0, len(noted["lora"])) and len(noted["lora"]) > 1:
        raise ValueError(
            f"was made under {len(noted['lora'])} LoRAs together, {', '.join(noted['lora'])}; give"
            f" --lora for each, in any order, got {len(typed['lora'])}"
        )
    if finishes and not (noted["draft"] or typed["draft"]):
        raise ValueError("was finished from a draft, and names no drafter; name it by --draft")
    strange = [
        (kind, name)
        for kind, names in noted.items()
        for name in names
        if not typed[kind]
        and not (name in PACKAGED if kind == "model" else kind == "draft" and comes_along(name))
    ]
    if strange and not a.trust:
        what = " and ".join(f"{kind} {name!r}" for kind, name in strange)
        again = " ".join(f"--{kind} {shlex.quote(name)}" for kind, name in strange)
        raise ValueError(
            f"asks for the {what}; nothing is loaded because a picture names it. If that is what"
            f" you want, add {again}, name others, or add --trust"
        )
    named = {kind: typed[kind] or noted[kind] for kind in noted}
    return named if finishes else {**named, "draft": ()}


def _places(paths: Sequence[Path], a: Arguments) -> list[Path]:
    """Where each replay goes. ValueError where something is there, two have one name, or nothing
    can be written."""
    from ttsnap.files.run_folder import require_writable

    places = [Path(a.out or path.parent / REPLAYS) / path.name for path in paths]
    for place in places:
        if places.count(place) > 1:
            raise ValueError(
                f"several of the files are named {place.name}, and would all be written to {place};"
                " replay them one by one, or without --out"
            )
        require_writable(place.parent)
        if a.out and place.exists() and not a.overwrite:
            raise ValueError(f"{place} exists; choose another --out, or pass --overwrite")
    return places


def _replay(file: ReplayFile, place: Path, pipe: Any) -> None:
    """Make one image again, write it, and say how far it is from the original."""
    import numpy as np
    from PIL import Image

    from ttsnap.pipelines.replay import replay
    from ttsnap.results import outputs
    from ttsnap.results.media import to_uint8

    again = replay(pipe, file.record, file.pictures, draft=file.draft)
    place.parent.mkdir(parents=True, exist_ok=True)
    image = file.record.image
    outputs.save_made(place, again, replace(file.record, found=replace(image, drawn=None)))
    after = to_uint8(again[None] if again.ndim == 3 else again)
    before = file.pixels
    if image.drawn:
        before = np.stack([np.asarray(Image.fromarray(x).reduce(image.drawn)) for x in before])
    if before.shape != after.shape:
        raise ValueError(
            f"{file.path} has size {before.shape[:3]}, its replay {after.shape[:3]}; is it the"
            " original file?"
        )
    far = abs(before.astype(np.int16) - after).max()
    print(f"wrote {place}; largest difference from {file.path.name}: {far} of 255")
    if image.drawn:
        print(
            f"  {file.path.name} was drawn {image.drawn} times as large, and is averaged to compare"
        )
