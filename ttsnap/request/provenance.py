"""What images are told to have been made by: prompts, engine, algorithm and budget of a search."""

from __future__ import annotations

from dataclasses import dataclass

from ttsnap.core.prompt import Prompt
from ttsnap.loop.budget import Budget
from ttsnap.options.option import Spec
from ttsnap.request.spec import EngineSpec


@dataclass(frozen=True)
class Provenance:
    """Of all images of one search."""

    prompts: tuple[Prompt, ...]
    engine: EngineSpec
    """With the model as a user named it, where images are to say so; None: as the pipeline knows itself."""
    search: Spec
    """The algorithm: a name, {"name": NAME, OPTION: VALUE, ...}, or the object itself."""
    budget: Budget
    """Of each prompt."""
