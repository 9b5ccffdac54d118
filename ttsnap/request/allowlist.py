"""The searches that strangers may ask for: algorithms by name, with options of their own, and an
operator's files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ttsnap.algorithms import ALGORITHMS, make_algorithm
from ttsnap.core.names import FieldError
from ttsnap.core.needs import Gradient, Need
from ttsnap.core.protocols import Algorithm
from ttsnap.request.request import AlgorithmSpec

NOT_OFFERED = {"price-of-compute", "keep-all", "noise-ascent", "refined"}
"""Searches that need a file, only study, or follow gradients, for which an engine has to be set up
anew."""
OFFERED = tuple(name for name in ALGORITHMS if name not in NOT_OFFERED)


def search_of(wanted: object, files: Mapping[str, Algorithm], most: int) -> AlgorithmSpec:
    """A search by the name of an algorithm or of one of the operator's files, or {"name": ...,
    **options} of an algorithm. FieldError for what is not offered, for options that the algorithm
    does not have or take, and for whole numbers among them that are more than `most` when they are
    multiplied, as they say how much runs at once.
    """
    if isinstance(wanted, str) and wanted in files:
        return files[wanted]
    name = wanted.get("name") if isinstance(wanted, Mapping) else wanted
    try:
        if not isinstance(name, str) or name not in OFFERED:
            raise ValueError(
                f"no search {str(name)[:100]!r} here; choose one of {', '.join((*files, *OFFERED))}"
            )
        if not isinstance(wanted, Mapping):
            return name
        if (size := _size(wanted)) > most:
            raise ValueError(
                f"the whole numbers among the options of {name} may multiply to {most} here, got"
                f" {size}"
            )
        make_algorithm(wanted)
    except ValueError as error:
        raise FieldError("search", str(error)) from None
    return wanted


def searches_of(given: Sequence[str]) -> dict[str, Algorithm]:
    """The operator's own, from NAME=FILE each, where FILE is what `ttsnap tune` or `ttsnap
    calibrate` wrote. ValueError for a file that holds no algorithm, for one that follows gradients,
    and for a name that is taken."""
    searches: dict[str, Algorithm] = {}
    for text in given:
        name, equals, file = text.partition("=")
        if (
            not equals
            or not name.replace("-", "").replace("_", "").isalnum()
            or not file.endswith(".json")
        ):
            raise ValueError(
                f"give a search as NAME=FILE.json, where NAME is what clients ask for, got {text!r}"
            )
        if name in ALGORITHMS or name in searches:
            raise ValueError(f"there is a search {name!r} already; offer {file} by another name")
        searches[name] = make_algorithm(file)
        if any(isinstance(need, Gradient) for need in searches[name].needs):
            raise ValueError(
                f"{file} follows gradients of finished images, which the service cannot; offer"
                " another"
            )
    return searches


def kernel_for(algorithm: AlgorithmSpec) -> str:
    """The sampler where nobody chose one: one that draws noise or has a path, for searches that
    need that."""
    needs = make_algorithm(algorithm).needs
    return "sde" if needs & {Need.BRANCH, Need.NEAR, Need.RENOISE} else "pipeline"


def _size(value: object) -> int:
    """The product of the whole numbers among options, of which the largest counts in a list.
    ValueError for names of files, and of algorithms that are not offered."""
    if isinstance(value, str) and (value.endswith(".json") or value in NOT_OFFERED):
        raise ValueError(
            f"options may name algorithms that are offered here and no file, got {value[:100]!r}"
        )
    if isinstance(value, Mapping):
        product = 1
        for inside in value.values():
            product *= _size(inside)
        return product
    if isinstance(value, list):
        return max((_size(inside) for inside in value), default=1)
    return max(1, int(value)) if isinstance(value, int | float) and value == int(value) else 1
