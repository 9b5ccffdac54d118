"""A stock call opened for a search: its arguments, in the form in which it returns its images, and
what a rehearsal found of it."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Hashable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import nn

from ttsnap.pipelines.arguments import embeddings_in
from ttsnap.pipelines.calls import guiders, loops
from ttsnap.pipelines.calls.dummies import Dummies
from ttsnap.pipelines.calls.given import TYPICAL, GivenCall
from ttsnap.pipelines.calls.pictures import NoPictureError, pictures_for
from ttsnap.pipelines.calls.rehearsal import Rehearsal, rehearse
from ttsnap.pipelines.calls.run import first_shapes
from ttsnap.pipelines.calls.shared_parts import dtypes
from ttsnap.pipelines.calls.stock_call import StockCall
from ttsnap.pipelines.calls.values import PLAIN, likeness_of
from ttsnap.pipelines.memory.memo import Memo, filling
from ttsnap.pipelines.pipeline_copy import shared_copy
from ttsnap.pipelines.quiet import quiet

STEPS = "num_inference_steps"
ALIKE = "alike"
KINDS = 32
"""Of how many kinds of calls of a pipeline it is kept what a rehearsal found: callers of a service
may each have their own."""
FORMS = ("pt", "np", "pil")
"""Of pictures that stock calls return, the exact ones first; a call may make others than those."""


class OpenedCall(NamedTuple):
    """One that was rehearsed."""

    given: GivenCall
    typical: StockCall
    """Of the prompt of the rehearsal."""
    rehearsed: Rehearsal
    hooks: bool
    """Whether guiders hook the network's layers around some of its calls."""


def open_call(pipe: Any, call: Mapping[str, Any]) -> OpenedCall:
    """Rehearse a call. What it sets in parts, it sets in copies, which `pipe` then has.

    ValueError for what no search can suspend, and for several pictures where the call takes one for
    each image.
    """
    steps = call.get(STEPS)
    if isinstance(steps, int) and steps < 1:
        raise ValueError(f"{STEPS} must be at least 1, got {steps}")
    check_lists(pipe, call)
    given, typical, rehearsed = _in_a_form_that_it_makes(GivenCall.of(pipe, call))
    hooks = any(guiders.puts_hooks(part) for part in pipe.components.values())
    changed = set(rehearsed.held).union(rehearsed.networks if hooks else ())
    if changed:
        # Frames put processors and hooks into parts, which no other search may see.
        vars(pipe).update({name: shared_copy(getattr(pipe, name)) for name in changed})
        typical, rehearsed = _rehearsed(given)
    return OpenedCall(given, typical, rehearsed, hooks)


def _in_a_form_that_it_makes(given: GivenCall) -> tuple[GivenCall, StockCall, Rehearsal]:
    """The call with the first of FORMS in which it makes pictures, and its rehearsal."""
    said = ""  # not the error, whose traceback would hold it in a cycle
    for form in FORMS:
        formed = given.returning(form)
        try:
            with quiet(loops.LOGGER):
                return formed, *_rehearsed(formed)
        except NoPictureError as refused:
            said = str(refused)
        except ValueError as refused:
            if "output_type" not in str(refused) or (form == FORMS[-1] and not said):
                raise
    raise NoPictureError(said)


@torch.no_grad()
def _rehearsed(given: GivenCall) -> tuple[StockCall, Rehearsal]:
    call = given.for_prompt(TYPICAL)
    typical = replace(call, dummies=Dummies(_shown(call)))
    return typical, rehearse(typical, _known(call))


def _shown(call: StockCall) -> dict[Any, Any]:
    """What calls of the pipeline's parts make, kept with it while its parts are the same."""
    memo: Memo = call.pipe._search_memo
    return memo.of(_key(call, "shown"))


def _known(call: StockCall) -> dict[Hashable, Any]:
    """What is known of calls like this one, kept in the same way.

    They agree in all but the number of steps, in what was set on the pipeline, and in their
    schedulers. Pictures go by their sizes.
    """
    arguments = {name: value for name, value in call.arguments.items() if name != STEPS}
    # What a stock call sets itself has a name that begins so.
    named = [each for each in vars(call.pipe).items() if not each[0].startswith("_")]
    own = [each for each in named if isinstance(each[1], PLAIN)]
    others = [part for part in call.parts.values() if not isinstance(part, nn.Module)]
    settings = tuple((type(part), repr(getattr(part, "config", None))) for part in others)
    widths = tuple(dtypes(call.modules).items())
    try:
        key = likeness_of([arguments, own])
    except TypeError:
        return {}
    kind = type(call.pipe).stock_class()
    alike = _key(call, ALIKE, kind, key, settings, widths, str(call.device))
    memo: Memo = call.pipe._search_memo
    known = memo.of(alike)
    known[ALIKE] = alike
    for old in [each for each in list(memo) if each[0] == ALIKE][:-KINDS]:
        memo.pop(old, None)
    return known


def _key(call: StockCall, *key: Hashable) -> tuple[Hashable, ...]:
    """Of what is kept with a pipeline while its parts are the same."""
    parts = list(call.modules.values())
    return (*key, *map(weakref.ref, parts), *map(filling, parts))


# --- lists of pictures ----------------------------------------------------------------------------


def takes_one_each(pipe: Any, call: Mapping[str, Any]) -> bool:
    """Whether lists of pictures in a call are for an image each, and not all for one.

    With a single prompt the stock call then makes several images, or fails. Where it needs all of
    them, as VisualCloze needs its grid, it fails with the first alone.
    """
    own = copy.copy(pipe)
    first = {name: value[0] for name, value in pictures_for(call).items()}

    def shapes(arguments: Mapping[str, Any]) -> Any:
        given = GivenCall.of(own, arguments).returning(FORMS[0])
        return first_shapes(given.for_prompt(TYPICAL))

    with quiet(loops.LOGGER), torch.no_grad():
        try:
            several = shapes(call)
        except Exception:
            return True
        try:
            return bool(several != shapes({**call, **first}))
        except Exception:
            return False


def check_lists(pipe: Any, call: Mapping[str, Any]) -> None:
    """ValueError for several pictures where the call takes one for each image, and for embeddings
    of several prompts."""
    for value in (*embeddings_in(call), *embeddings_in(call, "negative_")):
        if len(value) > 1:
            raise ValueError(
                f"a call takes the embeddings of one prompt, got those of {len(value)}; give each "
                "its own, as Prompt(text, inputs={'prompt_embeds': rows})"
            )
    several = pictures_for(call)
    if several and takes_one_each(pipe, call):
        counts = [f"one {name}, got {len(values)}" for name, values in several.items()]
        raise ValueError(f"{pipe.task_of(call)} takes for each prompt {' and '.join(counts)}")
