"""What a search does with every pipeline class of diffusers: one on tiny parts, beside the stock
call of its seed.

    python benchmarks/support.py        # all of them, the newest models first, into docs/reference/support.csv
    python benchmarks/support.py Krea2Pipeline Flux2Pipeline    # the lines of these

A class is supported where the winner is the image that the stock call makes of the winner's seed.
The columns:

search       equal; refused, in the product's own words; not measured, where the stock call of these parts fails
difference   the largest between the two, of values in [0, 1]
rows         together where a batch of frames is one call of the network, else one by one (the trial finds it)
moved        the same difference where each step of a search went on in another stock call, led there without the
             network; nothing where a condition is a seed's own, which no other call can take
scheduler    the one of the parts, which the class names first

Parts are those of support_parts.py. Classes that make sound, text or meshes are left out, and those
that diffusers has deprecated. All of them take about half an hour of one core.
"""

from __future__ import annotations

import argparse
import copy
import csv
import inspect
import logging
import re
import signal
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import patch

import diffusers
import torch
import transformers
from support_parts import Case, small_pictures, stock
from torch import Tensor

from ttsnap import Budget, search
from ttsnap.algorithms import make_algorithm
from ttsnap.engine.live import LiveEngine
from ttsnap.pipelines import upgrade
from ttsnap.pipelines.calls.pictures import FIELDS, images_of
from ttsnap.pipelines.calls.pool import FramePool
from ttsnap.sampling.rng import seeded

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "support.csv"
NEWEST = (
    *(
        "Krea2",
        "QwenImage21",
        "Anima",
        "ErnieImage",
        "Ideogram4",
        "HunyuanVideo15",
        "LTX25",
        "LTX2",
    ),
    *(
        "MiniMaxH3",
        "Flux3",
        "AnyFlow",
        "Chroma",
        "OvisImage",
        "LongCatImage",
        "GlmImage",
        "Kandinsky6",
        "Kandinsky5",
        "Cosmos3",
        "Cosmos2_5",
    ),
    *(
        "CogVideoX",
        "Mochi",
        "SkyReels",
        "AnimateDiff",
        "SanaVideo",
        "SanaImageToVideo",
        "SanaSprint",
        "BriaFibo2",
    ),
    *(
        "Bria",
        "Flux2",
        "ZImage",
        "QwenImage",
        "HunyuanImage",
        "Helios",
        "MotifVideo",
        "SanaWM",
        "Wan",
        "Cosmos",
    ),
    "Sana",
)
"""Beginnings of names, of the models that came last; the others follow by their names."""
OTHERS = re.compile(
    "AceStep|Audio|MusicLDM|MiniMaxMusic|StableAudio|LongCatAudio|LLaDA|DiffusionGemma|RFD4|ShapE|DanceDiff|Onnx|Auto|.*Prior|"
    ".*LatentUpsample|LTX2VideoDiffusionDecode|LTX2DFRTemporalRefine|MarigoldDepth|Kandinsky6SR"
)
"""Names of classes that make no picture of noise: sound, text, proteins, meshes, depth, embeddings,
larger latents."""
PROMPT = "a red fox"
LIMIT = 150
"""Seconds of a core for a class."""


class Measured(NamedTuple):
    """A line of the table."""

    pipeline: str
    search: str
    difference: str = ""
    rows: str = ""
    moved: str = ""
    scheduler: str = ""


def names() -> list[str]:
    """Classes of the installed diffusers that make pictures, the newest first."""
    found = [name for name in dir(diffusers) if "Pipeline" in name and not OTHERS.match(name)]
    return sorted(filter(_is_one, found), key=place)


def _is_one(name: str) -> bool:
    kind = getattr(diffusers, name, None)
    both = (diffusers.DiffusionPipeline, diffusers.ModularPipeline)
    if not isinstance(kind, type) or not issubclass(kind, both) or kind in both:
        return False
    return ".deprecated." not in kind.__module__ and not any(
        "Deprecated" in base.__name__ for base in kind.__mro__
    )


def place(name: str) -> tuple[int, str]:
    """By which classes are sorted."""
    return next((i for i, start in enumerate(NEWEST) if name.startswith(start)), len(NEWEST)), name


def measure(name: str) -> Measured:
    """One class: its parts, the stock call, a search, and a search whose frames are all led to
    where they go on."""
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            case = stock(name)
    except TimeoutError:
        raise
    except Exception as error:
        return Measured(name, f"not measured: {_sentence(error)}")
    with small_pictures():
        return _measured(name, case)


def _measured(name: str, case: Case) -> Measured:
    scheduler = type(getattr(case.pipe, "scheduler", None)).__name__
    try:
        _alone(case, 0)
    except TimeoutError:
        raise
    except Exception as error:
        return Measured(name, f"not measured: {_sentence(error)}", scheduler=scheduler)
    try:
        return _searched(name, case)._replace(scheduler=scheduler)
    except TimeoutError:
        raise
    except ValueError as error:
        return Measured(name, f"refused: {_sentence(error)}", scheduler=scheduler)
    except Exception as error:
        try:
            _alone(case, 0)
        except Exception:
            reason = f"not measured: the stock call fails the second time ({_sentence(error)})"
            return Measured(name, reason, scheduler=scheduler)
        return Measured(
            name, f"fails: {type(error).__name__}: {_sentence(error)}", scheduler=scheduler
        )


def _searched(name: str, case: Case) -> Measured:
    engine = upgrade(case.pipe).engine(reward, **_arguments(case))
    difference = _difference(engine, case, "ttsnap", Budget(images=4))
    found = Measured(name, "equal" if difference < 1e-5 else "differs", f"{difference:.0e}")
    denoiser = engine.denoiser
    found = found._replace(
        rows="one by one" if denoiser.hub.apart & denoiser.hub.networks else "together"
    )
    if denoiser.rehearsed.by_seed:
        return found
    try:
        with led():
            return found._replace(
                moved=f"{_difference(engine, case, 'best-of-n', Budget(images=1)):.0e}"
            )
    except RuntimeError as error:
        return found._replace(moved=f"fails: {_sentence(error)}")


def _difference(engine: LiveEngine, case: Case, algorithm: str, budget: Budget) -> float:
    """Between a search's winner and what the stock call makes of its seed."""
    (result,) = search(
        [case.call.get("prompt", PROMPT)], make_algorithm(algorithm), engine, budget, seed=3
    )
    image = torch.as_tensor(result.best.image).float()
    return float((image - _alone(case, result.best.seed).float()).abs().max())


def _alone(case: Case, seed: int) -> Tensor:
    """What the stock call makes of a seed."""
    arguments = {**_arguments(case), "output_type": "np", "generator": seeded(seed)}
    modular = isinstance(case.pipe, diffusers.ModularPipeline)
    if modular or "prompt" in inspect.signature(type(case.pipe).__call__).parameters:
        arguments["prompt"] = case.call.get("prompt", PROMPT)
    with torch.no_grad():
        made = copy.copy(case.pipe)(**arguments)
    if modular:
        made = SimpleNamespace(
            **{name: made.get(name) for name in FIELDS if made.get(name) is not None}
        )
    return images_of(made)


def _arguments(case: Case) -> dict[str, Any]:
    return copy.deepcopy({name: value for name, value in case.call.items() if name != "prompt"})


@contextmanager
def led() -> Iterator[None]:
    """No frame waits for another row: each step of a search goes on in a stock call that was led
    there."""
    with patch.object(FramePool, "keep", lambda pool, condition, frame: frame.close()):
        yield


def reward(images: Tensor, prompts: Sequence[str]) -> list[float]:
    """One that distinguishes images of noise."""
    return [float(image.flatten()[::3].mean()) for image in images]


def _sentence(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def read(file: Path) -> dict[str, Measured]:
    """The lines of a table, by their classes."""
    with file.open(encoding="utf-8", newline="") as lines:
        return {line["pipeline"]: Measured(**line) for line in csv.DictReader(lines)}


def write(file: Path, lines: Mapping[str, Measured]) -> None:
    """Write the lines of the classes that there are, the newest first."""
    known = [lines[name] for name in names() if name in lines]
    with file.open("w", encoding="utf-8", newline="") as table:
        csv.writer(table, lineterminator="\n").writerows([Measured._fields, *known])


def _late(*_: Any) -> None:
    raise TimeoutError(f"{LIMIT} s were not enough")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="classes; all of them where none is named")
    parser.add_argument("--print", action="store_true", help="print, and leave the page as it is")
    parser.add_argument(
        "--file", type=Path, default=PAGE, help="where the table goes, by a line as it is measured"
    )
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
    torch.set_num_threads(1)
    signal.signal(signal.SIGPROF, _late)
    lines = read(args.file) if args.names else {}
    for name in args.names or names():
        began = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, LIMIT)
        try:
            lines[name] = measure(name)
        except TimeoutError as error:
            lines[name] = Measured(name, f"not measured: {error}")
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        print(*lines[name], f"{time.process_time() - began:.0f} s", sep=" | ", flush=True)
        if not args.print:
            write(args.file, lines)


if __name__ == "__main__":
    sys.exit(main())
