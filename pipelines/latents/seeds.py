"""The first seed of a search: given by number, taken from a generator, or from torch's global one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ttsnap.request.request import checked_seed

DRAWN = 2**32
"""How many seeds differ in torch's generator on the CPU, which draws the noise. Other tools read no larger ones."""


def source_of(
    seed: int | None, generator: torch.Generator | list[torch.Generator] | None, images: int
) -> int | torch.Generator:
    """The seed or generator of a call that returns so many images; nothing is drawn yet.

    A list with one generator is taken for one image. ValueError for other lists, for both arguments at once, and for a
    seed that torch does not take.
    """
    if isinstance(generator, list):
        if len(generator) != 1 or images != 1:
            raise ValueError(
                f"generator= is a list of {len(generator)}, for {images} images: a search numbers its seeds itself; "
                "pass seed= or one generator, not a list"
            )
        (generator,) = generator
    if seed is not None and generator is not None:
        raise ValueError(f"give seed= or generator=, not both: a search starts from one seed, and seed is {seed}")
    if seed is not None:
        return checked_seed(seed)
    if generator is not None and not isinstance(generator, torch.Generator):
        raise ValueError(f"generator= must be a torch.Generator, got {generator!r}; seed= takes a number")
    return torch.default_generator if generator is None else generator


def first_seed(source: int | torch.Generator) -> int:
    """The number itself, or the next seed of a generator, which advances.

    Before any draw that is the generator's own seed, modulo 2^32, so that candidate 0 starts from the noise of a stock
    call: torch's generator on the CPU is the same for both. Later it is a number drawn from the generator, below 2^32.
    """
    if isinstance(source, int):
        return source
    unused = torch.Generator(source.device).manual_seed(source.initial_seed())
    own = torch.equal(source.get_state(), unused.get_state())
    drawn = torch.randint(DRAWN, (), generator=source, device=source.device)
    return source.initial_seed() % DRAWN if own else int(drawn)


@contextmanager
def drawn(source: int | torch.Generator) -> Iterator[int]:
    """The first seed, for a block: a call that is refused in it, by a ValueError, leaves the generator as it was."""
    before = None if isinstance(source, int) else source.get_state()
    try:
        yield first_seed(source)
    except ValueError:
        if before is not None and isinstance(source, torch.Generator):
            source.set_state(before)
        raise
