"""Loading without the words and bars of the libraries that load."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet(name: str) -> Iterator[None]:
    """Without what the logger of this name says, and without the loading bars of diffusers and
    transformers."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    logger = logging.getLogger(name)
    level = logger.level
    drawing = [x for x in (diffusers_logging, transformers_logging) if x.is_progress_bar_enabled()]
    logger.setLevel(logging.CRITICAL)
    for library in drawing:
        library.disable_progress_bar()
    try:
        yield
    finally:
        logger.setLevel(level)
        for library in drawing:
            library.enable_progress_bar()
