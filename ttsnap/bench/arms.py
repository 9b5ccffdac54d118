"""What a benchmark compares: algorithms, each with options and a sampler of its own where it needs
them."""

from __future__ import annotations

import dataclasses
import shlex
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ttsnap.algorithms import make_algorithm, own_algorithm
from ttsnap.core.protocols import Algorithm
from ttsnap.files.plain_yaml import parse_yaml
from ttsnap.files.settings import Json, check
from ttsnap.files.writing import sha256
from ttsnap.options.option import Option, options_of
from ttsnap.options.sampler import SamplerOptions
from ttsnap.results.outputs import slug
from ttsnap.results.record import jsonable

SAMPLERS = {
    option.name: option
    for option in options_of(SamplerOptions)
    if option.written and not option.loads
}
"""The options of the sampler that an arm may set. Options that load a model are set for all arms on
the command line: a list of algorithms may come from a stranger's file."""


@dataclass(frozen=True)
class Arm:
    """One of the things compared."""

    name: str
    """The name in tables."""
    algorithm: str
    """What the user named: "svdd", a .json file, or file.py:Class."""
    options: Mapping[str, Json]
    """Options of the algorithm."""
    made: Algorithm
    sampler: SamplerOptions
    """How candidates are denoised."""
    steps: int | None = None
    """Denoising steps of its call."""

    @property
    def setup(self) -> tuple[SamplerOptions, int | None]:
        """What an engine is made by: arms of one setup share it."""
        return self.sampler, self.steps

    @property
    def folder(self) -> str:
        """The name of the folder of its images."""
        return slug(self.name, 80)

    def noted(self) -> dict[str, Json]:
        """What must be the same to resume a benchmark. A file of an algorithm counts by its
        contents."""
        place = (
            self.algorithm
            if self.algorithm.endswith(".json")
            else self.algorithm.rpartition(":")[0]
        )
        file = {"sha256": sha256(Path(place))} if place else {}
        named = {
            "name": self.name,
            "algorithm": Path(self.algorithm).name,
            **file,
            "options": jsonable(self.options),
        }
        return {**named, "sampler": self.sampler.told()}


def read_arms(texts: Sequence[str], sampler: SamplerOptions) -> list[Arm]:
    """The arms that these texts name, each "NAME" or "NAME OPTION=VALUE ...", as "svdd kernel=sde
    n=4".

    An option belongs to the algorithm or to the sampler; `name` is what tables call the arm.
    sampler: the options that arms do not set. ValueError for unknown options, for values of another
    type, and where two arms have the same name.
    """
    if not texts:
        raise ValueError("no algorithms: name at least one, as --algorithms best-of-n seed-pruning")
    arms = [_arm(text, sampler) for text in texts]
    folders = [arm.folder for arm in arms]
    twice = [arm.name for arm in arms if folders.count(arm.folder) > 1]
    if twice:
        raise ValueError(
            f"{' and '.join(twice)} would go to the same folder; name each algorithm once"
        )
    return arms


def _arm(text: str, sampler: SamplerOptions) -> Arm:
    words = shlex.split(text)
    if not words:
        raise ValueError("an empty name among the algorithms")
    algorithm, *rest = words
    options: dict[str, Json] = {}
    changes: dict[str, object] = {}
    named = ""
    for word in rest:
        key, equals, value = word.partition("=")
        if not equals:
            raise ValueError(
                f"cannot read {word!r} in the algorithm {text!r}; write NAME OPTION=VALUE ..."
            )
        if key == "name":
            named = value
        elif key in SAMPLERS:
            changes[key] = _value(SAMPLERS[key], value)
        else:
            options[key] = jsonable(parse_yaml(value, f"{key} of {text!r}"))
    try:
        made = make_algorithm(own_algorithm(algorithm), **options)
    except ValueError as error:
        more = f"; of the sampler, an algorithm may set {', '.join(SAMPLERS)}" if options else ""
        raise ValueError(f"{error}{more}") from None
    name = named or " ".join(
        [Path(algorithm).stem if algorithm.endswith(".json") else Path(algorithm).name, *rest]
    )
    return Arm(name, algorithm, options, made, dataclasses.replace(sampler, **changes))  # type: ignore[arg-type]


def _value(option: Option, text: str) -> object:
    """An option's value, by its declared type."""
    if str in {option.written, *typing.get_args(option.written)}:
        return text
    return check(option.name, parse_yaml(text, option.name), option.written)
