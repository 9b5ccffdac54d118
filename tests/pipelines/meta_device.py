"""A stand-in for an accelerator: torch's meta device, of which a dispatch mode says what a real one
would.

It holds shapes and no numbers. What a search reads of it is made up, and where it does is noted.
"""

from __future__ import annotations

import sys
from collections import Counter
from contextlib import contextmanager, nullcontext
from unittest import mock

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

import ttsnap.pipelines.suspended as suspended
from ttsnap.profiling import meter
from ttsnap.profiling.on_paper import Fused, Live

META = torch.device("meta")
WAITS = ("nonzero", "masked_select", "_unique2", "unique_consecutive", "unique_dim")
"""Operators whose results' shapes depend on values: the host waits for them."""
COMPARED = ("equal", "allclose")
"""Operators that answer yes or no. Rows are alike, joined or apart."""
INDEXES = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index")
Site = tuple[str, str]
"""A file of the product and a function in it."""


class Device(Live):
    """Notes what leaves the device, and copies to it for which the host waits. RuntimeError, as of
    a real device, where an operator mixes devices."""

    def __init__(self):
        super().__init__()
        self.left, self.copied = Counter[Site](), Counter[Site]()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        on_host = [each for each in given if not each.is_meta and each.ndim]
        if name == "_to_copy" and "device" in kwargs:
            return self._moved(func, args, kwargs)
        if not any(each.is_meta for each in given):
            return func(*args, **kwargs)
        if name == "copy_":
            return self._filled(func, args, kwargs)
        if name == "_local_scalar_dense":
            self.left[site()] += 1
            return _value(args[0]).item()
        if name in COMPARED:
            self.left[site()] += 1
            return True
        if name in WAITS or (name == "repeat_interleave" and kwargs.get("output_size") is None):
            self.left[site()] += 1
        elif name in INDEXES and on_host:
            self.copied[site()] += 1
        elif on_host:
            raise RuntimeError(
                f"{name} mixes devices at {site()}: {[str(each.device) for each in given]}"
            )
        return super().__torch_dispatch__(func, types, args, kwargs)

    def _moved(self, func, args, kwargs):
        source, to = args[0], torch.device(kwargs["device"])
        if source.is_meta and to.type == "cpu":
            self.left[site()] += 1
            return _made_up(source).to(kwargs.get("dtype") or source.dtype)
        if not source.is_meta and to.type == "meta" and not kwargs.get("non_blocking"):
            self.copied[site()] += 1
        return super().__torch_dispatch__(func, (), args, kwargs)

    def _filled(self, func, args, kwargs):
        to, source = args[:2]
        if source.is_meta and not to.is_meta:
            self.left[site()] += 1
            return to.copy_(_made_up(source))
        blocking = not (len(args) > 2 and args[2]) and not kwargs.get("non_blocking")
        if to.is_meta and not source.is_meta and source.ndim and blocking:
            self.copied[site()] += 1
        return super().__torch_dispatch__(func, (), args, kwargs)


def _made_up(like):
    """Scores that differ, below 0: what is above 0, or true, marks an image as broken."""
    made = torch.zeros(like.shape) if like.dtype == torch.bool else -torch.rand(like.shape)
    return made.to(like.dtype)


def _value(like):
    """One that is asked for."""
    return torch.ones((), dtype=like.dtype)


def site():
    """Where the product is, in the innermost of its functions."""
    frame = sys._getframe(1)
    while frame is not None:
        _, ours, file = frame.f_code.co_filename.rpartition("/ttsnap/")
        if ours and "site-packages" not in file and not file.startswith("profiling/on_paper"):
            return file, frame.f_code.co_qualname
        frame = frame.f_back
    return "", ""


class _Event:
    """Of a device without a clock."""

    def __init__(self, *_, **__): ...

    def record(self, *_): ...

    def synchronize(self): ...

    def elapsed_time(self, other):
        return 0.0


def _meter(_):
    return meter.Meter("cpu")


@contextmanager
def on_device():
    """Everything in here, in suspended calls as well, computes on the stand-in."""
    device, program = Device(), suspended._run

    def run(*args):
        with torch.no_grad(), Fused(), device:
            program(*args)

    with (
        mock.patch.object(suspended, "_run", run),
        mock.patch("ttsnap.engine.live.Meter", _meter),
        # of masks, all of whose tokens are then seen
        mock.patch("torch.fx.experimental._config.meta_nonzero_assume_all_nonzero", True),
        mock.patch.object(torch, "Event", _Event),
        # which knows no such device
        mock.patch.object(torch, "is_autocast_enabled", return_value=False),
        mock.patch.object(torch, "autocast", return_value=nullcontext()),
        mock.patch.object(torch.accelerator, "current_stream", return_value=None),
        Fused(),
        device,
    ):
        yield device


def placed(pipe, place):
    """The pipeline, which takes the one named "now" for its device."""
    here = property(lambda self: place["now"])
    pipe.__class__ = type(
        type(pipe).__name__, (type(pipe),), {"device": here, "_execution_device": here}
    )
    return pipe
