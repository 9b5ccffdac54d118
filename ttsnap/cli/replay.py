"""`ttsnap replay`: images again, each from its PNG."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ttsnap.algorithms.best_of_n import OneOfGroup
from ttsnap.cli import arguments
from ttsnap.cli.common import load_model
from ttsnap.cli.parser import Arguments, Parser
from ttsnap.core.prompt import Prompt
from ttsnap.files.settings import Count
from ttsnap.loop.budget import Budget
from ttsnap.options.call import PictureOptions, pictured_call
from ttsnap.options.engine import EngineOptions
from ttsnap.options.model import PACKAGED, TEXT, ModelOptions
from ttsnap.options.sampler import comes_along
from ttsnap.options.selection import listed
from ttsnap.request.request import EngineSpec, ModelDefaults, SearchRequest, prepare

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ttsnap.results.record import SearchRecord

WITH_FILES = ("image", "mask_image", "control_image")
"""Arguments of the models' calls that are pictures, and files here."""
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
    p.add_argument(
        "--model", type=str | None, help="use this model instead of the one named in the PNG"
    )
    p.add_argument(
        "--lora",
        type=str | list[str],
        default=[],
        metavar="FOLDER",
        help=(
            "use this LoRA (FOLDER:SCALE) instead of the one named in the PNG; where that names"
            " several, the option again for each"
        ),
    )
    p.add_argument(
        "--draft",
        type=str | None,
        help="where a draft was finished, use this drafter instead of the PNG's",
    )
    p.add_argument(
        "--batch-size",
        type=Count | None,
        default=None,
        metavar="N",
        help=(
            "seeds that are made at once, of which one is the image's, as the last digits of"
            " bfloat16 and float16 depend on it (default: as many as the PNG notes of each call,"
            " for the compute of all of them)"
        ),
    )
    p.add_argument(
        "--trust", action="store_true", help="load the model, LoRAs and drafter that the PNG names"
    )
    p.add_argument(
        "--out",
        type=str | None,
        help=f"file to write, or a folder (default: {REPLAYS}/ beside the image)",
    )
    p.add_argument("--overwrite", action="store_true", help="allow --out to exist already")
    arguments.add_options(p, ModelOptions, "device", "dtype")
    return p


class ReplayFile(NamedTuple):
    """An image to make again: its file, read once, and what the file notes."""

    path: Path
    data: bytes
    record: SearchRecord
    pictures: dict[str, Any]

    @property
    def task(self) -> str:
        return self.record.task or TEXT

    def pixels(self) -> NDArray[np.uint8]:
        """(T, H, W, 3) of the file, one frame where it is an image."""
        from ttsnap.files.pictures import video_pixels
        from ttsnap.options.call import MOST_SIDE

        return video_pixels(self.data, self.path, ("PNG", "WEBP"), MOST_SIDE**2)


def run(a: Arguments) -> int:
    """Make the images again, write them, and say how far each is from its original."""
    wanted = [_wanted(Path(name), a) for name in a.files]
    places = _places([w.path for w in wanted], a.out, a.overwrite)
    models, drafters = [_named(w, a) for w in wanted], [_drafter(w, a) for w in wanted]
    pipe, what = None, None
    for w, place, (model, loras), draft in zip(wanted, places, models, drafters, strict=True):
        asked = model, loras, w.task, _dtype(w, a)
        if what != asked:
            pipe = None  # one model at a time
            pipe, what = load_model(model, a.device, asked[3], loras=loras, task=w.task), asked
        _replay(w, place, pipe, draft, a.batch_size)
    return 0


def _wanted(path: Path, a: Arguments) -> ReplayFile:
    """What a file asks for. ValueError where its seed alone does not make it, or it takes other
    pictures than given."""
    from ttsnap.files import reading as files
    from ttsnap.files.pictured import digests
    from ttsnap.results.record import parse_record

    data = files.read_bytes(path, files.PICTURE_BYTES, "image")
    record = parse_record(data, path)
    _check_seed_alone(path, record)
    others = pictured_call(a.call)
    if plain := sorted(others.keys() - digests(others).keys()):
        what = f"what else {path} was made of is in its metadata"
        raise ValueError(f"--call.{plain[0]} is no picture; {what}")
    pictures = arguments.read(PictureOptions, a).read(record.task or TEXT) | others
    listed = () if record.task is None else WITH_FILES
    _check_pictures(path, record.pictures or {}, digests(pictures), listed)
    wanted = ReplayFile(path, data, record, pictures)
    wanted.pixels()  # refuses a damaged or a huge picture before a model is loaded
    return wanted


def _dtype(wanted: ReplayFile, a: Arguments) -> str:
    """That of --dtype, else the one that the file was made in; files that do not say are in float32
    on a CPU."""
    from ttsnap.pipelines.opening import placement

    if a.dtype != "auto":
        return str(a.dtype)
    old = "float32" if placement(a.device, "auto")[0].type == "cpu" else "auto"
    return wanted.record.dtype or old


def _check_seed_alone(path: Path, record: SearchRecord) -> None:
    """ValueError for an image that its seed alone does not make."""
    if record.image.branched:
        how = "came from a branch of its seed"
    elif record.sampler.guide:
        how = f"was guided by {record.sampler.guide!r}"
    else:
        return
    again = "run `ttsnap generate` with the settings in its trace.json"
    if record.noted.get("shared"):
        again = (
            "its search shared a budget with others, and only all of them together find it again"
        )
    raise ValueError(f"{path} {how}, so the seed alone does not make it again; {again}")


def _places(paths: Sequence[Path], out: str | None, overwrite: bool) -> list[Path]:
    """Where each replay goes. ValueError where something is there, two have one name, or nothing
    can be written."""
    from ttsnap.results.folders import new_file

    if out is None:
        places = [path.parent / REPLAYS / path.name for path in paths]
        overwrite = True  # of replays alone
    elif len(paths) == 1 and not Path(out).is_dir():
        places = [Path(out)]
    else:
        places = [Path(out, path.name) for path in paths]
    for place in places:
        if places.count(place) > 1:
            raise ValueError(
                f"several of the files are named {place.name}, and would all be written to {place};"
                " replay them one by one, or without --out"
            )
        if place.parent.is_dir():
            new_file(place, overwrite)
        else:
            new_file(place.parent, overwrite=False)
    return places


def _replay(
    wanted: ReplayFile, place: Path, pipe: Any, draft: str | None, batch_size: int | None
) -> None:
    """Make one image again, write it, and say how far it is from the original, and why."""
    import numpy as np

    from ttsnap.pipelines.opening import check_call
    from ttsnap.pipelines.run import run
    from ttsnap.results import outputs
    from ttsnap.results.media import to_uint8

    path, record = wanted.path, wanted.record
    before = wanted.pixels().astype(np.int16)
    call = {**record.call, **wanted.pictures}
    check_call(pipe, call, wanted.task)
    prompt, image = Prompt(record.image.prompt), record.image
    again = OneOfGroup(
        image.place or 0, (batch_size,) if batch_size else tuple(image.batches or [1])
    )
    batch = EngineOptions(batch_size=max(again.batches))
    sampler = replace(record.sampler, draft=draft)
    engine = EngineSpec(ModelOptions(record.model), (_no_reward,), sampler, batch, call)
    asked = SearchRequest(
        (prompt,), engine, again, Budget(), image.first_seed, batch.batch_size or 1
    )
    # The PNG says all; what the model recommends may have changed since.
    found = run(prepare(asked, ModelDefaults(split=pipe.split_prompt_inputs)), pipe)
    one = next(each for each in found.results[0].images if each.seed == image.seed)
    made = one.pixels if image.drawn is None else one.shown
    place.parent.mkdir(exist_ok=True)
    outputs.save_made(place, made, record)
    after = to_uint8(made[None] if made.ndim == 3 else made).astype(np.int16)
    if before.shape != after.shape:
        raise ValueError(
            f"{path} has size {before.shape[:3]}, its replay {after.shape[:3]}; is it the original"
            " file?"
        )
    far, dtype = abs(before - after).max(), str(pipe.dtype).removeprefix("torch.")
    print(f"wrote {place}; largest difference from {path.name}: {far} of 255")
    if far and dtype != "float32" and again.batches == (1,):
        print(
            f"  the last digits of {dtype} depend on how many seeds are made at once, which this"
            " file does not note: with --batch-size 16, say, the pixels are mostly the same"
        )


def _check_pictures(
    path: Path,
    noted: Mapping[Any, str | list[str]],
    given: Mapping[str, str | list[str]],
    listed: Collection[str],
) -> None:
    """ValueError unless the pictures given are those that the file was made of, by their digests.

    listed: those that have an option of their own; others are given with --call.
    """
    for name in (*noted, *given):
        option = f"--{name.replace('_', '-')}" if name in listed else f"--call.{name}"
        if name in listed and isinstance(noted.get(name), list):
            raise ValueError(
                f"{path} was made of several pictures for {option}, which takes one; make it again"
                " in Python, from its seed"
            )
        if name not in given:
            raise ValueError(
                f"{path} was made of a picture with the digest {noted[name]}; give it by {option}"
            )
        if name not in noted:
            raise ValueError(
                f"{path} notes no picture for {option}, which it would be made of; leave it out, or"
                " run `ttsnap generate` with the settings in its trace.json"
            )
        if noted[name] != given[name]:
            raise ValueError(
                f"{path} was made of another picture: {option} has the digest {given[name]}, that"
                f" which was changed had {noted[name]}"
            )


def _named(wanted: ReplayFile, a: Arguments) -> tuple[str, tuple[str, ...]]:
    """The model and the LoRAs to load: the user's, or the PNG's where it may be. ValueError that
    says what it asks for, and for another number of LoRAs.

    Weights are parsed by large libraries, a hub id is fetched over the network, and a path may be
    any file of this machine: a picture from somewhere must not decide on that.
    """
    model, noted, given = wanted.record.model, wanted.record.lora or [], listed(a.lora)
    loras = (noted,) if isinstance(noted, str) else tuple(noted)
    if given and len(given) != len(loras) > 1:
        raise ValueError(
            f"{wanted.path} was made under {len(loras)} LoRAs together, {', '.join(loras)}; give"
            f" --lora for each, in any order, got {len(given)}"
        )
    strange = [("model", model)] if a.model is None and model not in PACKAGED else []
    strange += [("lora", lora) for lora in loras if not given]
    if strange and not a.trust:
        asked = " and ".join(
            f"{'LoRA' if kind == 'lora' else kind} {name!r}" for kind, name in strange
        )
        again = " ".join(f"--{kind} {shlex.quote(name)}" for kind, name in strange)
        raise ValueError(
            f"{wanted.path} asks for the {asked}; nothing is loaded because a picture names it. If"
            f" that is what you want, add {again}, name others, or add --trust"
        )
    return a.model or model, given or loras


def _drafter(wanted: ReplayFile, a: Arguments) -> str | None:
    """The drafter whose draft was finished: the user's, or the PNG's where it may be; None where
    noise was. ValueError where none is named, or only by the PNG."""
    sampler = wanted.record.sampler
    if not sampler.finishes:
        return None
    noted = sampler.draft
    if a.draft is None and noted is None:
        raise ValueError(
            f"{wanted.path} was finished from a draft, and names no drafter; name it by --draft"
        )
    if a.draft is None and not comes_along(str(noted)) and not a.trust:
        raise ValueError(
            f"{wanted.path} asks for the drafter {noted!r}; nothing is loaded because a picture"
            f" names it. If you want it, add --draft {shlex.quote(str(noted))}, or --trust"
        )
    return str(a.draft or noted)


def _no_reward(images: Any, prompts: Any) -> Any:
    return [0.0] * len(prompts)
