"""How large a benchmark is, beside its prompts, its algorithms and its budget."""

from __future__ import annotations

from dataclasses import dataclass

from ttsnap.files.settings import Bounded, Count
from ttsnap.options.option import option


@dataclass(frozen=True)
class BenchOptions(Bounded):
    """The settings of `ttsnap bench` that other commands do not have.

    Raises ValueError for numbers below 1.
    """

    repeats: Count = option(
        1,
        "searches per prompt and algorithm, each with seeds of its own; each gives one image, so that GenEval's four "
        "images a prompt are 4",
        metavar="N",
        common=True,
    )
    together: Count = option(
        16,
        "prompts that are searched for at once, which share the denoiser's batches, and their budgets with --shared; "
        "an interruption costs at most the work on so many",
        metavar="N",
    )
    sheets: bool = option(
        False, "write a contact sheet of each search into its prompt's folder: what it scored, dropped and finished"
    )
