"""All options of a search by their classes, of which each door shows a part."""

from __future__ import annotations

from ttsnap.options.call import CallOptions
from ttsnap.options.engine import BatchOptions, DeviceOptions
from ttsnap.options.model import ModelOptions
from ttsnap.options.option import Option, options_of
from ttsnap.options.sampler import SamplerOptions
from ttsnap.options.search import SearchOptions
from ttsnap.options.selection import SelectionOptions

SEARCH = (SearchOptions, SelectionOptions, SamplerOptions, BatchOptions, DeviceOptions)
"""What a search call takes beside the arguments of the stock call."""
EVERY = (*SEARCH, ModelOptions, CallOptions)
DECLARED: dict[str, Option] = {
    option.name: option for kind in SEARCH for option in options_of(kind)
}
"""The search arguments: what each is called, its default, and the words that explain it."""
OFFERED: dict[str, Option] = {
    option.offered.name or option.name: option
    for kind in EVERY
    for option in options_of(kind)
    if option.offered is not None
}
"""What strangers may write, by the names that they use."""
